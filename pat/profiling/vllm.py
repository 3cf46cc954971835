"""vLLM: its own server (`vllm serve`), asked by its own benchmark client (`vllm bench serve`).

It is a program with an environment of its own, found on PATH. The client is started for every call; its times do not
include that start. Prompts are random tokens of the mix's lengths. The tests have a stand-in for the program:
vLLM needs other versions than pat.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any

from pat.common.files import read_json
from pat.profiling.plan import Work

PROGRAM = "vllm"
MISSING = (
    "--backend vllm needs the program vllm on PATH: install it in an environment of its own (pip install vllm) and add "
    "that environment's bin folder to PATH"
)
TIMEOUT_S = 1800.0  # until a server is ready
MEMORY = 0.9  # of the GPU's or the machine's, for all servers together
MARGIN = 64  # tokens beyond the longest prompt and its answer: the client makes some prompts a little longer
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_ERROR = re.compile(r"\b[A-Za-z.]*(?:Error|Exception): .*")
_IN_TURN = ("Engine core initialization failed", "WorkerProc initialization failed")  # which names no cause
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def check_installed() -> None:
    """ValueError where there is no vllm."""
    if shutil.which(PROGRAM) is None:
        raise ValueError(MISSING)


class Server:
    """A model behind vLLM's server, called like a worker. A context manager: the server ends with it."""

    def __init__(
        self,
        folder: Path,
        name: str,
        generative: bool,
        device: str,
        dtype: str,
        threads: int,
        longest: int,  # tokens of a prompt and its answer, at most
        servers: int,
    ) -> None:
        check_installed()
        if not generative:
            raise ValueError(f"--backend vllm: {name} is a classifier; give language models, or leave vllm out")
        self.folder, self.name = folder, name
        self.port = _free_port()
        self.work = tempfile.TemporaryDirectory(prefix="pat-vllm-")
        self.log: IO[bytes] = open(Path(self.work.name) / "server.log", "wb")
        self.began = time.monotonic()
        self.environment = dict(os.environ)
        for name in ("no_proxy", "NO_PROXY"):  # its client would ask a proxy for this machine
            self.environment[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1,localhost"]))
        if device == "cpu":  # else every server takes the same cores for itself, and as many as it likes
            self.environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
        self.process = self._start(
            "serve", str(folder), "--host", "127.0.0.1", "--port", str(self.port), "--dtype", DTYPES[dtype],
            "--no-enable-prefix-caching", "--gpu-memory-utilization", f"{MEMORY / servers:.3f}",
            "--max-model-len", str(longest), "--generation-config", "vllm",  # the model's own may limit its answers
        )  # fmt: skip

    def ready(self) -> dict[str, Any]:
        """Waits until the server answers: {load_seconds}. ValueError where it does not."""
        while True:
            try:
                with DIRECTLY.open(f"http://127.0.0.1:{self.port}/health", timeout=5.0):
                    return {"load_seconds": time.monotonic() - self.began}
            except (urllib.error.URLError, OSError):
                pass
            if self.process.poll() is not None or time.monotonic() - self.began > TIMEOUT_S:
                raise ValueError(f"vLLM does not serve {self.name}: {self._why()}")
            time.sleep(0.5)

    def __call__(self, work: Work) -> list[float]:
        """Seconds until each token, the mean over the batch's requests, which are sent at once."""
        client = self._start(
            "bench", "serve", "--backend", "vllm", "--host", "127.0.0.1", "--port", str(self.port),
            "--model", str(self.folder), "--dataset-name", "random", "--random-input-len", str(work.prompt_tokens),
            "--random-output-len", str(work.output_tokens), "--random-range-ratio", "0", "--seed", "0",
            "--num-prompts", str(work.batch_size), "--max-concurrency", str(work.batch_size), "--ignore-eos",
            "--temperature", "0", "--disable-tqdm", "--save-result", "--save-detailed",
            "--result-dir", self.work.name, "--result-filename", "result.json",
        )  # fmt: skip
        result = Path(self.work.name) / "result.json"
        try:
            if client.wait(TIMEOUT_S) != 0 or not (said := read_json(result)):
                raise ValueError(f"vLLM's client could not ask {self.name}: {self._why()}")
        except subprocess.TimeoutExpired:
            client.kill()
            raise ValueError(f"vLLM's client took more than {TIMEOUT_S:.0f} s with {self.name}") from None
        finally:
            result.unlink(missing_ok=True)
        return laps(said, work)

    def close(self) -> dict[str, Any]:
        """No peak is known: vLLM reserves its memory beforehand."""
        return {}

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(60.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        self.work.cleanup()

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [PROGRAM, *words], env=self.environment, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log
        )

    def _why(self) -> str:
        return why(Path(self.log.name).read_text(encoding="utf-8", errors="replace"))


def why(log: str) -> str:
    """The first error of a log that says a cause, else its last line: vLLM's processes fail one after another."""
    lines = [line.strip() for line in log.strip().splitlines()]
    errors = (match[0] for line in lines if (match := _ERROR.search(line)))
    cause = next((error for error in errors if not any(known in error for known in _IN_TURN)), None)
    return (cause or (lines or ["it said nothing"])[-1])[:300]


def laps(said: dict[str, Any], work: Work) -> list[float]:
    """[first token, first token, second, ...] of the client's result: the prompt's forward alone is not seen.

    A chunk of the stream may hold more than one token; then a request's gaps are spread evenly. ValueError.
    """
    failed = [error for error in said.get("errors", []) if error]
    if failed or len(said.get("ttfts", [])) != work.batch_size:
        raise ValueError(f"vLLM's client got no answer: {str(failed[0])[:300] if failed else 'no times in its result'}")
    steps = max(1, work.output_tokens - 1)
    first = sum(said["ttfts"]) / work.batch_size
    gap = sum(sum(gaps) for gaps in said["itls"]) / work.batch_size / steps
    gaps = said["itls"][0] if work.batch_size == 1 and len(said["itls"][0]) == steps else [gap] * steps
    found = [first, first]
    for each in gaps[: work.output_tokens - 1]:
        found.append(found[-1] + each)
    return found


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
