"""What `pat train` says before it trains: the data, what trains, what is pruned when, and what looks wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from pat import learning_rates
from pat.checkpoint import retention
from pat.common import patterns
from pat.common.machine import free_cores, usable_cores
from pat.data.checks import label_counts
from pat.data.prepare import SPLITS, PreparedData
from pat.data.sources import held_out_of_train
from pat.launch.environment import rank_environment
from pat.launch.single_node import rank_variables
from pat.pruning import timetable
from pat.pruning.calibration.needs import Needs
from pat.pruning.pruner import Pruner
from pat.pruning.timetable import percent
from pat.run.directory import RunDir
from pat.schema import Config, OptimConfig, TrainConfig
from pat.training.checked import SHOWN_LABELS, Checked, shown_label
from pat.training.start_warnings import warnings
from pat.zero.engine import accelerator

WIDTH = 10  # of the first column
BUSY, BUSY_SHARE = 0.5, 0.2  # of a core, of all: less is no program that computes


def start_summary(config: Config, checked: Checked, here: bool = True) -> str:
    """A few lines, the warnings last; `here`: the ranks compute on this machine."""
    prepared, model, pruner = checked.prepared, checked.model, checked.pruner
    lines = [("resume", text) for text in _resume(config)]
    lines += [("engine", text) for text in _engine(config, here)]
    lines += [("engine", text) for text in _cores(config, here)]
    lines += [("data", text) for text in _data(config, prepared)]
    lines += [("labels", text) for text in _labels(prepared)]
    lines += [("model", text) for text in [*_model(model, config), *checked.head]]
    lines += [("teacher", text) for text in _teacher(config)]
    lines += [("pruning", text) for text in _pruning(model, pruner, prepared, config)]
    lines += [("schedule", text) for text in _schedule(config, model, pruner)]
    lines += [("deepspeed", text) for text in _untested(config)]
    lines += [("warning", text) for text in warnings(config, checked, here)]
    shown, last = ["What this run does"], ""
    for head, text in lines:
        shown.append(f"  {'' if head == last != 'warning' else head:<{WIDTH}}{text}")
        last = head
    return "\n".join(shown)


def _engine(config: Config, here: bool) -> Iterator[str]:
    """Where it computes, and GPUs that it leaves idle."""
    engine = config.engine
    ranks, gpus = engine.world_size, torch.cuda.device_count() if here and accelerator() == "cuda" else 0
    where = " on a GPU each" if gpus else " on the CPU" if here else ""
    if engine.hostfile:
        where = f" on the hosts of {engine.hostfile}"
    yield f"{ranks:,} rank{'s'[: ranks > 1]}{where}, ZeRO {engine.zero_stage}, {engine.dtype}"
    alone = not engine.hostfile and rank_environment() is None  # no launcher says how many ranks there are
    if ranks < gpus and alone and config.train.global_batch_size % gpus == 0:
        yield f"this machine has {gpus} GPUs: engine.world_size={gpus} takes all"


def _cores(config: Config, here: bool) -> Iterator[str]:
    """Threads that wait for each other, or for other programs; a launcher knows better what its ranks may use."""
    if not here or accelerator() != "cpu" or rank_environment() is not None:
        return
    given = rank_variables(config)["OMP_NUM_THREADS"]
    if not given.isdigit():  # one number for each level of nested threads
        return
    ranks, threads, cores = config.engine.world_size, int(given), usable_cores()
    asked = f"{ranks * threads:,} threads ({ranks:,} rank{'s'[: ranks > 1]} with {threads:,})"
    fewer = f"engine.threads_per_rank={cores // ranks}" if cores >= ranks else f"engine.world_size={cores}"
    if ranks * threads > cores:
        yield f"{asked} share {cores:,} core{'s'[: cores > 1]}, which is slow: {fewer} fits"
    elif threads > 1 and (free := free_cores()) < ranks * threads - max(BUSY, BUSY_SHARE * ranks * threads):
        yield (
            f"other programs leave about {free:.1f} of {cores:,} cores to {asked}: "
            f"engine.threads_per_rank={max(1, int(free) // ranks)} can be several times faster"
        )


def _teacher(config: Config) -> Iterator[str]:
    """Whose answers are learned, and how much they count."""
    distill = config.distill
    if not (distill.live or distill.cache):
        return
    whose = f"drawn answers in {distill.cache}" if distill.cache else f"{distill.live}, which runs beside the model"
    hidden = f", weight {distill.hidden_weight:g} of hidden states" if distill.hidden_weight else ""
    yield f"{whose}: weight {distill.weight or 0.0:g}, temperature {distill.temperature:g}{hidden}"


def append_to_log(run_dir: Path, text: str) -> None:
    """Into rank 0's log, for the command that starts the ranks: it has no log of its own."""
    log = RunDir(run_dir).log(0)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{text}\n")


