"""Backends, which run a model in its worker: each file turns a folder into a `Runner` (`open_runner`).

A runner is called with ids (b, s) and the number of new tokens, and returns seconds since the call: when the forward of
the prompt was done, and when each new token was known to the host. At each of them the GPU is waited for, as by a
server that streams its tokens.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Settings:
    """The settings of a worker."""

    folder: str  # with the model as the backend reads it
    name: str  # what the user gave, for messages
    generative: bool
    device: str
    dtype: str
    threads: int
    longest: dict[int, int] = field(default_factory=dict)  # per batch size: prompt and output tokens of the longest


class Runner(Protocol):
    """A loaded model, which generates from token ids, or classifies them, and says how long that took."""

    memory_bytes: int | None  # of weights and buffers; None: only the process's size tells

    def __call__(self, ids: Tensor, new: int) -> list[float]:
        """Seconds: [prompt done, first token known, second, ...]; of a classifier [logits known]."""
        ...


@dataclass(frozen=True)
class Needs:
    """The Python modules that a backend imports, and the extra with which they are installed."""

    modules: tuple[str, ...]
    extra: str  # of pat, which has them


BACKENDS = {
    "eager": Needs((), ""),
    "compile": Needs((), ""),
    "onnxruntime": Needs(("onnxruntime", "onnx", "onnxscript"), "onnxruntime"),
    "openvino": Needs(("openvino",), "openvino"),
    "vllm": Needs((), ""),  # a program of its own environment
}
EXPORTED = ("onnxruntime", "openvino")  # which read files that are made of the model first


def check_installed(name: str) -> None:
    """ValueError, one sentence, for a backend that is unknown or not installed."""
    if name not in BACKENDS:
        raise ValueError(f"--backend {name}: allowed are {', '.join(BACKENDS)}")
    needs = BACKENDS[name]
    missing = [module for module in needs.modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ValueError(
            f"--backend {name} needs {' and '.join(missing)}: install the extra, pip install "
            f"'pat-deepspeed[{needs.extra}]'"
        )


def open_runner(name: str, settings: Settings) -> Runner:
    """The model of these settings, loaded by a backend whose packages are imported only here."""
    file = "exported" if name in EXPORTED else "eager"
    module: Any = importlib.import_module(f"{__name__}.{file}")
    return module.open_runner(name, settings)


class Stopwatch:
    """Seconds since it was made, up to the end of the work; a GPU is waited for."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._module = torch.get_device_module(self._device)
        self.laps: list[float] = []
        self._module.synchronize(self._device)
        self._began = time.perf_counter()

    def lap(self) -> None:
        """Note one more time."""
        self._module.synchronize(self._device)
        self.laps.append(time.perf_counter() - self._began)


def decode(step: Any, ids: Tensor, new: int, device: str) -> list[float]:
    """Greedy decoding by `step(ids (b, s)) -> logits (b, s or 1, v)`, which keeps the cache; no token ends it early."""
    watch = Stopwatch(device)
    logits = step(ids)
    watch.lap()
    for done in range(1, new + 1):
        chosen = logits[:, -1:].argmax(-1)
        chosen.tolist()  # a token counts as known when the host has it
        watch.lap()
        if done < new:
            logits = step(chosen)
    return watch.laps
