"""`pat compare` of a pruned model with a quantised one: as with the same model, its weights dequantised."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pat import cli
from pat.evaluation.folders import weights_sha256
from tests import models

QUANTISED = {  # 8-bit weights, a scale for each output channel, as compressed-tensors writes them
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "format": "int-quantized",
            "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False},
        }
    },
}


def pruned(folder: Path, dense: Path) -> Path:
    """The model with half of each matrix of its layers at zero, by magnitude."""
    return changed(folder, dense, lambda w: {"": w * (w.abs() > w.abs().median())})


def quantised(folder: Path, dense: Path) -> Path:
    """The model with int8 matrices, and their scales beside them."""

    def halves(weight: Tensor) -> dict[str, Tensor]:
        integers, scale = int8(weight)
        return {"": integers, "_scale": scale}

    changed(folder, dense, halves)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": QUANTISED}))
    return folder


def dequantised(folder: Path, dense: Path) -> Path:
    """What these int8 matrices stand for."""

    def product(weight: Tensor) -> dict[str, Tensor]:
        integers, scale = int8(weight)
        return {"": integers.to(scale.dtype) * scale}

    return changed(folder, dense, product)


def int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(integers, (outputs, 1) scales)."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round().to(torch.int8), scale


def changed(folder: Path, dense: Path, change: Callable[[Tensor], dict[str, Tensor]]) -> Path:
    """A copy with each matrix of the layers as `change` makes it: {suffix: tensor}."""
    shutil.copytree(dense, folder)
    stored = load_file(folder / "model.safetensors")
    made = dict[str, Tensor]()
    for name, weight in stored.items():
        parts = change(weight) if ".layers." in name and weight.dim() == 2 else {"": weight}
        made |= {name + suffix: part.contiguous() for suffix, part in parts.items()}
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def compare(a: Path, b: Path, folder: Path) -> int:
    """The command's exit code; its figures are in the folder."""
    mix = folder / "mix.jsonl"
    texts = ("what follows this?", "ab", "a third one")
    mix.write_text("".join(json.dumps({"prompt": t, "output_tokens": 4, "reference": "xyz"}) + "\n" for t in texts))
    with pytest.raises(SystemExit) as stop:
        cli.main(
            ["compare", str(a), str(b), "--mix", str(mix), "--json", str(folder / f"{b.name}.json"), "--device", "cpu"]
        )
    return int(str(stop.value.code))


def test_pruned_beside_quantised(tmp_path: Path) -> None:
    dense = models.write_llama(tmp_path / "dense", 0)
    sparse, figures = pruned(tmp_path / "sparse", dense), dict[str, object]()
    for name, make in (("int8", quantised), ("same", dequantised)):
        assert compare(sparse, make(tmp_path / name, dense), tmp_path) == 0
        said = json.loads((tmp_path / f"{name}.json").read_text())
        assert said.pop("command")[:4] == ["pat", "compare", str(sparse), str(tmp_path / name)]
        assert said.pop("directory") == str(Path.cwd())
        assert said.pop("weights_sha256") == {"a": weights_sha256(sparse), "b": weights_sha256(tmp_path / name)}
        assert said.pop("step") == {"a": None, "b": None}  # no runs or exports
        figures[name] = said | {"b": "one model in two forms"}
    assert figures["int8"] == figures["same"]


def test_weights_that_the_files_lack_are_not_made_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """transformers goes on with random ones, and only says so."""
    dense = models.write_llama(tmp_path / "dense", 0)
    torn = changed(tmp_path / "torn", dense, lambda w: {})
    assert compare(dense, torn, tmp_path) == 2
    assert "torn has no weights for model.layers.0.mlp.down_proj.weight" in capsys.readouterr().err
    packed = quantised(tmp_path / "packed", dense)
    config = (packed / "config.json").read_text()
    (packed / "config.json").write_text(config.replace("int-quantized", "pack-quantized"))
    assert compare(dense, packed, tmp_path) == 2
    assert "weight_packed" in capsys.readouterr().err
