"""What looks wrong before a run starts."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pat.common import machine, patterns
from pat.common.parameters import logical_numel
from pat.data.checks import label_counts
from pat.data.prepare import PreparedData
from pat.pruning import timetable
from pat.pruning.calibration.statistics import Gram
from pat.pruning.timetable import percent
from pat.pruning.weights.matrices import ALL_LINEAR, Matrices
from pat.schema import Config
from pat.tasks import base
from pat.training.checked import SHOWN_LABELS, Checked, shown_label
from pat.zero.engine import accelerator

MUCH = 0.1  # of the layers' weights that stay dense without having been named
FEW = 30  # samples for evaluation below which a start warns
LARGE = 10_000_000  # parameters: the steps of a smaller model are short in any dtype


def warnings(config: Config, checked: Checked, here: bool = True) -> list[str]:
    """What to look at before the run starts; the only place where such sentences are gathered. `here`: the ranks
    compute on this machine."""
    return [
        *checked.strange,
        *_useless_excludes(checked),
        *_left_dense(checked),
        *_few_samples(config, checked),
        *_small_evaluation(checked.prepared, base.build(config.task).per_sample),
        *(_slow_dtype(config, checked) if here else ()),
        *(sentence for pruner in checked.pruner.pruners for sentence in timetable.warnings(pruner)),
    ]


def _small_evaluation(prepared: PreparedData, per_sample: bool) -> Iterator[str]:
    """Where the samples for evaluation cannot show what pruning does."""
    held = len(prepared.eval)
    if per_sample and 0 < held < FEW:
        yield (
            f"{held} samples for evaluation: each is {percent(1 / held)} of the metrics; give data.eval, or a larger "
            "data.eval_fraction"
        )
    if prepared.label_names is None or not held:
        return
    counts = label_counts(prepared.eval, len(prepared.label_names))
    missing = [shown_label(name) for name, count in zip(prepared.label_names, counts, strict=True) if not count]
    if missing:
        named = f"{', '.join(missing[:SHOWN_LABELS])}{', ...' if len(missing) > SHOWN_LABELS else ''}"
        yield f"no sample for evaluation has the label {named}: what becomes of it is not measured"


def _useless_excludes(checked: Checked) -> Iterator[str]:
    """Patterns that match something, but nothing that would be pruned without them."""
    for each in checked.pruner.weight_pruners:
        taken = Matrices.of(checked.model).take(each.config.params)
        for pattern in each.config.exclude:
            if not pattern.startswith(patterns.OPTIONAL) and not any(patterns.matches(n, [pattern]) for n in taken):
                yield f"pruners.{each.name}.exclude: {pattern!r} matches nothing that params take"


def _left_dense(checked: Checked) -> Iterator[str]:
    """What all-linear does not take of the layers: several matrices in one parameter, such as experts whose forward is
    their own."""
    matrices = Matrices.of(checked.model)
    inside = {n: s for n, s in matrices.shapes.items() if len(s) > 1 and n.startswith(matrices.stacks)}
    for each in checked.pruner.weight_pruners:
        left = [name for name in matrices.stacked() if name not in each.shapes]
        share = sum(math.prod(inside[name]) for name in left) / max(1, sum(map(math.prod, inside.values())))
        if ALL_LINEAR in each.config.params and share > MUCH:
            patterns_of = ",".join(sorted({f"*.{name.rpartition('.')[2]}" for name in left}))
            yield (
                f"{percent(share)} of the layers' weights stay dense: {patterns.in_patterns(left)} are no linear maps, "
                f"but several in one; pruners.{each.name}.params=[{ALL_LINEAR},{patterns_of}] takes them, with a "
                "criterion that is not calibrated (magnitude, movement)"
            )


def _few_samples(config: Config, checked: Checked) -> Iterator[str]:
    """Warnings of calibration on fewer tokens than a matrix has inputs, or on samples that nothing reads."""
    there, calibrated = checked.prepared.to_calibrate(), any(each.calibration for each in checked.pruner.pruners)
    if config.data.calibration and checked.pruner.pruners and not calibrated:
        yield "data.calibration is not read: no pruner is calibrated"
    for each in checked.pruner.pruners:
        needs = each.calibration
        if needs is None or Gram not in needs.statistics:
            continue
        key, asked, inputs = f"{needs.key}.num_samples", needs.num_samples, needs.shapes[needs.widest][1]
        share = needs.seen_by(needs.widest)
        tokens = int(min(asked, there) * config.data.max_length * share)
        if tokens < inputs:
            whose = "" if share == 1.0 else " of each expert, on average,"
            yield (
                f"{key}={asked:,} are at most {tokens:,} tokens{whose} for the {inputs:,} inputs of {needs.widest}: "
                f"with fewer tokens than inputs, only damping makes the cut unique; give more samples ({key}, and more "
                "calibration data where that is the limit) or a larger data.max_length"
            )


def _slow_dtype(config: Config, checked: Checked) -> Iterator[str]:
    """bf16 where neither a GPU nor the processor computes with it."""
    slow = config.engine.dtype == "bf16" and accelerator() == "cpu" and not machine.has_bf16_units()
    if slow and sum(logical_numel(param) for param in checked.model.parameters()) > LARGE:
        yield (
            "this machine has no GPU, and its processor no units for bf16 (avx512_bf16, amx_bf16): steps here may be "
            "much faster with engine.dtype=fp32 (2.7 times for a Llama of 135 M on a Xeon of 2.8 GHz)"
        )
