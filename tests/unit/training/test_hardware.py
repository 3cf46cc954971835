"""Peaks, FLOPs of a token, and MFU against figures that were worked out by hand."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from pat.training.display import status
from pat.training.hardware import flops_per_token, mfu, peak_flops


@pytest.mark.parametrize(
    ("device", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
    ],
)
def test_the_peak_is_that_of_the_named_product(device: str, tera: float) -> None:
    assert peak_flops(device, "bf16") == tera * 1e12


@pytest.mark.parametrize("device", ["NVIDIA RTX A4000", "NVIDIA RTX A1000", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"])
def test_a_card_whose_name_holds_anothers_has_no_peak(device: str) -> None:
    assert peak_flops(device, "bf16") is None


def test_no_peak_no_mfu() -> None:
    assert peak_flops("cpu", "bf16") is None and peak_flops("NVIDIA H100 80GB HBM3", "fp32") is None
    assert mfu(1e4, 6e9, "cpu", "bf16", 8) is None


@pytest.mark.parametrize("tied", [True, False])
def test_flops_of_a_token_and_mfu(tied: bool) -> None:
    shape = LlamaConfig(
        vocab_size=10, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(shape)
    model.tie_weights()
    layer = 4 * 8 * 8 + 3 * 8 * 16 + 2 * 8
    attention = 12 * 2 * 8 * 32
    assert flops_per_token(model, 32) == 6 * (2 * layer + 8 + 10 * 8) + attention
    for table in (model.model.embed_tokens, model.lm_head):
        table.requires_grad_(False)
    assert flops_per_token(model, 32) == 6 * (2 * layer + 8) + 4 * 10 * 8 + attention
    assert mfu(989e12 / 6e9, 6e9, "NVIDIA H100 80GB HBM3", "bf16", 2) == pytest.approx(0.5)


@pytest.mark.parametrize("passed", [1, 2])
def test_a_token_passes_some_of_the_experts(passed: int) -> None:
    """Four of them in each layer; the router and attention count whole."""
    shape = MixtralConfig(
        vocab_size=10, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=passed,
    )  # fmt: skip
    with torch.device("meta"):
        model = MixtralForCausalLM(shape)
    layer = 4 * 8 * 8 + passed * 3 * 8 * 16 + 4 * 8 + 2 * 8
    assert flops_per_token(model, 32) == 6 * (2 * layer + 8 + 10 * 8) + 12 * 2 * 8 * 32


def test_the_line_of_a_step_shows_speed_mfu_and_memory() -> None:
    line = {"train/loss": 1.0, "train/tokens_per_s": 1234.0, "train/peak_memory_bytes": 3 << 29}
    assert status(line)[-2:] == ["1,234 tokens/s", "1.5 GiB"]
    assert status(line | {"train/mfu": 0.417})[-2:] == ["MFU 42 %", "1.5 GiB"]
