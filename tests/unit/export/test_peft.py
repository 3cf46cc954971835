"""Adapters: the exported model, merged, folded and narrowed, is the one that was trained with gates and LoRA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pat.checkpoint.reader import CheckpointReader
from pat.config import compose, validate
from pat.export import loader
from pat.export.export import export_run
from pat.export.merged import MergedReader
from pat.export.verify import ExportError
from pat.models import adapters
from pat.models.tokenizers import byte_tokenizer
from pat.pruning import registry
from pat.pruning.pruner import Pruner
from pat.pruning.structures.hooks import install
from pat.pruning.structures.pruner import StructurePruner
from pat.schema import Config, PeftConfig, PrunerConfig
from tests import models as small
from tests.fake_run import write_run

SCHEDULE = {"name": "linear", "start": 2, "end": 8}
BUDGETS = {
    "ffn": {"ffn": 64},
    "kv_groups": {"kv_groups": 2},
    "heads": {"heads": 4},
    "layers": {"layers": 2},
    "attention_layers": {"attention_layers": 2},
    "mlp_layers": {"mlp_layers": 1},
    "ffn+kv_groups+layers": {"ffn": 64, "kv_groups": 1, "layers": 2},
}
assert BUDGETS.keys() >= set(registry.names("structure"))
CASES = [("llama", structures, "zero12") for structures in BUDGETS if structures != "heads"]
CASES += [("llama", "ffn+kv_groups+layers", "zero3"), ("gpt2", "ffn", "zero3"), ("gpt2", "heads", "zero12")]
CASES += [("bert", "ffn", "zero12"), ("bert", "heads", "zero12"), ("qwen2", "kv_groups", "zero12")]


def adapted(model_type: str, cfg: PeftConfig, **fields: Any) -> Any:
    """A random model with adapters that matter."""
    model = small.model(model_type, vocab_size=320, **fields)
    adapters.inject(model, cfg, seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora_" in name:
                param.copy_(torch.randn(param.shape, generator=generator) * 0.2)
    return model.eval()


def pruner_of(structures: str, gate: Any = "l0") -> dict[str, Any]:
    """Settings of a structure pruner; heads and sublayers may go where stock classes cannot follow."""
    stock = structures in ("ffn", "kv_groups", "layers", "ffn+kv_groups+layers")
    budget = {"name": "shape", "keep": BUDGETS[structures], "hf_compatible": stock}
    return {"structures": structures.split("+"), "gate": gate, "budget": budget, "schedule": SCHEDULE}


def hardened(model: Any, structures: str) -> StructurePruner:
    """Gates in the hard phase, by random scores, as `begin` leaves them: closed, or at a value that is not 1."""
    structure_pruner = StructurePruner("narrow", PrunerConfig(**pruner_of(structures)), model, num_steps=20, seed=0)
    generator = torch.Generator().manual_seed(9)
    structure_pruner.state.score = torch.randn(structure_pruner.state.score.shape, generator=generator)
    chosen = structure_pruner.budget.choose(
        structure_pruner.anatomy,
        structure_pruner.sites,
        structure_pruner.units.split(structure_pruner.state.score),
        1.0,
        True,
    )
    structure_pruner.state.keep = structure_pruner.units.join(chosen.keep)
    z = torch.rand(structure_pruner.state.z.shape, generator=generator) / 2 + 0.5
    z = torch.where(structure_pruner.units.is_block, torch.ones_like(z), z)
    structure_pruner.state.z = torch.where(structure_pruner.state.keep, z, torch.zeros_like(z))
    structure_pruner.num_pruned = structure_pruner.units.removed(structure_pruner.state.keep)
    structure_pruner.state.hardened = True
    assert structure_pruner.adapted and not structure_pruner.state.folded
    return structure_pruner


def gated_logits(model: Any, structure_pruner: StructurePruner, ids: torch.Tensor) -> torch.Tensor:
    """Of the model in memory, with adapters and gates in its forward."""
    for hook in structure_pruner.forward.hooks:
        hook.z = structure_pruner.forward_gates()[hook.site.name]
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.mark.parametrize(("model_type", "structures", "layout"), CASES)
def test_export_equals_the_gated_model_with_adapters(
    model_type: str, structures: str, layout: str, tmp_path: Path
) -> None:
    """Would catch: an adapter wrongly merged (scale, transposition), a gate not folded, a cut of the wrong rows."""
    auto, task = None, "causal_lm"
    if model_type == "bert":
        auto, task = AutoModelForSequenceClassification, "classification"
    cfg = PeftConfig(r=3, alpha=12.0)
    model = adapted(model_type, cfg, auto=auto)
    structure_pruner = hardened(model, structures)
    ids = torch.randint(3, 256, (2, 9), generator=torch.Generator().manual_seed(1))
    expected = gated_logits(model, structure_pruner, ids)
    for hook in structure_pruner.forward.hooks:
        hook.z = None
    with torch.no_grad():
        assert (model(input_ids=ids).logits - expected).abs().max() > 1e-3  # the gates do something

    state = {"narrow": (structure_pruner.tensors(), structure_pruner.shared())}
    settings = {"pruners": {"narrow": pruner_of(structures)}, "peft": {"r": 3, "alpha": 12.0}}
    write_run(
        tmp_path / "run", model, byte_tokenizer(), task, settings=settings, gates=state, layout=layout, dtype="fp32",
        prune="", ranks=2,
    )  # fmt: skip
    result = export_run(tmp_path / "run", tmp_path / "out", verify="logits")
    assert result["after"]["parameters"] < result["before"]["parameters"]
    assert result["pruned_parameters"] == structure_pruner.num_pruned
    assert result["before"]["parameters"] == sum(p.numel() for p in adapters.stock(model).parameters())
    largest = float(expected.abs().max())
    assert result["max_abs_logit_diff"] <= 1e-4 * max(1.0, largest)

    smaller = loader.load(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        found = smaller(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert (found - expected).abs().max() <= 1e-4 * max(1.0, largest)
    assert not any("lora" in name or "base_layer" in name for name, _ in smaller.named_parameters())


def test_merge_is_pefts_own(tmp_path: Path) -> None:
    """Every tensor that the export reads, against peft's own merge of the same model; GPT-2 stores (in, out)."""
    from peft.tuners.lora.layer import LoraLayer

    for model_type in ("llama", "gpt2"):
        cfg = PeftConfig(r=3, alpha=5.0)
        model = adapted(model_type, cfg)
        folder = tmp_path / model_type
        settings = {"peft": {"r": 3, "alpha": 5.0}}
        (saved,) = write_run(folder, model, byte_tokenizer(), "causal_lm", (10,), settings, dtype="fp32", prune="")
        reader = MergedReader(CheckpointReader(saved.dir), cfg, adapters.stock(model))
        found = {name: reader.weight(name) for name in reader.parameters}
        merged = 0
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer):
                layer: Any = module
                layer.merge()
                torch.testing.assert_close(found[f"{name}.weight"], layer.get_base_layer().weight.detach())
                merged += 1
        assert merged == 3 * (7 if model_type == "llama" else 4)
        assert found.keys() == {name for name, _ in adapters.stock(model).named_parameters()}


