"""The budget that counts measured time."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pat.common.typed import is_mapping
from pat.models.anatomy import Anatomy, Attention
from pat.pruning.budgets import StructureBudget
from pat.pruning.structures.costs import Cost

PICO = 1e12
FORMAT = 1
SIZES = ("hidden_size", "num_attention_heads")  # of the config, by which a table knows its model
_MEASURE = "make a table of this one with `pat profile MODEL --table FILE`"


@dataclass(frozen=True)
class Latency(StructureBudget):
    """Fraction of the measured time of one forward, from the table of `pat profile MODEL --table FILE`.

    Each structure's time is taken as a line, fixed + slope * units, fitted to its points (least squares), because units
    are chosen by what one of them costs. It is the time of that device, batch size and length.
    Source: ZipLM, Kurtic et al. 2023, arXiv:2302.04089, there without the line.
    """

    name: str = "latency"
    table: Any = field(kw_only=True)  # the file that `pat profile --table` wrote of this model, or its content

    unit: ClassVar[str] = "picoseconds"

    def cost(self, anatomy: Anatomy) -> Cost:
        """Picoseconds of the forward that the table was measured with."""
        content = _read(self.table)
        named = "(in the config)" if is_mapping(self.table) else self.table
        if content.get("model_type") != anatomy.model_type:
            raise ValueError(
                f"budget.table {named} is of a {content.get('model_type')}, and the model is a "
                f"{anatomy.model_type}: {_MEASURE}."
            )
        sizes: dict[str, Any] = content.get("model") or {}  # an older table has none
        for key in sizes.keys() & SIZES:
            if sizes[key] != (own := getattr(anatomy.config.get_text_config(), key, None)):
                raise ValueError(
                    f"budget.table {named} is of a model with {key}={sizes[key]}, and this one has {own}: {_MEASURE}."
                )
        lines = {kind: _line(named, content.get(kind), kind) for kind in ("kv_groups", "ffn")}
        rows: list[tuple[tuple[int, int], ...]] = []
        for layer in anatomy.layers:
            row: list[tuple[int, int]] = []
            for sublayer in layer.sublayers:
                kind = "kv_groups" if isinstance(sublayer, Attention) else "ffn"
                most, fixed, slope = lines[kind]
                if most != sublayer.num_units:
                    raise ValueError(
                        f"budget.table {named} is of a model with {most} {kind}, and {sublayer.name} has "
                        f"{sublayer.num_units}: {_MEASURE}."
                    )
                row.append((fixed, slope))
            rows.append(tuple(row))
        return Cost(_picoseconds(named, content.get("base_seconds")), (0,) * len(rows), tuple(rows))


def _read(path: Any) -> dict[str, Any]:
    try:
        content: Any = path if is_mapping(path) else json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        raise ValueError(
            f"budget.table {path} cannot be read: make it with `pat profile MODEL --table {path}`."
        ) from None
    if not is_mapping(content) or content.get("format") != FORMAT:
        named = "in the config" if is_mapping(path) else path
        raise ValueError(
            f"budget.table {named} is not a latency table: make one with `pat profile MODEL --table FILE`."
        )
    return dict(content)


def _line(path: str, points: Any, kind: str) -> tuple[int, int, int]:
    """(most units, fixed, per unit), in picoseconds; fixed at least 0. ValueError where more units take no longer."""
    try:
        known = [(int(point["units"]), float(point["seconds"])) for point in points if point["units"] > 0]
    except (TypeError, KeyError, ValueError):
        known = []
    if len(known) == 1 and known[0][0] == 1:  # a model with one KV head: there is no line to fit
        known = [(0, 0.0), *known]
    if len(known) < 2 or not all(math.isfinite(seconds) for _, seconds in known):
        raise ValueError(f"budget.table {path} has no times of {kind}: make it anew with `pat profile MODEL --table`.")
    n, t = (math.fsum(column) / len(known) for column in zip(*known, strict=True))
    slope = math.fsum((a - n) * (b - t) for a, b in known) / math.fsum((a - n) ** 2 for a, _ in known)
    if round(slope * PICO) < 1:
        raise ValueError(
            f"budget.table {path}: fewer {kind} are not faster there, so no number of them meets a latency target: "
            "measure longer prompts, or prune other structures by a budget of FLOPs."
        )
    fixed = t - slope * n
    if fixed < 0.0:  # the best line whose fixed part is not below 0 begins at 0
        fixed, slope = 0.0, math.fsum(a * b for a, b in known) / math.fsum(a * a for a, _ in known)
    return max(units for units, _ in known), round(fixed * PICO), round(slope * PICO)


def _picoseconds(path: str, seconds: Any) -> int:
    if not isinstance(seconds, (int, float)) or not 0.0 <= seconds < math.inf:
        raise ValueError(f"budget.table {path} has no base_seconds: make it anew with `pat profile MODEL --table`.")
    return round(seconds * PICO)
