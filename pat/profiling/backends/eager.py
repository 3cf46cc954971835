"""transformers and torch: as written (`eager`), or with torch.compile (`compile`)."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from pat.common.parameters import DTYPES
from pat.evaluation.fitting import load_model
from pat.models import heads
from pat.profiling.backends import Runner, Settings, Stopwatch, decode


def open_runner(name: str, settings: Settings) -> Runner:
    """The model on its device."""
    model = loaded(settings).to(settings.device).requires_grad_(False)
    return _Torch(model, settings, name == "compile")


def loaded(settings: Settings) -> Any:
    """The model in settings.folder, on the CPU, as it answers."""
    model = load_model(Path(settings.folder), Path(settings.name), DTYPES[settings.dtype], use_safetensors=True)
    heads.set_pad_token(model.config, 0, classifies=False)  # a decoder that classifies takes no batch without one
    return model.eval()


class _Torch:
    def __init__(self, model: Any, settings: Settings, compiled: bool) -> None:
        self.model, self.settings, self.compiled = model, settings, compiled
        tensors = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
        self.memory_bytes: int | None = sum(tensors.values())
        taken = inspect.signature(model.forward).parameters
        self.cache_key = "cache" if "cache" in taken else "past_key_values"
        self.last_only = {"logits_to_keep": 1} if "logits_to_keep" in taken else {}
        # Prompts have any length, so only decoding is compiled, as `generate` does it; a classifier has only prompts.
        self.forward = torch.compile(model.forward, dynamic=None) if compiled else model.forward
        self.caches: dict[int, StaticCache] = {}

    @torch.inference_mode()
    def __call__(self, ids: Tensor, new: int) -> list[float]:
        """Seconds of the prompt and of each new token."""
        ids = ids.to(self.settings.device)
        if not self.settings.generative:
            watch = Stopwatch(self.settings.device)
            self.forward(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.tolist()
            watch.lap()
            return watch.laps
        cache = self._cache(len(ids))

        def step(given: Tensor) -> Tensor:
            forward = self.forward if given.shape[1] == 1 else self.model.forward
            options = {self.cache_key: cache, "use_cache": True, **self.last_only}
            return forward(input_ids=given, **options).logits

        return decode(step, ids, new, self.settings.device)

    def _cache(self, batch_size: int) -> Any:
        """An empty cache; compiled code needs one that does not grow."""
        if not self.compiled:
            return DynamicCache(config=self.model.config)
        if batch_size not in self.caches:
            longest = self.settings.longest[batch_size]
            self.caches[batch_size] = StaticCache(config=self.model.config, max_cache_len=longest)
        cache = self.caches[batch_size]
        cache.reset()
        return cache
