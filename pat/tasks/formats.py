"""How rows hold conversations: `text`, `messages` or `prompt` and `completion`, as in TRL, turned into one internal
form.

    text                     {"text": "..."}
    messages                 {"messages": [{"role": ..., "content": ...}, ...]}, or the same as `conversations`
    prompt and completion    {"prompt": ..., "completion": ...}, both strings or both lists of messages

A column `tools` (JSON schemas) goes to the chat template beside the messages. Tools and the `tool_calls` of a message
are a list of objects, one object, or either as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pat.common.text import column_names
from pat.schema import DataConfig

Message = dict[str, Any]  # role, content, perhaps tool_calls, reasoning_content, ...

CONVERSATIONS = ("messages", "conversations")
ROLES = {"human": "user", "gpt": "assistant"}  # as ShareGPT writes them
SAID = {"content", "tool_calls", "reasoning_content", "reasoning", "thinking"}  # a message has one of these at least


@dataclass(frozen=True)
class Text:
    """Text without roles; all of it is the completion where there is no prompt."""

    completion: str
    prompt: str | None = None


@dataclass(frozen=True)
class Conversation:
    """Messages in turn; the first `num_prompt` of them are given, the others are to be learned."""

    messages: list[Message]
    num_prompt: int | None = None  # None: the format does not say
    tools: list[Any] | None = None


Document = Text | Conversation


def columns_in(present: Sequence[str], text_column: str) -> dict[str, str]:
    """Name (text, messages, prompt, completion, tools) -> column. ValueError, with what is there, where none fits, and
    where a text column was named that another format would leave out."""
    found = _chats_in(present)
    default = DataConfig.model_fields["text_column"].default
    if found and text_column in present and text_column not in (default, *found.values()):
        taken = "` and `".join(found.values())
        raise ValueError(
            f"data.text_column={text_column} would be ignored, as the rows have `{taken}`, too: leave it out, or take "
            f"`{taken}` out of the data."
        )
    if found:
        return found | ({"tools": "tools"} if "tools" in present else {})
    if text_column in present:
        return {"text": text_column}
    raise ValueError(
        f"The rows have the columns {column_names(present)}, but must have `messages` (or `conversations`), `prompt` "
        f"and `completion`, or '{text_column}' (data.text_column): rename them."
    )


def _chats_in(present: Sequence[str]) -> dict[str, str]:
    """Name -> column of the first format of conversations that the rows have; none where they have none."""
    for column in CONVERSATIONS:
        if column in present:
            return {"messages": column}
    pair = ("prompt", "completion")
    return {name: name for name in pair} if {*pair} <= {*present} else {}


def without_answer(document: Document) -> str:
    """Why nothing of a conversation can be learned, where that is its roles; "" else."""
    if isinstance(document, Text) or any(message["role"] == "assistant" for message in document.messages):
        return ""
    roles = ", ".join(dict.fromkeys(message["role"] for message in document.messages))
    return f"its roles are {roles}, and answers are those of `assistant`: rename them"


def documents(rows: Mapping[str, list[Any]]) -> Iterator[Document]:
    """The rows of a batch (column -> values) in the internal form. ValueError where a row is not of its format."""
    for i in range(len(next(iter(rows.values())))):
        yield document({name: values[i] for name, values in rows.items()})


def document(row: Mapping[str, Any]) -> Document:
    """One row. Raises ValueError."""
    if "text" in row:
        return Text(row["text"])
    tools = _functions(_without_nulls(row.get("tools")), "tools") or None
    if "messages" in row:
        return Conversation(_messages(row["messages"]), None, tools)
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return Text(completion, prompt)
    if isinstance(prompt, str) or isinstance(completion, str):
        raise ValueError(f"prompt and completion must both be strings or both lists of messages: {_short(row)}.")
    given = _messages(prompt)
    return Conversation(given + _messages(completion), len(given), tools)


def _messages(given: Any) -> list[Message]:
    if not isinstance(given, list) or not given:
        raise ValueError(f"A conversation must be a list of one message or more: {_short(given)}.")
    keys = [set(message) if isinstance(message, Mapping) else set() for message in given]
    are_own = any(each != keys[0] for each in keys)  # Arrow would have given all messages the same keys
    return [_message(message, "arguments" if are_own else None) for message in given]


def _message(given: Any, as_it_is: str | None) -> Message:
    message = _without_nulls(given, as_it_is) if isinstance(given, Mapping) else {}
    if "role" not in message and "from" in message:
        role = message.pop("from")
        content = {"content": message.pop("value")} if "value" in message else {}
        message = {"role": ROLES.get(role, role), **content, **message}
    if not isinstance(message.get("role"), str) or not message.keys() & SAID:
        raise ValueError(f"A message must have `role` and `content` (or `from` and `value`): {_short(given)}.")
    calls = [_tool_call(call) for call in _functions(message.pop("tool_calls", None), "tool_calls")]
    if calls:
        message["tool_calls"] = calls
    return message | {"content": _content(message.get("content", ""))}


def _content(given: Any) -> str:
    """A string, or the strings of the parts {"type": "text", "text": ...}."""
    if isinstance(given, str):
        return given
    if isinstance(given, list) and all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in given
    ):
        return "".join(part["text"] for part in given)
    raise ValueError(f"The content of a message must be text: {_short(given)}.")


def _tool_call(given: Mapping[str, Any]) -> Any:
    """Arguments as an object: templates would quote a JSON string once more."""
    call = _without_nulls(given, "arguments")
    function = dict(call.get("function", call))
    if not isinstance(function.get("name"), str):
        raise ValueError(f"A call in `tool_calls` must have the `name` of its function: {_short(given)}.")
    if isinstance(function.get("arguments"), str):
        try:
            function["arguments"] = json.loads(function["arguments"])
        except ValueError as error:
            raise ValueError(
                f"The arguments of a tool call are not valid JSON: {_short(given)}; write them as a JSON object."
            ) from error
    return call | {"function": function} if "function" in call else function


def _functions(given: Any, column: str) -> list[Any]:
    """The tools or the calls of a list, one that stands alone, or those that JSON holds, as a whole or one by one.
    ValueError for anything else, or where `function` in one is no object."""
    whole = _from_json(given)
    found = [_from_json(one) for one in (whole if isinstance(whole, list) else [whole] if whole else [])]
    if not all(isinstance(one, Mapping) and isinstance(one.get("function", one), Mapping) for one in found):
        raise ValueError(
            f"`{column}` must be a list of objects, or that list as valid JSON, and a `function` in them must be an "
            f"object: {_short(given)}."
        )
    return found


def _from_json(given: Any) -> Any:
    """What a string holds as JSON; a string that holds none, and anything else, as it is."""
    try:
        return json.loads(given) if isinstance(given, str) and given else given
    except (ValueError, RecursionError):
        return given


def _without_nulls(value: Any, as_it_is: str | None = None) -> Any:
    """Arrow gives every row all keys of all rows, as null. What stands under the key `as_it_is` keeps its own."""
    if isinstance(value, Mapping):
        return {
            key: item if key == as_it_is else _without_nulls(item, as_it_is)
            for key, item in value.items()
            if item is not None
        }
    return [_without_nulls(item, as_it_is) for item in value] if isinstance(value, list) else value


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 200 else f"{shown[:200]}..."
