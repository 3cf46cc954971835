"""Distillation on ranks: the same bits on every layout and after an interruption, a sharded teacher, the whole loop."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from pat import train
from pat.config import compose, frozen
from pat.models import tokenizers
from pat.models.build import build_model
from pat.schema import DistillConfig
from pat.tasks import base
from pat.training import logit_cache_run, preflight, teacher
from pat.training import setup as setup
from pat.training.distill import Distiller
from pat.zero import engine as ds
from tests.distributed.harness import (
    LLAMA,
    STEPS,
    Trained,
    build,
    discard,
    from_rank_0,
    main,
    make_config,
    text,
    undisturbed_and_interrupted,
)
from tests.distributed.layouts import layouts

LAYOUTS = layouts(
    "zero1",
    "zero2",
    "zero3",
    "zero3 nothing persistent",
    "zero2 offload",
    "zero3 offload",
    "zero0",
    "zero3 accumulation",
)
QUICK = ("zero1", "zero3 nothing persistent")
HIDDEN = ("zero1", "zero2", "zero3", "zero3 nothing persistent")
LAYERS = 3  # of the teacher; the student has 2
TASK = base.build({"name": "causal_lm"})


def save_teacher(folder: Path, seed: int) -> str:
    """A random Llama of the harness's shape with one layer more, whose answers are far from uniform. Collective."""
    if dist.get_rank() == 0:
        torch.manual_seed(seed)
        shape = LLAMA.to_dict() | {"num_hidden_layers": LAYERS, "pad_token_id": 0, "initializer_range": 0.3}
        LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder)
    dist.barrier()
    return str(folder)


@dataclass
class Distilled(Trained):
    """An engine, its pruner and a teacher."""

    distiller: Distiller

    def loss(self, tokens: torch.Tensor, t: int) -> torch.Tensor:
        """With the teacher's answers."""
        return self.distiller.loss(self.engine, {"input_ids": tokens, "labels": tokens}, t)

    def answers(self) -> torch.Tensor:
        """The teacher's logits on tokens that no step sees. Collective at ZeRO 3."""
        with torch.no_grad():
            return self.distiller.teacher(input_ids=text(7, 4)).logits

    def teacher_elements(self) -> dict[str, int]:
        """Elements of the teacher on this rank: in its shards, and in whole parameters that are there now."""
        params = list(getattr(self.distiller.teacher, "module", self.distiller.teacher).parameters())
        return {
            "sharded": sum(p.ds_tensor.numel() for p in params if hasattr(p, "ds_tensor")),
            "whole": sum(p.numel() for p in params),
            "all": sum(getattr(p, "ds_numel", p.numel()) for p in params),
        }


def distilled(path: str, hidden_weight: float = 0.0, **overrides: Any) -> Distilled:
    """The tiny model that learns from the teacher of a folder: weights rise from step 1 to step 4."""
    config = make_config("movement", **overrides)
    trained = build(config)
    distill = DistillConfig(teacher=path, weight=0.5, temperature=2.0, hidden_weight=hidden_weight, start=1, end=4)
    config = config.changed(distill=distill)
    tokenizer, device = tokenizers.byte_tokenizer(), trained.engine.device
    ds_config = ds.deepspeed_config(config)
    found = teacher.build(config, TASK, tokenizer, trained.engine.module.config, ds_config, device)
    return Distilled(config, trained.engine, trained.pruner, found)


def parity(names: Sequence[str]) -> dict[str, Any]:
    """{layout: hashes, logged line, teacher}, and the masks without a teacher."""
    said: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = save_teacher(Path(from_rank_0(folder)), seed=1)
        direct = LlamaForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
        with torch.no_grad():
            expected = direct(input_ids=text(7, 4)).logits
        for layout in names:
            trained = distilled(path, **LAYOUTS[layout])
            before = trained.answers()
            trained.run(0, STEPS)
            trained.pruner.check_finished()
            elements = trained.teacher_elements()
            every = trained.pruner.layout.world.gather(elements)
            said[layout] = trained.result() | {
                "line": trained.distiller.logged(trained.pruner.layout.world),
                "teacher": every,
                "as saved": torch.equal(before, expected),
                "unchanged": torch.equal(before, trained.answers()),
            }
            discard(trained)
        said["hidden"] = _hidden(path, [name for name in HIDDEN if name in names])
        dist.barrier()
    alone = build(make_config("movement", **LAYOUTS["zero2"]))
    alone.run(0, STEPS)
    said["no teacher"] = alone.result()
    discard(alone)
    return said


def _hidden(path: str, names: Sequence[str]) -> dict[str, Any]:
    """{layout: hashes, logged line} with hidden states compared, too."""
    said: dict[str, Any] = {}
    for layout in names:
        trained = distilled(path, 0.1, **LAYOUTS[layout])
        trained.run(0, STEPS)
        said[layout] = trained.result() | {"line": trained.distiller.logged(trained.pruner.layout.world)}
        discard(trained)
    return said


