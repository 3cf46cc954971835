"""Asks one model the prompts of a mix: a classifier for a label, a language model for a text, decoded greedily."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from pat.common.files import read_json
from pat.common.text import did_you_mean
from pat.common.yaml_files import read_yaml
from pat.evaluation.fitting import labels
from pat.evaluation.models import Loaded
from pat.export.origins import is_run
from pat.models import limits
from pat.prompts.checks.label import Label
from pat.prompts.mix import Mix, Prompt
from pat.run.directory import RunDir
from pat.tasks.templates import ChatTemplate

PASSED, REFERENCE = "passed", "reference_loss"  # what is measured: all checks pass; nats a token of the reference
DIVERGED = "the model's logits are not finite"


@dataclass(frozen=True)
class Answer:
    """What a model made of a prompt."""

    output: str
    failure: str | None  # why its checks do not pass; None where they do, or where there are none
    logits: Tensor | None = None  # (c,) of a classifier
    asked: tuple[int, ...] = ()  # a language model's tokens: of the prompt
    ids: tuple[int, ...] = ()  # of the answer, without the one that ends it
    reference_loss: float | None = None  # nats a token
    finite: bool = True  # whether all logits are; else no check passes, whatever token has the highest one by chance


def generative(one: Loaded) -> bool:
    """Whether it answers with a text."""
    return bool(getattr(one.model, "can_generate", lambda: False)())


def ask(mix: Mix, one: Loaded, device: str, batch_size: int = 8) -> list[Answer]:
    """An answer to each prompt. Raises ValueError for prompts that this model cannot be asked."""
    with torch.inference_mode():
        return _generated(mix, one, device, batch_size) if generative(one) else _classified(mix, one, device)


def _classified(mix: Mix, one: Loaded, device: str) -> list[Answer]:
    names = labels(one.model)
    _check_labels(mix, names, one)
    made = []
    for prompt, logits in zip(mix.prompts, _class_logits(mix, one, device), strict=True):
        output, finite = _answer(names, logits), bool(logits.isfinite().all())
        made.append(Answer(output, prompt.failure(output) if finite else DIVERGED, logits, finite=finite))
    return made


def _check_labels(mix: Mix, names: Sequence[str], one: Loaded) -> None:
    """ValueError for a right label that the classifier can never answer: a misspelt one would count as its mistake."""
    for prompt in mix.prompts if len(names) > 1 else ():
        for check in prompt.checks:
            if isinstance(check, Label) and all(check.failure(name, {}) for name in names):
                close = did_you_mean(check.label, names)
                raise ValueError(
                    f"the prompt {prompt.named} has the label {check.label!r}, which is none of the {len(names)} of "
                    f"{one.path}{close}"
                )


def _generated(mix: Mix, one: Loaded, device: str, batch_size: int) -> list[Answer]:
    options = mix.head.template_options or {}
    asked = [ids_of(prompt, one.tokenizer, one.path, options) for prompt in mix.prompts]
    most = [prompt.output_tokens or mix.head.output_tokens for prompt in mix.prompts]
    _check_positions(mix, one, asked, most)
    made = []
    found = _answers(one, asked, most, device, batch_size)
    for prompt, before, (ids, finite) in zip(mix.prompts, asked, found, strict=True):
        output = one.tokenizer.decode(ids, skip_special_tokens=True)
        failure = prompt.failure(output) if finite else DIVERGED
        loss = None if prompt.reference is None else _loss(one, before, prompt.reference, device)
        made.append(Answer(output, failure, asked=tuple(before), ids=tuple(ids), reference_loss=loss, finite=finite))
    return made


def _answer(names: Sequence[str], logits: Tensor) -> str:
    """The most probable label; of a regression its number."""
    return names[int(logits.argmax())] if len(logits) > 1 else f"{float(logits[0]):.6g}"


def _class_logits(mix: Mix, one: Loaded, device: str) -> list[Tensor]:
    """(c,) of each prompt, one at a time, so that padding decides nothing."""
    cut, made = limits.cut(_positions(one), one.tokenizer), []
    for prompt in mix.prompts:
        if prompt.messages is not None:
            raise ValueError(f"the prompt {prompt.id} is a chat, and {one.path} a classifier: give prompts of text")
        texts = (prompt.prompt,) if prompt.text_pair is None else (prompt.prompt, prompt.text_pair)
        encoded = one.tokenizer(*texts, **cut, return_tensors="pt", verbose=False)
        made.append(one.model(**encoded.to(device)).logits[0].float().cpu())
    return made


def as_trained(mix: Mix, paths: Sequence[Path]) -> Mix:
    """The mix, whose chats are asked with the variables for the chat template that these runs or exports were trained
    with, where it names none: all models alike. ValueError where they were trained with different ones."""
    if mix.head.template_options is not None or all(prompt.messages is None for prompt in mix.prompts):
        return mix
    trained = {path: options for path in paths if (options := template_options(path))}
    first = next(iter(trained.values()), {})
    for path, options in trained.items():
        if options != first:
            raise ValueError(
                f"{path} was trained with task.template_options={options}, and {next(iter(trained))} with {first}: "
                "set template_options in the mix's settings, which then holds for both"
            )
    return replace(mix, head=mix.head.changed(template_options=first))


def template_options(path: Path) -> dict[str, Any]:
    """The variables for its chat template that a model was trained with, as far as its run or export says."""
    said: Any = read_yaml(RunDir(path).config) if is_run(path) else (read_json(path / "export.json") or {})
    for name in (*(() if is_run(path) else ("config",)), "task", "template_options"):
        said = said.get(name) if isinstance(said, Mapping) else None
    return dict(said) if isinstance(said, Mapping) else {}


def ids_of(prompt: Prompt, tokenizer: Any, path: Path, options: Mapping[str, Any]) -> list[int]:
    """The prompt's tokens, up to where the answer begins; `options` are for the chat template."""
    if prompt.messages is None:
        ids = tokenizer(prompt.prompt, verbose=False)["input_ids"]
        eos = tokenizer.eos_token_id
        ids = ids[:-1] if len(ids) > 1 and ids[-1] == eos else ids  # some tokenizers end every text
    elif tokenizer.chat_template is None:
        raise ValueError(
            f"the prompt {prompt.id} is a chat, and the tokenizer of {path} has no chat template: give a chat "
            "model, or prompts of text"
        )
    else:
        text = ChatTemplate(tokenizer, options).asked(prompt.messages)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if not ids:
        raise ValueError(f"the prompt {prompt.id} has no tokens: give it a text, or remove it")
    return list(ids)


