from __future__ import annotations

import dataclasses
import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from pat.data import inspect, prepare, sampler
from pat.data.example import example
from pat.launch.rank import Tee
from pat.models import config_files, tokenizers
from pat.pruning.calibration.skeleton import stack_of
from pat.pruning.calibration.statistics import SquaredNorm
from pat.pruning.calibration.walk import Walk
from pat.schema import Config, DataConfig, TaskConfig
from pat.tasks import base, causal_lm, formats
from pat.tasks.chat import PACKABLE
from pat.tasks.packing import best_fit
from pat.training import start_summary
from pat.training.distill import mean_kl
from tests import models
from tests.chat_templates import QWEN, SMOL, tokenizer
from tests.unit.tasks.test_chat_templates import said

TOKENIZER = tokenizer(SMOL)
BYTES = tokenizers.byte_tokenizer()
EOS = BYTES.eos_token_id
IGNORED = -100
LM = base.build({"name": "causal_lm"})


def chat(**fields: Any) -> Any:
    return base.build({"name": "chat", **fields})


def encode(task: Any, rows: dict[str, list[Any]], max_length: int = 32, of: Any = BYTES) -> dict[str, list[Any]]:
    return task.encoder(of, max_length, None)(rows)


def supervised(samples: dict[str, list[Any]]) -> list[bytes]:
    """The supervised bytes of each sample; the end of text as $."""
    rows = zip(samples["input_ids"], samples["supervised"], strict=True)
    return [bytes(36 if i == EOS else i for i, flag in zip(ids, flags, strict=True) if flag) for ids, flags in rows]


# --- samples


@pytest.mark.parametrize(
    "rows, loss_on, expected",
    [
        ({"text": ["abc", "d"]}, None, [b"bc$", b"$"]),  # nothing predicts the first token
        ({"text": ["abc"]}, "all", [b"bc$"]),
        ({"prompt": ["ab", ""], "completion": ["cd", "ef"]}, None, [b"cd$", b"f$"]),
        ({"prompt": ["ab"], "completion": ["cd"]}, "all", [b"bcd$"]),
    ],
)
def test_texts_and_completions_are_ended_and_supervised(rows: Any, loss_on: Any, expected: list[bytes]) -> None:
    assert supervised(encode(chat(loss_on=loss_on), rows)) == expected


def test_what_a_conversation_learns_is_as_asked() -> None:
    rows = {"prompt": [said("u: 1", "a: 2", "u: 3")], "completion": [said("a: 4")]}
    last, answers, every = (
        encode(chat(loss_on=loss_on), rows, 256, TOKENIZER) for loss_on in ("completion", "answers", "all")
    )
    end = TOKENIZER.convert_tokens_to_ids("<|im_end|>")

    def learned(samples: Any) -> list[int]:
        return [i for i, flag in zip(samples["input_ids"][0], samples["supervised"][0], strict=True) if flag]

    assert encode(chat(), rows, 256, TOKENIZER) == last
    assert learned(last) == [ord("4"), end] and learned(answers) == [ord("2"), end, ord("4"), end]
    assert learned(every) == every["input_ids"][0][1:]


def test_a_tokenizer_that_begins_texts_does_so_once_and_no_end_is_repeated() -> None:
    begins = tokenizers.byte_tokenizer()
    begins.add_bos_token = True
    begins.split_special_tokens = False
    begins.backend_tokenizer.post_processor = bos_processor(begins)
    samples = encode(chat(), {"text": ["ab", "<bos>ab<eos>"]}, of=begins)
    assert samples["input_ids"] == [[257, 97, 98, EOS]] * 2 and samples["supervised"] == [[False, True, True, True]] * 2


def bos_processor(of: Any) -> Any:
    from tokenizers import processors

    return processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", of.bos_token_id)])  # pyright: ignore


@pytest.mark.parametrize("side, ids, learned", [("right", [*b"abcd"], [b"cd"]), ("left", [*b"cde", EOS], [b"de$"])])
def test_long_rows_lose_the_chosen_end_and_are_counted(side: str, ids: list[int], learned: list[bytes]) -> None:
    encoder = chat(truncation_side=side).encoder(BYTES, 4, None)
    samples = encoder({"prompt": ["ab", "a"], "completion": ["cde", "b"]})
    assert samples["input_ids"] == [ids, [*b"ab", EOS]]
    assert supervised(samples) == [*learned, b"b$"]
    assert encoder.counts()["rows_cut"] == 1


