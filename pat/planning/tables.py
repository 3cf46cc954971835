"""A plan as people read it: a column for each layout, a line for each thing that takes memory, is sent or is
written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from pat.common.text import size_in_words

if TYPE_CHECKING:
    from pat.planning.report import Report, Row
    from pat.planning.work import Cut

CARDS = (16, 24, 32, 40, 48, 80, 141, 192)  # GB of memory of common accelerators
NONE = "none: see below"
SPARE = 0.1  # share of a card's memory that the plan leaves for unknown uses
BESIDE = 6  # layouts in one table

_Line = tuple[str, Callable[["Row"], str]]


def tables(needs: Report) -> Iterator[Table]:
    """Memory per rank; then what a step sends, a selection reads and a checkpoint takes."""
    parts = {"Memory per rank, at most": _memory(needs), "Steps, selections, checkpoints": _work(needs)}
    for title, lines in parts.items():
        for first in range(0, len(needs.rows), BESIDE):
            rows = needs.rows[first : first + BESIDE]
            table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
            table.add_column("")
            for row in rows:
                ranks = row.layout.ranks
                table.add_column(f"ZeRO {row.layout.stage}, {ranks:,} rank{'s'[: ranks > 1]}", justify="right")
            for label, cell in lines:
                table.add_row(label, *map(cell, rows))
            yield table


def _memory(needs: Report) -> list[_Line]:
    size = size_in_words
    kept, other = ("with", "without") if needs.checkpointing else ("without", "with")
    lines: list[_Line] = [
        ("weights", lambda row: size(row.memory.weights)),
        ("gradients", lambda row: size(row.memory.gradients)),
        ("optimizer state", lambda row: size(row.memory.optimizer)),
        ("pruner, while masks still move", lambda row: size(row.memory.pruner_soft)),
        ("pruner, once they are final", lambda row: size(row.memory.pruner_hard)),
        (f"activations, {kept} checkpointing (as configured)", lambda row: size(row.memory.activations)),
        (
            f"(activations, {other} checkpointing)",
            lambda row: size(row.activations.whole if needs.checkpointing else row.activations.checkpointed),
        ),
        ("buffers", lambda row: size(row.memory.reduction + max(row.memory.gathered, row.memory.step))),
    ]
    if any(row.memory.teacher for row in needs.rows):
        lines.append(("teacher", lambda row: size(row.memory.teacher)))
    if any(row.calibration.device for row in needs.rows):
        lines.append(("calibration (when there are no activations)", lambda row: size(row.calibration.device)))
    lines += [
        ("[bold]in all, while masks still move", lambda row: f"[bold]{size(row.total_soft)}"),
        ("[bold]in all, once they are final", lambda row: f"[bold]{size(row.total_hard)}"),
        (f"smallest card with {SPARE:.0%} to spare", lambda row: card(row.total_soft)),
    ]
    if any(row.calibration.host for row in needs.rows):
        lines.append(("calibration, in the memory of the host", lambda row: size(row.calibration.host)))
    if any(row.memory.host for row in needs.rows):
        lines.append(("in the memory of the host, beside it", lambda row: size(row.memory.host)))
    return lines


def card(num_bytes: float) -> str:
    """The smallest accelerator that holds that much and leaves SPARE of its memory free, such as `24 GB`."""
    fits = (gigabytes for gigabytes in CARDS if num_bytes <= (1 - SPARE) * gigabytes * 1e9)
    smallest = next(fits, None)
    return NONE if smallest is None else f"{smallest} GB"


def verdicts(needs: Report, here: int | None) -> list[str]:
    """Whether a rank of each layout fits, on which cards and on this machine's, which has `here` bytes (None: none)."""
    said = []
    for row in needs.rows:
        ranks, smallest, needed = row.layout.ranks, card(row.total_soft), size_in_words(row.total_soft)
        fits = f"fits no card of up to {CARDS[-1]} GB" if smallest == NONE else f"fits a card of {smallest} or more"
        if here is not None:
            fits += f", and {'fits' if row.total_soft <= (1 - SPARE) * here else 'does not fit'} this machine's"
            fits += f" ({size_in_words(here)})"
        said.append(f"ZeRO {row.layout.stage}, {ranks:,} rank{'s'[: ranks > 1]}: {needed} a rank at most: it {fits}.")
    return said