def test_without_pruners_the_export_is_the_merged_model(tmp_path: Path) -> None:
    """LoRA alone: nothing is taken out, all is merged, and the hash is that of what was trained."""
    model = adapted("llama", PeftConfig(r=2, alpha=4.0, target_modules=["q_proj", "down_proj"]))
    settings = {"peft": {"r": 2, "alpha": 4.0, "target_modules": ["q_proj", "down_proj"]}}
    write_run(tmp_path / "run", model, byte_tokenizer(), "causal_lm", settings=settings, dtype="fp32", prune="")
    result = export_run(tmp_path / "run", tmp_path / "out", verify="logits")
    assert result["max_abs_logit_diff"] <= 1e-4 and result["stock"]
    ids = small.tokens()
    with torch.no_grad():
        found = loader.load(tmp_path / "out", dtype=torch.float32).eval()(ids).logits
        assert (found - model(ids).logits).abs().max() <= 1e-4


def test_a_wrong_merge_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The existing check of logits sees adapters that are merged with another scale than they trained with."""
    model = adapted("llama", PeftConfig(r=2, alpha=4.0))
    settings = {"peft": {"r": 2, "alpha": 4.0}}
    write_run(tmp_path / "run", model, byte_tokenizer(), "causal_lm", settings=settings, dtype="fp32", prune="")
    init = MergedReader.__init__

    def half(self: Any, *arguments: Any) -> None:
        init(self, *arguments)
        self._merge = replace(self._merge, scale=self._merge.scale / 2)

    monkeypatch.setattr(MergedReader, "__init__", half)
    with pytest.raises(ExportError, match="stock code computes logits that differ"):
        export_run(tmp_path / "run", tmp_path / "out", verify="logits")


# -- what trains -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "llama", "gpt2"])
def test_a_classifier_trains_its_head_whole(model_type: str) -> None:
    """Adapters and the head; the head itself gets no adapter, so a new one is not frozen at its random values."""
    model = small.model(model_type, auto=AutoModelForSequenceClassification)
    heads = [name for name, _ in model.named_children() if name not in (model.base_model_prefix, "dropout")]
    assert heads
    adapters.inject(model, PeftConfig(r=2), seed=0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    in_heads = {name for name, _ in model.named_parameters() if name.split(".")[0] in heads}
    assert in_heads <= trained and not any("lora_" in name for name in in_heads)
    assert all("lora_" in name for name in trained - in_heads) and trained - in_heads


def test_named_modules_train_whole() -> None:
    model = small.model("llama")
    adapters.inject(model, PeftConfig(r=2, modules_to_save=["input_layernorm", "layers.1.mlp"]), seed=0)
    whole = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert whole == {f"model.layers.{i}.input_layernorm.weight" for i in range(small.LAYERS)} | {
        f"model.layers.1.mlp.{x}_proj.weight" for x in ("gate", "up", "down")
    }


def test_a_tied_output_matrix_that_is_named_trains() -> None:
    model = small.model("llama", auto=AutoModelForCausalLM, tie_word_embeddings=True)
    adapters.inject(model, PeftConfig(r=2, modules_to_save=["lm_head"]), seed=0)
    assert model.get_output_embeddings().weight.requires_grad
    whole = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert whole == {"model.embed_tokens.weight"}


def test_adapters_change_nothing_at_first_and_are_a_function_of_the_seed() -> None:
    ids = small.tokens()
    plain, first, second, other = (small.model("llama") for _ in range(4))
    for model, seed in ((first, 1), (second, 1), (other, 2)):
        adapters.inject(model, PeftConfig(r=2), seed)
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, first(ids).logits)
    a = "model.layers.0.mlp.down_proj.lora_A.default.weight"
    assert torch.equal(first.get_parameter(a), second.get_parameter(a))
    assert not torch.equal(first.get_parameter(a), other.get_parameter(a))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"target_modules": ["q_proj", "down_prj"]}, "peft.target_modules has 'down_prj', .*did you mean 'down_proj'"),
        ({"target_modules": ["optional:nothing"]}, r"peft.target_modules=\['optional:n.* cannot be adapted.*down_proj"),
        ({"target_modules": ["embed_tokens"]}, "takes model.embed_tokens, which is not a linear map"),
        ({"target_modules": ["lm_head"]}, "takes lm_head, whose weight is also model.embed_tokens.weight"),
        ({"modules_to_save": ["nothing"]}, "peft.modules_to_save has 'nothing', which matches no module of the model"),
    ],
)
def test_refusals_of_modules(fields: dict[str, Any], words: str) -> None:
    model = small.model("llama", tie_word_embeddings=True)
    with pytest.raises(ValueError, match=words):
        adapters.inject(model, PeftConfig(r=2, **fields), seed=0)


@pytest.mark.parametrize(
    ("gate", "r", "words"),
    [
        ("magnitude", 2, "pruners.narrow.gate=magnitude ranks by trained weights, but with peft"),
        ("obs", None, "pruners.narrow.gate=obs fits weights under adapters, of which it must know alpha"),
    ],
)
def test_a_gate_that_cannot_work_on_adapters_is_refused(gate: str, r: int | None, words: str) -> None:
    """The second: adapters that another library has made, in a trainer that is not pat's."""
    model = small.model("llama")
    adapters.inject(model, PeftConfig(r=2), seed=0)
    settings = pruner_of("ffn", gate)
    if gate == "obs":
        settings["schedule"] = {"name": "one_shot", "start": 2}
    config = Config(peft=PeftConfig(r=r), pruners={"narrow": PrunerConfig(**settings)}).changed(train__num_steps=20)
    with pytest.raises(ValueError, match=words):
        Pruner(config).attach(model)


