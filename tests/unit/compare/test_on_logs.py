"""`pat compare --from-logs`: which rows are compared with which, and the mistakes one can make."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pat import cli
from pat.common import files
from pat.report import build, reading
from pat.report.markdown import markdown
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
    (found,), said = json.loads((tmp_path / "f.json").read_text())["watched"], capsys.readouterr().out
    assert (found["waiting"], found["unmatched"], found["overall"]["look"]["a_n"]) == ([0, 1], 1, 399)
    verdicts = {one["name"]: one["verdict"] for one in found["slices"]}
    assert verdicts == {"domain=films": "", "domain=law": "lower"} and found["overall"]["verdict"] == "lower"
    assert len(found["regressions"]) == 100 and "Right in A and wrong in B: 100" in said and "\x1b" not in said
    assert found["regressions"][0] == {"prompt": "q1", "slices": ["domain=law"], "a": "fine", "b": "\x1b[2J1"}
    assert run(*both, *options) == 0
    unpaired = json.loads((tmp_path / "f.json").read_text())["watched"][0]["overall"]["look"]
    a, b = ([row["ok"] for row in map(json.loads, path.read_text().splitlines())] for path in both)
    b = [value for value in b if value is not None]
    expected = look(np.array(a, dtype=float), np.array(b, dtype=float), 0.05)
    assert (unpaired["p"], unpaired["low"], unpaired["b_n"]) == (expected.p, expected.low, 399)


def test_figures_are_shown_though_the_disk_is_full(
    both: tuple[Path, Path], tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """Fails if what was compared is lost with a file."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "write_json", full)
    assert run(*both, "--outcome", "ok", "--slices", "domain", "--json", tmp_path / "f.json") == 1
    said = capsys.readouterr()
    assert "domain=law" in said.out and said.err == "pat: No space left on device: while files were written\n"


def test_several_outcomes_are_one_family(tmp_path: Path, capsys: Any) -> None:
    """Fails if p-values are not adjusted for the number of columns, an effect is another column's, or a row that lacks
    one outcome is left out of the other."""
    rng = np.random.default_rng(0)

    def rows(right: float, slow: float) -> list[dict[str, Any]]:
        found = [{"ok": bool(rng.random() < right), "s": float(rng.normal(slow, 1.0))} for _ in range(300)]
        return [{**row, "s": None if i < 7 else row["s"], "kind": i % 2} for i, row in enumerate(found)]

    logs = write(tmp_path / "a.jsonl", rows(0.9, 1.0)), write(tmp_path / "b.jsonl", rows(0.8, 1.5))
    options = ["--effect", "0.1,s=0.3", "--slices", "kind", "--json", tmp_path / "f.json"]
    assert run(*logs, "--outcome", "ok,s", *options) == 0
    ok, s = json.loads((tmp_path / "f.json").read_text())["watched"]
    assert (ok["name"], ok["effect"], s["name"], s["effect"]) == ("ok", 0.1, "s", 0.3)
    assert ok["waiting"] == [0, 0] and s["waiting"] == [7, 7] and ok["overall"]["look"]["a_n"] == 300
    for each in ([ok["overall"], s["overall"]], [*ok["slices"], *s["slices"]]):
        assert [one["p_adjusted"] for one in each] == pytest.approx(by_holm([one["look"]["p"] for one in each]))
        assert any(one["p_adjusted"] > one["look"]["p"] for one in each)
    said = capsys.readouterr().out
    assert "ok; without a value yet: 0 and 0" in said and "s; without a value yet: 7 and 7" in said
    shown = build.page(reading.read([tmp_path / "f.json"]))
    assert shown.decision.word.endswith(": ok lower, s higher")
    assert said.splitlines()[-1].startswith(f"{shown.decision.word}: By the sequential test")
    assert all(f"{name} per slice" in markdown(shown) for name in ("ok", "s"))
    assert "Not known: the rows of the logs are not paired" in markdown(shown)


def test_a_line_that_is_being_written_waits(both: tuple[Path, Path], tmp_path: Path) -> None:
    """As in a log that is looked at daily while the service goes on."""
    with open(both[0], "a") as log:
        log.write('{"id": 400, "ok": tr')
    assert run(*both, "--outcome", "ok", "--json", tmp_path / "c.json") == 0
    (found,) = json.loads((tmp_path / "c.json").read_text())["watched"]
    assert found["waiting"] == [1, 1]


def by_holm(p: list[float]) -> list[float]:
    """Holm 1979, as its definition says: with k hypotheses, max over the i smallest of (k - i + 1) p, at most 1."""
    order = sorted(p)
    return [min(1.0, max((len(p) - i) * order[i] for i in range(order.index(one) + 1))) for one in p]


@pytest.mark.parametrize(
    ("rows", "options", "sentence"),
    [
        ([{"x": 1}], [], "line 1: there is no column ok; there are x"),
        ([{"ok": "yes"}], [], "must be true, false, a number or null"),
        ([{"ok": 0.5}], [], "give --effect"),
        ([{"ok": None}], [], "no row with a value of ok yet"),
        ([{"ok": 1, "id": 1}] * 2, ["--key", "id"], "id 1 occurs twice"),
        ([{"ok": 1, "id": 1}, {"ok": 1, "id": None}], ["--key", "id"], "line 2: id is null"),
        ([{"ok": 1, "id": 1}], ["--key", "ok"], "have no ok in common"),
    ],
)
def test_mistakes(rows: list[dict[str, Any]], options: list[str], sentence: str, tmp_path: Path, capsys: Any) -> None:
    a, b = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", [{"ok": 0, "id": 9}])
    assert run(a, b, "--outcome", "ok", *options) == 2
    assert sentence in capsys.readouterr().err


def test_two_columns_cannot_be_one_slice(tmp_path: Path, capsys: Any) -> None:
    """Merged, a regression in one of them would be spread over both."""
    log = write(tmp_path / "a.jsonl", [{"ok": True, "user": {"region": "eu"}, "server": {"region": "us"}}] * 3)
    assert run(log, log, "--outcome", "ok", "--slices", "user.region,server.region") == 2
    assert "two columns of --slices would both be the slice region" in capsys.readouterr().err
