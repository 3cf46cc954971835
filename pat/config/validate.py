"""Relations between keys of a config, checked before anything is read, built or started: a sentence for each problem.

Values of one key are checked by `pat.schema`, keys that another one makes void by `pat.common.ignored`, and those of an
envelope by `pat.config.envelope_keys`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from importlib.util import find_spec

from pat.common import ignored, scan
from pat.common.text import did_you_mean
from pat.config import envelope_keys
from pat.pruning import registry
from pat.pruning.schedules import Ramp
from pat.schema import LATELY, Config, PrunerConfig

SMALLEST_DECAY = 2.0**-25  # 1 - d is 1 in fp32 for all below


def validate(config: Config, given: Collection[str] = (), guarded: bool = True) -> None:
    """Raises ValueError with the first thing that does not fit; `given`: the keys on the command line; `guarded`: an
    envelope leads the ramp, which it must be able to hold."""
    for problem in _problems(config, given, guarded):
        raise ValueError(problem)


def _problems(config: Config, given: Collection[str], guarded: bool) -> Iterator[str]:
    yield from _task(config)
    yield from _mixture(config, given)
    yield from _named("optim.lr_schedule", config.optim.lr_schedule, "pat.learning_rates")
    yield from _batch(config)
    yield from _training(config)
    yield from _distill(config)
    yield from _peft(config)
    yield from envelope_keys.problems(config, guarded)
    for name in config.pruners:
        yield from pruner_problems(config, name)
    yield from ignored.problems(config, _taking, given)


def _task(config: Config) -> Iterator[str]:
    yield from _named("task.name", config.task.name, "pat.tasks")


def _mixture(config: Config, given: Collection[str]) -> Iterator[str]:
    """Whether a file on the command line is read, where each source may name its own."""
    sources = config.data.sources or {}
    for key in ("train", "eval"):
        if sources and f"data.{key}" in given and all(key in source for source in sources.values()):
            yield (
                f"data.{key}={getattr(config.data, key)} would not be read, as each of data.sources "
                f"({', '.join(sources)}) names its own: leave it out, or make it a source"
            )


def _named(key: str, name: str, package: str) -> Iterator[str]:
    """Whether a file of the package has that name."""
    names = scan.declared(package)
    if name not in names:
        yield f"there is no {key}={name!r}: allowed are {', '.join(names)}{did_you_mean(name, names)}"


def _taking(key: str) -> list[str]:
    from pat.tasks import base  # heavy

    return base.taking(key)


def _batch(config: Config) -> Iterator[str]:
    """The global batch is micro * ranks * accumulation."""
    total, ranks = config.train.global_batch_size, config.engine.world_size
    micro = config.train.micro_batch_size
    if total % ranks:
        fits = _near(ranks * factor for factor in (total // ranks, total // ranks + 1) if factor)
        yield (
            f"train.global_batch_size={total} cannot be shared by engine.world_size={ranks} ranks: "
            f"take {fits}, or {_near(n for n in range(1, total + 1) if total % n == 0)} ranks"
        )
    elif micro and total % (micro * ranks):
        fits = _near(n for n in range(1, total // ranks + 1) if (total // ranks) % n == 0)
        yield (
            f"train.global_batch_size={total} is not a multiple of train.micro_batch_size={micro} x "
            f"engine.world_size={ranks}: take a micro_batch_size of {fits}, or null"
        )


def _training(config: Config) -> Iterator[str]:
    optim, model, train = config.optim, config.model, config.train
    if model.path is None and model.init == "pretrained":
        yield (
            "model.path is not set: give a hub name or a local folder, or model=random +model.config.model_type=llama "
            "(or another architecture)"
        )
    if model.path is None and "model_type" not in model.config:
        yield "neither model.path nor model.config.model_type is set: a random model needs one of them"
    if optim.warmup >= 1 and optim.warmup != int(optim.warmup):
        yield f"optim.warmup is {optim.warmup}: steps are whole numbers, a fraction of the run is below 1"
    if config.run.until == "first_cut" and not config.pruners:
        yield "run.until is first_cut, but nothing is pruned: leave it out, or name pruners"
    if isinstance(config.run.until, int) and not 0 < config.run.until < train.num_steps:
        yield f"run.until is {config.run.until}, but must be end or a step before train.num_steps={train.num_steps}"
    if train.num_steps == 0 and not config.pruners:
        yield "train.num_steps is 0 and nothing is pruned: nothing would happen; give steps, or name pruners"
    if optim.warmup >= 1 and optim.warmup >= train.num_steps > 0:
        yield f"optim.warmup is {optim.warmup:.0f} steps, but the run has only {train.num_steps}"
    if train.max_skipped >= LATELY:
        yield f"train.max_skipped is {train.max_skipped}, but only the last {LATELY} steps are counted: give less"
    if train.best_metric is not None:
        yield from _metric(config)
    if train.early_stopping_patience is not None and train.eval_every is None:
        yield "train.early_stopping_patience counts evaluations: give train.eval_every, too"
    at = train.export_at
    if at and not config.pruners:
        yield f"train.export_at is {at}, but nothing is pruned: leave it out, or name pruners"
    if any(not 0.0 < value < 1.0 for value in at) or sorted(set(at)) != list(at):
        yield f"train.export_at is {at}, but must be increasing sparsities above 0 and below 1"
    if not optim.trainable:
        yield 'optim.trainable is empty: nothing would be trained; ["*"] trains everything'
    if optim.name == "cpu_adam" and not config.engine.offload_optimizer:
        yield "optim.name=cpu_adam needs engine.offload_optimizer=true: its state is in CPU memory"
    if optim.name == "fused_adam" and config.engine.offload_optimizer:
        yield "optim.name=fused_adam works on the GPU: with engine.offload_optimizer=true take cpu_adam or adamw"
    if config.engine.zero_stage == 0 and config.engine.offload_optimizer:
        yield "engine.offload_optimizer=true would be ignored at ZeRO 0: set engine.zero_stage=1, or leave it out"


def _metric(config: Config) -> Iterator[str]:
    """A task declares its metrics. A wrong name would otherwise only fail at the first evaluation."""
    from pat.tasks import base  # heavy

    try:
        base.build(config.task).higher_is_better(config.train.best_metric or "")
    except ValueError as error:
        yield f"train.best_metric={config.train.best_metric}: {error}"


def _distill(config: Config) -> Iterator[str]:
    distill = config.distill
    if distill.teacher is None and distill.cache is None:
        return
    if config.train.num_steps == 0:
        yield "with train.num_steps=0 nothing learns from a teacher: take distill=none"
    if distill.weight is None:
        yield "distill.weight is not set: give the share of the teacher's answers in the loss, in [0, 1]"
    if distill.cache and distill.hidden_weight:
        yield (
            f"distill.hidden_weight is {distill.hidden_weight}, but distill.cache={distill.cache} holds no hidden "
            "states: set it to 0, or leave the cache out"
        )
    if distill.cache and not distill.weight:
        yield f"distill.weight is 0, but distill.cache={distill.cache} holds nothing but answers: raise it"
    if not distill.weight and not distill.hidden_weight:
        yield "distill.weight and distill.hidden_weight are both 0: nothing would be distilled; raise one"
    try:
        Ramp.of("distill", distill.start, distill.end, config.train.num_steps)
    except ValueError as error:
        yield str(error)


def _peft(config: Config) -> Iterator[str]:
    peft = config.peft
    if peft.r is None:
        return
    if find_spec("peft") is None:
        yield f"peft.r={peft.r} needs the peft library: pip install 'pat-deepspeed[peft]', or take peft=none"
    if peft.target_modules == []:
        yield (
            "peft.target_modules is empty: nothing would be adapted; null takes all linear maps but the output and the "
            "head"
        )
    if config.optim.trainable != ["*"]:
        yield (
            f"optim.trainable={config.optim.trainable} would be ignored: with peft the model is frozen and its "
            "adapters train; name modules that train whole in peft.modules_to_save"
        )
    for name, pruner in config.pruners.items():
        if pruner.params:
            yield (
                f"pruners.{name} masks single weights, which with peft are frozen and have no gradient: prune "
                "structures with a gate, or train the weights themselves (peft=none)"
            )


def pruner_problems(config: Config, name: str) -> Iterator[str]:
    """What does not fit in one pruner's settings."""
    settings, place = config.pruners[name], f"pruners.{name}"
    yield from ignored.of_section(settings, place)
    if not name.isidentifier():
        yield f"{place}: a pruner's name is made of letters, digits and underscores"
    of_structures = bool(settings.structures) or settings.gate is not None
    yield from _structures(settings, place) if of_structures else _weights(settings, place)
    if 0.0 < settings.masked_grad.sr_ste * config.optim.lr < SMALLEST_DECAY:
        decay = f"{place}.masked_grad.sr_ste={settings.masked_grad.sr_ste:g} times optim.lr={config.optim.lr:g}"
        yield (
            f"{decay} is less than a factor in fp32 can hold: give {SMALLEST_DECAY / config.optim.lr:.2g} or more, or 0"
        )
    for kind in registry.OF_BOTH + (registry.OF_STRUCTURES if of_structures else registry.OF_WEIGHTS):
        try:
            method = registry.build(kind, getattr(settings, kind))
            if kind == "budget" and method.of_weights == of_structures:
                counts = "weights" if method.of_weights else "structures"
                yield f"{place}.budget: {method.name} counts {counts}; take one of {', '.join(_budgets(of_structures))}"
            if kind == "schedule":
                method.resolve(config.train.num_steps)
        except ValueError as error:
            yield f"{place}.{kind}: {error}"


