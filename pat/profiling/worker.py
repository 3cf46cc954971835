"""One model in a process of its own, so that its memory is its own and other models' threads do not disturb it.

The parent sends work and gets times; the process sleeps in between.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import resource
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from pat.profiling.backends import EXPORTED, Settings, open_runner
from pat.profiling.plan import Work

Message = dict[str, Any]


class Worker:
    """The parent's end. A context manager: the process ends with it."""

    def __init__(self, backend: str, settings: Settings, prompts: Sequence[Sequence[int]]) -> None:
        self.what = f"{settings.name} ({backend})"
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, backend, settings, prompts), daemon=True)
        self.process.start()
        theirs.close()

    def ready(self) -> Message:
        """Waits until the model is loaded: {load_seconds, memory_bytes}. ValueError where it cannot be."""
        return self._answer()

    def __call__(self, work: Work) -> list[float]:
        """Seconds of one call (`Runner`). ValueError where it failed."""
        self._send(work)
        return self._answer()["laps"]

    def close(self) -> Message:
        """Ends the process: {peak_memory_bytes}."""
        self._send(None)
        said = self._answer()
        self.process.join(30.0)
        return said

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        if self.process.is_alive():
            self.process.terminate()
        self.process.join(10.0)

    def _send(self, work: Work | None) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the answer that does not come says why
            self.connection.send(work)

    def _answer(self) -> Message:
        try:
            said: Message = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(10.0)
            code = self.process.exitcode
            why = "it was killed, perhaps for lack of memory" if code in (-9, 137) else f"its process ended with {code}"
            raise ValueError(f"{self.what} cannot be measured: {why}") from None
        if "error" in said:
            raise ValueError(said["error"])
        return said


def export(backend: str, settings: Settings, out: Path) -> None:
    """Make a backend's files in a process that ends, so that none of its memory is the measured one's. ValueError."""
    with Worker(f"export:{backend}", settings, [[*map(ord, str(out))]]) as worker:
        worker.ready()


def _serve(connection: Connection, backend: str, settings: Settings, prompts: Sequence[Sequence[int]]) -> None:
    """The process's main."""
    os.dup2(2, 1)  # output of libraries must not be the command's
    torch.set_num_threads(settings.threads)
    logging.disable_progress_bar()
    try:
        if backend.startswith("export:"):
            from pat.profiling.backends import exported

            exported.write(backend.removeprefix("export:"), settings, Path("".join(map(chr, prompts[0]))))
            connection.send({})
            return
        _measure(connection, backend, settings, prompts)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):  # the parent has gone, or asks for the end
        return
    except ValueError as error:
        connection.send({"error": str(error)})
    except Exception as error:  # from a foreign model or a backend
        traceback.print_exc()
        said = (str(error).strip().splitlines() or [""])[0]
        connection.send(
            {"error": f"{settings.name} cannot be measured with {backend}: {type(error).__name__}: {said[:300]}"}
        )


def _measure(connection: Connection, backend: str, settings: Settings, prompts: Sequence[Sequence[int]]) -> None:
    if backend not in EXPORTED:
        import pat.profiling.backends.eager  # noqa: F401  before the clock runs, and not in the model's memory
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here (proc(5))
    before, began = _resident("VmRSS"), time.perf_counter()
    runner = open_runner(backend, settings)
    loaded = time.perf_counter() - began
    gc.collect()
    memory = runner.memory_bytes
    connection.send({"load_seconds": loaded, "memory_bytes": _resident("VmRSS") - before if memory is None else memory})
    vocabulary = _vocabulary(settings.folder)
    while (work := connection.recv()) is not None:
        connection.send({"laps": runner(_ids(work, prompts, vocabulary), work.output_tokens)})
    connection.send({"peak_memory_bytes": _peak(settings.device, backend, before, memory or 0)})


def _ids(work: Work, prompts: Sequence[Sequence[int]], vocabulary: int) -> torch.Tensor:
    """(b, s): a prompt of the mix, or random tokens, the same in every model of that vocabulary."""
    if work.prompt is not None:
        return torch.tensor([prompts[work.prompt]])
    generator = torch.Generator().manual_seed(work.prompt_tokens)
    return torch.randint(0, vocabulary, (work.batch_size, work.prompt_tokens), generator=generator)


def _vocabulary(folder: str) -> int:
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config().vocab_size)


def _peak(device: str, backend: str, before: int, weights: int) -> int | None:
    """The model's peak memory: on a device from torch's allocator (None where another library allocates), else of the
    process, at least the weights: those of a mapped file that no request has read are not in memory yet."""
    there = torch.device(device)
    if there.type == "cpu":
        return max(weights, _resident("VmHWM") - before)
    return None if backend in EXPORTED else int(torch.get_device_module(there).max_memory_allocated(there))


def _resident(key: str) -> int:
    """Bytes of this process that are in memory (VmRSS), or were at most (VmHWM)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:  # another system: the most so far, for both
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))
