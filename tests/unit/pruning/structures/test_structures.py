"""Every family x every structure: the narrowed model is the gated model, and costs what was counted."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from pat.export import loader, verify
from pat.export.export import export_run
from pat.export.narrowing import Narrowing, narrowing
from pat.models import families
from pat.models.tokenizers import byte_tokenizer
from pat.pruning import registry
from pat.pruning.structures import costs
from pat.pruning.structures.pruner import StructurePruner
from pat.pruning.structures.sites import Site
from pat.schema import PrunerConfig
from tests import models as small
from tests.fake_run import write_run
from tests.sets import thinned

CASES = list(small.cases())
POOLED = {name for name in registry.names("structure") if registry.build("structure", name).pooled}
STRUCTURES = [(name,) for name in registry.names("structure")]
TOGETHER = [("ffn", "kv_groups", "layers"), ("attention_layers", "ffn", "kv_groups", "layers", "mlp_layers")]
CHOICES = [
    pytest.param(names, uniform, id="+".join(names) + ("" if uniform else ", per layer"))
    for names, uniform in product([*STRUCTURES, *TOGETHER], (True, False))
    if uniform or not POOLED & set(names)
]
TOLERANCE = 2e-5  # of logits of about 10


def write(model: Any, cut: Narrowing, folder: Path) -> None:
    """The smaller model's folder, tensor by tensor."""
    cut.config.architectures = [type(model).__name__]
    cut.config.save_pretrained(folder)
    tensors = {}
    for name, p in model.named_parameters():
        new = cut.rename(name)
        if new is not None:
            tensors[new] = cut.cut(name, p.detach()).contiguous()
            assert tuple(tensors[new].shape) == cut.shapes[new]
    assert set(tensors) == set(cut.shapes)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def run_flops(model: Any, length: int) -> int:
    """What torch counts in a forward of one sequence."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(small.tokens(1, length))
    return counter.get_total_flops()


def is_stock(anatomy: Any, found: list[Site], uniform: bool) -> bool:
    """Whether a stock class should hold the result: one width, no missing half, head dimension in the config."""
    fixed_heads = not hasattr(anatomy.config, "num_key_value_heads")
    halves = any(not site.features and site.sublayer is not None for site in found)
    narrowed = {site.structure for site in found if site.features}
    return not halves and (uniform or not narrowed) and not (fixed_heads and narrowed & {"heads", "kv_groups"})


@pytest.mark.parametrize(
    ("model_type", "variant", "structures", "uniform"),
    thinned([(*case, *choice.values) for case in CASES for choice in CHOICES], 5),
)
def test_narrowed_equals_gated(
    model_type: str, variant: str, structures: tuple[str, ...], uniform: bool, tmp_path: Path
) -> None:
    """Would catch: a wrong part, bias, gate, name or config field, a tied or fused weight cut twice, a wrong count."""
    model = small.model(model_type, variant)
    anatomy = families.anatomy(model)
    if "heads" in structures and anatomy.layers[0].sublayers[0].group > 1:  # type: ignore[union-attr]
        with pytest.raises(ValueError, match="2 heads of this .* share a KV head.*take kv_groups"):
            small.sites(anatomy, *structures)
        return
    found = small.sites(anatomy, *structures)
    keep = small.random_keep(found, 11, uniform, first_stays=model_type in small.FIRST_STAYS)
    gates = small.random_gates(found, keep, seed=12)
    stock = is_stock(anatomy, found, uniform)
    if not stock:
        with pytest.raises(
            ValueError, match="set budget.hf_compatible=false and load the exported model with pat.export.load"
        ):
            narrowing(model.config, anatomy, found, keep, gates, stock=True)
    cut = narrowing(model.config, anatomy, found, keep, gates, stock=stock)
    assert stock == (getattr(cut.config, "pat_widths", None) is None)
    write(model, cut, tmp_path / "cut")
    stock_class = type(model)
    if not stock:
        with pytest.raises(RuntimeError, match="mismatch"):
            stock_class.from_pretrained(tmp_path / "cut")
    options = {"attn_implementation": "eager", "output_loading_info": True}
    smaller, report = (stock_class.from_pretrained if stock else loader.load)(tmp_path / "cut", **options)
    assert not any(report.values()), report

    ids = small.tokens()
    with torch.no_grad(), small.gated(model, found, gates):
        expected = model(ids).logits
        generated = generate(model, ids, use_cache=False)
    with torch.no_grad():
        plain, logits = model(ids).logits, smaller(ids).logits
    assert (plain - expected).abs().max() > 0.1  # the gates do something
    assert (logits - expected).abs().max() <= TOLERANCE * max(1.0, float(expected.abs().max()) / 10)
    if generated is not None:
        assert torch.equal(generate(smaller, ids, use_cache=True), generated)

    left = cut.widths
    assert left == costs.widths(anatomy, found, keep)
    assert costs.parameters(anatomy).total(left) == sum(p.numel() for p in smaller.parameters())
    assert costs.flops(anatomy, 11).total(left) == run_flops(smaller, 11)
    if generated is not None:
        assert costs.cache(anatomy, 7, 2, 4).total(left) == cached_bytes(smaller, ids)

    if len(structures) > 1:
        smaller.save_pretrained(tmp_path / "again")
        again = (stock_class.from_pretrained if stock else loader.load)(tmp_path / "again", attn_implementation="eager")
        with torch.no_grad():
            assert torch.equal(again(ids).logits, logits)


@pytest.mark.parametrize("gone", [0, 2])
@pytest.mark.parametrize("model_type", [t for t in families.families() if small.is_causal(small.config(t))])
def test_generation_without_the_attention_of_a_layer(model_type: str, gone: int, tmp_path: Path) -> None:
    """Would catch: positions that stock code counts in a cache that the first layer no longer fills."""
    model = small.model(model_type)
    anatomy = families.anatomy(model)
    found = small.sites(anatomy, "attention_layers")
    keep = {site.name: torch.tensor([site.layer != gone]) for site in found}
    write(model, narrowing(model.config, anatomy, found, keep, stock=False), tmp_path)
    ids, smaller = small.tokens(), loader.load(tmp_path)
    with torch.no_grad(), small.gated(model, found, {name: flag.float() for name, flag in keep.items()}):
        expected, logits = generate(model, ids, use_cache=False), model(ids).logits
    assert torch.equal(generate(smaller, ids, use_cache=True), expected)
    with torch.no_grad():  # without the positions that generate gives
        name, cache = cached(smaller(ids[:, :-1], use_cache=True))
        assert cache.get_seq_length() == ids.shape[1] - 1
        torch.testing.assert_close(
            smaller(ids[:, -1:], **{name: cache}).logits, logits[:, -1:], rtol=TOLERANCE, atol=TOLERANCE
        )


HEADS = [
    (model_type, auto)
    for model_type in families.families()
    for auto in ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification")
    if type(small.config(model_type)) in getattr(transformers, auto)._model_mapping
]


@pytest.mark.parametrize(("model_type", "auto"), HEADS)
def test_counts_of_other_heads(model_type: str, auto: str) -> None:
    """Would catch: poolers and classifiers that run once a sequence and are counted per token, or the other way."""
    costs_as_torch_counts(small.model(model_type, auto=getattr(transformers, auto)))


def test_a_convolution_costs_what_torch_counts() -> None:
    costs_as_torch_counts(small.with_convolution())


def costs_as_torch_counts(model: Any) -> None:
    """For several lengths."""
    anatomy = families.anatomy(model)
    dense = costs.dense_widths(anatomy)
    assert costs.parameters(anatomy).total(dense) == sum(p.numel() for p in model.parameters())
    for length in (1, 5, 16):
        assert costs.flops(anatomy, length).total(dense) == run_flops(model, length)


def generate(model: Any, ids: torch.Tensor, use_cache: bool) -> Any:
    """Greedily generated ids; None for an encoder."""
    if not small.is_causal(model.config):
        return None
    mask = torch.ones_like(ids)
    return model.generate(
        ids, attention_mask=mask, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=use_cache
    )


def cached_bytes(model: Any, ids: torch.Tensor) -> int:
    """Bytes of keys and values after a forward; the placeholder of a removed attention is one value wide."""
    with torch.no_grad():
        layers = cached(model(ids, use_cache=True))[1].layers
    tensors = [t for layer in layers for t in (layer.keys, layer.values) if t is not None]
    return sum(t.numel() * t.element_size() for t in tensors if t.shape[-1] > 1)


def cached(output: Any) -> tuple[str, Any]:
    """The cache in a model's output, with its name, which is new in transformers 5.24."""
    name = "cache" if "cache" in output else "past_key_values"
    return name, output[name]


