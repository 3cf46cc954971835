"""`pat plan`: arithmetic against counting, up to 405 B parameters on 1,024 ranks."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, LlamaForCausalLM

from pat.commands import plan as command
from pat.models.trainable import choose_trainable
from pat.planning import activations, checkpoints, traffic
from pat.planning.calibration import Calibration, calibration
from pat.planning.memory import Layout, memory, shard_numels, touched, with_user_keys
from pat.planning.report import layout_of
from pat.planning.shapes import ParamGroup, Shapes
from pat.planning.tables import card
from pat.pruning.pruner import Pruner
from pat.pruning.schedules import Ramp
from pat.pruning.scopes import Scope
from pat.pruning.scopes.all_matrices import Global
from pat.pruning.scopes.matrix import Matrix
from pat.pruning.types import ScoredSegment
from pat.pruning.weights.selection import select_units
from pat.schema import Config, PrunerConfig
from pat.tasks import base
from pat.tasks.base import DRAWN_IDS, DRAWN_WEIGHTS, ENTROPY
from pat.training.distill import Distiller
from pat.training.sampled_kl import CachedDistiller
from tests.allocations import kept
from tests.thread_ranks import ThreadComm, run_ranks

NUMELS = st.lists(st.integers(1, 40), min_size=1, max_size=6).map(tuple)


def test_the_smallest_card_keeps_a_tenth_of_itself_free() -> None:
    assert [card(n) for n in (0.9 * 24e9, 0.9 * 24e9 + 1, 0.0)] == ["24 GB", "32 GB", "16 GB"]
    assert card(1e12).startswith("none")


@given(st.lists(NUMELS, min_size=1, max_size=3), st.integers(1, 9))
def test_gradients_are_those_of_the_parameters_that_a_shard_touches(groups: list[tuple[int, ...]], ranks: int) -> None:
    """Against an element-by-element cut of the flat groups."""
    shapes = Shapes(tuple(ParamGroup(numels) for numels in groups))
    layout = Layout(ranks, 2)
    for rank in range(ranks):
        held = 0
        for group, width in zip(shapes.groups, shard_numels(shapes, layout), strict=True):
            owner = [i for i, n in enumerate(group.numels) for _ in range(n)]
            mine = set(owner[rank * width : (rank + 1) * width])
            held += sum(group.numels[i] for i in mine)
        assert touched(shapes, layout, rank) == held


@given(st.lists(NUMELS, min_size=1, max_size=3), st.integers(1, 9), st.sampled_from([1, 2, 3]))
def test_shards_hold_everything_and_little_more(groups: list[tuple[int, ...]], ranks: int, stage: int) -> None:
    shapes = Shapes(tuple(ParamGroup(numels) for numels in groups))
    for numel, group in zip(shard_numels(shapes, Layout(ranks, stage)), shapes.groups, strict=True):
        padding = numel * ranks - group.numel
        assert 0 <= padding < (ranks * len(group.numels) if stage == 3 else 2 * ranks)


def test_one_rank_by_hand() -> None:
    shapes = Shapes(
        (ParamGroup((100,)), ParamGroup((600, 400), 9, 1, score=True)), frozen=(50,), gate_bytes=8, teacher=1000
    )
    zero0 = memory(shapes, Layout(1, 0))
    assert (zero0.weights, zero0.gradients, zero0.optimizer, zero0.step) == (2300, 2200, 13200, 6600)
    assert (zero0.pruner_soft, zero0.pruner_hard, zero0.teacher) == (9008, 1008, 2000)
    assert memory(shapes, Layout(1, 0, itemsize=4)).optimizer == 8800, "in fp32 ZeRO 0 has no second weights"
    zero3 = memory(shapes, Layout(2, 3, persistence_threshold=101, reduce_bucket=1000), activations=7)
    assert (zero3.weights, zero3.gradients, zero3.optimizer) == (2 * (575 + 150), 1100, 6600)
    assert zero3.reduction == 4 * 1000 + 4 * 1000, "a full bucket, and by ranks"
    assert zero3.total() == 1450 + 1100 + 6600 + 4508 + 1000 + 8000 + max(7 + 2000, 2000)
    assert zero3.total() - zero3.total(soft=False) == 4000
    away = memory(shapes, Layout(2, 2, offload=True))
    assert (away.optimizer, away.pruner_soft, away.host) == (0, 0, 6600 + 4508 + 2200)


def test_gradients_and_their_reduction_by_hand() -> None:
    """At ZeRO 1 and 2 rank 1 touches all; of the parameters of 100, 600 and 400 one is larger than a bucket of 500."""
    shapes = Shapes((ParamGroup((100,)), ParamGroup((600, 400))))

    def found(stage: int, **fields: Any) -> tuple[int, int, int]:
        needs = memory(shapes, Layout(2, stage, **{"reduce_bucket": 500, **fields}))
        return needs.gradients, needs.reduction, needs.step

    alone = 2200 + 2 * (1100 - 100) + 6 * 600  # of one in three reductions: the first is reduced, the second is copied
    assert found(1) == found(1, accumulation=2) == (2200, 1000, alone - 2200)
    assert found(1, reduce_bucket=2000) == (2200, 4000, 6 * 1100 - 2200), "all in one reduction, before the shards"
    assert found(1, offload=True) == (2200, 1000 + 1200, 2 * (1100 - 100) + 6 * 600 - 2200)
    assert found(1, overlap=True) == (2200 + 1200, 2000 + 6 * 600, 2200 + 4 * 500 - 3400)
    assert found(1, overlap=True, accumulation=2) == (2200 + 2200, 2000 + 6 * 600, 0)
    assert found(2) == (2200 + 1200, 1000 + 6 * 600, 2200 + 4 * 500 - 3400)
    assert found(2, accumulation=2) == (2 * 2200 + 1200, 1000 + 6 * 600, 0)
    assert found(2, reduce_bucket=700) == (2200, 1400 + 6 * 700, 4 * 500)
    assert found(2, offload=True, accumulation=2) == (1200, 1000 + 6 * 600 + 1200, 0)
    assert found(2, reduce_itemsize=2) == (3400, 1000 + 2 * 600, 800), "a copy in the same dtype"
    assert found(3)[1] == 4 * 500 + 6 * 600, "bf16 and its cast"
    assert found(3, reduce_itemsize=2)[1] == 2 * 500 + 2 * 600
    assert found(0) == (2200, 0, 6 * 1100)
    assert found(0, reduce_itemsize=2) == (2200, 0, 4 * 1100), "the step needs more"


def test_frozen_parameters_have_no_gradients() -> None:
    adapters, frozen = Shapes((ParamGroup((100,)),), frozen=(10_000,)), Shapes((ParamGroup((100,)),))
    for stage in (1, 2):
        with_them, without = (memory(each, Layout(4, stage, accumulation=2)) for each in (adapters, frozen))
        assert with_them.gradients == without.gradients
        assert with_them.total() - without.total() == 2 * 10_000


def test_what_is_sharded_falls_with_the_ranks_and_the_rest_stays() -> None:
    shapes = Shapes((ParamGroup((1 << 20,) * 12, 9, 1, score=True),))
    found = {n: memory(shapes, Layout(n, 3)) for n in (1, 2, 64, 1024)}
    for name in ("gradients", "optimizer", "pruner_soft", "pruner_hard", "weights"):
        assert all(getattr(found[n], name) * n == getattr(found[1], name) for n in (2, 64, 1024)), name
    at2 = {n: memory(shapes, Layout(n, 2)) for n in (2, 1024)}
    assert at2[2].weights == at2[1024].weights


def test_the_users_deepspeed_keys_count() -> None:
    zero = {"reduce_bucket_size": 5e6, "stage3_max_live_parameters": "auto", "param_persistence_threshold": 7}
    assert with_user_keys(Layout(2, 1), {"overlap_comm": True}).overlap
    assert not with_user_keys(Layout(2, 1), zero).overlap, "DeepSpeed's default at ZeRO 1 and 2"
    found = with_user_keys(Layout(2, 3), zero)
    assert (found.reduce_bucket, found.max_live, found.persistence_threshold) == (5_000_000, Layout(2, 3).max_live, 7)


def test_offload_is_planned_where_deepspeed_takes_it() -> None:
    """Its optimizers of ZeRO 1 to 3 do; the one of ZeRO 0 leaves all on the device."""
    config = Config().changed(engine__offload_optimizer=True, train__global_batch_size=8)
    assert [layout_of(config, 1, stage)[0].offload for stage in range(4)] == [False, True, True, True]


def test_traffic_by_hand() -> None:
    """ZeRO's paper: two passes over the weights' bytes without, three with sharded parameters, at equal dtypes."""
    shapes = Shapes((ParamGroup((1000,)),))
    per_weight = {
        stage: traffic.bytes_per_step(shapes, Layout(1000, stage, 2, 2, max_live=10)) / 2000 / 0.999
        for stage in range(4)
    }
    assert per_weight == pytest.approx({0: 2, 1: 3, 2: 3, 3: 3})
    twice = replace(Layout(2, 2), accumulation=3)
    assert traffic.bytes_per_step(shapes, twice) == (2 * 4000 * 3 + 2000) / 2
    assert traffic.bytes_per_step(shapes, Layout(1, 3)) == 0


@dataclass(frozen=True)
class Counting(ThreadComm):
    """Counts the bytes that this rank gives to all-reduces."""

    sizes: list[int] = field(default_factory=list)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        self.sizes.append(tensor.numel() * tensor.element_size())
        return super().sum(tensor)


@pytest.mark.parametrize("ranks, scope", [(2, Global()), (7, Global()), (3, Matrix())])
def test_a_selection_sends_what_is_planned(ranks: int, scope: Scope) -> None:
    side, matrices = 240, 6
    scores = torch.randn(matrices, ranks, side * side // ranks, generator=torch.Generator().manual_seed(0))
    width = scores.shape[2]

    def work(comm: Any) -> int:
        counting = Counting(comm.rank, ranks, board=comm.board)
        keep = torch.zeros(matrices, width, dtype=torch.uint8)
        segments = [
            ScoredSegment(f"m{i}", (ranks, width), comm.rank * width, scores[i, comm.rank], keep[i])
            for i in range(matrices)
        ]
        select_units(segments, 0.6, scope, counting)
        return sum(counting.sizes)

    found, _ = run_ranks(ranks, work)
    groups = matrices if scope.apart else 1
    planned = traffic.bytes_per_selection(ranks, groups, scores.numel())
    assert len(set(found)) == 1
    assert found[0] == pytest.approx(planned, rel=0.02)
    assert traffic.bytes_per_selection(1, groups, scores.numel()) == 0


def test_a_checkpoint_by_hand() -> None:
    shapes = Shapes((ParamGroup((100,)), ParamGroup((800,), 9, 1, score=True)), frozen=(50,))
    assert checkpoints.checkpoint_size(shapes, Layout(8, 2)) == checkpoints.CheckpointSize(
        2 * 950 + 12 * 900 + 8 * 800 + 100, 2 * 950 + 12 * 900 + 100
    )
    assert checkpoints.checkpoint_size(shapes, Layout(8, 3)).hard == 2 * 50 + 12 * 900 + 100
    assert checkpoints.checkpoint_size(shapes, Layout(1, 0, itemsize=4)).hard == 4 * 950 + 8 * 900 + 100
    assert checkpoints.checkpoint_size(replace(shapes, gate_bytes=7), Layout(4, 0)) == checkpoints.CheckpointSize(
        2 * 950 + 12 * 900 + 7 + 8 * 800 + 100, 2 * 950 + 12 * 900 + 7 + 100
    )


LLAMA: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "hf_config",
    [
        LlamaConfig(**LLAMA, num_hidden_layers=3, vocab_size=300),
        GPT2Config(n_embd=64, n_head=4, n_layer=3, vocab_size=300, n_positions=64),
    ],
    ids=["llama", "gpt2"],
)
def test_activations_are_those_that_a_real_forward_saves(hf_config: Any, attention: str) -> None:
    """With and without checkpointing, bf16, on the CPU; the planned ones without a tensor that has memory."""
    task = base.build({"name": "causal_lm"})
    config = Config().changed(model__attn_implementation=attention, data__max_length=64)
    planned = activations.activations(config, task, hf_config, 3)
    model = AutoModelForCausalLM.from_config(hf_config, dtype=torch.bfloat16, attn_implementation=attention).train()
    tokens = torch.zeros(3, 64, dtype=torch.long)
    batch = {"input_ids": tokens, "labels": tokens}
    assert activations.measure(model, partial(task.loss, model, batch)).whole == pytest.approx(planned.whole, rel=0.1)

    model = AutoModelForCausalLM.from_config(hf_config, dtype=torch.bfloat16, attn_implementation=attention).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    seen: dict[int, Any] = {p.untyped_storage()._cdata: None for p in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        seen.setdefault(tensor.untyped_storage()._cdata, tensor.untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        task.loss(model, batch)
    inputs_and_outside = sum(storage.nbytes() for storage in seen.values() if storage is not None)
    layer = (planned.whole - outside(planned, 3, 64)) / 3
    assert inputs_and_outside + layer == pytest.approx(planned.checkpointed, rel=0.1)


def test_a_loss_in_chunks_keeps_gradients_and_no_logits() -> None:
    """Would catch: all chunks counted as if they existed at once, although each is gone before the next."""
    v, n, d = 3000, 3 * 64, LLAMA["hidden_size"]  # vocabulary, tokens, hidden size
    hf_config = LlamaConfig(**LLAMA, num_hidden_layers=1, vocab_size=v)
    config = Config().changed(data__max_length=64)
    tasks = [base.build({"name": "causal_lm", "loss_chunk_tokens": size}) for size in (None, 8, 64)]
    whole, small, large = (activations.activations(config, task, hf_config, 3).whole for task in tasks)
    kept = 2 * n * d + 4 * v * d  # the gradients of the hidden states (bf16) and of the head (fp32)
    assert small == large
    assert kept < small < whole - 0.9 * 4 * n * v + kept
    frozen = activations.activations(config.changed(optim__trainable=["model.*"]), tasks[1], hf_config, 3).whole
    assert small - frozen == 4 * v * d


@dataclass(frozen=True)
class Case:
    """Keys of the config, and of the task's."""

    keys: dict[str, Any]
    chunk: int | None = None
    cache: bool = False


