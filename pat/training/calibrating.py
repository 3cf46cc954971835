"""What the user sees of a calibrated cut, and what it costs; a request to stop ends it between two layers."""

from __future__ import annotations

import time
from collections import deque

from pat.config.frozen import same_command
from pat.pruning.calibration.journal import Journals
from pat.pruning.timetable import steps
from pat.run.preemption import Preempted
from pat.training.progress import Progress
from pat.training.state import Training

LOOKED_AT = 4  # layers by which it is said how long the others will take
CUT, GRADIENTS = "calibrating and pruning layer", "taking the loss's gradients, forward and back, layer"


class Calibrating:
    """What a calibrated cut calls: no rank hangs, the user sees where it is, and at its end what it took; a request to
    stop ends its walk over the layers between two of them."""

    def __init__(self, training: Training, journals: Journals) -> None:
        self.training, self.journals = training, journals
        self.started, self.announced = 0.0, False
        self.began = deque[float](maxlen=LOOKED_AT + 1)  # when the last layers began
        self.gradients_s = 0.0  # that taking the loss's gradients took, before the walk

    def on_gradients(self, index: int, number: int) -> None:
        """Before each layer of the pass that takes the loss's gradients, there and back, and at its end. Raises
        Preempted. Collective."""
        seconds, left_s = self._clock(index, number)
        asked, better_now = self.training.agree(_better_now(self.training, seconds, index, number))
        if asked and better_now and self.journals.kept:
            raise self._preempted("while the loss's gradients were taken")
        self.training.tracker.layer(GRADIENTS, index, number, self.training.progress.step, left_s)
        if index == number:
            self.gradients_s += seconds

    def on_layer(self, index: int, number: int) -> None:
        """Before each layer of a walk, and at its end. Raises Preempted. Collective."""
        training = self.training
        if index == 0:
            self.announced = False
        seconds, left_s = self._clock(index, number)
        asked, better_now = training.agree(_better_now(training, seconds, index, number))
        if asked and better_now and self.journals.kept:
            raise self._preempted("in the cut", f", after {index} of {number} layers, which are kept")
        if asked and not self.announced and index < number:
            self.announced = True
            training.tracker.say(f"stopping after the cut, of which {number - index} of {number} layers are left")
        training.tracker.layer(CUT, index, number, training.progress.step, left_s)
        if index == number:
            seconds, self.gradients_s = seconds + self.gradients_s, 0.0
            training.aside_s += seconds
            training.progress.calibration_seconds += seconds
            training.tracker.log({"calibration/seconds": seconds}, training.progress.step)

    def _clock(self, index: int, number: int) -> tuple[float, float | None]:
        """Seconds of the walk until now, and those that are left if each layer takes as long as the last few."""
        now = time.perf_counter()
        if index == 0:
            self.started = now
            self.began.clear()
        self.began.append(now)
        layers = len(self.began) - 1
        return now - self.started, (now - self.began[0]) / layers * (number - index) if layers else None

    def _preempted(self, where: str, then: str = "") -> Preempted:
        progress, command = self.training.progress, same_command(self.training.run.path)
        return Preempted(
            f"stopped on request {where} at step {progress.step}{then}{_trained_again(progress)}: {command} goes on"
        )


def _trained_again(progress: Progress) -> str:
    lost = progress.step - max(progress.saved_step, 0)
    return f"; {steps(lost)} since the last checkpoint will be trained again" if lost > 0 else ""


def _better_now(training: Training, seconds: float, index: int, number: int) -> bool:
    """Whether stopping now costs less time than finishing the cut, given that steps since the last checkpoint are
    lost."""
    progress, lost = training.progress, 0.0
    if progress.step > max(progress.saved_step, 0):
        lost = time.monotonic() - training.due.last_save
    return index < number and lost <= seconds / max(index, 1) * (number - index)
