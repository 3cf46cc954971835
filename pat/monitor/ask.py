"""Asks models: the embeddings of prompts in one model, and the answers of two models to the same prompts."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from pat.compare import on_prompts, result
from pat.compare.pairs import Pair
from pat.evaluation.models import Loaded
from pat.evaluation.prompts import PASSED, fitting, template_options
from pat.monitor.drift import Places
from pat.monitor.result import AGREEMENT, REPLAY, Asked, Check, Replayed
from pat.prompts.mix import Head, Mix, Prompt, content_id
from pat.statistics.drift import Drift

WORST = 20  # differing prompts that are kept


def places(prompts: Sequence[Prompt], one: Loaded) -> Places:
    """Tokens and mean input embeddings of prompts, without special tokens; nothing is run but a table look-up."""
    table = one.model.get_input_embeddings().weight.detach()
    lengths, means = [], []
    for prompt in prompts:
        ids = one.tokenizer(prompt.text, add_special_tokens=False, verbose=False)["input_ids"]
        lengths.append(float(len(ids)))
        mean = table[ids].double().mean(0) if ids else table.new_zeros(table.shape[1])
        means.append(mean.cpu().double().numpy())
    return Places(np.array(lengths), np.stack(means))


def chosen(
    prompts: Sequence[Prompt], n: int, models: Sequence[Loaded], output_tokens: int, mix: Mix | None, seed: int = 0
) -> tuple[list[Prompt], int]:
    """(at most n different prompts at random, how many had no room for an answer); prompts that are also in a mix get
    its checks."""
    known = {content_id(prompt): prompt.checks for prompt in mix.prompts} if mix else {}
    different = {content_id(prompt): prompt for prompt in prompts}
    some = random.Random(seed).sample(sorted(different), min(n, len(different)))
    made = [
        different[each].changed(id=each, checks=different[each].checks or known.get(each, []), output_tokens=None)
        for each in some
    ]
    fits = made
    for one in models:
        fits = fitting(fits, one, output_tokens, _options(models, mix))
    return fits, len(made) - len(fits)


def replay(
    prompts: Sequence[Prompt],
    dense: Loaded,
    pruned: Loaded,
    device: str,
    batch_size: int,
    output_tokens: int,
    mix: Mix | None = None,
) -> tuple[Replayed, list[Check]]:
    """Both models on the prompts; a check where prompts define what is right, which alerts only if B is worse."""
    head = Head(output_tokens=output_tokens, template_options=_options((dense, pruned), mix))
    asked = on_prompts.ask(Mix(head, Path("log"), tuple(prompts)), dense, pruned, device, batch_size)
    found = result.compare(asked, str(dense.path), str(pruned.path))
    passed = next((each for each in found.outcomes if each.name == PASSED), None)
    regressive = {one.pair.id for one in passed.regressions} if passed else set[str]()
    replayed = Replayed(
        dense=str(dense.path),
        prompts=found.prompts,
        checked=passed.overall.found.n if passed else 0,
        agreement=found.agreement,
        kl=found.kl,
        regressive=passed.num_regressions if passed else 0,
        worst=list(_worst(asked.pairs, regressive)),
    )
    if passed is None:
        return replayed, []
    overall = passed.overall.found
    worse = Drift(abs(overall.difference), overall.p if overall.difference < 0.0 else 1.0, overall.test)
    return replayed, [Check(REPLAY, "right answers", worse, {"share": (overall.a, overall.b)}, share=True)]


def _options(models: Sequence[Loaded], mix: Mix | None) -> dict[str, Any]:
    """For the chat template: those of the mix, or else those that the last of the models was trained with."""
    if mix is not None and mix.head.template_options is not None:
        return mix.head.template_options
    return next((found for one in reversed(models) if (found := template_options(one.path))), {})


def agreement(replayed: Replayed, least: float) -> Check:
    """Whether fewer prompts than required have equal outputs: the exact binomial test, one-sided, by scipy."""
    share = replayed.agreement or 0.0
    p = stats.binomtest(round(share * replayed.prompts), replayed.prompts, least, alternative="less").pvalue
    return Check(REPLAY, AGREEMENT, Drift(max(0.0, least - share), float(p), "binomial, exact"),
                 {"share": (least, share)}, share=True)  # fmt: skip


def _worst(pairs: Sequence[Pair], regressive: set[str]) -> Iterator[Asked]:
    differing = [pair for pair in pairs if pair.agreement != 1.0 or pair.id in regressive]
    differing.sort(key=lambda pair: (pair.id not in regressive, -(pair.kl or 0.0), pair.id))
    for pair in differing[:WORST]:
        worse = pair.id in regressive
        why = (pair.why or "") if worse else ""
        yield Asked(pair.id, pair.prompt, pair.slices, pair.a, pair.b, why, worse, pair.kl)
