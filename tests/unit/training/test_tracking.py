from __future__ import annotations

import json
import math
import os
import pty
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pat import cli
from pat.common import wandb_key
from pat.common.text import duration
from pat.launch.rank import Log, Tee
from pat.run.directory import RunDir
from pat.schema import Config, LoggerConfig, RunConfig, TrainConfig
from pat.training import tensorboard, tracking
from tests import wandb_files

STEP = {
    "train/loss": 1.25,
    "train/tokens_per_s": 1234.0,
    "pruning/phase": "soft",
    "pruning/sparsity": 0.5,
    "train/grad_norm": math.nan,
}


def settings(**logger: Any) -> Config:
    return Config(
        run=RunConfig(name="r", dir="r", recipe="parity"),
        train=TrainConfig(num_steps=30, global_batch_size=1),
        logger=LoggerConfig(**{"name": "none", **logger}),
    )


def lines(run: RunDir) -> list[dict]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def tracker(tmp_path, rank=0, step=0, **logger) -> tracking.Tracker:
    found = tracking.Tracker(settings(**logger), RunDir(tmp_path), rank)
    found.start(step)
    return found


def test_metrics_are_one_json_object_a_line(tmp_path, capsys):
    t = tracker(tmp_path)
    t.log(STEP, 1)
    assert lines(t.run)[0] | {"time": 0} == {"step": 1, "time": 0} | STEP | {"train/grad_norm": None}, "at once on disk"
    t.log({"eval/accuracy": 0.75}, 2)
    t.summary({"step": 30, "metrics": {"loss": math.inf}})
    t.close()
    assert [line["step"] for line in lines(t.run)] == [1, 2]
    assert json.loads(t.run.summary.read_text()) == {"step": 30, "metrics": {"loss": None}}
    out = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"step 1/30  soft  sparsity 0.500  loss 1.25  1,234 tokens/s  left \d+:\d\d:\d\d", out[0])
    assert out[1] == "step 2/30  eval/accuracy 0.75"


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path):
    t = tracker(tmp_path)
    for step in (5, 10, 15):
        t.log({"loss": 1.0}, step)
    t.close()
    with open(t.run.metrics, "a") as file:
        file.write('{"step": 16, "lo')  # torn by a crash
    t = tracker(tmp_path, step=10)
    t.log({"loss": 2.0}, 15)
    t.close()
    assert [(line["step"], line["loss"]) for line in lines(t.run)] == [(5, 1.0), (10, 1.0), (15, 2.0)]
    tracker(tmp_path, step=0).close()
    assert lines(t.run) == [], "a run that starts anew has no past"


def test_a_resumed_run_forgets_what_its_own_step_logged_after_the_checkpoint(tmp_path):
    t = tracker(tmp_path)
    t.log({"loss": 1.0}, 5)
    size = t.logged_bytes
    t.log({"dense/loss": 2.0}, 5)  # after the checkpoint of step 5, before step 6: will be taken again
    t.close()
    t = tracking.Tracker(settings(), RunDir(tmp_path), 0)
    t.start(5, size)
    assert t.logged_bytes == size == t.run.metrics.stat().st_size
    t.close()
    assert [line.keys() - {"time"} for line in lines(t.run)] == [{"step", "loss"}]


def test_other_ranks_say_nothing(tmp_path, capsys):
    t = tracker(tmp_path, rank=1)
    t.log(STEP, 1)
    t.advance(1)
    t.say("hello")
    t.summary({})
    t.close()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "chosen, environ, key, mode",
    [
        (None, {}, False, "offline"),
        (None, {}, True, "online"),
        ("online", {}, False, "offline"),
        ("online", {}, True, "online"),
        ("disabled", {"WANDB_MODE": "online"}, True, "disabled"),
        (None, {"WANDB_MODE": "disabled"}, True, "disabled"),
        (None, {"WANDB_MODE": "online"}, False, "offline"),
    ],
)
def test_wandb_never_asks(chosen, environ, key, mode):
    assert tracking.wandb_mode(LoggerConfig(mode=chosen), environ, key) == mode


