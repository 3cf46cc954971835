"""`pat doctor` reports what does not hold, and its exit code says so; whole, it is in tests/distributed."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pat import cli
from pat.commands import doctor as command
from pat.common.files import write_json
from pat.doctor import BROKEN, MIND, WELL, Finding, machine, network, ranks, verdict, visit
from pat.doctor.allocation import over_nodes
from pat.pruning.weights.kernels import Pass
from pat.run.directory import ExitCode, RunDir
from pat.schema import Config, RunConfig


def left_by_ranks(folder: Path, **changed: Any) -> Path:
    """What ranks leave where all is well, but for what is changed."""
    reductions = {"exact": True, "error": 1e-8, "allowed": 1.2e-7, "different_bits": 1} | changed.get("reductions", {})
    saving = {"bytes": 128 << 20, "seconds": 0.5} | changed.get("saving", {})
    write_json(folder / "ranks.json", {"reductions": reductions, "saving": saving})
    for name in ("zero1", "zero2", "zero3", "resumed"):
        hashes = {"mask_sha256": "m", "weights_sha256": "w"} | changed.get(name, {})
        (folder / name).mkdir()
        if changed.get(name, {}) is not None:
            write_json(folder / name / "summary.json", {**hashes, "step": 8})
    return folder


JUDGES: dict[str, Callable[[Path], Finding]] = {
    "ranks": lambda folder: visit.judge_start(folder, 0),
    "reductions": visit.judge_reductions,
    "ZeRO 1, 2, 3": visit.judge_stages,
    "resume": lambda folder: visit.judge_resume(folder, 0),
    "saving": visit.judge_saving,
}


def test_where_all_is_well_every_judge_says_so(tmp_path: Path) -> None:
    folder = left_by_ranks(tmp_path)
    for name, judge in JUDGES.items():
        found = judge(folder)
        assert (found.check, found.state) == (name, WELL)
    assert "268 MB/s" in visit.judge_saving(folder).said


@pytest.mark.parametrize(
    ("changed", "check", "state", "words"),
    [
        ({"reductions": {"exact": False}}, "reductions", BROKEN, "sums of whole numbers are wrong"),
        ({"reductions": {"error": 1e-3}}, "reductions", BROKEN, "off by 1.0e-03 of their size, 1.2e-07 would be"),
        ({"reductions": {"different_bits": 2}}, "reductions", BROKEN, "does not always have the same bits"),
        ({"zero3": {"mask_sha256": "x"}}, "ZeRO 1, 2, 3", BROKEN, "masks differ between stages"),
        ({"zero1": {"weights_sha256": "x"}}, "ZeRO 1, 2, 3", BROKEN, "weights differ between stages"),
        ({"resumed": {"weights_sha256": "x"}}, "resume", BROKEN, "ends with other weights or masks"),
        ({"saving": {"seconds": 64.0}}, "saving", MIND, "2 MB/s"),
    ],
)
def test_what_does_not_hold_is_found(tmp_path: Path, changed: Any, check: str, state: str, words: str) -> None:
    folder = left_by_ranks(tmp_path, **changed)
    findings = [judge(folder) for judge in JUDGES.values()]
    assert [(found.check, found.state) for found in findings if found.state != WELL] == [(check, state)]
    assert words in next(found.said for found in findings if found.check == check)


def test_ranks_that_died_are_told(tmp_path: Path) -> None:
    write_json(tmp_path / "exit.json", {"code": 1, "message": "rank 1 died (pid 7, killed or crashed)"})
    found = visit.judge_start(tmp_path, 1)
    assert found.state == BROKEN and "rank 1 died (pid 7, killed or crashed); see" in found.said
    for judge in (visit.judge_reductions, visit.judge_saving, visit.judge_stages):
        assert judge(tmp_path).state == BROKEN
    assert "ZeRO 1 and ZeRO 2 and ZeRO 3 did not finish" in visit.judge_stages(tmp_path).said
    left_by_ranks(tmp_path)
    assert "the second start left with code 85" in visit.judge_resume(tmp_path, 85).said


def test_what_takes_minutes_is_said_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left_by_ranks(tmp_path)
    said: list[str] = []

    def at_work(*_: Any) -> int:
        said.append(capsys.readouterr().err)
        return 0

    monkeypatch.setattr(visit, "start_ranks", at_work)
    monkeypatch.setattr(visit, "go_on", at_work)
    assert [check().state for check in visit.visit(tmp_path, 2)] == [WELL] * 5
    assert [text.partition(",")[0] for text in said] == ["starting 2 ranks", "starting them again"]


# --- the machine


def usage(free: int) -> Callable[[Any], Any]:
    return lambda folder: SimpleNamespace(free=free)


def test_too_little_disk_and_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", usage(64 << 20))
    assert machine.check_disk(tmp_path).state == MIND and "64.0 MiB free" in machine.check_disk(tmp_path).said
    found = machine.check_shared_memory("cpu", 2)
    assert (
        found.state == BROKEN and "2 ranks want 132.0 MiB: start the container with a larger --shm-size" in found.said
    )
    assert machine.check_shared_memory("cuda", 2).state == MIND
    monkeypatch.setattr(shutil, "disk_usage", usage(64 << 30))
    assert machine.check_disk(tmp_path).state == machine.check_shared_memory("cpu", 2).state == WELL
    monkeypatch.undo()
    assert machine.check_shared_memory("cpu", 2, tmp_path / "shm").state == BROKEN


def test_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.check_locks(tmp_path).state == WELL and not list(tmp_path.iterdir())

    def refused(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(machine.fcntl, "flock", refused)
    assert machine.check_locks(tmp_path).state == BROKEN
    monkeypatch.setattr(machine.fcntl, "flock", lambda *_: None)
    assert "two had the same lock" in machine.check_locks(tmp_path).said


def test_a_compiler_that_is_not_there_or_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "g++")
    found = machine.check_compiler("cpu")
    assert found.state == MIND and "there is no g++" in found.said
    plain = Pass.__call__

    def contracted(self: Pass, *tensors: Any) -> None:
        if self.mode == "eager":
            return plain(self, *tensors)
        weight, grad, rate = tensors
        weight.copy_((weight.double() - weight.double() * grad.double() * rate.double()).float())

    monkeypatch.setattr(Pass, "__call__", contracted)
    assert machine.check_kernels("cpu").state == BROKEN

    def missing(self: Pass, *tensors: Any) -> None:
        if self.mode == "compile":
            raise RuntimeError("kernels do not compile") from OSError("no Python.h\nin any folder")

    monkeypatch.setattr(Pass, "__call__", missing)
    found = machine.check_kernels("cpu")
    assert found.state == MIND and "(no Python.h)" in found.said


def test_more_ranks_than_cores_and_a_missing_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = machine.usable_cores()
    assert machine.check_devices("cpu", cores).state == WELL
    assert machine.check_devices("cpu", cores + 1).state == MIND
    assert "not run on a GPU" in machine.check_devices("cpu", 1).said
    assert machine.check_backend("cpu") == Finding("backend", WELL, "gloo", {"backend": "gloo"})
    monkeypatch.setattr(machine.dist, "is_gloo_available", lambda: False)
    assert machine.check_backend("cpu").state == BROKEN
    assert "torch" in machine.check_versions().figures


def test_numbers_that_are_reduced_have_exact_sums() -> None:
    """Were they larger, fp32 would round, and a good reduction would be called bad."""
    whole = [ranks.numbers(r, True) for r in range(8)]
    assert torch.equal(sum(whole[1:], whole[0]).double(), sum((w.double() for w in whole[1:]), whole[0].double()))
    assert not torch.equal(whole[0], whole[1]) and ranks.numbers(0, False).dtype == torch.float32


# --- the command


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `--device cpu` sets it, and put back."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def pat(*arguments: str) -> int:
    with pytest.raises(SystemExit) as leaving:
        cli.main(["doctor", *arguments])
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


@pytest.mark.parametrize("state", [WELL, MIND, BROKEN])
def test_the_exit_code_and_the_verdict(
    state: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = [Finding("disk", WELL, "room"), Finding("saving", state, "so fast")]
    monkeypatch.setattr(machine, "machine", lambda *_: [lambda: findings[0]])
    monkeypatch.setattr(visit, "visit", lambda *_: iter([lambda: findings[1]]))
    file = tmp_path / "doctor.json"
    code = pat("--device", "cpu", "--json", str(file), "--dir", str(tmp_path / "runs"))
    assert code == (4 if state == BROKEN else 0)
    output = capfd.readouterr().out
    assert output.startswith("✓ disk: room\n") and f"{dict(well='✓', mind='!', broken='✗')[state]} saving: so" in output
    found = json.loads(file.read_text())
    assert found["well"] == (state != BROKEN) and found["verdict"] in output and len(found["findings"]) == 2
    assert "Not run on a GPU" in output
    assert bool(list((tmp_path / "runs").iterdir())) == (state == BROKEN), "what ranks left is kept to be looked at"


def test_verdicts() -> None:
    good, slow, bad = Finding("a", WELL, ""), Finding("b", MIND, ""), Finding("c", BROKEN, "")
    assert verdict([good], "NVIDIA H100", 8) == (
        "All is well with 8 ranks on NVIDIA H100: what pat promises holds here."
    )
    assert "It could be better: b." in verdict([good, slow], "cpu", 1)
    assert verdict([good, slow, bad], "x", 1).startswith("Not all is well with 1 rank on x: see c.")


def test_what_cannot_be_asked_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert pat("--ranks", "0") == 2 and "--ranks 0: give 1 or more" in capfd.readouterr().err
    if not torch.cuda.is_available():
        assert pat("--device", "cuda") == 2 and "torch sees no GPU" in capfd.readouterr().err
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="2 ranks need 2 GPUs, and this machine shows 1: give --ranks 1"):
        command._device("auto", 2)
    for key, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(key, value)
    assert pat("--ranks", "3") == 2 and "--ranks 3, but the launcher started 2" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_nodes_say_is_told_once_where_it_is_the_same() -> None:
    here = [Finding("versions", WELL, "torch 2"), Finding("disk", WELL, "5 GiB", {"free_bytes": 5})]
    there = [Finding("versions", WELL, "torch 3"), Finding("disk", MIND, "1 GiB", {"free_bytes": 1})]
    versions, disk = over_nodes({"a": here, "b": there})
    assert versions.state == BROKEN, "ranks of two versions are one run of neither"
    assert disk.state == MIND and disk.said == "a: 5 GiB; b: 1 GiB" and disk.figures["b"] == {"free_bytes": 1}
    (same,) = over_nodes({"a": here[:1], "b": here[:1]})
    assert same.state == WELL and same.said.count("torch 2") == 1


@pytest.mark.parametrize(("rates", "state"), [((9e8, 1e9, 3e8), MIND), ((9e8, 1e9, 8e8), WELL)])
def test_a_link_far_below_the_others_is_named(rates: tuple[float, ...], state: str) -> None:
    named = zip(("a - b", "a - c", "b - c"), rates, strict=True)
    found = network.judge_links([{"link": link, "ranks": 2, "bytes_per_s": rate} for link, rate in named])
    assert found.state == state and (found.said.startswith("b - c below") == (state == MIND))


def test_clocks_that_are_apart() -> None:
    assert network.judge_clocks({"b": 0.002}).state == WELL
    apart = network.judge_clocks({"b": 0.002, "c": -3.0})
    assert apart.state == MIND and "(c)" in apart.said


@pytest.mark.parametrize("code", [ExitCode.PREEMPTED, ExitCode.INTERRUPTED])
def test_ranks_that_a_signal_has_ended_break_no_promise(code, tmp_path, monkeypatch):
    monkeypatch.setattr(visit, "make_ready", lambda made, folder: None)
    monkeypatch.setattr(visit, "launch", lambda *given: code)
    with pytest.raises(SystemExit) as left:
        visit.start_ranks(tmp_path, {})
    assert left.value.code == code


def test_a_second_visit_does_not_find_what_the_first_has_found(tmp_path, monkeypatch):
    """In an allocation both have one folder; a stage that then ends early would be judged by the earlier hashes."""
    monkeypatch.setattr(visit, "prepare", lambda config, folder: None)
    monkeypatch.setattr(visit, "freeze", lambda config, folder: None)
    made = {stage: Config(run=RunConfig(dir=str(tmp_path / str(stage)), resume="never")) for stage in visit.STAGES}
    runs = [RunDir(Path(config.run.dir)) for config in made.values()]
    for run in runs:
        run.checkpoints.mkdir(parents=True)
        run.summary.write_text("{}")
    visit.make_ready(made, tmp_path)
    assert not any(run.summary.exists() for run in runs)


def test_a_visit_takes_the_keys_of_any_run(tmp_path: Path) -> None:
    """Fails if keys that need evaluations, of which a visit makes none, are called a mistake of the user's."""
    keys = ["recipe=parity", "train.eval_every=2", "train.early_stopping_patience=3", "envelope.perplexity.rise=0.1"]
    for config in visit.configs(tmp_path, 2, keys).values():
        assert config.train.eval_every is None and not config.envelope