def test_where_fp32_cannot_tell_fp64_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of other lengths round differently: a tolerance that fp32 misses, as of a model with huge activations."""
    model = small.model("llama", vocab_size=320, intermediate_size=2048)  # wide: what is summed in one go never differs
    settings: dict[str, Any] = {
        "structures": ["ffn"],
        "gate": "magnitude",
        "budget": {"name": "shape", "keep": {"ffn": 1024}},
        "schedule": {"name": "linear", "start": 2, "end": 8},
    }
    structure_pruner = StructurePruner("narrow", PrunerConfig(**settings), model, num_steps=20, seed=0)
    generator = torch.Generator().manual_seed(3)
    structure_pruner.state.keep = torch.cat(
        [torch.randperm(size, generator=generator) < 1024 for size in structure_pruner.units.sizes]
    )
    structure_pruner.state.z = structure_pruner.state.keep.float()
    structure_pruner.state.hardened = structure_pruner.state.folded = True
    structure_pruner.num_pruned = structure_pruner.units.removed(structure_pruner.state.keep)
    with torch.no_grad():
        for layer, keep in zip(
            model.model.layers, structure_pruner.state.keep.split(structure_pruner.units.sizes), strict=True
        ):
            layer.mlp.gate_proj.weight[~keep] = 0.0
            layer.mlp.up_proj.weight[~keep] = 0.0
            layer.mlp.down_proj.weight[:, ~keep] = 0.0
    state = {"narrow": (structure_pruner.tensors(), structure_pruner.shared())}
    write_run(
        tmp_path / "run", model, byte_tokenizer(), "causal_lm", settings={"pruners": {"narrow": settings}}, gates=state,
        dtype="fp32", prune="",
    )  # fmt: skip
    dtypes, build = [], verify.model_from_checkpoint
    monkeypatch.setattr(verify, "TOLERANCE", 1e-9)
    monkeypatch.setattr(verify, "model_from_checkpoint", lambda *given: (dtypes.append(given[3]), build(*given))[1])
    assert export_run(tmp_path / "run", tmp_path / "out", verify="logits")["max_abs_logit_diff"] < 1e-8
    assert dtypes == [torch.float32, torch.float64]
