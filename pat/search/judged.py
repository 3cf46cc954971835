"""Judges a finished run by the envelope: its best checkpoint, which `pat export` and `pat gate` take, too.

Limits on metrics of the task are judged by the evaluations of the runs. If one is on anything else (slices, prompts of
a mix, latencies, sizes), all are judged as by `pat gate`. Pruning more makes latency, memory and size better and
quality worse: so the bisection goes by quality, and the others are checked where quality is inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from pat.checkpoint import retention
from pat.checkpoint.reader import read_manifest
from pat.common import files
from pat.common.parameters import DTYPES
from pat.envelope import limits, spec
from pat.envelope.figures import MIX, MODEL, PROFILE, figures, others
from pat.envelope.judge import Check
from pat.envelope.spec import SLICES, Envelope
from pat.gate import measure, profile
from pat.gate.measure import Facts
from pat.gate.verdict import Gate
from pat.profiling import plan
from pat.prompts import reader
from pat.run.directory import RunDir
from pat.schema import Config
from pat.tasks import base

GAINS = (PROFILE, MODEL)  # sources of figures that pruning improves


@dataclass(frozen=True)
class Measuring:
    """How to measure figures that no training knows."""

    mix: str | None = None
    allow_code: bool = False  # run the mix's checks that are Python functions
    lengths: str | None = None  # of a profile; None: the mix's
    requests: int = 20
    price_per_hour: float | None = None
    dtype: str = "fp32"
    device: str = "cpu"
    confident: bool = False  # demand that whole intervals are inside

    def plain(self) -> dict[str, Any]:
        """Plain values for search.json."""
        said = asdict(self)
        return said if self.allow_code else {key: value for key, value in said.items() if key != "allow_code"}


def needs_gate(config: Config) -> bool:
    """Whether a limit is on a figure that the evaluations of a training do not give."""
    return any(name == SLICES or name in others() for name in config.envelope)


def envelope_of(config: Config) -> Envelope:
    """The envelope in the gate's form."""
    return spec.parse({name: limit.model_dump(exclude_none=True) for name, limit in config.envelope.items()})


def parted(envelope: Envelope) -> tuple[Envelope, Envelope]:
    """(the limits on quality, those on figures that pruning improves)."""
    gains = {name: limit for name, limit in envelope.limits.items() if figures()[name].sources[0] in GAINS}
    quality = {name: limit for name, limit in envelope.limits.items() if name not in gains}
    return Envelope(limits=quality, slices=envelope.slices), Envelope(limits=gains)


def check(config: Config, measuring: Measuring, with_baseline: bool, positions: int | None) -> None:
    """ValueError for limits that a search cannot judge of a model with so many positions (None: without a limit)."""
    envelope = envelope_of(config)
    quality, gains = parted(envelope)
    if not quality.limits and quality.slices is None:
        raise ValueError(
            "the envelope limits nothing that pruning makes worse, so the largest value is the answer: add a limit on "
            "quality, as envelope.accuracy.drop=0.01"
        )
    profiled = [name for name in gains.limits if PROFILE in figures()[name].sources]
    if "cost_per_million_tokens" in profiled and measuring.price_per_hour is None:
        raise ValueError("cost_per_million_tokens is limited, but not what an hour costs: give --price-per-hour")
    if measuring.mix is None and any(figures()[name].sources == (MIX,) for name in envelope.limits):
        raise ValueError("the envelope limits figures of prompts: give --mix FILE")
    relative = envelope.relative()
    if relative and not with_baseline and needs_gate(config):
        raise ValueError(
            f"{relative[0]} is relative to the dense model, and no run of it exists when the first cut is at step 0: "
            "raise schedule.start, or give absolute limits (min, max)"
        )
    if profiled:
        _check_lengths(config, measuring, positions)
    _read(config, measuring)


def _check_lengths(config: Config, measuring: Measuring, positions: int | None) -> None:
    """ValueError for lengths of requests that the model cannot take."""
    if measuring.mix and not measuring.lengths:
        return
    lengths = plan.parse_lengths(measuring.lengths) if measuring.lengths else plan.DEFAULT_LENGTHS
    generative = base.build(config.task).auto_model is AutoModelForCausalLM
    for prompt, output in plan.of_a_kind(lengths, generative, "the model"):
        plan.check_positions(prompt, output, positions, "the model")


def _read(config: Config, measuring: Measuring) -> Any:
    """The mix, if one is given. ValueError for one that cannot be asked."""
    checked = measure.needs_mix(envelope_of(config))  # else it only has the lengths of requests
    if not measuring.mix:
        return None
    mix = reader.read(reader.find(measuring.mix), measuring.allow_code, checked)
    if mix.head.template_options is not None:
        return mix
    return replace(mix, head=mix.head.changed(template_options=config.task.template_options))


