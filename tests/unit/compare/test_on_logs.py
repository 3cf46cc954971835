"""`pat compare --from-logs`: which rows are compared with which, and the mistakes one can make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pat import cli
from pat.statistics.sequential import look


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["compare", "--from-logs", *map(str, arguments)])
    return int(str(stop.value.code))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    """B fails half of the requests of law; its rows come in another order, and one has no outcome yet."""
    rows = [{"id": i, "ok": i % 10 != 0, "domain": "law" if i % 2 else "films", "q": f"q{i}"} for i in range(400)]
    worse = [{**row, "ok": row["ok"] and i % 4 != 1, "out": f"\x1b[2J{i}"} for i, row in enumerate(rows)]
    worse[-1]["ok"] = None
    return write(tmp_path / "a.jsonl", [{**row, "out": "fine"} for row in rows]), write(
        tmp_path / "b.jsonl", worse[::-1]
    )


def test_pairs_and_slices(both: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    """Fails if rows are paired by their place, a slice has another's rows, or a row without an outcome counts."""
    options = ["--outcome", "ok", "--slices", "domain", "--json", tmp_path / "f.json"]
    assert run(*both, *options, "--key", "id", "--prompt", "q", "--output", "out") == 0
    found, said = json.loads((tmp_path / "f.json").read_text()), capsys.readouterr().out
    assert (found["waiting"], found["unmatched"], found["overall"]["look"]["a_n"]) == ([0, 1], 1, 399)
    verdicts = {one["name"]: one["verdict"] for one in found["slices"]}
    assert verdicts == {"domain=films": "", "domain=law": "lower"} and found["overall"]["verdict"] == "lower"
    assert len(found["regressions"]) == 100 and "Right in A and wrong in B: 100" in said and "\x1b" not in said
    assert found["regressions"][0] == {"prompt": "q1", "slices": ["domain=law"], "a": "fine", "b": "\x1b[2J1"}
    assert run(*both, *options) == 0
    unpaired = json.loads((tmp_path / "f.json").read_text())["overall"]["look"]
    a, b = ([row["ok"] for row in map(json.loads, path.read_text().splitlines())] for path in both)
    b = [value for value in b if value is not None]
    expected = look(np.array(a, dtype=float), np.array(b, dtype=float), 0.05)
    assert (unpaired["p"], unpaired["low"], unpaired["b_n"]) == (expected.p, expected.low, 399)


@pytest.mark.parametrize(
    ("rows", "options", "sentence"),
    [
        ([{"x": 1}], [], "line 1: there is no column ok; there are x"),
        ([{"ok": "yes"}], [], "must be true, false, a number or null"),
        ([{"ok": 0.5}], [], "give --effect"),
        ([{"ok": None}], [], "no row with an outcome yet"),
        ([{"ok": 1, "id": 1}] * 2, ["--key", "id"], "id 1 is there a second time"),
        ([{"ok": 1, "id": 1}], ["--key", "ok"], "have no ok in common"),
    ],
)
def test_mistakes(rows: list[dict[str, Any]], options: list[str], sentence: str, tmp_path: Path, capsys: Any) -> None:
    a, b = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", [{"ok": 0, "id": 9}])
    assert run(a, b, "--outcome", "ok", *options) == 2
    assert sentence in capsys.readouterr().err
