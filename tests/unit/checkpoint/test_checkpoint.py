"""Putting a checkpoint in its place, and clearing up."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pat.checkpoint import manifest, retention, store
from pat.common import files
from pat.common.comm import LOCAL
from pat.run.directory import RunDir
from pat.zero.checkpoint_files import CheckpointError


class Killed(BaseException):
    """What no handler catches."""


def write(folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / "weights").write_text(text)
    if folder.suffix != ".partial":
        (folder / "manifest.json").write_text("{}")


@pytest.mark.parametrize("death", range(7))
def test_saving_a_step_again_never_leaves_the_run_without_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: int
) -> None:
    root = tmp_path / "checkpoints"
    final, partial = root / "step-00000030", root / "step-00000030.partial"
    write(final, "old")
    write(partial, "new")
    (root / "latest").write_text(final.name)
    calls: list[str] = []

    def fatal(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) - 1 == death:
                raise Killed
            return plain(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for module in ("pat.checkpoint.store", "pat.checkpoint.retention"):
            patch.setattr(f"{module}.write_atomic", fatal("write_atomic", files.write_atomic))
        patch.setattr("shutil.rmtree", fatal("rmtree", store.shutil.rmtree))
        patch.setattr("os.rename", fatal("rename", store.os.rename))
        patch.setattr("os.replace", fatal("replace", store.os.replace))
        manifest = {"world_size": 0, "files": {}, "layout": "zero12", "dtype": "bf16", "ranks": []}
        try:
            store._publish(partial, final, manifest, root)
        except Killed:
            pass
        else:
            assert death >= len(calls) >= 5
    whole = retention.steps(root)
    assert whole and (whole[-1] / "weights").read_text() in ("old", "new")
    assert {path.name for path in whole} <= {final.name, f"{final.name}.replaced"}

    write(root / "step-00000031", "later")
    (root / "latest").write_text("step-00000031")
    retention.retain(root, keep_last=1)
    assert [path.name for path in root.iterdir() if path.is_dir()] == ["step-00000031"]


@pytest.mark.parametrize("missing", ["pruner-00000", "pruner-00001", "mp_rank_00"])
def test_a_file_without_a_hash_is_not_published(tmp_path: Path, missing: str) -> None:
    """Would catch: a checkpoint whose masks are not checked when it is read."""
    partial, final = tmp_path / "step-00000003.partial", tmp_path / "step-00000003"
    write(partial, "new")
    names = ["deepspeed/mp_rank_00_model_states.pt", "pruner-00000.safetensors", "pruner-00001.safetensors"]
    ranks = [{"pruner_file": name} for name in names[1:]]
    files = {name: {} for name in names if missing not in name}
    manifest = {"world_size": 2, "files": files, "layout": "zero0_lp", "dtype": "bf16", "ranks": ranks}
    with pytest.raises(CheckpointError, match=missing):
        store._publish(partial, final, manifest, tmp_path)
    assert not final.exists() and not (tmp_path / "latest").exists()


def test_a_step_that_a_kill_has_left_aside_is_found_exported_and_put_back(tmp_path: Path) -> None:
    """Would catch: `pat export` of a step that was being saved again, which a resume has and the export has not."""
    run = RunDir(tmp_path)
    run.config.write_text("")
    root = run.checkpoints
    for name in ("step-00000010", "step-00000020.replaced", "step-00000030", "step-00000030.replaced"):
        write(root / name, name)
    write(root / "step-00000020.partial", "new")
    aside = root / "step-00000020.replaced"
    for name in ("latest", "best", "good", "sparsity=0.3"):
        (root / name).write_text("step-00000020")
    assert all(retention.find_checkpoint(run, name) == aside for name in ("last", "best", "good", "sparsity=0.3", 20))
    assert retention.find_checkpoint(run, 30) == root / "step-00000030"
    with pytest.raises(ValueError, match="take best, last, good, or a step: 10, 20, 30"):
        retention.find_checkpoint(run, 25)
    with pytest.raises(ValueError, match="elsewhere is not there: give the folder of a `pat train`"):
        retention.find_checkpoint(RunDir(tmp_path / "elsewhere"), "last")
    retention.put_back(root)
    assert retention.find_checkpoint(run, "last") == root / "step-00000020" and not aside.exists()
    assert (root / "step-00000030" / "weights").read_text() == "step-00000030"
    assert retention.to_resume(root) == ["step-00000020", "step-00000010"]


def test_retention_keeps_the_newest_the_latest_and_the_best(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        write(tmp_path / f"step-{step:08d}", json.dumps(step))
    write(tmp_path / "step-00000050.partial", "torn")
    (tmp_path / "latest").write_text("step-00000040")
    (tmp_path / "best").write_text("step-00000010")
    retention.retain(tmp_path, keep_last=2)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [f"step-{s:08d}" for s in (10, 30, 40)]


@pytest.mark.parametrize("step", [25, 30, 35, 45])
def test_what_a_resume_has_passed_over_makes_way_for_the_next_save(tmp_path: Path, step: int) -> None:
    """Would catch a damaged checkpoint that counts as one of the newest, so that the whole one before it goes."""
    for each in sorted({10, 20, 30, 40, step}):
        write(tmp_path / f"step-{each:08d}", json.dumps(each))
    for name, target in (("latest", 20), ("best", 40), ("sparsity=0.3", 10)):
        (tmp_path / name).write_text(f"step-{target:08d}")
    retention.remove_passed_over(tmp_path, step)
    left = {"step-00000010", "step-00000020", f"step-{step:08d}"}
    assert {p.name for p in tmp_path.iterdir()} == left | {"latest", "sparsity=0.3"}
    (tmp_path / "latest").write_text(f"step-{step:08d}")
    (tmp_path / "sparsity=0.3").unlink()
    retention.retain(tmp_path, keep_last=2)
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == {"step-00000020", f"step-{step:08d}"}


def test_states_later_than_the_last_save_do_not_count_as_the_newest(tmp_path: Path) -> None:
    """As after plain DeepSpeed has gone back to an older tag."""
    for step in (20, 60, 70, 80):
        write(tmp_path / f"step-{step:08d}", json.dumps(step))
    retention.set_latest(tmp_path, tmp_path / "step-00000070")
    retention.retain(tmp_path, keep_last=2)
    assert [p.name for p in retention.steps(tmp_path)] == ["step-00000060", "step-00000070"]


def test_only_pats_own_files_are_removed_or_counted(tmp_path: Path) -> None:
    """Would catch: a copy that the user made of a checkpoint, and a note, that go with the next save."""
    for step in (10, 20, 30):
        write(tmp_path / f"step-{step:08d}", json.dumps(step))
    for name in ("step-00000040-before-lr-change", "trial", "step-5"):
        write(tmp_path / name, "the user's")
    (tmp_path / "notes.txt").write_text("the run of Tuesday")
    (tmp_path / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1\xff\xfe")
    theirs = {".DS_Store", "notes.txt", "trial", "step-5", "step-00000040-before-lr-change"}
    assert retention.to_resume(tmp_path) == ["step-00000030", "step-00000020", "step-00000010"]
    retention.set_latest(tmp_path, tmp_path / "step-00000030")
    retention.retain(tmp_path, keep_last=2)
    assert {p.name for p in tmp_path.iterdir()} - theirs == {"latest", "step-00000020", "step-00000030"}
    retention.undo(tmp_path, tmp_path / "step-00000020")
    assert {p.name for p in tmp_path.iterdir()} == theirs | {"latest", "step-00000020"}


@pytest.mark.parametrize(
    ("latest", "torn", "expected"),
    [
        ("step-00000040", [], "step-00000040"),
        ("step-00000040", ["step-00000040"], "step-00000030"),
        ("step-00000040", ["step-00000040", "step-00000030"], "step-00000020"),
        ("step-00000030", [], "step-00000030"),  # a save that was killed before the pointer moved
        ("step-00000099", [], "step-00000040"),  # the pointer names nothing that is there
        (None, ["step-00000040"], "step-00000030"),
    ],
)
def test_resume_takes_the_newest_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, latest: str | None, torn: list[str], expected: str
) -> None:
    """Would catch a resume that falls back to the oldest."""
    for step in (20, 10, 40, 30):
        write(tmp_path / f"step-{step:08d}", json.dumps(step))
    if latest:
        (tmp_path / "latest").write_text(latest)

    def opened(step_dir: Path, world: Any) -> str:
        if step_dir.name in torn:
            raise CheckpointError("torn")
        return step_dir.name

    monkeypatch.setattr(store, "open_whole", opened)
    said: list[str] = []
    assert store.find(tmp_path, LOCAL, said.append) == expected  # type: ignore[comparison-overlap]
    assert len(said) == len(torn) + bool(torn)
    assert ("the next save removes " + ", ".join(torn) in "".join(said)) == bool(torn)
    assert not torn or (tmp_path / "latest").read_text() == expected


def test_a_checkpoint_that_cannot_be_looked_at_is_tried_and_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a rank that ends by the error while the others wait for it."""
    for step in (10, 20):
        write(tmp_path / f"step-{step:08d}", json.dumps(step))
    plain = Path.stat

    def failing(path: Path, **kwargs: Any) -> Any:
        if "step-00000020" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plain(path, **kwargs)

    monkeypatch.setattr(Path, "stat", failing)
    assert retention.to_resume(tmp_path) == ["step-00000020", "step-00000010"]


