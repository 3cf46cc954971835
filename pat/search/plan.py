"""Plans a search from a command line: its values, where its runs fork, and each run's own command."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig

from pat.config import auto
from pat.config.compose import compose, run_name
from pat.config.quoting import quoted
from pat.schema import Config, TrainConfig
from pat.search import judged
from pat.search import quantity as quantities
from pat.search.bisection import at_most
from pat.search.judged import Measuring
from pat.search.quantity import Quantity
from pat.sweeps.members import Member

DENSE = "dense"  # the run up to the first cut
WITHIN = 0.02
SHOWN = 8  # values in a line
_OWN = re.compile(r"\+*(?:run\.name|run\.dir|envelope(?:\.[\w.]+)?)=")  # keys that runs get of their own, or do without
_PLACE = re.compile(r"\+*run\.(name|dir)=")


@dataclass(frozen=True)
class Span:
    """The user's options for the values."""

    pruner: str | None = None
    first: float | None = None
    last: float | None = None
    within: float = WITHIN


@dataclass(frozen=True)
class Plan:
    """Everything that defines a search."""

    out: Path
    config: Config  # with the envelope
    given: tuple[str, ...]  # keys of every run
    options: tuple[str, ...]  # of `pat train`, of every run
    quantity: Quantity
    values: Mapping[float, float]  # value -> the sparsity that it comes to, from the least pruned to the most
    fork_step: int  # of the first cut; 0: every run is one from the start
    measuring: Measuring = Measuring()

    @property
    def order(self) -> list[float]:
        """The values, from the least pruned to the most."""
        return list(self.values)

    @property
    def dense(self) -> Member:
        """The run that all others fork from."""
        return self._member(DENSE, self.order[-1], "run.until=first_cut")

    def member(self, value: float) -> Member:
        """The run with that value."""
        return self._member(self.quantity.name(value), value)

    def _member(self, name: str, value: float, *more: str) -> Member:
        run_dir = self.out / name
        ours = [f"run.dir={quoted(run_dir)}", f"run.name={quoted(name)}", *more, "envelope={}"]
        if not self.config.logger.group:
            ours.append(f"logger.group={quoted(self.out.name)}")
        command = ("train", *self.given, self.quantity.override(value), *ours, *self.options)
        config = self.quantity.applied(self.config, value).changed(envelope={}, run__dir=str(run_dir), run__name=name)
        return Member(name, run_dir, dict(quantities.as_keys(self.quantity, value)), command, config)

    def in_words(self, at_once: int = 1) -> str:
        """The plan in words, with the largest number of runs."""
        steps, order = self.config.train.num_steps, self.order
        runs, rounds = at_most(len(self.values), at_once)
        lines = [
            f"search in {self.out}: {self.quantity.override(order[0])} to {order[-1]:g}",
            f"  envelope  {said(self.config)}",
            f"  values    {len(order)}: {', '.join(f'{value:g}' for value in order[:SHOWN])}"
            + (f", ... {order[-1]:g}" if len(order) > SHOWN else ""),
        ]
        if self.fork_step:
            left = steps - self.fork_step
            lines.append(
                f"  runs      1 dense part of {self.fork_step} steps, and at most {runs} forks of it with {left} steps "
                f"each: {self.fork_step + runs * left:,} steps, where {runs} runs from the start have {runs * steps:,}"
            )
        else:
            lines.append(
                f"  runs      at most {runs} of {steps} steps each, all from the start: the first cut is at step 0"
            )
        if at_once > 1:
            lines.append(f"  at once   {at_once}, in at most {rounds} rounds")
            return "\n".join(
                [*lines, "  order     both ends and some between, then equal parts between inside and outside"]
            )
        return "\n".join([*lines, "  order     the most first, then the least, then halves between inside and outside"])


