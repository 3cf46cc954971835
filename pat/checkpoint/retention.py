"""Which checkpoints of a run there are, which names point at them, and which are kept.

checkpoints/step-00000200/           a directory each; those that are not finished do not count, and whether the others
                                     are whole is not known here (both words: store.py)
checkpoints/latest, best, good, sparsity=0.3    the name of one of them each

Everything else in there is the user's, and stays as it is.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from pat.common.files import read_json, write_atomic
from pat.run.directory import RunDir, no_run

REACHED = "sparsity="  # the name of a checkpoint of train.export_at begins with it
_FOLDER = re.compile(r"step-\d{8,}(\.partial|\.replaced)?")


def steps(root: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(p for p in _folders(root) if p.suffix != ".partial" and _is_finished(p))


def _folders(root: Path) -> Iterator[Path]:
    """Checkpoints, and leftovers of interrupted saves."""
    return (p for p in root.glob("step-*") if _FOLDER.fullmatch(p.name))


def in_place(root: Path) -> dict[int, Path]:
    """The folder of each step. A kill while a step was saved again leaves it under its name aside, `.replaced`."""
    aside_first = sorted((p for p in _folders(root) if p.suffix != ".partial"), reverse=True)
    found = {step_of(p.name): p for p in aside_first}
    return {step: found[step] for step in sorted(found)}


def put_back(root: Path) -> None:
    """Give what is aside its name again, where a kill came before its successor had it."""
    for step, folder in in_place(root).items():
        if folder.suffix == ".replaced":
            os.replace(folder, of_step(root, step))


def step_of(name: str) -> int:
    """The step in a checkpoint's name, also of what an interrupted save has left."""
    return int(name.removeprefix("step-").partition(".")[0])


def _names(root: Path) -> dict[Path, str]:
    """The names that there are, and what each points at."""
    names = [root / "latest", root / "best", root / "good", *root.glob(f"{REACHED}*")]
    there = {p: p.read_text(encoding="utf-8").strip() for p in names if p.is_file()}
    return {p: target for p, target in there.items() if _FOLDER.fullmatch(target)}


def _is_finished(folder: Path) -> bool:
    """Whether it has a manifest. One that cannot be looked at may have: whoever opens it says what is wrong."""
    try:
        (folder / "manifest.json").stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True


def to_resume(root: Path) -> list[str]:
    """The names of finished checkpoints, `latest` first and then what is older."""
    names = [p.name for p in reversed(steps(root))] if root.exists() else []
    latest = _latest(root)
    return names if latest is None else [latest, *(name for name in names if name < latest)]


def _latest(root: Path) -> str | None:
    """What `latest` points at, if that is there."""
    name = _names(root).get(root / "latest")
    return name if name in {folder.name for folder in steps(root)} else None


def set_latest(root: Path, step_dir: Path) -> None:
    """Point `latest` at a checkpoint."""
    write_atomic(root / "latest", step_dir.name)


def set_best(root: Path, step_dir: Path) -> None:
    """Point `best` at a checkpoint."""
    write_atomic(root / "best", step_dir.name)


def keep(root: Path, best: int | None, reached: dict[str, int], keep_last: int, good: int | None = None) -> None:
    """After a save or an evaluation: update the names, and remove checkpoints that nothing holds.

    best: the step of the best checkpoint; good: that of the last one inside the envelope. Their names are written again
    each time, as are those in `reached`: a kill may have prevented it.
    """
    if best is not None and of_step(root, best).is_dir():
        set_best(root, of_step(root, best))
    mark(root, reached)
    if good is not None:
        write_atomic(root / "good", of_step(root, good).name)
    retain(root, keep_last)


def mark(root: Path, reached: dict[str, int]) -> None:
    """Point `sparsity=0.3` at the checkpoint that reached it."""
    for value, step in reached.items():
        if (root / f"step-{step:08d}").is_dir():
            write_atomic(root / f"{REACHED}{value}", f"step-{step:08d}")


