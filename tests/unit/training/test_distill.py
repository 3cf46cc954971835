"""The distillation's loss against naive computations, its schedule, and what is refused before training."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from pat.common.comm import LOCAL
from pat.config import compose, frozen
from pat.models import build, tokenizers
from pat.pruning.schedules import Ramp
from pat.schema import Config, DistillConfig, ModelConfig
from pat.tasks import base
from pat.training import distill, preflight, teacher
from pat.training.distill import Distiller, hidden_loss, mean_kl, uniform_map
from pat.training.objective import Objective

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "max_position_embeddings": 64}
WIDE = {"initializer_range": 0.3}  # so that two models differ by more than rounding
TOKENIZER = tokenizers.byte_tokenizer()
LABELS = ["a", "b", "c"]


def model_for(task: base.Task, model_type: str, layers: int, seed: int) -> Any:
    torch.manual_seed(seed)
    cfg = ModelConfig(init="random", config={"model_type": model_type, "num_hidden_layers": layers, **SIZES, **WIDE})
    return build.build_model(cfg, task, torch.float32, 3, TOKENIZER, LABELS).eval()


def batch_for(task: base.Task) -> dict[str, Tensor]:
    if not task.labelled:
        ids = torch.randint(0, 256, (3, 9), generator=torch.Generator().manual_seed(1))
        return task.collate({"input_ids": ids.tolist()}, TOKENIZER)
    texts = ["one", "number two, which is longer", "3", "four and four"]
    samples = task.encoder(TOKENIZER, 16, LABELS)({"text": texts, "label": ["c", "a", "b", "a"]})
    return task.collate(samples, TOKENIZER)


# -- the Kullback-Leibler divergence ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1 << 24, 3 * 11, 1])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kl_in_chunks_equals_torch_and_so_does_its_gradient(
    monkeypatch: pytest.MonkeyPatch, chunk: int, temperature: float
) -> None:
    monkeypatch.setattr(distill, "CHUNK_ELEMENTS", chunk)
    generator = torch.Generator().manual_seed(0)
    student, target = (torch.randn(2, 5, 11, generator=generator) * 3 for _ in range(2))
    counts = torch.tensor([[1.0, 1, 0, 1, 0], [1, 0, 1, 1, 1]])
    ours = student.clone().requires_grad_()
    (3.0 * mean_kl(ours, target, counts, temperature)).backward()
    theirs = student.clone().requires_grad_()
    kept = counts.bool()
    log_q = F.log_softmax(theirs[kept] / temperature, -1)
    expected = F.kl_div(log_q, F.softmax(target[kept] / temperature, -1), reduction="batchmean")
    (3.0 * expected).backward()
    torch.testing.assert_close(mean_kl(student, target, counts, temperature), expected.detach())
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert ours.grad is not None and not ours.grad[~kept].any()


def test_kl_of_bf16_logits_is_computed_in_fp32() -> None:
    student, target = (torch.randn(4, 300).bfloat16() for _ in range(2))
    leaf = student.clone().requires_grad_()
    kl = mean_kl(leaf, target, torch.ones(4), 2.0)
    kl.backward()
    log_p, log_q = (F.log_softmax(x.double() / 2.0, -1) for x in (target, student))
    assert kl.dtype == torch.float32 and leaf.grad is not None and leaf.grad.dtype == torch.bfloat16
    torch.testing.assert_close(
        kl.double(), F.kl_div(log_q, log_p, reduction="batchmean", log_target=True), rtol=1e-5, atol=0
    )


def test_kl_never_holds_more_than_three_fp32_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts every tensor that is allocated: a whole fp32 copy of the logits would be 64 chunks."""
    rows, v = 64, 1000
    monkeypatch.setattr(distill, "CHUNK_ELEMENTS", v)
    student = torch.randn(rows, v).bfloat16().requires_grad_()
    target = torch.randn(rows, v).bfloat16()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        mean_kl(student, target, torch.ones(rows), 2.0).backward()
    held = peak = 0
    events: Any = profile.profiler.kineto_results.events()  # pyright: ignore
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    gradient = rows * v * 2
    assert gradient < peak <= gradient + 3 * v * 4 + 4 * rows * 4 + v * 2


# -- hidden states -----------------------------------------------------------------------------------------------------


