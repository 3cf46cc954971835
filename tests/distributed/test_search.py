"""`pat search --jobs 2` with real runs that train at the same time, and the answer of one at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pat.common.files import read_json
from pat.run.directory import ExitCode, RunDir
from pat.search import plan
from pat.search.search import SEARCH_FILE, Search
from pat.sweeps.members import Member
from pat.sweeps.runner import Place
from tests.distributed import ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

KEYS = [
    "recipe=parity", "logger=none", "engine.world_size=1", "train.num_steps=14", "train.eval_every=14",
    "train.checkpoint_every=14", "pruners.weights.schedule.start=2", "pruners.weights.schedule.end=8",
    "pruners.weights.schedule.hard_from=8", "pruners.weights.schedule.select_every=2",
]  # fmt: skip
LIMIT = 3.85  # of the loss: 3.69 at a sparsity of 0.5, 4.04 at 0.98
SPAN = plan.Span(first=0.5, last=0.98, within=0.24)  # 0.5, 0.74, 0.98


class Forked(ranks.Together):
    """A run that was forked, for what starts runs and waits for them."""

    message = ""

    def send_signal(self, sig: int, /) -> None:
        raise AssertionError(sig)


def searched(out: Path, jobs: int) -> tuple[int, dict[float, Any], dict[str, Any]]:
    """(exit code, {value: its summary and when it trained}, search.json) of a whole search."""

    def start(member: Member, place: Place, log: Path) -> Forked:
        log.parent.mkdir(parents=True, exist_ok=True)
        assert 0 <= place.number < place.of == jobs
        return Forked(ranks.fork_ranks("pat.cli", list(member.command), [log]))

    made = plan.make([*KEYS, f"envelope.loss.max={LIMIT}"], out, SPAN, None)
    code = Search(made, ["pat", "search"], print, jobs=jobs, start=start).run()
    found = read_json(out / SEARCH_FILE) or {}
    ended: dict[float, Any] = {}
    for each in found["candidates"]:
        run = RunDir(Path(each["dir"]))
        (began,) = [json.loads(line)["time"] for line in run.starts.read_text().splitlines()]
        ended[each["value"]] = (read_json(run.summary) or {}) | {"from": began, "to": run.summary.stat().st_mtime}
    return code, ended, found


def test_two_at_once_end_in_the_bits_and_the_answer_of_one_at_a_time(tmp_path: Path) -> None:
    """Would catch: two forks of one dense part, or two runs on one machine, that get into each other's way."""
    code, two, found = searched(tmp_path / "two", 2)
    assert code == ExitCode.DONE and {0.5, 0.98} < set(two)
    assert max(two[0.5]["from"], two[0.98]["from"]) < min(two[0.5]["to"], two[0.98]["to"]), "at the same time"
    allowed = found["result"]["allowed"]
    assert {value: each["metrics"]["loss"] <= LIMIT for value, each in two.items()} == {
        value: value <= allowed for value in two
    }
    kept = [path.parent.name for path in (tmp_path / "two").glob("*/checkpoints")]
    assert kept == [f"sparsity={allowed}"]

    code, one, found = searched(tmp_path / "one", 1)
    assert code == ExitCode.DONE and found["result"]["allowed"] == allowed
    for value in one.keys() & two.keys():
        for key in ("mask_sha256", "weights_sha256", "metrics", "dense_metrics", "sparsity"):
            assert one[value][key] == two[value][key], (value, key)
    assert len(one.keys() & two.keys()) > 2
