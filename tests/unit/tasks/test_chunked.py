"""The loss in chunks of tokens: the value and the gradients of the plain loss, and no logits of all tokens."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from pat.models import adapters
from pat.pruning.schedules import Ramp
from pat.schema import DistillConfig, PeftConfig
from pat.tasks import base, chunked_loss
from pat.tasks.causal_lm import row_losses
from pat.training.distill import Distiller
from tests import models as small

SIZES = {"pad_token_id": 0, "num_experts": 8, "num_local_experts": 8, "head_dim": 8}


def model_of(model_type: str, tied: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """A small random causal LM in training mode without dropout."""
    fields = {**SIZES, "tie_word_embeddings": tied, "attention_dropout": 0.0}
    shape = small.config(model_type, **fields)
    for key in ("attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout", "embedding_dropout", "residual_dropout"):
        if hasattr(shape, key):
            setattr(shape, key, 0.0)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(shape, attn_implementation="eager").to(dtype).train()


def batch_of(kind: str) -> dict[str, Tensor]:
    """Blocks; or padded chats of which some tokens count, packed or not."""
    ids = small.tokens(3, 11)
    if kind == "causal_lm":
        return {"input_ids": ids, "labels": ids}
    task = base.build({"name": "chat", "packing": "best_fit" if kind == "packed" else "none"})
    rows = [ids[i, : 11 - 2 * i].tolist() for i in range(3)]
    samples: dict[str, list[Any]] = {
        "input_ids": rows,
        "supervised": [[False] + [i % 3 != 0 for i in range(1, len(row))] for row in rows],
        "lengths": [[4, len(row) - 4] for row in rows],
    }
    tokenizer: Any = SimpleNamespace(pad_token_id=0, model_max_length=64)
    return task.collate(samples, tokenizer)


def task_of(kind: str, size: int | None) -> base.Task:
    """The task of a batch."""
    more = {"packing": "best_fit"} if kind == "packed" else {}
    name = "causal_lm" if kind == "causal_lm" else "chat"
    return base.build({"name": name, "loss_chunk_tokens": size, **more})


def graded(model: Any, loss: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and the gradients that it leaves."""
    model.zero_grad()
    (3.0 * loss).backward()  # as loss scaling or accumulation would
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same(found: Any, expected: Any, tolerance: float = 2e-5) -> None:
    """Equal to the rounding of fp32, relative to the largest."""
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-6)
    assert found[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        difference = (found[1][name] - grad).abs().max()
        assert difference <= tolerance * max(float(grad.abs().max()), 1e-3), (name, float(difference))


@pytest.mark.parametrize("model_type", chunked_loss.PLAIN_HEADS)
def test_every_allowed_model_type(model_type: str) -> None:
    """Would catch: logits that the model scales or caps after its head, and a bias of the head that is left out."""
    model, batch = model_of(model_type), batch_of("causal_lm")
    plain = graded(model, task_of("causal_lm", None).loss(model, batch))
    same(graded(model, task_of("causal_lm", 8).loss(model, batch)), plain)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", [1, 7, 8, 1000])
@pytest.mark.parametrize("kind", ["causal_lm", "chat", "packed"])
def test_any_size_of_chunks_tied_or_not(kind: str, size: int, tied: bool) -> None:
    model, batch = model_of("llama", tied), batch_of(kind)
    plain = graded(model, task_of(kind, None).loss(model, batch))
    same(graded(model, task_of(kind, size).loss(model, batch)), plain)
    assert "forward" not in vars(model.get_output_embeddings())


def test_the_heads_gradient_is_as_exact_in_bf16_with_any_number_of_chunks() -> None:
    """Against fp32, relative: 128 chunks within the roundings of the plain loss; summed in bf16 it is 1 % and more."""
    torch.manual_seed(0)
    exact = torch.nn.Linear(32, 64, bias=False)
    hidden, targets = torch.randn(4, 128, 32), torch.randint(0, 64, (512,))
    errors = []
    wanted: Any = None
    for dtype, size in ((torch.float32, 512), (torch.bfloat16, 512), (torch.bfloat16, 4), (torch.bfloat16, 1)):
        linear: Any = copy.deepcopy(exact).to(dtype)
        head = chunked_loss.Head((linear.weight,), linear.forward)

        def rows(logits: Tensor, part: slice) -> Tensor:
            return row_losses(logits, targets[part])

        (chunked_loss.sums(head, hidden.to(dtype), rows, torch.ones(4, 128), size)[0] / 512).backward()
        assert linear.weight.grad is not None and linear.weight.grad.dtype == dtype
        grad = linear.weight.grad.float()
        wanted = grad if wanted is None else wanted
        errors.append(float((grad - wanted).norm() / wanted.norm()))
    assert max(errors[2:]) < 1.2 * errors[1], errors


@pytest.mark.parametrize("kind", ["causal_lm", "chat", "packed"])
def test_evaluation_sums_the_same(kind: str) -> None:
    model, batch = model_of("llama"), batch_of(kind)
    batch["weight"] = torch.tensor([1.0, 0.0, 1.0])
    with torch.no_grad():
        plain, found = (task_of(kind, size).sums(model.eval(), batch) for size in (None, 5))
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-6)