def test_wandb_key_is_found_where_wandb_looks(tmp_path):
    assert wandb_key.has_api_key({"WANDB_API_KEY": "x"})
    file = tmp_path / "netrc"
    file.write_text("machine api.wandb.ai login user password x\n")
    file.chmod(0o600)
    assert wandb_key.has_api_key({"NETRC": str(file)})
    assert not wandb_key.has_api_key({"NETRC": str(file), "WANDB_BASE_URL": "https://wandb.example.org"})
    assert not wandb_key.has_api_key({"NETRC": str(tmp_path / "none")})


def test_wandb_offline_writes_a_run_that_goes_on_under_the_same_name(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    identities = []
    for step in (0, 5):
        time.sleep(step / 4)  # a start's folder is named after its second
        t = tracker(tmp_path, step=step, name="wandb", progress="none", group="many")
        assert t.wandb.run is not None
        identities.append(t.wandb.run.id)
        t.log(STEP, step + 1)
        t.summary({"sparsity": 0.8})
        t.warn("stalled", "nothing has happened for 15.0 minutes")
        t.close("diverged" if step else "")
    assert identities[0] == identities[1]
    for step, start in zip((1, 6), wandb_files.read_ended(tmp_path), strict=True):
        assert start["group"] == "many" and start["config"]["run"]["recipe"] == "parity"
        (line,) = start["history"]
        assert line["trainer/step"] == step and line["train/loss"] == 1.25 and line["pruning/phase"] == "soft"
        assert start["summary"]["sparsity"] == 0.8
        assert start["alerts"] == [("r: stalled", "nothing has happened for 15.0 minutes")]


def test_the_command_that_sends_an_offline_run_later_finds_it(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    t = tracker(tmp_path, name="wandb", progress="none")
    t.close()
    (command,) = re.findall(r"`(wandb sync [^`]*)`", capsys.readouterr().out)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    dry = command.replace("wandb sync", "wandb sync --dry-run")
    done = subprocess.run(
        dry, shell=True, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PATH": path}
    )
    assert "Would sync 1 run(s)" in done.stdout + done.stderr and t.wandb.run.id in done.stdout + done.stderr


def test_wandb_errors_are_said_once_and_end_nothing(tmp_path, capsys, monkeypatch):
    import wandb

    class Broken:
        def __init__(self, **_):
            self.summary = {}

        def log(self, *_):
            raise ConnectionError("no route to host\nand a long trace")

    monkeypatch.setattr(wandb, "init", Broken)
    t = tracker(tmp_path, name="wandb")
    for step in (1, 2):
        t.log(STEP, step)
    t.close()
    assert capsys.readouterr().out.count("wandb: no route to host; going on without it") == 1
    assert len(lines(t.run)) == 2

    def fails(**_):
        raise RuntimeError("no service")

    monkeypatch.setattr(wandb, "init", fails)
    t = tracker(tmp_path, name="wandb")
    t.log(STEP, 1)
    t.close()
    assert "wandb: no service; going on without it" in capsys.readouterr().out


def test_a_terminal_gets_a_bar_and_the_log_gets_lines(tmp_path, monkeypatch):
    controller, terminal = pty.openpty()
    with open(terminal, "w") as stream, open(tmp_path / "log", "w+", buffering=1) as log:
        tee = Tee(log, stream)
        monkeypatch.setattr(sys, "stdout", tee)
        t = tracker(tmp_path)
        t.log(STEP, 1)
        t.log({"eval/accuracy": 0.75}, 2)
        t.say("half a ")
        print("line, then", "the rest")
        t.close()
        print("after")
        tee.flush()
        shown = ""
        while "after" not in shown:
            shown += os.read(controller, 100_000).decode()
        log.seek(0)
        logged = log.read().splitlines()
    assert "━" in shown and "parity" in shown and "soft sparsity 0.500 loss 1.25" in shown
    assert "step 2/30  eval/accuracy 0.75" in shown and "line, then the rest" in shown and "after" in shown
    assert logged[0].startswith("step 1/30  soft") and "━" not in "".join(logged)
    assert logged[-3:] == ["half a ", "line, then the rest", "after"]


def test_duration():
    assert duration(3723.9) == "1:02:03"


def test_a_full_disk_costs_lines_and_no_run(tmp_path: Path, capsys) -> None:
    """Whole lines, in the metrics; of the log, what there was no room for. The next checkpoint ends the run."""
    found = tracking.Tracker(settings(name="none", progress="none"), RunDir(tmp_path), 0)
    found.start(0)
    found.log({"a": 1}, 1)
    before, limit = found.logged_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before + 20, limit[1]))  # room for half a line
    try:
        found.log({"a": 2}, 2)
        found.log({"a": 3}, 3)
        assert found.logged_bytes == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    found.log({"a": 4}, 4)
    found.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 4]
    assert capsys.readouterr().out.count("cannot be written: is the disk full?") == 1
    with open("/dev/full", "ab", buffering=0) as full:
        log = Log(full, encoding="utf-8", line_buffering=True)
        assert log.write("lost\n" * 9999) == 49995
        log.flush()
        log.detach()


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's own reader finds, over all event files that are there."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_has_what_metrics_jsonl_has(tmp_path: Path, capsys: Any) -> None:
    """After a resume, lines of one step on both sides of a checkpoint, and going back: once each, and no words."""
    t = tracker(tmp_path, name="tensorboard", progress="none")
    for step in (5, 10):
        t.log(STEP | {"kept": [1, 2], "train/loss": float(step)}, step)
    size = t.logged_bytes
    t.log({"eval/loss": 1.0}, 10)
    t.log({"train/loss": 11.0}, 11)
    t.close()
    assert events(tmp_path)["train/loss"] == [(5, 5.0), (10, 10.0), (11, 11.0)]
    t = tracking.Tracker(settings(name="tensorboard", progress="none"), RunDir(tmp_path), 0)
    t.start(10, size)
    t.log({"eval/loss": 2.0}, 10)
    t.log({"train/loss": 12.0}, 11)
    t.rewind(10, t.logged_bytes)
    t.log({"train/loss": 13.0}, 11)
    t.close()
    found = events(tmp_path)
    assert found["train/loss"] == [(5, 5.0), (10, 10.0), (11, 13.0)] and found["eval/loss"] == [(10, 2.0)]
    assert set(found) == {"train/loss", "train/tokens_per_s", "pruning/sparsity", "eval/loss"}
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert capsys.readouterr().out == ""


