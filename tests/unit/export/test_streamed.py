"""Large exports are checked module by module: the same verdicts as with two whole models, on good folders and bad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pat.export import export, streamed, verify
from pat.export.export import export_run
from pat.export.loader import load
from pat.models.tokenizers import byte_tokenizer
from pat.pruning.structures.pruner import StructurePruner
from pat.registry import verify as registry
from pat.schema import PeftConfig, PrunerConfig
from tests import models as small
from tests.fake_run import write_run
from tests.unit.export import test_peft as adapted

UP, DOWN = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"


def wrong_row(tensors: dict[str, Tensor]) -> None:
    """What stands in another row."""
    tensors[UP][5] = tensors[UP][6]


def swapped_unit(tensors: dict[str, Tensor]) -> None:
    """Two neurons change places where they are read, but not where they are made."""
    tensors[DOWN][:, [3, 4]] = tensors[DOWN][:, [4, 3]]


def nothing(tensors: dict[str, Tensor]) -> None:
    """A good folder."""


def write_gated(folder: Path) -> None:
    """A run that has lost every second neuron."""
    settings = adapted.pruner_of("ffn")
    model = small.model("llama", vocab_size=320)
    pruner = StructurePruner("narrow", PrunerConfig(**settings), model, num_steps=20, seed=0)
    pruner.forward.remove()
    pruner.state.begun, pruner.state.hardened = 9, True
    pruner.state.keep = torch.arange(sum(pruner.units.sizes)) % 2 == 0
    pruner.state.z = pruner.state.keep.float()
    write_run(
        folder, model, byte_tokenizer(), "causal_lm", settings={"pruners": {"narrow": settings}}, dtype="fp32",
        prune="", gates={"narrow": (pruner.tensors(), pruner.shared())},
    )  # fmt: skip


@pytest.mark.parametrize("plant", [nothing, wrong_row, swapped_unit])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_streamed_check_and_the_full_one_agree(
    plant: Any, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sees a fault that the comparison of tensors, which slices as the writer did, is not asked about."""
    write_gated(tmp_path / "run")
    monkeypatch.setattr(export, "check_tensors", lambda reader, folder, *_: change(folder, plant))
    monkeypatch.setattr(export, "LOGIT_LIMIT", 0)  # so that auto takes this export for a large one
    if plant is nothing:
        layers = export_run(tmp_path / "run", tmp_path / "layers", "last", dtype)
        whole = export_run(tmp_path / "run", tmp_path / "whole", "last", dtype, verify="logits")
        assert layers["max_layer_diff"] < streamed.LAYER_TOLERANCE and whole["max_layer_diff"] is None
        assert layers["max_abs_logit_diff"] < verify.TOLERANCE > whole["max_abs_logit_diff"]
        return
    for how in ("auto", "logits"):
        with pytest.raises(verify.ExportError) as found:
            export_run(tmp_path / "run", tmp_path / how, "last", dtype, verify=how)
        assert ("model.layers.1 " in str(found.value)) == (how == "auto"), "only the streamed one names the layer"
        assert not (tmp_path / how).exists()


