"""What the forward keeps for the backward, and what both compute, found by running the model's own code on tensors
without storage.

Counted as by Korthikanti et al. 2022 (arXiv:2205.05198): each tensor that autograd saves once, without parameters. But
it is counted by running the code and not by their formula, which holds for one architecture:

    s b h (34 + 5 a s / h) bytes a layer     GPT with dropout, 16 bits; s tokens, b sequences, h hidden size, a heads
    the sum over layers                      without checkpointing
    the layers' inputs, and one whole layer  with it (their 2 s b h L, and what is computed again)

Both include what is outside the layers: embeddings, logits, loss, and what a teacher has answered. Memory that lives
only during an operation is left out. Operations are those of matrix products and of attention, as torch counts them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.initialization import no_init_weights
from transformers.modeling_layers import GradientCheckpointingLayer

from pat.common.parameters import DTYPES
from pat.models import operations
from pat.models.trainable import choose_trainable
from pat.pruning.schedules import Ramp
from pat.schema import Config
from pat.tasks.base import DRAWN_IDS, DRAWN_WEIGHTS, ENTROPY, Task
from pat.training import teacher
from pat.training.distill import Distiller
from pat.training.sampled_kl import CachedDistiller

OUTSIDE = -1  # of all layers


@dataclass(frozen=True)
class Activations:
    """Of one micro-batch: bytes, and floating-point operations."""

    whole: int  # bytes without activation checkpointing
    checkpointed: int  # bytes with it
    layers: int  # operations of the layers' forward
    outside: int  # of the rest of it, the loss included, and of what a loss in chunks knows of its gradients by then
    training: int  # of forward and backward, nothing computed again


class _Saved:
    """Storages that autograd saves, each once in a layer, by the layer in which it was saved."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = {p.untyped_storage()._cdata for p in model.parameters()}
        self.layer, self.layers = OUTSIDE, 0
        self.inputs: dict[int, int] = {}  # of layers; storage -> bytes
        self.saved: dict[int, dict[int, int]] = {}
        self.alive: list[Any] = []  # the address of a freed storage could be reused
        self.counter = operations.counter()
        self.inside = 0  # operations of layers
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(self._leave)

    def _enter(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        self.layer, self.layers = self.layers, self.layers + 1
        self.inside -= self.counter.get_total_flops()
        for each in args:
            if isinstance(each, torch.Tensor):
                self._note(self.inputs, each)

    def _leave(self, *_: Any) -> None:
        self.layer = OUTSIDE
        self.inside += self.counter.get_total_flops()

    def _note(self, where: dict[int, int], tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self.alive.append(storage)
        where[storage._cdata] = storage.nbytes()

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """The pack hook of `saved_tensors_hooks`."""
        if tensor.untyped_storage()._cdata not in self.parameters:
            self._note(self.saved.setdefault(self.layer, {}), tensor)
        return tensor

    def activations(self) -> Activations:
        """Their bytes, and the operations so far."""
        whole = {key: size for each in self.saved.values() for key, size in each.items()}
        kept = self.saved.get(OUTSIDE, {}) | self.inputs
        again = [sum(size for key, size in each.items() if key not in kept) for each in self.saved.values()]
        checkpointed = sum(kept.values()) + max(again, default=0)
        flops = self.counter.get_total_flops()
        return Activations(sum(whole.values()), checkpointed, self.inside, flops - self.inside, training=flops)


def activations(config: Config, task: Task, hf_config: Any, micro_batch: int) -> Activations:
    """Those of `micro_batch` full sequences, with the adapters and the teacher that the config has, at full weight.

    sdpa counts as a fused kernel: without its s x s scores. A loss in chunks keeps the gradients that it computes in
    the forward, that of the output head only where it trains.
    """
    model = _on_meta(config, task, hf_config).train()
    choose_trainable(model, config)
    taught = _teacher(config, task, hf_config) if config.distill.live else None
    with FakeTensorMode(), operations.experts_in_any_dtype():
        _allocate(model)
        tokens = torch.zeros(micro_batch, config.data.max_length, dtype=torch.long)
        labels = torch.zeros(micro_batch, dtype=torch.long) if task.per_sample else tokens
        batch = {"input_ids": tokens, "labels": labels}
        loss = task.loss
        if taught:
            _allocate(taught[0])
            distiller = Distiller(taught[0], task, config.distill, Ramp(0, 0), taught[1])
            loss = partial(distiller.loss, t=0)
        elif config.distill.cache:
            drawn = tokens.unsqueeze(-1)  # one draw of each row: all are small beside the logits
            batch |= {DRAWN_IDS: drawn, DRAWN_WEIGHTS: drawn.float(), ENTROPY: tokens.float()}
            loss = partial(CachedDistiller(task, config.distill, Ramp(0, 0)).loss, t=0)
        return measure(model, partial(loss, model, batch))


def _on_meta(config: Config, task: Task, hf_config: Any) -> nn.Module:
    options = {}
    if config.model.attn_implementation is not None and "flash" not in config.model.attn_implementation:
        options["attn_implementation"] = config.model.attn_implementation
    with torch.device("meta"), no_init_weights():
        model = task.auto_model.from_config(_padded(hf_config), dtype=DTYPES[config.engine.dtype], **options)
        model.tie_weights()  # else an output matrix that trains as the embeddings would count as frozen
        return model


def _allocate(model: nn.Module) -> None:
    """Take the model from the meta device to that of the mode: peft cannot adapt weights that are fake already."""
    made: dict[torch.Tensor, torch.Tensor] = {}  # tied weights are one
    for module in model.modules():
        tables: Any = (module._parameters, module._buffers)
        for table in tables:
            for name, each in table.items():
                if each is not None:
                    made[each] = table[name] = made[each] if each in made else _empty(each)


def _empty(like: torch.Tensor) -> torch.Tensor:
    empty = torch.empty(like.shape, dtype=like.dtype)
    return nn.Parameter(empty, like.requires_grad) if isinstance(like, nn.Parameter) else empty


def _teacher(config: Config, task: Task, student: Any) -> tuple[nn.Module, list[int]]:
    """The teacher, and which of its layers are compared. ValueError for one that cannot teach this model."""
    hf_config = teacher.architecture(config, task)
    if task.labelled:
        hf_config.num_labels = student.num_labels  # known from the data only
    teacher.check_shapes(config, task, student, hf_config)
    layers = teacher.layer_map(config, student, hf_config) if config.distill.hidden_weight else []
    return _on_meta(config, task, hf_config).eval().requires_grad_(False), layers


def _padded(hf_config: Any) -> Any:
    """A copy that names a token that pads: a decoder that classifies needs one, and no tokenizer is read."""
    copied = copy.deepcopy(hf_config)
    for each in (copied, copied.get_text_config()):
        if getattr(each, "pad_token_id", None) is None:
            each.pad_token_id = 0
    return copied


def measure(model: nn.Module, loss: Callable[[], Any]) -> Activations:
    """Measure a forward that computes this loss, and its backward; the model may be real or without storage."""
    saved = _Saved(model)
    with saved.counter:
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            answer = loss()
        found = saved.activations()
        answer.backward()
    return replace(found, training=saved.counter.get_total_flops())