def test_a_row_without_an_answer_says_its_roles() -> None:
    strange = [{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}]
    assert formats.without_answer(formats.Conversation(strange)).startswith("its roles are user, bot, and answers")
    assert not formats.without_answer(formats.Conversation([{"role": "assistant", "content": "a"}]))


def test_rows_without_a_supervised_token_are_an_error_or_dropped_and_counted() -> None:
    rows = {"prompt": ["abcdef", "a"], "completion": ["g", "b"]}
    with pytest.raises(ValueError, match="no supervised token within data.max_length=4.*abcdef.*empty_rows=drop"):
        encode(chat(), rows, 4)
    encoder = chat(empty_rows="drop").encoder(BYTES, 4, None)
    assert encoder(rows)["input_ids"] == [[*b"ab", EOS]]
    assert encoder.counts() == {
        "rows_cut": 1,
        "rows_dropped": 1,
        "rows_joined": 0,
        "system_prompts_dropped": 0,
        "tools_dropped": 0,
    }


def joining_tokenizer() -> Any:
    """Bytes, and " yes" as one token."""
    space = "\u0120"
    vocab = {symbol: i for i, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    for token in ("<eos>", "ye", "yes", f"{space}yes"):
        vocab[token] = len(vocab)
    merges = [("y", "e"), ("ye", "s"), (space, "yes")]
    backend = Tokenizer(BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)  # pyright: ignore
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>")


def test_a_completion_that_the_tokenizer_joins_with_its_prompt_is_no_row_to_learn() -> None:
    """Would catch: "Answer: " and "yes" as the one token " yes", of which only the end of the text would be learned."""
    joining = joining_tokenizer()
    with pytest.raises(ValueError, match="joins the end of the prompt with all of the completion"):
        encode(chat(), {"prompt": ["Answer: "], "completion": ["yes"]}, of=joining)
    (flags,) = encode(chat(), {"prompt": ["Answer:"], "completion": [" yes"]}, of=joining)["supervised"]
    assert flags[-2:] == [True, True] and not any(flags[:-2])


def test_an_answer_that_the_tokenizer_joins_with_the_generation_prompt_is_none_to_learn() -> None:
    """Would catch: "A: " and "yes" as the one token " yes", after which only the end of the turn would be learned."""
    joining = joining_tokenizer()
    joining.add_tokens(["<end>"], special_tokens=True)
    turns = "{% for m in messages %}{{ m.role[0] + ':SPACE' + m.content + '<end>\n' }}{% endfor %}"
    turns += "{% if add_generation_prompt %}a:SPACE{% endif %}"
    joining.chat_template = turns.replace("SPACE", " ")
    for answer, rest in (("yes", "u: no"), ("no", "a: yes")):  # one lost answer of several is enough
        with pytest.raises(ValueError, match=r"An answer would not be learned.*generation prompt\) end without its sp"):
            encode(chat(), {"messages": [said("u: ?", f"a: {answer}", rest)]}, of=joining)
    encoder = chat(empty_rows="drop").encoder(joining, 64, None)
    encoder({"messages": [said("u: ?", f"a: {answer}") for answer in ("yes", "yes,it", "no", " ")]})
    assert (encoder.counts()["rows_dropped"], encoder.counts()["rows_joined"]) == (1, 1)
    joining.chat_template = turns.replace("SPACE", "").replace("m.content", "' ' + m.content")
    learned = encode(chat(), {"messages": [said("u: ?", "a: yes")]}, of=joining)
    (spelled,) = (itertools.compress(*row) for row in zip(learned["input_ids"], learned["supervised"], strict=True))
    assert joining.convert_ids_to_tokens(list(spelled)) == ["\u0120yes", "<end>"]


def test_completions_that_lose_their_beginning_to_the_prompt_are_counted_and_said(tmp_path: Path) -> None:
    """Of "A: " and "yes, it" the token " yes" is not learned: it is said in the log, at the start and by `pat data`."""
    joining, task = joining_tokenizer(), chat(empty_rows="drop")
    rows = [("A: ", "yes,it"), ("A:", " yes,it"), ("A: ", "no"), ("", "yes"), ("A: ", "yes")]  # all of the last
    encoder = task.encoder(joining, 32, None)
    samples = encoder({"prompt": [row[0] for row in rows], "completion": [row[1] for row in rows]})
    learned = [list(itertools.compress(*row)) for row in zip(samples["input_ids"], samples["supervised"], strict=True)]
    spelled = ["".join(joining.convert_ids_to_tokens(ids)) for ids in learned]
    assert spelled == [",it<eos>", "Ġyes,it<eos>", "no<eos>", "<eos>"]
    assert encoder.counts() == {
        "rows_cut": 0,
        "rows_dropped": 1,
        "rows_joined": 1,
        "system_prompts_dropped": 0,
        "tools_dropped": 0,
    }
    whole = chat(loss_on="all").encoder(joining, 32, None)
    whole({"prompt": ["A: "], "completion": ["yes,it"]})
    assert whole.counts()["rows_joined"] == 0, "all is learned"

    content = [{"prompt": "A: " if i % 3 else "A:", "completion": f"yes, {i}"} for i in range(30)]
    made = prepared(tmp_path, content, chat(), joining)
    count = made.info["train_rows_joined"]
    assert count + made.info["eval_rows_joined"] == 20
    first: Any = example(made, DataConfig(max_length=256), joining)
    assert f"{count} lose the beginning of a completion" in first.plain()
    config = Config().changed(train__num_steps=1, train__global_batch_size=1)
    said = "\n".join(start_summary._data(config, made))
    assert re.search(rf"{count} of {made.info['train_rows']} train rows \([\d.]+ %\) lose the beginning", said)
    assert inspect.WORDINGS["rows_joined"] in list(inspect.table(inspect.summarise(made, config)).columns[0].cells)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"loss_on": "question"}, "task.loss_on='question': allowed are null, answers, completion, all"),
        ({"truncation_side": "middle"}, "task.truncation_side='middle': allowed are right, left"),
        ({"empty_rows": "keep"}, "task.empty_rows='keep': allowed are error, drop"),
        ({"packing": "greedy"}, "task.packing='greedy': allowed are none, best_fit"),
    ],
)
def test_options_that_do_not_exist_are_errors(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chat(**fields)


def test_options_that_would_mean_nothing_are_errors() -> None:
    for rows, loss_on in (({"text": ["a"]}, "completion"), ({"prompt": ["a"], "completion": ["b"]}, "answers")):
        with pytest.raises(ValueError, match=f"task.loss_on={loss_on} means nothing for rows of strings"):
            encode(chat(loss_on=loss_on), rows)
    with pytest.raises(ValueError, match="means nothing for rows of messages without it: allowed are answers, all"):
        encode(chat(loss_on="completion"), {"messages": [said("u: q", "a: b")]}, of=TOKENIZER)
    with pytest.raises(ValueError, match="data.max_length=1: a sample needs 2"):
        chat().encoder(BYTES, 1, None)


# --- through the cache


def prepared(tmp_path: Path, rows: list[Any], task: Any, of: Any = TOKENIZER, **fields: Any) -> prepare.PreparedData:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"max_length": 256, "cache_dir": str(tmp_path / "cache"), "eval_fraction": 0.25} | fields
    return prepare.prepare(DataConfig(source="json", train=str(file), **values), of, task)


