"""The checks for GPUs, reached without one: their commands are such that pat takes, and they see what they should.

What a card is needed for, the runs themselves, is a stand-in here: it composes the command and writes the summary.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pat.config import compose
from tests.gpu import checks

GOOD = {
    "mask_sha256": "a" * 64, "weights_sha256": "b" * 64, "skipped_steps": 3, "sparsity": 0.8, "target_sparsity": 0.8,
    "metrics": {"loss": 2.0}, "initial_loss": 4.0, "tokens_per_s": 1000.0, "peak_memory_bytes": 1 << 30,
}  # fmt: skip
TABLE = {"accuracy": 0.9, "sparsity": 0.9, "device": "cuda"}


class StandIn:
    """Composes what a command would train, and writes the summary that it is given for a run's name."""

    def __init__(self, bad: dict[str, dict[str, Any]] | None = None, code: int = 0) -> None:
        self.bad, self.code, self.composed = bad or {}, code, 0

    def __call__(self, command: tuple[str, ...], **_: Any) -> SimpleNamespace:
        arguments = list(command[len(checks.PAT) :])
        if command[: len(checks.PAT)] == checks.PAT and arguments[0] == "train":
            assert compose.compose(arguments[1:], lambda config: 0) == 0
            self.composed += 1
            directory = Path(next(a for a in arguments if a.startswith("run.dir=")).removeprefix("run.dir="))
            directory.mkdir(parents=True)
            (directory / "summary.json").write_text(json.dumps(GOOD | self.bad.get(directory.name, {})))
        if "launch/demo.sh" in command:
            (out := Path(arguments[-1])).mkdir(parents=True)
            (out / "table.json").write_text(json.dumps({"dense": TABLE, "pruned": TABLE}))
        return SimpleNamespace(returncode=self.code, stdout="what it said", stderr="")


def all_of(folder: Path, stand_in: StandIn, names: set[str] | None = None) -> dict[str, checks.Outcome]:
    bench = checks.Bench(folder, 2, stand_in)
    chosen = [check for check in checks.CHECKS if names is None or check.__name__ in names]
    return {outcome.name: outcome for outcome in checks.outcomes(bench, chosen)}


@pytest.mark.slow
def test_all_checks_pass_where_all_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_needs", lambda module: None)
    found = all_of(tmp_path, stand_in := StandIn())
    assert [outcome.passed for outcome in found.values()] == [True] * len(checks.CHECKS), found
    assert stand_in.composed == 14


@pytest.mark.parametrize(
    ("check", "run", "wrong"),
    [
        ("same_bits", "zero3", {"weights_sha256": "c" * 64}),
        ("compiled_kernels", "kernels-compile", {"mask_sha256": "c" * 64}),
        ("fp16_overflows", "fp16", {"skipped_steps": 0}),
        ("fused_adam", "fused_adam", {"metrics": {"loss": 2.2}}),
        ("step_ratio", "soft", {"tokens_per_s": 900.0}),
    ],
)
def test_what_is_wrong_fails(check: str, run: str, wrong: dict[str, Any], tmp_path: Path) -> None:
    (outcome,) = all_of(tmp_path, StandIn({run: wrong}), {check}).values()
    assert outcome.passed is False


def test_a_command_that_fails_is_told_with_its_end_and_the_others_go_on(tmp_path: Path) -> None:
    found = all_of(tmp_path / "runs", StandIn(code=1), {"same_bits", "doctor"})
    assert [o.passed for o in found.values()] == [False, False] and "what it said" in found["doctor"].said
    assert checks.report(iter(found.values()), "a card", tmp_path / "gpu.json") == 1
    assert json.loads((tmp_path / "gpu.json").read_text())["device"] == "a card"


def test_without_a_card_one_sentence_and_no_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert checks.main(str(tmp_path / "gpu.json")) == 0 and not list(tmp_path.iterdir())
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_package_that_is_missing_skips_its_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda module: None)
    found = all_of(tmp_path, StandIn(), {"flash_packing", "liger"})
    assert {outcome.passed for outcome in found.values()} == {None}
