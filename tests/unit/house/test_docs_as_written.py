"""The commands of the pages from a run to a decision, typed as they are written, one after the other, in a folder that
has what they name: runs, exports, a prompt mix and logs of a tiny classifier."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pat import cli
from pat.run.directory import ExitCode
from tests import small_recipes
from tests.unit.house.test_docs import ROOT, lines_in

pytestmark = pytest.mark.slow

PAGES = (
    "README",
    "getting-started",
    "evaluate",
    "compare",
    "export",
    "profile",
    "gate",
    "report",
    "registry",
    "monitor",
    "clusters",
)
COMMANDS = (
    "compare",
    "evaluate",
    "export",
    "gate",
    "monitor",
    "profile",
    "prompts",
    "registry",
    "report",
    "status",
)
ELSEWHERE = {  # what a command has in it that is not run here
    "/models/": "a model of the reader's",
    "assets/smollm2": "measured with the pretrained model",
    "faster": "tests/distributed/test_latency.py",
    "runs/small": "of a language model: tests/unit/evaluation, tests/unit/profiling",
    "sweeps/": "tests/unit/sweeps",
    "--tasks": "tests/unit/evaluation",
    "--backend": "tests/unit/profiling",
    "--lengths": "longer than the tiny model takes: tests/unit/profiling",
    "--uri": "tests/unit/registry",
    "publish": "tests/unit/registry",
    "sparsity=0.3": "tests/distributed/test_export_at.py",
}
JUDGED = {"gate": {ExitCode.DONE, ExitCode.OUTSIDE_ENVELOPE}, "monitor": {ExitCode.DONE, ExitCode.ALERT}}
BEFORE = {  # what the reader has done by then
    "registry diff": "registry add reviews exports/pruned",
    "registry rollback": "registry promote reviews 2 --as champion --reason better",
    "gate pruned": "profile dense pruned --mix mix.jsonl --requests 6 --json profile.json",  # it was exported anew
}
TINY = ["engine.world_size=1", "train.num_steps=12", "logger=none", "train.keep_last=1"]
RUNS = {
    "dense": ["recipe=reviews_dense"],
    "pruned": ["recipe=reviews", "pruners.weights.criterion.num_samples=64", "pruners.weights.budget.sparsity=0.5"],
}
GATE = {"gate": "accuracy: {drop: 0.5}\n", "production": "passed: {drop: 0.9}\nlatency_p95: {ratio: 5.0}\n"}


def written() -> Iterator[str]:
    """The commands, in their order."""
    for page in PAGES:
        text = (ROOT / f"{page}.md" if page == "README" else ROOT / "docs" / f"{page}.md").read_text()
        for command in lines_in(text):
            if command.split()[0] in COMMANDS and not any(part in command for part in ELSEWHERE):
                yield command


def pat(words: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder, and the process in it."""
    folder = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PAT_ASSETS", str(folder / "assets"))
        _stand_in().write(_made(folder / "assets"))
        for name, keys in RUNS.items():
            given = [f"run.dir=runs/{name}", *keys, *TINY]
            code, said = small_recipes.start(folder, given)
            assert code == 0, said
            for out in (name, f"exports/{name}"):
                assert pat(["export", f"runs/{name}", "--out", out, "--checkpoint", "last"]) == 0
        for link, name in {"runs/first": "pruned", "runs/first-dense": "dense", "runs/half": "pruned"}.items():
            Path(link).symlink_to(folder / "runs" / name)
        assert pat(["export", "runs/pruned", "--out", "exports/half"]) == 0
        _files(folder)
        yield folder


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _stand_in() -> Any:
    spec = importlib.util.spec_from_file_location("stand_in", ROOT / "launch" / "stand_in.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _files(folder: Path) -> None:
    """A mix, logs, an envelope, and the results that pages name as made before."""
    head, *prompts = map(json.loads, (folder / "assets" / "mix.jsonl").read_text().splitlines())
    for index, prompt in enumerate(prompts):
        prompt["slices"]["domain"] = ("drama", "comedy")[index % 2]
    lines = [json.dumps(row) for row in (head, *prompts)]
    for name in ("mix.jsonl", "prompts.jsonl"):
        (folder / name).write_text("\n".join(lines) + "\n")
    for number, name in enumerate(("prod", "today", "lastweek", "a", "b")):
        rows = [
            {
                "prompt": prompt["prompt"], "domain": prompt["slices"]["domain"], "accepted": (n + number) % 3 > 0,
                "latency_ms": 20.0 + (7 * n + number) % 5, "label": str(n % 2), "output": str(n % 2),
            }
            for n, prompt in enumerate(prompts)
        ]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in GATE.items():
        (folder / f"{name}.yaml").write_text(text)
    own = ["recipe=reviews_dense"]
    assert pat(["evaluate", "exports/half", *own, "--json", "metrics.json"]) == 0
    judged = ["exports/half", "--against", "exports/dense", "--envelope", "gate.yaml"]
    assert pat(["gate", *judged, *own, "--json", "gate.json"]) == 0
    assert pat(["compare", "dense", "pruned", "--mix", "mix.jsonl", "--json", "compare.json"]) == 0
    assert pat(["profile", "dense", "pruned", "--mix", "mix.jsonl", "--requests", "6", "--json", "profile.json"]) == 0


def test_every_command_does_what_its_page_says(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Would catch: a command that the reader cannot type as it stands, after those before it."""
    commands, wrong = list(written()), []
    assert {command.split()[0] for command in commands} == set(COMMANDS) and len(commands) > 25
    for command in commands:
        before = [made for start, made in BEFORE.items() if command.startswith(start)]
        for typed in [*before, command]:
            words = shlex.split(typed, comments=True)
            if words[0] == "export":
                shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)  # of a page before
            capfd.readouterr()
            code = pat(words)
            if code not in JUDGED.get(words[0], {ExitCode.DONE}):
                wrong.append(f"pat {typed}: {code}\n{''.join(capfd.readouterr())[-400:]}")
    assert not wrong, "\n\n".join(wrong)
