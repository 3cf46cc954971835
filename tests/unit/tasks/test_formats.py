from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from pat.tasks import formats
from pat.tasks.formats import Conversation, Text

OTHER_SHAPES = ["f", 5, ["f"], [5], '["f"]', "{", [{"function": "f"}], {"function": "f"}, '[{"function": null}]']
U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def one(**row: Any) -> formats.Document:
    return formats.document(row)


def test_the_columns_tell_the_format() -> None:
    find = formats.columns_in
    assert find(["id", "text"], "text") == {"text": "text"}
    assert find(["body", "id"], "body") == {"text": "body"}
    assert find(["prompt", "messages", "tools"], "text") == {"messages": "messages", "tools": "tools"}
    assert find(["conversations"], "text") == {"messages": "conversations"}
    assert find(["completion", "prompt", "tools"], "text") == {
        "prompt": "prompt",
        "completion": "completion",
        "tools": "tools",
    }


def test_a_text_column_that_another_format_would_leave_out_is_an_error() -> None:
    for present, column in ((["messages", "text"], "text"), (["messages"], "body"), (["messages"], "messages")):
        assert formats.columns_in(present, column) == {"messages": "messages"}
    for present, taken in ((["conversations"], "conversations"), (["prompt", "completion"], "prompt` and `completion")):
        with pytest.raises(ValueError, match=f"data.text_column=body would be ignored, as the rows have `{taken}`"):
            formats.columns_in([*present, "body"], "body")


@pytest.mark.parametrize("present", [["question", "answer"], ["prompt", "answer"], ["Text"]])
def test_columns_of_no_format_are_listed(present: list[str]) -> None:
    with pytest.raises(ValueError, match=f"columns {', '.join(present)}, but must have `messages`.*'text'"):
        formats.columns_in(present, "text")


def test_each_format_comes_to_one_form() -> None:
    assert one(text="t") == Text("t")
    assert one(prompt="p", completion="c") == Text("c", "p")
    assert one(messages=[U, A], tools=None) == Conversation([U, A])
    assert one(prompt=[U], completion=[A]) == Conversation([U, A], 1)
    assert list(formats.documents({"prompt": ["p", [U]], "completion": ["c", [A]]})) == [
        Text("c", "p"),
        Conversation([U, A], 1),
    ]


def test_other_spellings_of_messages_and_tools() -> None:
    share_gpt = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert one(messages=share_gpt) == Conversation([U, A])
    parts = [{"role": "user", "content": [{"type": "text", "text": "q"}]}, A]
    assert one(messages=parts, tools=json.dumps([{"name": "f"}])) == Conversation([U, A], None, [{"name": "f"}])
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    found = one(messages=[U, {"role": "assistant", "content": None, "tool_calls": [call]}])
    assert isinstance(found, Conversation)
    assert found.messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
    }
    assert call["function"] == {"name": "f", "arguments": '{"x": 1}'}  # the row is as it was


@pytest.mark.parametrize(
    "shape",
    [list, lambda each: each[0], json.dumps, lambda each: json.dumps(each[0]), lambda each: [*map(json.dumps, each)]],
    ids=["list", "one", "JSON", "JSON of one", "list of JSON"],
)
def test_tools_and_calls_come_in_several_shapes(shape: Callable[[list[Any]], Any]) -> None:
    """Fails if the same data, written by another library, is refused or differs."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    calls = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1, "to": None}}}]
    said = {"role": "assistant", "content": "", "tool_calls": calls}
    row = {"messages": [U, said | {"tool_calls": shape(calls)}], "tools": shape(tools)}
    assert one(**row) == Conversation([U, said], None, tools)


@pytest.mark.parametrize("nothing", [None, [], {}, "", "[]", "null"])
def test_a_row_may_have_no_tools_and_no_calls(nothing: Any) -> None:
    assert one(messages=[U, A | {"tool_calls": nothing}], tools=nothing) == Conversation([U, A])


@pytest.mark.parametrize(
    "row, message",
    [
        ({"messages": []}, "a list of one message or more"),
        ({"messages": "hello"}, "a list of one message or more"),
        ({"messages": [{"content": "q"}]}, "must have `role` and `content`"),
        ({"messages": [U, {"role": "assistant", "text": "a"}]}, "must have `role` and `content`"),
        ({"messages": [{"from": "human", "text": "q"}]}, "must have `role` and `content`"),
        ({"messages": [U, {"role": "assistant", "content": None}]}, "must have `role` and `content`"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "url": "u"}]}]}, "must be text"),
        ({"prompt": "p", "completion": [A]}, "both be strings or both lists of messages"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x="}}]}]},
            "not valid JSON: .* write them as a JSON object",
        ),
        *(({"messages": [U, A], "tools": given}, "`tools` must be a list of objects") for given in OTHER_SHAPES),
        *(
            ({"messages": [U, A | {"tool_calls": given}]}, "`tool_calls` must be a list of objects")
            for given in OTHER_SHAPES
        ),
        ({"messages": [U, A | {"tool_calls": [{"function": {"arguments": {}}}]}]}, "`tool_calls` must have the `name`"),
    ],
)
def test_a_row_of_another_form_is_an_error(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        formats.document(row)


def test_what_arrow_adds_to_rows_of_different_keys_is_gone(tmp_path: Path) -> None:
    calls = [[{"type": "function", "function": {"name": f"f{i}", "arguments": {f"x{i}": i}}}] for i in range(2)]
    rows = [{"messages": [U, {"role": "assistant", "content": "", "tool_calls": call}]} for call in calls]
    rows.append({"messages": [U, A]})
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read: Any = load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    found = list(formats.documents(read[:]))
    assert found == [Conversation(row["messages"]) for row in rows]


def test_nulls_that_a_row_has_itself_are_learned() -> None:
    """Would catch: a call with "to": null learned as one without it. Messages of Arrow's have the same keys."""

    def arguments(*messages: dict[str, Any]) -> Any:
        call = {"function": {"name": "f", "arguments": {"x": 1, "to": None}}, "id": None}
        found = one(messages=[*messages, {"role": "assistant", "content": None, "tool_calls": [call]}])
        assert isinstance(found, Conversation) and "id" not in found.messages[-1]["tool_calls"][0]
        return found.messages[-1]["tool_calls"][0]["function"]["arguments"]

    assert arguments(U) == {"x": 1, "to": None}
    assert arguments(U | {"tool_calls": None}) == {"x": 1}
    tools = [{"name": "f", "parameters": {"default": None}}]
    for given, read in ((json.dumps(tools), tools), (tools, [{"name": "f", "parameters": {}}])):
        assert one(messages=[U, A], tools=given) == Conversation([U, A], None, read)
