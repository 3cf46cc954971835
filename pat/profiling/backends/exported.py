"""ONNX Runtime and OpenVINO, on files that transformers' own exporters make of a model (`transformers.exporters`).

One graph serves prompts and decoding: it is traced with a cache and two tokens, and takes any number of both. ONNX
Runtime gets the cache in and out of every call; OpenVINO keeps it as its state.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from pat.common.files import read_json, write_json
from pat.common.parameters import DTYPES
from pat.profiling.backends import Runner, Settings, Stopwatch, decode
from pat.profiling.backends.eager import loaded

CACHES = "caches.json"  # beside the graph: the shapes of the keys and values of each layer
FORMATS = {"onnxruntime": "onnx", "openvino": "openvino"}
TRACED = (2, 7)  # batch size and tokens of the example; 0 and 1 would become constants of the graph


def write(name: str, settings: Settings, out: Path) -> None:
    """Make the backend's files of the model in settings.folder. ValueError where it cannot be traced."""
    from transformers.exporters.auto import get_exporter_class
    from transformers.exporters.utils import decompose_for_generation

    model = loaded(settings)
    exporter = get_exporter_class(FORMATS[name])  # imports only the packages of this backend
    ids = torch.ones(TRACED, dtype=torch.long)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    caches: list[Any] = []
    try:
        with torch.no_grad():
            if settings.generative:
                stages: Any = decompose_for_generation(model, inputs, multi_token_decode=True)
                model, inputs = stages["decode"]
                layers = inputs["cache" if "cache" in inputs else "past_key_values"].layers
                caches = [[list(layer.keys.shape), list(layer.values.shape)] for layer in layers]
            config: Any = {"dynamic": True}
            exporter().export(model, copy.deepcopy(dict(inputs)), config).save_pretrained(out)
    except Exception as error:  # a tracer may raise anything in a foreign model
        said = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{settings.name} cannot be exported for {name}: {said[0][:300]}") from error
    write_json(out / CACHES, caches)


def open_runner(name: str, settings: Settings) -> Runner:
    """The graph on its runtime."""
    from transformers.exporters.base import ExportedModel

    options: dict[str, Any] = {"config": {"INFERENCE_NUM_THREADS": settings.threads}}
    if name == "onnxruntime":
        import onnxruntime

        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = settings.threads
        options = {"session_options": session}
    loaded = ExportedModel.from_pretrained(settings.folder, device=settings.device, local_files_only=True, **options)
    (runner,) = loaded.runners.values()
    return (_OpenVino if name == "openvino" else _Onnx)(runner, settings)


class _Exported(ABC):
    """A graph; of a language model, `step` is one call that keeps the cache."""

    memory_bytes: int | None = None

    def __init__(self, runner: Any, settings: Settings) -> None:
        self.runner, self.settings = runner, settings
        self.seen = 0

    @torch.inference_mode()
    def __call__(self, ids: Tensor, new: int) -> list[float]:
        """Seconds of the prompt and of each new token."""
        if not self.settings.generative:
            watch = Stopwatch("cpu")
            self.logits(input_ids=ids, attention_mask=torch.ones_like(ids)).tolist()
            watch.lap()
            return watch.laps
        self.seen = 0
        self.forget(len(ids))
        return decode(self.step, ids, new, "cpu")

    def step(self, given: Tensor) -> Tensor:
        """(b, s) -> (b, s, v)."""
        first, self.seen = self.seen, self.seen + given.shape[1]
        positions = torch.arange(first, self.seen).expand(len(given), -1).contiguous()
        mask = torch.ones(len(given), self.seen, dtype=torch.long)
        return self.logits(input_ids=given, attention_mask=mask, position_ids=positions)

    @abstractmethod
    def forget(self, batch_size: int) -> None:
        """The cache is empty."""

    @abstractmethod
    def logits(self, **inputs: Tensor) -> Tensor:
        """The logits of one call."""


class _Onnx(_Exported):
    def __init__(self, runner: Any, settings: Settings) -> None:
        super().__init__(runner, settings)
        self.takes = set(runner.metadata.kwargs)
        self.key = "cache" if "cache" in self.takes else "past_key_values"
        self.shapes: list[Any] = read_json(Path(settings.folder) / CACHES) or []
        self.cache: dict[str, Any] = {}

    def forget(self, batch_size: int) -> None:
        """Keys and values of no tokens."""
        dtype = DTYPES[self.settings.dtype]
        empty = [[torch.empty(batch_size, s[1], 0, s[3], dtype=dtype) for s in shapes] for shapes in self.shapes]
        self.cache = {self.key: DynamicCache([(keys, values) for keys, values in empty])}

    def logits(self, **inputs: Tensor) -> Tensor:
        """The cache goes in and comes out."""
        made = self.runner(**{key: value for key, value in inputs.items() if key in self.takes}, **self.cache)
        self.cache = {key: getattr(made, key) for key in self.cache}
        return made.logits


class _OpenVino(_Exported):
    def __init__(self, runner: Any, settings: Settings) -> None:
        super().__init__(runner, settings)
        self.inputs = {name for port in runner.compiled_model.inputs for name in port.get_names()}
        self.output = runner.compiled_model.output("logits")

    def forget(self, batch_size: int) -> None:
        """The state is reset."""
        self.runner.request.reset_state()

    def logits(self, **inputs: Tensor) -> Tensor:
        """The cache is the request's state; `beam_idx` would reorder it."""
        from transformers.exporters.runners.runner_openvino import openvino_output_tensor

        given = {**inputs, "beam_idx": torch.arange(len(inputs["input_ids"]), dtype=torch.int32)}
        fed = {key: value.numpy() for key, value in given.items() if key in self.inputs}
        return openvino_output_tensor(self.runner.request.infer(fed, share_inputs=True)[self.output], self.output)