def advice(needs: Report) -> str | None:
    """What takes less, where one of the layouts is on no card."""
    tight = [row for row in needs.rows if card(row.total_soft) == NONE]
    if not tight:
        return None
    keys = [
        ("engine.zero_stage=3 (which shares out weights, too)", any(row.layout.stage < 3 for row in tight)),
        ("engine.offload_optimizer=true (to the host's memory)", any(_could_offload(row) for row in tight)),
        ("engine.activation_checkpointing=true", not needs.checkpointing),
        ("a smaller train.micro_batch_size", any(row.micro_batch > 1 for row in tight)),
        ("more ranks", any(row.layout.stage > 0 for row in tight)),
        ("peft=lora with a recipe of structures", needs.shapes.trained == needs.shapes.every),
    ]
    return f"No card holds a rank there. What takes less: {', '.join(key for key, helps in keys if helps)}."


def notes(needs: Report) -> list[str]:
    """A sentence for each number of ranks that cannot share the global batch; `pat train` refuses it."""
    said = (
        f"{row.layout.ranks:,} ranks cannot share train.global_batch_size={needs.global_batch} in micro-batches of "
        f"{row.micro_batch}: planned with {row.sequences:,} sequences of a step, and refused by `pat train`."
        for row in needs.rows
        if row.sequences != needs.global_batch
    )
    return list(dict.fromkeys(said))


def _could_offload(row: Row) -> bool:
    return row.layout.stage > 0 and not row.layout.offload


def _work(needs: Report) -> list[_Line]:
    size = size_in_words
    lines: list[_Line] = [
        ("sequences of a forward (micro-batch)", lambda row: f"{row.micro_batch}"),
        ("forwards of a step (accumulation)", lambda row: f"{row.layout.accumulation}"),
        ("sequences of a step", lambda row: f"{row.sequences:,}"),
        ("sent by a rank in a step", lambda row: size(row.bytes_per_step)),
        ("all-reduced at a selection of masks", lambda row: size(row.selection_bytes)),
        ("read by a rank at a selection", lambda row: size(row.selection_read_bytes)),
        ("checkpoint, while masks still move", lambda row: size(row.checkpoint.soft)),
        ("checkpoint, once they are final", lambda row: size(row.checkpoint.hard)),
    ]
    lines += _operations(needs)
    if disk := needs.disk_gb_per_s:
        pace = disk * 1e9
        lines += [
            (f"seconds of it at {disk:g} GB/s, while masks move", lambda row: f"{row.checkpoint.soft / pace:,.1f}"),
            (f"seconds of it at {disk:g} GB/s, once final", lambda row: f"{row.checkpoint.hard / pace:,.1f}"),
        ]
    return lines


def _operations(needs: Report) -> Iterator[_Line]:
    """Of a step and of a calibrated cut, and what they take at the pace of a card."""
    pace = needs.pace
    yield f"operations of a step on a rank, {needs.dtype}", lambda row: _tera(row.step_flops)
    if pace:
        yield "seconds of a step at --tflops", lambda row: f"{row.step_flops / pace.dtype:,.1f}"
    if any(row.cut_flops is None for row in needs.rows):
        return

    def cut(row: Row) -> Cut:
        assert row.cut_flops is not None, "all layouts calibrate, or none"
        return row.cut_flops

    yield f"operations of a calibrated cut: forwards, {needs.dtype}", lambda row: _tera(cut(row).forwards)
    yield "operations of a calibrated cut: matrices, fp32", lambda row: _tera(cut(row).fp32)
    if any(cut(row).fp64 for row in needs.rows):
        yield "operations of a calibrated cut: matrices, fp64", lambda row: _tera(cut(row).fp64)
    if pace:
        yield "seconds of a calibrated cut at --tflops", lambda row: f"{cut(row).seconds(pace):,.1f}"


def _tera(flops: float) -> str:
    """In 10^12."""
    return f"{flops / 1e12:,.{0 if flops >= 1e14 else 1}f} TFLOP"