@pytest.mark.parametrize("where", ["loss_scaler", "loss_scale_config"])
def test_counters_and_the_loss_scaler_are_restored(where: str) -> None:
    """All that fp16 needs to go on: its scale, when it overflowed last, and how patient it is."""

    def engine(first: int, accumulation: int = 2) -> Any:
        scaler = SimpleNamespace(
            cur_scale=2.0**first, cur_iter=first + 1, last_overflow_iter=first + 2, cur_hysteresis=first + 3
        )
        counters = {"global_steps": first, "global_samples": first * 8, "skipped_steps": 1}
        counters |= {"micro_steps": first * accumulation, "gradient_accumulation_steps": lambda: accumulation}
        return SimpleNamespace(optimizer=SimpleNamespace(**{where: scaler}), **counters)

    old, new = engine(7), engine(1)
    manifest.restore_engine(new, json.loads(json.dumps(manifest._engine_state(old))))
    assert vars(getattr(new.optimizer, where)) == vars(getattr(old.optimizer, where))
    counters = ("global_steps", "global_samples", "micro_steps", "skipped_steps")
    assert [getattr(new, k) for k in counters] == [getattr(old, k) for k in counters]


def test_an_engine_without_a_loss_scaler_takes_the_counters() -> None:
    """As fp32 at ZeRO 0 has none, and at ZeRO 1 to 3 one that always has the scale 1."""
    counters = {"global_steps": 0, "global_samples": 0, "skipped_steps": 0, "gradient_accumulation_steps": lambda: 1}
    engine: Any = SimpleNamespace(optimizer=SimpleNamespace(), **counters)
    state = {"global_steps": 5, "global_samples": 40, "skipped_steps": 0}
    manifest.restore_engine(engine, {"engine": state, "scaler": {"cur_scale": 1}})
    assert (engine.global_steps, engine.global_samples) == (5, 40)


