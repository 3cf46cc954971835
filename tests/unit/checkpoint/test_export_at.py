"""What train.export_at and the names that it keeps refuse, and what retention spares."""

from __future__ import annotations

from pathlib import Path

import pytest

from pat.checkpoint import retention
from pat.run.directory import RunDir
from tests.unit.config.test_bad_input import refused


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[0.5,0.3]", "must be increasing"),
        ("[0.3,0.3]", "must be increasing"),
        ("[0,0.5]", "above 0 and below 1"),
        ("[0.3,0.9]", "the budgets remove 0.8 of the prunable weights"),
    ],
)
def test_what_cannot_be_reached_is_refused(tmp_path: Path, value: str, words: str) -> None:
    assert words in refused(tmp_path / "run", f"train.export_at={value}")


@pytest.mark.parametrize(
    ("values", "budget", "words"),
    [
        ("[0.1]", "{name:shape,keep:{ffn:64}}", "structures are whole until their gates harden, and then 0.5"),
        (
            "[0.2]",
            "{name:flops,sparsity:0.2,seq_len:16}",
            "scores decide how many of the prunable weights pruners.g removes",
        ),
    ],
)
def test_what_no_export_on_the_way_would_lack_is_refused(tmp_path: Path, values: str, budget: str, words: str) -> None:
    kinds = "[ffn]" if "shape" in budget else "[ffn,kv_groups]"
    gates = ["~pruners.weights", "+pruner@pruners.g=obs", f"pruners.g.structures={kinds}"]
    gates += ["pruners.g.gate={name:taylor}"]
    gates += [f"pruners.g.budget={budget}", "pruners.g.schedule={name:one_shot,start:5}"]
    assert words in refused(tmp_path / "run", f"train.export_at={values}", *gates)


def test_nothing_to_reach_is_refused(tmp_path: Path) -> None:
    assert "nothing is pruned" in refused(tmp_path / "run", "train.export_at=[0.3]", "~pruners.weights")


def kept(root: Path, *steps: int) -> None:
    for step in steps:
        (root / f"step-{step:08d}").mkdir(parents=True)
        (root / f"step-{step:08d}" / "manifest.json").write_text("{}")


def test_a_named_checkpoint_is_not_retired_and_is_found_by_its_name(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.config.write_text("")
    kept(run.checkpoints, 5, 10, 15, 20)
    retention.mark(run.checkpoints, {"0.3": 5, "0.75": 15, "0.8": 99})  # 99: killed before it was written
    retention.retain(run.checkpoints, keep_last=1)
    assert [path.name for path in retention.steps(run.checkpoints)] == [f"step-{s:08d}" for s in (5, 15, 20)]
    assert retention.find_checkpoint(run, "sparsity=0.3").name == "step-00000005"
    assert retention.find_checkpoint(run, "sparsity=0.750").name == "step-00000015"
    for wrong in ("sparsity=0.5", "sparsity=half"):
        with pytest.raises(ValueError, match="it has sparsity=0.3, sparsity=0.75"):
            retention.find_checkpoint(run, wrong)


def test_a_good_checkpoint_is_kept_and_what_comes_after_it_is_undone_with_its_names(tmp_path: Path) -> None:
    """Would catch: the good one retired, a name that points at nothing, and a resume from what was undone."""
    run = RunDir(tmp_path)
    run.config.write_text("")
    root = run.checkpoints
    kept(root, 5, 10, 15, 20)
    retention.keep(root, 20, {"0.5": 15}, keep_last=1, good=10)
    assert [path.name for path in retention.steps(root)] == [f"step-{s:08d}" for s in (10, 15, 20)]
    (root / "step-00000025.partial").mkdir()
    retention.undo(root, root / "step-00000010")
    assert {path.name for path in root.iterdir()} == {"step-00000010", "latest", "good"}
    assert retention.to_resume(root) == ["step-00000010"] and retention.find_checkpoint(run, "good").name[-2:] == "10"
    (root / "good").unlink()
    with pytest.raises(ValueError, match="trained without an envelope"):
        retention.find_checkpoint(run, "good")


def test_best_is_written_again_where_a_kill_prevented_it(tmp_path: Path) -> None:
    """Would catch a best checkpoint that has lost its name, and is retired; and a name that points at nothing."""
    kept(tmp_path, 5, 10, 15)
    (tmp_path / "best").write_text("step-00000005")
    retention.keep(tmp_path, 10, {}, keep_last=1)
    assert (tmp_path / "best").read_text() == "step-00000010"
    assert [path.name for path in retention.steps(tmp_path)] == ["step-00000010", "step-00000015"]
    for step in (None, 99):  # a checkpoint of an older version does not say; a fork has not copied it
        retention.keep(tmp_path, step, {}, keep_last=1)
        assert (tmp_path / "best").read_text() == "step-00000010"
