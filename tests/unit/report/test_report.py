"""A report says what its sources say, escapes what they hold, hides keys, and says in a sentence what is missing."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from pat import cli
from pat.evaluation.folders import weights_sha256
from pat.export.export import export_run
from pat.models.tokenizers import byte_tokenizer
from pat.registry import mlflow_backend
from pat.registry.registry import Registry
from pat.report import build, curves, kept, pictures, reading, values
from pat.report.curves import Chart, Phase, Series
from pat.report.markdown import markdown
from pat.report.page import Page
from pat.report.render import html
from pat.run.directory import ExitCode
from tests import models as small
from tests import report_samples as samples
from tests.fake_run import write_run
from tests.registry_files import FileBackend
from tests.unit.export.test_what_an_export_writes import run_with_gates
from tests.unit.registry.test_registry import small as fake_variant

VOID = {"meta", "br", "hr", "img", "input", "link"}
SHAPES = {"svg", "g", "path", "defs", "use", "text", "clippath", "rect", "tspan", "image"}  # of matplotlib
TAGS = SHAPES | set(
    "html head meta title style body a header div p h1 h2 h3 nav ul li main section span dl dt dd strong table thead "
    "tbody tr th td figure figcaption details summary blockquote article pre code footer".split()
)


class Parsed(HTMLParser):
    """What a browser would find, as far as it matters here."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags, self.text, self.open = list[tuple[str, dict[str, str | None]]](), "", list[str]()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in tags]

    def ids(self) -> list[str]:
        return [own["id"] or "" for _, own in self.tags if "id" in own]


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str]:
    """A page of everything, whose names, prompts, outputs and logs try to be HTML; and its HTML."""
    _, *given = samples.everything(tmp_path_factory.mktemp("nasty"), samples.NASTY)
    page = build.page(reading.read(given))
    return page, html(page)


def test_what_models_and_logs_hold_stays_text(nasty: tuple[Page, str]) -> None:
    """Would catch: a `|safe`, a label drawn unescaped, an attribute that ends early, a control character."""
    page, written = nasty
    found = Parsed(written)
    assert not found.open, "every tag is closed"
    assert {tag for tag, _ in found.tags} <= TAGS
    assert not [name for _, own in found.tags for name in own if name.startswith("on") or name in ("src", "action")]
    assert all((own["href"] or "").startswith("#") for own in found.all("a", "use"))
    assert found.text.count("<script>document.title='owned'</script>") > 20, "it is there, as text"
    assert not re.search("[\u202e\x1b]", written)
    policy = next(own["content"] for own in found.all("meta") if own.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none'") and "script" not in policy
    styles = [own.get("style") or "" for _, own in found.tags] + re.findall(r"<style>(.*?)</style>", written, re.DOTALL)
    assert not re.search(r"url\((?!#)|@import|image-set", " ".join(styles))


def test_keys_are_nowhere(nasty: tuple[Page, str]) -> None:
    page, written = nasty
    for text in (written, markdown(page)):
        assert samples.TOKEN not in text and "hunter2secret" not in text and "[hidden]" in text.replace("\\", "")


def test_landmarks_headings_tables_and_pictures_can_be_heard(nasty: tuple[Page, str]) -> None:
    page, written = nasty
    found = Parsed(written)
    ids = found.ids()
    assert len(ids) == len(set(ids))
    assert all(len(found.all(tag)) == 1 for tag in ("main", "h1", "nav", "title", "footer"))
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))
    assert all(own.get("scope") in ("col", "row") for own in found.all("th")) and found.all("th")
    named = [own for own in found.all("table", "section") if own.get("aria-labelledby") in ids]
    assert len(named) == len(found.all("table", "section"))
    drawn = [own for own in found.all("div") if own.get("role") == "img"]
    assert len(drawn) == len(found.all("svg")) >= 6 and all(len(own.get("aria-label") or "") > 40 for own in drawn)
    assert all(own.get("aria-hidden") == "true" for own in found.all("svg"))
    links = [own["href"] for own in found.all("a")]
    assert links[0] == "#main" and {link.removeprefix("#") for link in links if link} <= set(ids)
    assert [section.id for section in page.sections] == [link.removeprefix("#") for link in links[1:] if link]