def conversations(count: int = 30) -> list[Any]:
    return [{"messages": said(f"u: {i}?", f"a: {'yes ' * (i % 7)}{i}"), "source": "x"} for i in range(count)]


def test_conversations_go_through_the_cache_and_its_key_holds_what_decides_them(tmp_path: Path) -> None:
    first = prepared(tmp_path, conversations(), chat())
    assert first.info["built"] and first.info["train_rows_dropped"] == 0
    assert not prepared(tmp_path, conversations(), chat()).info["built"]
    assert prepared(tmp_path, conversations(), chat(packing="best_fit")).info["built"]
    assert prepared(tmp_path, conversations(), chat(template_options={"content": 1})).info["built"]
    assert prepared(tmp_path, conversations(), chat(), tokenizer(SMOL.replace("You help", "Be brief"))).info["built"]


def test_columns_of_no_format_and_rows_without_anything_to_learn_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="columns question, answer, but must have `messages`"):
        prepared(tmp_path, [{"question": "q", "answer": "a"}] * 9, chat())
    dates = [{"prompt": "when?", "completion": f"2024-01-0{i}"} for i in range(1, 9)]
    with pytest.raises(ValueError, match="column 'completion' of data.train holds timestamp.*, not text or"):
        prepared(tmp_path, dates, chat())
    unanswered = [{"messages": said(f"u: {i}")} for i in range(9)]
    with pytest.raises(ValueError, match="make no sample.*none has a supervised token"):
        prepared(tmp_path, unanswered, chat(empty_rows="drop"))
    with pytest.raises(ValueError, match="The column 'messages' is empty in row 31 of data.train"):
        prepared(tmp_path, [*conversations(), {"messages": None}], chat())


