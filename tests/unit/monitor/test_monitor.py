"""`pat monitor`: false alarms over seeds, planted shifts, what it writes, and the mistakes one can make."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pat import cli
from pat.compare import on_prompts
from pat.monitor import drift, prometheus, result, traffic
from pat.monitor.drift import Places
from pat.monitor.traffic import Part, Row
from pat.prompts.mix import Prompt
from pat.registry import mlflow_backend
from pat.registry.registry import Registry
from pat.run.directory import ExitCode
from tests import models
from tests.chat_templates import QWEN, tokenizer
from tests.registry_files import FileBackend
from tests.report_samples import NASTY

LAW, FILMS = (Prompt(prompt=domain, slices={"domain": domain}) for domain in ("law", "films"))


def part(rng: np.random.Generator, n: int = 60, law: float = 0.3, slow: float = 1.0, right: float = 0.8) -> Part:
    """Requests of two domains, with a latency and an outcome."""
    kinds, times, outcomes = rng.random(n) < law, slow * rng.lognormal(3.0, 0.4, n), rng.random(n) < right
    values = zip(kinds, times.tolist(), outcomes.tolist(), strict=True)
    return Part("", n, [Row(LAW if kind else FILMS, (time, float(outcome))) for kind, time, outcome in values])


def places(rng: np.random.Generator, of: Part, longer: float = 1.0) -> Places:
    is_law = np.array([prompt is LAW for prompt in of.prompts])
    lengths = np.floor(longer * rng.gamma(3.0, 8.0, len(is_law)))
    return Places(lengths, rng.normal(size=(len(is_law), 4)) + is_law[:, None])


def alerts(seed: int, longer: float = 1.0, **now: Any) -> set[str]:
    rng = np.random.default_rng(seed)
    reference, then, seen = part(rng), part(rng), part(rng, **now)
    at = places(rng, reference), places(rng, seen, longer)
    checks = [
        *drift.of_prompts(reference, seen, at, ["domain"], seed, resamples=199),
        *drift.of_outputs(then, seen, ["latency_ms", "outcome"]),
    ]
    return {check.name for check in result.judged(checks, 0.05) if check.alert}


def test_false_alarms_stay_at_their_level_over_all_checks_together() -> None:
    """Over 200 seeds any of five checks in at most 5 % (18 of 200 is the 99.5 % bound); each planted shift is found."""
    quiet = Counter(name for seed in range(200) for name in alerts(seed) or ["none"])
    assert quiet["none"] >= 200 - 18, quiet
    for planted, names in (
        ({"longer": 2.0}, {"tokens"}),
        ({"law": 0.8}, {"slices of domain", "embeddings"}),
        ({"slow": 1.6}, {"latency_ms"}),
        ({"right": 0.3}, {"outcome"}),
    ):
        found = Counter(name for seed in range(10) for name in alerts(seed, **planted))
        assert all(found[name] >= 9 for name in names), (planted, found)
        assert all(count <= 3 for name, count in found.items() if name not in names), (planted, found)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_llama(tmp_path_factory.mktemp("llama") / "a")


def rows(n: int, seed: int = 0, words: int = 3, slow: float = 1.0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {
            "prompt": " ".join(rng.choice(["ab", "cde"]) for _ in range(rng.randint(1, words))),
            "kind": rng.choice(["x", f"y{NASTY}"]),
            "latency_ms": slow * rng.lognormvariate(3, 0.4),
            "outcome": rng.random() < 0.8,
        }
        for _ in range(n)
    ]


def write(path: Path, content: list[dict[str, Any]], end: str = "") -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content) + end)
    return path


def tags(page: Path) -> set[str]:
    """The elements of a page, as a browser would find them."""
    found: set[str] = set()
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.add(tag)
    parser.feed(page.read_text())
    return found


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["monitor", *map(str, arguments)])
    return int(str(stop.value.code))


def test_no_alert_and_then_one(llama: Path, tmp_path: Path) -> None:
    """Exit codes, JSON, Prometheus by its own parser, and a page that keeps two runs and escapes what logs hold."""
    older, page = write(tmp_path / "older.jsonl", rows(120)), tmp_path / "page.html"
    options = ["--against", llama, "--reference", older, "--slices", "kind", "--html", page, "--keep", "2"]
    options += ["--json", tmp_path / "found.json", "--prometheus", tmp_path / "pat.prom", "--device", "cpu"]
    log = write(tmp_path / "prod.jsonl", rows(120, seed=1), end='{"prompt": "to')
    assert run(log, *options) == ExitCode.DONE
    quiet = json.loads((tmp_path / "found.json").read_text())
    assert quiet["alerts"] == 0 and quiet["rows"] == 120 and any("line 121" in note for note in quiet["notes"])
    write(log, rows(120, seed=1, words=8, slow=2.0))
    for _ in range(2):
        assert run(log, *options) == ExitCode.ALERT == 6
    found = json.loads((tmp_path / "found.json").read_text())
    raised = {check["name"] for check in found["checks"] if check["alert"]}
    assert raised == {"tokens", "latency_ms", "embeddings"} and found["alerts"] == 3
    families = {one.name: one for one in text_string_to_metric_families((tmp_path / "pat.prom").read_text())}
    assert [sample.value for sample in families["pat_monitor_alerts"].samples] == [3.0]
    by_check = {sample.labels["check"]: sample.value for sample in families["pat_monitor_alert"].samples}
    assert {name for name, value in by_check.items() if value} == raised and len(by_check) == 5
    medians = {
        sample.labels["check"]: sample.value
        for sample in families["pat_monitor_value"].samples
        if (sample.labels["figure"], sample.labels["when"]) == ("median", "now")
    }
    assert medians == {c["name"]: c["figures"]["median"][1] for c in found["checks"] if "median" in c["figures"]}
    kept = json.loads((tmp_path / "page.history.json").read_text())["runs"]
    assert [len(each["alerts"]) for each in kept] == [3, 3], "the first run is gone"
    assert tags(page).isdisjoint({"script", "img", "link", "iframe"}) and "&lt;script&gt;" in page.read_text()
    assert not list(tmp_path.glob(".*tmp"))


def test_a_log_is_parted_and_a_mix_is_its_reference(llama: Path, tmp_path: Path) -> None:
    """Fails if the mix's weights are ignored, older and newer rows are swapped, or a text's words are not counted."""
    mix = write(tmp_path / "mix.jsonl", [{"prompt": "ab", "weight": 9.0, "slices": {"kind": "x"}},
                                         {"prompt": "cde cde cde", "slices": {"kind": "y"}}])  # fmt: skip
    content = [{"prompt": "ab", "kind": "x", "said": f"{'w ' * (i // 10)}{i}"} for i in range(40)]
    log, out = write(tmp_path / "prod.jsonl", content), tmp_path / "found.json"
    options = ["--against", llama, "--mix", mix, "--slices", "kind", "--columns", "said", "--first", "0.25"]
    assert run(log, *options, "--json", out, "--device", "cpu") == ExitCode.ALERT
    checks = {check["name"]: check for check in json.loads(out.read_text())["checks"]}
    assert checks["slices of kind"]["figures"] == {"x": [0.9, 1.0], "y": [pytest.approx(0.1), 0.0]}
    assert checks["tokens"]["figures"]["median"] == [2.0, 2.0] and not checks["tokens"]["alert"]
    assert checks["said"]["figures"]["median"] == [1.0, 3.0] and checks["said"]["alert"]
    write(log, [row | ({"said": None} if i > 9 else {}) for i, row in enumerate(content)])
    run(log, *options, "--json", out, "--device", "cpu")
    assert "said is not compared: one side has no values of it" in json.loads(out.read_text())["notes"]


def test_a_few_texts_are_compared_by_their_shares_and_a_mix_with_the_prompts_of_the_whole_log(
    llama: Path, tmp_path: Path
) -> None:
    """Would catch: "resolved" and "escalated" as one word each; prompts of the first half that nobody looked at."""
    mix = write(tmp_path / "mix.jsonl", [{"prompt": f"ab {'cd ' * i}"} for i in range(40)])
    said = [("good resolved" if i % 20 else "escalated now") for i in range(40)]
    content = [{"prompt": f"ab {'cd ' * 80 if i < 40 else ''}", "outcome": one} for i, one in enumerate(said)]
    content += [
        {"prompt": f"ab {'cd ' * i}", "outcome": "escalated now" if i % 20 else "good resolved"} for i in range(40)
    ]
    log, out = write(tmp_path / "prod.jsonl", content), tmp_path / "found.json"
    assert run(log, "--against", llama, "--mix", mix, "--json", out, "--device", "cpu") == ExitCode.ALERT
    found = json.loads(out.read_text())
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["outcome"]["alert"] and checks["outcome"]["found"]["test"] == "chi-square"
    assert checks["outcome"]["figures"] == {"escalated now": [0.05, 0.95], "good resolved": [0.95, 0.05]}
    assert checks["tokens"]["alert"] and (found["rows"], found["now"]) == (80, str(log))
    assert found["then"] == f"the first 40 rows of {log}; now the last 40 rows of {log}"


def test_the_usual_columns_are_those_of_any_early_row(llama: Path, tmp_path: Path) -> None:
    """Fails if one row without a column, or a bad first line, switches its check off and nothing says so."""
    content = [row | {"output_tokens": 3, "output": f"w{i % 2}"} for i, row in enumerate(rows(40))]
    del content[0]["latency_ms"]
    log, out = write(tmp_path / "prod.jsonl", content), tmp_path / "found.json"
    older = write(tmp_path / "older.jsonl", [{k: v for k, v in row.items() if k != "output"} for row in content[1:]])
    options = ["--against", llama, "--reference", older, "--json", out, "--device", "cpu", "--skip-bad"]
    good = log.read_text()
    for first, left_out in (("", 0), ("torn\n", 1), ("[1]\n", 1)):
        log.write_text(first + good)
        assert run(log, *options) == ExitCode.DONE
        found = json.loads(out.read_text())
        names = [check["name"] for check in found["checks"] if check["group"] == result.OUTPUTS]
        assert names == ["outcome", "latency_ms", "output_tokens"]
        said = [note for note in found["notes"] if str(tmp_path) in note]
        assert said[:2] == [
            f"{log}: 1 of the first 40 rows have no latency_ms, so they do not count for it",
            f"output is not compared: the first 39 rows of {older} have none",
        ]
        assert said[2:] == [f"{log}: 1 lines that could not be used were left out"] * left_out


def test_labels_and_numbers_of_words_are_compared_as_such() -> None:
    """Fails if a hundred labels of more than twenty are a hundred single words, of which no number has changed."""

    def check(then: Sequence[float | str], now: Sequence[float | str]) -> result.Check:
        a, b = (Part("", len(side), [Row(LAW, (value,)) for value in side]) for side in (then, now))
        return next(drift.of_outputs(a, b, ["output"]))

    rng = random.Random(0)
    then, now = ([rng.choice(letters) for _ in range(60)] for letters in ("abcdefghijklm", "nopqrstuvwxyz"))
    assert (found := check(then, now)).share and found.found.p < 1e-4
    assert check(then, rng.sample(then, 60)).found.p > 0.9
    ids = [f"{i:04d}" for i in range(200)]
    assert check(ids[:100], ids[100:]).found.p > 0.05, "every value is new on both sides"
    silent = check([f"a b {i}" for i in range(40)], ["" for _ in range(40)])
    assert not silent.share and silent.figures["median"] == (3.0, 0.0), "words are counted"
    assert check([0.0, 1.0] * 9, [1.0] * 18).figures == {"share": (0.5, 1.0)}


def test_gauges_hold_few_kinds_of_outputs() -> None:
    """Fails if every output of a model becomes a label: thousands of series a day, with what users were told."""

    def lines(kinds: int) -> list[str]:
        side = Part("", 60, [Row(LAW, (f"w{i % kinds}",)) for i in range(60)])
        checks = result.judged(list(drift.of_outputs(side, side, ["output"])), 0.01)
        found = result.Monitored(1.0, "log", "m", "r", None, "n", 60, 0.01, checks, None, [])
        return prometheus.text(found).decode().splitlines()

    assert [sum(line.startswith("pat_monitor_value{") for line in lines(kinds)) for kinds in (20, 21)] == [40, 0]
    assert any(line.startswith("pat_monitor_p_value{") for line in lines(21))


def test_replayed_prompts(tmp_path: Path) -> None:
    """The one that is right in A and wrong in B is regressive; the other way round nothing is. Outputs are escaped."""
    folders, out, page = models.write_classifiers(tmp_path, "ab"), tmp_path / "found.json", tmp_path / "page.html"
    content = [{"prompt": f"{NASTY} {'x' * i}", "right": "good"} for i in range(12)]
    log, found = write(tmp_path / "prod.jsonl", content * 2), []
    for dense, model in (folders, folders[::-1]):
        options = ["--against", model, "--dense", dense, "--answer", "right", "--html", page, "--json", out]
        code = run(log, *options, "--replay", "99", "--device", "cpu")
        replayed = json.loads(out.read_text())["replayed"]
        assert (replayed["prompts"], replayed["checked"], replayed["agreement"]) == (12, 12, 0.0)
        found.append((code, replayed["regressive"], sum(one["regressive"] for one in replayed["worst"])))
        assert tags(page).isdisjoint({"script", "img"}) and "onerror=alert(1)&gt;" in page.read_text()
    assert sorted(found) == [(ExitCode.DONE, 0, 0), (ExitCode.ALERT, 12, 12)]
    assert run(log, "--against", folders[0], "--dense", folders[1], "--agreement", "0.9", "--device", "cpu") == 6
    assert run(log, "--against", folders[0], "--dense", folders[0], "--agreement", "0.9", "--device", "cpu") == 0


def test_long_prompts_are_not_replayed(llama: Path, tmp_path: Path) -> None:
    log = write(tmp_path / "prod.jsonl", [{"prompt": "ab"}, {"prompt": "x" * 60}, {"prompt": "cd"}, {"prompt": "ef"}])
    options = ["--against", llama, "--dense", llama, "--output-tokens", "8", "--device", "cpu", "--first", "0.25"]
    assert run(log, *options, "--json", tmp_path / "found.json") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["replayed"]["prompts"] == 2 and found["replayed"]["agreement"] == 1.0
    assert found["checks"][-1]["group"] == result.PROMPTS, "no prompt says what is right"


def test_a_check_of_answers_that_cannot_be_made_is_an_error(llama: Path, tmp_path: Path, capsys: Any) -> None:
    """Fails if CI reads "no alert" where no prompt leaves room for an answer, so that nothing was asked."""
    log = write(tmp_path / "prod.jsonl", [{"prompt": "x" * 50, "right": "a"}, {"prompt": "y" * 50, "right": "b"}])
    options = ["--against", llama, "--dense", llama, "--output-tokens", "20", "--device", "cpu"]
    assert run(log, *options) == 0
    for given in (["--agreement", "0.9"], ["--answer", "right"]):
        capsys.readouterr()
        assert run(log, *options, *given) == 2
        assert f"{' '.join(given)} cannot be checked" in capsys.readouterr().err


def test_replayed_chats_are_asked_as_the_model_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both models get the pruned one's options; a chat that has no room with them, but without, is left out."""
    dense, pruned = (models.write_llama(tmp_path / name) for name in ("dense", "pruned"))
    for folder in (dense, pruned):
        tokenizer(QWEN).save_pretrained(folder)
    config = {"task": {"template_options": {"enable_thinking": False}}}
    (pruned / "export.json").write_text(json.dumps({"config": config}))
    chats = [[{"role": "user", "content": text}] for text in ("a", "bc", "x" * 26)]
    log = write(tmp_path / "prod.jsonl", [{"prompt": "ab"}] * 3 + [{"prompt": chat} for chat in chats])
    options = ["--against", pruned, "--dense", dense, "--output-tokens", "16", "--device", "cpu", "--first", "0.5"]
    asked: dict[str, list[str]] = {}
    plain = on_prompts.prompts.ask

    def remember(mix: Any, one: Any, *given: Any) -> Any:
        found = plain(mix, one, *given)
        asked[one.path.name] = sorted(one.tokenizer.decode(list(answer.asked)) for answer in found)
        return found

    monkeypatch.setattr(on_prompts.prompts, "ask", remember)
    run(log, *options, "--json", tmp_path / "found.json")
    block = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    expected = [f"<|im_start|>user\n{text}<|im_end|>\n{block}" for text in ("a", "bc")]
    assert asked == {"dense": expected, "pruned": expected}
    notes = json.loads((tmp_path / "found.json").read_text())["notes"]
    assert any("1 prompts to replay leave no room" in note for note in notes)


