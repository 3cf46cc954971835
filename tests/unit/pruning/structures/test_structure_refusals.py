"""What structured pruning refuses before training, and before an export: one sentence each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pat.export import loader
from pat.export.narrowing import narrowing
from pat.models import families
from pat.pruning import registry
from pat.pruning.pruner import Pruner
from pat.pruning.structures.pruner import StructurePruner
from pat.schema import Config, PrunerConfig
from tests import models as small


def budget(name: str, **fields: Any) -> Any:
    return registry.build("budget", {"name": name, **fields})


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"name": "parameters", "sparsity": 1.0}, "at least 0 and below 1"),
        ({"name": "sparsity", "sparsity": 1.0}, "at least 0 and below 1"),
        (
            {"name": "sparsity", "sparsity": 80},
            "budget.sparsity is 80.0, but must be at least 0 and below 1: did you mean 0.8?",
        ),
        ({"name": "sparsity", "sparsity": 100.0}, "below 1: 0.9 removes 90 %"),
        ({"name": "parameters", "sparsity": 12.5}, "below 1: did you mean 0.125?"),
        ({"name": "parameters", "sparsity": float("nan")}, "at least 0 and below 1: 0.5"),
        ({"name": "parameters", "sparsity": 0.5, "per_layer": True}, "set budget.hf_compatible=false and load"),
        ({"name": "parameters", "sparsity": 0.5, "multiple_of": 0}, "budget.multiple_of is 0, but must be at least 1"),
        ({"name": "parameters", "sparsity": 0.5, "tensor_parallel": 0}, "budget.tensor_parallel is 0"),
        ({"name": "flops", "sparsity": 0.5}, "budget flops needs seq_len"),
        ({"name": "flops", "sparsity": 0.5, "seq_len": 0}, "budget.seq_len is 0, but must be at least 1"),
        ({"name": "memory", "sparsity": 0.5, "context": -1}, "budget.context is -1, but must be at least 0"),
        ({"name": "memory", "sparsity": 0.5, "context": 8, "batch": 0}, "budget.batch is 0"),
        ({"name": "shape", "keep": {}}, "budget.keep is empty"),
        ({"name": "shape", "keep": {"ffn": 0}}, "budget.keep.ffn is 0, but must be a whole number of at least 1"),
        ({"name": "shape", "keep": {"ffn": 1.5}}, "budget.keep.ffn is 1.5, but must be a whole number"),
        ({"name": "shape", "keep": {"ffn": 1.0}}, "budget.keep.ffn is 1.0, but must be a whole number"),
        ({"name": "shape", "keep": {"ffn": True}}, "budget.keep.ffn is True"),
    ],
)
def test_fields_are_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        registry.build("budget", fields)


@pytest.mark.parametrize(
    ("model_type", "structures", "fields", "sentence"),
    [
        (
            "llama",
            ["ffn"],
            {"name": "shape", "keep": {"ffn": 256}},
            "keep.ffn=256 is more than the 128 neurons a layer has",
        ),
        (
            "llama",
            ["ffn"],
            {"name": "shape", "keep": {"ffn": 100}},
            "keep.ffn: 100 neurons are not a multiple of 64; take 64 or 128",
        ),
        (
            "llama",
            ["layers"],
            {"name": "shape", "keep": {"layers": 4}},
            "keep.layers=4 is more than the 3 layers the model has",
        ),
        (
            "llama",
            ["ffn"],
            {"name": "shape", "keep": {"heads": 2}},
            r"it has heads, and structures are ffn\. Give budget\.keep=\{ffn: N\}",
        ),
        (
            "llama",
            ["ffn", "layers"],
            {"name": "shape", "keep": {"ffn": 64}},
            "it has ffn, and structures are ffn, layers",
        ),
        (
            "llama",
            ["kv_groups"],
            {"name": "shape", "keep": {"kv_groups": 1}, "tensor_parallel": 4},
            "2 heads with 1 KV heads cannot be split",
        ),
        (
            "llama",
            ["kv_groups"],
            {"name": "parameters", "sparsity": 0.1, "tensor_parallel": 5},
            "No number of kv_groups below 4.*tensor_parallel=5",
        ),
        (
            "llama",
            ["ffn"],
            {"name": "parameters", "sparsity": 0.1, "multiple_of": 256},
            "No number of ffn below 128.*multiple of 256",
        ),
        (
            "llama",
            ["ffn"],
            {"name": "parameters", "sparsity": 0.9},
            "sparsity 0.9 cannot be reached by ffn, which remove at most 0.3",
        ),
        (
            "llama",
            ["attention_layers"],
            {"name": "parameters", "sparsity": 0.1},
            "attention_layers leaves layers without.*set budget.hf_compatible=false",
        ),
        (
            "bert",
            ["heads"],
            {"name": "shape", "keep": {"heads": 4}},
            "No number of heads below 8 may be left: A stock bert.*set budget.hf_compatible=false",
        ),
        ("gpt2", ["heads"], {"name": "flops", "sparsity": 0.1, "seq_len": 8}, "A stock gpt2 .* prune ffn or layers"),
        (
            "llama",
            ["heads"],
            {"name": "shape", "keep": {"heads": 2}},
            "2 heads of this llama share a KV head.*take kv_groups",
        ),
        (
            "bert",
            ["heads", "kv_groups"],
            {"name": "shape", "keep": {"heads": 2}},
            "gates on the same weights: choose one",
        ),
        ("bert", ["ffn", "ffn"], {"name": "shape", "keep": {"ffn": 64}}, "The structure ffn is there 2 times"),
    ],
)
def test_what_a_model_cannot_be_is_refused(
    model_type: str, structures: list[str], fields: dict[str, Any], sentence: str
) -> None:
    anatomy = families.anatomy(small.model(model_type))
    with pytest.raises(ValueError, match=sentence):
        registry.build("budget", fields).check(anatomy, small.sites(anatomy, *structures))


@pytest.mark.parametrize(("structure", "fits"), [("layers", True), ("ffn", False), ("attention_layers", False)])
def test_similarity_ranks_whole_layers_only(structure: str, fits: bool) -> None:
    settings: dict[str, Any] = {
        "structures": [structure],
        "gate": {"name": "similarity"},
        "schedule": {"name": "cubic", "start": 2, "end": 8},
    }
    budget = {"name": "parameters", "sparsity": 0.2, "hf_compatible": False}
    config = PrunerConfig(**settings, budget=budget)
    if fits:
        StructurePruner("short", config, small.model("llama"), num_steps=12, seed=0)
        return
    with pytest.raises(ValueError, match="similarity"):
        StructurePruner("short", config, small.model("llama"), num_steps=12, seed=0)


def test_pairs_of_two_layers_are_refused() -> None:
    """Both have the same pair, so their scores would be equal whenever they are chosen."""
    config = PrunerConfig(
        structures=["layers"], gate="pair_similarity", schedule={"name": "one_shot", "start": 2},
        budget={"name": "shape", "keep": {"layers": 1}},
    )  # fmt: skip
    StructurePruner("short", config, small.model("llama", num_hidden_layers=3), num_steps=12, seed=0)
    with pytest.raises(ValueError, match="gate=pair_similarity ranks 3 layers or more, and the model has 2: take"):
        StructurePruner("short", config, small.model("llama", num_hidden_layers=2), num_steps=12, seed=0)


@pytest.mark.parametrize("hf_compatible", [True, False])
def test_layers_that_depend_on_their_position_are_refused_before_training(hf_compatible: bool) -> None:
    """Not when the model is exported."""
    budget = {"name": "shape", "keep": {"layers": 2}, "hf_compatible": hf_compatible}
    config = PrunerConfig(
        structures=["layers"], gate="taylor", schedule={"name": "one_shot", "start": 2}, budget=budget
    )
    StructurePruner("short", config, small.model("gpt2"), num_steps=12, seed=0)
    scaled = small.model("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ValueError, match="scale_attn_by_inverse_layer_idx=true .*only its last layers can be dropped"):
        StructurePruner("short", config, scaled, num_steps=12, seed=0)
    one = config.model_copy(update={"budget": budget | {"keep": {"layers": 1}}})
    StructurePruner("short", one, small.model("gpt2", n_layer=1), num_steps=12, seed=0)  # of which none can go


@pytest.mark.parametrize(("rows", "cols", "fits"), [(4, 3, True), (3, 3, False), (4, 4, False)])
def test_blocks_tile_the_matrix(rows: int, cols: int, fits: bool) -> None:
    granularity = registry.build("granularity", {"name": "block", "rows": rows, "cols": cols})
    if fits:
        granularity.validate("up", (8, 6))
        return
    with pytest.raises(ValueError, match="up"):
        granularity.validate("up", (8, 6))


def test_llama_heads_on_the_stock_grid() -> None:
    """48 is no multiple of 5 or 7 heads, so a stock llama cannot have them; with its own loader it can."""
    anatomy = families.anatomy(small.model("llama", num_key_value_heads=8))
    sites = small.sites(anatomy, "heads")
    with pytest.raises(ValueError, match=r"keep.heads: No stock llama .*48.*take 4 or 6"):
        budget("shape", keep={"heads": 5}).check(anatomy, sites)
    budget("shape", keep={"heads": 5}, hf_compatible=False).check(anatomy, sites)


def test_scores_that_are_no_numbers_are_refused() -> None:
    anatomy = families.anatomy(small.model("llama"))
    sites = small.sites(anatomy, "ffn")
    scores = {site.name: torch.full((128,), float("nan")) for site in sites}
    with pytest.raises(ValueError, match="are not numbers"):
        budget("parameters", sparsity=0.2).choose(anatomy, sites, scores)


def cut(structure: str, change: Any, model_type: str = "llama") -> Any:
    """A narrowing with its keep flags and gates changed."""
    model = small.model(model_type)
    anatomy = families.anatomy(model)
    sites = small.sites(anatomy, structure)
    keep = {site.name: torch.ones(site.num_units, dtype=torch.bool) for site in sites}
    gates = {site.name: torch.ones(site.num_units) for site in sites}
    change(sites[1].name, keep, gates)
    return narrowing(model.config, anatomy, sites, keep, gates)


@pytest.mark.parametrize(
    ("structure", "change", "sentence"),
    [
        (
            "layers",
            lambda n, k, g: g[n].fill_(0.5),
            "gate of layers:model.layers.1 is 0.5: a whole layer can be dropped",
        ),
        ("ffn", lambda n, k, g: g[n].fill_(float("inf")), "gate of ffn:model.layers.1.mlp that stays is not a finite"),
        ("ffn", lambda n, k, g: k[n].fill_(False), "No unit of ffn:model.layers.1.mlp is left"),
        ("ffn", lambda n, k, g: k.update({n: k[n].float()}), "needs as many keep flags .bool. and gates"),
        ("ffn", lambda n, k, g: k.update({n: k[n][:5]}), "has 128 units: it needs as many"),
        ("ffn", lambda n, k, g: k[n][:64].fill_(False), "would have 64, 128 neurons, .*set budget.hf_compatible=false"),
    ],
)
def test_slicing_refuses(structure: str, change: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        cut(structure, change)


def test_units_of_a_layer_that_is_gone_do_not_matter() -> None:
    """Would catch: an L0 run that closed a layer and all its neurons and then cannot be exported."""
    model = small.model("llama")
    anatomy = families.anatomy(model)
    sites = small.sites(anatomy, "ffn", "layers")
    keep = {site.name: torch.full((site.num_units,), site.layer != 1) for site in sites}
    found = narrowing(model.config, anatomy, sites, keep)
    assert found.config.num_hidden_layers == 2 and found.config.intermediate_size == 128
    assert found.rename("model.layers.1.mlp.up_proj.weight") is None
    assert found.rename("model.layers.2.mlp.up_proj.weight") == "model.layers.1.mlp.up_proj.weight"
    assert found.rename("model.norm.weight") == "model.norm.weight"


def test_gates_are_folded_in_fp32() -> None:
    """Would catch: a gate rounded to bf16 before it is multiplied."""
    model = small.model("llama")
    anatomy = families.anatomy(model)
    sites = small.sites(anatomy, "ffn")
    gates = {site.name: torch.linspace(0.5, 1.0, 128) for site in sites}
    keep = {site.name: torch.ones(128, dtype=torch.bool) for site in sites}
    weight = model.model.layers[0].mlp.down_proj.weight.detach().bfloat16()
    got = narrowing(model.config, anatomy, sites, keep, gates).cut("model.layers.0.mlp.down_proj.weight", weight)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, (weight.float() * gates[sites[0].name]).bfloat16())
    assert not torch.equal(got, weight * gates[sites[0].name].bfloat16())


def test_load_needs_a_class(tmp_path: Path) -> None:
    small.config("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="names no class of transformers under architectures"):
        loader.load(tmp_path)


@pytest.mark.parametrize(
    ("masks", "sentence"),
    [
        (
            {"granularity": "weight"},
            "and pruners.two_four masks it: masks that share a parameter with gates must have granularity n_of_m",
        ),
        ({"start": 7}, "the gates are hard only at step 8: set pruners.two_four.schedule.start to 8 or later"),
        ({"params": ["*.down_proj.weight"]}, "takes 1 of the inputs of .*down_proj.* which cuts the groups of 4"),
        ({}, None),
    ],
)
def test_masks_inside_what_gates_leave(masks: dict[str, Any], sentence: str | None) -> None:
    ramp = {"name": "linear", "start": 2, "end": 6}
    narrow = PrunerConfig(
        structures=["ffn"], gate="l0", budget={"name": "shape", "keep": {"ffn": 64}}, schedule=ramp | {"hard_from": 8}
    )
    two_four = PrunerConfig(
        params=masks.get("params", ["*.gate_proj.weight"]),
        granularity=masks.get("granularity", {"name": "n_of_m", "n": 2, "m": 4}),
        criterion="magnitude",
        budget={"name": "sparsity", "sparsity": 0.5},
        schedule=ramp | {"start": masks.get("start", 8), "end": 10},
    )
    config = Config().changed(train__num_steps=12, pruners__narrow=narrow, pruners__two_four=two_four)
    model = small.model("llama")
    if sentence is None:
        Pruner(config).attach(model)
        return
    with pytest.raises(ValueError, match=sentence):
        Pruner(config).attach(model)


@pytest.mark.parametrize(("matrix", "fits"), [("c_fc", True), ("c_proj", False)])
def test_groups_of_a_transposed_matrix_run_along_its_inputs(matrix: str, fits: bool) -> None:
    """A Conv1D stores (inputs, outputs): neurons are outputs of c_fc and single inputs of c_proj."""
    narrow = PrunerConfig(
        structures=["ffn"], gate="taylor", budget={"name": "shape", "keep": {"ffn": 64}},
        schedule={"name": "one_shot", "start": 2},
    )  # fmt: skip
    two_four = PrunerConfig(
        params=[f"*.mlp.{matrix}.weight"], granularity={"name": "n_of_m", "n": 2, "m": 4}, criterion="wanda",
        budget={"name": "sparsity", "sparsity": 0.5}, schedule={"name": "one_shot", "start": 3},
    )  # fmt: skip
    pruner = Pruner(Config().changed(train__num_steps=12, pruners__narrow=narrow, pruners__two_four=two_four))
    if fits:
        pruner.attach(small.model("gpt2"))
        return
    with pytest.raises(ValueError, match="takes 1 of the inputs of .*c_proj.* which cuts the groups of 4"):
        pruner.attach(small.model("gpt2"))


def test_two_pruners_of_one_parameter() -> None:
    """Their units would count twice."""
    pruners = {
        name: PrunerConfig(
            structures=list(keep),
            gate="taylor",
            budget={"name": "shape", "keep": keep},
            schedule={"name": "one_shot", "start": 2},
        )
        for name, keep in (("narrow", {"ffn": 64}), ("short", {"layers": 2}))
    }
    config = Config().changed(train__num_steps=12, pruners=pruners)
    with pytest.raises(ValueError, match="name their structures in one pruner"):
        Pruner(config).attach(small.model("llama"))