def test_an_option_that_the_template_does_not_have_is_an_error(tmp_path: Path) -> None:
    for options in ({"content": 1, "enable_thinkin": False}, {"enable_thinkin": False}):
        with pytest.raises(ValueError, match="has enable_thinkin,.*; did you mean enable_thinking.*: leave it out"):
            prepared(tmp_path, conversations(), chat(template_options=options), tokenizer(QWEN))
    assert prepared(tmp_path, conversations(), chat(template_options={"enable_thinking": False}), tokenizer(QWEN))


def test_the_config_of_a_run_builds_the_task() -> None:
    task: Any = base.build(TaskConfig(name="chat", packing="best_fit", template_options={"enable_thinking": False}))
    assert task.packing == "best_fit" and task.truncation_side == "right" and task.template_options


# --- what is shown when a run starts


def shown(tmp_path: Path, task: Any, of: Any = TOKENIZER, rows: list[Any] | None = None, **fields: Any) -> Any:
    made = prepared(tmp_path, rows or conversations(), task, of, **fields)
    return example(made, DataConfig(max_length=fields.get("max_length", 256)), of)


def test_a_sample_is_shown_with_its_mask_and_what_was_done_to_the_rows(tmp_path: Path) -> None:
    plain = shown(tmp_path, chat()).plain()
    assert re.search(
        r"<\|im_start\|>user\n(\d+)\?<\|im_end\|>\n<\|im_start\|>assistant\n«(yes )*\1<\|im_end\|>»\n$", plain
    )
    assert re.match(
        r"Data: (\d+) training rows make \1 samples, <pad> pads. Answers end with <\|im_end\|>, which .* token <eos>: "
        "generation_config.json of the run and of its exports names it",
        plain,
    )
    short = shown(tmp_path, chat(empty_rows="drop"), max_length=60).plain()
    assert " were cut to 60 tokens" in short and "were dropped" not in short
    assert "without a supervised token were dropped" in shown(tmp_path, chat(empty_rows="drop"), max_length=41).plain()
    packed = shown(tmp_path, chat(packing="best_fit"))
    assert packed.plain().count("assistant") == 1 and packed.runs[1][1]
    assert example(prepared(tmp_path, [{"text": f"{i} " * 50} for i in range(9)], LM), DataConfig(), TOKENIZER) is None


IM_END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize("own, expected", [(EOS, [EOS, IM_END]), ([7, IM_END], [7, IM_END]), (None, [IM_END])])
def test_a_model_stops_at_the_token_with_which_its_answers_were_learned_to_end(
    tmp_path: Path, own: Any, expected: list[int]
) -> None:
    """A conversation that is cut ends with any token; of a mixture, the first source is all texts."""
    cut = {"messages": said("u: ?", "a: " + "<|im_start|>" * 300)}
    model = small("llama")
    model.generation_config.eos_token_id = own
    config_files.add_ends(model, shown(tmp_path, chat(), rows=[*conversations(), *[cut] * 9]).ends)
    config_files.write(model, tmp_path)
    found = GenerationConfig.from_pretrained(tmp_path)
    assert found.eos_token_id == expected
    assert bool(found._from_model_config) == (own == expected), "a library may make such a one anew, of config.json"
    config_files.add_ends(torch.nn.Linear(1, 1), [IM_END])  # one that does not generate

    made = prepared(tmp_path, [{"text": f"text {i}"} for i in range(300)], chat())
    both = datasets.concatenate_datasets([made.train, prepared(tmp_path, conversations(), chat()).train])
    of_both: Any = example(dataclasses.replace(made, train=both), DataConfig(max_length=256), TOKENIZER)
    assert of_both.ends == (EOS, IM_END)


