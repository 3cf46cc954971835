"""Asks both models the prompts of a mix: classifiers for a label, language models for a text, decoded greedily."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig

from pat.compare.divergence import first_difference, kl
from pat.compare.models import same_tokens
from pat.compare.pairs import Asked, Loaded, Outcome, Pair
from pat.export.evaluate import labels
from pat.prompts.mix import Mix, Prompt

PASSED, REFERENCE = "passed", "reference_loss"


def ask(mix: Mix, a: Loaded, b: Loaded, device: str, batch_size: int = 8) -> Asked:
    """Outcomes: whether all checks pass, and of language models the loss of the references. Raises ValueError."""
    generative = bool(getattr(a.model, "can_generate", lambda: False)())
    work = _generated if generative else _classified
    with torch.inference_mode():
        return work(mix, a, b, device, batch_size)


def _classified(mix: Mix, a: Loaded, b: Loaded, device: str, batch_size: int) -> Asked:
    logits, names = [_class_logits(mix, one, device) for one in (a, b)], [labels(one.model) for one in (a, b)]
    comparable = names[0] == names[1]
    passed, pairs = Outcome(PASSED, True), list[Pair]()
    for i, prompt in enumerate(mix.prompts):
        x, y = logits[0][i], logits[1][i]
        outputs = [_answer(own, each) for own, each in zip(names, (x, y), strict=True)]
        same = outputs[0] == outputs[1]
        apart = float(kl(x[None], y[None])) if comparable and len(x) > 1 else None
        pairs.append(_judged(prompt, passed, i, outputs, same, apart, None if same else 0))
    notes = [] if comparable else ["the models have different labels, so there is no KL"]
    return Asked(f"mix {mix.name}", pairs, [passed], notes)


def _answer(names: Sequence[str], logits: Tensor) -> str:
    """The most probable label; of a regression its number."""
    return names[int(logits.argmax())] if len(logits) > 1 else f"{float(logits[0]):.6g}"


def _class_logits(mix: Mix, one: Loaded, device: str) -> list[Tensor]:
    """(c,) of each prompt, one at a time, so that padding decides nothing."""
    limit, made = min(_positions(one) or one.tokenizer.model_max_length, one.tokenizer.model_max_length), []
    for prompt in mix.prompts:
        if prompt.messages is not None:
            raise ValueError(f"the prompt {prompt.id} is a chat, and {one.path} a classifier: give prompts of text")
        texts = (prompt.prompt,) if prompt.text_pair is None else (prompt.prompt, prompt.text_pair)
        encoded = one.tokenizer(*texts, truncation=True, max_length=limit, return_tensors="pt", verbose=False)
        made.append(one.model(**encoded.to(device)).logits[0].float().cpu())
    return made


def _generated(mix: Mix, a: Loaded, b: Loaded, device: str, batch_size: int) -> Asked:
    asked = [[_ids(prompt, one) for prompt in mix.prompts] for one in (a, b)]
    most = [prompt.output_tokens or mix.head.output_tokens for prompt in mix.prompts]
    for one, ids in zip((a, b), asked, strict=True):
        _check_positions(mix, one, ids, most)
    answers = [_answers(one, ids, most, device, batch_size) for one, ids in zip((a, b), asked, strict=True)]
    same_ids, outcomes, pairs = same_tokens(a, b), (Outcome(PASSED, True), Outcome(REFERENCE, False)), list[Pair]()
    for i, prompt in enumerate(mix.prompts):
        mine, theirs = answers[0][i], answers[1][i]
        outputs = [
            one.tokenizer.decode(ids, skip_special_tokens=True) for one, ids in zip((a, b), (mine, theirs), strict=True)
        ]
        apart = None
        if same_ids and mine:
            x, y = (_forced(one, asked[0][i], mine, device) for one in (a, b))
            apart = float(kl(x, y).mean()) if x.shape == y.shape else None
        same = mine == theirs if same_ids else outputs[0] == outputs[1]
        first = first_difference(mine, theirs) if same_ids else None
        pairs.append(_judged(prompt, outcomes[0], i, outputs, same, apart, first))
        if prompt.reference is not None:
            losses = [_loss(one, ids[i], prompt.reference, device) for one, ids in zip((a, b), asked, strict=True)]
            outcomes[1].add(i, losses[0], losses[1], prompt.weight)
    notes = [] if same_ids else ["the models have different tokenizers: no KL, no first differing token"]
    return Asked(f"mix {mix.name}", pairs, list(outcomes), notes)


def _judged(
    prompt: Prompt,
    passed: Outcome,
    position: int,
    outputs: Sequence[str],
    same: bool,
    apart: float | None,
    first: int | None,
) -> Pair:
    """The pair; its outcome is added where the prompt has checks. The further apart, the worse a regression."""
    why = None
    if prompt.checks:
        a, why = (prompt.failure(output) for output in outputs)
        passed.add(position, float(a is None), float(why is None), prompt.weight, apart or 0.0)
    return Pair(
        id=prompt.id,
        prompt=prompt.text,
        a=outputs[0],
        b=outputs[1],
        slices=tuple(prompt.slice_names),
        weight=prompt.weight,
        agreement=float(same),
        kl=apart,
        first_difference=first,
        why=why,
    )


def _ids(prompt: Prompt, one: Loaded) -> list[int]:
    """The prompt's tokens, up to where the answer begins."""
    if prompt.messages is None:
        ids = one.tokenizer(prompt.prompt, verbose=False)["input_ids"]
        eos = one.tokenizer.eos_token_id
        ids = ids[:-1] if len(ids) > 1 and ids[-1] == eos else ids  # some tokenizers end every text
    elif one.tokenizer.chat_template is None:
        raise ValueError(
            f"the prompt {prompt.id} is a chat, and the tokenizer of {one.path} has no chat template: give a chat "
            "model, or prompts of text"
        )
    else:
        ids = one.tokenizer.apply_chat_template(
            prompt.messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    if not ids:
        raise ValueError(f"the prompt {prompt.id} has no tokens")
    return list(ids)


def _check_positions(mix: Mix, one: Loaded, asked: list[list[int]], most: list[int]) -> None:
    limit = _positions(one)
    for prompt, ids, wanted in zip(mix.prompts, asked, most, strict=True):
        if limit is not None and len(ids) + wanted > limit:
            raise ValueError(
                f"the prompt {prompt.id} has {len(ids)} tokens and may have {wanted} more, beyond the {limit} "
                f"positions of {one.path}: shorten it, or lower its output_tokens"
            )


def _positions(one: Loaded) -> int | None:
    return getattr(one.model.config.get_text_config(), "max_position_embeddings", None)


def _answers(one: Loaded, asked: list[list[int]], most: list[int], device: str, batch_size: int) -> list[list[int]]:
    """Each prompt's new tokens without the one that ends them; both models are asked in the same batches."""
    ends = _ends(one)
    found: list[list[int]] = [[] for _ in asked]
    order = sorted(range(len(asked)), key=lambda i: (most[i], len(asked[i])), reverse=True)
    pad = int(one.tokenizer.pad_token_id)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        width = max(len(asked[i]) for i in chosen)
        ids = torch.tensor([[pad] * (width - len(asked[i])) + asked[i] for i in chosen])
        mask = torch.tensor([[0] * (width - len(asked[i])) + [1] * len(asked[i]) for i in chosen])
        settings = GenerationConfig(
            max_new_tokens=max(most[i] for i in chosen), do_sample=False, pad_token_id=pad, eos_token_id=ends or None
        )
        made = one.model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings)
        for i, row in zip(chosen, made[:, width:].tolist(), strict=True):
            row = row[: most[i]]
            found[i] = row[: next((at for at, token in enumerate(row) if token in ends), len(row))]
    return found


def _ends(one: Loaded) -> list[int]:
    """The tokens that end an answer: the model's own, and the tokenizer's end of text."""
    own = one.model.generation_config.eos_token_id
    ends = own if isinstance(own, list) else [own]
    return sorted({int(token) for token in [*ends, one.tokenizer.eos_token_id] if token is not None})


def _forced(one: Loaded, asked: list[int], answer: list[int], device: str) -> Tensor:
    """(len(answer), v): the logits of each token of an answer, given those before it."""
    ids = torch.tensor([asked + answer], device=device)
    logits = _forward(one)(ids, len(answer) + 1)[0, -len(answer) - 1 : -1]
    return logits.float()


def _forward(one: Loaded) -> Callable[[Tensor, int], Tensor]:
    """The last logits only, where the model can: a vocabulary is large."""
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
    logits = _forced(one, asked, answer, device)
    return float(F.cross_entropy(logits, torch.tensor(answer, device=device)))
