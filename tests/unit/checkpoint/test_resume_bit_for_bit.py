"""Save and load in one process, on DeepSpeed's own engine: nothing is lost on the way."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pat.checkpoint import store
from pat.checkpoint.reader import read_manifest
from pat.common.comm import LOCAL, Comm
from pat.pruning.types import PromiseBroken
from pat.zero.layouts.partitioned import Zero3
from tests import one_rank
from tests.distributed.harness import STEPS, Trained, build, discard, make_config

SAVED = 3  # completed steps: the first selection of the soft phase is made
FROZEN = "model.layers.0.input_layernorm.weight"


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank.under_deepspeed():
        yield


def fresh(**changes: Any) -> Trained:
    """An engine before its first step, with a part that does not train."""
    trainable = ["*_proj.weight", "*embed_tokens*", "model.norm.weight"]
    return build(make_config("movement", engine__zero_stage=1, optim__trainable=trainable, **changes))


def state(trained: Trained) -> dict[str, Any]:
    """All that a resume must bring back."""
    engine, layout = trained.engine, trained.pruner.layout
    found: dict[str, Any] = {f"forward {n}": p.detach().clone() for n, p in engine.module.named_parameters()}
    for shard in layout.shards:
        adam = layout.base.state[shard.flat]
        for s in shard.segments:
            found[f"weight {s.name}"] = shard.view[s.part].clone()
            found |= {f"{kind} {s.name}": adam[kind].view(-1)[s.part].clone() for kind in ("exp_avg", "exp_avg_sq")}
        found[f"step {shard.index}"] = float(adam["step"])
    for name, value in trained.pruner.state()[0].items():
        found[f"pruner {name}"] = value.clone()
    found |= {k: getattr(engine, k) for k in ("global_steps", "global_samples", "micro_steps", "skipped_steps")}
    return found


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(found[name], value) if isinstance(value, Tensor) else found[name] == value
        assert same, name


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any], dict[str, Any]]]:
    """(a checkpoint, the state when it was saved, the state after another step)."""
    root = tmp_path_factory.mktemp("run") / "checkpoints"
    trained = fresh()
    with torch.no_grad():
        trained.engine.module.get_parameter(FROZEN).mul_(3.0)  # another base model than the one that is built anew
    trained.run(0, SAVED)
    path = store.save(trained.engine, trained.pruner, root, SAVED, {}, {"loss": 1.0})
    at = state(trained)
    trained.run(SAVED, SAVED + 1)
    yield path, at, state(trained)
    discard(trained)


def test_what_was_saved_is_back_to_the_last_bit_and_so_is_the_next_step(
    saved: tuple[Path, dict[str, Any], dict[str, Any]],
) -> None:
    path, at, after = saved
    trained = fresh()
    assert not torch.equal(trained.engine.module.get_parameter(FROZEN), at[f"forward {FROZEN}"])
    reader = store.find(path.parent, trained.pruner.layout.world, print)
    assert reader is not None
    store.load(trained.engine, trained.pruner, reader)
    assert_same(state(trained), at)
    assert {value for name, value in at.items() if name.startswith("step ")} == {float(SAVED)}
    trained.run(SAVED, SAVED + 1)
    assert_same(state(trained), after)
    trained.run(SAVED + 1, STEPS)
    trained.pruner.check_finished()
    discard(trained)


def test_a_resume_with_another_accumulation_steps_once_per_step(
    saved: tuple[Path, dict[str, Any], dict[str, Any]],
) -> None:
    """Would catch an optimizer step before the last micro-batch: pat would count the step as skipped."""
    path = saved[0]
    trained = fresh(train__micro_batch_size=2)
    assert SAVED % trained.engine.gradient_accumulation_steps(), "the saved count of micro-batches would do as well"
    reader = store.find(path.parent, trained.pruner.layout.world, print)
    assert reader is not None
    store.load(trained.engine, trained.pruner, reader)
    for t in range(SAVED, STEPS):
        trained.run(t, t + 1)
        assert not trained.stats.skipped, t
    assert trained.engine.global_steps == STEPS
    trained.pruner.check_finished()
    discard(trained)


def test_a_checkpoint_vouches_for_all_its_files_and_latest_names_it(
    saved: tuple[Path, dict[str, Any], dict[str, Any]],
) -> None:
    path, manifest = saved[0], read_manifest(saved[0])
    there = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
    assert there - {"manifest.json"} == set(manifest["files"])
    assert (path.parent / "latest").read_text().strip() == path.name == f"step-{SAVED:08d}"
    assert manifest["phase"] == {"weights": "soft"}


def test_the_phase_is_that_of_the_last_step_that_was_made(tmp_path: Path) -> None:
    trained = fresh()
    trained.run(0, 2)  # step 2 will be the first of the soft phase
    path = store.save(trained.engine, trained.pruner, tmp_path, 2, {}, {})
    assert read_manifest(path)["phase"] == {"weights": "dense"}
    discard(trained)


def test_weights_that_should_be_zero_and_are_not_are_not_saved(tmp_path: Path) -> None:
    trained = fresh()
    trained.run(0, STEPS)
    (weight_pruner,) = trained.pruner.weight_pruners
    for shard_state in weight_pruner.states:
        shard_state.shard.view.add_(1.0)
    with pytest.raises(PromiseBroken):
        store.save(trained.engine, trained.pruner, tmp_path / "checkpoints", STEPS, {}, {})
    assert not (tmp_path / "checkpoints").exists()
    discard(trained)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_rank_of_zero_3_gets_its_own_part_of_what_is_frozen(rank: int) -> None:
    """Seven elements over three ranks: the last part is short, and what pads it stays."""
    part = torch.full((3,), -1.0)
    part.ds_numel = 3  # type: ignore[attr-defined]
    layout = object.__new__(Zero3)
    layout.world = Comm(rank, 3, torch.device("cpu"))
    layout.parameters = {"frozen": SimpleNamespace(ds_tensor=part, ds_numel=7)}
    layout.fill_frozen("frozen", torch.arange(7.0))
    assert part.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, -1.0, -1.0]][rank]


def test_where_no_checkpoint_is_whole_nothing_starts_anew(
    saved: tuple[Path, dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    """A run without any begins; one whose only checkpoint is torn, in whatever way, must not."""
    assert store.find(tmp_path / "none", LOCAL, print) is None
    said: list[str] = []
    for number, tear in enumerate((lambda content: content + b"\0", lambda content: content[:-1])):
        root = tmp_path / str(number)
        path = shutil.copytree(saved[0], root / saved[0].name)
        file = next(path.glob("pruner-*"))
        file.write_bytes(tear(file.read_bytes()))
        with pytest.raises(store.NoneWhole, match="none of the 1 checkpoints"):
            store.find(root, LOCAL, said.append)
    assert ["bytes, not" in words for words in said] == [True, True]