def test_uniform_map_is_tiny_berts() -> None:
    assert uniform_map(6, 6) == [0, 1, 2, 3, 4, 5]
    assert uniform_map(4, 12) == [2, 5, 8, 11]
    assert uniform_map(2, 3) == [1, 2]
    assert uniform_map(12, 4) == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    for student in range(1, 13):
        for depth in range(1, 13):
            found = uniform_map(student, depth)
            assert found == sorted(found) and found[0] >= 0 and found[-1] == depth - 1


def test_hidden_loss_leaves_out_padding_and_follows_the_map() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(2, 4, 6, generator=generator, requires_grad=True) for _ in range(3)]
    theirs = [torch.randn(2, 4, 6, generator=generator) for _ in range(5)]
    counts = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0]])
    loss = hidden_loss(ours, theirs, counts, [3, 1])
    total = 0.0
    for i, j in ((1, 4), (2, 2)):
        for row, s in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1)):
            total += float(((ours[i][row, s] - theirs[j][row, s]).detach() ** 2).mean()) / 5
    assert float(loss.detach()) == pytest.approx(total / 2, rel=1e-6)
    loss.backward()
    assert ours[0].grad is None
    grad = ours[1].grad
    assert grad is not None and grad[0, :3].all() and not grad[0, 3].any() and not grad[1, 2:].any()


# -- the combined loss -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "model_type"), [("causal_lm", "llama"), ("classification", "bert")])
def test_loss_equals_a_naive_computation(name: str, model_type: str) -> None:
    """From logits and hidden states of plain forwards, in fp64, row by row."""
    task = base.build({"name": name})
    student, taught = model_for(task, model_type, 2, seed=0), model_for(task, model_type, 4, seed=1)
    batch = batch_for(task)
    config = DistillConfig(teacher="x", weight=0.6, temperature=2.0, hidden_weight=0.25)
    distiller = Distiller(taught, task, config, Ramp(0, 10), [1, 3])
    given = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        ours, theirs = (m(**given, output_hidden_states=True) for m in (student, taught))
        plain = float(task.loss(student, batch))
    logits = [(o.logits[:, :-1] if name == "causal_lm" else o.logits[:, None]).double() for o in (ours, theirs)]
    rows = []
    for q_row, p_row in zip(logits[0].flatten(0, 1), logits[1].flatten(0, 1), strict=True):
        p, q = torch.softmax(p_row / 2.0, 0), torch.softmax(q_row / 2.0, 0)
        rows.append(float((p * (p.log() - q.log())).sum()))
    kl = sum(rows) / len(rows)
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    hidden = [F.mse_loss(ours.hidden_states[i][mask], theirs.hidden_states[j][mask]) for i, j in ((1, 2), (2, 4))]
    mse = float(sum(hidden)) / 2
    for t, r in ((99, 1.0), (10, 1.0), (5, 0.5)):
        expected = (1 - 0.6 * r) * plain + 0.6 * r * 4.0 * kl + 0.25 * r * mse
        assert float(distiller.loss(student, batch, t).detach()) == pytest.approx(expected, rel=1e-5)
    assert distiller.logged(LOCAL)["distill/weight"] == 0.3, "that of the last step"
    shares = (0.3, 1.6)  # a micro-batch with few answers and long texts
    expected = 0.3 * (0.4 * plain + 0.6 * 4.0 * kl) + 1.6 * 0.25 * mse
    assert float(distiller.loss(student, batch, 10, shares).detach()) == pytest.approx(expected, rel=1e-5)
    line = distiller.logged(LOCAL)
    assert line["distill/kl"] == pytest.approx(0.3 * kl, rel=1e-5)
    assert line["distill/hidden"] == pytest.approx(1.6 * mse, rel=1e-5)
    distiller.loss(student, batch, 10)
    line = distiller.logged(LOCAL)
    assert line["distill/weight"] == 0.6
    assert line["distill/kl"] == pytest.approx(kl, rel=1e-5)
    assert line["distill/hidden"] == pytest.approx(mse, rel=1e-5)
    assert set(distiller.logged(LOCAL)) == {"distill/weight"}, "nothing was added since the last line"