def fitting(prompts: Sequence[Prompt], one: Loaded, output_tokens: int, options: Mapping[str, Any]) -> list[Prompt]:
    """Those that leave a language model positions for an answer; of a classifier, which cuts texts, all."""
    limit = _positions(one)
    if limit is None or not generative(one):
        return list(prompts)
    return [
        prompt
        for prompt in prompts
        if len(ids_of(prompt, one.tokenizer, one.path, options)) + (prompt.output_tokens or output_tokens) <= limit
    ]


def _check_positions(mix: Mix, one: Loaded, asked: list[list[int]], most: list[int]) -> None:
    limit = _positions(one)
    for prompt, ids, wanted in zip(mix.prompts, asked, most, strict=True):
        if limit is not None and len(ids) + wanted > limit:
            raise ValueError(
                f"the prompt {prompt.id} has {len(ids)} tokens and may have {wanted} more, beyond the {limit} "
                f"positions of {one.path}: shorten it, or lower its output_tokens"
            )


def _positions(one: Loaded) -> int | None:
    return limits.positions(one.model.config)


class _Finite(LogitsProcessor):
    """Remembers which sequences of a batch had a logit that is not a number, or is infinite."""

    def __init__(self) -> None:
        self.failed: Tensor | bool = False  # (b,)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.failed |= ~(scores < torch.inf).all(-1)  # -inf is how other processors exclude a token
        return scores


