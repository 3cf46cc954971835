"""How long the exported model of a run takes: the forward of one sequence on this machine."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from pat.config.frozen import load
from pat.export import loader
from pat.export.export import export_run
from pat.run.directory import RunDir
from pat.zero.engine import accelerator

WARM_UP, ROUNDS = 2, 9


@torch.inference_mode()
def forward_ms(run_dir: Path) -> float:
    """Median of `ROUNDS` forwards of 1 x data.max_length random tokens, of the last checkpoint's export, in ms.

    In the dtype of the run, on the GPU if there is one. Masks alone make nothing faster here; narrower models are.
    """
    config = load(RunDir(run_dir).config)
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        export_run(run_dir, Path(folder) / "model", checkpoint="last", verify="weights")
        model = loader.load(Path(folder) / "model", dtype="auto").eval().to(accelerator())
        vocabulary = model.config.get_text_config().vocab_size
        tokens = torch.randint(0, vocabulary, (1, config.data.max_length), generator=torch.Generator().manual_seed(0))
        tokens, took = tokens.to(accelerator()), []
        for _ in range(WARM_UP + ROUNDS):
            started = time.perf_counter()
            model(input_ids=tokens)
            if accelerator() == "cuda":
                torch.cuda.synchronize()
            took.append(time.perf_counter() - started)
    return statistics.median(took[WARM_UP:]) * 1e3
