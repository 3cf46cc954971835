"""Whether the model's class calls its layers so that a calibration can walk over them; no weights, no ranks."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers.initialization import no_init_weights

from pat.models.build import quiet
from pat.pruning.calibration.calls import NotCalibrated
from pat.pruning.calibration.skeleton import stack_of
from pat.pruning.calibration.walk import Walk
from pat.pruning.pruner import Pruner

TOKENS = 6  # of the second of two rows; the first has one more


def check(model: Any, pruner: Pruner) -> None:
    """Raise NotCalibrated for a model whose layers cannot be calibrated one by one: its own forward around them runs
    once, on a few made-up tokens. What only a device can run is left to the ranks."""
    matrices = [list(each.calibration.shapes) for each in pruner.pruners if each.calibration]
    if not matrices:
        return
    with init_empty_weights(), no_init_weights(), quiet():
        alike = type(model)(model.config)
    ids = torch.randint(1, model.config.get_text_config().vocab_size, (2, TOKENS + 1), generator=torch.Generator())
    mask = torch.ones_like(ids)
    mask[1, TOKENS:] = 0
    shapes = {name: param.shape for name, param in alike.named_parameters(remove_duplicate=False)}

    def same(name: str) -> Tensor:
        return torch.full((), 0.5).expand(shapes[name])

    for names in matrices:
        try:
            Walk(alike, same, stack_of(alike, names), [{"input_ids": ids, "attention_mask": mask}], torch.float32)
        except NotCalibrated as error:
            if error.__cause__ is None:
                raise