@pytest.mark.parametrize(("name", "model_type"), [("causal_lm", "llama"), ("classification", "bert")])
def test_only_the_student_learns_and_a_copy_of_it_teaches_nothing(name: str, model_type: str) -> None:
    task = base.build({"name": name})
    student, taught = model_for(task, model_type, 2, seed=0), model_for(task, model_type, 2, seed=0)
    config = DistillConfig(teacher="x", weight=1.0, hidden_weight=1.0)
    distiller = Distiller(taught, task, config, Ramp(0, 0), uniform_map(2, 2))
    loss = distiller.loss(student, batch_for(task), 0)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-6
    assert all(p.grad is None for p in taught.parameters())
    assert max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None) < 1e-6


@pytest.mark.parametrize(("name", "model_type"), [("causal_lm", "llama"), ("classification", "bert")])
def test_activation_checkpointing_changes_no_gradient(name: str, model_type: str) -> None:
    """Hidden states are collected by hooks, which must not collect again when activations are recomputed."""
    task = base.build({"name": name})
    taught = model_for(task, model_type, 2, seed=1)
    config = DistillConfig(teacher="x", weight=0.5, hidden_weight=0.5)
    found = []
    for recompute in (False, True):
        student = model_for(task, model_type, 2, seed=0).train()
        student.config.attention_dropout = 0.0
        for module in student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if recompute:
            student.gradient_checkpointing_enable({"use_reentrant": False})
        loss = Distiller(taught, task, config, Ramp(0, 0), [0, 1]).loss(student, batch_for(task), 0)
        loss.backward()
        found.append((loss.detach(), [p.grad for p in student.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1])


def test_the_students_answers_come_to_resemble_the_teachers() -> None:
    task = base.build({"name": "causal_lm"})
    student, taught, batch = model_for(task, "llama", 2, seed=0), model_for(task, "llama", 3, seed=1), batch_for(task)
    distiller = Distiller(taught, task, DistillConfig(teacher="x", weight=1.0), Ramp(0, 0), [1, 2])
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    found = []
    for t in range(20):
        optimizer.zero_grad()
        distiller.loss(student, batch, t).backward()
        optimizer.step()
        found.append(distiller.logged(LOCAL)["distill/kl"])
    assert found[-1] < 0.5 * found[0], found


def test_without_a_teacher_the_loss_is_the_tasks_own() -> None:
    task = base.build({"name": "causal_lm"})
    model, batch, nothing = model_for(task, "llama", 2, seed=0), batch_for(task), cast(Any, None)
    alone = Objective(model, task, nothing, global_mean=True)
    assert torch.equal(alone.loss(batch, 3), task.loss(model, batch)) and not alone.logged()
    config = DistillConfig(teacher="x", weight=0.5)
    distiller = Distiller(model_for(task, "llama", 2, seed=1), task, config, Ramp(0, 0), [0, 1])
    taught = Objective(model, task, nothing, global_mean=True, distiller=distiller)
    assert not torch.equal(taught.loss(batch, 3), task.loss(model, batch))


def test_before_the_ramp_the_loss_is_the_tasks_own_and_the_teacher_rests() -> None:
    task = base.build({"name": "causal_lm"})
    student, batch = model_for(task, "llama", 2, seed=0), batch_for(task)

    def no_teacher(**_: Any) -> Any:
        raise AssertionError("the teacher was asked")

    distiller = Distiller(no_teacher, task, DistillConfig(teacher="x", weight=0.5), Ramp(3, 6), [0, 1])
    for t in (0, 3):
        assert torch.equal(distiller.loss(student, batch, t), task.loss(student, batch))
    with pytest.raises(AssertionError, match="was asked"):
        distiller.loss(student, batch, 4)


def test_ramp() -> None:
    assert [Ramp(2, 4)(t) for t in range(6)] == [0, 0, 0, 0.5, 1, 1]
    assert [Ramp(2, 2)(t) for t in range(4)] == [0, 0, 1, 1]
    assert Ramp.of("distill", 0, None, 10) == Ramp(0, 0)
    assert Ramp.of("distill", 0.25, 0.5, 100) == Ramp(25, 50)
    for start, end, words in (
        (5, 3, "distill.end is step 3, before distill.start at step 5"),
        (10, None, "distill.start is step 10, outside the run's steps 0 to 9"),
        (0, 1.5, "distill.end is 1.5, but must be a whole number"),
    ):
        with pytest.raises(ValueError, match=words):
            Ramp.of("distill", start, end, 10)


# -- the teacher -------------------------------------------------------------------------------------------------------


def folder_for(path: Path, name: str = "causal_lm", labels: list[str] = LABELS, **fields: Any) -> str:
    """A saved model and the byte tokenizer."""
    task = base.build({"name": name})
    shape = {"model_type": "bert" if task.labelled else "llama", "num_hidden_layers": 3, **SIZES}
    cfg = ModelConfig(init="random", config=shape | fields)
    build.build_model(cfg, task, torch.float32, None, TOKENIZER, labels).save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    return str(path)


def settings(name: str, path: str, **fields: Any) -> Config:
    distill = DistillConfig(**{"teacher": path, "weight": 0.5} | fields)
    return Config().changed(task__name=name, train__num_steps=10, data__max_length=32, distill=distill)


def checked(config: Config, **shape: Any) -> None:
    """`teacher.check` of a two-layer student over bytes."""
    task = base.build({"name": config.task.name})
    model_type = "bert" if task.labelled else "llama"
    student = ModelConfig(init="random", config={"model_type": model_type, "num_hidden_layers": 2, **SIZES} | shape)
    teacher.check(config, task, TOKENIZER, build.build_config(student, task, 3, TOKENIZER, LABELS))


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"hidden_weight": 1.0, "layer_map": [0]}, "distill.layer_map has 1 entries, but the model has 2 layers"),
        ({"hidden_weight": 1.0, "layer_map": [0, 3]}, "names layer 3, but the teacher has layers 0 to 2"),
        ({"hidden_weight": 1.0, "layer_map": [-1, 2]}, "names layer -1, but the teacher has layers 0 to 2"),
        ({"hidden_weight": 1.0, "layer_map": [0, 1]}, "layer 1 of the model is compared with layer 1 of the teacher"),
        ({"hidden_weight": 1.0, "layer_map": [2, 2]}, "layer 0 of the model is compared with layer 2 of the teacher"),
        ({"teacher": "./nowhere"}, "There is no folder distill.teacher='./nowhere'"),
    ],
)
def test_unfit_settings(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    path = folder_for(tmp_path / "teacher")
    checked(settings("causal_lm", path, hidden_weight=1.0))
    with pytest.raises(ValueError, match=re.escape(words)):
        checked(settings("causal_lm", path, **fields))


def test_an_encoders_last_state_is_like_the_others(tmp_path: Path) -> None:
    path = folder_for(tmp_path / "teacher", "classification")
    checked(settings("classification", path, hidden_weight=1.0, layer_map=[0, 1]))


def test_another_tokenizer(tmp_path: Path) -> None:
    path = folder_for(tmp_path / "teacher")
    other = tokenizers.byte_tokenizer()
    other.add_tokens(["<more>"])
    other.save_pretrained(path)
    with pytest.raises(ValueError, match="another tokenizer than the model: it also has '<more>'"):
        checked(settings("causal_lm", path))
    # The model's own folder: whatever model.tokenizer says is what both get.
    checked(settings("causal_lm", path).changed(model__path=path))


def test_vocabularies_are_compared_by_token_and_number() -> None:
    ours = {"a": 0, "b": 1}
    assert teacher.vocabulary_difference(ours, {"b": 1, "a": 0}) is None
    assert "'a' is number 0 of the model's and number 1 there" in str(
        teacher.vocabulary_difference(ours, {"a": 1, "b": 0})
    )
    assert "'b' is number 1 of the model's and missing there" in str(teacher.vocabulary_difference(ours, {"a": 0}))


def test_other_sizes(tmp_path: Path) -> None:
    path = folder_for(tmp_path / "teacher", vocab_size=320)
    with pytest.raises(ValueError, match="has logits for 320 tokens, the model for 264: take"):
        checked(settings("causal_lm", path))
    checked(settings("causal_lm", path), vocab_size=320)
    checked(settings("causal_lm", path), vocab_size=320, hidden_size=16)
    with pytest.raises(ValueError, match="hidden size 32 and the model 16: distill.hidden_weight needs equal sizes"):
        checked(settings("causal_lm", path, hidden_weight=1.0), vocab_size=320, hidden_size=16)


def test_other_classes(tmp_path: Path) -> None:
    checked(settings("classification", folder_for(tmp_path / "same", "classification")))
    checked(settings("classification", folder_for(tmp_path / "upper", "classification", ["A", "B", "C"])))
    for name, labels, words in (
        ("fewer", ["a", "b"], "has 2 classes, but the data has 3"),
        ("upper and swapped", ["B", "A", "C"], "in the order ['B', 'A', 'C'], but the data in the order"),
        ("swapped", ["b", "a", "c"], "in the order ['b', 'a', 'c'], but the data in the order ['a', 'b', 'c']"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            checked(settings("classification", folder_for(tmp_path / name, "classification", labels)))


def test_classes_of_other_names_are_said(tmp_path: Path) -> None:
    """They may be in another order, which no name gives away."""
    task = base.build({"name": "classification"})
    student = ModelConfig(init="random", config={"model_type": "bert", **SIZES})
    built = build.build_config(student, task, 3, TOKENIZER, LABELS)
    for labels, said in (
        (["A", "B", "C"], None),
        (["LABEL_0", "LABEL_1", "LABEL_2"], None),
        (["good", "bad", "none"], "the teacher's labels good, bad, none are taken for a, b, c"),
    ):
        path = folder_for(tmp_path / labels[0], "classification", labels)
        assert teacher.note(settings("classification", path), task, built) == said


def test_a_teacher_with_too_few_positions(tmp_path: Path) -> None:
    config = settings("classification", folder_for(tmp_path / "short", "classification", max_position_embeddings=16))
    with pytest.raises(ValueError, match="has 16 positions, fewer than data.max_length=32: lower it"):
        checked(config)


def test_a_teacher_without_a_trained_head(tmp_path: Path) -> None:
    path = folder_for(tmp_path / "encoder", "classification")
    task, config = base.build({"name": "classification"}), settings("classification", path)
    bert = AutoModel.from_pretrained(path)
    bert.save_pretrained(path)
    with pytest.raises(ValueError, match="saved as a BertModel, without a trained head for the task 'classification'"):
        checked(config)
    with pytest.raises(ValueError, match="has no weights for classifier.bias, classifier.weight"):
        build.build_model(ModelConfig(path=path), task, torch.float32, 3, TOKENIZER, LABELS, complete=True)


def test_the_teacher_is_frozen_and_as_it_was_saved(tmp_path: Path) -> None:
    path = folder_for(tmp_path / "teacher", "classification", hidden_dropout_prob=0.5)
    task = base.build({"name": "classification"})
    config = settings("classification", path, hidden_weight=1.0).changed(engine__zero_stage=2)
    student = model_for(task, "bert", 2, seed=0)
    distiller = teacher.build(config, task, TOKENIZER, student.config, {}, "cpu")
    batch = batch_for(task)
    assert not distiller.teacher.training and not any(p.requires_grad for p in distiller.teacher.parameters())
    assert {p.dtype for p in distiller.teacher.parameters()} == {torch.bfloat16}
    assert distiller.layer_map == [1, 2]
    direct = task.auto_model.from_pretrained(path, dtype=torch.bfloat16)
    assert torch.equal(*(task.outputs(model, batch).logits for model in (distiller.teacher, direct)))


def test_identity_is_of_the_weights(tmp_path: Path) -> None:
    first = teacher.identity(settings("causal_lm", folder_for(tmp_path / "a")), LOCAL)
    same = teacher.identity(settings("causal_lm", str(shutil.copytree(tmp_path / "a", tmp_path / "b"))), LOCAL)
    assert first["path"] == str(tmp_path / "a") and first["sha256"] == same["sha256"]
    teacher.check_same(first, same)
    teacher.check_same(None, None)
    torch.manual_seed(5)
    other = teacher.identity(settings("causal_lm", folder_for(tmp_path / "c")), LOCAL)
    for saved, ours in ((first, other), (None, first), (first, None)):
        with pytest.raises(ValueError, match="the checkpoint was made with .*, and would go on|would go on with"):
            teacher.check_same(saved, ours)
    shares = [SimpleNamespace(rank=r, world_size=2, gather=lambda mine: [mine]) for r in range(2)]
    assert first["sha256"] == teacher.identity(settings("causal_lm", first["path"]), shares[0])["sha256"]  # type: ignore


# -- from the command line ---------------------------------------------------------------------------------------------

PARITY = ["recipe=parity", "logger=none"]


def composed(*overrides: str) -> Config:
    found: list[Config] = []
    compose.compose([*PARITY, *overrides], lambda config: found.append(config) or 0)
    return found[0]


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["distill=dense"], "distill.weight is 0.5, but without distill.teacher or distill.cache it would be ignored"),
        (
            ["distill.temperature=2.0"],
            "distill.temperature is 2.0, but without distill.teacher or distill.cache it would be ignored: set one",
        ),
        (["distill.revision=x"], "distill.revision is 'x', but without distill.teacher it would be ignored"),
        (["distill.cache=x"], "distill.weight is not set"),
        (["distill.cache=x", "distill.weight=0"], "distill.weight is 0, but distill.cache=x holds nothing but answers"),
        (
            ["distill.teacher=y", "distill.cache=x", "distill.weight=.5", "distill.hidden_weight=1"],
            "distill.hidden_weight is 1.0, but distill.cache=x holds no hidden states",
        ),
        (["distill.cache=x", "distill.weight=.5", "distill.end=30"], "distill.end is step 30, outside the run's"),
        (["distill.teacher=x"], "distill.weight is not set"),
        (["distill.teacher=x", "distill.weight=1.5"], "distill.weight is 1.5, but must be at most 1"),
        (["distill.teacher=x", "distill.weight=-0.1"], "distill.weight is -0.1, but must be at least 0"),
        (["distill.teacher=x", "distill.weight=.5", "distill.hidden_weight=-1"], "distill.hidden_weight is -1.0"),
        (["distill.teacher=x", "distill.weight=0"], "are both 0: nothing would be distilled"),
        (
            ["distill.teacher=x", "distill.weight=.5", "distill.temperature=0"],
            "distill.temperature is 0.0, but must be",
        ),
        (
            ["distill.teacher=x", "distill.weight=.5", "distill.layer_map=[0,1]"],
            "without distill.hidden_weight it would be ignored",
        ),
        (["distill.teacher=x", "distill.weight=.5", "distill.end=30"], "distill.end is step 30, outside the run's"),
        (
            ["distill.teacher=x", "distill.weight=.5", "distill.start=4", "distill.end=2"],
            "before distill.start at step 4",
        ),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        composed(f"run.dir={tmp_path}", *overrides)


def test_dense_is_the_models_own_path_and_steps_may_be_fractions(tmp_path: Path) -> None:
    path = folder_for(tmp_path / "model")
    run = [f"run.dir={tmp_path / 'run'}", f"model.path={path}", "model.init=pretrained", "model.config={}"]
    config = composed(*run, "distill=dense", "distill.start=0.1", "distill.end=15")
    assert (config.distill.teacher, config.distill.start, config.distill.end) == (path, 0.1, 15)
    frozen.freeze(config, tmp_path / "run")
    assert frozen.load(tmp_path / "run" / "config.yaml") == config


def test_prepare_refuses_another_vocabulary_and_dry_run_says_the_bytes(tmp_path: Path) -> None:
    path = folder_for(tmp_path / "teacher", vocab_size=320)
    run = [f"run.dir={tmp_path / 'run'}", f"data.cache_dir={tmp_path / 'cache'}"]
    run += [f"distill.teacher={path}", "distill.weight=0.5", "distill.end=0.5"]
    config = composed(*run)
    preflight.prepare(config, tmp_path / "run")
    numel = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(path).parameters())
    said = teacher.describe(config)
    assert f"{numel:,} parameters: {2 * numel / 1024:.1f} KiB per rank (bf16, whole on every rank)" in said
    assert "from step 0, from step 15 with weight 0.5 and hidden_weight 0.0" in said
    sharded = teacher.describe(composed(*run, "engine=zero3"))
    assert f"{numel / 1024:.1f} KiB per rank (bf16, sharded over 2 ranks)" in sharded
    (tmp_path / "teacher" / "tokenizer.json").unlink()
    other = tokenizers.byte_tokenizer()
    other.add_tokens(["<more>"])
    other.save_pretrained(path)
    with pytest.raises(ValueError, match="another tokenizer"):
        preflight.prepare(config, tmp_path / "run")
