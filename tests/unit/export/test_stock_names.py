"""An export has the tensors that save_pretrained writes: transformers renames some as it loads a folder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pat.export import layout as layouts
from pat.export import masks
from pat.export.export import export_run
from pat.export.report import format_report
from pat.models.tokenizers import byte_tokenizer
from pat.registry import verify as registry
from tests import models as small
from tests.fake_run import write_run

EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
EXPERTS |= {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "num_hidden_layers": 2}
LATENT = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "kv_lora_rank": 16, "q_lora_rank": 16}
LATENT |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "first_k_dense_replace": 1, "head_dim": 8}
RENAMED: dict[str, dict[str, Any]] = {
    "gpt_neox": {"vocab_size": 320},
    "mixtral": {}, "qwen2_moe": {}, "qwen3_moe": {}, "olmoe": {}, "phimoe": {}, "minimax": {}, "granitemoe": {},
    "deepseek_v3": {**LATENT, "num_key_value_heads": small.HEADS},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "qwen3_next": {
        "linear_num_value_heads": 4, "linear_num_key_heads": 2, "layer_types": ["linear_attention", "full_attention"],
    },
}  # fmt: skip
SAME = ("llama", "gpt2", "phi3", "gpt_oss")


def model(model_type: str, auto: Any = AutoModelForCausalLM) -> Any:
    fields = {**EXPERTS, "vocab_size": 320, **RENAMED.get(model_type, {})}
    torch.manual_seed(0)
    return auto.from_config(small.config(model_type, **fields)).eval()


def stock(built: Any, folder: Path) -> dict[str, Tensor]:
    copy.deepcopy(built).save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("model_type", [*RENAMED, *SAME])
def test_an_export_has_the_tensors_of_save_pretrained(model_type: str, tmp_path: Path) -> None:
    """Would catch: fused experts, or an output matrix by another name, which no server and no transformers 4 finds."""
    built = model(model_type)
    write_run(tmp_path / "run", built, byte_tokenizer(), "causal_lm", dtype="fp32", prune="", steps=(10,))
    result = export_run(tmp_path / "run", tmp_path / "out", verify="logits")
    expected = stock(built, tmp_path / "stock")
    own = built.state_dict().keys()
    assert expected.keys() <= own or model_type in RENAMED
    same(load_file(tmp_path / "out" / "model.safetensors"), expected)
    assert result["names_reason"] is None and result["max_abs_logit_diff"] == 0.0


@pytest.mark.parametrize("layout", ["zero12", "zero3"])
def test_readers_of_an_export_know_its_tensors(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks keep the model's names, hashes and counts are those of a run, and chunks may end within an expert."""
    for module in ("masks", "source"):
        monkeypatch.setattr(f"pat.export.{module}.CHUNK", 1000)
    frozen = "*experts.down_proj"
    built = model("mixtral")
    (saved,) = write_run(
        tmp_path / "run", built, byte_tokenizer(), "causal_lm", layout=layout, frozen=frozen, steps=(10,)
    )
    result = export_run(tmp_path / "run", tmp_path / "out", verify="layers")
    assert dict(masks.read_masks(tmp_path / "out")).keys() == saved.keep.keys()
    assert result["after"]["parameters"] == sum(p.numel() for p in built.parameters())
    removed = sum(int((keep == 0).sum()) for keep in saved.keep.values())
    assert result["pruned_parameters"] == removed > 0
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert registry._zeros(tmp_path / "out", loaded).passed and registry._logits(tmp_path / "out", loaded).passed
    assert result["after"]["nonzero_parameters"] == sum(int(p.count_nonzero()) for p in loaded.parameters())
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter.flatten(), (saved.weight | saved.frozen)[name].bfloat16()), name
    again = model("mixtral")
    again.load_state_dict(loaded.float().state_dict())
    write_run(tmp_path / "fork", again, byte_tokenizer(), "causal_lm", prune="", steps=(10,))
    export_run(tmp_path / "fork", tmp_path / "again", verify="weights")
    same(load_file(tmp_path / "again" / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors"))


def test_a_classifier_of_a_renamed_model(tmp_path: Path) -> None:
    built = model("gpt_neox", AutoModelForSequenceClassification)
    write_run(tmp_path / "run", built, byte_tokenizer(), "classification", dtype="fp32", prune="")
    export_run(tmp_path / "run", tmp_path / "out", verify="weights")
    same(load_file(tmp_path / "out" / "model.safetensors"), stock(built, tmp_path / "stock"))


def test_a_tensor_may_lie_across_the_models_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix that files have turned round is no range of the checkpoint's elements, and is pruned all the same."""

    def turned(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"x.{name}": value.T if value.dim() == 2 else value for name, value in state.items()}

    monkeypatch.setattr(layouts, "revert_weight_conversion", turned)
    built = small.model("llama", vocab_size=320)
    (saved,) = write_run(tmp_path / "run", built, byte_tokenizer(), "causal_lm", dtype="fp32", steps=(10,))
    result = export_run(tmp_path / "run", tmp_path / "out", verify="layers")
    shapes = {name: p.shape for name, p in built.named_parameters()}
    for name, value in load_file(tmp_path / "out" / "model.safetensors").items():
        own = name.removeprefix("x.")
        assert torch.equal(value.T if value.dim() == 2 else value, saved.weight[own].view(shapes[own])), name
    assert result["pruned_parameters"] == sum(int((keep == 0).sum()) for keep in saved.keep.values())


def test_names_that_cannot_be_streamed_are_said(tmp_path: Path) -> None:
    """Nomic's files join the matrices of queries, keys and values, which transformers splits."""
    built = model("nomic_bert", AutoModelForSequenceClassification)
    write_run(tmp_path / "run", built, byte_tokenizer(), "classification", dtype="fp32", prune="")
    result = export_run(tmp_path / "run", tmp_path / "out", verify="logits")
    assert "Wqkv" in result["names_reason"] and "save_pretrained" in result["names_reason"]
    assert result["names_reason"] in str(format_report(result).caption)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    for name, parameter in built.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name
