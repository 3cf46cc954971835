"""The weights that a cut reads and fits, by the names of the model without adapters.

Under adapters a matrix is W + (alpha / r) B A. A cut is told the sum, and what it writes goes into W, rounded to the
engine's dtype: A and B go on from where they are, with their moments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pat.models import adapters
from pat.schema import PeftConfig
from pat.zero.layouts import ZeroLayout


@dataclass(frozen=True)
class FittedWeights:
    """Those of a model without adapters: what trains can be fitted."""

    layout: ZeroLayout

    def whole(self, name: str) -> Tensor:
        """A parameter's effective weight in its logical shape, fp32, on every rank. Collective."""
        return self.layout.whole(name)

    def narrow(self, name: str, dtype: torch.dtype) -> Tensor:
        """`whole` in another dtype. Collective."""
        return self.layout.narrow(name, dtype)

    def write(self, name: str, values: Tensor) -> None:
        """Make these values, whole, the parameter's effective weight. Collective."""
        self.layout.write(name, values)

    def can_be_fitted(self, name: str) -> bool:
        """Whether `write` changes the parameter."""
        return bool(self.layout.parameters[name].requires_grad)


@dataclass(frozen=True)
class MergedWeights(FittedWeights):
    """Those of a model with adapters: frozen weights can be fitted, too."""

    merge: adapters.Merge

    def whole(self, name: str) -> Tensor:
        """See FittedWeights."""
        saved = self._saved(name)
        added = self._added(name)
        return self.layout.whole(saved) if added is None else self.layout.whole(saved) + added

    def narrow(self, name: str, dtype: torch.dtype) -> Tensor:
        """See FittedWeights."""
        added = self._added(name)
        saved = self._saved(name)
        return self.layout.narrow(saved, dtype) if added is None else (self.layout.whole(saved) + added).to(dtype)

    def write(self, name: str, values: Tensor) -> None:
        """See FittedWeights."""
        saved = self._saved(name)
        added = self._added(name)
        if self.layout.parameters[saved].requires_grad:  # a module that trains whole
            self.layout.write(saved, values)
        else:
            self.layout.fill_frozen(saved, values if added is None else values - added)

    def can_be_fitted(self, name: str) -> bool:
        """See FittedWeights."""
        return True

    def _saved(self, name: str) -> str:
        """The parameter's name in the model with adapters."""
        adapted = adapters.adapted_name(name)
        return adapted if adapted in self.layout.parameters else name

    def _added(self, name: str) -> Tensor | None:
        """What an adapter adds, fp32, as the matrix is stored; None where no adapter is on it. Collective."""
        _, a, b = adapters.factors(name)
        if not name.endswith(".weight") or a not in self.layout.parameters:
            return None
        return self.merge.delta(name, self.layout.whole(a), self.layout.whole(b))


def fitted_weights(
    layout: ZeroLayout,
    cfg: PeftConfig,
    stock: nn.Module,  # the model without adapters
) -> FittedWeights:
    """As the model has adapters, or none."""
    return FittedWeights(layout) if cfg.r is None else MergedWeights(layout, adapters.Merge.of(cfg, stock))
