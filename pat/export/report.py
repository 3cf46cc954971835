"""The record of an export: the content of export.json, and its figures as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from pat.checkpoint.reader import CheckpointReader
from pat.common.files import read_json
from pat.common.hashing import file_sha256
from pat.common.parameters import DTYPES
from pat.envelope import guard
from pat.export import masks
from pat.export.card import before_pruning, figures, unpruned
from pat.export.source import Stream
from pat.export.writer import Spec
from pat.run.directory import RunDir
from pat.run.provenance import versions
from pat.schema import Config
from pat.tasks import base


def export_json(
    reader: CheckpointReader,
    run: RunDir,
    config: Config,
    dtype: str,
    content: list[Spec],
    stream: Stream,
    folder: Path,
) -> dict[str, Any]:
    """What export.json holds, but for the comparison of logits: figures, files and lineage."""
    manifest, item = reader.manifest, DTYPES[dtype].itemsize
    trainer = manifest.get("trainer", {})
    files = sorted(folder.glob("model*.safetensors"))
    mask_file = folder / masks.FILE
    phases, left = manifest["phase"].values(), stream.structures
    measured_here = trainer.get("evaluated_step", manifest["step"]) == manifest["step"]  # else of an earlier step
    buffers = sum(spec.numbytes for spec in content if stream.layout.view(spec).source in reader.buffers())
    return {
        "dtype": dtype,
        "stock": left.stock,
        "loader": f"{base.build(config.task).auto_model.__name__}.from_pretrained" if left.stock else "pat.export.load",
        "structures": left.describe(),
        "before": {"parameters": stream.total, "bytes": stream.total * item + buffers},
        "after": {
            "parameters": stream.written,
            "bytes": sum(spec.numbytes for spec in content),
            "nonzero_parameters": stream.nonzero,
            "nonzero_bytes": stream.nonzero * item,
            "mask_bytes": mask_file.stat().st_size if mask_file.exists() else 0,
        },
        "prunable_parameters": stream.prunable,
        "pruned_parameters": stream.pruned,
        "sparsity": stream.pruned / stream.prunable if stream.prunable else 0.0,
        "sparsity_all_parameters": stream.pruned / stream.total,
        "mask_sha256": stream.mask_sha256,
        "weights_sha256": stream.weights.hexdigest(),
        "files": {path.name: {"sha256": file_sha256(path), "bytes": path.stat().st_size} for path in files},
        "lineage": {
            "run": config.run.name,
            "directory": run.path.name,
            "recipe": config.run.recipe,
            "seed": config.seed,
            "base_model": config.model.path,
            "base_sha256": (trainer.get("base") or {}).get("sha256"),  # of the weights that the run began with
            "data": trainer.get("data"),
            "teacher": trainer.get("teacher"),
            "config_sha256": file_sha256(run.config),
            "checkpoint": reader.dir.name,
            "step": manifest["step"],
            "num_steps": config.train.num_steps,
            "phase": min(phases, key=["dense", "soft", "hard"].index) if phases else "dense",
            "world_size": manifest["world_size"],
            "zero_stage": manifest["zero_stage"],
            "dtype": manifest["dtype"],
            "metrics": (manifest.get("metrics") or None) if measured_here else None,
            "details": trainer.get("details") if measured_here else None,
            "dense_metrics": trainer.get("dense_metrics"),
            "dense_step": trainer.get("dense_step"),
            "envelope": guard.of_checkpoint(trainer.get("envelope")),
            "versions": read_json(run.version) or {},
        },
        "config": {key: value for key, value in config.plain().items() if key != "logger"},  # for `pat evaluate`
        "export_versions": versions(),
    }


def format_report(result: dict[str, Any]) -> Table:
    """The figures of an export as a table for the terminal."""
    before, after, lineage = result["before"], result["after"], result["lineage"]
    table = Table(
        title=f"{lineage['directory']}, step {lineage['step']} ({lineage['phase']})",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("")
    pruned = bool(result["prunable_parameters"])
    if pruned:
        table.add_column("unpruned", justify="right")
    table.add_column("exported", justify="right")

    def row(label: str, whole: str, now: str) -> None:
        table.add_row(label, *([whole] if pruned else []), now)

    for name, value in figures(lineage["metrics"]):
        row(name, unpruned(lineage).get(name, ""), value)
    row("parameters", f"{before['parameters']:,}", f"{after['parameters']:,}")
    row("  that are not 0", "", f"{after['nonzero_parameters']:,}")
    for words in result["structures"]:
        row("what is left", "", words)
    if pruned:
        row("sparsity of prunable weights", "", f"{result['sparsity']:.2%}")
        row("sparsity of all weights", "", f"{result['sparsity_all_parameters']:.2%}")
    row(f"weights ({result['dtype']})", f"{before['bytes']:,} B", f"{after['bytes']:,} B")
    if result["mask_sha256"]:
        row("masks", "", f"{after['mask_bytes']:,} B")
        row("mask sha256", "", result["mask_sha256"][:16])
    row("trained weights sha256", "", result["weights_sha256"][:16])
    row("tensors reloaded, bit for bit", "", "equal")
    difference = result["max_abs_logit_diff"]
    row("largest logit difference", "", "not compared" if difference is None else f"{difference:g}")
    layer = result.get("max_layer_diff")
    if layer is not None:
        row("largest difference of a layer", "", f"{layer:.1e} of its change")
    reason = result["max_abs_logit_diff_reason"]
    notes = [before_pruning(lineage), f"logits: {reason}" if reason else "", result.get("names_reason") or ""]
    table.caption = "\n".join(filter(None, notes)) or None
    return table
