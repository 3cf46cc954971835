"""`pat gate` on tiny classifiers: against hand formulas, a planted regression, what CI reads, and mistakes."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification

from pat import cli
from pat.evaluation.folders import weights_sha256
from pat.models.tokenizers import byte_tokenizer
from pat.run.directory import ExitCode
from tests import models

SUITE = {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"}  # junit-10.xsd


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dense; pruned, whose head is turned round; rows that dense labels, all but one, and a mix of half of them."""
    folder, asked = tmp_path_factory.mktemp("gate"), [f"text {i} {'x' * i}" for i in range(24)]
    rows: list[dict[str, str]] = []
    dense, _ = models.write_classifiers(folder, ["dense", "pruned"])
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(dense), byte_tokenizer()
    with torch.no_grad():
        for text in asked:
            best = int(model(**tokenizer(text, return_tensors="pt")).logits.argmax())
            rows.append({"text": text, "label": ["bad", "good"][best]})
    rows[0]["label"] = "good" if rows[0]["label"] == "bad" else "bad"
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = [
        {"prompt": row["text"], "slices": {"half": str(i % 2)}, "checks": [{"name": "label", "label": row["label"]}]}
        for i, row in enumerate(rows)
    ]
    (folder / "mix.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    return folder


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["gate", *map(str, arguments), "--device", "cpu"])
    return int(str(stop.value.code))


def data(folder: Path) -> list[str]:
    rows = folder / "rows.jsonl"
    local = ["data.source=json", f"data.train={rows}", f"data.eval={rows}", "data.max_length=48"]
    return ["recipe=reviews_dense", *local]


def test_a_planted_regression_is_named(folder: Path, tmp_path: Path, capsys: Any) -> None:
    """Fails if A and B are swapped, a slice is left out, or what CI reads says something else than the exit code."""
    files = {kind: tmp_path / f"gate.{kind}" for kind in ("json", "junit", "markdown")}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump({"accuracy": {"drop": 0.5, "min": 0.01}, "slices": {"min": 0}}))
    options = [*data(folder), "--envelope", tmp_path / "e.yaml", "envelope.parameters.ratio=1"]
    for kind, file in files.items():
        options += [f"--{kind}", file]
    code = run(folder / "pruned", "--against", folder / "dense", *options)
    assert code == ExitCode.OUTSIDE_ENVELOPE == 5
    found, said = json.loads(files["json"].read_text()), capsys.readouterr().out
    checks = {check["name"]: check for check in found["checks"]}
    assert not found["passed"] and found["variant"]["folder"] == str(folder / "pruned")
    assert len(found["variant"]["weights_sha256"]) == 64 and found["variant"] != found["baseline"]
    drop = checks["accuracy.drop"]
    assert (drop["baseline"], drop["measured"], drop["quantity"]) == pytest.approx((23 / 24, 1 / 24, 22 / 24))
    assert drop["interval"][0] < 22 / 24 < drop["interval"][1] <= 1.0 and not drop["passed"]
    assert checks["accuracy.min"]["passed"] and checks["parameters.ratio"]["passed"]
    slices = [name for name in checks if name.startswith("accuracy[label=")]
    assert slices and all(checks[name]["passed"] for name in slices), "0 is on the limit"
    assert "accuracy.drop: 0.0416667 against 0.958333, judged 0.9167" in said and "outside its envelope" in said
    table, _, _ = said.partition("accuracy.drop: ")
    assert table.count("FAIL") == 1 and table.count("pass ") == len(checks) - 1 and "…" not in table
    root = ET.fromstring(files["junit"].read_bytes())
    (suite,) = root.findall("testsuite")
    assert root.tag == "testsuites" and set(suite.attrib) == SUITE and suite[0].tag == "properties"
    cases = suite.findall("testcase")
    assert int(suite.attrib["tests"]) == len(cases) == len(checks) and suite.attrib["failures"] == "1"
    assert all({"name", "classname", "time"} <= set(case.attrib) for case in cases)
    (failure,) = root.iter("failure")
    assert set(failure.attrib) == {"message", "type"} and "accuracy.drop" in failure.attrib["message"]
    lines = files["markdown"].read_text().splitlines()
    assert lines[0] == f"## pat gate failed: 1 of {len(checks)} checks"
    (first, *_) = [line for line in lines if line.startswith("| ") and "check" not in line and "---" not in line]
    assert "**FAIL**" in first and "accuracy.drop" in first


