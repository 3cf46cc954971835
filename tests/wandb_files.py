"""What an offline run has left for `wandb sync`: its .wandb file, which wandb itself reads only in order to send it."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 32768  # LevelDB's log format: records in fragments of (crc, length, kind), none across a block's end


def ended_records(path: Path, patience_s: float = 60.0) -> list[Any]:
    """All records of a file, once wandb's own process has written the last: on a busy machine after `finish`."""
    end = time.monotonic() + patience_s
    while True:
        found = list(records(path))
        if any(each.WhichOneof("record_type") == "exit" for each in found):
            return found
        assert time.monotonic() < end, f"wandb has not written the end of {path}"
        time.sleep(0.1)


def records(path: Path) -> Iterator[Any]:
    """The records that a file has by now, as wandb defines them."""
    from wandb.proto import wandb_internal_pb2  # heavy, and every process that collects tests imports this file

    data, at, whole = path.read_bytes(), 7, b""  # after ":W&B", a number and a version
    while at + 7 <= len(data):
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if not kind:  # the rest of a block is empty
            at += _BLOCK - at % _BLOCK
            continue
        if len(data) < at + 7 + length:  # still being written
            return
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if _BLOCK - at % _BLOCK < 7:
            at += _BLOCK - at % _BLOCK
        if kind in (1, 4):  # whole, or its last fragment
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(whole)
            whole = b""
            yield record


def read_ended(run_dir: Path) -> list[dict[str, Any]]:
    """Of each start of a run, in order: group, config, history, summary and alerts."""
    found = []
    for path in sorted((run_dir / "wandb").glob("offline-run-*/run-*.wandb")):
        start: dict[str, Any] = {"group": "", "config": {}, "history": [], "summary": {}, "alerts": []}
        for record in ended_records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                start["group"] = record.run.run_group or start["group"]  # a later record may only update the run
                start["config"] |= _values(record.run.config.update)
            elif kind == "history":
                start["history"].append(_values(record.history.item))
            elif kind == "summary":
                start["summary"] |= _values(record.summary.update)
            elif kind == "alert":
                start["alerts"].append((record.alert.title, record.alert.text))
        found.append(start)
    return found


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