def _weights(settings: PrunerConfig, place: str) -> Iterator[str]:
    if not settings.params:
        yield f"{place}.params is empty: give name patterns, as '*_proj.weight', or [all-linear]; or structures, a gate"
    for kind in registry.OF_WEIGHTS:
        if getattr(settings, kind) is None:
            yield f"no value for {place}.{kind}: one of {', '.join(registry.names(kind))}"
    yield from _named(f"{place}.scope", settings.scope, "pat.pruning.scopes")


def _structures(settings: PrunerConfig, place: str) -> Iterator[str]:
    allowed = registry.names("structure")
    if not settings.structures:
        yield f"no value for {place}.structures: a list of {', '.join(allowed)}"
    for structure in settings.structures:
        if structure not in allowed:
            yield f"{place}.structures has {structure!r}; allowed: {', '.join(allowed)}"
    if settings.gate is None:
        yield f"no value for {place}.gate: one of {', '.join(registry.names('gate'))}"
    default = PrunerConfig()
    for key in ("params", "exclude", "granularity", "criterion", "scope", "allow_empty_matrices", "masked_grad"):
        if getattr(settings, key) != getattr(default, key):
            yield (
                f"{place} has structures and {key}, but {key} belongs to a pruner of weights: leave it out, or put it "
                "into a second pruner, pruners.OTHER_NAME"
            )


def _budgets(of_structures: bool) -> list[str]:
    return [name for name in registry.names("budget") if registry.classes("budget")[name].of_weights != of_structures]


def _near(numbers: Iterator[int], most: int = 8) -> str:
    values: Sequence[int] = list(numbers)
    return ", ".join(map(str, values[:most])) + (" ..." if len(values) > most else "")
