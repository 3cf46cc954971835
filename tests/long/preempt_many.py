"""Many preemptions by a real Slurm at random moments; every job must end with the bits of one that nobody disturbed.

    python -m tests.long.preempt_many                   20 preemptions, to results/preempt_many.json; as root on Debian

Each time both nodes are taken away by a job of a higher partition: within 8 s of a start, or while the run trains or
saves. Slurm puts the run's job back into the queue; nobody starts anything again. A job that comes to its end is
compared, and the next begins.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.cluster.lab import HERE, Job, Lab
from tests.distributed import runs
from tests.long import finish

RESULT = Path(__file__).resolve().parents[2] / "results" / "preempt_many.json"
PER_RUN = 5  # preemptions, then a run may come to its end
LAST = 130  # step; later, a run could end before it is preempted
MOMENTS = ("starting", "training", "training", "saving")
EVERY = ("train.checkpoint_every=5", "train.keep_last=3")  # so that some preemptions hit a save


def preempt(job: Job, choose: random.Random) -> dict[str, Any]:
    """Take the nodes away from a run that works, and wait until it works again; what happened."""
    number, moment = len(job.starts), choose.choice(MOMENTS)
    before = runs.latest(job.run.path)
    if moment == "starting":
        time.sleep(choose.uniform(0.0, 8.0))
    else:
        job.until_step(before + choose.randint(1, 15), number)
        if moment == "saving":
            job.until(lambda: list(job.run.checkpoints.glob("*.partial")))
    began = time.monotonic()
    logged = runs.losses(job.run.path)
    job.lab.preempt()
    job.until(lambda: len(job.starts) > number)
    saved = job.starts[-1]["step"]
    job.until(lambda: f"resumed at step {saved} from" in job.text() or saved == 0)
    return {
        "moment": moment,
        "from_step": before,
        "step": logged[-1]["step"] if logged else 0,
        "saved_step": saved,
        "nothing_lost": saved >= (logged[-1]["step"] if logged else 0),
        "seconds_until_it_worked_again": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.long.preempt_many",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preemptions", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    choose, began = random.Random(options.seed), time.monotonic()
    events: list[dict[str, Any]] = []
    ends: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # munged is another user
        lab = Lab(Path(folder) / "slurm")
        lab.path.mkdir()
        lab.script("up.sh")
        try:
            expected = lab.submit(Path(folder) / "undisturbed").until_done()
            print(f"undisturbed: masks {expected['mask_sha256']}, weights {expected['weights_sha256']}", flush=True)
            while len(events) < options.preemptions:
                job = lab.submit(Path(folder) / f"run{len(ends)}", *EVERY)
                job.until(lambda job=job: job.starts)
                here = 0
                while here < PER_RUN and len(events) < options.preemptions and runs.latest(job.run.path) < LAST:
                    events.append({"run": len(ends), **preempt(job, choose)})
                    here += 1
                    print(f"{len(events)}/{options.preemptions}: {events[-1]}", flush=True)
                found = job.until_done()
                ends.append(
                    {
                        "run": len(ends),
                        "preemptions": here,
                        "restarts": int(job.detail("Restarts")),
                        "mask_sha256": found["mask_sha256"],
                        "weights_sha256": found["weights_sha256"],
                        "equals_undisturbed": found == expected,
                    }
                )
                print(f"run {ends[-1]}", flush=True)
        finally:
            subprocess.run([HERE / "down.sh"], env=lab.environment, stdin=subprocess.DEVNULL, capture_output=True)
    passed = all(end["equals_undisturbed"] and end["restarts"] == end["preemptions"] for end in ends)
    passed = passed and all(event["nothing_lost"] for event in events)
    what = f"{len(events)} preemptions, {len(ends)} jobs"
    finish("preempt_many", options.out, began, passed, what, expected, runs=ends, preemptions=events)


if __name__ == "__main__":
    main()
