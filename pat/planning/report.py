"""What a config needs on many layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pat.planning import checkpoints, memory, traffic, work
from pat.planning.activations import Activations, activations
from pat.planning.architectures import planned
from pat.planning.calibration import Calibration, calibration
from pat.planning.memory import Layout, RankMemory
from pat.planning.shapes import Shapes, itemsize, shapes_of
from pat.schema import Config
from pat.tasks import base
from pat.training.dry_run import attached
from pat.training.teacher import num_parameters
from pat.zero.engine import deepspeed_config


@dataclass(frozen=True)
class Row:
    """What a config needs on one layout; sizes are in bytes."""

    layout: Layout
    micro_batch: int
    memory: RankMemory
    activations: Activations
    bytes_per_step: float
    selection_bytes: int
    selection_read_bytes: float
    checkpoint: checkpoints.CheckpointSize
    calibration: Calibration  # besides weights and optimizer
    step_flops: float
    cut_flops: work.Cut | None  # of a calibrated cut
    total_soft: int
    total_hard: int

    @property
    def sequences(self) -> int:
        """Of a step."""
        return self.layout.ranks * self.micro_batch * self.layout.accumulation


@dataclass(frozen=True)
class Report:
    """A config on several layouts."""

    shapes: Shapes
    checkpointing: bool  # of activations, in this config
    dtype: str  # of forward and backward
    global_batch: int  # sequences of a step as configured
    rows: tuple[Row, ...]
    disk_gb_per_s: float | None = None
    pace: work.Pace | None = None  # of a rank

    def as_dict(self) -> dict[str, Any]:
        """Plain values; sizes in bytes, and operations; per rank but for checkpoints."""
        return {
            "parameters": self.shapes.every,
            "trained": self.shapes.trained,
            "prunable_by_masks": self.shapes.prunable,
            "teacher": self.shapes.teacher,
            "activation_checkpointing": self.checkpointing,
            "disk_gb_per_s": self.disk_gb_per_s,
            "rows": [asdict(row) for row in self.rows],
        }


def report(
    config: Config,
    ranks: Sequence[int],
    stages: Sequence[int],
    disk_gb_per_s: float | None = None,
    pace: work.Pace | None = None,
) -> Report:
    """From the model's config alone: no weights, no tokenizer, no GPU, no ranks."""
    config = planned(config)
    model, pruner = attached(config, config.task.num_labels)
    shapes = shapes_of(config, model, pruner, num_parameters(config) if config.distill.live else 0)
    rankings = sum(len(each.scope.totals(dict.fromkeys(each.shapes, 1))) for each in pruner.weight_pruners)
    task, known, rows = base.build(config.task), {}, []
    for stage in stages:
        for count in ranks:
            layout, micro = layout_of(config, count, stage)
            if micro not in known:
                known[micro] = activations(config, task, model.config, micro)
            kept = known[micro].checkpointed if config.engine.activation_checkpointing else known[micro].whole
            needed = memory.memory(shapes, layout, kept)
            cutting = calibration(config, model, pruner.calibrations, count, micro)
            selecting = 1 if stage == 0 else count
            rows.append(
                Row(
                    layout,
                    micro,
                    needed,
                    known[micro],
                    traffic.bytes_per_step(shapes, layout),
                    traffic.bytes_per_selection(selecting, rankings, shapes.prunable) if rankings else 0,
                    traffic.bytes_read_per_selection(shapes, layout),
                    checkpoints.checkpoint_size(shapes, layout),
                    cutting,
                    work.step(config, layout.accumulation, known[micro]),
                    work.cut(config, pruner.calibrations, count, micro, known[micro]),
                    needed.total(cut=cutting.device),
                    needed.total(soft=False),
                )
            )
    engine = config.engine
    setting = engine.activation_checkpointing, engine.dtype, config.train.global_batch_size
    return Report(shapes, *setting, tuple(rows), disk_gb_per_s, pace)


def layout_of(config: Config, ranks: int, stage: int) -> tuple[Layout, int]:
    """The layout of a config on that many ranks, and sequences per forward: of a global batch that they cannot share as
    many whole micro-batches as fit in it, at least one a rank."""
    train, engine = config.train, config.engine
    config = config.changed(engine__world_size=ranks, engine__zero_stage=stage)
    micro = train.micro_batch_size or max(1, train.global_batch_size // ranks)
    e = itemsize(engine.dtype)
    layout = Layout(
        ranks=ranks,
        stage=stage,
        itemsize=e,
        reduce_itemsize=memory.FP32 if engine.reduce_dtype == "fp32" else e,
        offload=engine.offload_optimizer and stage > 0,  # DeepSpeed ignores it at 0
        accumulation=max(1, train.global_batch_size // (micro * ranks)),
    )
    return memory.with_user_keys(layout, deepspeed_config(config)["zero_optimization"]), micro


def summary(needs: Report) -> str:
    """The model in a sentence, and what the figures are."""
    shapes = needs.shapes
    teacher = f", a teacher of {shapes.teacher:,}" if shapes.teacher else ""
    return (
        f"{shapes.every:,} parameters, of which {shapes.trained:,} are trained and {shapes.prunable:,} have masks of "
        f"single weights (gates of structures take next to nothing){teacher}.\n"
        "In all: the most at any one moment, less than the sum of the lines, as activations are gone when the\n"
        "optimizer's step needs its buffers, or a calibrated cut its memory. Gradients: the most during a backward.\n"
        "Buffers: DeepSpeed's bucket for the reduction, whatever the model's size, and its copies; and the larger of\n"
        "gathered weights (ZeRO 3) and what the step needs, at ZeRO 1 with the reduction before it.\n"
        "Computed, without the temporary memory of single operations and without fragmentation. Operations: of\n"
        "products of matrices and of attention; a cut's as if all iterations were taken. Where samples\n"
        "differ in their labels, a cut takes gradients of as many as one label each asks for: the most."
    )