def _resume(config: Config) -> Iterator[str]:
    """Where an earlier start has left off."""
    if config.run.resume == "never" or config.run.dir is None:
        return
    for name in retention.to_resume(RunDir(Path(config.run.dir)).checkpoints)[:1]:
        step = int(name.removeprefix("step-").partition(".")[0])  # of step-00000002.replaced, too
        yield f"goes on at step {step} of {config.train.num_steps}, if {name} is whole"


def _data(config: Config, prepared: PreparedData) -> Iterator[str]:
    info = prepared.info
    drawn = sum(prepared.mixture.draws) if prepared.mixture else len(prepared.train)
    seen = config.train.num_steps * config.train.global_batch_size / drawn
    trained, held = (_samples(prepared, split) for split in SPLITS)
    taken = ", held out of data.train" if held_out_of_train(config.data) else ""
    uses = f"for training, seen {seen:.3g} times" if config.train.num_steps else "to calibrate on"
    yield f"{trained} {uses}; {held} for evaluation{taken}"
    for split in SPLITS:
        rows = info[f"{split}_rows"]
        for name, words in (
            ("rows_cut", f"are cut to data.max_length={config.data.max_length}"),
            ("rows_dropped", "have no supervised token and are dropped"),
            (
                "rows_joined",
                "lose the beginning of a completion, which is one token with the end of the prompt: let prompts (of "
                "messages, the chat template's generation prompt) end without their space, and completions begin with "
                "it",
            ),
            ("system_prompts_dropped", "lose their system prompt to the chat template"),
            ("tools_dropped", "lose their tools to the chat template"),
        ):
            if count := info.get(f"{split}_{name}"):
                yield f"{count:,} of {rows:,} {split} rows ({percent(count / rows)}) {words}"
    if left := info["train_tokens_left_over"]:
        yield f"{left:,} tokens at the end of the training text fill no block and are left out"


def _samples(prepared: PreparedData, split: str) -> str:
    """How many, and of how many. Tokens of a part are not counted: that would mean reading it."""
    used, made = len(getattr(prepared, split)), prepared.info[f"{split}_samples"]
    return f"{used:,} samples " + (f"({prepared.info[f'{split}_tokens']:,} tokens)" if used == made else f"of {made:,}")


def _labels(prepared: PreparedData) -> Iterator[str]:
    if prepared.label_names is None:
        return
    counts = label_counts(prepared.train, len(prepared.label_names))
    most = sorted(zip(prepared.label_names, counts.tolist(), strict=True), key=lambda one: -one[1])
    named = ", ".join(
        f"{shown_label(name)} {count:,} ({percent(count / counts.sum())})" for name, count in most[:SHOWN_LABELS]
    )
    yield f"{len(most)}: {named}{', ...' if len(most) > SHOWN_LABELS else ''}"


def _model(model: torch.nn.Module, config: Config) -> Iterator[str]:
    every = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = patterns.in_patterns([n for n, p in model.named_parameters() if not p.requires_grad])
    if not config.train.num_steps:
        yield f"{every:,} parameters, none of them trained"
        return
    yield f"{every:,} parameters, {trained:,} of them trained ({percent(trained / every)})"
    if frozen:
        yield f"frozen: {frozen}"


