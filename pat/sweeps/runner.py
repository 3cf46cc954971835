"""Runs the members of a sweep, several at once, and supervises them until the last has left.

A failing member affects no other. Ctrl-C, SIGTERM and SIGUSR1 go to all running members, which save and leave; no more
are started. The caller says how to start a member: `start_here` on this machine, or a function that submits a job.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pat.common import signals
from pat.launch.process import die_with_parent
from pat.run.directory import ExitCode
from pat.sweeps.members import Member, python_command

POLL_S = 0.2
SECOND_SIGNAL_S = 0.5  # between two interrupts: a rank that counts them must see two


class Running(Protocol):
    """A member that was started."""

    message: str  # why it ended, where its log does not say so

    def poll(self) -> int | None:
        """Its exit code once it has ended."""
        ...

    def send_signal(self, sig: int, /) -> None:
        """Pass a signal on."""
        ...


@dataclass(frozen=True)
class Place:
    """One of the places for members that run at once."""

    number: int
    of: int
    ranks: int  # of the member with most


Start = Callable[[Member, Place], Running]


@dataclass(frozen=True)
class Ended:
    """How one start of a member went."""

    code: int
    seconds: float
    message: str = ""


@dataclass
class Runner:
    """Starts members and waits for them."""

    jobs: int
    start: Start
    log: Callable[[Member], Path]
    begun: Callable[[Member], None]
    ended: Callable[[Member, Ended], None]
    signals: list[int] = field(default_factory=list)
    stopping: bool = False  # signals were passed on: no more members

    def run(self, members: Sequence[Member]) -> bool:
        """All members, in their order; whether the sweep was asked to stop before the last had ended."""
        waiting, running = list(members), {}
        most = most_ranks(members)
        places = [Place(number, self.jobs, most) for number in range(self.jobs)]
        with signals.handled(lambda number, _frame: self.signals.append(number)):
            while running or (waiting and not self.signals):
                while waiting and places and not self.signals:
                    member, place = waiting.pop(0), places.pop(0)
                    self.begun(member)
                    running[member.name] = (member, self.start(member, place), place, time.monotonic())
                self._forward([entry[1] for entry in running.values()])
                time.sleep(POLL_S)
                for name, (member, started, place, at) in list(running.items()):
                    code = started.poll()
                    if code is not None:
                        del running[name]
                        places = sorted([*places, place], key=lambda each: each.number)
                        self.ended(member, self._ended(member, started, code, time.monotonic() - at))
        return bool(self.signals)

    def _ended(self, member: Member, started: Running, code: int, seconds: float) -> Ended:
        if code == ExitCode.DONE:
            return Ended(code, seconds)
        if code < 0 and self.signals:  # before `pat train` had installed its handlers, so there was nothing to save
            return Ended(ExitCode.PREEMPTED, seconds, "asked to stop before it began")
        said = started.message or last_sentence(self.log(member))
        if code < 0:
            return Ended(ExitCode.ERROR, seconds, f"killed by {signal.Signals(-code).name}" + (said and f"; {said}"))
        return Ended(code, seconds, said or f"left with exit code {code}")

    def _forward(self, running: Sequence[Running]) -> None:
        if self.signals and not self.stopping:
            self.stopping = True
            for each in running:
                each.send_signal(signals.PASSED_ON[signal.Signals(self.signals[0])])
        elif self.signals.count(signal.SIGINT) > 1:
            self.signals = [signal.SIGTERM]  # caught; the members end at once
            for _ in range(2):
                for each in running:
                    each.send_signal(signal.SIGINT)
                time.sleep(SECOND_SIGNAL_S)


class Here(subprocess.Popen[bytes]):
    """A member on this machine."""

    message = ""


def start_here(member: Member, place: Place, log: Path) -> Here:
    """A member on this machine, in a session of its own; it saves and leaves when this process dies."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as output:
        return Here(
            python_command(member),
            env=environment(member, place),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGTERM),
        )


def environment(member: Member, place: Place) -> dict[str, str]:
    """The environment of a member: its share of the cores, and the GPUs of its place."""
    from pat.launch.single_node import rank_variables

    engine = member.config.engine
    variables = rank_variables(member.config)
    if "OMP_NUM_THREADS" not in os.environ and not engine.threads_per_rank:
        variables["OMP_NUM_THREADS"] = str(max(1, int(variables["OMP_NUM_THREADS"]) // place.of))
    devices = visible_devices()
    if devices and place.of > 1:
        first = place.number * place.ranks
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(devices[first : first + engine.world_size])
    return variables


def visible_devices() -> list[str]:
    """The GPUs that this process may give away; none on a machine without."""
    import torch

    if not torch.cuda.is_available():
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(index) for index in range(torch.cuda.device_count())]


def most_ranks(members: Sequence[Member]) -> int:
    """The ranks of the member that has most; 1 where there are no members."""
    return max((member.config.engine.world_size for member in members), default=1)


def check_places(members: Sequence[Member], jobs: int, devices: Sequence[str]) -> None:
    """ValueError where `jobs` members at once would share GPUs, or the hosts of a hostfile."""
    check_hosts(members, jobs)
    most = most_ranks([member for member in members if member.config.engine.hostfile is None])
    if devices and jobs * most > len(devices):
        fitting = len(devices) // most
        raise ValueError(
            f"--jobs {jobs} with {most} ranks each needs {jobs * most} GPUs and this machine shows {len(devices)}: "
            + (f"give at most --jobs {fitting}" if fitting else f"set engine.world_size to at most {len(devices)}")
        )


def check_hosts(members: Sequence[Member], jobs: int) -> None:
    """ValueError where several members at once would take the hosts of a hostfile."""
    if jobs > 1 and any(member.config.engine.hostfile for member in members):
        raise ValueError(f"--jobs {jobs}: all runs would take the hosts of engine.hostfile: leave one of them out")


def last_sentence(log: Path) -> str:
    """The last message of a member: its own sentence if there is one, else its last line."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line.removeprefix("pat: ") for line in lines if line.startswith("pat: ")]
    return (said or lines or [""])[-1]
