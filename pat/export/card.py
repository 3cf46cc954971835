"""The model card (README.md) of an exported folder: where the model comes from and what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from pat.envelope import guard
from pat.schema import ANOTHER_TRAINERS, Config

MATRIX = 12  # classes up to which the confusion matrix is shown


WITHOUT = "pruned without training"


def model_card(config: Config, result: dict[str, Any]) -> str:
    """Lineage and figures as Markdown with Hugging Face's YAML head; `result` is what `export.json` holds."""
    lineage = result["lineage"]
    size = lineage["world_size"]
    theirs = config.data.source == ANOTHER_TRAINERS
    base = config.model.path or ("a model" if theirs else f"random {config.model.config.get('model_type')}")
    named = config.model.path is not None or not theirs
    title = Path(base).name if config.model.path and _is_local(base) else base
    pruned = bool(result["prunable_parameters"])
    zeros_are_stored = not result["structures"] or any(not pruner.structures for pruner in config.pruners.values())
    kinds = ["pruned", *(["sparse"] if zeros_are_stored else [])] if pruned else []
    head: dict[str, Any] = {"library_name": "transformers", "tags": [*kinds, "pat"]}
    if config.model.path and not _is_local(config.model.path):
        head["base_model"] = config.model.path
    rows = [
        *([("base model", base + (f" at {config.model.revision}" if config.model.revision else ""))] * named),
        *([("base sha256", f"`{lineage['base_sha256']}`")] if lineage.get("base_sha256") else []),
        *([] if theirs else [("data", _data(config, str))]),
        *([("calibration", str(config.data.calibration))] if config.data.calibration else []),
        ("recipe", lineage["recipe"] or "none"),
        ("run", config.run.name),
        ("config sha256", f"`{lineage['config_sha256']}`"),
        ("checkpoint", f"step {lineage['step']}, phase {lineage['phase']}"),
        (
            "trained on" if lineage["num_steps"] else "pruned on",
            f"{size} rank{'s' * (size > 1)}, ZeRO {lineage['zero_stage']}, {lineage['dtype']}",
        ),
        ("seed", str(lineage["seed"])),
        *([("mask sha256", f"`{result['mask_sha256']}`")] if pruned else []),
        ("weights sha256", f"`{result['weights_sha256']}` (effective weights, fp32)"),
        ("versions", ", ".join(f"{key} {value}" for key, value in lineage["versions"].items())),
    ]
    removed = f"{result['sparsity']:.1%} of {result['prunable_parameters']:,} prunable weights removed"
    trained = bool(lineage["num_steps"])
    zeros = (
        f"{' and pruned while it trained' if trained else ''}. {_loading(result)} "
        "`masks.safetensors` holds one bit for each prunable weight or unit (1 = kept)."
    )
    sections = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {title}: {removed if pruned else 'dense, nothing pruned'}",
        f"{title}, {_trained_on(config) if trained else WITHOUT}"
        + (zeros if pruned else ". Plain `from_pretrained` loads this folder."),
        "## Measured\n\n" + _figures(result),
        _classes(lineage.get("details")),
        _pruners(config),
        "## Lineage\n\n" + _table(("", ""), rows),
    ]
    return "\n\n".join(part for part in sections if part) + "\n"


def _loading(result: dict[str, Any]) -> str:
    """How to load the folder, and what became of the pruned weights."""
    if not result["stock"]:
        return (
            "Its layers have widths of their own (`pat_widths` in config.json): load it with `pat.export.load`; "
            "stock `from_pretrained`, and so most servers, cannot."
        )
    if result["structures"]:
        return f"It is physically smaller, and plain `from_pretrained` loads it: {'; '.join(result['structures'])}."
    return "Plain `from_pretrained` loads this folder; pruned weights are stored as zeros."


