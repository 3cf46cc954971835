"""A budget of measured time from its table to the gate: each command reads what the one before it has written."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pat import cli
from pat.common.files import read_json
from pat.models.tokenizers import byte_tokenizer
from pat.profiling import table, worker
from pat.run.directory import ExitCode
from tests import models
from tests.distributed import ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
REMOVED = 0.3  # of the time, to remove


def pat(*words: Any) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main([str(word) for word in words])
    return int(left.value.code or 0)


def seconds(model: Any, device: str) -> Any:
    """In place of a clock: a nanosecond a parameter, so that a wider layer takes longer on any machine."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return lambda work: [1e-9 * parameters]


def test_from_the_table_to_the_gate(forked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, out, texts = tmp_path / "dense", tmp_path / "faster", tmp_path / "texts.jsonl"
    models.model("llama", vocab_size=320).save_pretrained(dense)
    byte_tokenizer().save_pretrained(dense)
    texts.write_text("".join(json.dumps({"text": f"Row {i} says that May was warm. " * 3}) + "\n" for i in range(60)))
    monkeypatch.setattr(table, "_forward", seconds)
    monkeypatch.setattr(worker, "multiprocessing", SimpleNamespace(get_context=lambda _: ranks.server))
    how = ("--lengths", "16:2", "--batch-sizes", 1, "--requests", 6, "--threads", 1, "--device", "cpu")
    said, profile = tmp_path / "latency.json", tmp_path / "profile.json"
    assert pat("profile", dense, *how, "--table", said) == ExitCode.DONE
    written: Any = read_json(said)
    assert written["model_type"] == "llama" and written["tokens"] == 16 and written["base_seconds"] > 0
    assert [written[kind][-1]["units"] for kind in ("kv_groups", "ffn")] == [4, 128]
    keys = (
        f"model.path={dense}", "data=json", f"data.train={texts}", "data.max_length=16",
        f"data.cache_dir={tmp_path / 'data'}", "train.num_steps=0", "train.global_batch_size=4",
        "train.eval_batch_size=4", "engine.world_size=1", "engine.kernels=eager", "logger=none",
        "pruners.narrow.structures=[ffn,kv_groups]", "pruners.narrow.gate.num_samples=8",
        "pruners.narrow.budget.name=latency", f"pruners.narrow.budget.table={said}",
        f"pruners.narrow.budget.sparsity={REMOVED}",
    )  # fmt: skip
    assert pat("train", "recipe=decoder_narrow", f"run.dir={tmp_path / 'run'}", *keys) == ExitCode.DONE
    assert pat("export", tmp_path / "run", "--out", out) == ExitCode.DONE
    assert 0.0 < promised(written, read_json(out / "config.json") or {}) <= 1.0 - REMOVED
    assert pat("profile", dense, out, *how, "--json", profile) == ExitCode.DONE
    found: Any = read_json(profile)
    measured = found["models"][1]["ratio"]["latency_p95"]["value"]
    for limit, code in ((1.01 * measured, ExitCode.DONE), (0.99 * measured, ExitCode.OUTSIDE_ENVELOPE)):
        judged = tmp_path / f"{code}.json"
        limits = f"envelope.latency_p95.ratio={limit}"
        assert pat("gate", out, "--against", dense, "--profile", profile, limits, "--json", judged) == code
        (check,) = (read_json(judged) or {})["checks"]
        assert check["name"] == "latency_p95.ratio" and check["quantity"] == pytest.approx(measured)


def promised(content: dict[str, Any], config: dict[str, Any]) -> float:
    """The part of the time that is left of a model of that shape, by the table."""

    def of(shape: dict[str, int]) -> float:
        layers = 0.0
        for kind, units in shape.items():
            points = {point["units"]: point["seconds"] for point in content[kind]}
            most = max(points)
            layers += points[most] * units / most
        return content["base_seconds"] + config["num_hidden_layers"] * layers

    full = {kind: content[kind][-1]["units"] for kind in ("kv_groups", "ffn")}
    left = {"kv_groups": config["num_key_value_heads"], "ffn": config["intermediate_size"]}
    return of(left) / of(full)
