"""A whole measurement: from a config to the files in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pat.common.files import finite, write_json
from pat.common.parameters import DTYPES
from pat.common.progress_bar import progress_bar
from pat.common.seeds import seed_everything
from pat.data import sampler
from pat.launch.process import only_user_of
from pat.models import build, tokenizers, weight_files
from pat.run.provenance import versions
from pat.schema import Config
from pat.sensitivity import plot, report
from pat.sensitivity.cells import grid
from pat.sensitivity.journal import Journal
from pat.sensitivity.measure import evaluate, loss_of, measure
from pat.tasks import base
from pat.training.preflight import fitting_data
from pat.zero.engine import accelerator


def run(config: Config, fractions: Sequence[float], kinds: Sequence[str], out: Path) -> dict[str, Any]:
    """Measure cells that are not in `out` yet, and write sensitivity.json, .csv and .png there; returns the JSON's
    content.

    ValueError for a model that was not trained on the task, for kinds that it does not have, and where `out` is about
    something else.
    """
    task, tokenizer, prepared = base.build(config.task), tokenizers.build_tokenizer(config.model), fitting_data(config)
    seed_everything(config.seed)
    options = (tokenizer, prepared.label_names, config.model.init == "pretrained")
    model: Any = build.build_model(config.model, task, DTYPES[config.engine.dtype], prepared.num_labels, *options)
    model = model.to(accelerator()).eval().requires_grad_(False)
    removals = grid(model, fractions, kinds)
    if removals.note:
        print(f"weights only, no structures: {removals.note}", flush=True)
    batches = list(sampler.eval_batches(prepared.eval, task, tokenizer, config, 0, 1, accelerator()))
    identity = {
        "model": config.model.plain(),
        "weights": weight_files.identity(config.model.path, config.model.revision),
        "task": config.task.plain(),
        "data": prepared.info["cache"].rpartition("/")[2],
        "samples": len(prepared.eval),
        "dtype": config.engine.dtype,
        "seed": config.seed if config.model.init == "random" else None,
    }
    with (
        only_user_of(out, "--out", "cells.jsonl"),
        Journal(out / "cells.jsonl", identity, evaluate(model, task, batches)) as journal,
    ):
        left = [cell for cell in removals.cells if cell.key not in journal.measured]
        done = len(removals.cells) - len(left)
        print(
            f"{len(removals.cells)} removals of {len(removals.kinds)} kinds in {len(removals.layers)} layers, on "
            f"{len(prepared.eval)} held-out samples" + (f"; {done} are in {journal.path} already" if done else ""),
            flush=True,
        )
        with progress_bar("measuring", len(removals.cells), done) as advance:
            for cell, metrics in measure(model, task, batches, removals, left):
                journal.add(cell, metrics)
                advance(1)
        cells = report.rows(removals, journal.measured, journal.baseline)
        result = {
            **identity,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "versions": versions(),
            "baseline": journal.baseline,
            "cells": cells,
        }
        write_json(out / "sensitivity.json", finite(result))
        report.write_csv(out / "sensitivity.csv", cells)
        if plot.available():
            name = Path(config.model.path).name if config.model.path else config.model.config["model_type"]
            title = f"{name}: loss added by each removal alone (nothing removed: {loss_of(journal.baseline):.3f})"
            plot.heat_map(cells, out / "sensitivity.png", title)
    return result
