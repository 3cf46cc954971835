"""The files that count as a model's weights are those that transformers loads, whatever lies beside them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from pat.evaluation.folders import weight_bytes, weights_sha256
from pat.evaluation.stored import weight_files
from tests import models


def saved(path: Path, seed: int, shard: str = "1GB") -> tuple[Path, torch.Tensor]:
    """(a folder, one of its weights)."""
    torch.manual_seed(seed)
    small: Any = models.config("llama")
    model = LlamaForCausalLM(small)
    model.save_pretrained(path, max_shard_size=shard)
    return path, model.model.norm.weight.data + model.lm_head.weight.data[0]


def loaded(path: Path) -> torch.Tensor:
    model = LlamaForCausalLM.from_pretrained(path)
    return model.model.norm.weight.data + model.lm_head.weight.data[0]


def test_they_are_those_that_transformers_loads(tmp_path: Path) -> None:
    """Fails if another format, or the shards of an earlier save, count twice in sizes and change a gate's hash."""
    (sharded, first), (single, second) = saved(tmp_path / "sharded", 1, "40KB"), saved(tmp_path / "single", 2)
    shards = sorted(sharded.glob("model-*.safetensors"))
    hashes = [weights_sha256(folder) for folder in (sharded, single)]
    size = sum(shard.stat().st_size for shard in shards)
    assert len(shards) > 1 and weight_files(sharded) == shards and weight_bytes(sharded) == size
    shutil.copy(single / "model.safetensors", sharded / "consolidated.safetensors")
    assert weight_files(sharded) == shards and torch.equal(loaded(sharded), first)
    assert (weights_sha256(sharded), weight_bytes(sharded)) == (hashes[0], size)
    shutil.copy(single / "model.safetensors", sharded)  # over the older shards
    assert weight_files(sharded) == [sharded / "model.safetensors"] and torch.equal(loaded(sharded), second)
    assert weights_sha256(sharded) == hashes[1] and weight_bytes(sharded) == weight_bytes(single)
    (sharded / "adapter_config.json").write_text("{}")
    assert len(weight_files(sharded)) == len(shards) + 2, "what an adapter says is not known here"


def test_without_a_known_name_all_count_and_a_torn_index_is_named(tmp_path: Path) -> None:
    for name in ("a.safetensors", "masks.safetensors", "b.safetensors"):
        (tmp_path / name).touch()
    assert [path.name for path in weight_files(tmp_path)] == ["a.safetensors", "b.safetensors"]
    for content in ('{"weight_map": ', '{"weight_map": {"w": "../other/model.safetensors"}}'):
        (tmp_path / "model.safetensors.index.json").write_text(content)
        with pytest.raises(ValueError, match="not a readable index"):
            weight_files(tmp_path)