def of_step(root: Path, step: int) -> Path:
    """The directory of a step's checkpoint."""
    return root / f"step-{step:08d}"


def undo(root: Path, step_dir: Path) -> None:
    """Make that checkpoint `latest`, and remove later ones, first the names that point at them."""
    set_latest(root, step_dir)
    _remove(root, lambda step: step > step_of(step_dir.name))


def _remove(root: Path, gone: Callable[[int], bool]) -> None:
    """The checkpoints of some steps, first the names that point at them."""
    for name, target in _names(root).items():
        if gone(step_of(target)):
            name.unlink()
    for folder in list(_folders(root)):
        if gone(step_of(folder.name)):
            shutil.rmtree(folder, ignore_errors=True)


def remove_passed_over(root: Path, step: int) -> None:
    """Before the checkpoint of `step` becomes `latest`: remove those after the one that is, from which this run has
    come, and the names that point at them."""
    if (latest := _latest(root)) is not None:
        _remove(root, lambda other: step_of(latest) < other != step)


def retain(root: Path, keep_last: int) -> None:
    """Remove all but the newest `keep_last` checkpoints and those that a name points at; leftovers of interrupted
    saves, and what is later than `latest`, too."""
    if (latest := _latest(root)) is not None:
        _remove(root, lambda other: other > step_of(latest))
    kept = {s.name for s in steps(root)[-keep_last:]} | set(_names(root).values())
    for folder in list(_folders(root)):
        if folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def find_checkpoint(run: RunDir, checkpoint: str | int) -> Path:
    """The directory of "best", "last", "good", a step or "sparsity=0.3"; ValueError lists what there is."""
    if not run.config.is_file():
        raise no_run(run.path)
    root = run.checkpoints
    by_step = in_place(root)
    if not by_step:
        raise ValueError(
            f"{run.path} has no checkpoint: either none has been saved yet (train first), or pat prune, pat search or "
            "a race removed it (give the exported folder, or the best run)"
        )
    listed = ", ".join(map(str, by_step))
    if checkpoint in ("best", "last", "good"):
        pointer = root / ("latest" if checkpoint == "last" else str(checkpoint))
        if pointer.is_file():
            return _target(root, pointer)
        if checkpoint == "good":
            raise ValueError(
                f"{run.path} has no good checkpoint: it was trained without an envelope, or has not been judged by it "
                f"yet; take a step: {listed}"
            )
        if checkpoint == "best" and (read_json(run.summary) or {}).get("step") != 0:  # that run has one, evaluated
            raise ValueError(
                f"{run.path} has no best checkpoint yet, for none was evaluated: take --checkpoint last, or a step: "
                f"{listed}"
            )
        return by_step[max(by_step)]
    if str(checkpoint).startswith(REACHED):
        return _reached(run, str(checkpoint))
    if not str(checkpoint).isdigit() or int(checkpoint) not in by_step:
        raise ValueError(f"{run.path} has no checkpoint {checkpoint!r}: take best, last, good, or a step: {listed}")
    return by_step[int(checkpoint)]


def _reached(run: RunDir, name: str) -> Path:
    """What train.export_at kept as `sparsity=0.3`."""
    kept = {float(p.name.removeprefix(REACHED)): p for p in sorted(run.checkpoints.glob(f"{REACHED}*"))}
    try:
        pointer = kept[float(name.removeprefix(REACHED))]
    except (ValueError, KeyError):
        listed = ", ".join(f"{REACHED}{value:g}" for value in sorted(kept)) or "none: set train.export_at to have some"
        raise ValueError(f"{run.path} kept no checkpoint {name!r} on the way; it has {listed}") from None
    return _target(run.checkpoints, pointer)


def _target(root: Path, pointer: Path) -> Path:
    """The folder that a name points at, or what stands for it."""
    name = pointer.read_text(encoding="utf-8").strip()
    return in_place(root).get(step_of(name), root / name) if _FOLDER.fullmatch(name) else root / name
