"""The parts of an export, each by itself: what is written, counted, proven, and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from pat.checkpoint.reader import CheckpointReader
from pat.export import masks, verify, writer
from pat.export.export import export_run
from pat.export.narrowing import Cut, Narrowing
from pat.export.source import Stream, specs
from pat.export.structures import Structures
from pat.export.writer import Spec, write_safetensors
from pat.models.tokenizers import byte_tokenizer
from pat.pruning.structures.pruner import StructurePruner
from pat.schema import PrunerConfig
from pat.zero.checkpoint_files import CheckpointError
from tests import models as small
from tests.fake_run import write_run
from tests.unit.export.test_export import LLAMA

BUDGETS: dict[str, dict[str, Any]] = {
    "ffn": {"name": "shape", "keep": {"ffn": 64}},
    "mlp_layers": {"name": "shape", "keep": {"mlp_layers": 2}, "hf_compatible": False},
    "attention_layers": {"name": "shape", "keep": {"attention_layers": 2}, "hf_compatible": False},
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[CheckpointReader, Path, dict[str, Any]]:
    """(the checkpoint, the folder, what the export says)."""
    root = tmp_path_factory.mktemp("export")
    torch.manual_seed(1)
    saved = write_run(root / "run", LlamaForCausalLM(LLAMA), byte_tokenizer(), "causal_lm")
    result = export_run(root / "run", root / "out", checkpoint="last", verify="weights")
    return CheckpointReader(saved[-1].dir), root / "out", result


# -- the files ---------------------------------------------------------------------------------------------------------


def test_data_and_every_tensor_begin_at_a_multiple_of_their_size(tmp_path: Path) -> None:
    """Or whoever maps the file reads slowly, or not at all; a header of any length."""
    tensors = {"a": torch.tensor([True, False, True]), "b": torch.randn(3).bfloat16(), "c": torch.randn(2)}
    tensors |= {"d": torch.tensor(3), "e": torch.randn(2).double()}
    content = [Spec(name, tuple(value.shape), value.dtype) for name, value in tensors.items()]
    for note in range(9):
        path = tmp_path / f"{note}.safetensors"
        write_safetensors(path, content, {"note": "x" * note}, lambda spec: [tensors[spec.name]])
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        assert length % 8 == 0
        for name, value in tensors.items():
            assert header[name]["data_offsets"][0] % value.element_size() == 0, name
        assert all(torch.equal(load_file(path)[name], value) for name, value in tensors.items())


@pytest.mark.parametrize("files, limit", [(3, 64), (1, 1000)])
def test_the_index_names_the_files_with_weights_and_how_many_bytes_they_hold(
    files: int, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one file, too: vLLM reads masks.safetensors as weights where no index says which files have them."""
    monkeypatch.setattr(writer, "SHARD_BYTES", limit)
    content = [Spec(name, (10,), torch.float32) for name in "abc"]
    weight_map = writer.write_model(tmp_path, content, lambda spec: [torch.ones(10)])
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index == {"metadata": {"total_size": 120}, "weight_map": weight_map}
    assert len(set(weight_map.values())) == files and masks.FILE not in weight_map.values()


# -- what is counted ---------------------------------------------------------------------------------------------------


def test_bytes_that_are_not_zero(exported: tuple[CheckpointReader, Path, dict[str, Any]]) -> None:
    after = exported[2]["after"]
    assert after["nonzero_bytes"] == 2 * after["nonzero_parameters"] > 0, "bf16 has two bytes"


def test_what_masks_and_gates_share_is_prunable_once(
    exported: tuple[CheckpointReader, Path, dict[str, Any]],
) -> None:
    reader = exported[0]
    masked = masks.masked(reader)
    gates: Any = SimpleNamespace(parameters=set(masked[:3]), prunable=1000, pruned=100, cut=None, gates=(), flags={})
    assert Stream(reader).prunable == sum(map(reader.numel, masked))
    assert Stream(reader, gates).prunable == 1000 + sum(map(reader.numel, masked[3:]))


def test_before_the_first_selection_all_flags_are_up() -> None:
    reader: Any = SimpleNamespace(has=lambda kind, name: False)
    assert masks.keep_chunk(reader, "a", 3, 5).tolist() == [1] * 5


@pytest.mark.parametrize("value", [1e6, -1e6, float("nan")])
def test_what_is_not_finite_in_the_written_dtype_is_refused(
    exported: tuple[CheckpointReader, Path, dict[str, Any]], value: float
) -> None:
    stream, weight = Stream(exported[0]), torch.tensor([1.0, value])
    with pytest.raises(CheckpointError, match="not finite in torch.float16: export to bf16 or fp32"):
        stream._finite(Spec("a", (2,), torch.float16), weight)
    assert stream.written == 0
    if value == value:
        assert torch.equal(stream._finite(Spec("a", (2,), torch.bfloat16), weight), weight.bfloat16())


# -- the proof ---------------------------------------------------------------------------------------------------------


def reload(reader: CheckpointReader, folder: Path) -> None:
    """What the export does with what it has written."""
    content = specs(reader, torch.bfloat16)
    where = {spec.name: "model.safetensors" for spec in content}
    verify.check_tensors(reader, folder, content, where, masks.hash_masks(folder), lambda done: None, Structures())


