"""Prompts with a purpose: suites with prefixes, and pairs of prompts that differ in a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pat.common.text import did_you_mean
from pat.prompts.mix import Prompt, Suite

SUITE, PREFIX, PLAIN = "suite", "prefix", "none"  # dimensions of slices, and the value of a prompt without a prefix


def expanded(prompt: Prompt, suites: Mapping[str, Suite]) -> list[Prompt]:
    """The prompt as its suite asks it: with the suite's checks, and once more with each prefix. Raises ValueError.

    They share its weight, so that a suite has as much of the traffic with prefixes as without.
    """
    if prompt.suite is None:
        return [prompt]
    if prompt.suite not in suites:
        known = ", ".join(suites) or "none: name it in the mix's settings, which come first"
        raise ValueError(
            f"the prompt {prompt.id} names the suite {prompt.suite!r}; mix.suites has {known}"
            f"{did_you_mean(prompt.suite, list(suites))}"
        )
    suite = suites[prompt.suite]
    taken = [name for name in (SUITE, *([PREFIX] if suite.prefixes else [])) if name in prompt.slices]
    if taken:
        raise ValueError(f"the prompt {prompt.id} has a slice of {taken[0]}, which its suite gives it: leave it out")
    whole = prompt.changed(checks=[*prompt.checks, *suite.checks], slices={SUITE: prompt.suite, **prompt.slices})
    if not suite.prefixes:
        return [whole]
    made = [whole.changed(slices={**whole.slices, PREFIX: PLAIN})]
    for name, text in suite.prefixes.items():
        place = f"mix.suites.{prompt.suite}.prefixes.{name}"
        if name == PLAIN:
            raise ValueError(f"{place}: this name is reserved for prompts without a prefix: choose another")
        if not text:
            raise ValueError(f"{place} is empty: give a text, or leave the prefix out")
        named = {"id": f"{whole.id}+{name}", "variant_of": whole.unit}
        made.append(_before(whole, text).changed(slices={**whole.slices, PREFIX: name}, **named))
        if whole.pair is not None:
            made[-1] = made[-1].changed(pair=f"{whole.pair}+{name}")
    return [each.changed(weight=prompt.weight / len(made)) for each in made]


def of_roots(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts, each a variant of the one that varies no other. ValueError for an id of no prompt, and a circle."""
    by_id = {prompt.id: prompt for prompt in prompts}
    made = []
    for prompt in prompts:
        root, seen = prompt, {prompt.id}
        while root.variant_of not in ("", root.id):
            if root.variant_of not in by_id:
                raise ValueError(
                    f"the prompt {root.named} is a variant_of {root.variant_of!r}, which is the id of no prompt"
                    f"{did_you_mean(root.variant_of, list(by_id))}"
                )
            root = by_id[root.variant_of]
            if root.id in seen:
                raise ValueError(f"the prompt {root.named} varies itself: variant_of goes round in a circle")
            seen.add(root.id)
        made.append(prompt if root is prompt else prompt.changed(variant_of=root.id))
    return made


def groups(prompts: Sequence[Prompt]) -> list[tuple[str, dict[str, int]]]:
    """(dimension, {group: the prompt's place}) of each pair: one slice names the group. Raises ValueError."""
    pairs: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        if prompt.pair is not None:
            pairs.setdefault(prompt.pair, []).append(i)
    found = []
    for name, places in pairs.items():
        slices = [prompts[i].slices for i in places]
        known = dict.fromkeys(dimension for each in slices for dimension in each)
        differing = [dimension for dimension in known if len({each.get(dimension) for each in slices}) > 1]
        values = [each.get(differing[0]) for each in slices] if len(differing) == 1 else []
        if len(places) < 2 or len(set(values)) < len(places) or None in values:
            raise ValueError(
                f"the pair {name} has the prompts {', '.join(prompts[i].id for i in places)}, with slices "
                f"{', '.join(map(str, slices))}: give two or more that differ in the value of one slice, their group"
            )
        found.append((differing[0], dict(zip(map(str, values), places, strict=True))))
    return found


def _before(prompt: Prompt, text: str) -> Prompt:
    """The prompt with a text before the user's only or last message."""
    if prompt.messages is None:
        return prompt.changed(prompt=text + str(prompt.prompt))
    last = prompt.messages[-1]
    return prompt.changed(messages=[*prompt.messages[:-1], {**last, "content": text + last["content"]}])
