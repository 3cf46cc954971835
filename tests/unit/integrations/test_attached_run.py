"""`attach` on a loop with DeepSpeed's own engine, in one process: trained, saved and loaded as by pat's own loop."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import deepspeed
import numpy as np
import pytest
import torch

from pat.checkpoint.reader import CheckpointReader
from pat.checkpoint.store import NotWritten
from pat.common.comm import Comm
from pat.config import frozen
from pat.integrations import saved
from pat.integrations.attach import Pruning
from pat.pruning.calibration.walk import Layer
from pat.pruning.types import PromiseBroken
from pat.zero import engine as ds
from tests import one_rank
from tests.distributed.harness import (
    STEPS,
    Trained,
    batch,
    build,
    build_model,
    digest,
    discard,
    inputs,
    make_config,
    settings,
)

MODEL_FILES = ["config.json", "generation_config.json"]
SAVED = 5  # completed steps: in the soft phase
MODEL = {"optim__implementation": "loop", "optim__lr_schedule": "constant", "engine__zero_stage": 1}


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank.under_deepspeed():
        yield


def config_of(kind: str = "movement") -> Any:
    return make_config(kind, **MODEL)


def attached(
    config: Any,
    num_steps: int | None = STEPS,
    samples: Any = None,
    bf16: bool = True,
    calibration_dir: Path | None = None,
    change: Callable[[torch.nn.Module], Any] = lambda model: None,
    **changes: Any,
) -> Pruning:
    """On an engine as a user makes it."""
    model = build_model(config)
    change(model)
    pruning = Pruning(settings(config) | changes, samples, calibration_dir).attach(model, num_steps=num_steps)
    groups = [group | {"lr": config.optim.lr} for group in ds.param_groups(model, config.optim, {})]
    for group in groups:
        del group["base_weight_decay"]  # which is pat's own
    given = {
        "train_batch_size": config.train.global_batch_size,
        "gradient_clipping": config.engine.gradient_clipping,
        "bf16": {"enabled": bf16},
        "communication_data_type": "fp32",
        "zero_optimization": {"stage": config.engine.zero_stage},
    }
    deepspeed.initialize(model=model, optimizer=ds.build_optimizer(groups, config.optim), config=given)
    return pruning


def run(pruning: Pruning, config: Any, start: int, stop: int) -> None:
    for t in range(start, stop):
        tokens = batch(t, 0, config)
        pruning.engine.backward(pruning.engine(input_ids=tokens, labels=tokens).loss)
        pruning.engine.step()


def found(pruning: Pruning) -> dict[str, Any]:
    assert pruning.pruner is not None
    return digest(Trained(pruning.config, pruning.engine, pruning.pruner))


def free(pruning: Pruning) -> None:
    assert pruning.pruner is not None
    discard(Trained(pruning.config, pruning.engine, pruning.pruner))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What attached runs save after SAVED steps."""
    made = {}
    for kind in ("movement", "l0"):
        made[kind], config = tmp_path_factory.mktemp(kind), config_of(kind)
        pruning = attached(config)
        run(pruning, config, 0, SAVED)
        pruning.engine.save_checkpoint(str(made[kind]))
        free(pruning)
    return made


@pytest.fixture(scope="module")
def folder(folders: dict[str, Path]) -> Path:
    """Of masks."""
    return folders["movement"]


@pytest.mark.parametrize(("kind", "known"), [("movement", True), ("movement", False), ("l0", True)])
def test_interrupted_it_is_the_run_of_pats_own_loop(folders: dict[str, Path], kind: str, known: bool) -> None:
    """All state to the last bit, also where a trainer knows the number of steps only once the checkpoint is loaded."""
    config = config_of(kind)
    ours = build(config)
    ours.run(0, STEPS)
    expected = digest(ours)
    discard(ours)
    plain = deepspeed.initialize
    again = attached(config, STEPS if known else None)
    assert deepspeed.initialize is plain, "it was replaced for one engine"
    again.engine.load_checkpoint(str(folders[kind]))
    if not known:
        again.start(STEPS)
    phases = []
    for t in range(SAVED, STEPS):
        run(again, config, t, t + 1)
        phases.append(again.figures()["pruning/phase"])
    assert phases == ["soft"] * (8 - SAVED) + ["hard"] * (STEPS - 8)
    assert found(again) == expected
    again.check()
    assert again.pruner is not None
    for shard in again.pruner.layout.shards:
        shard.view.add_(1.0)
    with pytest.raises(PromiseBroken, match="not zero"):
        again.check()
    free(again)


