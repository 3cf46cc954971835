"""A rank without a model: what it does is in RUN/behaviour.json, {"rank": word} with "*" for the others."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from pat.launch import process, rank
from pat.run import directory, preemption


def until_all_are_there(run_dir: Path) -> None:
    """Tests wait for the records of all, and who leaves ends the others, also those that have not written theirs."""
    end = time.monotonic() + 120
    while len(process.rank_records(run_dir)) < int(os.environ["WORLD_SIZE"]) and time.monotonic() < end:
        time.sleep(0.02)


def work(run_dir: Path) -> int:
    me = int(os.environ["RANK"])
    behaviour = json.loads((run_dir / "behaviour.json").read_text())
    word = behaviour.get(str(me)) or behaviour["*"]
    flag = preemption.preemption_flag()
    print(f"rank {me} of {os.environ['WORLD_SIZE']} does: {word}")
    if word in ("fail", "refuse", "die"):
        until_all_are_there(run_dir)
    if word == "fail":
        raise RuntimeError("the cable came out")
    if word == "refuse":
        raise ValueError("the data set is empty")
    if word == "die":
        (run_dir / "dying").touch()
        os.kill(os.getpid(), 9)
    if word.isdigit():
        if me == 0:
            directory.write_exit(run_dir, int(word), "on purpose" if int(word) else "")
        return int(word)
    end = time.monotonic() + 120
    while time.monotonic() < end:  # "wait": as the loop does; "stuck": as in a collective whose other end is gone
        if flag.requested and word == "wait":
            (run_dir / f"signal-{me}").write_text(str(flag.signal))
            time.sleep(0.3)
            if me == 0:
                directory.write_exit(run_dir, directory.ExitCode.PREEMPTED, "saved")
            return directory.ExitCode.PREEMPTED
        time.sleep(0.02)
    return directory.ExitCode.ERROR


if __name__ == "__main__":
    code = rank.run_rank(Path(sys.argv[1]), int(os.environ["RANK"]), work)
    os._exit(0 if code.agreed else code)