def test_a_limit_counts_however_its_key_is_written(folder: Path) -> None:
    """Fails if a limit with Hydra's plus signs, or in a mapping, is left out in silence."""
    for form in ("+envelope.parameters.max=%d", "++envelope={parameters: {max: %d}}"):
        assert (run(folder / "dense", form % 1), run(folder / "dense", form % 10**9)) == (5, 0), form
    plain, mapping = "envelope.parameters.max=1000000000", "envelope={parameters:{max:1}}"
    assert (run(folder / "dense", plain, mapping), run(folder / "dense", mapping, plain)) == (5, 0), "the last counts"


@pytest.mark.parametrize("given", ["envelope=limits.yaml", "envelope=null"])
def test_what_is_no_limit_is_said(given: str, folder: Path, capsys: Any) -> None:
    assert run(folder / "dense", given) == 2
    assert f"{given.replace('null', 'None')} is no limit: give some" in capsys.readouterr().err


def test_a_model_beside_itself_is_inside_unless_it_must_be_certain(folder: Path, tmp_path: Path) -> None:
    """Fails if a mix is not asked, --confident looks at the figure only, or an interval is that of another figure."""
    keys = ["envelope.passed.min=0.9", "envelope.calibration_error.max=1", "envelope.slices={min: 0.85, least: 12}"]
    options = [folder / "dense", "--mix", folder / "mix.jsonl", *keys, "--json", tmp_path / "g.json"]
    assert run(*options) == 0
    found = {check["name"]: check for check in json.loads((tmp_path / "g.json").read_text())["checks"]}
    assert found["passed.min"]["measured"] == pytest.approx(23 / 24) and found["passed.min"]["baseline"] is None
    assert found["passed[half=1].min"]["measured"] == 1.0
    assert found["passed[half=1].min"]["interval"] == pytest.approx([0.025 ** (1 / 12), 1.0])
    assert found["calibration_error.max"]["interval"] is None
    assert run(*options, "--confident") == 5
    failed = [one["name"] for one in json.loads((tmp_path / "g.json").read_text())["checks"] if not one["passed"]]
    assert "passed[half=1].min" in failed and "calibration_error.max" not in failed


def test_a_model_that_has_diverged_is_outside(folder: Path, tmp_path: Path) -> None:
    """Fails if the class that has the highest of logits that are all NaN, the first one, counts as an answer."""
    model = AutoModelForSequenceClassification.from_pretrained(folder / "dense")
    with torch.no_grad():
        model.classifier.weight.fill_(math.nan)
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    options = ["--json", tmp_path / "g.json", "envelope.slices={min: 0, least: 1}"]
    assert run(tmp_path, *data(folder), "envelope.accuracy.min=0", *options) == 5
    checks = json.loads((tmp_path / "g.json").read_text())["checks"]
    assert {(check["measured"], check["passed"]) for check in checks} == {(None, False)}
    assert run(tmp_path, "--mix", folder / "mix.jsonl", "envelope.passed.min=0.01", *options) == 5
    assert json.loads((tmp_path / "g.json").read_text())["checks"][0]["measured"] == 0.0