TEACHER = {"distill__weight": 0.5}
CASES = {
    "plain": Case({}),
    "frozen embeddings": Case({"optim__trainable": ["*_proj.weight"]}),
    "adapters": Case({"peft__r": 8}),
    "adapters with dropout": Case({"peft__r": 8, "peft__dropout": 0.05}),
    "teacher": Case(TEACHER),
    "teacher of hidden states": Case({"distill__weight": 0.0, "distill__hidden_weight": 1.0}),
    "teacher of both": Case(TEACHER | {"distill__hidden_weight": 1.0}),
    "teacher, loss in chunks": Case(TEACHER | {"distill__hidden_weight": 1.0}, chunk=40),
    "teacher and adapters": Case(TEACHER | {"peft__r": 8, "peft__dropout": 0.05}),
    "logit cache": Case(TEACHER, cache=True),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_forward_keeps_what_is_planned(case: Case, tmp_path: Path) -> None:
    """By torch's own count of what it allocates, of the real losses, adapters and teachers."""
    hf_config = LlamaConfig(**LLAMA, num_hidden_layers=3, vocab_size=700)
    hf_config.save_pretrained(tmp_path / "teacher")
    config = Config().changed(data__max_length=64, model__attn_implementation="eager", **case.keys)
    if "distill__weight" in case.keys:
        config = config.changed(**{f"distill__{'cache' if case.cache else 'teacher'}": str(tmp_path / "teacher")})
    task = base.build({"name": "causal_lm", "loss_chunk_tokens": case.chunk})
    planned = activations.activations(config, task, hf_config, 3)
    whole, shorter, between = (
        kept(real_loss(config, task, layers, checkpointing), tmp_path)
        for layers, checkpointing in ((3, False), (2, False), (3, True))
    )
    assert planned.whole == pytest.approx(whole, rel=0.02)
    compared = 2 * 3 * 64 * 64 * 2 if config.distill.hidden_weight else 0  # of a layer: both models' states are kept
    again = whole - shorter - compared
    assert planned.checkpointed == pytest.approx(between + again, rel=0.03)


def real_loss(config: Config, task: Any, layers: int, checkpointing: bool) -> Any:
    """A forward of 3 x 64 tokens as `pat train` does it; it has run once, so that what is built once is there."""
    hf_config = LlamaConfig(**LLAMA, num_hidden_layers=layers, vocab_size=700)
    model, teacher = (
        AutoModelForCausalLM.from_config(hf_config, dtype=torch.bfloat16, attn_implementation="eager") for _ in range(2)
    )
    model.train()
    choose_trainable(model, config)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(0, 700, (3, 64), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids}
    loss: Any = partial(task.loss, model, batch)
    if config.distill.cache:
        batch |= {DRAWN_IDS: ids[..., None], DRAWN_WEIGHTS: torch.ones(3, 64, 1), ENTROPY: torch.zeros(3, 64)}
        loss = partial(CachedDistiller(task, config.distill, Ramp(0, 0)).loss, model, batch, 0)
    elif config.distill.teacher:
        teacher.eval().requires_grad_(False)
        distiller = Distiller(teacher, task, config.distill, Ramp(0, 0), range(layers))
        loss = partial(distiller.loss, model, batch, 0)
    loss()
    return loss


def test_a_teacher_is_planned_from_its_config(tmp_path: Path) -> None:
    """Would catch: its number of classes, which only the data tells for the model, taken for a difference."""
    student, teacher = (
        LlamaConfig(**LLAMA, num_hidden_layers=1, vocab_size=300 + i, id2label={n: str(n) for n in range(2 + i)})
        for i in range(2)
    )
    teacher.save_pretrained(tmp_path)
    config = Config().changed(data__max_length=8, distill__teacher=str(tmp_path), distill__weight=0.5)
    assert activations.activations(config, base.build({"name": "classification"}), student, 3).whole > 0
    with pytest.raises(ValueError, match="has logits for 301 tokens, the model for 300: take a teacher with as many"):
        activations.activations(config, base.build({"name": "causal_lm"}), student, 3)


@pytest.mark.parametrize("name", ["classification", "regression"])
def test_a_decoder_that_classifies_is_planned_without_its_tokenizer(name: str) -> None:
    """Would catch: transformers' refusal to classify a batch where no token pads."""
    task, hf_config = base.build({"name": name}), LlamaConfig(**LLAMA, num_hidden_layers=1, vocab_size=300)
    assert activations.activations(Config().changed(data__max_length=64), task, hf_config, 3).whole > 0
    assert hf_config.pad_token_id is None


def outside(planned: activations.Activations, layers: int, hidden: int) -> float:
    """What is not in a layer: whole = o + L x, checkpointed = o + L i + x, i = b s h e."""
    inputs = layers * 3 * 64 * hidden * 2
    return (layers * (planned.checkpointed - inputs) - planned.whole) / (layers - 1)


LLAMA_405B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16384, "intermediate_size": 53248,
    "num_hidden_layers": 126, "num_attention_heads": 128, "num_key_value_heads": 8, "head_dim": 128,
    "vocab_size": 128256, "max_position_embeddings": 131072, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.slow
def test_405_billion_parameters_on_1024_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_405B))
    arguments = [
        "recipe=llama3_8b",
        "pruners.weights.criterion.name=movement",
        "pruners.weights.scope=global",
        f"model.path={tmp_path}",
        "model.tokenizer=byte",
        "data.max_length=2048",
    ]
    arguments += ["train.global_batch_size=1024", "train.micro_batch_size=1", "--disk-gb-per-s", "50"]
    assert command.main([*arguments, "--ranks", "1024", "--stages", "3", "--json", str(tmp_path / "p.json")]) == 0
    found = json.loads((tmp_path / "p.json").read_text())
    assert found["parameters"] == 405_853_388_800  # as published
    (row,) = found["rows"]
    share = found["parameters"] / 1024
    assert row["memory"]["optimizer"] == pytest.approx(12 * share, rel=0.001)
    assert row["memory"]["gradients"] == pytest.approx(2 * share, rel=0.001)
    assert row["memory"]["pruner_soft"] == pytest.approx(9 * found["prunable_by_masks"] / 1024, rel=0.001)
    inputs = 126 * 2048 * 16384 * 2
    assert inputs < row["activations"]["checkpointed"] < 1.3 * inputs < row["activations"]["whole"]
    assert row["selection_bytes"] < 1 << 20, "a selection does not grow with the model"
    assert "GB/s" in capsys.readouterr().out, "saving takes seconds at the disk's speed"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--ranks", "8,x"], "--ranks 8,x: give whole numbers from 1"),
        (["--stages", "4"], "--stages 4: give whole numbers from 0 to 3"),
        (["--disk-gb-per-s", "0"], "give more than 0"),
        (["--tflops", "400,40"], "--tflops 400,40: give one number above 0, or three"),
        (["--tflops", "0"], "--tflops 0: give one number above 0"),
    ],
)
def test_wrong_options_are_one_sentence(arguments: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        command.main(["recipe=parity", *arguments])


def test_the_pace_of_a_card_makes_seconds_of_operations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a step in the forward's dtype only; of a cut in all three."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **LLAMA, "num_hidden_layers": 2}))
    arguments = ["recipe=decoder_narrow", f"model.path={tmp_path}", "model.tokenizer=byte", "train.num_steps=1"]
    arguments += ["data.source=text", f"data.train={tmp_path}", "--tflops", "1e-3,1e-4,2e-4"]
    assert command.main([*arguments, "--json", str(tmp_path / "plan.json")]) == 0
    (row,) = json.loads((tmp_path / "plan.json").read_text())["rows"]
    cut, lines = row["cut_flops"], capsys.readouterr().out.splitlines()
    seconds = cut["forwards"] / 1e9 + cut["fp32"] / 1e8 + cut["fp64"] / 2e8
    assert min(cut.values()) > 0
    assert [line.split()[-1] for line in lines if "--tflops" in line] == [
        f"{row['step_flops'] / 1e9:,.1f}",
        f"{seconds:,.1f}",
    ]


def test_data_and_steps_may_be_left_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({"model_type": "llama", **LLAMA, "num_hidden_layers": 2})
    )
    keys = [f"model.path={tmp_path / 'model'}", "pruners.weights.budget.sparsity=0.5"]
    found = []
    for steps in ([], ["train.num_steps=5"], ["train.num_steps=0"]):
        assert command.main(["recipe=decoder", *keys, *steps, "--json", str(tmp_path / "plan.json")]) == 0
        found.append((tmp_path / "plan.json").read_text())
    assert "have masks of single weights" in capsys.readouterr().out.replace("\n", " ")
    assert found[0] == found[1] == found[2], "their number is in no figure"


