"""A classifier with other labels gets a new head, the same one at every ZeRO stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from tests import models
from tests.distributed import ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
LABELS = {0: "a", 1: "b", 2: "c"}


def trained(folder: Path, stage: int, model: Path, rows: Path) -> tuple[str, str]:
    """What rank 0 says, and the hash of the weights: a rate that is 0 in fp32 leaves them as they were made."""
    run = folder / f"zero{stage}"
    overrides = [
        "task=classification", "data=json", f"data.train={rows}", "data.eval_fraction=0.2", "data.max_length=16",
        f"data.cache_dir={folder}", f"model.path={model}", "model.tokenizer=byte", "model.replace_head=true",
        "train.num_steps=1", "train.global_batch_size=4", "optim.lr=1e-50", "optim.implementation=foreach",
        "logger=none", "engine.kernels=eager", "engine.world_size=2", f"engine.zero_stage={stage}", f"run.dir={run}",
    ]  # fmt: skip
    logs = [folder / f"zero{stage}.{rank}" for rank in range(2)]
    codes = ranks.exit_codes(ranks.fork_ranks("pat.cli", ["train", *overrides], logs, cwd=folder), 600)
    said = logs[0].read_text(errors="replace")
    assert codes == [0, 0], said[-4000:]
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}
    return said, json.loads((run / "summary.json").read_text())["weights_sha256"]


def test_a_new_head_is_the_same_at_every_stage(tmp_path: Path) -> None:
    """Would catch: ranks or stages that draw other numbers, and ZeRO 3, which knows no sizes that do not fit."""
    model, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    own = {"id2label": LABELS, "label2id": {v: k for k, v in LABELS.items()}, "vocab_size": 264}
    models.model("bert", None, AutoModelForSequenceClassification, **own).save_pretrained(model)
    rows.write_text(
        "".join(json.dumps({"text": f"text {i}", "label": ["bad", "good"][i % 2]}) + "\n" for i in range(40))
    )
    found = {stage: trained(tmp_path, stage, model, rows) for stage in (3, 1, 2)}
    assert all("(a, b, c) is replaced by a new one (bad, good)" in said for said, _ in found.values())
    assert len({sha for _, sha in found.values()}) == 1