def interrupted() -> dict[str, Any]:
    """{layout: [undisturbed, interrupted in the ramp, the soft and the hard phase]} digests at the end."""
    said: dict[str, Any] = {}
    for layout in ("zero1", "zero2", "zero3"):
        with tempfile.TemporaryDirectory() as folder:
            path = save_teacher(Path(from_rank_0(folder)), seed=1)
            taught = partial(distilled, path, 0.1, **LAYOUTS[layout])
            said[layout] = undisturbed_and_interrupted(taught, (3, 5, 10))
    return said


def loop() -> dict[str, Any]:
    """The parity recipe without and with a teacher, by `pat.train` itself; then again after the teacher changed."""
    said: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(from_rank_0(folder))
        path = root / "teacher"
        with_teacher = [f"distill.teacher={path}", "distill.weight=0.5", "distill.end=10"]
        for name, overrides in {"off": [], "on": with_teacher, "zero3": [*with_teacher, "engine=zero3"]}.items():
            config = _composed(f"run.dir={root / name}", f"data.cache_dir={root / 'cache'}", *overrides)
            if name == "on":
                _save_parity_teacher(path, config, seed=1)
            _train(config, root / name)
            lines = [json.loads(line) for line in (root / name / "metrics.jsonl").read_text().splitlines()]
            logged = [
                {k: v for k, v in line.items() if k.startswith("distill/")} for line in lines if "train/loss" in line
            ]
            summary = json.loads((root / name / "summary.json").read_text())
            said[name] = {"lines": logged} | {key: summary[key] for key in ("mask_sha256", "weights_sha256", "teacher")}
        _save_parity_teacher(path, config, seed=2)
        try:
            _train(config, root / "zero3")
            said["changed"] = "was not refused"
        except ValueError as error:
            said["changed"] = str(error)
        dist.barrier()
    return said


def cached() -> dict[str, Any]:
    """The parity recipe with a cache of drawn answers: at ZeRO 2, at ZeRO 3, and interrupted after its checkpoint."""
    said: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(from_rank_0(folder))
        data, cache = f"data.cache_dir={root / 'cache'}", f"distill.cache={root / 'drawn'}"
        taught = ["distill.weight=0.5", "distill.end=10", data]
        config = _composed(f"run.dir={root / 'made'}", *taught, cache, f"distill.teacher={root / 'teacher'}")
        _save_parity_teacher(root / "teacher", config, seed=1)
        if dist.get_rank() == 0:
            made = logit_cache_run.make(config, 30, shard_tokens=100 * 64)
            said["cache"] = {"sha256": made.sha256, "shards": len(made.manifest["shards"])}
        dist.barrier()
        stages = {"live": [f"distill.teacher={root / 'teacher'}"], "zero2": [cache], "zero3": [cache, "engine=zero3"]}
        for name, overrides in (stages | {"interrupted": [cache]}).items():
            config = _composed(f"run.dir={root / name}", *taught, *overrides)
            if name == "interrupted":
                _train(config, root / name, until=15)
            _train(config, root / name)
            lines = [json.loads(line) for line in (root / name / "metrics.jsonl").read_text().splitlines()]
            summary = json.loads((root / name / "summary.json").read_text())
            said[name] = {"kl": [line["distill/kl"] for line in lines if "distill/kl" in line]} | {
                key: summary[key] for key in ("mask_sha256", "weights_sha256", "teacher", "metrics")
            }
        dist.barrier()
    return said


def _composed(*overrides: str) -> Any:
    found: list[Any] = []
    common = ["recipe=parity", "logger=none", "logger.progress=none", "engine.kernels=eager"]
    compose.compose([*common, *overrides], lambda config: found.append(config) or 0)
    return found[0]


def _train(config: Any, run_dir: Path, until: int | None = None) -> None:
    """What a rank does; it is cut off before step `until`. Collective."""
    if dist.get_rank() == 0:
        frozen.freeze(config, run_dir)
        preflight.prepare(config, run_dir)
    dist.barrier()
    built = setup.build(run_dir)
    batches = built.feed.batches

    def watched(t: int) -> list[Any]:
        if t == until:
            raise InterruptedError
        return batches(t)

    built.feed.batches = watched
    with contextlib.suppress(InterruptedError):
        train.fit(built)
    built.tracker.close()
    discard(Trained(config, built.engine, built.pruner))
    dist.barrier()


def _save_parity_teacher(path: Path, config: Any, seed: int) -> None:
    """The recipe's model with a layer more and other weights. Collective."""
    if dist.get_rank() == 0:
        torch.manual_seed(seed)
        shape = config.model.config | {"num_hidden_layers": LAYERS, "initializer_range": 0.3}
        bigger = config.model.changed(config=shape)
        tokenizer = tokenizers.byte_tokenizer()
        build_model(bigger, TASK, torch.float32, tokenizer=tokenizer).save_pretrained(path)
        tokenizer.save_pretrained(path)
    dist.barrier()


def checks(which: list[str]) -> dict[str, Any]:
    """The layouts of the quick set; a cache; or all layouts, interruptions and the loop."""
    if which == ["quick"]:
        return {"parity": parity(QUICK)}
    if which == ["cached"]:
        return cached()
    return {"parity": parity(list(LAYOUTS)), "interrupted": interrupted(), "loop": loop()}


if __name__ == "__main__":
    main(checks)
