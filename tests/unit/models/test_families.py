"""Anatomies without weights, and what a family refuses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pat.models import families
from pat.models.anatomy import Attention, Mlp
from tests import models as small

TYPES = list(families.families())
POOLED = ("attention_layers", "mlp_layers", "layers")


def test_there_are_families() -> None:
    decoders = {
        *("llama", "mistral", "qwen2", "qwen3", "granite", "smollm3", "gpt2", "gemma", "gemma2", "gemma3_text", "phi3"),
        *("gpt_neox", "olmo", "nemotron", "starcoder2", "ministral3"),
    }
    encoders = {"bert", "electra", "ernie", "xlm-roberta", "roberta", "distilbert", "deberta-v2", "modernbert"}
    assert decoders | encoders <= set(TYPES)


@pytest.mark.parametrize("model_type", TYPES)
def test_anatomy_needs_no_weights(model_type: str) -> None:
    """Would catch: a size read from .shape, which is empty under ZeRO 3, or a value read on the meta device."""
    model = small.model(model_type)
    expected = families.anatomy(model)
    with torch.device("meta"):
        meta = type(model)(model.config)
        meta.tie_weights()
    assert families.anatomy(meta) == expected
    for p in model.parameters():
        p.ds_shape, p.data = p.shape, torch.empty(0)
    assert families.anatomy(model) == expected


@pytest.mark.parametrize("model_type", TYPES)
def test_anatomy_has_the_sizes_of_the_config(model_type: str) -> None:
    anatomy = families.anatomy(small.model(model_type))
    assert len(anatomy.layers) == small.LAYERS
    for layer in anatomy.layers:
        attention, mlp = layer.sublayers
        assert isinstance(attention, Attention) and isinstance(mlp, Mlp)
        assert mlp.num_units == small.NEURONS
        assert attention.num_heads == small.HEADS
        kv_heads = getattr(anatomy.config, "num_key_value_heads", small.HEADS)
        assert attention.num_kv_heads == kv_heads
        head_dim = getattr(anatomy.config, "head_dim", None) or small.HIDDEN // small.HEADS
        assert attention.head_dim == head_dim
        assert attention.output.num_inputs == small.HEADS * head_dim
        assert attention.output.num_outputs == mlp.output.num_outputs == small.HIDDEN
        assert sum(each.num_outputs for each in attention.inputs) == (small.HEADS + 2 * kv_heads) * head_dim


@pytest.mark.parametrize(("model_type", "pre_norm"), [("llama", True), ("gpt2", True), ("bert", False)])
def test_residual_style(model_type: str, pre_norm: bool) -> None:
    assert families.anatomy(small.model(model_type)).pre_norm is pre_norm


@pytest.mark.parametrize("model_type", TYPES)
def test_what_multiplies_a_sublayer_reaches_the_logits(model_type: str) -> None:
    """Would catch: a norm between the module that an anatomy names and the residual, which divides the factor away."""
    model = small.model(model_type)
    found = [site for structure in POOLED for site in small.sites(families.anatomy(model), structure)]
    for site in found:
        logits = []
        for factor in (0.1, 0.9):
            gate = {site.name: torch.tensor([factor])}
            with torch.no_grad(), small.gated(model, [site], gate):
                logits.append(model(small.tokens()).logits)
        assert (logits[0] - logits[1]).abs().max() > 0.01, site.name


def test_a_missing_family_names_the_file_to_write() -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 32}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("biogpt", intermediate_size=16, **sizes))
    sentence = r"'biogpt'; it knows arcee, bert, .*Prune its weights .* write pat/models/families/biogpt.py"
    with pytest.raises(ValueError, match=sentence):
        families.anatomy(model)


def test_a_new_file_is_a_new_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a list of families somewhere."""
    (tmp_path / "new_one.py").write_text('MODEL_TYPES = ("new-one",)\n')
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    families.families.cache_clear()
    try:
        assert families.family("new-one").MODEL_TYPES == ("new-one",)
    finally:
        sys.modules.pop("pat.models.families.new_one", None)
        families.families.cache_clear()


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_cross_attention_is_refused(model_type: str) -> None:
    model: Any = small.model(model_type, is_decoder=True, add_cross_attention=True)
    with pytest.raises(ValueError, match="add_cross_attention=true: set it to false"):
        families.anatomy(model)


def test_an_exported_model_with_own_widths_is_refused() -> None:
    model = small.model("llama")
    model.config.pat_widths = []
    with pytest.raises(ValueError, match="exported with widths of its own"):
        families.anatomy(model)


def test_layers_that_share_weights_are_refused() -> None:
    model = small.model("llama")
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(ValueError, match="model.layers.1.mlp.up_proj.weight of LlamaForCausalLM is another layer's"):
        families.anatomy(model)


def test_sliding_layers_keep_their_kind() -> None:
    """Would catch: layer_types not cut, or cut from the end; a window on a layer that sees everything."""
    fields = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
    model = small.model("qwen2", **fields)
    anatomy = families.anatomy(model)
    assert [layer.sublayers[0].window for layer in anatomy.layers] == [None, None, 4]  # type: ignore[union-attr]
    smaller = families.shrink(model.config, anatomy, [1, 2], [[4, 128]] * 2)
    assert smaller.layer_types == ["full_attention", "sliding_attention"]
    assert (smaller.max_window_layers, smaller.num_hidden_layers) == (1, 2)
    assert model.config.num_hidden_layers == 3  # the dense config is untouched


def test_shrink_writes_the_head_dimension() -> None:
    model = small.model("qwen2")
    smaller = families.shrink(model.config, families.anatomy(model), [0, 1, 2], [[2, 64]] * 3)
    assert (smaller.head_dim, smaller.num_attention_heads, smaller.num_key_value_heads) == (6, 4, 2)
    assert smaller.intermediate_size == 64


@pytest.mark.parametrize(
    ("model_type", "kept", "units", "sentence"),
    [
        ("llama", [], [], "No layer would be left: keep at least 1"),
        (
            "llama",
            [0, 1],
            [[4, 128], [4, 64]],
            "would have 64, 128 neurons, and a stock llama has one width.*hf_compatible=false",
        ),
        ("llama", [0, 1], [[4, 128], [0, 128]], "would have 0, 4 KV heads"),
        ("llama", [0], [[0, 128]], "would have 0 KV heads"),
        (
            "llama",
            [0],
            [[5, 128]],
            r"No stock llama has this shape: The hidden size \(48\) is not a multiple .*hf_compatible=false",
        ),
        ("bert", [0], [[7, 128]], "cannot have 7 of 8 heads: prune ffn or layers, or set budget.hf_compatible=false"),
        ("distilbert", [0], [[7, 128]], "cannot have 7 of 8 heads"),
        ("gpt2", [0], [[7, 128]], "cannot have 7 of 8 heads"),
    ],
)
def test_shrink_refuses(model_type: str, kept: list[int], units: list[list[int]], sentence: str) -> None:
    model = small.model(model_type)
    with pytest.raises(ValueError, match=sentence):
        families.shrink(model.config, families.anatomy(model), kept, units)


def test_gpt2_scales_by_position_only_where_positions_stay() -> None:
    model = small.model("gpt2", scale_attn_by_inverse_layer_idx=True)
    anatomy = families.anatomy(model)
    assert families.shrink(model.config, anatomy, [0, 1], [[8, 128]] * 2).n_layer == 2
    with pytest.raises(ValueError, match="scale_attn_by_inverse_layer_idx"):
        families.shrink(model.config, anatomy, [0, 2], [[8, 128]] * 2)
