"""The format: a prompt, and a mix of them. docs/compare.md describes it with an example."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, PlainSerializer, model_validator

from pat.common import slices
from pat.common.keys import Finite, Section, key
from pat.common.text import did_you_mean
from pat.prompts.checks import Check
from pat.prompts.checks import parse as parse_check

ROLES = ("system", "user", "assistant")
BEGINNING = 40  # characters by which a prompt is named


def _slices(value: dict[str, str]) -> dict[str, str]:
    for name, of in value.items():
        if not name or not of or "=" in name:
            raise ValueError(f"{name!r}: {of!r} is not a slice: give DIMENSION: VALUE, neither empty, as form: short")
    return value


def _with_names(checks: list[Check]) -> list[dict[str, Any]]:
    return [{"name": check.name, **check.said()} for check in checks]


Checks = Annotated[list[Annotated[Any, AfterValidator(parse_check)]], PlainSerializer(_with_names)]


class Prompt(Section, frozen=True):
    """One prompt: a line of a JSONL file."""

    id: str = key("", "its name; empty: a hash of what is asked")
    prompt: str | None = key(None, "the text as the model gets it; of a chat: messages")
    text_pair: str | None = key(None, "the second text of a pair, for classifiers of pairs")
    messages: list[dict[str, str]] | None = key(None, "messages {role, content}, for the model's chat template")
    slices: Annotated[dict[str, str], AfterValidator(_slices)] = key({}, "its slices by dimension, as {form: short}")
    weight: Finite = key(1.0, "how often it is asked, relative to the others", gt=0)
    prompt_tokens: int | None = key(None, "its length in production", ge=1)
    output_tokens: int | None = key(None, "most tokens to generate; null: as the mix says", ge=1)
    reference: str | None = key(None, "a right answer; it must pass the checks")
    checks: Checks = key([], "what makes an output right: all must pass")
    suite: str | None = key(None, "the suite that adds its checks and prefixes; one of mix.suites")
    variant_of: str = key("", "id of the prompt that it varies, as a suite's prefixes do: statistics take both as one")
    pair: str | None = key(
        None, "name shared by prompts that differ in one group only, which one slice names", min_length=1
    )

    @model_validator(mode="after")
    def _asks_once(self) -> Prompt:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either a prompt or messages")
        for name in ("prompt", "reference"):
            if getattr(self, name) == "":
                raise ValueError(f"{name} is empty: give a text, or leave it out")
        for message in self.messages or []:
            if set(message) != {"role", "content"} or message["role"] not in ROLES:
                raise ValueError(f"the message {message} must be {{role, content}}, role one of {', '.join(ROLES)}")
        if self.messages is not None and (not self.messages or self.messages[-1]["role"] != "user"):
            raise ValueError("the last message must be the user's, which the model answers")
        if self.text_pair is not None and self.prompt is None:
            raise ValueError("text_pair goes with prompt, not with messages")
        return self

    @property
    def text(self) -> str:
        """The prompt as text for people; all messages with their roles."""
        if self.messages is None:
            return str(self.prompt) + ("" if self.text_pair is None else f"\n{self.text_pair}")
        return "\n".join(f"{message['role']}: {message['content']}" for message in self.messages)

    @property
    def named(self) -> str:
        """Its id, and how it begins: an id may be a hash."""
        text = " ".join(self.text.split())
        return f"{self.id} ({text[:BEGINNING] + ('...' if len(text) > BEGINNING else '')!r})"

    @property
    def unit(self) -> str:
        """What it is evidence of: prompts of one unit are not independent."""
        return self.variant_of or self.id

    @property
    def slice_names(self) -> list[str]:
        """DIMENSION=VALUE of each slice that the prompt is in."""
        return [f"{name}={value}" for name, value in self.slices.items()]

    def failure(self, output: str) -> str | None:
        """Why the output is not right, by the first check that it fails; None where all pass."""
        said = self.plain()
        return next((why for check in self.checks if (why := check.failure(output, said)) is not None), None)


class Suite(Section, frozen=True):
    """Prompts that are asked for one purpose: checks that all of them have, and texts that are put before each."""

    checks: Checks = key([], "checks of each of its prompts, beside their own")
    prefixes: dict[str, str] = key({}, "texts by name: each prompt is asked once more with each text before it")


class Head(Section, frozen=True):
    """Settings of the whole mix: the key `mix` of a YAML file, or of the first line of a JSONL file."""

    format: Literal[1] = key(1, "version of the file's format")
    name: str = key("", "name of the mix; empty: the file's")
    description: str = key("", "what it stands for and where it comes from")
    output_tokens: int = key(64, "most tokens to generate, where a prompt does not say", ge=1)
    template_options: dict[str, Any] | None = key(
        None, "variables for the models' chat template, e.g. {enable_thinking: false}, as task.template_options"
    )
    weights: dict[str, Finite] = key(
        {}, "shares of the traffic, {DIMENSION=VALUE: share}, for all values of one dimension"
    )
    suites: dict[str, Suite] = key({}, "suites by name, which prompts choose by `suite`")


@dataclass(frozen=True)
class Mix:
    """Prompts in the file's order, each with an id of its own and its final weight."""

    head: Head
    path: Path
    prompts: tuple[Prompt, ...]

    @property
    def name(self) -> str:
        """The mix's, or its file's."""
        return self.head.name or self.path.stem

    def units(self) -> list[int]:
        """A number for each prompt, equal for those of one unit."""
        numbers: dict[str, int] = {}
        return [numbers.setdefault(prompt.unit, len(numbers)) for prompt in self.prompts]

    def slices(self) -> dict[str, list[int]]:
        """Positions of the prompts of each slice."""
        return slices.places((i, prompt.slice_names) for i, prompt in enumerate(self.prompts))

    def checks(self) -> Iterator[Check]:
        """Every check of every prompt."""
        return (check for prompt in self.prompts for check in prompt.checks)