def test_best_and_last_are_what_the_pointers_say_and_without_one_last_is_the_newest(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.config.write_text("")
    for step in (10, 20, 30):
        write(run.checkpoints / f"step-{step:08d}", str(step))
    assert retention.find_checkpoint(run, "last").name == "step-00000030"
    with pytest.raises(ValueError, match="no best checkpoint yet, .* take --checkpoint last, or a step: 10, 20"):
        retention.find_checkpoint(run, "best")
    files.write_json(run.summary, {"step": 0})
    assert retention.find_checkpoint(run, "best").name == "step-00000030", "of a run of no steps the only one is it"
    retention.set_latest(run.checkpoints, run.checkpoints / "step-00000020")
    retention.set_best(run.checkpoints, run.checkpoints / "step-00000010")
    assert [retention.find_checkpoint(run, name).name for name in ("best", "last", 30)] == [
        "step-00000010",
        "step-00000020",
        "step-00000030",
    ]


def described(**changes: Any) -> dict[str, Any]:
    return {"name": "a", "shape": [2, 6], "dtype": "float32", "trainable": True, "pruner": "weights"} | changes


OTHER = described(name="b", pruner=None)


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        ([described(shape=[3, 4]), OTHER], r"a has shape \[2, 6\] here, the checkpoint has shape \[3, 4\]"),
        ([described(shape=[12]), OTHER], r"a has shape \[2, 6\] here, the checkpoint has shape \[12\]"),
        ([described()], r"b has shape \[2, 6\] here, the checkpoint does not have it"),
        ([described(), OTHER, described(name="c")], "another model: this one has no c"),
        ([described(trainable=False), OTHER], "a had trainable=False and now has True"),
        ([described(pruner=None), OTHER], "a had pruner=None and now has weights"),
        ([described(), described(name="b", pruner="more")], "b had pruner=more and now has None"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(theirs: list[dict[str, Any]], words: str) -> None:
    ours = [described(), OTHER]
    manifest.check_same_model({"parameters": [described(dtype="bfloat16"), OTHER]}, ours)
    with pytest.raises(ValueError, match=words):
        manifest.check_same_model({"parameters": theirs}, ours)
