from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from pat.tasks import formats
from pat.tasks.templates import ChatTemplate, Marked, SpanTokenizer
from tests.chat_templates import ENDED, LLAMA, MARKED, MISTRAL, QWEN, SMOL, tokenizer

TOOL = {"type": "function", "function": {"name": "sum", "parameters": {"type": "object"}}}
CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "sum", "arguments": {"a": 1, "b": "<|im_end|>"}}}


def said(*turns: str) -> list[dict[str, Any]]:
    """`s: ...` is the system's, `u: ...` the user's, `a: ...` the assistant's."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[turn[0]], "content": turn[3:]} for turn in turns]


def marked(template: str, messages: list[Any], tools: Any = None, first: int | None = None, **options: Any) -> str:
    """The supervised tokens in guillemets, from the ids back to text: what the loss sees, not what was found."""
    made = tokenizer(template)
    row = {"prompt": messages[:first], "completion": messages[first:]} if first else {"messages": messages}
    conversation = formats.document(row | {"tools": tools})
    assert isinstance(conversation, formats.Conversation)
    text = ChatTemplate(made, options).mark(conversation, first or 0)
    ((ids, flags, *_),) = SpanTokenizer(made)([text])
    out, before = "", False
    for token, flag in zip(ids, flags, strict=True):
        out += ("«" if flag and not before else "»" if before and not flag else "") + chr(0xE000 + token)
        before = flag
    runs = out + ("»" if before else "")
    pieces, current = "", []
    for character in runs + "«":
        if character in "«»":
            pieces += made.decode(current) + character
            current = []
        else:
            current.append(ord(character) - 0xE000)
    return pieces[:-1]


IM = "<|im_start|>"
END = "<|im_end|>"
HEAD = "<|start_header_id|>"
LLAMA_SYSTEM = f"<bos>{HEAD}system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n"


def llama(role: str, text: str) -> str:
    return f"{HEAD}{role}<|end_header_id|>\n\n{text}"


# Marked by hand: what is in guillemets must be learned, and nothing else.
CASES: dict[str, tuple[str, list[Any], Any, str]] = {
    "smol, default system prompt, two turns": (
        SMOL,
        said("u: one?", "a: yes", "u: two?", "a: no, one"),
        None,
        f"{IM}system\nYou help.{END}\n{IM}user\none?{END}\n{IM}assistant\n«yes{END}»\n"
        f"{IM}user\ntwo?{END}\n{IM}assistant\n«no, one{END}»\n",
    ),
    "smol, an answer that the user has said before, and an empty one": (
        SMOL,
        said("s: yes", "u: yes", "a: yes", "u: yes", "a: "),
        None,
        f"{IM}system\nyes{END}\n{IM}user\nyes{END}\n{IM}assistant\n«yes{END}»\n"
        f"{IM}user\nyes{END}\n{IM}assistant\n«{END}»\n",
    ),
    "smol, white space around an answer is the model's": (
        SMOL,
        said("u: q", "a:  \n yes \n"),
        None,
        f"{IM}system\nYou help.{END}\n{IM}user\nq{END}\n{IM}assistant\n« \n yes \n{END}»\n",
    ),
    "smol, headers and ends that the user spells": (
        SMOL,
        said("s: s", f"u: {END}\n{IM}assistant\nno{END}", "a: yes", f"u: {IM}assistant\n", "a: end"),
        None,
        f"{IM}system\ns{END}\n{IM}user\n{END}\n{IM}assistant\nno{END}{END}\n{IM}assistant\n«yes{END}»\n"
        f"{IM}user\n{IM}assistant\n{END}\n{IM}assistant\n«end{END}»\n",
    ),
    "marked by the template": (
        MARKED,
        said("s: s", "u: q", "a: one", "u: q", "a: two"),
        None,
        f"{IM}system\ns{END}\n{IM}user\nq{END}\n{IM}assistant\n«one{END}»\n"
        f"{IM}user\nq{END}\n{IM}assistant\n«two{END}»\n",
    ),
    "llama, trimmed, with the date and a system prompt": (
        LLAMA,
        said("s: Be brief. ", "u:  one?\n", "a: \n yes \n", "u: two?", "a: no"),
        None,
        f"{LLAMA_SYSTEM}Be brief.<|eot_id|>{llama('user', 'one?')}<|eot_id|>{llama('assistant', '«yes<|eot_id|>»')}"
        f"{llama('user', 'two?')}<|eot_id|>{llama('assistant', '«no<|eot_id|>»')}",
    ),
    "llama, a call, its result, an answer": (
        LLAMA,
        [*said("u: 1 + b?"), {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": 'é "1b"\n'},
         *said("a: 1b")],
        None,
        f"{LLAMA_SYSTEM}<|eot_id|>{llama('user', '1 + b?')}<|eot_id|>"
        + llama("assistant", '«{"name": "sum", "parameters": {"a": 1, "b": "<|im_end|>"}}<|eot_id|>»')
        + llama("ipython", '"é \\"1b\\"\\n"<|eot_id|>')
        + llama("assistant", "«1b<|eot_id|>»"),
    ),
    "qwen, one turn: the empty <think> block is what the model writes": (
        QWEN,
        said("u: q", "a: yes"),
        None,
        f"{IM}user\nq{END}\n{IM}assistant\n«<think>\n\n</think>\n\nyes{END}»\n",
    ),
    "qwen, reasoning of earlier turns is dropped, that of the last is learned": (
        QWEN,
        said("s: s", "u: one?", "a: <think>\nhm\n</think>\n\nyes", "u: two?", "a: <think>\nwell\n</think>\n\nno"),
        None,
        f"{IM}system\ns{END}\n{IM}user\none?{END}\n{IM}assistant\n«yes{END}»\n"
        f"{IM}user\ntwo?{END}\n{IM}assistant\n«<think>\nwell\n</think>\n\nno{END}»\n",
    ),
    "qwen, reasoning between calls, before another question": (
        QWEN,
        [*said("u: q"), {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [CALL]},
         {"role": "tool", "content": "3"}, {"role": "tool", "content": "4"}, *said("a: is 3", "u: sure?", "a: yes")],
        None,
        f'{IM}user\nq{END}\n{IM}assistant\n«<tool_call>\n{{"name": "sum", "arguments": {{"a": 1, "b": "{END}"}}}}\n'
        f"</tool_call>{END}»\n{IM}user\n<tool_response>\n3\n</tool_response>\n<tool_response>\n4\n</tool_response>{END}\n"
        f"{IM}assistant\n«is 3{END}»\n{IM}user\nsure?{END}\n{IM}assistant\n«<think>\n\n</think>\n\nyes{END}»\n",
    ),
    "qwen, reasoning, a content and two calls in one turn": (
        QWEN,
        [*said("u: q"), {"role": "assistant", "content": "Let me", "reasoning_content": "hm", "tool_calls": [CALL] * 2},
         {"role": "tool", "content": "3"}, *said("a: is 3")],
        None,
        f"{IM}user\nq{END}\n{IM}assistant\n«<think>\nhm\n</think>\n\nLet me"
        + f'\n<tool_call>\n{{"name": "sum", "arguments": {{"a": 1, "b": "{END}"}}}}\n</tool_call>' * 2
        + f"{END}»\n{IM}user\n<tool_response>\n3\n</tool_response>{END}\n"
        f"{IM}assistant\n«<think>\n\n</think>\n\nis 3{END}»\n",
    ),
    "qwen, a tool's result that the user passes on": (
        QWEN,
        said("u: q", "a: <think>\nhm\n</think>\n\ncall", "u: <tool_response>3</tool_response>", "a: three"),
        None,
        f"{IM}user\nq{END}\n{IM}assistant\n«<think>\nhm\n</think>\n\ncall{END}»\n"
        f"{IM}user\n<tool_response>3</tool_response>{END}\n{IM}assistant\n«<think>\n\n</think>\n\nthree{END}»\n",
    ),
    "a token that ends the conversation": (
        ENDED,
        said("u: one?", "a: yes", "u: two?", "a: no"),
        None,
        f"{IM}user\none?{END}\n{IM}assistant\n«yes{END}»\n{IM}user\ntwo?{END}\n{IM}assistant\n«no{END}\n<eos>»",
    ),
    "mistral, no header, two turns": (
        MISTRAL,
        said("u: one?", "a: yes ", "u: two?", "a:  no"),
        None,
        "<bos>[INST] one?[/INST]« yes<eos>»[INST] two?[/INST]« no<eos>»",
    ),
    "mistral, tools before the last question, a call and its result": (
        MISTRAL,
        [*said("u: hi", "a: hi", "u: q"), {"role": "assistant", "tool_calls": [CALL]},
         {"role": "tool", "content": "3", "tool_call_id": "abcdefghi"}, *said("a: is 3")],
        [TOOL],
        "<bos>[INST] hi[/INST]« hi<eos>»[AVAILABLE_TOOLS] "
        '[{"type": "function", "function": {"name": "sum", "parameters": {"type": "object"}}}][/AVAILABLE_TOOLS]'
        '[INST] q[/INST]«[TOOL_CALLS] [{"name": "sum", "arguments": {"a": 1, "b": "<|im_end|>"}, "id": "abcdefghi"}]'
        '<eos>»[TOOL_RESULTS] {"content": 3, "call_id": "abcdefghi"}[/TOOL_RESULTS]« is 3<eos>»',
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_exactly_the_answers_and_the_ends_of_their_turns_are_supervised(case: str) -> None:
    template, messages, tools, expected = CASES[case]
    assert marked(template, messages, tools) == expected


def test_llama_with_tools_puts_them_into_the_first_question() -> None:
    text = marked(LLAMA, said("s: s", "u: hi", "a: hello", "u: q", "a: yes"), [TOOL])
    assert "Environment: ipython" in text and '"name": "sum"' in text
    assert text.endswith(
        f"\n\nhi<|eot_id|>{llama('assistant', '«hello<|eot_id|>»')}"
        f"{llama('user', 'q')}<|eot_id|>{llama('assistant', '«yes<|eot_id|>»')}"
    )
    assert text.count("«") == 2


@pytest.mark.parametrize("template", [SMOL, MARKED, MISTRAL])
def test_of_a_prompt_and_its_completion_only_the_answers_of_the_completion_are_supervised(template: str) -> None:
    text = marked(template, said("u: one?", "a: yes", "u: two?", "a: no"), first=3)
    assert text.count("«") == 1 and "«no<" in text.replace("« ", "«")


def test_an_option_of_the_template_moves_the_header() -> None:
    thinking = marked(QWEN, said("u: one?", "a: yes", "u: two?", "a: no"), enable_thinking=False)
    assert thinking == (
        f"{IM}user\none?{END}\n{IM}assistant\n«yes{END}»\n"
        f"{IM}user\ntwo?{END}\n{IM}assistant\n<think>\n\n</think>\n\n«no{END}»\n"
    )


def test_the_text_does_not_depend_on_the_day() -> None:
    assert "26 Jul 2024" in marked(LLAMA, said("u: q", "a: yes"))
    assert datetime.now().strftime("%d %b %Y") in marked(
        LLAMA, said("u: q", "a: yes"), date_string=datetime.now().strftime("%d %b %Y")
    )


def test_a_system_prompt_that_the_template_drops_is_counted() -> None:
    # Mistral's writes it only into a question that nothing follows, so never into a sample.
    chat = ChatTemplate(tokenizer(MISTRAL), {})
    for messages in (said("s: Be brief.", "u: q", "a: yes"), said("u: q", "a: yes")):
        assert "brief" not in chat.mark(formats.Conversation(messages)).text
    assert chat.dropped_system_prompts == 1


def test_a_call_that_the_template_does_not_write_is_an_error_and_tools_are_counted() -> None:
    """Fails if the model learns to say nothing where a function is called."""
    chat = ChatTemplate(tokenizer(SMOL), {})
    called = [*said("u: q"), {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    with pytest.raises(ValueError, match="does not write tool calls, and where .* is called the model would learn"):
        chat.mark(formats.Conversation(called))
    chat.mark(
        formats.Conversation(said("u: q", "a: yes"), tools=[{"type": "function", "function": {"name": "lookup"}}])
    )
    assert chat.dropped_tools == 1


WRONG = {
    "repeats the answer": ("{{ content + content }}", "changes its text beyond trimming"),
    "upper case": ("{{ content | upper }}", "changes its text beyond trimming"),
    "calls are left out where messages follow": (
        "{{ content }}{% if loop.last %}{{ '<|im_start|>call<|im_end|>' }}{% endif %}{{ '<|im_end|>' }}",
        "ends it in another way where messages follow",
    ),
    "no end": ("{{ content + '\n' }}", "ends it with no token of its own"),
    "the end is written only where nothing follows": (
        "{{ content }}{% if loop.last %}{{ '<|im_end|>' }}{% endif %}",
        "ends it in another way where messages follow",
    ),
    "another header than that of the prompt": (
        "{{ 'Answer: ' + content + '<|im_end|>' }}",
        "does not begin it as the generation prompt does",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_template_in_which_answers_cannot_be_found_is_an_error(case: str) -> None:
    answer, message = WRONG[case]
    template = (
        "{% for message in messages %}{% set content = message.content %}{{ '<|im_start|>' + message.role + ' ' }}"
        "{% if message.role == 'assistant' %}" + answer + "{% else %}{{ content + '<|im_end|>' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}"
        + ("{{ 'Reply: ' }}" if "header" in case else "")
        + "{% endif %}"
    )
    with pytest.raises(ValueError, match=message):
        marked(template, said("u: q", "a: yes", "u: r", "a: no"))


@pytest.mark.parametrize(
    "template, messages, message",
    [
        (SMOL, said("a: hello"), "begins with an answer"),
        (LLAMA, [*said("u: q"), {"role": "assistant", "tool_calls": [CALL] * 2}], "one call at a time"),
        (MISTRAL, said("u: q", "s: now", "a: yes"), "no such role: system"),
        ("", said("u: q", "a: yes"), "no chat template.*set model.tokenizer"),
    ],
)
def test_what_cannot_be_rendered_is_an_error_in_a_sentence(template: str, messages: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        marked(template, messages)


def merging_tokenizer() -> Any:
    """Bytes, and one token for two line breaks; it trims its offsets as GPT-2's does."""
    newline = "Ċ"
    vocab = {c: i for i, c in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), newline * 2])}
    made = Tokenizer(tokenizer_models.BPE(vocab=vocab, merges=[(newline, newline)]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore
    made.post_processor = processors.ByteLevel(trim_offsets=True)  # pyright: ignore
    made.decoder = decoders.ByteLevel()  # pyright: ignore
    made.add_special_tokens(["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(
    "text, span, supervised, joined",
    [
        ("a:\n\n\nb<end>", (3, 11), ["\n", "b", "<end>"], True),  # the first two line breaks are one token, half ours
        ("a:\n\nb<end>", (4, 10), ["b", "<end>"], False),
        ("a:\n\nb<end>", (0, 3), ["a", ":", "\n\n"], False),  # its end is in a token, not its beginning
        (
            "a: b<end>",
            (3, 9),
            ["b", "<end>"],
            False,
        ),  # by its cut white space, the space would be the answer's
        ("é😀<end>", (1, 7), ["�", "�", "�", "�", "<end>"], False),  # all bytes of the emoji, none of the letter
        ("", (0, 0), [], False),
    ],
)
def test_tokens_that_begin_in_a_span_are_supervised(
    text: str, span: tuple[int, int], supervised: list[str], joined: bool
) -> None:
    made = merging_tokenizer()
    ((ids, flags, found, _),) = SpanTokenizer(made)([Marked(text, [span])])
    assert found == joined
    assert ids == made(text)["input_ids"]
    assert [made.decode([token]) for token, flag in zip(ids, flags, strict=True) if flag] == supervised


def test_a_tokenizer_without_offsets_is_an_error() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="Slow.*does not say where tokens stand.*tokenizer.json"):
        SpanTokenizer(Slow())  # pyright: ignore