def test_with_activation_checkpointing() -> None:
    model, batch = model_of("llama", tied=True), batch_of("packed")
    plain = graded(model, task_of("packed", None).loss(model, batch))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    same(graded(model, task_of("packed", 4).loss(model, batch)), plain)


def test_a_frozen_head_under_adapters_has_no_gradient() -> None:
    model, batch = model_of("llama"), batch_of("causal_lm")
    adapters.inject(model, PeftConfig(r=2), seed=0)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora_B" in name:
                param.fill_(0.1)
    plain = graded(model, task_of("causal_lm", None).loss(model, batch))
    found = graded(model, task_of("causal_lm", 6).loss(model, batch))
    same(found, plain)
    assert "lm_head.weight" not in found[1] and len(found[1]) == 2 * 7 * small.LAYERS


def test_the_head_never_sees_more_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the model's last logits either: this is the memory that the chunks save."""
    model, batch = model_of("llama"), batch_of("causal_lm")
    head, rows, linear = model.lm_head.weight, [], torch.nn.functional.linear

    def watched(x: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
        if weight is head:
            rows.append(x.numel() // x.shape[-1])
        return linear(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    task_of("causal_lm", 4).loss(model, batch).backward()
    assert rows == [4] * 8 + [1]  # of 3 x 11 tokens


@pytest.mark.parametrize("hidden_weight", [0.0, 0.7])
@pytest.mark.parametrize("kind", ["causal_lm", "chat", "packed"])
def test_distillation(kind: str, hidden_weight: float) -> None:
    """KL and hidden loss with a teacher: loss, logged parts and gradients of the plain distillation."""
    model, batch = model_of("llama", tied=True), batch_of(kind)
    torch.manual_seed(1)
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    for param in teacher.parameters():
        param.data += 0.3 * torch.randn(param.shape)
    config = DistillConfig(teacher="t", weight=0.6, temperature=2.0, hidden_weight=hidden_weight)
    ramp = Ramp.of("distill", 0, None, 10)
    found = []
    for size in (None, 5):
        distiller = Distiller(teacher, task_of(kind, size), config, ramp, range(small.LAYERS) if hidden_weight else [])
        found.append((*graded(model, distiller.loss(model, batch, 3)), distiller._sums))
    same(found[1], found[0], 5e-5)
    torch.testing.assert_close(found[1][2], found[0][2], rtol=1e-5, atol=1e-6)
    assert found[0][2][0] > 0.01
    assert all(param.grad is None for param in teacher.parameters())


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["gemma2", "cohere", "granite"])
def test_capped_or_scaled_logits_are_refused(model_type: str) -> None:
    """And rightly: their plain loss is another than their head's."""
    config = small.config(model_type, **SIZES)
    for name in ("causal_lm", "chat"):
        with pytest.raises(ValueError, match=f"task.loss_chunk_tokens is not for a {model_type}"):
            base.build({"name": name, "loss_chunk_tokens": 4}).check_model(config)
        base.build({"name": name}).check_model(config)


def test_an_adapted_head_is_refused() -> None:
    model = model_of("llama")
    adapters.inject(model, PeftConfig(r=2, target_modules=["lm_head"]), seed=0)
    with pytest.raises(
        ValueError, match="needs a plain linear output head, and this model's is a peft.Linear.*leave the head"
    ):
        task_of("causal_lm", 4).loss(model, batch_of("causal_lm"))


def test_an_empty_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="task.loss_chunk_tokens=0, but a chunk has at least 1 token"):
        task_of("chat", 0)
    with pytest.raises(ValueError, match="does not take task.loss_chunk_tokens"):
        base.build({"name": "classification", "loss_chunk_tokens": 4})
