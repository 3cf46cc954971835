"""Chat templates: a conversation as text, and which of its characters the model must learn to write.

If a template marks them with `{% generation %}`, its marks are used. Otherwise they are found by rendering, without
knowledge of any template. Let T(c) be the rendered conversation c, and a mark a string put into a message's content:

    m_j   where message j stands: T(c with a mark in message j) must be T(c) with the mark in one place, m_j
    start m_{i-1} + the length of what follows the mark in T(c[:i] with a mark in message i-1, generation prompt)
    end   m_i + the length of what follows the mark in T(c[:i+1] with a mark in message i), and in T(c), up to its last
          added token

So answer i starts where the generation prompt ends and stops with the token that ends the turn, both as at inference.
What T(c) has in those places must be what was cut out of the shorter ones, but for tokens that end a conversation;
where it is not, there is no guess but an error. Dates, system prompts and tools that come or go elsewhere, trimmed text
and dropped reasoning do no harm.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple

import numpy as np
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from pat.common.text import did_you_mean
from pat.tasks.formats import Conversation, Message

MARK = "\ue123mark\ue123"  # private use: it occurs in no text
TODAY = date(2024, 7, 26)  # for templates that write the date: data must not depend on the day; it is Llama 3.1's own
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_DATE = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")

Span = tuple[int, int]  # of characters


@dataclass(frozen=True)
class Marked:
    """A text, and the characters of it that are supervised, in order."""

    text: str
    spans: list[Span]


class ChatTemplate:
    """A tokenizer's chat template, rendered with `options` beside the messages."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> None:
        """Raises ValueError where the tokenizer has no chat template."""
        if not tokenizer.chat_template:
            raise ValueError(
                "The tokenizer has no chat template, which rows of messages need: set model.tokenizer to that of the "
                "instruct model, or to a folder with the tokenizer's files and a chat_template.jinja."
            )
        self.tokenizer = tokenizer
        self.options = {**tokenizer.special_tokens_map, **options}
        self.added = _added(tokenizer)
        self.dropped_system_prompts = self.dropped_tools = 0

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raises ValueError for variables that the template does not have."""
        sources: Any = self.tokenizer.chat_template
        words = re.findall(r"\w+", sources if isinstance(sources, str) else " ".join(sources.values()))
        if unknown := next((name for name in options if name not in words), None):
            raise ValueError(
                f"task.template_options has {unknown}, which is nowhere in the tokenizer's chat "
                f"template{did_you_mean(unknown, words)}: leave it out, or set task.template_options={{}}."
            )

    def mark(self, conversation: Conversation, first: int = 0) -> Marked:
        """The conversation as text, with the spans of the assistant's messages from message `first` on.

        Raises ValueError where the template refuses the conversation, or where a span cannot be found.
        """
        template = self.source(conversation.tools)
        if _GENERATION.search(template):
            return self._marked_by_template(conversation, template, first)
        rendering = _Rendering(self, template, conversation)
        answers = [i for i in range(first, len(rendering.messages)) if rendering.messages[i]["role"] == "assistant"]
        self._count_dropped(rendering.messages, rendering.tools, rendering.text)
        return Marked(rendering.text, [rendering.span(i) for i in answers])

    def text(self, conversation: Conversation) -> str:
        """The conversation as text. Raises ValueError where the template refuses it."""
        text, _ = self.render(self.source(conversation.tools), conversation.messages, conversation.tools)
        self._count_dropped(conversation.messages, conversation.tools, text)
        return text

    def asked(self, messages: Sequence[Message]) -> str:
        """The text that asks for an answer. Raises ValueError where the template refuses the conversation."""
        return self.render(self.source(), messages, None, prompt=True)[0]

    def render(
        self, template: str, messages: Sequence[Message], tools: list[Any] | None, prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """(text, spans marked by the template), with the generation prompt at the end where asked."""
        spans: Any
        try:
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                tools=tools,
                chat_template=template,
                return_assistant_tokens_mask=bool(_GENERATION.search(template)),
                add_generation_prompt=prompt,
                **self.options,
            )  # pyright: ignore
        except (TemplateError, TypeError) as error:
            raise ValueError(
                f"The chat template refuses the conversation ({error}): {_short(messages)}; remove such rows, or set "
                "model.tokenizer to one whose template takes them."
            ) from error
        return texts[0], [(start, end) for start, end in spans[0]] if spans and spans[0] else []

    def source(self, tools: list[Any] | None = None) -> str:
        """The template itself, in Jinja, for which it is always the same day."""
        template = self.tokenizer.get_chat_template(None, tools)
        return _DATE.sub(lambda date: repr(TODAY.strftime(date[2])), template)

    def _marked_by_template(self, conversation: Conversation, template: str, first: int) -> Marked:
        text, spans = self.render(template, conversation.messages, conversation.tools)
        self._count_dropped(conversation.messages, conversation.tools, text)
        if not first:
            return Marked(text, spans)
        given, _ = self.render(template, conversation.messages[:first], conversation.tools)
        if not text.startswith(given):
            raise ValueError(f"The chat template changes the prompt when the completion follows: {_short(text)}")
        return Marked(text, [(start, end) for start, end in spans if start >= len(given)])

    def _count_dropped(self, messages: Sequence[Message], tools: list[Any] | None, text: str) -> None:
        """Raises ValueError where a tool call is not in the text."""
        system = next((m["content"].strip() for m in messages if m["role"] == "system"), "")
        self.dropped_system_prompts += system not in text
        self.dropped_tools += not all(name in text for name in _names(tools or ()))
        for name in _names(call for message in messages for call in message.get("tool_calls") or ()):
            if name not in text:
                raise ValueError(
                    f"The chat template does not write tool calls, and where {name} is called the model would learn to "
                    f"say nothing: {_short(messages)}; set model.tokenizer to one whose template does, or remove such "
                    "rows."
                )


def _names(functions: Iterable[Any]) -> Iterator[str]:
    """Of tools or of calls; those that a template may write in another way are left out."""
    for each in functions:
        name = each.get("function", each).get("name")
        if isinstance(name, str) and name.isascii():
            yield name


class _Rendering:
    """One conversation under one template."""

    def __init__(self, chat: ChatTemplate, template: str, conversation: Conversation) -> None:
        self.chat, self.template = chat, template
        self.messages, self.tools = conversation.messages, conversation.tools
        self.text = self._render(self.messages)

    def span(self, i: int) -> Span:
        """What the model writes as message i, with the token that ends its turn."""
        if i == 0:
            raise ValueError(
                f"A conversation begins with an answer, so nothing is asked: {_short(self.messages)}; remove such rows."
            )
        before, inside = self._place(i - 1), self._place(i)
        if before is None or inside is None:
            raise self._lost(i, "changes its text beyond trimming")
        at, asked = before  # asked: the message before, with a mark in it
        prompt = self._after_mark([*self.messages[: i - 1], asked], prompt=True)
        start = at + len(prompt)
        if not self.text.startswith(prompt, at):
            # The template leaves a part of the generation prompt out (an empty <think> block) where others follow.
            begin = self._place(i, at_start=True)
            if begin is None or not prompt.startswith(self.text[at : begin[0]]):
                raise self._lost(i, "does not begin it as the generation prompt does")
            start = begin[0]
        at, answer = inside
        if start > at:
            raise self._lost(i, "puts the generation prompt into it")
        alone = self._after_mark([*self.messages[:i], answer])
        rest = os.path.commonprefix([alone, self.text[at:]])
        stop = max((rest.rfind(token) + len(token) for token in self.chat.added if token in rest), default=0)
        if not any(token in alone for token in self.chat.added):
            raise self._lost(i, "ends it with no token of its own, so that the model could not learn to stop")
        if not stop or _said(alone[stop:], self.chat.added):
            raise self._lost(i, "ends it in another way where messages follow")
        return start, at + stop

    def _place(self, j: int, at_start: bool = False) -> tuple[int, Message] | None:
        """Where a mark in message j stands in the text, and the message with it; None where it changes other text."""
        for marked in _with_mark(self.messages[j], at_start):
            text = self._render([*self.messages[:j], marked, *self.messages[j + 1 :]])
            if text.count(MARK) == 1 and text.replace(MARK, "") == self.text:
                return text.index(MARK), marked
        return None

    def _after_mark(self, messages: Sequence[Message], prompt: bool = False) -> str:
        return self._render(messages, prompt).partition(MARK)[2]

    def _render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        return self.chat.render(self.template, messages, self.tools, prompt)[0]

    def _lost(self, i: int, how: str) -> ValueError:
        return ValueError(
            f"The chat template {how}, so the answer (message {i}) cannot be found in the text: mark answers in the "
            f"template with {{% generation %}}. The conversation: {_short(self.messages)}"
        )


def _with_mark(message: Message, at_start: bool) -> Iterator[Message]:
    """The message with a mark, in the places to try: where its text starts; or ends, its middle, its last call's name.

    Around the white space, which templates trim, and not in an answer's reasoning, which they drop.
    """
    content = message["content"]
    end, begin = len(content.rstrip()), len(content) - len(content.lstrip())
    for k in dict.fromkeys((0, begin) if at_start else (end, end // 2)):
        yield message | {"content": content[:k] + MARK + content[k:]}
    if message.get("tool_calls") and not at_start:
        *calls, last = message["tool_calls"]
        function = last.get("function", last)
        named = function | {"name": function["name"] + MARK}
        yield message | {"tool_calls": [*calls, last | {"function": named} if "function" in last else named]}


class Tokenized(NamedTuple):
    """A marked text's tokens, each with whether its first character is in a span."""

    ids: list[int]
    supervised: list[bool]
    joined: bool  # whether a token begins before a span and ends in it
    lost: bool  # whether such a token holds all that a span says, so that only its end is supervised


