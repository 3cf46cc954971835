"""What a real run holds, sends and saves, beside what `pat plan` says of it."""

from __future__ import annotations

import gc
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from pat.checkpoint import store
from pat.models import trainable
from pat.planning import checkpoints, memory, traffic
from pat.planning.memory import Layout
from pat.planning.shapes import shapes_of
from pat.pruning.pruner import Pruner
from pat.zero import engine as ds
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


def expected(config: Any, stage: int) -> tuple[Any, Layout]:
    """Shapes and layout as `pat plan` finds them."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**LLAMA.to_dict() | SIZE))
    trainable.freeze(model, config.optim.trainable)
    pruner = Pruner(config)
    pruner.attach(model)
    layout = Layout(dist.get_world_size(), stage, accumulation=2)
    return shapes_of(config, model, pruner), memory.with_user_keys(
        layout, ds.deepspeed_config(config)["zero_optimization"]
    )


def checks(args: list[str]) -> dict[str, Any]:
    """{what: [measured, planned]} of one ZeRO stage, bytes; and what is alive that no part explains, as text."""
    stage, before = int(args[0]), alive()
    keys = {"zero_optimization": {"reduce_bucket_size": BUCKET, "stage3_param_persistence_threshold": 1000}}
    config = harness.make_config("movement", engine__zero_stage=stage, engine__deepspeed=keys, model__config=SIZE)
    config = config.changed(train__micro_batch_size=config.train.global_batch_size // dist.get_world_size() // 2)
    shapes, layout = expected(config, stage)
    plan, size = memory.memory(shapes, layout), checkpoints.checkpoint_size(shapes, layout)
    sent, trained, found, others = count_traffic(), harness.build(config), {}, {}
    with tempfile.TemporaryDirectory() as folder:
        root, at = Path(harness.from_rank_0(folder)), 0
        for phase, step in (("soft", 5), ("hard", 10)):
            trained.run(at, step)
            at = step + 1
            sent.clear()
            for micro in range(2):
                trained.engine.backward(trained.loss(harness.batch(step, micro, config), step))
                if micro == 0:
                    trained.engine.step()
            measured = parts(trained)
            explained = set[int]().union(*measured.values())
            there = alive() if stage == 3 else settled(explained | set(before))  # at ZeRO 3 the buffer stays
            held = {key: n for key, n in there.items() if key not in before}
            trained.pruner.step(step)
            state = plan.pruner_soft if phase == "soft" else plan.pruner_hard
            planned = {
                "weights": plan.weights,
                "optimizer": plan.optimizer,
                "gradients": plan.gradients,
                "pruner": state,
            }
            found |= {f"{name}, {phase}": [total(measured[name]), planned[name]] for name in planned}
            resident = plan.reduction if stage == 3 else 0  # at ZeRO 1 and 2 the buffer goes when the backward ends
            found[f"all that is alive, {phase}"] = [total(held), sum(planned.values()) + resident]
            others[phase] = sorted((each for key, each in held.items() if key not in explained), reverse=True)[:20]
            if phase == "hard":  # no selection in it
                found["sent"] = [sent_by_ring(sent, layout.ranks), traffic.bytes_per_step(shapes, layout)]
            path = store.save(trained.engine, trained.pruner, root, at, {}, {})
            on_disk = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
            found[f"checkpoint, {phase}"] = [on_disk, getattr(size, phase)]
        dist.barrier()
    return {"bytes": found, "others": others}


if __name__ == "__main__":
    main(checks)