def _pruning(model: torch.nn.Module, pruner: Pruner, prepared: PreparedData, config: Config) -> Iterator[str]:
    if not pruner.pruners:
        yield "nothing: the run trains the model as it is"
        return
    for each in pruner.weight_pruners:
        share, matrices = percent(each.target_weights / each.numel), len(each.maps)
        yield (
            f"{each.name}: {share} of {each.numel:,} weights in {matrices:,} "
            f"matrices, by {each.criterion.name}, {each.granularity.describe(each.scope)}"
        )
        yield f"{each.name}: {patterns.in_patterns(list(each.shapes))}"
    for each in pruner.structure_pruners:
        left, fewer = each.goal.in_words(), f"{_about(each.goal.is_certain)}{each.target_weights:,} weights fewer"
        yield f"{each.name}: leaves {left}, {fewer}, by {each.method.name}"
    for each in pruner.pruners:
        if needs := each.calibration:
            when = "before the first selection" if needs.once else "at each cut"
            yield (
                f"{each.name}: calibrated {when}, on {_samples_of(needs.num_samples, prepared, config)}"
                + (f", the loss's gradients on {_back(needs, prepared)}" if needs.back else "")
                + (f"; then {_passes(needs.passes)} over them to fit each layer" if needs.passes else "")
            )
    totals, every = pruner.totals, sum(p.numel() for p in model.parameters())
    certain = all(each.goal.is_certain for each in pruner.structure_pruners)
    removed = totals.target * totals.numel
    left = "" if pruner.weight_pruners else f"; about {(every - removed) / 1e6:,.1f} M are left"
    yield (
        f"in all {_about(certain)}{percent(totals.target)} of the {totals.numel:,} prunable weights, "
        f"{_about(certain)}{percent(removed / every)} of all "
        f"parameters{left}"
    )
    if not pruner.structure_pruners:
        where = sorted({each.granularity.faster_where for each in pruner.weight_pruners})
        yield f"they become zeros, which are faster only where a runtime {' or '.join(where)}; structures are cut out"


def _about(is_certain: bool) -> str:
    return "" if is_certain else "about "


def _samples_of(asked: int, prepared: PreparedData, config: Config) -> str:
    """Those that calibrate, which are no more than there are."""
    given, there = config.data.calibration, prepared.to_calibrate()
    number = f"{asked:,}" if asked <= there else f"all {there:,}"
    if given is not None:
        return f"{number} samples of {given if isinstance(given, str) else ', '.join(given)}"
    if asked < there and not config.train.num_steps:
        return f"the first {number} samples"
    return f"the {number} samples that training sees first" if asked < there else f"all {there:,} training samples"


def _back(needs: Needs, prepared: PreparedData) -> str:
    if needs.back >= min(needs.num_samples, prepared.to_calibrate()):
        return "all of them"
    return f"{needs.back:,} of them" + (f", or more, until they have {needs.labels:,} labels" if needs.labels else "")


def _passes(count: int) -> str:
    return "1 pass" if count == 1 else f"{count:,} passes"


def _schedule(config: Config, model: torch.nn.Module, pruner: Pruner) -> Iterator[str]:
    train, optim = config.train, config.optim
    if not train.num_steps:
        yield "nothing is trained (train.num_steps=0): the run prunes, evaluates and ends"
    else:
        yield _steps(train, optim, model, bool(pruner.pruners))
    for one in pruner.pruners:
        yield f"{one.name}: {timetable.in_words(one)}"


def _steps(train: TrainConfig, optim: OptimConfig, model: torch.nn.Module, cuts: bool) -> str:
    warmup, rate = learning_rates.warmup_steps(optim.warmup, train.num_steps), learning_rates.highest(optim, model)
    lowered = f" ({optim.lr:g} is meant for hidden size {optim.base_width})" if rate != optim.lr else ""
    lowered += f" ({optim.head_lr:g} for the head)" if optim.head_lr is not None else ""
    return (
        f"{timetable.steps(train.num_steps)} of {train.global_batch_size} sequences; learning rate {rate:g}{lowered}, "
        f"{f'{timetable.steps(warmup)} of warm-up, then ' if warmup else ''}"
        f"{learning_rates.build(optim.lr_schedule).in_words(cuts)}"
    )


def _untested(config: Config) -> Iterator[str]:
    if config.engine.deepspeed_untested:
        yield f"never tested under pruning, and taken all the same: {', '.join(config.engine.deepspeed_untested)}"
