"""Proof 3 on one rank: a fault at every write of a checkpoint, as an error and as a death, before and in the middle."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from pat.checkpoint import retention, store
from pat.common import files
from pat.zero.checkpoint_files import CheckpointError
from tests.distributed.harness import Trained, build, digest, main, make_config


class Killed(BaseException):
    """What no handler catches, like SIGKILL: nothing is cleaned up."""


@contextmanager
def fault_at(n: int, make: Callable[[], BaseException], torn: bool) -> Iterator[list[str]]:
    """The n-th write of a save fails; `torn`: after half of its file is on disk."""
    writes: list[str] = []

    def failing(name: str, plain: Callable[..., Any], target: int) -> Callable[..., Any]:
        def write(*args: Any, **kwargs: Any) -> Any:
            writes.append(name)
            if len(writes) - 1 == n:
                if torn and target >= 0:
                    result = plain(*args, **kwargs)
                    path = Path(args[target])
                    if path.is_file():
                        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
                    del result
                raise make()
            return plain(*args, **kwargs)

        return write

    with (
        mock.patch("torch.save", failing("torch.save", torch.save, 1)),
        mock.patch("pat.checkpoint.store.save_file", failing("save_file", store.save_file, 1)),
        mock.patch("pat.checkpoint.store.write_atomic", failing("write_atomic", files.write_atomic, -1)),
        mock.patch("pat.checkpoint.retention.write_atomic", failing("write_atomic", files.write_atomic, -1)),
        mock.patch("os.replace", failing("os.replace", store.os.replace, -1)),
        mock.patch("os.fsync", failing("os.fsync", store.os.fsync, -1)),
    ):
        yield writes


def save(trained: Trained, root: Path, step: int) -> None:
    """One checkpoint, with what the loop does after it."""
    store.save(trained.engine, trained.pruner, root, step, {}, {})
    retention.retain(root, 2)


def checks(which: list[str]) -> dict[str, Any]:
    """[write, fault, step found after it, digest right] of every fault; of the quick set with torn files only."""
    said: list[Any] = []
    trained = build(make_config("movement"))
    trained.run(0, 5)
    early = digest(trained)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with fault_at(-1, OSError, False) as writes:
            save(trained, root, 5)
        count = len(writes)
        trained.run(5, 6)
        late = digest(trained)
        for n in range(count):
            for fault, make in (("error", lambda: OSError(28, "No space left on device")), ("death", Killed)):
                for torn in (True,) if which == ["quick"] else (False, True):
                    raised = ""
                    try:
                        with fault_at(n, make, torn) as writes:
                            save(trained, root, 6)
                    except CheckpointError as error:
                        raised = str(error)
                    except Killed:
                        raised = "killed"
                    fresh = build(make_config("movement"))
                    reader = store.find(root, fresh.pruner.layout.world, lambda text: None)
                    assert reader is not None, (writes[n], fault, torn)
                    store.load(fresh.engine, fresh.pruner, reader)
                    step = reader.manifest["step"]
                    right = digest(fresh) == (early if step == 5 else late)
                    said.append([writes[n], fault, torn, raised, step, right])
                    if fault == "death":  # DeepSpeed's engine died in the middle: go on with the one that resumed
                        trained.engine.destroy()
                        trained = fresh
                        trained.run(step, 6)
                    else:
                        fresh.engine.destroy()
                    for path in root.glob("step-00000006*"):
                        store.shutil.rmtree(path)
                    retention.set_latest(root, root / "step-00000005")
        save(trained, root, 6)
        assert store.find(root, trained.pruner.layout.world, print).manifest["step"] == 6  # type: ignore[union-attr]
    return {"count": count, "faults": said}


if __name__ == "__main__":
    main(checks)
