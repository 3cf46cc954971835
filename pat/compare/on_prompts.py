"""Asks both models the prompts of a mix, and says how far apart their answers are."""

from __future__ import annotations

import torch

from pat.compare.divergence import first_difference, kl
from pat.compare.pairs import Asked, Outcome, Pair, check_finite
from pat.evaluation import prompts
from pat.evaluation.fitting import labels
from pat.evaluation.models import Loaded, same_tokens
from pat.evaluation.prompts import PASSED, REFERENCE, Answer
from pat.prompts.mix import Mix, Prompt


def ask(mix: Mix, a: Loaded, b: Loaded, device: str, batch_size: int = 8) -> Asked:
    """Outcomes: whether all checks pass, and of language models the loss of the references. Raises ValueError."""
    answers = [prompts.ask(mix, one, device, batch_size) for one in (a, b)]
    for one, made in zip((a, b), answers, strict=True):
        for prompt, answer in zip(mix.prompts, made, strict=True):
            check_finite(answer.finite, one.path, f"the prompt {prompt.id}")
    with torch.inference_mode():
        if prompts.generative(a):
            return _generated(mix, a, b, answers, device)
    return _classified(mix, a, b, answers)


def _classified(mix: Mix, a: Loaded, b: Loaded, answers: list[list[Answer]]) -> Asked:
    comparable = labels(a.model) == labels(b.model)
    passed, pairs = Outcome(PASSED, True), list[Pair]()
    for i, (prompt, x, y) in enumerate(zip(mix.prompts, *answers, strict=True)):
        assert x.logits is not None and y.logits is not None
        apart = float(kl(x.logits[None], y.logits[None])) if comparable and len(x.logits) > 1 else None
        same = x.output == y.output
        pairs.append(_judged(prompt, passed, i, (x, y), same, apart, None))
    notes = [] if comparable else ["the models have different labels, so there is no KL"]
    return Asked(f"mix {mix.name}", pairs, [passed], notes)


def _generated(mix: Mix, a: Loaded, b: Loaded, answers: list[list[Answer]], device: str) -> Asked:
    same_ids, outcomes, pairs = same_tokens(a, b), (Outcome(PASSED, True), Outcome(REFERENCE, False)), list[Pair]()
    for i, (prompt, mine, theirs) in enumerate(zip(mix.prompts, *answers, strict=True)):
        apart = None
        if same_ids and mine.ids:
            x, y = (prompts.forced(one, list(mine.asked), list(mine.ids), device) for one in (a, b))
            apart = float(kl(x, y).mean()) if x.shape == y.shape else None
        same = mine.ids == theirs.ids if same_ids else mine.output == theirs.output
        first = first_difference(list(mine.ids), list(theirs.ids)) if same_ids else None
        pairs.append(_judged(prompt, outcomes[0], i, (mine, theirs), same, apart, first))
        if same_ids and mine.reference_loss is not None and theirs.reference_loss is not None:
            outcomes[1].add(i, mine.reference_loss, theirs.reference_loss, prompt.weight)
    notes = []
    if same_ids and any(pair.kl is None and answer.ids for pair, answer in zip(pairs, answers[0], strict=True)):
        notes.append("the models' embeddings are padded to different sizes, so there is no KL")
    if not same_ids:
        loss = (
            f", no {REFERENCE} (nats a token)"
            if any(answer.reference_loss is not None for answer in answers[0])
            else ""
        )
        notes.append(f"the models have different tokenizers: no KL, no first differing token{loss}")
    return Asked(f"mix {mix.name}", pairs, list(outcomes), notes)


def _judged(
    prompt: Prompt,
    passed: Outcome,
    position: int,
    answers: tuple[Answer, Answer],
    same: bool,
    apart: float | None,
    first: int | None,
) -> Pair:
    """The pair; its outcome is added where the prompt has checks. The further apart, the worse a regression."""
    a, b = answers
    if prompt.checks:
        passed.add(position, float(a.failure is None), float(b.failure is None), prompt.weight, apart or 0.0)
    return Pair(
        id=prompt.id,
        prompt=prompt.text,
        a=a.output,
        b=b.output,
        slices=tuple(prompt.slice_names),
        weight=prompt.weight,
        unit=prompt.unit,
        agreement=float(same),
        kl=apart,
        first_difference=first,
        why=b.failure,
    )