def _answers(
    one: Loaded, asked: list[list[int]], most: list[int], device: str, batch_size: int
) -> list[tuple[list[int], bool]]:
    """Each prompt's new tokens without the one that ends them, and whether all logits were finite; both models are
    asked in the same batches."""
    ends = _ends(one)
    found: list[tuple[list[int], bool]] = [([], True) for _ in asked]
    order = sorted(range(len(asked)), key=lambda i: (most[i], len(asked[i])), reverse=True)
    pad = int(one.tokenizer.pad_token_id)
    for chosen in _batches(order, asked, most, batch_size, _positions(one)):
        width = max(len(asked[i]) for i in chosen)
        ids = torch.tensor([[pad] * (width - len(asked[i])) + asked[i] for i in chosen])
        mask = torch.tensor([[0] * (width - len(asked[i])) + [1] * len(asked[i]) for i in chosen])
        settings = GenerationConfig(
            max_new_tokens=max(most[i] for i in chosen), do_sample=False, pad_token_id=pad, eos_token_id=ends or None
        )
        seen = _Finite()
        with _without_own_settings(one.model):
            made = one.model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings,
                logits_processor=LogitsProcessorList([seen]),
            )  # fmt: skip
        failed = torch.as_tensor(seen.failed).tolist()
        for i, row, wrong in zip(chosen, made[:, width:].tolist(), failed, strict=True):
            row = row[: most[i]]
            found[i] = row[: next((at for at, token in enumerate(row) if token in ends), len(row))], not wrong
    return found


def _batches(
    order: Sequence[int], asked: Sequence[list[int]], most: Sequence[int], batch_size: int, positions: int | None
) -> Iterator[list[int]]:
    """Prompts that are asked together: all of them generate as much as the one that may say most, after padding to the
    longest, and both together must not go beyond the model's positions."""
    chosen: list[int] = []
    for i in order:
        together = [*chosen, i]
        needed = max(len(asked[j]) for j in together) + max(most[j] for j in together)
        if chosen and (len(chosen) == batch_size or (positions is not None and needed > positions)):
            yield chosen
            together = [i]
        chosen = together
    if chosen:
        yield chosen


@contextlib.contextmanager
def _without_own_settings(model: Any) -> Iterator[None]:
    """`generate` fills whatever our settings leave open from the model's own, such as a repetition penalty or beams."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _ends(one: Loaded) -> list[int]:
    """The tokens that end an answer: the model's own, and the tokenizer's end of text."""
    own = one.model.generation_config.eos_token_id
    ends = own if isinstance(own, list) else [own]
    return sorted({int(token) for token in [*ends, one.tokenizer.eos_token_id] if token is not None})


def forced(one: Loaded, asked: list[int], answer: list[int], device: str) -> Tensor:
    """(len(answer), v): the logits of each token of an answer, given those before it."""
    ids = torch.tensor([asked + answer], device=device)
    logits = _forward(one)(ids, len(answer) + 1)[0, -len(answer) - 1 : -1]
    return logits.float()


def _forward(one: Loaded) -> Callable[[Tensor, int], Tensor]:
    """Only the last logits, where the model supports it: vocabularies are large."""
    few = "logits_to_keep" in inspect.signature(one.model.forward).parameters

    def forward(ids: Tensor, last: int) -> Tensor:
        options: dict[str, Any] = {"logits_to_keep": last} if few else {}
        return one.model(input_ids=ids, use_cache=False, **options).logits

    return forward


def _loss(one: Loaded, asked: list[int], reference: str, device: str) -> float:
    """Nats a token of the reference after the prompt."""
    answer = list(one.tokenizer(reference, add_special_tokens=False, verbose=False)["input_ids"])
    limit = _positions(one)
    if limit is not None:
        answer = answer[: max(1, limit - len(asked))]
    logits = forced(one, asked, answer, device)
    return float(F.cross_entropy(logits, torch.tensor(answer, device=device)))
