"""Which tokens of the current micro-batch are not padding: only these count in statistics.

The attention mask is read at the base model's forward, which all heads and trainers call. A batch without a mask has
no padding, unless `pat.tasks.padding` says where it is.

# B rows of a micro-batch, T tokens
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from pat.tasks import padding


class RealTokens:
    """`real` is of the last training forward: (B, T) bool; None: all tokens are."""

    def __init__(self, model: nn.Module) -> None:
        base: Any = model.base_model
        self.real: Tensor | None = None
        self.signature = inspect.signature(base.forward)
        self.handle = base.register_forward_pre_hook(self._see, with_kwargs=True)

    def remove(self) -> None:
        """Take the hook off."""
        self.handle.remove()

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not module.training:
            return
        mask = kwargs.get("attention_mask")
        if mask is None and args:
            mask = self.signature.bind_partial(*args).arguments.get("attention_mask")
        if mask is None:
            mask = padding.current()
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
            given = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(
                f"The model got an attention_mask of {given}, which does not say which tokens are padding: give one of "
                "shape (batch, tokens), or take a gate method that ranks by gradients (taylor, fisher, movement)."
            )
        self.real = None if mask is None else mask.bool()