def test_weight_decay_follows_the_user_also_where_the_pruner_decays_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schedule that writes to the groups that the user made, from the dense phase on and in the middle of a run; the
    pruner's 0 of the soft phase is never seen there."""

    def decay(t: int) -> float:
        return 0.1 * (STEPS - t)

    config = config_of()
    ours = build(config)
    for t in range(STEPS):
        for group in ours.engine.basic_optimizer.param_groups:
            group["weight_decay"] = group["base_weight_decay"] = decay(t) if group["base_weight_decay"] else 0.0
        ours.run(t, t + 1)
    expected = digest(ours)
    discard(ours)

    def follow(pruning: Pruning, start: int, stop: int) -> None:
        for t in range(start, stop):
            groups = pruning.engine.basic_optimizer.param_groups
            for number in set(pruning._origins):
                group = groups[pruning._origins.index(number)]
                group["weight_decay"] = decay(t) if group["weight_decay"] else 0.0
            run(pruning, config, t, t + 1)
            assert {group["weight_decay"] for group in groups} == {0.0, decay(t)}

    theirs = attached(config)
    follow(theirs, 0, SAVED)
    groups = theirs.engine.basic_optimizer.param_groups
    for group in groups:
        group["weight_decay"] *= 2  # as a callback between step and save does, once
    theirs.engine.save_checkpoint(str(tmp_path / "now"))
    with monkeypatch.context() as earlier:  # versions of pat whose 0 of the soft phase is in a checkpoint
        earlier.setitem(Pruning._save.__globals__, "note_decay", lambda groups: None)
        for group in groups:
            group["weight_decay"] = 0.0
        theirs.engine.save_checkpoint(str(tmp_path / "earlier"))
    free(theirs)
    for name in ("now", "earlier"):
        again = attached(config)
        again.engine.load_checkpoint(str(tmp_path / name))
        loaded = {group["weight_decay"] for group in again.engine.basic_optimizer.param_groups}
        assert loaded == {0.0, 2 * decay(SAVED - 1)}, name
        follow(again, SAVED, STEPS)
        assert found(again) == expected, name
        free(again)


@pytest.mark.parametrize("kind", [pytest.param("alps", marks=pytest.mark.slow), "obs"])
def test_calibrated_it_is_the_run_of_pats_own_loop(kind: str, tmp_path: Path) -> None:
    """On the same samples. The first batches that are enough are taken, and again at every cut; after the last nobody
    needs any."""
    config = config_of(kind)
    ours = build(config)
    one_rank.surround(ours.pruner, samples=lambda number: some_batches(config, number))
    ours.run(0, STEPS)
    expected = digest(ours)
    discard(ours)
    theirs = attached(config, samples=iter(some_batches(config, 2 * 128)))
    run(theirs, config, 0, STEPS - 1)
    theirs.engine.save_checkpoint(str(tmp_path))
    free(theirs)
    again = attached(config, num_steps=None)
    again.engine.load_checkpoint(str(tmp_path))
    again.start(STEPS)
    run(again, config, STEPS - 1, STEPS)
    assert found(again) == expected
    again.check()
    free(again)