def change(folder: Path, plant: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    plant(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("structures", ["ffn+kv_groups+layers", "attention_layers"])
def test_dropped_layers_own_widths_folded_gates_and_merged_adapters(structures: str, tmp_path: Path) -> None:
    """Layers that are gone have no counterpart, and bf16 rounds what the trained model holds in two factors."""
    cfg = PeftConfig(r=3, alpha=12.0)
    model = adapted.adapted("llama", cfg)
    pruner = adapted.hardened(model, structures)
    pruner.forward.remove()
    settings = {"pruners": {"narrow": adapted.pruner_of(structures)}, "peft": {"r": 3, "alpha": 12.0}}
    write_run(
        tmp_path / "run", model, byte_tokenizer(), "causal_lm", settings=settings, dtype="fp32", prune="", ranks=2,
        gates={"narrow": (pruner.tensors(), pruner.shared())},
    )  # fmt: skip
    exact = export_run(tmp_path / "run", tmp_path / "fp32", verify="layers")
    rounded = export_run(tmp_path / "run", tmp_path / "bf16", dtype="bf16", verify="layers")
    assert exact["max_layer_diff"] < 1e-5 < rounded["max_layer_diff"]


@pytest.mark.parametrize("how", ["logits", "layers"])
def test_what_is_recorded_is_what_the_folder_computes(how: str, tmp_path: Path) -> None:
    """Would catch: logits of layers that began from the trained model's states, which no load of the folder gives."""
    model = adapted.adapted("llama", PeftConfig(r=3, alpha=12.0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(0.2 if "lora_" in name else 1.0)
    settings = {"peft": {"r": 3, "alpha": 12.0}}
    write_run(tmp_path / "run", model, byte_tokenizer(), "causal_lm", settings=settings, prune="")
    export_run(tmp_path / "run", tmp_path / "out", "last", dtype="bf16", verify=how)
    check = registry._logits(tmp_path / "out", load(tmp_path / "out", dtype=torch.bfloat16))
    assert check.passed, check.said


def mixtral() -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(small.config("mixtral", vocab_size=320, num_local_experts=4))


def test_experts_are_compared_in_fp64(tmp_path: Path) -> None:
    """Their default implementation multiplies no fp64; that is also where the fp32 of whole models does not decide."""
    write_run(tmp_path / "run", mixtral(), byte_tokenizer(), "causal_lm")
    result = export_run(tmp_path / "run", tmp_path / "out", verify="layers")
    assert result["max_abs_logit_diff"] < verify.TOLERANCE
    ids = torch.tensor([[1, 2, 3]])
    in_fp32 = verify.logits(mixtral(), ids)
    assert (verify.logits(mixtral().double(), ids) - in_fp32).abs().max() < verify.TOLERANCE


def test_a_model_that_cannot_be_streamed_is_told_how_to_be_verified(tmp_path: Path) -> None:
    """Mamba's mixer reads the weights of its convolution itself."""
    model = AutoModelForCausalLM.from_config(small.config("mamba", vocab_size=320, state_size=4))
    write_run(tmp_path / "run", model, byte_tokenizer(), "causal_lm")
    with pytest.raises(ValueError, match="MambaForCausalLM does not run with one module .* --verify logits") as error:
        export_run(tmp_path / "run", tmp_path / "out", verify="layers")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_no_more_than_one_module_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if weights are kept, or read before they are needed."""
    write_gated(tmp_path / "run")
    held, models = [], []
    plain, empty = streamed._stream, streamed._empty
    monkeypatch.setattr(streamed, "_empty", lambda build: (models.append(empty(build)), models[-1])[1])

    def stream(module: nn.Module, own: dict[str, str], read: Any) -> None:
        plain(module, own, read)
        module.register_forward_pre_hook(lambda *_: held.append(real(models)))

    monkeypatch.setattr(streamed, "_stream", stream)
    result = export_run(tmp_path / "run", tmp_path / "out", verify="layers")
    largest = 320 * 48  # the embedding, which is the output, too
    assert len(held) > 20 and max(held) == largest < result["after"]["parameters"] / 3
    assert real(models) == 0


def real(models: list[nn.Module]) -> int:
    """Parameters that are not on the meta device."""
    return sum(p.numel() for model in models for p in model.parameters() if p.device != torch.device("meta"))


def test_a_config_of_another_model_than_the_files_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock code would draw the missing layer at random."""
    write_gated(tmp_path / "run")
    plain = export.check_tensors

    def one_more_layer(reader: Any, folder: Path, *arguments: Any) -> None:
        plain(reader, folder, *arguments)
        config = folder / "config.json"
        config.write_text(config.read_text().replace('"num_hidden_layers": 3', '"num_hidden_layers": 4'))

    monkeypatch.setattr(export, "check_tensors", one_more_layer)
    with pytest.raises(verify.ExportError):
        export_run(tmp_path / "run", tmp_path / "out", verify="layers")


@pytest.mark.parametrize("family", ["deberta-v2", "modernbert"])
def test_encoders_run_module_by_module(family: str, tmp_path: Path) -> None:
    """Would catch: weights of a module that is never called, which DeBERTa's encoder reads for relative positions."""
    model = small.model(family, auto=AutoModelForSequenceClassification, vocab_size=320)
    write_run(tmp_path / "run", model, byte_tokenizer(), "classification", dtype="fp32", prune="")
    assert export_run(tmp_path / "run", tmp_path / "out", verify="layers")["max_layer_diff"] < streamed.LAYER_TOLERANCE