def test_the_model_of_an_alias(llama: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """Fails if an alias is looked for in one name only, or one that two names have is taken from either."""
    monkeypatch.setattr(mlflow_backend, "MlflowBackend", lambda uri, new: FileBackend(tmp_path / "backend.json"))
    registry = Registry(tmp_path / "registry", lambda new: FileBackend(tmp_path / "backend.json"))
    for name in ("films", "law"):
        registry.add(name, llama, {})
    registry.promote("law", "1", "champion")
    log = write(tmp_path / "prod.jsonl", rows(12))
    options = ["--dir", tmp_path / "registry", "--device", "cpu", "--json", tmp_path / "found.json"]
    for word, name in (("champion", "law/1"), ("films/1", "films/1")):
        assert run(log, "--against", word, *options) == 0
        assert json.loads((tmp_path / "found.json").read_text())["against"] == name
    registry.promote("films", "1", "champion")
    assert run(log, "--against", "champion", *options) == 2 and "films, law have it" in capsys.readouterr().err
    (file,) = (tmp_path / "registry").rglob("*.safetensors")
    file.chmod(0o600)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert run(log, "--against", "law/champion", *options) == ExitCode.BROKEN_PROMISE


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        ("", [], "is empty"),
        ('{"prompt": "a"', [], "has no whole row"),
        ('{"prompt": "a"\n{"prompt": "b"}\n', [], "line 1 is not JSON"),
        ('{"prompt": "a \\ud83d"}\n' * 2, [], "line 1 is not text: '\\ud83d' is half of a character"),
        ('{"q": 1}\n', [], "line 1: there is no column prompt"),
        ('{"prompt": "a"}\n' * 2, ["--reference", "{folder}/old.csv"], "old.csv is a table, and only"),
        ('{"prompt": "a"}\n', [], "has no row that can be used in its first part, of 1 in all"),
        ('{"prompt": "a"}\n' * 2 + "{\n{\n", ["--skip-bad"], "has no row that can be used in its last part, of 2 in"),
        ('{"prompt": "a"}\n{"prompt": "b"}\n', ["--slices", "domain"], "there is no column domain"),
        ('{"prompt": "a", "d": "x"}\n' * 2, ["--slices", "d", "--mix", "{plain}"], "has no slices, so shares of d"),
        ('{"prompt": "a", "t": 1}\n{"prompt": "a", "t": "b"}\n', ["--columns", "t"], "t is a text, but a number in"),
        ('{"prompt": "a", "t": 1}\n{"prompt": "a"}\n', ["--columns", "t"], "line 2: there is no column t"),
        (
            '{"prompt": "a", "t": 1}\n{"prompt": "a", "t": 1%s}\n' % ("0" * 400),
            ["--columns", "t"],
            "must be true, false",
        ),
        ('{"prompt": "a"}\n', ["--alpha", "5"], "--alpha 5.0"),
        ('{"prompt": "a"}\n', ["--seed", "-1"], "--seed -1: give 0 or more"),
        ('{"prompt": "a"}\n', ["--answer", "q"], "--answer needs a replay"),
        ('{"prompt": "a"}\n' * 2, ["--against", "champion"], "no registry in"),
        ('{"prompt": "a"}\n', ["--html", "{plain}/no.html"], "there is no folder"),
        ('{"prompt": "a"}\n', ["--html", "/dev/stdout"], "give a file, beside which the history"),
        ('{"prompt": "a"}\n', ["--html", "{folder}/torn.html"], "is not a history of pat monitor"),
    ],
)
def test_mistakes(content: str, options: list[str], sentence: str, tmp_path: Path, capsys: Any) -> None:
    """One sentence each, exit code 2, before a model is loaded: the folder holds none."""
    (tmp_path / "prod.jsonl").write_text(content)
    (tmp_path / "old.csv").write_text("prompt\na\nb\n")
    (tmp_path / "torn.history.json").write_text('{"format": 1, "runs": [{"time')
    plain = write(tmp_path / "plain.jsonl", [{"prompt": "a"}])
    given = [word.format(plain=plain, folder=tmp_path) for word in options]
    assert run(tmp_path / "prod.jsonl", "--against", tmp_path, "--dir", tmp_path / "none", *given) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_of_a_long_log_every_row_is_as_likely(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(traffic, "ROWS", 10)
    log = write(tmp_path / "prod.jsonl", [{"prompt": str(i)} for i in range(60)])
    seen: Counter[str] = Counter()
    for seed in range(100):
        then, now = traffic.Reader(traffic.Columns(), seed=seed).read(log, 0.5)
        assert (then.total, now.total, len(then.rows), len(now.rows)) == (30, 30, 10, 10)
        seen.update(str(prompt.prompt) for prompt in now.prompts)
    assert set(seen) == {str(i) for i in range(30, 60)} and all(12 <= n <= 58 for n in seen.values()), seen
    bad = traffic.Reader(traffic.Columns(), skip_bad=True)
    assert bad.read(write(tmp_path / "bad.jsonl", [{"q": 1}, {"prompt": "a"}]))[0].total == 1 and len(bad.notes) == 1
    torn = tmp_path / "torn.jsonl"
    torn.write_text('{"prompt": "a"}\n{"prom\n{"prompt": "b"}\n')
    assert traffic.Reader(traffic.Columns(), skip_bad=True).read(torn)[0].total == 2
    log.write_text("no JSON\n\n" * 20 + '{"q": 1}\n' * 10 + '{"prompt": "a"}\n' * 70)
    parted = traffic.Reader(traffic.Columns(), skip_bad=True).read(log, 0.5)
    assert [part.total for part in parted] == [20, 50], "lines that are left out count where the log is parted"
    with pytest.raises(ValueError, match="line 2 is not JSON: .*; --skip-bad leaves such lines out"):
        traffic.Reader(traffic.Columns()).read(torn)
