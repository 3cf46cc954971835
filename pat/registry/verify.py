"""Proof that a version is what was added: its files' hashes, a load by stock code, the export's logits, zeros under
masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from pat.export import masks
from pat.export.loader import load
from pat.export.recorded import difference, token_ids
from pat.export.verify import logits, probe
from pat.models.build import UNFIT
from pat.registry import store
from pat.registry.variant import EXPORT, read_export


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    passed: bool
    said: str


def verify(folder: Path, record: Mapping[str, Any]) -> list[Check]:
    """All checks of a version. Nothing is loaded from files that have changed since they were added."""
    wrong = store.faults(folder, record["files"])
    size = sum(said["bytes"] for said in record["files"].values())
    said = f"{len(record['files'])} files, {size:,} bytes: sha256 as recorded"
    checks = [Check("files", not wrong, "; ".join(wrong[:3]) or said)]
    if wrong:
        return checks
    try:
        model, report = load(folder, dtype="auto", output_loading_info=True)
    except (OSError, SafetensorError, RuntimeError, *UNFIT) as error:
        return [*checks, Check("load", False, (str(error).strip() or type(error).__name__).splitlines()[0])]
    checks += [_loaded(model, report), _zeros(folder, model)]
    counted = record["figures"].get("nonzero_parameters")
    if counted is not None:
        found = sum(int(torch.count_nonzero(p)) for p in model.parameters())
        checks.append(Check("count", found == counted, f"{found:,} weights are not 0, the export counted {counted:,}"))
    return [*checks, _logits(folder, model)]


def _loaded(model: Any, report: Mapping[str, Any]) -> Check:
    """Whether the class that config.json names takes exactly the tensors that are there."""
    lacking = {key: sorted(map(str, report[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    bad = [f"{key.replace('_', ' ')}: {', '.join(names[:3])}" for key, names in lacking.items() if names]
    by = "pat.export.load" if getattr(model.config, "pat_widths", None) else "stock from_pretrained"
    return Check("load", not bad, "; ".join(bad) or f"{type(model).__name__} by {by}, {model.dtype}")


def _zeros(folder: Path, model: Any) -> Check:
    """Whether every weight that the masks prune is 0. In a narrowed model, matrices have other names and shapes than
    their masks, so zeros are only counted."""
    flags = masks.names(folder)
    if any(":" in name for name in flags):
        return Check("zeros", True, f"not applicable: what the {len(flags)} masks remove is not in the files any more")
    parameters, alive, pruned = dict(model.named_parameters()), [], 0
    for name, keep in masks.read_masks(folder) if flags else ():
        gone = keep == 0
        pruned += int(gone.sum())
        weight = parameters.get(name)
        if weight is None or weight.shape != keep.shape:
            alive.append(f"there is no {name} of the shape {tuple(keep.shape)} that its mask has")
        elif torch.count_nonzero(weight.detach()[gone]):
            alive.append(f"{int(torch.count_nonzero(weight.detach()[gone])):,} pruned weights of {name} are not 0")
    said = f"{pruned:,} pruned weights are 0" if pruned else "nothing is pruned"
    return Check("zeros", not alive, "; ".join(alive[:3]) or said)


def _logits(folder: Path, model: Any) -> Check:
    """Whether the model gives the logits that the export recorded; where it recorded none, whether they are finite."""
    record = read_export(folder).get("logits")
    if record is None:
        return _finite(logits(model.float(), probe(folder, model.config)), "nothing to compare with: none are recorded")
    try:
        ids = token_ids(record)
        found = logits(model.float(), ids)
        apart, allowed = difference(record, found)
        if not apart <= allowed:  # NaN, too. Where fp32 rounds too much, fp64 decides
            found = logits(model.double(), ids)
            apart, allowed = difference(record, found)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        return Check("logits", False, f"they cannot be compared with the record in {EXPORT}: {error}")
    if not apart <= allowed:
        finite = _finite(found, "")
        said = f"up to {apart:g} from those of the export, where {allowed:g} is allowed: the libraries here compute"
        return Check("logits", False, f"{said} another model from the same files" if finite.passed else finite.said)
    return Check("logits", True, f"{tuple(found.shape)}, as the export recorded: at most {apart:.1e} apart")


def _finite(out: Tensor, more: str) -> Check:
    finite = bool(torch.isfinite(out).all())
    return Check("logits", finite, f"{tuple(out.shape)}, {'' if finite else 'not '}all finite{more and '; '}{more}")