@pytest.mark.slow
def test_a_calibrated_cut_that_is_killed_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits, without the layers and the gradients that are on disk; a checkpoint takes their place."""

    class Killed(BaseException):
        pass

    def killed_in(index: int, number: int) -> None:
        if index == 1:
            raise Killed

    def start(folder: Path | None) -> Pruning:
        return attached(config, samples=some_batches(config, 128), calibration_dir=folder)

    config, kept, measured = config_of("alps"), tmp_path / "calibration", list[int]()
    undisturbed = start(None)
    run(undisturbed, config, 0, STEPS)
    expected = found(undisturbed)
    free(undisturbed)
    first = start(kept)
    assert first.pruner is not None
    one_rank.surround(first.pruner, on_layer=killed_in)
    with pytest.raises(Killed):
        run(first, config, 0, STEPS)
    free(first)
    (cut,) = kept.iterdir()
    assert (cut / "layer-00000.safetensors").exists()

    collect = Layer.collect
    monkeypatch.setattr(
        Layer, "collect", lambda layer, *args, **keys: measured.append(layer.index) or collect(layer, *args, **keys)
    )
    again = start(kept)
    measured.clear()  # of the check at the start
    run(again, config, 0, STEPS)
    assert found(again) == expected and measured[0] == 1
    again.engine.save_checkpoint(str(tmp_path / "saved"))
    assert not kept.exists()
    free(again)


def some_batches(config: Any, number: int) -> list[dict[str, torch.Tensor]]:
    return [inputs(batch(-1 - i, 0, config), config) for i in range(number // 8)]


def test_calibrated_without_enough_samples_is_said_at_the_start() -> None:
    config = config_of("obs")
    with pytest.raises(ValueError, match="gate is calibrated on samples: give attach `samples`"):
        attached(config)
    with pytest.raises(ValueError, match="calibrated on .* samples, .* of each rank, but a rank has 8: give more"):
        attached(config, samples=some_batches(config, 8))


def test_a_folder_that_was_saved_to_before_has_this_runs_weights(tmp_path: Path) -> None:
    """Would catch: files of an earlier run, of another dtype and under the same tag, that are read as this one's."""
    for bf16 in (True, False):
        config = make_config("movement", **MODEL, engine__dtype="bf16" if bf16 else "fp32")
        pruning = attached(config, bf16=bf16)
        run(pruning, config, 0, 1 + bf16)
        pruning.engine.global_steps = SAVED
        pruning.engine.save_checkpoint(str(tmp_path), tag="last")
        assert pruning.pruner is not None
        layout = pruning.pruner.layout
        weights = {name: layout.whole(name).clone() for name in layout.parameters}
        free(pruning)
        reader = CheckpointReader(saved.directory(tmp_path).checkpoints / f"step-{SAVED:08d}")
        assert all(torch.equal(reader.weight(name), value) for name, value in weights.items())
    files = {Path(name).name for name in reader.manifest["files"]}
    optim = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    assert (tmp_path / "last" / f"bf16_{optim}").is_file()
    assert files == {"mp_rank_00_model_states.pt", optim, "pruner-00000-of-00001.safetensors"}


def test_a_client_state_that_an_export_cannot_open_is_said_when_it_is_saved(tmp_path: Path) -> None:
    pruning = attached(config_of())
    run(pruning, config_of(), 0, 1)
    pruning.engine.save_checkpoint(str(tmp_path), client_state={"loss": np.float64(1.5), "folder": tmp_path})
    reader = CheckpointReader(saved.directory(tmp_path).checkpoints / "step-00000001")
    assert all(reader.weight(name).isfinite().all() for name in reader.parameters)
    with pytest.warns(UserWarning, match="cannot open .* client_state of plain types .* Can only SETITEM for dict"):
        pruning.engine.save_checkpoint(str(tmp_path), client_state={"counts": defaultdict(int, a=1)})
    free(pruning)


def test_a_save_that_does_not_come_to_its_end_leaves_the_one_before_it_to_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: DeepSpeed's `latest`, which names the step for which the pruner's state was to come."""
    config = config_of()
    pruning = attached(config)
    run(pruning, config, 0, 1)
    pruning.engine.save_checkpoint(str(tmp_path))
    run(pruning, config, 1, 2)
    pruning.engine.save_checkpoint(str(tmp_path), save_latest=False)
    assert (tmp_path / "latest").read_text() == "global_step1"
    run(pruning, config, 2, 3)
    with monkeypatch.context() as patch:
        patch.setattr(saved.store, "save", Mock(side_effect=NotWritten("the disk is full")))
        with pytest.raises(NotWritten):
            pruning.engine.save_checkpoint(str(tmp_path))
    free(pruning)
    again = attached(config)
    again.engine.load_checkpoint(str(tmp_path))
    assert again.engine.global_steps == 1
    again.engine.load_checkpoint(str(tmp_path), tag="global_step2")
    again.engine.save_checkpoint(str(tmp_path))
    assert (tmp_path / "latest").read_text() == "global_step2"
    free(again)


def test_frozen_parameters_are_in_the_checkpoint_also_of_a_trainer_that_leaves_them_out(tmp_path: Path) -> None:
    def freeze(model: torch.nn.Module) -> None:
        model.get_input_embeddings().requires_grad_(False)  # pyright: ignore

    pruning = attached(config_of(), change=freeze)
    run(pruning, config_of(), 0, 1)
    with pytest.warns(UserWarning, match="frozen parameters are saved, too"):
        pruning.engine.save_checkpoint(str(tmp_path), exclude_frozen_parameters=True)
    reader = CheckpointReader(saved.directory(tmp_path).checkpoints / "step-00000001")
    (name,) = (name for name, p in pruning.engine.module.named_parameters() if not p.requires_grad)
    assert torch.equal(reader.weight(name), pruning.engine.module.get_parameter(name).float())
    free(pruning)


def test_a_model_of_16_bits_without_fp32_copies_is_refused() -> None:
    """DeepSpeed without bf16 and without ZeRO steps the model's own weights."""
    config = config_of().changed(engine__zero_stage=0)
    with pytest.raises(ValueError, match="trains in bfloat16, without fp32 copies .* load the model with dtype"):
        attached(config, bf16=False, change=lambda model: model.to(torch.bfloat16))