def other_dtype(tensors: dict[str, Tensor]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()


def one_more(tensors: dict[str, Tensor]) -> None:
    tensors["lm_head.weight"] = torch.ones(2)


def one_less(tensors: dict[str, Tensor]) -> None:
    del tensors["model.norm.weight"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_dtype, r"model.norm.weight was written as torch.float32 \(24,\)"),
        (one_more, "holds other tensors than were written"),
        (one_less, "holds other tensors than were written"),
    ],
)
def test_other_tensors_than_those_named_are_found(
    exported: tuple[CheckpointReader, Path, dict[str, Any]], tmp_path: Path, change: Any, words: str
) -> None:
    reader, folder, _ = exported
    reload(reader, folder)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(verify.ExportError, match=words):
        reload(reader, copy)


@pytest.mark.parametrize(
    ("largest", "difference", "rounded", "fits"),
    [
        (1e4, 5e-5, False, True), (1e4, 5e-4, False, False), (1e-4, 5e-5, False, True),
        (1e4, 5.0, True, True), (1e4, 5e3, True, False), (1e-4, 9e-5, True, False),
        (float("nan"), float("nan"), False, False), (float("nan"), float("nan"), True, False),
    ],
)  # fmt: skip
def test_logits_may_differ_by_so_much(largest: float, difference: float, rounded: bool, fits: bool) -> None:
    """An absolute tolerance; where weights are rounded anew, a share of the largest logit."""
    expected = torch.tensor([largest], dtype=torch.float64)
    if fits:
        found = verify.tolerated(expected - difference, expected, torch.bfloat16, rounded)
        assert found == pytest.approx(difference, rel=1e-3)
        return
    with pytest.raises(verify.ExportError, match="logits that differ .* is allowed .*--verify layers"):
        verify.tolerated(expected - difference, expected, torch.bfloat16, rounded, verify.ADVICE)


# -- gates -------------------------------------------------------------------------------------------------------------


def test_a_cut_keeps_the_dtype_and_multiplies_in_fp32() -> None:
    factor = torch.tensor([0.3, 0.7])
    cut = Cut("a", {0: torch.tensor([0, 2])}, {0: factor})
    whole: Any = Narrowing(None, None, {"a": (2, 4)}, {"a": cut})  # type: ignore[arg-type]
    weight = torch.randn(3, 4)
    for dtype in (torch.float32, torch.bfloat16):
        given = weight.to(dtype)
        found = whole.cut("a", given)
        assert found.dtype == dtype
        assert torch.equal(found, (given[[0, 2]].float() * factor[:, None]).to(dtype))


def run_with_gates(folder: Path, hardened: bool, *structures: str) -> StructurePruner:
    """A run directory with a pruner for each structure; half of the first one's units are down. Returns the first."""
    model, settings, state, first = small.model("llama", vocab_size=320), {}, {}, None
    for structure in structures:
        settings[structure] = {
            "structures": [structure], "gate": "magnitude", "budget": BUDGETS[structure],
            "schedule": {"name": "linear", "start": 2, "end": 8},
        }  # fmt: skip
        structure_pruner = StructurePruner(structure, PrunerConfig(**settings[structure]), model, num_steps=20, seed=0)
        structure_pruner.forward.remove()
        structure_pruner.state.begun, structure_pruner.state.hardened, structure_pruner.state.folded = (
            9 if hardened else 5,
            hardened,
            hardened,
        )
        if first is None:
            first = structure_pruner
            structure_pruner.state.keep = torch.arange(sum(structure_pruner.units.sizes)) % 2 == 0
            structure_pruner.state.z = structure_pruner.state.keep.float()
            structure_pruner.num_pruned = structure_pruner.units.removed(structure_pruner.state.keep)
        state[structure] = (structure_pruner.tensors(), structure_pruner.shared())
    assert first is not None
    write_run(
        folder, model, byte_tokenizer(), "causal_lm", settings={"pruners": settings}, gates=state, dtype="fp32",
        prune="", steps=(10,),
    )  # fmt: skip
    return first


def test_before_the_hard_phase_the_gates_are_folded_and_nothing_is_cut(tmp_path: Path) -> None:
    """What is down in the soft phase may come back: the model has its full shape."""
    structure_pruner = run_with_gates(tmp_path / "run", False, "ffn")
    result = export_run(tmp_path / "run", tmp_path / "out", checkpoint="last", verify="logits")
    assert result["after"]["parameters"] == result["before"]["parameters"] and result["stock"]
    assert structure_pruner.num_pruned and result["pruned_parameters"] == 0 and result["structures"] == []
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        down = file.get_tensor("model.layers.1.mlp.down_proj.weight")
    (site,) = [site.name for site in structure_pruner.sites if site.layer == 1]
    assert down.shape[1] == small.NEURONS
    kept = structure_pruner.keep_flags()[site].bool()
    assert down[:, kept].any() and not down[:, ~kept].any()


@pytest.mark.parametrize("order", [("mlp_layers", "attention_layers"), ("mlp_layers", "ffn"), ("ffn", "mlp_layers")])
def test_where_one_budget_need_not_be_stock_the_model_need_not(tmp_path: Path, order: tuple[str, str]) -> None:
    run_with_gates(tmp_path / "run", True, *order)
    result = export_run(tmp_path / "run", tmp_path / "out", checkpoint="last", verify="weights")
    assert result["stock"] == (order[0] == "ffn")
