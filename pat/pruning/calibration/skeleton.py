"""A model without its weights, for the walk over its layers: where these are, and an empty copy of the whole."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pat.common.parameters import is_conv1d
from pat.models.experts import are_experts, leaves, parameter_of
from pat.pruning.calibration.calls import OTHERWISE, NotCalibrated

_LAYER = re.compile(r"(.*?)\.(\d+)\..*")


def stack_of(model: nn.Module, matrices: Sequence[str]) -> str:
    """The path of the module list that holds all these matrices. ValueError where some lie elsewhere."""
    stacks: dict[str, str] = {}
    for name in matrices:
        match = _LAYER.fullmatch(name)
        inside = match is not None and isinstance(model.get_submodule(match[1]), nn.ModuleList)
        owner = model.get_submodule(name.rpartition(".")[0])
        is_map = isinstance(owner, nn.Linear) or is_conv1d(owner)
        is_map |= are_experts(owner) and parameter_of(name).rpartition(".")[2] in leaves(owner)
        if match is None or not inside or not is_map:
            raise NotCalibrated(
                f"{name} is not a weight of a linear map inside the model's layers, so what goes into it cannot be "
                f"measured: exclude it (pruners.NAME.exclude), or {OTHERWISE}"
            )
        stacks.setdefault(match[1], name)
    if len(stacks) > 1:
        raise NotCalibrated(
            f"{' and '.join(stacks.values())} lie in different lists of layers, of which one can be calibrated: "
            f"exclude the others (pruners.NAME.exclude), or {OTHERWISE}"
        )
    return next(iter(stacks))


def skeleton_of(model: nn.Module) -> nn.Module:
    """The same model on the meta device, in evaluation mode, with its real buffers."""
    made: Any = type(model)
    with torch.device("meta"):
        skeleton = made(copy.deepcopy(model.config))
        skeleton.tie_weights()
    for name, buffer in model.named_buffers():
        owner, _, leaf = name.rpartition(".")
        module = skeleton.get_submodule(owner)
        module.register_buffer(leaf, buffer.detach(), persistent=leaf not in module._non_persistent_buffers_set)
    return skeleton.eval()


def aliases(model: nn.Module) -> dict[str, list[str]]:
    """All names of each parameter, which a tied one has several of, by every one of them."""
    names: dict[int, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(param), []).append(name)
    return {name: group for group in names.values() for name in group}