def content_id(prompt: Prompt) -> str:
    """12 hexadecimal digits of the hash of the prompt."""
    asked = json.dumps([prompt.prompt, prompt.text_pair, prompt.messages], ensure_ascii=False)
    return hashlib.sha256(asked.encode()).hexdigest()[:12]


def shared(prompts: Sequence[Prompt], weights: Mapping[str, float]) -> list[Prompt]:
    """The prompts with weights by which each slice has its share; within a slice they stay in proportion.

    w_i = share_s w_i / sum_{j in s} w_j, times the number of prompts, so that the mean weight is 1. Raises ValueError.
    """
    if not weights:
        return list(prompts)
    dimensions = {name.partition("=")[0] for name in weights}
    if len(dimensions) > 1 or any("=" not in name for name in weights):
        raise ValueError(f"mix.weights names {', '.join(weights)}: give DIMENSION=VALUE of one dimension")
    (dimension,) = dimensions
    values = dict.fromkeys(prompt.slices[dimension] for prompt in prompts if dimension in prompt.slices)
    known = [f"{dimension}={value}" for value in values]
    for name, share in weights.items():
        if share <= 0:
            raise ValueError(f"mix.weights.{name} is {share}, but must be above 0")
        if known and name not in known:
            raise ValueError(f"mix.weights.{name} names a slice that no prompt has{did_you_mean(name, known)}")
    totals: dict[str, float] = {}
    for prompt in prompts:
        own = f"{dimension}={prompt.slices.get(dimension, '')}"
        if own not in weights:
            said = f"is in {own}" if dimension in prompt.slices else f"has no slice of {dimension}"
            raise ValueError(f"mix.weights has no share for the prompt {prompt.named}, which {said}: add one")
        totals[own] = totals.get(own, 0.0) + prompt.weight
    whole, n = sum(weights.values()), len(prompts)
    own = [f"{dimension}={prompt.slices[dimension]}" for prompt in prompts]
    return [
        prompt.changed(weight=prompt.weight * weights[name] / whole / totals[name] * n)
        for prompt, name in zip(prompts, own, strict=True)
    ]