def test_a_wrapped_model_is_refused_in_a_sentence() -> None:
    """What SFTTrainer makes of its peft_config; its class cannot be built from the model's config."""
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(small.model("llama"), LoraConfig(r=2, task_type="CAUSAL_LM"))
    config = Config(pruners={"narrow": PrunerConfig(**pruner_of("ffn"))}).changed(train__num_steps=20)
    with pytest.raises(ValueError, match="is a PeftModelForCausalLM of the peft library.*`pat train peft=lora`"):
        Pruner(config).attach(wrapped)


def test_gates_sit_around_the_adapters() -> None:
    """A gate multiplies the input of base and adapter alike, and gets the gradient of both; the base gets none."""
    model = adapted("llama", PeftConfig(r=2))
    structure_pruner = StructurePruner("narrow", PrunerConfig(**pruner_of("ffn")), model, num_steps=20, seed=0)
    for hook in structure_pruner.forward.hooks:
        hook.remove()
    (site, *_) = structure_pruner.sites
    (hook,) = install([site], model, "gradient")
    hook.z = torch.ones(site.num_units, requires_grad=True)
    seen: dict[str, torch.Tensor] = {}
    layer: Any = model.get_submodule(site.consumer)
    layer.register_forward_hook(lambda module, args, out: seen.update(x=args[0], out=out))
    model(small.tokens()).logits.square().sum().backward()
    merged = layer.get_base_layer().weight + layer.get_delta_weight("default")
    assert hook.z.grad is not None
    expected = seen["x"] @ merged.T
    assert (seen["out"] - expected).abs().max() <= 1e-5 * expected.abs().max()
    base = layer.get_base_layer().weight
    assert base.grad is None and not base.requires_grad
    with torch.no_grad():
        hook.z = torch.zeros(site.num_units)
        model(small.tokens())
    assert not seen["out"].any()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["peft.alpha=8"], "peft.alpha is 8.0, but without peft.r it would be ignored"),
        (["peft=lora", "peft.r=0"], "peft.r is 0, but must be at least 1"),
        (["peft=lora", "peft.alpha=0"], "peft.alpha is 0.0, but must be above 0"),
        (["peft=lora", "peft.dropout=1"], r"peft.dropout is 1.0, but must be below 1"),
        (["peft=lora", "peft.target_modules=[]"], "peft.target_modules is empty"),
        (["peft=lora", "optim.trainable=['*.mlp.*']"], r"optim.trainable=\['\*.mlp.\*'\] would be ignored: with peft"),
        (["peft=lora"], "pruners.weights masks single weights, which with peft are frozen and have no gradient"),
    ],
)
def test_refusals_of_settings(overrides: list[str], words: str) -> None:
    """One sentence, before anything is read or started."""
    with pytest.raises(ValueError, match=words):
        compose.compose(["recipe=parity", *overrides], lambda config: 0)


def test_without_the_library_a_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"peft.r=16 needs the peft library: pip install 'pat-deepspeed\[peft\]'"):
        compose.compose(["recipe=parity", "pruners={}", "peft=lora"], lambda config: 0)