class SpanTokenizer:
    """Texts to tokens; a text is tokenised once, as a whole."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises ValueError for a tokenizer that does not say where its tokens stand in the text."""
        if not tokenizer.is_fast:
            raise ValueError(
                f"The tokenizer ({type(tokenizer).__name__}) does not say where tokens stand in the text, which the "
                "loss on answers needs: take one with a tokenizer.json."
            )
        # Without its post-processor, which may cut white space off the offsets. What else that does is add tokens.
        self.added = _added(tokenizer)
        self.tokenizer: Any = copy.deepcopy(tokenizer)
        self.tokenizer.backend_tokenizer.post_processor = None

    def __call__(self, texts: Sequence[Marked]) -> Iterator[Tokenized]:
        """Those of each text, without tokens that the text does not spell.

        A token that is half header and half answer is not supervised: at inference the header ends with a token.
        """
        if not texts:
            return
        encoded = self.tokenizer(
            [marked.text for marked in texts],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        for marked, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
            edges = [edge for span in marked.spans for edge in span]  # ascending: an odd number before is inside
            inside = np.searchsorted(edges, starts, side="right") % 2 == 1
            begins = np.array([begin for begin, _ in marked.spans], dtype=np.int64)
            before = np.searchsorted(starts, begins) - 1  # the token before each span; -1: none
            joined = np.flatnonzero((before >= 0) & (ends[before] > begins)) if ids else before[:0]
            lost = any(self._holds_all(marked.text, marked.spans[i], int(ends[before[i]])) for i in joined)
            yield Tokenized(ids, inside.tolist(), len(joined) > 0, lost)

    def _holds_all(self, text: str, span: Span, end: int) -> bool:
        """Whether nothing is said in a span but what a token says that begins before it and ends at `end`."""
        begin, stop = span
        return bool(text[begin : min(end, stop)].strip()) and not _said(text[end:stop], self.added)


def _added(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The tokenizer's added tokens, but for white space."""
    added: Any = tokenizer.added_tokens_encoder
    return [token for token in added if token.strip()]


def _said(text: str, added: Sequence[str]) -> str:
    """The text without added tokens, and without white space around it."""
    for token in added:
        text = text.replace(token, "")
    return text.strip()


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 300 else f"{shown[:300]}..."