def _figures(result: dict[str, Any]) -> str:
    """The exported model's figures, and its size beside that of the whole model."""
    before, after, lineage = result["before"], result["after"], result["lineage"]
    rows = [
        *((name, unpruned(lineage).get(name, ""), value) for name, value in figures(lineage["metrics"])),
        ("sparsity of prunable weights", "0", f"{result['sparsity']:.4f}"),
        ("sparsity of all weights", "0", f"{result['sparsity_all_parameters']:.4f}"),
        ("parameters that are not 0", f"{before['parameters']:,}", f"{after['nonzero_parameters']:,}"),
        (f"bytes of weights ({result['dtype']})", f"{before['bytes']:,}", f"{after['bytes']:,}"),
    ]
    if result["prunable_parameters"]:
        said = [_table(("", "unpruned", "exported"), rows), before_pruning(lineage), _envelope(lineage)]
        return "\n\n".join(filter(None, said))
    return _table(("", "exported"), [(label, value) for label, _, value in rows])


def unpruned(lineage: dict[str, Any]) -> dict[str, str]:
    """The figures of the model that was pruned, by name, where it was not trained as well."""
    return {} if lineage["num_steps"] else dict(figures(lineage["dense_metrics"]))


def before_pruning(lineage: dict[str, Any]) -> str:
    """The metrics when pruning began, in a separate sentence where that model had trained for fewer steps; the others
    are `unpruned`."""
    then = ", ".join(f"{name} {value}" for name, value in figures(lineage["dense_metrics"]))
    if not then:
        return ""
    when = (
        f", after {lineage['dense_step']} of {lineage['num_steps']} steps" if lineage["dense_step"] is not None else ""
    )
    if not lineage["num_steps"]:
        said = "" if lineage["metrics"] else f"Before it was pruned: {then}. "  # else they stand beside the others
        return f"{said}Nothing was trained, so the difference is what pruning costs."
    return (
        f"Before pruning began{when}: {then}. "
        "For what pruning costs, compare with a run of as many steps that prunes nothing."
    )


def _envelope(lineage: dict[str, Any]) -> str:
    """What the envelope allowed, and what going further would have cost."""
    found = lineage.get("envelope")
    return f"{guard.in_words(found).replace(chr(10), '. ')}." if found else ""


def _classes(details: dict[str, Any] | None) -> str:
    """Each class's figures, and the confusion matrix where it is small enough to read."""
    if not details:
        return ""
    keys = ("precision", "recall", "f1", "samples")
    rows = [
        (name, *("-" if own[key] is None else f"{own[key]:.4g}" for key in keys))
        for name, own in details["classes"].items()
    ]
    sections = ["## By class", _table(("label", *keys), rows)]
    matrix = details.get("confusion")
    if matrix and len(matrix) <= MATRIX:
        names = list(details["classes"])
        counts = [(name, *map(str, row)) for name, row in zip(names, matrix, strict=True)]
        sections += ["Rows are labels, columns the model's answers:", _table(("", *names), counts)]
    return "\n\n".join(sections)


def _pruners(config: Config) -> str:
    """Each pruner's own settings, as they stand in the config."""
    if not config.pruners:
        return ""
    settings = {
        name: {
            key: value
            for key in ("params", "scope", "granularity", "criterion", "structures", "gate", "budget", "schedule")
            if (value := pruner.plain()[key]) and not (key == "scope" and pruner.structures)
        }
        for name, pruner in config.pruners.items()
    }
    return f"## Pruning\n\n```yaml\n{yaml.safe_dump(settings, sort_keys=False)}```"


def figures(metrics: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """(name, value) of the metrics that are one number, by name."""
    return [(name, f"{value:.4g}") for name, value in sorted((metrics or {}).items()) if isinstance(value, int | float)]


def _trained_on(config: Config) -> str:
    if config.data.source == ANOTHER_TRAINERS:
        return "fine-tuned by another trainer"
    return f"fine-tuned on {_data(config, lambda path: Path(path).name)}"


def _data(config: Config, shown: Callable[[str], str]) -> str:
    """Where the data came from; local paths as `shown` writes them."""
    source = config.data.source
    if source in ("json", "csv", "parquet", "text"):
        files = [config.data.train] if isinstance(config.data.train, str) else config.data.train
        return f"local {source} files ({', '.join(map(shown, files))})"
    if source.startswith((".", "/", "~")):
        return shown(source)
    return f"{source}/{config.data.subset}" if config.data.subset else source


def _is_local(path: str) -> bool:
    return path.count("/") != 1 or path.startswith((".", "/", "~")) or Path(path).exists()


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    """In one line, without what would end the cell."""
    return " ".join(text.split()).replace("|", "\\|")