@dataclass
class Judge:
    """Judges the runs of one search."""

    config: Config
    measuring: Measuring
    dense: Path | None  # the run that ends before the first cut; None: there is none
    out: Path
    _facts: dict[Path, Facts] = field(default_factory=dict[Path, Facts])

    def __call__(self, run: RunDir) -> dict[str, Any]:
        """Plain values: sparsity, metrics, those of the dense model, the limits, and whether the run is inside."""
        summary: Any = files.read_json(run.summary)
        metrics = _metrics(run) or summary["metrics"]
        found = self._by_gate(run) if needs_gate(self.config) else _by_metrics(self.config, summary, metrics)
        return found | {
            "metrics": {**metrics, **found["metrics"]},
            "dense_metrics": {**(summary["dense_metrics"] or {}), **found.get("dense_metrics", {})},
            "sparsity": summary["sparsity"],
            "train_seconds": summary["train_seconds"],
            "steps": summary["step"],
        }

    @property
    def needs_silence(self) -> bool:
        """Whether times are measured, which no run may train beside."""
        return any(name in figures() and PROFILE in figures()[name].sources for name in self.config.envelope)

    # -- by the gate ---------------------------------------------------------------------------------------------

    @cached_property
    def _mix(self) -> Any:
        return _read(self.config, self.measuring)

    @cached_property
    def _asked(self) -> measure.Asked:
        said, how = envelope_of(self.config), self.measuring
        config = self.config if measure.needs_samples(said, how.mix is not None) else None
        mix = self._mix if measure.needs_mix(said) else None
        return measure.Asked(config, mix, DTYPES[how.dtype], how.device, batch_size=8)

    def _by_gate(self, run: RunDir) -> dict[str, Any]:
        quality, gains = parted(envelope_of(self.config))
        task = base.build(self.config.task)
        facts = measure.ask(run.path, self._asked, task)
        dense = None
        if self.dense is not None:
            dense = self._facts.get(self.dense) or measure.ask(self.dense, self._asked, task)
            self._facts[self.dense] = dense
        how = {"confident": self.measuring.confident}
        checks = Gate(quality, None, **how).checks(facts, dense)
        found = _plain(checks)
        if not found["inside"] or not gains.limits:
            return found | {"missed": {}}
        said = None
        if any(PROFILE in figures()[name].sources for name in gains.limits):
            said = self._profile(run)
        more = _plain(Gate(gains, said, **how).checks(facts, dense))
        return {
            **{key: {**found[key], **more[key]} for key in ("metrics", "dense_metrics", "limits")},
            "inside": True,
            "outside": {},
            "missed": more["outside"],
            "checks": found["checks"] + more["checks"],
        }

    def _profile(self, run: RunDir) -> profile.Profile:
        """Profile the run beside the dense model, in a file that is kept."""
        import torch

        from pat.profiling.run import Asked
        from pat.profiling.run import run as measured

        how = self.measuring
        asked = Asked(
            backends=("eager",),
            device=how.device,
            dtype=how.dtype,
            requests=how.requests,
            batch_sizes=(1, 8),
            lengths=tuple(plan.parse_lengths(how.lengths)) if how.lengths else None,
            warm_up=1,
            threads=torch.get_num_threads(),
            price_per_hour=how.price_per_hour,
            confidence=0.95,
            seed=0,
        )
        result = measured([*filter(None, [self.dense]), run.path], self._mix, asked)
        file = self.out / "profiles" / f"{run.path.name}.json"
        file.parent.mkdir(exist_ok=True)
        said = {"device": result.device, "dtype": how.dtype, "mix": how.mix, "requests": result.requests}
        files.write_json(file, said | {"models": [one.plain() for one in result.profiles]})
        return profile.read(file)


def _by_metrics(config: Config, summary: Mapping[str, Any], metrics: Mapping[str, float]) -> dict[str, Any]:
    task = base.build(config.task)
    higher = {metric: task.higher_is_better(metric) for metric in config.envelope}
    return limits.figures(config.envelope, summary["dense_metrics"], metrics, higher)


def _plain(checks: Sequence[Check]) -> dict[str, Any]:
    """Checks as `limits.figures` has them, by the names of the figures."""
    found: dict[str, Any] = {"inside": all(check.passed for check in checks), "metrics": {}, "dense_metrics": {}}
    found |= {"limits": {}, "outside": {}, "checks": [asdict(check) for check in checks]}
    for check in checks:
        name = check.name.rpartition(".")[0]
        found["metrics"][name], found["limits"][name] = check.measured, check.limit
        if check.baseline is not None:
            found["dense_metrics"][name] = check.baseline
        if not check.passed:
            against = f", {check.baseline:.6g}" if check.rule.endswith("the baseline") else ""
            found["outside"][name] = f"{check.rule}{against}"
    return found


def _metrics(run: RunDir) -> Mapping[str, float] | None:
    """Of the best checkpoint; None: a run of no steps has no best."""
    if not (run.checkpoints / "best").is_file():
        return None
    return read_manifest(retention.find_checkpoint(run, "best"))["metrics"]
