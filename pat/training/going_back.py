"""Back to the last state that was inside the envelope, and on from there."""

from __future__ import annotations

from pat.checkpoint import retention, store
from pat.envelope import guard
from pat.training.state import Training
from pat.zero.checkpoint_files import CheckpointError


def go_back(training: Training) -> None:
    """To the last good checkpoint in full, as a resume would; there everything becomes permanent. Collective.

    Every write leaves the run in a state it was in before: at the good checkpoint, from which it would come here again,
    or, after the last write, at the good checkpoint with its schedules stopped. So a kill changes no bit.
    """
    progress, tracker, root, world = training.progress, training.tracker, training.run.checkpoints, training.world
    record, undone = progress.envelope.copy(), progress.step
    assert record.good is not None
    folder = retention.of_step(root, record.good["step"])
    try:
        reader = store.open_whole(folder, world)
    except CheckpointError as error:
        raise store.NoneWhole(
            f"the envelope asks to go back from step {undone} to the last good checkpoint, which is not whole "
            f"({error}): export another one, or start anew with run.resume=never"
        ) from error
    if world.rank == 0:
        retention.undo(root, folder)
    world.barrier()
    trainer = reader.manifest["trainer"]
    progress.restore(trainer)
    store.load(training.engine, training.pruner, reader)
    record.gone_back(undone)
    progress.envelope.restore(record.as_dict())
    progress.clock.stop(progress.step)
    training.objective.logged()  # of steps that are undone
    training.watchdog.beat()
    tracker.rewind(progress.step, progress.logged_bytes, training.pruner.cuts_from(progress.step))
    tracker.say(f"went back from step {undone} to step {progress.step}; {guard.in_words(guard.in_short(record))}")
    tracker.log(
        {"envelope/went_back_from": undone, "envelope/allowed_sparsity": record.good["sparsity"]}, progress.step
    )
    progress.logged_bytes = tracker.logged_bytes
    if world.rank == 0:
        store.note(root, progress.step, progress.as_dict(), progress.metrics or {})
    world.barrier()
