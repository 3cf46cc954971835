"""The checks for GPUs, reached without one: their commands are such that pat takes, and they see what they should.

What a card is needed for, the runs themselves, is a stand-in here: it composes the command and writes the summary.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pat.config import compose
from tests.gpu import checks

GOOD = {
    "mask_sha256": "a" * 64, "weights_sha256": "b" * 64, "skipped_steps": 3, "sparsity": 0.8, "target_sparsity": 0.8,
    "metrics": {"loss": 2.0}, "initial_loss": 4.0, "tokens_per_s": 1000.0, "peak_memory_bytes": 1 << 30,
    "world_size": 2,
}  # fmt: skip
FOUND = [
    {"check": "versions", "state": "well", "said": "pat 1"},
    {"check": "reductions", "state": "well", "said": "exact to 3.0e-07"},
    {"check": "saving", "state": "mind", "said": "90 MB/s"},
]
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
        if "doctor" in command:
            Path(command[-1]).write_text(json.dumps({"findings": FOUND}))
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
    assert stand_in.composed == 16


def test_a_check_says_its_figure_and_how_many_ranks_had_it(tmp_path: Path) -> None:
    found = all_of(tmp_path / "two", StandIn(), {"same_bits", "doctor"})
    assert found["doctor"].said == "2 of 3 well; reductions exact to 3.0e-07; saving 90 MB/s"
    assert found["same_bits"].said.endswith("weights bbbbbbbbbbbbbbbb; 2 ranks")
    alone = StandIn({f"zero{stage}": {"world_size": 1} for stage in (1, 2, 3)})
    assert all_of(tmp_path / "one", alone, {"same_bits"})["same_bits"].said.endswith(
        "; one rank: NCCL had nothing to sum"
    )


def test_the_script_runs_the_checks_and_ends_as_they_do(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "deepspeed_shm_comm").mkdir()
    (tmp_path / "deepspeed_shm_comm" / "deepspeed_shm_comm.so").touch()  # which the set-up would compile
    python = tmp_path / "python"
    asked = f'echo "$@ $HF_HUB_OFFLINE $PWD" >{tmp_path}/asked; exit 3'
    python.write_text(f'#!/bin/sh\nif [ "$1" = -m ]; then {asked}; fi\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    path = f"{tmp_path}:{sys.prefix}/bin:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PAT_SETUP": "active", "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE", None)
    for more, file in (([], "results/gpu.json"), (["else.json"], "else.json")):
        done = subprocess.run([repository / "tests/gpu/run.sh", *more], cwd=tmp_path, env=environment)
        assert done.returncode == 3
        assert (tmp_path / "asked").read_text() == f"-m tests.gpu.checks {file} 1 {repository}\n"


@pytest.mark.parametrize(
    ("check", "run", "wrong"),
    [
        ("same_bits", "zero3", {"weights_sha256": "c" * 64}),
        ("compiled_kernels", "kernels-compile", {"mask_sha256": "c" * 64}),
        ("fp16_overflows", "fp16", {"skipped_steps": 0}),
        ("fused_adam", "fused_adam", {"metrics": {"loss": 2.2}}),
        ("step_ratio", "soft", {"tokens_per_s": 900.0}),
        ("step_ratio", "hard", {"tokens_per_s": 900.0}),
        ("fused_adam", "adamw", {"metrics": {"loss": float("nan")}}),
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


def test_with_a_card_its_name_is_in_the_file_and_every_check_has_two_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks: list[int] = []

    def outcomes(bench: checks.Bench) -> Any:
        ranks.append(bench.ranks)
        yield checks.Outcome("same_bits", True, "equal", 1.0, ())

    monkeypatch.setattr(checks, "outcomes", outcomes)
    for name, value in (("is_available", True), ("device_count", 4), ("get_device_name", "a card")):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda value=value: value)
    assert checks.main(str(tmp_path / "gpu.json")) == 0 and ranks == [2]
    assert json.loads((tmp_path / "gpu.json").read_text())["device"] == "4 x a card"
    assert "4 x a card" in capsys.readouterr().out


def test_a_command_that_hangs_fails_its_check(tmp_path: Path) -> None:
    def hangs(command: tuple[str, ...], **options: Any) -> Any:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    (outcome,) = checks.outcomes(checks.Bench(tmp_path, 2, hangs), [checks.doctor])
    assert outcome.passed is False and f"has not ended after {checks.WAIT_S} s" in outcome.said


def test_a_package_that_is_missing_skips_its_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda module: None)
    found = all_of(tmp_path, StandIn(), {"flash_packing", "liger"})
    assert {outcome.passed for outcome in found.values()} == {None}