def make(
    overrides: Sequence[str], out: Path | None, span: Span, config_dir: str | None, measuring: Measuring | None = None
) -> Plan:
    """Compose and check all that can be checked before a run starts. Raises ValueError."""
    from pat.models import limits  # heavy
    from pat.tasks import base
    from pat.training import slices
    from pat.training.preflight import prepare

    options = ("--config-dir", config_dir) if config_dir else ()
    config, given, choices = _composed([*overrides, *options])
    _check(config)
    place = out or _place(config, overrides)
    quantity = quantities.quantity_of(config, span.pruner)
    plain, here = _dense(config, place), config.engine.hostfile is None
    checked = prepare(plain, place / DENSE, here)
    wanted = quantities.asked(config, quantity, checked.pruner)
    values = quantities.grid(quantity, wanted, span.first, span.last, span.within)
    if not quantity.keep and auto.changes(choices, quantity.pruner, values):
        schedule = f"pruners.{quantity.pruner}.schedule"
        raise ValueError(
            f"{schedule}=auto has several cuts above {auto.MUCH:g} and one below, but the runs of a search share the "
            f"steps before the first: give --from above {auto.MUCH:g}, or {schedule}.name=one_shot {schedule}.start=0.3"
        )
    if not quantity.keep and auto.changes(choices, quantity.pruner, [wanted, *values]):
        config = _composed([*overrides, quantity.override(values[-1]), *options])[0]  # with the schedule of all runs
        plain = _dense(config, place)
        checked = prepare(plain, place / DENSE, here)
    found = quantities.realised(plain, quantity, values, checked.model)
    first = checked.pruner.first_soft_step
    assert first is not None, "something is pruned"
    fork_step, measuring = first if config.train.num_steps else 0, measuring or Measuring()
    judged.check(config, measuring, bool(fork_step), limits.positions(cast(Any, checked.model).config))
    if measuring.mix is None:  # otherwise a mix may have slices
        slices.of(config, base.build(config.task), checked.prepared)
    kept = tuple(each for each in given if not _OWN.match(each))
    return Plan(place.absolute(), config, kept, options, quantity, found, fork_step, measuring)


def _composed(arguments: Sequence[str]) -> tuple[Config, list[str], dict[str, Any]]:
    """(config, overrides, Hydra's choices) of a command line. Raises ValueError."""
    found: list[tuple[Config, list[str], dict[str, Any]]] = []

    def take(config: Config) -> int:
        cfg = HydraConfig.get()
        found.append((config, list(cfg.overrides.task), dict(cfg.runtime.choices)))
        return 0

    compose(arguments, take, guarded=False)
    return found[0]


def _dense(config: Config, place: Path) -> Config:
    """The config of the run that all others fork from."""
    return config.changed(envelope={}, run__dir=str(place / DENSE), run__name=DENSE)


def said(config: Config) -> str:
    """`accuracy.drop 0.01, loss.ratio 1.1`."""
    return ", ".join(
        f"{metric}.{bound} {value:g}"
        for metric, limit in config.envelope.items()
        for bound, value in limit.bounds().items()
    )


def _check(config: Config) -> None:
    if not config.envelope:
        raise ValueError(
            "no envelope is given, so every sparsity is inside: add a limit, as envelope.accuracy.drop=0.01"
        )
    if config.train.envelope_patience != TrainConfig.model_fields["envelope_patience"].default:
        raise ValueError(
            "train.envelope_patience is for a single run whose ramp the envelope guards, and a search has none: "
            "leave it out, or the search (`pat train` with an envelope and without budget=largest_within_envelope)"
        )
    if config.train.export_at:
        raise ValueError(
            "train.export_at is for a single run; the runs of a search have other sparsities: leave it out"
        )
    if config.run.until != "end" or config.run.resume != "auto":
        raise ValueError("run.until and run.resume are the search's own: leave them out")


def _place(config: Config, overrides: Sequence[str]) -> Path:
    """The search's folder: run.dir, or searches/NAME, with a NAME like a run's."""
    placed = {match[1] for each in overrides if (match := _PLACE.match(each))}
    if "dir" in placed:
        return Path(config.run.dir)
    recipe = next((o.partition("=")[2] for o in overrides if o.startswith("recipe=")), None)
    return Path("searches") / (config.run.name if "name" in placed else run_name(overrides, recipe, sweep=True))
