"""Proof 4 on ranks: what a checkpoint restores on another ZeRO stage or number of ranks, bit for bit.

save FOLDER                 train on each layout, save on the way; a digest of every piece of state, the loss at the
                            end; and the losses of three seeds without pruning
load FOLDER REACH [TO]      load each of those checkpoints on the REACH layouts after its own and digest again; the soft
                            ones, in which everything may still change, are trained to the end; then save into TO
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pat.checkpoint import store
from pat.checkpoint.reader import CheckpointReader
from tests.distributed.harness import STEPS, Trained, build, digest, discard, main, make_config
from tests.distributed.layouts import layouts

LAYOUTS = layouts("zero0", "zero1", "zero2", "zero3", "zero3 in sub-groups")
POINTS = {"dense": 1, "soft": 5, "hard": 10}
FROZEN = ["model.layers.*", "model.norm.*"]  # the embedding does not train


def make(layout: str) -> Trained:
    """The tiny model on a layout, with a frozen parameter."""
    return build(make_config("movement", optim__trainable=FROZEN, **LAYOUTS[layout]))


def save(folder: Path) -> dict[str, Any]:
    """{layout: {point: digest}} of what was saved."""
    said: dict[str, Any] = {}
    for layout in LAYOUTS:
        trained, at = make(layout), 0
        for point, step in POINTS.items():
            trained.run(at, step)
            at = step
            store.save(trained.engine, trained.pruner, folder / layout / point, step, {}, {})
            said.setdefault(layout, {})[point] = digest(trained)
        trained.run(at, STEPS)
        said[layout]["loss"] = trained.held_out_loss()
        discard(trained)
    losses = plain_losses()
    return said | {"spread": max(losses) - min(losses)}


def plain_losses() -> list[float]:
    """Held-out losses of plain DeepSpeed with three seeds of the data, after as many steps."""
    losses = []
    for seed in range(3):
        trained = build(make_config(None, seed=seed, optim__trainable=FROZEN, **LAYOUTS["zero2"]))
        trained.run(0, STEPS)
        losses.append(trained.held_out_loss())
        discard(trained)
    return losses


def following(layout: str, reach: int) -> list[str]:
    """The layouts after this one, which comes last."""
    names = list(LAYOUTS)
    return [names[(names.index(layout) + i) % len(names)] for i in range(1, reach + 1)]


def load(folder: Path, reach: int, saved: Path | None = None) -> dict[str, Any]:
    """{source layout: {point: {target layout: [digest right after the load, loss at the end]}}}."""
    said: dict[str, Any] = {}
    for source in sorted(p.name for p in folder.iterdir()):
        for point, step in POINTS.items():
            for target in following(source, reach):
                trained = make(target)
                reader = store.find(folder / source / point, trained.pruner.layout.world, print)
                assert isinstance(reader, CheckpointReader)
                store.load(trained.engine, trained.pruner, reader)
                result: list[Any] = [digest(trained)]
                if point == "soft":
                    trained.run(step, STEPS)
                    trained.pruner.check()
                    result.append(trained.held_out_loss())
                said.setdefault(source, {}).setdefault(point, {})[target] = result
                discard(trained)
    if saved:
        resave(folder, saved)
    return said


def resave(source: Path, target: Path) -> None:
    """Load each point on the layout that is next in the list, save it from there."""
    for source_layout in LAYOUTS:
        (layout,) = following(source_layout, 1)
        for point, step in POINTS.items():
            trained = make(layout)
            reader = store.find(source / source_layout / point, trained.pruner.layout.world, print)
            assert reader is not None
            store.load(trained.engine, trained.pruner, reader)
            store.save(trained.engine, trained.pruner, target / source_layout / point, step, {}, {})
            discard(trained)


def checks(args: list[str]) -> dict[str, Any]:
    """Dispatch."""
    if args[0] == "save":
        return save(Path(args[1]))
    return load(Path(args[1]), int(args[2]), *map(Path, args[3:]))


if __name__ == "__main__":
    main(checks)
