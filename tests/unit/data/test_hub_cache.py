"""A model and data sets by their names on the hub, offline: all that is there is Hugging Face's own cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_dataset

from tests.models import write_llama

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SCRIPT = """
import json, sys
import torch
from pat.config.compose import compose
from pat.models.build import build_model
from pat.models.weight_files import check_weights, identity
from pat.tasks import base
from pat.training.preflight import fitting_data

found = {}
for name, keys in json.loads(sys.argv[1]).items():
    composed = []
    assert not compose(keys, lambda config: composed.append(config) or 0)
    (config,) = composed
    try:
        prepared = fitting_data(config)
    except ValueError as error:
        found[name] = str(error)
        continue
    found[name] = [prepared.info["train_rows"], prepared.info["eval_rows"]]
model = build_model(config.model, base.build(config.task), torch.float32)
check_weights(config.model.path, "model.path")
found["model"] = [type(model).__name__, identity(config.model.path, None) is not None]
print(json.dumps(found))
"""


def repository(home: Path, kind: str, name: str) -> Path:
    """The folder of a downloaded repository's only commit."""
    root = home / "hub" / f"{kind}--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


def write_rows(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps({"text": f"{path.parent.name} row {i}, some text"}) + "\n" for i in range(count))
    )


@pytest.mark.slow  # a process of its own: the libraries read the environment when they are imported
def test_names_of_the_hub_are_found_in_the_local_cache(tmp_path: Path) -> None:
    """Fails if a step of the way asks the network: `datasets` knows its own cache only, not downloaded repositories."""
    home = tmp_path / "hf"
    write_llama(tmp_path / "llama")
    shutil.copytree(tmp_path / "llama", repository(home, "models", "org/tiny"), dirs_exist_ok=True)
    data = repository(home, "datasets", "org/texts")
    for subset, count in (("one", 40), ("two", 60)):
        write_rows(data / subset / "train.jsonl", count)
        write_rows(data / subset / "test.jsonl", 5)
    configs = "".join(
        f"- config_name: {subset}\n  data_files:\n"
        + "".join(f"  - {{split: {split}, path: {subset}/{split}.jsonl}}\n" for split in ("train", "test"))
        for subset in ("one", "two")
    )
    (data / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    # What load_dataset("org/loaded") has left behind on another day.
    write_rows(tmp_path / "rows" / "train.jsonl", 30)
    load_dataset("json", data_files=str(tmp_path / "rows" / "train.jsonl"), cache_dir=str(tmp_path / "made"))
    (made,) = (path.parent for path in (tmp_path / "made").rglob("json-train.arrow"))
    loaded = home / "datasets" / "org___loaded" / "default" / "0.0.0" / COMMIT
    shutil.copytree(made, loaded)
    (loaded / "json-train.arrow").rename(loaded / "loaded-train.arrow")

    common = ["recipe=decoder", "run.name=x", "model.path=org/tiny", "data.max_length=32", "train.num_steps=4"]
    wanted = {
        "subset": ["data.source=org/texts", "data.subset=two", "data.train=train", "data.eval=test"],
        "held out": ["data.source=org/texts", "data.subset=one", "data.train=train", "data.eval=null"],
        "loaded": ["data.source=org/loaded", "data.train=train", "data.eval=null"],
        "revision": ["data.source=org/texts", "data.subset=one", "data.train=train", f"data.revision={COMMIT}"],
        "no subset": ["data.source=org/texts", "data.subset=three", "data.train=train"],
        "no data": ["data.source=org/nothing", "data.train=train"],
    }
    wanted["teacher"] = [*wanted["held out"], "distill=dense", "distill.teacher=org/tiny"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PAT_CACHE": str(tmp_path / "cache")}
    keys = json.dumps({name: [*common, *each] for name, each in wanted.items()})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, keys], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["subset"] == [60, 5] and found["model"] == ["LlamaForCausalLM", True]
    for name, rows in (("held out", 40), ("loaded", 30), ("revision", 40), ("teacher", 40)):
        assert isinstance(found[name], list) and sum(found[name]) == rows, found[name]
    assert "data.source='org/texts' (subset three" in found["no subset"]
    assert "data.source='org/nothing'" in found["no data"]