class Terminal(io.StringIO):
    def __init__(self, tty: bool) -> None:
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


@pytest.mark.parametrize("tty", [True, False])
def test_the_mask_is_coloured_on_a_terminal_and_plain_elsewhere(
    tmp_path: Path, tty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    log, terminal = io.StringIO(), Terminal(tty)
    monkeypatch.setattr("sys.stdout", Tee(log, terminal))
    shown(tmp_path, chat()).show()
    assert ("\x1b[1;32m" in terminal.getvalue()) == tty and ("«" in terminal.getvalue()) != tty
    assert "<|im_start|>assistant\n«" in log.getvalue() and "\x1b" not in log.getvalue()


# --- packing


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 80))
def test_every_document_is_in_one_bin_and_no_bin_overflows(lengths: list[int], capacity: int) -> None:
    bins = best_fit(lengths, capacity)
    assert sorted(i for some in bins for i in some) == list(range(len(lengths)))
    room = [capacity - sum(lengths[i] for i in some) for some in bins]
    assert all(left >= 0 for left in room)
    # A document opens a bin only where none has room for it.
    assert all(lengths[some[0]] > room[k] for number, some in enumerate(bins) for k in range(number))


def test_best_fit_takes_the_fullest_bin_that_has_room() -> None:
    assert best_fit([5, 7, 3, 2, 3], 10) == [[1, 2], [0, 4, 3]]
    assert best_fit([4, 4, 4], 8) == [[0, 1], [2]]
    assert best_fit([], 8) == []


DOCUMENTS = ["a tiny one", "b", "the longest of them all, by far", "some text here", "xy"]


def small(model_type: str, attention: str = "sdpa") -> Any:
    """A random fp32 model; Mistral's window is shorter than the longest document."""
    small_config = models.config(model_type, vocab_size=264, max_position_embeddings=64, sliding_window=8)
    torch.manual_seed(0)
    built = AutoModelForCausalLM.from_config(small_config, attn_implementation=attention).eval()
    with torch.no_grad():
        for p in built.parameters():
            p.copy_(torch.randn_like(p) * 0.3 + (p.dim() == 1))
    return built


def batches() -> tuple[Any, dict[str, Tensor], Any, dict[str, Tensor]]:
    """The same documents, packed into rows of 40 and one in a row."""
    made = []
    for packing in ("best_fit", "none"):
        task = chat(packing=packing)
        samples = encode(task, {"prompt": [d[:1] for d in DOCUMENTS], "completion": [d[1:] for d in DOCUMENTS]}, 40)
        made += [task, task.collate(samples, BYTES)]
    return tuple(made)


def test_a_packed_batch_says_where_its_documents_are() -> None:
    task, batch, _, alone = batches()
    assert batch["input_ids"].shape == (2, 40) and alone["input_ids"].shape == (5, 32)
    # 32 + 3 + 2 tokens, and 3 of padding; 15 + 11, and 14
    assert batch["cu_seq_lens"].tolist() == [0, 32, 35, 37, 40, 55, 66, 80]
    assert batch["position_ids"][0].tolist() == [*range(32), *range(3), *range(2), *range(3)]
    assert batch["attention_mask"].sum().item() == alone["attention_mask"].sum().item() == sum(map(len, DOCUMENTS)) + 5
    assert (batch["labels"] != IGNORED).sum() == (alone["labels"] != IGNORED).sum()
    starts = batch["position_ids"] == 0
    assert torch.all(batch["labels"][starts] == IGNORED)
    assert torch.equal(task.supervised(batch)[:, :-1], (batch["labels"][:, 1:] != IGNORED).float())