def test_a_run_that_ends_before_the_hard_phase_is_a_broken_promise() -> None:
    config = config_of()
    pruning = attached(config)
    run(pruning, config, 0, 7)
    with pytest.raises(PromiseBroken, match="never reached its hard phase"):
        pruning.check()
    free(pruning)


def test_what_is_saved_says_what_the_trainer_decided(folder: Path) -> None:
    config = frozen.load(saved.directory(folder).config)
    engine = config.engine
    assert (engine.dtype, engine.zero_stage, engine.world_size, engine.gradient_clipping) == ("bf16", 1, 1, 0.2)
    assert (config.train.num_steps, config.train.global_batch_size, config.seed) == (STEPS, 8, 0)
    assert sorted(path.name for path in (saved.directory(folder).path / "model").iterdir()) == MODEL_FILES


@pytest.mark.parametrize(
    ("bf16", "fp16", "dtype"), [(True, False, "bf16"), (False, True, "fp16"), (False, False, "fp32")]
)
def test_the_dtype_is_the_engines(bf16: bool, fp16: bool, dtype: str) -> None:
    engine = one_rank.PlainEngine(torch.nn.Linear(2, 2), None)  # type: ignore[arg-type]
    engine.bfloat16_enabled, engine.fp16_enabled = lambda: bf16, lambda: fp16  # type: ignore[method-assign]
    assert saved.facts(engine, 0.5)["engine"]["dtype"] == dtype


def test_another_run_is_not_resumed(folder: Path) -> None:
    config = config_of()
    cases: list[tuple[Any, Pruning]] = [
        ("other pruners or seed", attached(config, seed=1)),
        ("other pruners or seed", attached(config_of("magnitude"))),
        (f"of a run of {STEPS} steps, this one has {STEPS + 1}", attached(config, STEPS + 1)),
    ]
    for words, pruning in cases:
        with pytest.raises(ValueError, match=words):
            pruning.engine.load_checkpoint(str(folder))
        free(pruning)


def test_another_model_is_not_resumed(folder: Path) -> None:
    """Where DeepSpeed has loaded it without a word, or not at all."""
    pruning = attached(config_of())
    pruner: Any = pruning.pruner
    pruning.engine.global_steps = SAVED
    pruner.owner = dict.fromkeys(list(pruner.owner)[1:], "weights")
    with pytest.raises(ValueError, match="made with another pruner or optim.trainable"):
        saved.load(folder, pruning.engine, pruner, pruning.config)
    free(pruning)


def test_a_pruner_does_not_begin_in_the_middle_of_a_run() -> None:
    pruning = attached(config_of(), num_steps=None)
    pruning.engine.global_steps = 3
    with pytest.raises(ValueError, match="stands at step 3 without the pruner's state"):
        pruning.start(STEPS)
    free(pruning)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_cannot_write_keeps_no_other_waiting(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: an error that rank 0 alone raises, while the others wait for it until the job's limit."""
    written: list[int] = []
    monkeypatch.setattr(Comm, "gather", lambda self, item: [item] if rank == 0 else ["No space left on device", item])
    full = OSError(28, "No space left on device")

    def write() -> None:
        written.append(rank)
        raise full

    with pytest.raises(NotWritten, match="beside step could not be written: .*No space left on device") as refused:
        saved._by_rank_0(Comm(rank, 2), "what is beside step could not be written", write)
    assert (written, refused.value.__cause__) == (([0], full) if rank == 0 else ([], None))
