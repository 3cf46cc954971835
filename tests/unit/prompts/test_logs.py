"""`pat prompts from-logs`: what is sampled stands for the traffic; and the command itself."""

from __future__ import annotations

import csv
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pat import cli
from pat.prompts import logs, reader


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["prompts", *map(str, arguments)])
    return int(str(stop.value.code))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    rng, path = random.Random(0), tmp_path / "prod.jsonl"
    domains = ["films"] * 900 + ["law"] * 95 + ["rare"] * 5
    rng.shuffle(domains)
    rows = [
        {"request": {"prompt": f"{domain} {i}"}, "domain": domain, "usage": {"output": 1 + i % 40}}
        for i, domain in enumerate(domains)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_stratified_sample_stands_for_the_traffic(log: Path, tmp_path: Path, capsys: Any) -> None:
    """Fails if a rare slice is lost, or the weights do not give each slice its share of the traffic back."""
    out = tmp_path / "mix.jsonl"
    options = ["--prompt", "request.prompt", "--slices", "domain", "--output-tokens", "usage.output", "--n", 60]
    assert run("from-logs", log, "--out", out, *options) == 0
    mix = reader.read(out)
    counts = Counter(prompt.slices["domain"] for prompt in mix.prompts)
    assert run("from-logs", log, "--out", out, *options) == 2
    assert "is there already" in capsys.readouterr().err and reader.read(out) == mix, "it may have been edited"
    assert counts["rare"] >= 2 and counts["law"] >= 10 and sum(counts.values()) == 60
    whole = sum(prompt.weight for prompt in mix.prompts)
    shares = {name: sum(mix.prompts[i].weight for i in at) / whole for name, at in mix.slices().items()}
    assert shares == pytest.approx({"domain=films": 0.9, "domain=law": 0.095, "domain=rare": 0.005}, abs=1e-4)
    assert all(prompt.output_tokens == 1 + int(str(prompt.prompt).split()[1]) % 40 for prompt in mix.prompts)
    assert run("check", out, "--json", tmp_path / "summary.json") == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["slices"][0]["prompts"] == 60 and "few prompts" in capsys.readouterr().out


def test_prompts_go_to_whoever_has_the_fewest_for_the_root_of_its_size() -> None:
    """By the definition: one at a time."""

    def one_at_a_time(sizes: list[int], n: int) -> list[int]:
        given = [1] * len(sizes)
        while sum(given) < min(n, sum(sizes)):
            open_ = [i for i, size in enumerate(sizes) if given[i] < size]
            given[max(open_, key=lambda i: (math.sqrt(sizes[i]) / given[i], -i))] += 1
        return given

    rng = random.Random(0)
    for _ in range(300):
        sizes = [rng.choice([1, 2, 4, 9, rng.randint(1, 60)]) for _ in range(rng.randint(1, 9))]
        n = rng.randint(len(sizes), sum(sizes) + 3)
        assert logs.allotted(sizes, n) == one_at_a_time(sizes, n), (sizes, n)
    assert logs.allotted([9] * 20_000, 100_000) == [5] * 20_000, "many strata are no reason to wait for minutes"


def test_a_rare_stratum_has_its_exact_weight(tmp_path: Path) -> None:
    """Fails if weights are rounded to a number of places, which leaves the rarest few digits, or none."""
    path = tmp_path / "prod.jsonl"
    rows = [{"prompt": f"p{i}", "kind": "rare" if i == 5 else "frequent"} for i in range(700)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = logs.sample(path, logs.Columns(slices=("kind",)), 2).prompts
    weights = {prompt.slices["kind"]: prompt.weight for prompt in made}
    assert weights == pytest.approx({"rare": 1 / 350, "frequent": 699 / 350}, rel=5e-6)


def test_labelled_rows_check_their_own_label(tmp_path: Path, capsys: Any) -> None:
    path, out = tmp_path / "rows.jsonl", tmp_path / "mix.jsonl"
    rows = [{"text": f"row {i}", "label": i % 2} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("from-logs", path, "--prompt", "text", "--label", "label", "--slices", "label", "--out", out) == 0
    for prompt in reader.read(out).prompts:
        right = int(str(prompt.prompt).split()[1]) % 2
        (check,) = prompt.checks
        assert prompt.slices == {"label": str(right)}
        assert check.failure(str(right), {}) is None and check.failure(str(1 - right), {}) is not None
    assert run("from-logs", path, "--prompt", "text", "--label", "gone", "--out", tmp_path / "no.jsonl") == 2
    assert "gone" in capsys.readouterr().err


@pytest.mark.parametrize("ending, separator", [(".csv", ","), (".tsv", "\t")])
def test_tables_are_logs_too(ending: str, separator: str, tmp_path: Path, capsys: Any) -> None:
    """Fails if a table's rows differ from the same in JSONL, or a wrong line is not named."""
    path, out = tmp_path / f"prod{ending}", tmp_path / "mix.jsonl"
    rows = [("text", "kind", "tokens"), ('"a long, one"', "films", "7"), ("short", "law", "12"), ("more", "films", "")]
    path.write_text("".join(separator.join(row) + "\n" for row in rows))
    options = ["--prompt", "text", "--slices", "kind", "--output-tokens", "tokens", "--out", out]
    assert run("from-logs", path, *options) == 0
    found = {prompt.prompt: (prompt.slices["kind"], prompt.output_tokens) for prompt in reader.read(out).prompts}
    assert found == {"a long, one": ("films", 7), "short": ("law", 12), "more": ("films", None)}
    out.unlink()
    path.write_text(path.read_text() + separator.join(("text", "kind", "many")) + "\n")
    assert run("from-logs", path, *options) == 2
    assert "line 5: output_tokens" in capsys.readouterr().err
    path.write_text(path.read_text().replace("many", f"1{separator}2"))
    assert run("from-logs", path, *options) == 2
    assert "line 5 does not have the 3 values that line 1 names" in capsys.readouterr().err
    path.write_text(separator.join(("text", "kind", "tokens")) + "\n" + separator.join(("w " * 100_000, "law", "1")))
    assert run("from-logs", path, *options) == 0, "longer than the csv module's 128 KiB"
    out.unlink()
    path.write_text(
        separator.join(("What is the capital of the country Georgia and what of the state?", "law", "1")) + "\n" * 2
    )
    assert run("from-logs", path, *options, "--skip-bad") == 2
    said = capsys.readouterr().err
    assert "has no column text; there are What is the" in said and "The first line is read as the header" in said
    assert "the state" not in said
    path.write_text("".join(separator.join(row) + "\n" for row in (("text", "kind", "text"), ("a", "law", "b"))))
    assert run("from-logs", path, *options) == 2
    assert f"{path} has two columns 'text': rename one." in capsys.readouterr().err and not out.exists()
    path.write_bytes(b"text\n\xff\n")
    assert run("from-logs", path, *options) == 2
    assert "is not UTF-8" in capsys.readouterr().err


def test_equal_prompts_with_other_answers_are_two(tmp_path: Path) -> None:
    """Fails if chance decides which of the right answers stays, with the weight of all."""
    path = tmp_path / "prod.jsonl"
    rows = [("Georgia?", "Tbilisi"), ("Georgia?", "Atlanta"), ("Georgia?", "Atlanta"), ("Perth?", None)]
    path.write_text("".join(json.dumps({"prompt": prompt, "reference": answer}) + "\n" for prompt, answer in rows))
    made = logs.sample(path, logs.Columns(reference="reference"), 10).prompts
    weights = {(prompt.prompt, prompt.reference): prompt.weight for prompt in made}
    assert weights == pytest.approx({rows[0]: 0.75, rows[1]: 1.5, rows[3]: 0.75})
    assert len({prompt.id for prompt in made}) == 3


@pytest.mark.parametrize(
    "given, said",
    [
        (["from-logs", "--out", "m.jsonl", "--json", "s.json"], "--json is an option of `pat prompts check`"),
        (["check", "--long-from", "5"], "--long-from is an option of `pat prompts from-logs`"),
        (["from-logs", "--out", "m.jsonl", "--slices", "form", "--long-from", "5"], "--long-from makes the slice form"),
    ],
)
def test_no_option_is_ignored(given: list[str], said: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prod.jsonl").write_text('{"prompt": "a", "form": "app"}\n')
    assert run(given[0], "prod.jsonl", *given[1:]) == 2
    assert said in capsys.readouterr().err and not Path("m.jsonl").exists()


def test_a_table_holds_messages_as_json(tmp_path: Path) -> None:
    """Would catch: a conversation that becomes one user's turn, of brackets and quotes."""
    path, out = tmp_path / "prod.csv", tmp_path / "mix.jsonl"
    messages = [{"role": "system", "content": 'Say "yes", or no.'}, {"role": "user", "content": "Is it late?"}]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], [json.dumps(messages)], ["[1] and [2]: why?"], ['["a"]']])
    assert run("from-logs", path, "--prompt", "messages", "--out", out) == 0
    found = reader.read(out).prompts
    assert [prompt.messages for prompt in found if prompt.messages] == [messages]
    assert {prompt.prompt for prompt in found} == {None, "[1] and [2]: why?", '["a"]'}


def test_every_row_is_as_likely(tmp_path: Path) -> None:
    """Fails if the reservoir prefers the log's beginning or end."""
    path = tmp_path / "prod.jsonl"
    path.write_text("".join(json.dumps({"prompt": str(i)}) + "\n" for i in range(20)))
    seen = Counter(
        int(str(one.prompt)) for seed in range(400) for one in logs.sample(path, logs.Columns(), 5, seed=seed).prompts
    )
    assert all(60 <= seen[i] <= 140 for i in range(20)), seen  # 100 expected, sd 8.7


def test_equal_prompts_are_merged_and_lengths_part(tmp_path: Path) -> None:
    path = tmp_path / "prod.jsonl"
    rows = [{"prompt": "same"}] * 3 + [{"prompt": "a much longer prompt"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = logs.sample(path, logs.Columns(), 10, long_from=3).prompts
    assert [(one.text, one.slices, one.weight) for one in made] == [
        ("same", {"form": "short"}, 1.5), ("a much longer prompt", {"form": "long"}, 0.5)
    ]  # fmt: skip


def test_equal_texts_with_other_labels_stay_apart(tmp_path: Path) -> None:
    """Fails if all of a text's rows count as right by the label of one of them."""
    path, rows = tmp_path / "prod.jsonl", [{"prompt": "ok", "label": "bad" if i % 5 else "good"} for i in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = logs.sample(path, logs.Columns(label="label"), 10).prompts
    assert sorted((one.checks[0].label, one.weight) for one in made) == [("bad", 1.6), ("good", 0.4)]
    assert len({one.id for one in made}) == 2


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ('{"q": 1}', [], "line 1: there is no column prompt; there are q"),
        ('{"q": {"prompt": 1}}', [], "there is no column prompt; there are q; did you mean q.prompt?\n"),
        ('{"q": {"txt": 1}}', ["--prompt", "q.text"], "no column q.text; there are q.txt; did you mean q.txt?"),
        ('{"prompt": 1}', [], "must be a text or a list of messages"),
        ('{"prompt": "a"', [], "line 1 is"),
        ('{"prompt": "a", "d": null}', ["--slices", "d"], "a slice is a word or a whole number"),
        ('{"prompt": "a"}', ["--n", "0"], "--n 0: give 1 or more"),
        (
            '{"prompt": "a", "q.d": 1, "r.d": 2}',
            ["--slices", "q.d,r.d"],
            "two columns of --slices would both be the slice d",
        ),
        ("", [], "has no row with a prompt"),
        ("\n".join(f'{{"prompt": "a", "d": {i}}}' for i in range(3)), ["--slices", "d", "--n", "2"], "the 3 strata"),
    ],
)
def test_mistakes(text: str, options: list[str], sentence: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "prod.jsonl"
    path.write_text(text)
    assert run("from-logs", path, "--out", tmp_path / "mix.jsonl", *options) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "mix.jsonl").exists()


def test_bad_lines_are_left_out_when_asked(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "prod.jsonl"
    path.write_text('{"prompt": "a"}\n{"q": 1}\n{"prompt": "be')  # it is still being written
    assert run("from-logs", path, "--out", tmp_path / "mix.jsonl", "--skip-bad") == 0
    assert "1 prompts of 1 rows, 2 lines left out" in capsys.readouterr().out
    for name, text in (
        ("torn.jsonl", '{"prompt": "a"}\n{"pro\n{"prompt": "b"}\n'),
        ("cut.jsonl", '{"prompt": "\\ud83d\\ude00"}\n{"prompt": "\\ud83d"}\n{"prompt": "b"}\n'),  # within an emoji
        ("torn.csv", "prompt,x\na,1\nb\nc,2\n"),
    ):
        (tmp_path / name).write_text(text)
        assert run("from-logs", tmp_path / name, "--out", tmp_path / f"{name}.mix.jsonl") == 2
        assert "--skip-bad leaves such lines out" in capsys.readouterr().err
        assert run("from-logs", tmp_path / name, "--out", tmp_path / f"{name}.mix.jsonl", "--skip-bad") == 0
        assert "2 prompts of 2 rows, 1 line left out" in capsys.readouterr().out