MODELS = ["llama", "qwen3", "mistral"]
OTHERS = sorted({*PACKABLE} - {*MODELS})


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", MODELS)
def test_packed_loss_and_gradient_are_those_of_the_documents_alone(model_type: str, attention: str) -> None:
    built = small(model_type, attention)
    packed, batch, unpacked, alone = batches()
    found = []
    for task, one in ((packed, batch), (unpacked, alone)):
        built.zero_grad()
        loss = task.loss(built, one)
        loss.backward()
        weight = {"weight": torch.ones(len(one["input_ids"]))}
        metrics = task.metrics(task.evaluate(built, [one | weight], "cpu"))
        found.append((loss.item(), metrics["loss"], built.lm_head.weight.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-5) == pytest.approx(found[0][0], abs=1e-5)
    torch.testing.assert_close(found[0][2], found[1][2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["eager", "flash_attention_2"])
@pytest.mark.parametrize("model_type", OTHERS)
def test_packing_is_allowed_where_it_keeps_documents_apart(
    model_type: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = small(model_type, "eager")
    packed, batch, unpacked, alone = batches()
    packed.check_model(built.config)
    with torch.no_grad():
        expected = unpacked.loss(built, alone)
        if attention == "flash_attention_2":
            reference_flash(monkeypatch)
            built.config._attn_implementation = attention
        torch.testing.assert_close(packed.loss(built, batch), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("model_type", ["opt", "bloom", "mamba"])
def test_packing_is_refused_where_documents_would_see_each_other(model_type: str) -> None:
    config = models.config(model_type)
    chat().check_model(config)
    with pytest.raises(ValueError, match=f"packing=best_fit is not known to keep.* a {model_type} model.*packing=none"):
        chat(packing="best_fit").check_model(config)


def spans(batch: dict[str, Tensor]) -> list[tuple[int, int, int]]:
    """(row, first, end) of every document and padding."""
    width, ends = batch["input_ids"].shape[1], batch["cu_seq_lens"].tolist()
    return [(a // width, a % width, a % width + b - a) for a, b in zip(ends, ends[1:], strict=False)]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", MODELS)
def test_no_document_sees_another(model_type: str, attention: str) -> None:
    built = small(model_type, attention)
    task, batch, _, _ = batches()
    with torch.no_grad():
        before = task.outputs(built, batch).logits
        for row, first, end in spans(batch):
            changed = batch | {"input_ids": batch["input_ids"].clone()}
            changed["input_ids"][row, first] = (changed["input_ids"][row, first] + 1) % 256
            after = task.outputs(built, changed).logits
            same = torch.ones(batch["input_ids"].shape, dtype=torch.bool)
            same[row, first:end] = False
            assert torch.equal(after[same], before[same])
            assert not torch.equal(after[row, first], before[row, first])


def test_packing_needs_what_it_tells_the_model() -> None:
    """The test above can fail: with an attention mask, or positions that go on, documents see each other."""
    built = small("llama")
    task, batch, _, _ = batches()
    with torch.no_grad():
        apart = task.outputs(built, batch).logits
        ids = batch["input_ids"]
        masked = built(input_ids=ids, position_ids=batch["position_ids"], attention_mask=batch["attention_mask"])
        assert not torch.allclose(apart, masked.logits, atol=1e-2)


def reference_varlen(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
    """What flash_attn_varlen_func computes: q, k, v (tokens, heads, d), causal within each of the sequences."""
    assert given["causal"] and given["cu_seqlens_q"].dtype == torch.int32
    out = torch.empty_like(q)
    ends = given["cu_seqlens_q"].tolist()
    left, _ = given.get("window_size", (-1, -1))
    for a, b in zip(ends, ends[1:], strict=False):
        assert b - a <= given["max_seqlen_q"]
        one = [x[a:b].repeat_interleave(q.shape[1] // x.shape[1], 1).transpose(0, 1) for x in (q, k, v)]
        n = torch.arange(b - a)
        seen = n[:, None] >= n
        seen = seen & (n[:, None] - n <= left) if left >= 0 else seen
        scores = one[0] @ one[1].mT * (given["softmax_scale"] or q.shape[-1] ** -0.5)
        if given["softcap"]:
            scores = given["softcap"] * torch.tanh(scores / given["softcap"])
        out[a:b] = (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ one[2]).transpose(0, 1)
    return out


def reference_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """flash_attn needs a GPU: here its kernel is a reference, and all of transformers' code around it is real."""
    from transformers import modeling_flash_attention_utils as flash
    from transformers.integrations import flash_attention

    def varlen(
        q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int, max_seqlen_k: int,
        dropout_p: float = 0.0, softmax_scale: Any = None, causal: bool = False, window_size: Any = (-1, -1),
        softcap: float = 0.0, deterministic: bool = False,
    ) -> Tensor:  # fmt: skip
        assert torch.equal(cu_seqlens_q, cu_seqlens_k) and isinstance(max_seqlen_q, int) and dropout_p == 0.0
        return reference_varlen(
            q, k, v, cu_seqlens_q=cu_seqlens_q, max_seqlen_q=max_seqlen_q, softmax_scale=softmax_scale,
            causal=causal, window_size=window_size, softcap=softcap,
        )  # fmt: skip

    def dense(*args: Any, **given: Any) -> Tensor:
        raise AssertionError("attention over whole rows")

    functions = ((dense, varlen, None, None, None), (flash._lazy_define_process_function(varlen), None))
    monkeypatch.setattr(flash_attention, "get_target_dtype", lambda query, module: None)  # it is for half precision
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda *args, **given: functions)


@pytest.mark.parametrize("model_type", MODELS)
def test_flash_attention_is_told_where_documents_end(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reference_flash(monkeypatch)
    task, batch, _, _ = batches()
    built = small(model_type)
    with torch.no_grad():
        expected = task.loss(built, batch)
        built.config._attn_implementation = "flash_attention_2"
        torch.testing.assert_close(task.loss(built, batch), expected, atol=1e-5, rtol=0)


def test_calibration_keeps_documents_apart_under_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: documents of a packed row that attend to each other while a layer's inputs are measured."""
    reference_flash(monkeypatch)
    monkeypatch.setattr(PreTrainedModel, "_check_and_adjust_attn_implementation", lambda self, name, *_, **__: name)
    _, batch, _, _ = batches()
    seen: dict[str, list[Tensor]] = {}
    for attention in ("sdpa", "flash_attention_2"):
        built = small("llama")
        built.config._attn_implementation = attention
        weights = dict(built.named_parameters())
        names = [name for name in weights if name.endswith("down_proj.weight")]
        walk = Walk(built, lambda name, w=weights: w[name].detach(), stack_of(built, names), [batch], torch.float32)
        skeleton: Any = walk.skeleton
        assert skeleton.config._attn_implementation == attention
        seen[attention] = []
        for layer in walk:
            (own,) = (name for name in names if name.startswith(f"{layer.name}."))
            seen[attention].append(layer.collect({own: (SquaredNorm,)})[own][SquaredNorm])
    torch.testing.assert_close(seen["flash_attention_2"], seen["sdpa"], atol=1e-5, rtol=1e-3)


# --- the loss


def test_the_loss_equals_a_direct_computation_also_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    built = small("llama")
    _, _, task, batch = batches()
    with torch.no_grad():
        logits = built(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    direct = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    torch.testing.assert_close(task.loss(built, batch), direct)
    monkeypatch.setattr(causal_lm, "CHUNK_ELEMENTS", 3 * 5 * 264)
    torch.testing.assert_close(task.loss(built, batch), direct)
    weight = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0])
    per = F.cross_entropy(logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none").sum(1)
    counted = (batch["labels"][:, 1:] != IGNORED).sum(1)
    metrics = task.metrics(task.evaluate(built, [batch | {"weight": weight}], "cpu"))
    assert metrics["loss"] == pytest.approx(((per * weight).sum() / (counted * weight).sum()).item(), rel=1e-5)


def test_a_teacher_is_compared_where_the_loss_is() -> None:
    _, _, task, batch = batches()
    student, teacher = (torch.randn(*batch["input_ids"].shape, 264) for _ in range(2))
    counts = task.supervised(batch)
    before = mean_kl(student, teacher, counts, 1.0)
    teacher[counts == 0] = 0.0
    torch.testing.assert_close(mean_kl(student, teacher, counts, 1.0), before)
    assert counts.sum() == (batch["labels"] != IGNORED).sum()


def test_batches_of_a_run_are_packed_chats(tmp_path: Path) -> None:
    task = chat(packing="best_fit")
    made = prepared(tmp_path, conversations(60), task)
    config = Config().changed(seed=1, train__global_batch_size=2, train__micro_batch_size=2, train__eval_batch_size=2)
    loader = sampler.BatchLoader(made.train, task, TOKENIZER, config, 0, 1)
    batch = loader.batches(0)[0]
    loader.close()
    assert batch["input_ids"].shape == (2, 256) and len(batch["cu_seq_lens"]) > 3
    kept = sum(int(b["attention_mask"].sum()) for b in sampler.eval_batches(made.eval, task, TOKENIZER, config, 0, 1))
    assert kept == made.info["eval_tokens"]
