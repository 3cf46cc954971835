"""Whether an envelope fits the task whose metrics it limits and the run that it leads: one sentence for each problem.

An envelope leads a run whose evaluations can hold the ramp of sparsity (`pat.training.guarded`). Elsewhere it only
judges.
"""

from __future__ import annotations

from collections.abc import Iterator

from pat import learning_rates
from pat.envelope.figures import MIX, MODEL, PROFILE, others
from pat.envelope.spec import SLICES
from pat.pruning import registry
from pat.pruning.schedules import Timeline
from pat.schema import Config, PrunerConfig

_HOW = {  # where a figure comes from that no training has
    PROFILE: "measured by `pat profile`",
    MIX: "of the prompts of a mix",
    MODEL: "of the finished model",
}


def problems(config: Config, leads: bool) -> Iterator[str]:
    """Of a config; `leads`: the envelope must be able to hold the run's ramp."""
    if config.envelope:
        yield from _limits(config, leads)
        yield from _leading(config) if leads else ()


def _limits(config: Config, leads: bool) -> Iterator[str]:
    """Whether the task has the metrics of the envelope, and the dense model itself could be inside; what only a
    finished model has can be limited where the envelope does not lead the training."""
    from pat.tasks import base  # heavy

    task = base.build(config.task)
    for metric, limit in config.envelope.items():
        named, known = task.sample_metric if metric == SLICES else metric, others().get(metric)
        if known is not None and leads:
            yield (
                f"envelope.{metric}: {metric} is {_HOW[known.sources[0]]} and not known while a model trains: leave it "
                "out here, and judge the run by `pat gate`, or search by it (`pat search`)"
            )
            continue
        try:
            higher = task.higher_is_better(named) if known is None else known.higher_is_better
        except ValueError as error:
            yield f"envelope.{metric}: {error}"
            continue
        for key in ("least", "dimensions") if metric != SLICES else ():
            if getattr(limit, key) is not None:
                yield f"envelope.{metric}.{key}: only envelope.slices has it; leave it out"
        for wrong, right in (("max", "min"), ("rise", "drop")) if higher else (("min", "max"), ("drop", "rise")):
            if wrong in limit.bounds():
                yield f"envelope.{metric}.{wrong}: {named} is better when {_way(higher)}, so give {right} or ratio"
        if known is None and limit.ratio is not None and (limit.ratio > 1.0 if higher else limit.ratio < 1.0):
            yield (
                f"envelope.{metric}.ratio is {limit.ratio:g}, which the dense model itself does not keep: {named} is "
                f"better when {_way(higher)}: give at {'most' if higher else 'least'} 1"
            )


def _leading(config: Config) -> Iterator[str]:
    """Whether an envelope can lead this run: evaluations on the way, schedules that can be held."""
    train = config.train
    if not config.pruners or not train.num_steps:
        what = "nothing is pruned" if not config.pruners else "train.num_steps is 0"
        yield f"envelope is set, but {what}, so there is no ramp for it to hold: leave it out"
        return
    schedules = learning_rates.classes()
    if (found := schedules.get(config.optim.lr_schedule)) and found.follows_cuts:
        fixed = [name for name, each in schedules.items() if not each.follows_cuts]
        yield (
            f"optim.lr_schedule={config.optim.lr_schedule} goes by the cuts, which an envelope moves: take "
            f"{', '.join(fixed[:-1])} or {fixed[-1]}; or `pat search`, a whole run for each value"
        )
    lines: list[Timeline] = []
    for name, settings in config.pruners.items():
        try:
            lines.append(registry.build("schedule", settings.schedule).resolve(train.num_steps))
            yield from _holdable(f"pruners.{name}", settings, lines[-1])
        except ValueError:
            return  # `pruner_problems` says why
    yield from _looks(train.eval_every, min(line.start for line in lines), max(line.hard_from for line in lines))


def _way(higher: bool) -> str:
    return "higher" if higher else "lower"


def _holdable(place: str, settings: PrunerConfig, line: Timeline) -> Iterator[str]:
    """What an envelope can neither hold nor stop where it is."""
    from pat.pruning.gates import CalibratedGate, Learned

    gate = None if settings.gate is None else registry.build("gate", settings.gate)
    if isinstance(gate, Learned):
        yield (
            f"{place}.gate={gate.name} learns towards its last target and cannot be held on the way: with an envelope "
            "take a ranked gate (taylor, magnitude, ...)"
        )
    criterion = None if settings.criterion is None else registry.build("criterion", settings.criterion)
    if criterion is not None and criterion.threshold is not None:
        yield (
            f"{place}.criterion={criterion.name} prunes by a threshold and not to the schedule's target: with an "
            "envelope take movement, magnitude, ..."
        )
    if isinstance(gate, CalibratedGate) or line.num_cuts() < 2:
        yield (
            f"{place}.schedule cuts all at once, which leaves an envelope nothing to go back to: take a ramp (cubic, "
            "linear, stepwise) with an `end` after `start`, and several times `select_every` between them; or "
            "`pat search`, a whole run for each value"
        )


def _looks(every: int | None, start: int, hard: int) -> Iterator[str]:
    """There must be an evaluation while masks can still be held."""
    most = hard - start
    if every is None or start // every == hard // every:
        yield (
            f"train.eval_every is {'null' if every is None else every}, so that no evaluation comes between the first "
            f"mask at step {start} and the last at step {hard}, and envelope could decide nothing: give at most {most}"
        )