@pytest.mark.parametrize(
    "here, said",
    [(None, " GB or more."), (10**12, "and fits this machine's (931.3 GiB)."), (1, "and does not fit")],
)
def test_whether_it_fits_is_said_last(
    here: int | None, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_memory_here", lambda: here)
    assert command.main(["recipe=parity", "--stages", "2,3"]) == 0
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert [line.partition(":")[0] for line in lines] == ["ZeRO 2, 2 ranks", "ZeRO 3, 2 ranks"]
    assert all("a rank at most: it fits a card of 16 GB or more" in line and said in line for line in lines)


def test_the_table_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["recipe=parity", "--ranks", "2,64", "--stages", "2,3"]) == 0
    said = capsys.readouterr().out
    assert "94,528 parameters, of which 94,528 are trained and 73,728 have masks" in said
    assert said.count("ZeRO 3, 64 ranks") == 3, "a column in each table, and the verdict"
    notes = [line for line in said.splitlines() if "cannot share" in line]
    assert [note.partition(" ranks")[0] for note in notes] == ["64"], "of all stages one"
    assert "global_batch_size=8 in micro-batches of 1: planned with 64 sequences of a step" in notes[0]
    assert command.main(["recipe=parity", "--ranks", "3,4"]) == 0
    said = capsys.readouterr().out
    assert "3 ranks cannot share" in said and "micro-batches of 2: planned with 6 sequences" in said
    assert "4 ranks cannot" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys, said",
    [
        (
            ["--ranks", "1", "--stages", "2"],
            ["engine.zero_stage=3", "engine.offload_optimizer=true", "micro_batch_size"],
        ),
        (["--ranks", "1", "engine.activation_checkpointing=false"], ["engine.activation_checkpointing=true"]),
    ],
)
def test_where_no_card_is_large_enough_it_says_what_takes_less(
    keys: list[str], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["recipe=llama3_8b", *keys]) == 0
    out = capsys.readouterr().out
    advice = " ".join(out[out.index("No card holds") :].split())
    assert all(word in advice for word in said) and ("zero_stage=3" in advice) == ("--stages" in keys)
    assert command.main(["recipe=llama3_8b", "--ranks", "64"]) == 0
    assert "No card holds" not in capsys.readouterr().out


