"""What the forward keeps for the backward, found by running the model's own code on tensors without storage.

Counted as by Korthikanti et al. 2022 (arXiv:2205.05198): each tensor that autograd saves once, without parameters. But
it is counted by running the code and not by their formula, which holds for one architecture:

    s b h (34 + 5 a s / h) bytes a layer     GPT with dropout, 16 bits; s tokens, b sequences, h hidden size, a heads
    the sum over layers                      without checkpointing
    the layers' inputs, and one whole layer  with it (their 2 s b h L, and what is computed again)

Both include what is outside the layers: embeddings, logits, loss. Memory that lives only during an operation is left
out.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.initialization import no_init_weights
from transformers.modeling_layers import GradientCheckpointingLayer

from pat.common.parameters import DTYPES
from pat.schema import Config
from pat.tasks.base import Task


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch."""

    whole: int  # without activation checkpointing
    checkpointed: int


class _Saved:
    """Bytes of the storages that autograd saves, each once, by the layer in which it was saved."""

    def __init__(self, model: nn.Module) -> None:
        self.known = {p.untyped_storage()._cdata for p in model.parameters()}
        self.layer = -1  # outside of all
        self.inputs: list[int] = []
        self.bytes: dict[int, int] = {}
        self.alive: list[Any] = []  # the address of a freed storage could be reused
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(self._leave)

    def _enter(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        self.layer = len(self.inputs)
        self.inputs.append(sum(x.numel() * x.element_size() for x in args if isinstance(x, torch.Tensor)))

    def _leave(self, *_: Any) -> None:
        self.layer = -1

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """The pack hook of `saved_tensors_hooks`."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.alive.append(storage)
            self.bytes[self.layer] = self.bytes.get(self.layer, 0) + storage.nbytes()
        return tensor


def activations(config: Config, task: Task, hf_config: Any, micro_batch: int, head_trains: bool = True) -> Activations:
    """Those of `micro_batch` full sequences. sdpa counts as a fused kernel: without its s x s scores.

    A loss in chunks keeps the gradients that it computes in the forward, that of the output head only where it trains.
    """
    dtype, options = DTYPES[config.engine.dtype], {}
    if config.model.attn_implementation is not None and "flash" not in config.model.attn_implementation:
        options["attn_implementation"] = config.model.attn_implementation
    hf_config = _padded(hf_config)
    with FakeTensorMode(), no_init_weights():
        model = task.auto_model.from_config(hf_config, dtype=dtype, **options).train()
        if task.chunk_tokens:
            cast(Any, model).get_output_embeddings().requires_grad_(head_trains)
        tokens = torch.zeros(micro_batch, config.data.max_length, dtype=torch.long)
        labels = torch.zeros(micro_batch, dtype=torch.long) if task.per_sample else tokens
        return measure(model, task, {"input_ids": tokens, "labels": labels})


def _padded(hf_config: Any) -> Any:
    """A copy that names a token that pads: a decoder that classifies needs one, and no tokenizer is read."""
    copied = copy.deepcopy(hf_config)
    for each in (copied, copied.get_text_config()):
        if getattr(each, "pad_token_id", None) is None:
            each.pad_token_id = 0
    return copied


def measure(model: nn.Module, task: Task, batch: dict[str, torch.Tensor]) -> Activations:
    """Measure a training forward of this batch; the model may be real or without storage."""
    saved = _Saved(model)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        task.loss(model, batch)
    layers = [numbytes for layer, numbytes in saved.bytes.items() if layer >= 0]
    outside = saved.bytes.get(-1, 0)
    return Activations(outside + sum(layers), outside + sum(saved.inputs) + max(layers, default=0))
