"""Architectures that are built otherwise: fused experts, routers, models of two stacks, no limit of positions."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BartConfig, XLNetConfig

from pat.export import verify
from pat.models import build, limits
from pat.pruning.calibration.calls import NotCalibrated
from pat.pruning.calibration.probe import per_token
from pat.pruning.weights.matrices import Matrices
from pat.schema import ModelConfig
from pat.training import start_warnings
from tests import models

SMALL = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32,
    "num_key_value_heads": 2,
}  # fmt: skip


@pytest.mark.parametrize("model_type, warned", [("llama4_text", True), ("mixtral", False), ("llama", False)])
def test_experts_that_stay_dense_are_said(model_type: str, warned: bool) -> None:
    """Would catch: half of the attention removed, and most of the layers' weights left alone, without a word."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SMALL))
    matrices = Matrices.of(model)
    taken = matrices.take(["all-linear"])
    each = SimpleNamespace(name="w", shapes=dict.fromkeys(taken), config=SimpleNamespace(params=["all-linear"]))
    checked: Any = SimpleNamespace(model=model, pruner=SimpleNamespace(weight_pruners=[each]))
    said = list(start_warnings._left_dense(checked))
    assert len(said) == warned
    if warned:
        shapes = {n: p.numel() for n, p in model.named_parameters() if ".layers." in n and p.dim() > 1}
        share = sum(count for name, count in shapes.items() if ".experts." in name) / sum(shapes.values())
        assert said[0].startswith(f"{100 * share:.1f} % of the layers' weights stay dense")
        params = said[0].partition("params=[")[2].partition("]")[0].split(",")
        assert {name for name in shapes if ".experts." in name} <= set(matrices.take(params)), "what it advises works"


def test_a_list_of_single_maps_is_no_stack_of_layers() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 4))])
            self.projections = nn.ModuleList([nn.Linear(4, 4)])

    assert Matrices.of(Beside()).take(["all-linear"]) == ["layers.0.0.weight"]


def test_a_map_of_something_else_than_the_tokens_is_one_sentence() -> None:
    real = torch.tensor([True, True, False, True])
    values = torch.arange(8.0).view(2, 2, 2)
    assert torch.equal(per_token("x", values, real), values.view(4, 2)[real])
    for other in (values[:1], torch.zeros(4, 4, 4)):  # fewer rows, or more, as of relative positions
        with pytest.raises(NotCalibrated, match=r"x is no linear map of each token .* exclude it"):
            per_token("x", other, real)


def test_a_model_may_have_no_limit_of_positions() -> None:
    assert limits.positions(XLNetConfig()) is None


def test_the_text_that_proves_an_export_ends_as_two_stacks_need(tmp_path: Any) -> None:
    """BART and T5 classify by the last end-of-text, and fail without one."""
    config = BartConfig(vocab_size=300, eos_token_id=2)
    assert (verify.probe(tmp_path, config)[:, -1] == 2).all()


def test_attention_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package flash_attn: install it, or take sdpa"):
        build.check_attention(ModelConfig(attn_implementation="flash_attention_2"))
    build.check_attention(ModelConfig(attn_implementation="sdpa"))


def test_quantised_weights_are_refused_before_anything_starts(tmp_path: Path) -> None:
    """A config builds plain linear maps of them: without the check a dry run passes, and the ranks die."""
    folder = models.write_llama(tmp_path / "model")
    settings = ModelConfig(path=str(folder))
    build.check_plain(settings, AutoConfig.from_pretrained(folder))
    quantised = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (folder / "config.json").write_text(json.dumps(quantised))
    with pytest.raises(ValueError, match=r"The weights of model.path=.* are quantised \(gptq\), and cannot be"):
        build.check_plain(settings, AutoConfig.from_pretrained(folder))
