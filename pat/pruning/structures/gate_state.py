"""The state of gates, and how it is saved: the same on every rank.

# U units over all sites of a pruner
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class GateState:
    """All that a resume needs besides the weights."""

    z: Tensor  # (U,) fp32, for a ranked method, those of the coming step
    keep: Tensor  # (U,) bool
    score: Tensor  # (U,) fp32: evidence, or the learned a
    begun: int = -1  # the last step whose forward was prepared
    hardened: bool = False
    folded: bool = False  # z is in the weights

    def tensors(self) -> dict[str, Tensor]:
        """What is saved as tensors."""
        return {"z": self.z, "keep": self.keep.to(torch.uint8), "score": self.score}

    def shared(self) -> dict[str, Any]:
        """What the manifest holds."""
        return {"hardened": self.hardened, "folded": self.folded, "begun": self.begun}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], shared: Mapping[str, Any], pruner: str, num_units: int) -> GateState:
        """What was saved of a pruner. ValueError where it is of other structures."""
        if "keep" not in tensors or tensors["keep"].numel() != num_units:
            raise ValueError(
                f"the checkpoint has no gates of pruner {pruner} for {num_units} units: it was made with other "
                "structures; use another run.dir or run.resume=never"
            )
        folded = shared.get("folded", shared["hardened"])  # checkpoints from before there were adapters lack it
        flags = tensors["keep"].bool()
        return cls(tensors["z"], flags, tensors["score"], shared["begun"], shared["hardened"], folded)