def test_tensorboard_is_rank_0s_and_ends_no_run(tmp_path: Path, capsys: Any) -> None:
    tracker(tmp_path, rank=1, name="tensorboard").log(STEP, 1)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "tensorboard").write_text("no folder")
    t = tracker(tmp_path, name="tensorboard", progress="none")
    for step in (1, 2):
        t.log(STEP, step)
    t.close()
    assert len(lines(t.run)) == 2 and capsys.readouterr().out.count("going on without it") == 1


def test_a_missing_tensorboard_is_said_before_training(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "recipe=parity", "logger=tensorboard", f"run.dir={tmp_path / 'run'}"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "pat-deepspeed[tensorboard]" in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_that_goes_on_at_step_0_keeps_what_it_measured_before(tmp_path: Path) -> None:
    """As after an envelope's return to the dense model: the checkpoint says which lines are its own."""
    run = RunDir(tmp_path)
    first = '{"step": 0, "dense/loss": 3.0}\n'
    run.metrics.write_text(first + '{"step": 0, "calibration/seconds": 1.0}\n{"step": 2, "loss": 2.0}\n')
    tracking.keep_until(run, 0, len(first))
    assert run.metrics.read_text() == first
    tracking.keep_until(run, 0)
    assert run.metrics.read_text() == "", "a start from nothing"