def test_a_slice_too_small_to_be_judged_is_named(folder: Path, tmp_path: Path) -> None:
    """Fails if a rare slice is left out in silence; the halves have 12 prompts each, and one of them is judged."""
    lines = [json.loads(line) for line in (folder / "mix.jsonl").read_text().splitlines()]
    moved = next(line for line in lines if line.get("slices") == {"half": "0"})
    moved["slices"] = {"half": "1"}
    (tmp_path / "mix.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = [folder / "dense", "--mix", tmp_path / "mix.jsonl", "envelope.slices={min: 0.1, least: 12}"]
    assert run(*options, "--json", tmp_path / "g.json", "--markdown", tmp_path / "g.md") == 0
    assert json.loads((tmp_path / "g.json").read_text())["left_out"] == {"half=0": 11}
    assert "fewer than 12 samples or prompts" in (tmp_path / "g.md").read_text()
    for line in [line for line in lines if line.get("slices") == {"half": "1"}][:3]:
        del line["checks"]  # 13 prompts, of which 10 are checked
    (tmp_path / "mix.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options[-1] = "envelope.slices={min: 0, least: 11}"
    assert run(*options, "--json", tmp_path / "g.json") == 0
    assert json.loads((tmp_path / "g.json").read_text())["left_out"] == {"half=1": 10}
    for i, line in enumerate(lines):
        line["slices"] = {"label": str(i // 2), "half": str(i % 2)}
    (tmp_path / "mix.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(*options, "--markdown", tmp_path / "g.md") == 0
    assert "12 of label \\(0 to 2\\), half=" in (tmp_path / "g.md").read_text(), "a line for each label would drown it"


def test_a_profile(folder: Path, tmp_path: Path) -> None:
    """Fails if a ratio is turned round, or one measured side by side is not preferred to that of two figures."""
    profile = tmp_path / "p.json"
    content: dict[str, Any] = {
        "models": [
            {"folder": str(folder / "dense"), "latency_p95": 0.1},
            {"folder": str(folder / "pruned"), "latency_p95": 0.08, "intervals": {"latency_p95": [0.07, 0.09]}},
        ]
    }
    profile.write_text(json.dumps(content))
    options = [folder / "pruned", "--profile", profile, "--json", tmp_path / "g.json"]
    against = ["--against", folder / "dense", "envelope.latency_p95.ratio=0.75"]
    assert run(*options, "envelope.latency_p95.max=0.085", "--markdown", tmp_path / "g.md") == 0
    assert "| 0.08 s |" in (tmp_path / "g.md").read_text()
    assert "not certain, as the limit lies within the interval: latency" in (tmp_path / "g.md").read_text()
    assert run(*options, "envelope.latency_p95.max=0.085", "--confident") == 5
    assert run(*options, *against) == 5
    (check,) = json.loads((tmp_path / "g.json").read_text())["checks"]
    assert check["quantity"] == pytest.approx(0.8) and check["interval"] is None
    sides = {"folder": str(folder / "pruned"), "against": str(folder / "dense"), "latency_p95": 0.7}
    content["ratios"] = [sides | {"intervals": {"latency_p95": [0.66, 0.76]}}]
    profile.write_text(json.dumps(content))
    assert run(*options, *against) == 0
    assert run(*options, *against, "--confident") == 5
    del content["ratios"]
    content["models"][1]["ratio"] = {"latency_p95": {"value": 0.74, "low": 0.7, "high": 0.76}}  # as pat profile has it
    profile.write_text(json.dumps(content))
    assert run(*options, *against) == 0
    assert run(*options, *against, "--confident") == 5
    (check,) = json.loads((tmp_path / "g.json").read_text())["checks"]
    assert check["quantity"] == 0.74 and check["interval"] == [0.7, 0.76]
    assert run(*options, *against, "--markdown", tmp_path / "g.md") == 0
    assert "not by that of the two figures: latency" in (tmp_path / "g.md").read_text()
    content["models"][1]["ratio"]["latency_p95"]["high"] = None  # too few blocks bound nothing
    profile.write_text(json.dumps(content))
    assert run(*options, *against) == 0 and run(*options, *against, "--confident") == 5
    own = [{"folder": str(folder / "pruned"), "latency_p95": 1.0, "intervals": {"latency_p95": [0.99, 1.01]}}]
    of_one = [*options, "envelope.latency_p95.max=1.02", "--confident"]
    profile.write_text(json.dumps({"models": own}))  # the dense model's latency is not needed, its size is
    beside = [*of_one, "--against", folder / "dense", "envelope.parameters.ratio=9"]
    assert run(*beside) == 0 and run(*beside, "envelope.latency_p95.ratio=0.75") == 2
    for confidence, code in ((0.5, 2), (0.95, 0)):  # fails if an interval of another level lets a variant pass
        profile.write_text(json.dumps(content | {"confidence": confidence, "models": own}))
        assert run(*of_one) == code
    profile.write_text(json.dumps(content | {"confidence": 0.9}))
    assert run(*options, *against) == 2 and run(*options, *against, "--confidence", "0.9") == 0
    content["models"].append(content["models"][0])
    profile.write_text(json.dumps(content))
    assert run(*options, *against) == 2, "which of the two backends?"


def test_losses_of_other_tokens_are_not_compared(tmp_path: Path, capsys: Any) -> None:
    """Fails if a model is outside because its tokenizer cuts texts into fewer tokens."""
    words, bytes_ = models.write_uniform(tmp_path)
    prompts = [{"prompt": f"w{i}", "output_tokens": 2, "reference": "w1 w2", "slices": {"a": "b"}} for i in range(4)]
    (tmp_path / "mix.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    options = ["--against", words, "--mix", tmp_path / "mix.jsonl"]
    for limit, name in (
        ("reference_loss.ratio=1.1", "reference_loss.ratio"),
        ("reference_loss={rise: 0.1, max: 9}", "reference_loss.rise"),
        ("slices={ratio: 2}", "slices.ratio"),
    ):
        capsys.readouterr()
        assert run(bytes_, *options, f"envelope.{limit}") == 2
        assert f"{name} compares reference_loss, which is nats a token" in capsys.readouterr().err
        assert run(words, *options, f"envelope.{limit}") == 0
    assert run(bytes_, *options, "envelope.parameters.ratio=9", "envelope.reference_loss.max=9") == 0


def test_a_profile_of_other_weights_or_of_another_command_is_refused(folder: Path, tmp_path: Path, capsys: Any) -> None:
    """Fails if a model passes by the times of what was in its folder before, or an evaluation counts as a profile."""
    profile = tmp_path / "p.json"
    hashes = {name: weights_sha256(folder / name) for name in ("dense", "pruned")}

    def gate(**changed: str) -> tuple[int, str]:
        rows = [
            {"folder": str(folder / name), "latency_p95": 0.1, "weights_sha256": sha256}
            for name, sha256 in (hashes | changed).items()
        ]
        profile.write_text(json.dumps({"models": rows}))
        limit = ["--against", folder / "dense", "envelope.latency_p95.ratio=1"]
        return run(folder / "pruned", "--profile", profile, *limit), capsys.readouterr().err

    assert gate() == (0, "")
    for name in hashes:
        code, said = gate(**{name: "0" * 64})
        assert code == 2 and f"is of other weights (000000000000) than {folder / name} holds now" in said
    code, said = gate(pruned="")  # of an older pat profile
    assert code == 0 and "does not say whose weights it is of" in said and said.count("\n") == 1
    for key in ({"metrics": {"loss": 1.0}}, {"figures": []}, {"results": {}}):
        profile.write_text(json.dumps({"models": [{"folder": str(folder / "dense"), "tokens_per_s": 9.0, **key}]}))
        assert run(folder / "dense", "--profile", profile, "envelope.tokens_per_s.min=1") == 2
        assert "is what `pat evaluate --json` wrote: give what `pat profile --json` wrote" in capsys.readouterr().err
    odd = {"folder": str(folder / "dense"), "tokens_per_s": 9.0, "intervals": [1, 2]}
    profile.write_text(json.dumps({"models": [odd]}))
    assert run(folder / "dense", "--profile", profile, "envelope.tokens_per_s.min=1") == 2
    assert "is [1, 2], but must be {figure: [low, high]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["dense"], "the envelope is empty"),
        (["dense", "dense"], "give the folder of one variant, and its baseline by --against: there are 2"),
        (["dense", "envelope.acuracy.min=1"], "did you mean accuracy"),
        (["dense", "envelope.latency_p95.max=1"], "latency_p95 is limited, but not measured: give --profile FILE"),
        (["dense", "envelope.passed.min=1"], "passed is limited, but not measured: give --mix FILE"),
        (["dense", "envelope.parameters.ratio=1"], "parameters.ratio is against a baseline: give --against"),
        (["dense", "envelope.parameters.max=1", "--against", "dense"], "--against would be ignored"),
        (["dense", "envelope.parameters.max=1", "--mix", "reviews"], "--mix would be ignored"),
        (["dense", "envelope.parameters.max=1", "--profile", "p"], "--profile would be ignored"),
        (["dense", "envelope.parameters.max=1", "recipe=sotu"], "recipe=sotu would be ignored"),
        (["dense", "envelope.parameters.max=1", "--envelope", "no.yaml"], "there is no file no.yaml"),
        (["dense", "envelope.latency_p95.max=1", "--profile", "rows.jsonl"], "rows.jsonl is not"),
        (["dense", "envelope.accuracy.min=1"], "does not say which data it was made for"),
        (["dense", "envelope.sparsity.min=0.5"], "sparsity is limited, but dense does not record it"),
        (["dense", "envelope.slices.max=0.5", "--mix", "mix.jsonl"], "slices.max fits no figure of slices"),
        (["dense", "envelope.reference_loss.max=1", "--mix", "mix.jsonl"], "gives passed, calibration_error"),
        (["dense", "envelope.slices={min: 0, least: 99}", "--mix", "mix.jsonl"], "none has 99 or more"),
        (["dense", "envelope.parameters.max=1", "--junit", "no/g.xml"], "--junit no/g.xml: there is no folder no"),
    ],
)
def test_mistakes(arguments: list[str], sentence: str, folder: Path, capsys: Any, monkeypatch: Any) -> None:
    """A limit that nothing measures is an error of input, never a pass."""
    monkeypatch.chdir(folder)
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
