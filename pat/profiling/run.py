"""Opens the models, each in its worker, and measures them beside the first."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from transformers import AutoModelForCausalLM

from pat.common.machine import cpu_name
from pat.common.progress_bar import progress_bar
from pat.evaluation.fitting import model_config, tasks_of
from pat.evaluation.folders import weight_bytes, weights_sha256
from pat.evaluation.prompts import ids_of
from pat.export import origins
from pat.models import limits, tokenizers
from pat.models.weight_files import check_weights
from pat.profiling import operations, plan
from pat.profiling import table as latency
from pat.profiling.backends import EXPORTED, Settings
from pat.profiling.figures import Facts, Profile, profile
from pat.profiling.measure import Samples, calls, measure
from pat.profiling.plan import Plan, Work
from pat.profiling.vllm import MARGIN, Server
from pat.profiling.worker import Message, Worker, export
from pat.prompts.mix import Mix
from pat.schema import ModelConfig

Contender = Worker | Server


@dataclass(frozen=True)
class Asked:
    """What the user asks of `pat profile`, the same for all models."""

    backends: tuple[str, ...]
    device: str
    dtype: str
    requests: int
    batch_sizes: tuple[int, ...]
    lengths: tuple[tuple[int, int], ...] | None  # None: the mix's, or DEFAULT_LENGTHS
    warm_up: int
    threads: int
    price_per_hour: float | None
    confidence: float
    seed: int


@dataclass(frozen=True)
class Model:
    """A folder to measure."""

    name: str  # what the user gave
    folder: Path
    generative: bool
    positions: int | None
    prompts: list[list[int]]  # of the mix, by its own tokenizer


@dataclass(frozen=True)
class Result:
    """Everything that was measured."""

    device: str
    requests: int
    profiles: list[Profile]
    table: dict[str, Any] | None = None


def run(paths: Sequence[Path], mix: Mix | None, asked: Asked, table: bool = False) -> Result:
    """Profiles of all models on all backends; the first is the baseline of the others. Raises ValueError.

    table: also the seconds of the first model's layers by their widths, for one prompt of the median length.
    """
    mix = None if asked.lengths else mix
    with contextlib.ExitStack() as stack:
        models = [stack.enter_context(_opened(path, mix)) for path in paths]
        made = _plan(models, mix, asked)
        if table:  # refuse impossible requests before the models are measured
            latency.check(models[0].folder, models[0].name)
        _check_positions(models, made)
        weights = {model.name: weights_sha256(model.folder) for model in models}
        named = device_name(asked.device, asked.threads)
        contenders = [(model, backend) for backend in asked.backends for model in models]
        workers, ready = list[Contender](), list[Message]()
        for model, backend in contenders:  # one after another, so that each load time is that of one model
            with Console(stderr=True).status(f"loading {escape(model.name)} ({backend})"):
                workers.append(stack.enter_context(_contender(model, backend, made, asked, len(contenders))))
                ready.append(workers[-1].ready())
        with progress_bar("measuring", calls(made, len(workers), asked.warm_up)) as advance:
            samples = measure(made, workers, asked.seed, asked.warm_up, advance)
        ended = [worker.close() for worker in workers]
        prompt = int(median(work.prompt_tokens for work in made.requests))
        counted = {model.name: operations.flops(model.folder, prompt) for model in models}
        facts = [
            Facts(
                folder=m.name,
                backend=backend,
                device=named,
                bytes_on_disk=weight_bytes(m.folder),
                weights_sha256=weights[m.name],
                flops=counted[m.name],
                flops_tokens=prompt,
                **first,
                **last,
            )
            for (m, backend), first, last in zip(contenders, ready, ended, strict=True)
        ]
        measured = _table(models[0], prompt, named, asked) if table else None
    return Result(named, len(made.requests), profiles(facts, made, samples, asked), measured)


def profiles(facts: Sequence[Facts], made: Plan, samples: Sequence[Samples], asked: Asked) -> list[Profile]:
    """The figures of each model, the first being the baseline."""
    return [
        profile(fact, made, sample, samples[0] if i else None, asked.price_per_hour, asked.confidence, asked.seed)
        for i, (fact, sample) in enumerate(zip(facts, samples, strict=True))
    ]


def device_name(device: str, threads: int) -> str:
    """The name of the device that the figures were measured on."""
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(torch.device(device))}, torch {torch.__version__}"
    many = "1 thread" if threads == 1 else f"{threads} threads"
    return f"{cpu_name() if device == 'cpu' else device}, {many}, torch {torch.__version__}"


def _table(model: Model, prompt: int, device: str, asked: Asked) -> dict[str, Any]:
    torch.set_num_threads(asked.threads)
    with progress_bar(
        "timing layers", latency.calls(latency.check(model.folder, model.name), asked.requests)
    ) as advance:
        work = Work(1, prompt, 0)
        return latency.table(model.folder, work, asked.device, device, asked.dtype, asked.requests, asked.seed, advance)


@contextlib.contextmanager
def _opened(path: Path, mix: Mix | None) -> Iterator[Model]:
    """A run's best checkpoint, exported for as long as it is needed, or any folder with safetensors. ValueError."""
    with origins.model_folder(path) as (folder, _):
        config = model_config(folder)
        if not tasks_of(config):
            saved = " or ".join(config.architectures or ["model without an architecture"])
            raise ValueError(f"{path} holds a {saved}: give a language model, or a classifier of texts")
        check_weights(str(folder), str(path))
        if not any(folder.glob("*.safetensors")):
            raise ValueError(f"{path} holds no safetensors, and pickles are not read: save it again as safetensors")
        model = Model(str(path), folder, is_generative(config), limits.positions(config), [])
        yield model if mix is None else replace(model, prompts=_tokens(mix, model))


