"""What a real run holds, sends and saves, beside what `pat plan` says of it."""

from __future__ import annotations

import gc
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from pat.checkpoint import store
from pat.models import trainable
from pat.planning import checkpoints, memory, report, traffic
from pat.planning.memory import Layout
from pat.planning.shapes import shapes_of
from pat.pruning.pruner import Pruner
from tests.allocations import peak
from tests.distributed import harness
from tests.distributed.harness import LLAMA, Trained, main

SIZE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "vocab_size": 1000,
    "num_hidden_layers": 4,
    "head_dim": 64,
}
BUCKET = 2_000_000  # elements of the reduction: not as large as the rest together
SMALL = 200_000  # smaller than the table of tokens
COLLECTIVES = ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor")


def storages(tensors: Iterable[Any]) -> dict[int, tuple[int, str]]:
    """Of each storage: bytes, and what one tensor in it looks like."""
    found = {}
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = (storage.nbytes(), f"{tensor.dtype} {tuple(tensor.shape)}")
    return found


def alive() -> dict[int, tuple[int, str]]:
    """All that Python can reach. A tensor that dies in one collection can leave its graph to the next."""
    while gc.collect():
        pass
    return storages(each for each in gc.get_objects() if type(each) is not type and isinstance(each, torch.Tensor))


