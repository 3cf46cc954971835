"""What a config would prune, from the model's architecture alone: no weights, no ranks, no training."""

from __future__ import annotations

import torch
from rich.console import Console
from rich.table import Table

from pat.common.text import size_in_words
from pat.models import build, tokenizers
from pat.models.build import UNFIT, unfit
from pat.models.trainable import choose_trainable
from pat.pruning.pruner import Pruner
from pat.pruning.schedules import Timeline
from pat.schema import Config
from pat.tasks import base

SOFT_BYTES, SCORE_BYTES, HARD_BYTES = 5, 4, 1  # per weight: dense fp32 + flag, score, flag
NOTHING = "none"  # of a cell; a column of nothing else is left out


def attached(config: Config, num_labels: int | None = None) -> tuple[torch.nn.Module, Pruner]:
    """The model on the meta device and the pruners attached to it. Raises ValueError for what cannot be pruned."""
    task = base.build(config.task)
    tokenizer = None if config.model.path else tokenizers.build_tokenizer(config.model)  # whose vocabulary it takes
    hf_config = build.build_config(config.model, task, num_labels, tokenizer)
    with torch.device("meta"):
        try:
            model = task.auto_model.from_config(hf_config)
        except UNFIT as error:
            raise unfit(hf_config, task, error) from error
        model.tie_weights()
        choose_trainable(model, config)
    pruner = Pruner(config)
    pruner.attach(model)
    return model, pruner


def describe(config: Config) -> str:
    """A table: per pruner the matrices, weights, units, what is removed, when, and the bytes of state per rank."""
    _, pruner = attached(config, config.task.num_labels)
    if not pruner.pruners:
        return "Nothing would be pruned: there are no pruners."
    ranks = 1 if config.engine.zero_stage == 0 else config.engine.world_size
    size = config.engine.world_size
    engine = f"{size} rank{'s' * (size > 1)}, ZeRO {config.engine.zero_stage}"
    soft = any(each.timeline.hard_from > each.timeline.start for each in pruner.pruners)
    memory = f"memory per rank, {'soft' if soft else 'at the cut'}"
    rows: list[dict[str, str]] = []
    for each in pruner.weight_pruners:
        shapes, single = each.maps, each.granularity.weights_per_unit == 1
        units = sum(each.granularity.num_units(s) for s in shapes.values())
        removed = each.granularity.pruned_units(shapes, each.budget.sparsity, each.scope)
        needed = each.numel * (SOFT_BYTES + SCORE_BYTES * each.criterion.needs_score) / ranks
        rows.append(
            {
                "pruner": each.name,
                "matrices": str(len(shapes)),
                "weights": f"{each.numel:,}",
                "units": NOTHING if single else f"{units:,}",
                "removed": f"{removed:,} {'weights' if single else 'units'}",
                **_phases(each.timeline),
                memory: size_in_words(needed),
                "hard": size_in_words(each.numel * HARD_BYTES / ranks),
            }
        )
    for each in pruner.structure_pruners:
        rows.append(
            {
                "pruner": each.name,
                "matrices": f"{len(each.sites)} sites",
                "weights": f"{each.numel:,}",
                "units": f"{sum(each.units.sizes):,}",
                "removed": f"{'' if each.goal.is_certain else 'about '}{each.target_weights:,} weights",
                **_phases(each.timeline),
                memory: size_in_words(each.state_bytes()),
                "hard": size_in_words(each.state_bytes()),
            }
        )
    table = Table(title=f"What would be pruned ({engine}), and the memory of masks and gates")
    columns = [name for name in rows[0] if any(row[name] != NOTHING for row in rows)]
    for name in columns:
        table.add_column(name, justify="left" if name == "pruner" else "right")
    for row in rows:
        table.add_row(*(row[name] for name in columns))
    lines: list[str] = []
    for each in pruner.weight_pruners:
        names = list(each.shapes)
        lines.append(f"{each.name}: {names[0]} ... {names[-1]}")
    lines += [f"{each.name} leaves {each.goal.in_words()}" for each in pruner.structure_pruners]
    console = Console(width=150)
    with console.capture() as captured:
        console.print(table)
    return captured.get() + "\n".join(lines)


def _phases(line: Timeline) -> dict[str, str]:
    """When nothing is pruned yet, when masks move, and from when on they are final."""
    return {
        "dense steps": f"0-{line.start}" if line.start else NOTHING,
        "soft steps": f"{line.start}-{line.hard_from}" if line.hard_from > line.start else NOTHING,
        "hard from": f"step {line.hard_from}",
    }