def is_generative(config: Any) -> bool:
    """Whether the saved class generates text."""
    classes: Any = AutoModelForCausalLM._model_mapping.get(type(config), ())
    names = [cls.__name__ for cls in (classes if isinstance(classes, tuple) else (classes,))]
    return (config.architectures or [""])[0] in names


def _tokens(mix: Mix, model: Model) -> list[list[int]]:
    """Each prompt's tokens, as many as in production where the mix says how many."""
    tokenizer: Any = tokenizers.build_tokenizer(ModelConfig(path=str(model.folder)))
    found = []
    for prompt in mix.prompts:
        if model.generative:
            ids = ids_of(prompt, tokenizer, Path(model.name), mix.head.template_options or {})
        else:
            if prompt.messages is not None:
                raise ValueError(
                    f"the prompt {prompt.id} is a chat, and {model.name} a classifier: give prompts of text"
                )
            texts = (prompt.prompt,) if prompt.text_pair is None else (prompt.prompt, prompt.text_pair)
            ids = tokenizer(*texts, **limits.cut(model.positions, tokenizer), verbose=False)["input_ids"]
        wanted = prompt.prompt_tokens or len(ids)
        found.append((ids * -(-wanted // len(ids)))[:wanted])
    return found


def _plan(models: Sequence[Model], mix: Mix | None, asked: Asked) -> Plan:
    generative = models[0].generative
    other = next((model for model in models if model.generative != generative), None)
    if other is not None:
        kinds = ("a language model", "a classifier") if generative else ("a classifier", "a language model")
        raise ValueError(f"{models[0].name} is {kinds[0]} and {other.name} {kinds[1]}: profile one kind")
    if mix is not None:
        lengths = [len(ids) for ids in models[0].prompts]
        return plan.of_mix(mix, lengths, generative, asked.batch_sizes, asked.requests, asked.seed)
    lengths = plan.of_a_kind(asked.lengths or plan.DEFAULT_LENGTHS, generative, models[0].name)
    return plan.of_lengths(lengths, asked.batch_sizes, asked.requests)


def _check_positions(models: Sequence[Model], made: Plan) -> None:
    for model in models:
        for work in made.distinct:
            prompt = work.prompt_tokens if work.prompt is None else len(model.prompts[work.prompt])
            plan.check_positions(prompt, work.output_tokens, model.positions, model.name)


@contextlib.contextmanager
def _contender(model: Model, backend: str, made: Plan, asked: Asked, others: int) -> Iterator[Contender]:
    """A process with the model; for a backend with its own files, after they are written."""
    longest: dict[int, int] = {}
    for work in made.distinct:
        prompt = work.prompt_tokens if work.prompt is None else len(model.prompts[work.prompt])
        longest[work.batch_size] = max(longest.get(work.batch_size, 0), prompt + work.output_tokens)
    if backend == "vllm":
        most = max(longest.values()) + MARGIN
        most = most if model.positions is None else min(most, model.positions)
        how = (asked.device, asked.dtype, asked.threads, most, others)
        with Server(model.folder, model.name, model.generative, *how) as server:
            yield server
        return
    settings = Settings(
        str(model.folder), model.name, model.generative, asked.device, asked.dtype, asked.threads, longest
    )
    with contextlib.ExitStack() as stack:
        if backend in EXPORTED:
            out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pat-profile-")))
            export(backend, settings, out)
            settings = replace(settings, folder=str(out))
        _read(Path(settings.folder))
        yield stack.enter_context(Worker(backend, settings, model.prompts))


def _read(folder: Path) -> None:
    """Read all files once, so that every model, including the first, is loaded from the system's cache."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with open(path, "rb") as file:
                while file.read(1 << 24):
                    pass
