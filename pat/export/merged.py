"""A checkpoint of a model with adapters, read as the model without them: W + (alpha / r) B A under the stock name."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pat.checkpoint.reader import CheckpointReader
from pat.models import adapters
from pat.schema import PeftConfig


class MergedReader(CheckpointReader):
    """A CheckpointReader by stock names. An adapted weight counts as frozen: it is computed whole, in fp32."""

    def __init__(self, trained: CheckpointReader, cfg: PeftConfig, stock: nn.Module) -> None:
        """`trained`: the checkpoint itself; `stock`: the model without adapters, on the meta device."""
        super().__init__(trained.dir, verify=False)
        self.trained = trained
        self._merge = adapters.Merge.of(cfg, stock)
        self._saved: dict[str, str] = {}  # stock name -> name in the checkpoint
        merged: dict[str, dict[str, Any]] = {}
        for name, parameter in self.parameters.items():
            new = adapters.stock_name(name)
            if new is not None:
                self._saved[new] = name
                merged[new] = parameter | {"name": new}
        self.parameters = merged

    def buffers(self) -> list[str]:
        """Names of the persistent buffers."""
        return self.trained.buffers()

    def frozen(self, name: str) -> Tensor:
        """A frozen parameter or persistent buffer, whole; fp32 where an adapter is merged into it."""
        saved = self._saved.get(name, name)
        if saved == name:
            return self.trained.frozen(name)
        if saved.endswith(".bias"):
            return self.trained.frozen(saved)
        base, a, b = (self.trained.weight(each) for each in adapters.factors(name))
        return base + self._merge.delta(name, a, b)