def test_markdown_holds_the_same_and_no_html(nasty: tuple[Page, str]) -> None:
    page, written = nasty
    text = markdown(page)
    outside = re.sub(r"^(`{3,})[^`\n]*\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<" not in outside and "&lt;script&gt;" in outside and "<script>" in text
    for table in re.findall(r"(?:^\|.*\|\n)+", outside, re.MULTILINE):
        rows = [len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()]
        assert len(set(rows)) == 1 and len(rows) >= 2
    heads = [section.title for section in page.sections]
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == heads
    assert all(title in Parsed(written).text for title in heads)


def test_figures_are_those_of_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed here from the files: differences, ratios, the order of the prompts."""
    monkeypatch.setattr(pictures, "available", lambda: False)
    given = samples.everything(tmp_path)
    command = {"command": ["pat", "profile", "exports/dense", "--json", "p.json"], "directory": "/srv/gates"}
    (tmp_path / "profile.json").write_text(json.dumps(json.loads((tmp_path / "profile.json").read_text()) | command))
    read = reading.read(given)
    text = markdown(build.page(read, worst=3))
    compared = json.loads((tmp_path / "compare.json").read_text())["outcomes"][0]
    overall = compared["overall"]["found"]
    assert f"| passed, change | {overall['difference']:+.3g} |" in text
    worst = [one["pair"]["id"] for one in compared["regressions"][:3]]
    assert re.findall(r"^\*\*(p\d+)\*\*", text, re.MULTILINE)[:3] == worst
    assert "**Not good enough.** 1 of 3 checks fails." in text
    assert (
        "| latency p95 | 12.4 ms | 8.8 ms | 0.71 x (0.69 to 0.74) |" in text
        and "| weights (fp32) | 90.86 MB | 90.86 MB | 1 x |" in text
    )
    assert "| optim.lr | 0.0002 | 0.0001 | 0.0001 |" in text, "the settings that differ"
    assert r"| pruners.weights.params |  | \[all-linear\] | \[all-linear\] |" in text, "as a recipe has it"
    assert [*map(values.setting, (None, True, 1e-05, ["a"], {"b": None}))] == [
        "null",
        "true",
        "1e-05",
        "[a]",
        "{b: null}",
    ]
    assert "pat train --frozen" in text and "git checkout 2818d1ef5ca0" in text
    by_folder = dict(re.findall(r"^(In .*?)\n+```[^\n]*\n(.*?)```", text, re.MULTILINE | re.DOTALL))
    clone, here, there = by_folder.values()
    assert clone == "git checkout 2818d1ef5ca0\n" and "In a clone of pat, for the code:" in by_folder
    assert "pat gate" not in here and there.splitlines() == [
        "pat profile exports/dense --json p.json", "pat gate 'exports/a pruned one' --against exports/dense",
    ], "a gate reads what a profile wrote"  # fmt: skip
    assert "In /srv/gates:" in by_folder and "| 120 |" in text
    assert re.search(r"latency.*p95.ratio \| - \| 0.0124 s \| 0.0088 s \|", text)
    assert "warned when starting: all 9 evaluation rows are in the training data" in text


def test_of_several_profiled_models_the_latency_is_the_subjects(tmp_path: Path) -> None:
    """The middle one's, paired and with its interval. Would catch: the last model's, or a quotient of percentiles."""
    gate, profile = samples.gate(tmp_path / "gate.json"), samples.profile(tmp_path / "profile.json")
    measured, judged = json.loads(profile.read_text()), json.loads(gate.read_text())
    other = {"folder": "exports/other", "latency_p95": 0.0062, "ratio": {"latency_p95": {"value": 0.4, "low": 0.3}}}
    profile.write_text(json.dumps(measured | {"models": [*measured["models"], other]}))
    gate.write_text(json.dumps(judged | {"variant": {"folder": str(Path("exports/pruned").absolute())}}))
    for given, value, said in (
        ([gate, profile], "0.71 x", "pruned: 0.69 to 0.74; 8.8 ms, was 12.4 ms"),
        ([profile], "0.4 x", "other 6.2 ms, dense 12.4 ms"),
    ):
        page = build.page(reading.read(given))
        (card,) = [card for card in page.cards if card.label == "latency p95"]
        assert (card.value, card.note) == (value, said)
    (row,) = [line for line in markdown(page).splitlines() if line.startswith("| latency p95 | 12.4 ms")]
    assert row == "| latency p95 | 12.4 ms | 8.8 ms | 0.71 x (0.69 to 0.74) | 6.2 ms | 0.4 x |"


def measured(folder: str, backend: str, p95: float, ratio: float | None = None) -> dict[str, Any]:
    one = {} if ratio is None else {"value": ratio, "low": ratio - 0.1, "high": ratio + 0.1}
    over = {"latency_p50": one, "latency_p95": one} if one else {}
    return {"folder": folder, "backend": backend, "latency_p50": p95, "latency_p95": p95, "ratio": over}


def test_latencies_are_compared_with_another_model_on_the_same_backend(tmp_path: Path, monkeypatch: Any) -> None:
    """Fails if a compiled model seems to have been the eager one before, or a pruned one slower than the dense one."""
    monkeypatch.setattr(pictures, "available", lambda: False)
    (tmp_path / "pruned").mkdir()
    (tmp_path / "pruned" / "config.json").write_text("{}")
    given = tmp_path / "p.json"

    def page(*models: dict[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
        given.write_text(json.dumps({"models": models, "directory": str(tmp_path)}))
        made = build.page(reading.read([tmp_path / "pruned", given]))
        lines = [line for line in markdown(made).splitlines() if re.match(r"\|  \| \w|\| latency p95 \| \d+ ms", line)]
        return [(card.value, card.note) for card in made.cards if card.label == "latency p50"], lines[-2:]

    eager, compiled = measured("pruned", "eager", 0.1), measured("pruned", "compile", 0.06, 0.6)
    assert page(eager, compiled) == (
        [], ["|  | pruned (eager) | pruned (compile) |", "| latency p95 | 100 ms | 60 ms |"],
    )  # fmt: skip
    cards, (_, row) = page(measured("pruned", "eager", 0.05), measured("dense", "eager", 0.1, 2.0))
    assert cards == [] and row == "| latency p95 | 50 ms | 100 ms | 2 x (1.9 to 2.1) |"
    all_four = [measured("dense", "eager", 0.1), measured("pruned", "eager", 0.08, 0.8),
                measured("dense", "compile", 0.05, 0.5), measured("pruned", "compile", 0.03, 0.3)]  # fmt: skip
    cards, (head, row) = page(*all_four)
    assert cards == [("0.8 x", "pruned (eager): 0.7 to 0.9; 80 ms, was 100 ms")]
    columns = ["dense (eager)", "pruned (eager)", "ratio of pruned (eager)"]
    columns += [column.replace("eager", "compile") for column in columns]
    assert head == f"|  | {' | '.join(columns)} |"
    assert row == "| latency p95 | 100 ms | 80 ms | 0.8 x (0.7 to 0.9) | 50 ms | 30 ms | 0.6 x |", "not 0.3 of eager"


def test_figures_per_slice_come_from_evaluations_and_runs(tmp_path: Path) -> None:
    """A slice's name may have points. Would catch: columns of the wrong model, and an evaluation on a mix, which has no
    metrics, taken for a profile."""
    run = samples.run(tmp_path / "run")
    content = json.loads((run / "summary.json").read_text())
    content |= {f"{when}slices": {"accuracy[domain=law]": {"value": value, "n": 40}}
                for when, value in (("dense_", 0.875), ("", 0.625))}  # fmt: skip
    (run / "summary.json").write_text(json.dumps(content))
    on_mix = samples.evaluation(tmp_path / "mix.json")
    models = json.loads(on_mix.read_text())["models"]
    on_mix.write_text(json.dumps({"models": [{k: v for k, v in one.items() if k != "metrics"} for one in models]}))
    found = reading.read([run, on_mix])
    assert found.evaluations and not found.profiles
    written = markdown(build.page(found))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in written.splitlines()]
    assert ["domain=law.v2", "40", "0.88 (0.83 to 0.93)", "0.515 (0.465 to 0.565)"] in rows
    assert ["accuracy\\[domain=law\\]", "40", "0.875", "0.625"] in rows, written


def test_of_many_slices_those_that_lost_most_are_shown(tmp_path: Path) -> None:
    """Would catch: a page of a hundred labels, or the twenty that got better."""
    given = samples.evaluation(tmp_path / "eval.json")
    content = json.loads(given.read_text())
    for one, change in zip(content["models"], (0.0, 0.001), strict=True):
        slices = {f"label={i}": {"n": 9, "value": 0.5 - i * change} for i in range(90)}
        one["figures"][0]["slices"] = slices
    given.write_text(json.dumps(content))
    written = markdown(build.page(reading.read([given])))
    shown = re.findall(r"\| label=(\d+) ", written)
    assert shown == [str(i) for i in range(89, 69, -1)] and "the 20 of 90 slices" in written


def test_tasks_of_the_harness_and_a_mix_without_slices_are_quality(tmp_path: Path) -> None:
    """Fails if accuracies stand under "Measured by pat profile", or the number of prompts is all that is said."""
    results = {"mine": {"alias": "mine", "acc,none": 0.5, "acc_stderr,none": 0.05, "sample_len": 9},
               "f.1": {"em,strict": 0.25}}  # fmt: skip
    tasks, mix = tmp_path / "tasks.json", samples.evaluation(tmp_path / "mix.json")
    tasks.write_text(json.dumps({"tasks": ["mine"], "models": [{"folder": "dense", "output": None, "results": results},
                                {"folder": "pruned", "results": {"mine": {"acc,none": 0.4}}}]}))  # fmt: skip
    models = json.loads(mix.read_text())["models"]
    for one in models:
        one["figures"][0]["slices"] = {}
        del one["metrics"]
    mix.write_text(json.dumps({"models": [one | {"prompts": 4} for one in models]}))
    found = reading.read([tasks, mix])
    assert len(found.evaluations) == 2 and not found.profiles
    quality, cost = (part.split("\n## ")[0] for part in markdown(build.page(found)).split("\n## ")[1:3])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in quality.splitlines()]
    assert ["mine", "acc", "0.5 \u00b1 0.05", "0.4"] in rows and ["f.1", "em, strict", "0.25", "-"] in rows
    assert ["all", "100", "0.9 (0.85 to 0.95)", "0.8 (0.75 to 0.85)"] in rows and "### Over all prompts" in quality
    assert "was evaluated" not in quality and "|" not in cost and "in one pass" not in cost


def test_a_version_of_the_registry_brings_its_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Would catch: another version than the alias stands for, a decision that leaves its gate out, damaged files."""
    monkeypatch.setattr(mlflow_backend, "MlflowBackend", lambda uri, new: FileBackend(tmp_path / "backend.json"))
    registry = Registry(tmp_path / "registry", lambda new: FileBackend(tmp_path / "backend.json"))
    for number in (1, 2):
        folder = fake_variant(tmp_path / str(number), number)
        gate_ = {"passed": True, "checks": [{"name": f"accuracy.min{number}", "passed": True, "measured": 0.8}]}
        registry.add("reviews", folder, {"gate": gate_, "metrics": json.loads(
            samples.evaluation(tmp_path / "e.json").read_text())})  # fmt: skip
    registry.promote("reviews", "2", "champion")

    def report(given: str, *options: str) -> int:
        with pytest.raises(SystemExit) as stop:
            cli.main(["report", given, "--markdown", str(tmp_path / "r.md"), *options])
        return int(str(stop.value.code))

    there = ("--dir", str(tmp_path / "registry"))
    assert report("reviews/champion", *there) == 0
    written = (tmp_path / "r.md").read_text()
    assert "accuracy.min2" in written and "accuracy.min1" not in written and "domain=law.v2" in written
    assert "pat registry get reviews 2 --out reviews-2" in written and "reviews version 2" in written
    assert report("reviews/9", *there) == report("reviews/champion", "--dir", str(tmp_path / "no")) == 2
    assert report(str(tmp_path / "1"), *there) == 2, "--dir would be ignored"
    next((tmp_path / "registry").rglob("note.txt")).write_text("x")
    capsys.readouterr()
    assert {report(f"reviews/{number}", *there) for number in (1, 2)} == {0, ExitCode.BROKEN_PROMISE}


def test_a_comparison_of_other_weights_than_a_versions_decides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A version has no folder of its own whose name could tell."""
    monkeypatch.setattr(mlflow_backend, "MlflowBackend", lambda uri, new: FileBackend(tmp_path / "backend.json"))
    registry = Registry(tmp_path / "registry", lambda new: FileBackend(tmp_path / "backend.json"))
    folder, compared = fake_variant(tmp_path / "1", 1), samples.comparison(tmp_path / "c.json")
    registry.add("reviews", folder, {})
    content, other, words = json.loads(compared.read_text()), "0" * 64, list[str]()
    for weights in ({}, {"a": other, "b": other}, {"a": other, "b": weights_sha256(folder)}):
        compared.write_text(json.dumps(content | {"weights_sha256": weights}))
        given = ["reviews/1", str(compared), "--dir", str(tmp_path / "registry"), "--markdown", str(tmp_path / "r.md")]
        with pytest.raises(SystemExit):
            cli.main(["report", *given])
        words.append(capsys.readouterr().out.partition(":")[0])
    assert words == ["Not decided", "Not decided", "Worse"]


def test_sparsity_of_a_run_is_what_its_checkpoint_pruned(tmp_path: Path) -> None:
    """Counted from the flags that were written, cut over ranks."""
    kinds = counted(tmp_path)
    assert {(c.kind, c.layer): (c.removed, c.total) for c in kept.counts(reading.read_run(tmp_path / "run"))} == kinds


def test_the_structures_of_a_run_are_shown_by_layer(tmp_path: Path) -> None:
    """As of an export, while there is none yet."""
    pruner = run_with_gates(tmp_path / "run", True, "ffn")
    flags = {site.layer: pruner.keep_flags()[site.name] for site in pruner.sites}
    found = kept.counts(reading.read_run(tmp_path / "run"))
    assert {(c.kind, c.layer): c.removed for c in found} == {
        ("ffn", str(layer)): int((keep == 0).sum()) for layer, keep in flags.items()
    }
    assert sum(c.removed for c in found) * 2 == sum(c.total for c in found) > 0
    assert "Share removed in" in html(build.page(reading.read([tmp_path / "run"])))
    with open(tmp_path / "run" / "config.yaml", "a") as config:
        config.write("a_key_of_an_older_pat: 1\n")
    assert not kept.counts(reading.read_run(tmp_path / "run")), "and the report is made without them"
    run_with_gates(tmp_path / "soft", False, "ffn", "mlp_layers")
    assert {c.kind for c in kept.counts(reading.read_run(tmp_path / "soft"))} == {"ffn", "mlp_layers"}


@pytest.mark.slow
def test_sparsity_of_an_export_is_what_its_checkpoint_pruned(tmp_path: Path) -> None:
    kinds = counted(tmp_path)
    export_run(tmp_path / "run", tmp_path / "out", checkpoint="last", verify="weights")
    read = reading.read([tmp_path / "out", tmp_path / "run"])
    assert {(c.kind, c.layer): (c.removed, c.total) for c in kept.counts(read.variants[0])} == kinds
    page = build.page(read)
    assert page.what.startswith("An export of a random llama") and page.title == "out"
    assert "Share removed in out" in html(page) and "a llama" not in html(page)


def counted(folder: Path) -> dict[tuple[str, str], tuple[int, int]]:
    """{(kind, layer): (removed, of)} of a run that is written there, from the flags themselves."""
    built = small.model("llama", auto=AutoModelForCausalLM)
    saved = write_run(folder / "run", built, byte_tokenizer(), "causal_lm", steps=(20,))[0]
    parts = {name: name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1) for name in saved.keep}
    return {
        (kind, layer): (int((saved.keep[name] == 0).sum()), saved.keep[name].numel())
        for name, (layer, kind) in parts.items()
    }


ENOUGH = "Good enough; 1 check not certain"
DECISIONS = {
    "gate passes": (
        lambda at: samples.gate(at / "g.json", True), "good", ENOUGH,
        "All 3 checks of the gate pass; not certain, as the limit lies within the interval: latency_p95.ratio.",
    ),
    "gate fails": (lambda at: samples.gate(at / "g.json"), "bad", "Not good enough", "1 of 3 checks fails"),
    "worse": (lambda at: samples.comparison(at / "c.json"), "bad", "Worse", "pruned is worse than runs/dense"),
    "worse in a slice": (
        lambda at: samples.comparison(at / "c.json", only_slices=True), "bad", "Worse in part",
        "in 1 slice",
    ),
    "no difference": (
        lambda at: samples.comparison(at / "c.json", 0.0), "open", "No difference found", "Chance explains",
    ),
    "diverged": (lambda at: samples.failed(at / "r", "the loss is inf"), "bad", "Failed", "diverged"),
    "died": (lambda at: samples.run(at / "r", done=False), "bad", "Died", "logged step 60 of 60"),
    "done": (lambda at: samples.run(at / "r"), "open", "Not decided", "70 % of 7,077,888 prunable weights"),
    "sweep": (lambda at: samples.sweep(at / "s"), "open", "Not finished", "5 of 6 runs are done"),
}  # fmt: skip


@pytest.mark.parametrize("case", DECISIONS)
def test_the_decision(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "available", lambda: False)  # drawing is tested above
    make, tone, word, sentence = DECISIONS[case]
    page = build.page(reading.read([make(tmp_path)]))
    assert (page.decision.tone, page.decision.word) == (tone, word)
    assert sentence in page.decision.sentence
    assert f"{word}: " in html(page)


@pytest.mark.parametrize(
    ("keep", "word", "said"),
    [
        ((0,), "Not decided", "1 of 1 runs is done; the only point is on the front of sparsity and accuracy."),
        ((2, 3), "One is the best", "2 of 2 runs are done; 1 of 2 points is on the front"),
        ((0, 2, 3), "A choice to make", "3 of 3 runs are done; 2 of 3 points are on the front"),
    ],
)
def test_a_sweep_counts_its_points(keep: tuple[int, ...], word: str, said: str, tmp_path: Path) -> None:
    """Fails where one point is a choice, or a page of a sweep, whose runs were evaluated, says that none was."""
    file = samples.sweep(tmp_path / "s") / "sweep.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {each: [content[each][i] for i in keep] for each in ("members", "points")}))
    page = build.page(reading.read([file.parent]))
    assert page.decision.word == word and page.decision.sentence.startswith(said)
    drawn = html(page)
    assert "was evaluated" not in drawn and "another is better in both" not in drawn, "it may be as good in one"


def test_a_gate_of_other_weights_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a model is good enough by the gate of another: a run is told by its name, a folder by its weights."""
    monkeypatch.setattr(pictures, "available", lambda: False)
    gate = samples.gate(tmp_path / "g.json", True)
    run, other = samples.run(tmp_path / "pruned"), samples.run(tmp_path / "other")
    export = samples.variant(tmp_path / "out", run)
    save_file({"w": torch.ones(2)}, export / "model.safetensors")

    def word(*given: Path) -> str:
        return build.page(reading.read([*given, gate])).decision.word

    assert [word(run), word(other), word(export), word(run, export)] == [
        ENOUGH, "Not decided", "Not decided", ENOUGH,
    ]  # fmt: skip
    content = json.loads(gate.read_text())
    ends = json.loads((run / "summary.json").read_text())["step"]
    for step, judged in ((ends, ENOUGH), (ends - 10, "Not decided")):  # trained further since
        gate.write_text(json.dumps({**content, "variant": content["variant"] | {"step": step}}))
        assert word(run) == judged
    content["variant"]["weights_sha256"] = weights_sha256(export)
    gate.write_text(json.dumps(content))
    assert word(export) == ENOUGH
    both = build.page(reading.read([export, gate, samples.gate(tmp_path / "failed.json")]))  # the second is of another
    assert both.decision.word == ENOUGH and both.cards[1].value == "3 of 3"
    twice = build.page(reading.read([export, gate, gate]))
    assert twice.cards[1].value == "6 of 6" and "All 6 checks" in twice.decision.sentence
    assert "which this page is not about, so it decides nothing here" in markdown(both)
    compared = samples.comparison(tmp_path / "c.json")  # of runs/dense and pruned
    words = [build.page(reading.read([given, compared])).decision.word for given in (run, other)]
    compared_then = json.loads(compared.read_text())
    for step, found in ((ends, words[0]), (ends - 10, "Not decided")):
        compared.write_text(json.dumps(compared_then | {"step": {"a": None, "b": step}}))
        assert build.page(reading.read([run, compared])).decision.word == found
    assert words == ["Worse", "Not decided"]
    in_part = samples.comparison(tmp_path / "slice.json", only_slices=True)  # a model that passes may be worse there
    decision = build.page(reading.read([run, samples.gate(tmp_path / "g.json", True), in_part])).decision
    assert (decision.tone, decision.word) == ("good", f"{ENOUGH}, but worse in part")
    assert (
        "Beside the gate: exports/pruned is worse than runs/dense in 1 slice" in decision.sentence and decision.reasons
    )


def test_only_what_is_of_the_model_in_the_title_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a pruned model is good enough by the gate of the dense one, which is given beside it."""
    monkeypatch.setattr(pictures, "available", lambda: False)
    run = samples.run(tmp_path / "run")
    half, quarter = (samples.variant(tmp_path / name, run) for name in ("half", "quarter"))
    (dense := tmp_path / "dense").mkdir()
    (other := tmp_path / "other").mkdir()
    for i, folder in enumerate((half, quarter, dense, other)):
        (folder / "config.json").write_text("{}")
        save_file({"w": torch.full((2,), float(i))}, folder / "model.safetensors")
    gate, compared = samples.gate(tmp_path / "g.json", True), samples.comparison(tmp_path / "c.json")
    contents = {file: json.loads(file.read_text()) for file in (gate, compared)}

    def said(file: Path, given: tuple[Path, ...], **names: Any) -> tuple[str, str]:
        file.write_text(json.dumps(contents[file] | names | {"directory": str(tmp_path)}))
        page = build.page(reading.read([*given, file]))
        return page.title, page.decision.word

    def gated(of: Path, *given: Path) -> tuple[str, str]:
        return said(gate, given, variant={"folder": of.name, "weights_sha256": weights_sha256(of)})

    assert gated(quarter, half, quarter) == gated(dense, dense, half) == ("half", "Not decided")
    assert gated(half, half, quarter) == ("half", ENOUGH) and gated(quarter, quarter) == ("quarter", ENOUGH)
    assert gated(other, dense, other) == ("other", ENOUGH), "neither folder says what is pruned: the gate does"
    assert said(compared, (dense, half), a="gone", b="dense") == ("half", "Not decided")
    assert said(compared, (dense, other), a="dense", b="other") == ("other", "Worse")


def test_a_comparison_with_the_model_of_the_page_first_is_turned(tmp_path: Path, monkeypatch: Any) -> None:
    """Fails if a pruned model is better because the dense one is better than it: pat compare PRUNED DENSE."""
    monkeypatch.setattr(pictures, "available", lambda: False)
    pruned, compared = samples.run(tmp_path / "pruned"), samples.comparison(tmp_path / "c.json")

    def page() -> Page:
        return build.page(reading.read([pruned, compared]))

    straight, content = page(), json.loads(compared.read_text())
    by = content["outcomes"][0]["overall"]["found"]["difference"]
    opposite = {"worse": "better", "better": "worse", "": ""}
    for outcome in content["outcomes"]:
        for one in (outcome["overall"], *outcome["slices"]):
            of = one["found"]
            negated = {
                key: -of[other] for key, other in (("difference", "difference"), ("low", "high"), ("high", "low"))
            }
            one["found"] = of | negated | {"a": of["b"], "b": of["a"]}
            one["verdict"] = opposite[one["verdict"]]
    compared.write_text(json.dumps(content | {"a": content["b"], "b": content["a"]}))
    turned = page()
    assert straight.decision == turned.decision and straight.decision.word == "Worse"
    assert straight.cards == turned.cards and f"{by:+.3g}" in [card.value for card in turned.cards]
    assert f"| {-by:+.3g} |" in markdown(turned), "the table has both as they were given"


def test_figures_of_weights_that_were_replaced_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a model is trained again in its folder, and the page shows what the one before could do."""
    monkeypatch.setattr(pictures, "available", lambda: False)
    half = samples.variant(tmp_path / "half", samples.run(tmp_path / "run"))
    save_file({"w": torch.ones(2)}, half / "model.safetensors")
    weights, here = weights_sha256(half), {"directory": str(tmp_path)}
    compared, profile, evaluation = (
        make(tmp_path / f"{make.__name__}.json") for make in (samples.comparison, samples.profile, samples.evaluation)
    )
    content = json.loads(compared.read_text()) | here | {"a": "dense", "b": "half"}
    compared.write_text(json.dumps(content | {"weights_sha256": {"a": None, "b": weights}}))
    for file in (profile, evaluation):
        content = json.loads(file.read_text()) | here
        content["models"][1] |= {"folder": "half", "weights_sha256": weights}
        file.write_text(json.dumps(content))

    def said() -> tuple[str, bool, int]:
        page = build.page(reading.read([half, compared, profile, evaluation]))
        times = any(card.label == "latency p95" for card in page.cards)
        return page.decision.word, times, markdown(page).count("is of other weights than")

    assert said() == ("Worse", True, 0)
    save_file({"w": torch.zeros(2)}, half / "model.safetensors")
    assert said() == ("Not decided", False, 3)


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the comparison or the gate of x2/export decides on x1/export; where x2 is not here, the name must do."""
    monkeypatch.setattr(pictures, "available", lambda: False)
    run, again = samples.run(tmp_path / "x1" / "run"), samples.run(tmp_path / "x2" / "run")
    first = samples.variant(tmp_path / "x1" / "export", run)
    second = samples.variant(tmp_path / "x2" / "export", samples.run(tmp_path / "x2" / "another"))
    compared = samples.comparison(tmp_path / "c.json")
    gate, content = samples.gate(tmp_path / "g.json", True), json.loads(compared.read_text())

    def word(given: Path, named: str) -> str:
        compared.write_text(json.dumps(content | {"b": named, "directory": str(tmp_path)}))
        return build.page(reading.read([given, compared])).decision.word

    both = markdown(build.page(reading.read([run, again])))
    assert f"{run} --out run-export\n" in both and f"{again} --out run-export-again\n" in both
    assert [word(each, "x2/export") for each in (first, second)] == ["Not decided", "Worse"]
    assert [word(each, "x1/export") for each in (run, again)] == ["Worse", "Worse"], (
        "an export names only its run's name"
    )
    assert [word(each, "x2/run") for each in (run, again, first)] == ["Not decided", "Worse", "Worse"]
    assert [word(each, "elsewhere/export") for each in (first, second)] == ["Worse", "Worse"]
    said = json.loads(gate.read_text()) | {"variant": {"folder": "x2/run", "weights_sha256": "0"}}
    gate.write_text(json.dumps(said | {"directory": str(tmp_path)}))
    words = [build.page(reading.read([given, gate])).decision.word for given in (run, again)]
    assert words == ["Not decided", ENOUGH]


def test_models_of_one_name_are_told_apart_and_judged_by_the_dense_one(tmp_path: Path, monkeypatch: Any) -> None:
    """The run and its export have one name here; the headline is about what a dense run has, if one is given."""
    monkeypatch.setattr(pictures, "available", lambda: False)
    dense, half = samples.run(tmp_path / "dense", pruned=False), samples.run(tmp_path / "pruned")
    name = reading.read([half]).runs[0].name
    export = samples.variant(tmp_path / "out" / name, half)
    alone, beside = (build.page(reading.read(given)) for given in ([half, export], [dense, half, export]))
    assert "when pruning began" in alone.cards[0].note
    assert "0.818 in" in beside.cards[0].note and "not pruned" in beside.cards[0].note
    gated = build.page(reading.read([half, export, samples.gate(tmp_path / "gate.json")]))
    assert gated.cards[0].note == "0.818 in the baseline", "a gate knows a dense model, too"
    text = markdown(beside)
    assert f"{name} (run)" in text and f"{name} (export)" in text
    (heads,) = re.findall(r"^\| metric \|.*$", text, re.MULTILINE)
    assert heads == f"| metric | dense | {name} (export) |", "a run and its export are one model: measured once"
    again = {"folder": str(half), "metrics": reading.read([export]).variants[0].metrics}
    (tmp_path / "eval.json").write_text(json.dumps({"models": [again]}))
    repeated = markdown(build.page(reading.read([dense, half, export, tmp_path / "eval.json"])))
    assert re.findall(r"^\| metric \|.*$", repeated, re.MULTILINE) == [heads], "the same figures stand once"
    (tmp_path / "eval.json").write_text(json.dumps({"models": [again | {"folder": "exports/other"}]}))
    other = markdown(build.page(reading.read([dense, half, export, tmp_path / "eval.json"])))
    assert f"{heads} exports/other |" in other, "another model with the same figures is there, too"
    assert "--checkpoint" in text and f"pat export {half}" in text


def test_a_model_of_pat_prune_was_not_trained_and_its_commands_make_it_again(tmp_path: Path, monkeypatch: Any) -> None:
    """Fails if the checkpoint that `pat prune` has removed is exported as it is, or in the precision of the run."""
    monkeypatch.setattr(pictures, "available", lambda: False)
    run = samples.run(tmp_path / "half.run")
    config = yaml.safe_load((run / "config.yaml").read_text())

    def commands(steps: int, *given: Path) -> tuple[str, list[str]]:
        (run / "config.yaml").write_text(yaml.safe_dump(config | {"train": {"num_steps": steps}}))
        shutil.rmtree(tmp_path / "half", ignore_errors=True)
        export = samples.variant(tmp_path / "half", run)
        content = json.loads((export / "export.json").read_text())
        (export / "export.json").write_text(json.dumps(content | {"dtype": "bf16"}))
        text = markdown(build.page(reading.read([export, *given])))
        return text, [line.partition("    #")[0] for line in text.splitlines() if line.startswith("pat ")]

    text, pruned = commands(0)
    again, out = f"pat train --frozen {run} run.resume=never", f"{tmp_path / 'half'}-again"
    exported = f"--out {out} --checkpoint 60 --dtype bf16"  # half is there
    assert pruned == commands(0, run)[1] == [again, f"pat export {run} {exported}"]
    assert "pruned without training" in text and "fewer steps" not in text
    text, trained = commands(60)
    assert trained == [f"pat export {run} {exported}"]
    run.rename(tmp_path / "elsewhere")
    assert f"pat export RUN {exported}" in markdown(build.page(reading.read([tmp_path / "half"])))
    assert "pruned while it was trained" in text and "fewer steps" in text


@pytest.mark.parametrize("first", ["half", "dense"])
def test_the_size_is_that_of_the_model_in_the_title(first: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(pictures, "available", lambda: False)
    exports = {
        name: samples.variant(tmp_path / name, samples.run(tmp_path / f"{name}-run")) for name in ("half", "dense")
    }
    for name, content in (("half", {"after": {"bytes": 45_000_000}}), ("dense", {"prunable_parameters": 0})):
        file = exports[name] / "export.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | content))
    page = build.page(reading.read([exports[first], *(each for name, each in exports.items() if name != first)]))
    assert page.title == "half"
    assert [card.value for card in page.cards if card.label == "size"] == [values.size(45_000_000)]


def test_a_report_without_data_says_so(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").write_text("run: {name: nothing yet}\n")
    page = build.page(reading.read([tmp_path / "r"]))
    said = {section.id: " ".join(getattr(block, "text", "") for block in section.blocks) for section in page.sections}
    for section, sentence in {
        "quality": "No comparison is given",
        "cost": "Latency and cost are not measured",
        "training": "has logged too little for a curve",
        "sparsity": "Nothing that is given was pruned",
        "regressions": "No comparison is given",
    }.items():
        assert sentence in said[section]
    assert all(section.blocks for section in page.sections)
    assert page.decision.word == "Not started"


def test_without_matplotlib_the_numbers_stand_in_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "available", lambda: False)
    written = html(build.page(reading.read([samples.run(tmp_path / "r")])))
    assert "<svg" not in written and "pip install" in written and "Sparsity of the prunable weights, r" in written


def test_a_picture_has_the_same_bytes_twice_and_the_pages_colours() -> None:
    chart = Chart("loss", "Loss", [Series("<b> $x$", [(0.0, 1.0), (9.0, 0.5)]), Series("b", [(9.0, 0.6)], dots=True)])
    phases = [Phase("dense", 0, 3), Phase("soft", 3, 9)]
    once, again = (pictures.curves(chart, phases) for _ in range(2))
    assert once is not None and once == again
    assert "&lt;b&gt; $x$" in once and "var(--one)" in once and not re.search(r"#0[0-9a-f]{5}|<style|<metadata", once)


def test_curves_and_phases() -> None:
    lines = [
        {"step": s, "train/loss": float(s), "pruning/phase": "dense" if s <= 40 else "hard"} for s in range(1, 901)
    ]
    lines.append({"step": 900, "eval/accuracy": True, "eval/loss": float("nan")})
    (chart,) = curves.charts(lines)
    (line,) = chart.series
    assert len(line.points) <= curves.POINTS + 1 and line.points[-1] == (900.0, 900.0)
    assert all(abs(x - y) < 1e-9 for x, y in line.points), "means of neighbours, of both"
    assert curves.phases(lines) == [Phase("dense", 0.0, 40.0), Phase("hard", 40.0, 900.0)]
    seldom = [line for line in lines if line["step"] % 30 == 0]  # logged at 30 and 60, and the cut in between
    assert curves.phases(seldom)[1] == Phase("hard", 30.0, 900.0)
    with_cut = [*seldom[:1], {"step": 41, "calibration/seconds": 2.0}, *seldom[1:]]
    assert curves.phases(with_cut) == [Phase("dense", 0.0, 41.0), Phase("hard", 41.0, 900.0)]


@pytest.mark.parametrize(
    "given, sentence",
    [
        (["{at}/no"], "there is no {at}/no"),
        (["{at}/other.json"], "is no JSON of pat compare, pat gate"),
        (["{at}/models.json"], "is no JSON of pat compare, pat gate"),
        (["{at}/race.json"], "is of a race, of which a report shows the run that won: give runs/b"),
        (["{at}/torn.json"], "cannot be read as JSON"),
        (["{at}/empty"], "holds no run (config.yaml), no sweep"),
        (["{at}/empty", "--worst", "-1"], "give 0 or more"),
        (["{at}/empty", "--out", "{at}/no/x.html"], "there is no folder"),
    ],
)
def test_mistakes(given: list[str], sentence: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "models.json").write_text('{"models": [{"folder": "x", "seconds": 1}]}')
    (tmp_path / "torn.json").write_text('{"a": ')
    members = [{"name": name, "dir": f"runs/{name}"} for name in "ab"]
    (tmp_path / "race.json").write_text(json.dumps({"winner": "b", "step": 4, "members": members}))
    words = [word.format(at=tmp_path) for word in given]
    out = [] if "--out" in words else ["--out", str(tmp_path / "x.html")]
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", *words, *out])
    assert stop.value.code == 2 and sentence.format(at=tmp_path) in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


def test_the_command_writes_both(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "available", lambda: False)
    gate, page, text = samples.gate(tmp_path / "gate.json"), tmp_path / "x.html", tmp_path / "x.md"
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", str(gate), "--out", str(page), "--markdown", str(text), "--title", "Ours & <theirs>"])
    assert stop.value.code == 0 and "Not good enough" in capsys.readouterr().out
    assert "<h1>Ours &amp; &lt;theirs&gt;</h1>" in page.read_text() and text.read_text().startswith("# Ours &amp;")
