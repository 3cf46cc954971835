"""Finished cells, one per line, which are not measured again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from pat.sensitivity.cells import Cell
from pat.sensitivity.measure import Metrics, loss_of

SAME = 1e-3  # relative difference of two losses of one model on two machines, at most


class Journal:
    """`cells.jsonl`: a head with what is measured, then a line per finished cell."""

    def __init__(self, path: Path, identity: dict[str, Any], baseline: Metrics) -> None:
        """Opens or begins it; a torn last line is dropped. ValueError where it belongs to another measurement."""
        self.path = path
        self.measured: dict[tuple[str, int], Metrics] = {}
        head = {"identity": identity, "baseline": baseline}
        lines = self._lines()
        if lines:
            self._compare(lines[0], head)
            self.measured = {(line["target"], line["removed"]): line["metrics"] for line in lines[1:]}
        self.baseline: Metrics = lines[0]["baseline"] if lines else baseline
        self.file = open(path, "a")  # noqa: SIM115
        if not lines:
            self._write(head)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.file.close()

    def add(self, cell: Cell, metrics: Metrics) -> None:
        """A finished cell, to the disk."""
        self.measured[cell.key] = metrics
        self._write({"target": cell.target, "fraction": cell.fraction, "removed": cell.removed, "metrics": metrics})

    def _write(self, line: dict[str, Any]) -> None:
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def _lines(self) -> list[Any]:
        """All whole lines; a torn one at the end is cut off."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
        except ValueError:
            raise ValueError(f"{self.path} is damaged: remove it, or give another --out.") from None
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        return lines

    def _compare(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        for key, value in new["identity"].items():
            if old["identity"].get(key) != value:
                raise ValueError(
                    f"{self.path} was measured with {key}={old['identity'].get(key)}, and now it is {value}: give "
                    "another --out, or remove the file."
                )
        before, now = loss_of(old["baseline"]), loss_of(new["baseline"])
        if abs(before - now) > SAME * abs(before):
            raise ValueError(
                f"{self.path} was measured on a model whose loss was {before:.6g}, and this one's is {now:.6g}: give "
                "another --out, or remove the file."
            )