def test_calibration_by_hand() -> None:
    """One matrix of (24, 16) in each of two layers of 400 elements, 3 samples of 10 tokens on each of 2 ranks, bf16."""
    sizes: dict[str, Any] = {**LLAMA, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    model: Any = LlamaForCausalLM(LlamaConfig(**{**sizes, "vocab_size": 20}))
    settings = PrunerConfig(
        params=["*.gate_proj.weight"], granularity="weight", criterion={"name": "alps", "num_samples": 5},
        scope="matrix", budget={"name": "sparsity", "sparsity": 0.5}, schedule={"name": "one_shot", "start": 0},
    )  # fmt: skip
    config = Config().changed(
        task={"name": "causal_lm"}, train__num_steps=4, data__max_length=10, pruners__weights=settings
    )
    pruner = Pruner(config)
    pruner.attach(model)
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    weights, hidden, gram = 24 * 16, 3 * 10 * 16 * 2, 4 * 16 * 16
    cut = gram + (4 * 6 + 2) * weights  # the inverse, six matrices, two sets of flags
    choosing = gram + (4 * 5 + 3 + 13) * weights + weights // 4
    assert choosing > cut and choosing + gram > 2 * layer + gram
    entering = 2 * 10 * 16 * 2  # a micro-batch goes in and comes out
    assert calibration(config, model, pruner.calibrations, 2) == Calibration(entering + gram + choosing, hidden)
    assert calibration(config, model, [], 2) == Calibration(0, 0)
    embeds: Any = LlamaForCausalLM(LlamaConfig(**{**sizes, "vocab_size": 9000}))
    embedding, chunk = 2 * (9000 * 16 + 16), 4 * 9000 * 16  # bf16, with the last norm; and what is summed in fp32
    assert calibration(config, embeds, pruner.calibrations, 2).device == entering + embedding + chunk
    many = 2 * (pruner.calibrations[0].num_samples // 2 + 1)  # of a forward more than half of what is asked for
    of_many = [replace(each, num_samples=many) for each in pruner.calibrations]
    assert calibration(config, model, pruner.calibrations, 1, many).host == calibration(config, model, of_many, 1).host
    felt = config.changed(pruners__weights__criterion={"name": "alps", "num_samples": 5, "gradient_samples": 3})
    going = Pruner(felt)
    going.attach(model)
    outside = sum(p.numel() for p in model.parameters()) - 2 * layer
    back = 3 * 2 * 10 * 16 * 2  # 2 samples of a rank: into 2 layers and out of them
    on_device = entering + max(2 * max(layer, outside), gram + choosing)
    assert calibration(felt, model, going.calibrations, 2) == Calibration(on_device, max(back, hidden))
    scarce = config.changed(
        pruners__weights__criterion={"name": "alps", "num_samples": 5, "gradient_samples": 1, "gradient_labels": 3}
    )
    searching = Pruner(scarce)
    searching.attach(model)
    for task, each in (("causal_lm", 1), ("chat", 2), ("classification", 2)):  # 3 labels, of 9 or 1 a sample; 2 ranks
        planned = calibration(scarce.changed(task={"name": task}), model, searching.calibrations, 2)
        assert planned.host == max(3 * each * 10 * 16 * 2, hidden), task
    fitted = config.changed(pruners__weights__criterion={"name": "alps", "num_samples": 5, "reconstruct": 1})
    again = Pruner(fitted)
    again.attach(model)
    fit = 2 * layer + (2 + 13 + 3 * 4) * weights  # weights, gradients; fp32 with moments and flags, Adam's own
    on_device = entering + max(gram + choosing, fit)
    assert calibration(fitted, model, again.calibrations, 2) == Calibration(on_device, 3 * hidden)
