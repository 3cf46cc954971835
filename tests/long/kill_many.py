"""Many real SIGKILLs at random moments; every run must end with the bits of one that nobody disturbed.

    python -m tests.long.kill_many                      20 kills, to results/kill_many.json

Each kill hits the command itself, DeepSpeed's launcher or a rank, while it starts, trains or saves. Then the same
command is given again. A run that comes to its end is compared, and the next one begins.
"""

from __future__ import annotations

import argparse
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.distributed import runs
from tests.distributed.runs import Start
from tests.long import finish

RESULT = Path(__file__).resolve().parents[2] / "results" / "kill_many.json"
GONE_S = 150.0  # a rank whose parent was killed has two minutes to save
TARGETS = ("parent", "launcher", "rank 0", "rank 1")
PER_RUN = 4  # kills, then a run may come to its end
LAST = 25  # step; later, a run could end before the signal comes
MOMENTS = ("starting", "training", "training", "saving", "saving")


def kill(run_dir: Path, choose: random.Random) -> tuple[dict[str, Any], str]:
    """One start and one SIGKILL; what happened, and what the start said."""
    before = runs.latest(run_dir)
    target, moment = choose.choice(TARGETS), choose.choice(MOMENTS)
    start = Start(run_dir, f"train.checkpoint_every={1 if moment == 'saving' else 5}")
    if moment == "starting":
        start.find_everyone()
        time.sleep(choose.uniform(0.0, 5.0))
    else:
        start.until_step(min(before + choose.randint(1, 6), LAST))
        if moment == "saving":
            start.until_saving()
        time.sleep(choose.uniform(0.0, 0.03 if moment == "saving" else 0.2))
    began = time.monotonic()
    saving = bool(start.partial())
    start.send(target, signal.SIGKILL)
    left = start.nobody_left(GONE_S)
    logged = [line["step"] for line in runs.losses(run_dir) if line["time"] > start.began]
    return {
        "target": target,
        "moment": moment,
        "from_step": before,
        "step": logged[-1] if logged else before,
        "inside_save": saving,
        "torn_checkpoint_left": bool(start.partial()),
        "exit_code": start.process.returncode,
        "seconds_until_all_left": round(time.monotonic() - began, 2),
        "all_left": left,
        "latest_checkpoint": runs.latest(run_dir),
    }, start.text()


def resumed_step(text: str) -> int | None:
    """Where a start went on, as it says itself (what follows may be the log of a rank); None: killed before."""
    text = text.partition("; the end of ")[0]
    found = text.partition("resumed at step ")[2].split(" ")[0]
    return int(found) if found else 0 if "step 1/" in text else None


def disturbed(run_dir: Path, most: int, choose: random.Random) -> tuple[list[dict[str, Any]], Start]:
    """A run that is killed up to `most` times and then left alone: the kills, and the start that came to the end."""
    kills: list[dict[str, Any]] = []
    while len(kills) < most and runs.latest(run_dir) < LAST:
        said, text = kill(run_dir, choose)
        if kills:
            kills[-1]["resumed_step"] = resumed_step(text)
        kills.append(said)
        inside = ", inside a save" if said["inside_save"] else ""
        print(
            f"{said['target']} killed at step {said['step']} ({said['moment']}{inside}), all left after "
            f"{said['seconds_until_all_left']} s, newest checkpoint {said['latest_checkpoint']}",
            flush=True,
        )
        assert said["all_left"], f"processes are left behind: {said}"
    last = Start(run_dir)
    last.end()
    kills[-1]["resumed_step"] = resumed_step(last.text())
    for said in kills:
        said["resumed_where_it_should"] = said["resumed_step"] in (said["latest_checkpoint"], None)
    return kills, last


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.long.kill_many", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    choose, began = random.Random(options.seed), time.monotonic()
    kills: list[dict[str, Any]] = []
    ends: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        expected = runs.reference(Path(folder) / "undisturbed")
        print(f"undisturbed: masks {expected['mask_sha256']}, weights {expected['weights_sha256']}", flush=True)
        while len(kills) < options.kills:
            run_dir = Path(folder) / f"run{len(ends)}"
            here, last = disturbed(run_dir, min(PER_RUN, options.kills - len(kills)), choose)
            found = runs.result(run_dir) if last.process.returncode == 0 else {}
            kills += [{"run": len(ends), **said} for said in here]
            ends.append(
                {
                    "run": len(ends),
                    "kills": len(here),
                    "exit_code": last.process.returncode,
                    "mask_sha256": found.get("mask_sha256"),
                    "weights_sha256": found.get("weights_sha256"),
                    "equals_undisturbed": found == expected,
                }
            )
            print(f"{len(kills)}/{options.kills} kills; run {ends[-1]}", flush=True)
    passed = all(e["equals_undisturbed"] for e in ends) and all(k["resumed_where_it_should"] for k in kills)
    inside = sum(k["inside_save"] for k in kills)
    what = f"{len(kills)} kills, {len(ends)} runs"
    finish("kill_many", options.out, began, passed, what, expected, kills_inside_a_save=inside, runs=ends, kills=kills)


if __name__ == "__main__":
    main()