def count_traffic() -> Counter[str]:
    """From now on: bytes that DeepSpeed's backend is given, whole tensors, by collective."""
    from deepspeed.comm.torch import TorchBackend

    sent: Counter[str] = Counter()
    for name in COLLECTIVES:
        plain = getattr(TorchBackend, name)

        def counted(self: Any, *args: Any, name: str = name, plain: Any = plain, **kwargs: Any) -> Any:
            sizes = [t.numel() * t.element_size() for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
            sent[name] += max(sizes)
            return plain(self, *args, **kwargs)

        setattr(TorchBackend, name, counted)
    return sent


def sent_by_ring(sent: Counter[str], ranks: int) -> float:
    """Bytes that one rank of a ring sends for them."""
    return (
        (2 * sent["all_reduce"] + sent["all_gather_into_tensor"] + sent["reduce_scatter_tensor"]) * (ranks - 1) / ranks
    )


def settled(known: set[int]) -> dict[int, tuple[int, str]]:
    """`alive`, once gloo's threads have let go of what they reduced: on a busy machine a moment after the reduction."""
    for _ in range(50):
        found = alive()
        if all(size < 1 << 20 for key, (size, _) in found.items() if key not in known):
            break
        time.sleep(0.1)
    return found


def total(found: dict[int, tuple[int, str]]) -> int:
    """Their bytes."""
    return sum(size for size, _ in found.values())


def parts(trained: Trained) -> dict[str, dict[int, tuple[int, str]]]:
    """Storages by what they are for."""
    layout, zero = trained.pruner.layout, trained.pruner.layout.zero
    weights = [p.data for p in layout.parameters.values()] + [
        getattr(p, "ds_tensor", None) for p in layout.parameters.values()
    ]
    optimizer = [s.flat.data for s in layout.shards] + [t for s in layout.base.state.values() for t in s.values()]
    waiting = getattr(zero, "averaged_gradients", {})
    gradients = [g for group in waiting.values() for g in group or ()] + [p.grad for p in layout.parameters.values()]
    states = [s for weight_pruner in trained.pruner.weight_pruners for s in weight_pruner.states]
    pruner = [t for s in states for t in (s.keep, s.score, s.dense)]
    found = {"weights": weights, "optimizer": optimizer, "gradients": gradients, "pruner": pruner}
    return {name: storages(tensors) for name, tensors in found.items()}


class Gradients:
    """The most bytes of gradients at any one moment of a backward, without DeepSpeed's buckets."""

    def __init__(self, trained: Trained) -> None:
        self.layout, self.most = trained.pruner.layout, 0
        for param in self.layout.parameters.values():
            param.register_post_accumulate_grad_hook(self._note)  # after DeepSpeed's

    def _note(self, _param: torch.Tensor) -> None:
        zero = self.layout.zero
        held = [p.grad for p in self.layout.parameters.values()]
        held += [getattr(zero, name, None) for name in ("grads_in_partition", "grad_partitions_flat_buffer")]
        for name in ("averaged_gradients", "all_grad_tensors"):
            held += [g for group in (getattr(zero, name, None) or {}).values() for g in group or ()]
        buckets = [bucket.buffer for bucket in getattr(zero, "ipg_buckets", {}).values()]
        known = storages(t for buffer in buckets for t in (buffer if isinstance(buffer, list) else [buffer]))
        self.most = max(self.most, total({key: each for key, each in storages(held).items() if key not in known}))


def settings(stage: int, bucket: int, accumulation: int = 2, **keys: Any) -> Any:
    """A config; `keys` of engine.deepspeed's `zero_optimization`, or `offload`."""
    offload = keys.pop("offload", False)
    zero = {"reduce_bucket_size": bucket, "stage3_param_persistence_threshold": 1000, **keys}
    config = harness.make_config(
        "movement",
        engine__zero_stage=stage,
        engine__offload_optimizer=offload,
        engine__deepspeed={"zero_optimization": zero},
        model__config=SIZE,
    )
    return config.changed(
        train__micro_batch_size=config.train.global_batch_size // dist.get_world_size() // accumulation
    )


def expected(config: Any) -> tuple[Any, Layout]:
    """Shapes and layout as `pat plan` finds them."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**LLAMA.to_dict() | SIZE))
    trainable.freeze(model, config.optim.trainable)
    pruner = Pruner(config)
    pruner.attach(model)
    layout, _ = report.layout_of(config, dist.get_world_size(), config.engine.zero_stage)
    return shapes_of(config, model, pruner), layout


def backwards(trained: Trained, step: int) -> None:
    """All of a step, which is left to the pruner."""
    accumulation = trained.engine.gradient_accumulation_steps()
    for micro in range(accumulation):
        trained.engine.backward(trained.loss(harness.batch(step, micro, trained.config), step))
        if micro + 1 < accumulation:
            trained.engine.step()


def checks(args: list[str]) -> dict[str, Any]:
    """{what: [measured, planned]} of one ZeRO stage, bytes; and what is alive that no part explains, as text."""
    stage, before = int(args[0]), alive()
    config = settings(stage, BUCKET)
    shapes, layout = expected(config)
    plan, size = memory.memory(shapes, layout), checkpoints.checkpoint_size(shapes, layout)
    left = memory.gradients(shapes, layout)[1]
    sent, trained, found, others = count_traffic(), harness.build(config), {}, {}
    gradients, allocated = Gradients(trained), 0
    with tempfile.TemporaryDirectory() as folder:
        root, at = Path(harness.from_rank_0(folder)), 0
        for phase, step in (("soft", 5), ("hard", 10)):
            trained.run(at, step)
            at = step + 1
            sent.clear()
            if phase == "soft":
                with tempfile.TemporaryDirectory() as traces:
                    allocated = peak(partial(backwards, trained, step), Path(traces))
            else:
                backwards(trained, step)
            measured = parts(trained)
            explained = set[int]().union(*measured.values())
            there = alive() if stage == 3 else settled(explained | set(before))  # at ZeRO 3 the buffer stays
            held = {key: n for key, n in there.items() if key not in before}
            trained.pruner.step(step)
            state = plan.pruner_soft if phase == "soft" else plan.pruner_hard
            planned = {"weights": plan.weights, "optimizer": plan.optimizer, "gradients": left, "pruner": state}
            found |= {f"{name}, {phase}": [total(measured[name]), planned[name]] for name in planned}
            resident = memory.bucket_bytes(layout) if stage == 3 else 0  # at ZeRO 1 and 2 it goes with the backward
            found[f"all that is alive, {phase}"] = [total(held), sum(planned.values()) + resident]
            others[phase] = sorted((each for key, each in held.items() if key not in explained), reverse=True)[:20]
            if phase == "hard":  # no selection in it
                found["sent"] = [sent_by_ring(sent, layout.ranks), traffic.bytes_per_step(shapes, layout)]
            path = store.save(trained.engine, trained.pruner, root, at, {}, {})
            on_disk = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
            found[f"checkpoint, {phase}"] = [on_disk, getattr(size, phase)]
        dist.barrier()
    found["gradients in a backward"] = [gradients.most, plan.gradients]
    # What was there before the backward is not allocated in it: at ZeRO 3 the shard's gradients and the bucket.
    known = plan.gradients + memory.bucket_bytes(layout) if stage == 3 else 0
    gloo = 4 * BUCKET if stage == 3 else 0  # of what it scatters it makes a copy
    most = plan.gradients + plan.reduction + max(plan.gathered, plan.step) - known + gloo
    found |= others_of(stage)
    late = 4 * min(shapes.trained, BUCKET if stage else shapes.trained)  # that gloo's threads have not let go of yet
    return {"bytes": found, "allocated": [allocated, most, late], "others": others}


def others_of(stage: int) -> dict[str, list[int]]:
    """Gradients in a backward of other settings, of which some leave a parameter larger than the bucket."""
    variants: dict[str, dict[str, Any]] = {
        "offload": {"offload": True, "bucket": SMALL},
        "overlap": {"overlap_comm": True, "bucket": SMALL, "accumulation": 1},
        "small bucket": {"bucket": SMALL},
    }
    found = {}
    for name, keys in variants.items() if stage in (1, 2) else ():
        config = settings(stage, **keys)
        trained = harness.build(config)
        gradients = Gradients(trained)
        trained.run(0, 1)
        found[f"gradients in a backward, {name}"] = [gradients.most, memory.memory(*expected(config)).gradients]
        harness.discard(trained)
    return found


if __name__ == "__main__":
    main(checks)
