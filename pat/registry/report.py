"""The content of the registry, as tables for the terminal and as plain values."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from pat.common.text import file_size
from pat.envelope import guard
from pat.registry import gates
from pat.registry.maskdiff import Row, by_layer, by_part
from pat.registry.registry import Promotion, Version
from pat.registry.verify import Check

UNKNOWN = "not recorded"


def plain(version: Version) -> dict[str, Any]:
    """All of a version, for JSON."""
    return dataclasses.asdict(version)


def versions_table(name: str, versions: Sequence[Version]) -> Table:
    """A line each, the newest last."""
    said = "sparsity: of what could be pruned; weights: the hash of the trained ones (a gate names the stored ones)"
    table = Table(title=name, title_justify="left", caption=said, caption_justify="left")
    for head in ("version", "aliases", "sparsity", "metrics", "gate", "weights", "size", "added"):
        table.add_column(head, justify="right" if head in ("version", "sparsity", "size") else "left")
    for each in versions:
        origin, figures = each.record["lineage"], each.record["figures"]
        sparsity = origin["masks"]["sparsity"]
        table.add_row(
            str(each.number),
            ", ".join(each.aliases),
            "" if sparsity is None else f"{sparsity:.1%}",
            _metrics(figures["metrics"]),
            gates.word(each.record["evidence"].get("gate")) or "none",
            (origin["weights"]["trained_sha256"] or origin["weights"]["files_sha256"])[:12],
            file_size(figures["bytes"]),
            f"{_when(each.added_s)} by {each.added_by}",
        )
    return table


def history_table(history: Sequence[Promotion]) -> Table:
    """All moves of aliases, the newest last."""
    table = Table(title="moves of aliases", title_justify="left")
    for head in ("alias", "", "from", "to", "gate", "when", "who", "reason"):
        table.add_column(head)
    for each in history:
        table.add_row(each.alias, each.kind, str(each.before or "none"), str(each.after or "none"), each.gate,
                      _when(each.when_s), each.who, each.reason)  # fmt: skip
    return table


def version_table(version: Version) -> Table:
    """The whole record of a version, one fact per line."""
    origin, figures, evidence = (version.record[key] for key in ("lineage", "figures", "evidence"))
    title = f"{version.name} version {version.number}"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # hashes and names of runs, whole
    base, data, config, code = origin["base_model"], origin["data"], origin["config"], origin["code"]
    run = {key: value for key, value in origin["run"].items() if value is not None}
    samples = ", ".join(f"{key} ({count:,} samples)" for key, count in data["samples"] or [])
    rows: list[tuple[str, Any]] = [
        ("aliases", ", ".join(version.aliases) or "none"),
        ("added", f"{_when(version.added_s)} by {version.added_by}"),
        ("base model", base["path"]),
        ("  weights sha256", base["sha256"]),
        ("data", data["source"]),
        ("  samples", samples),
        ("recipe", config["recipe"]),
        ("config sha256", config["sha256"]),
        ("seed", config["seed"]),
        ("run", ", ".join(f"{key} {value}" for key, value in run.items())),
        ("code", _versions(code["trained"])),
        ("  of the export", _versions(code["exported"])),
        ("masks sha256", origin["masks"]["sha256"]),
        ("sparsity", None if origin["masks"]["sparsity"] is None else f"{origin['masks']['sparsity']:.2%}"),
        ("trained weights sha256", origin["weights"]["trained_sha256"]),
        ("stored weights sha256", origin["weights"]["stored_sha256"]),
        ("weight files sha256", origin["weights"]["files_sha256"]),
        ("files sha256", version.variant_sha256),
        ("size", f"{file_size(figures['bytes'])}, {figures['dtype'] or UNKNOWN}"),
        ("metrics", _metrics(figures["metrics"])),
        *((f"{name} file", _entries(content)) for name, content in evidence.items() if name != "gate"),
        ("gate", gates.word(evidence.get("gate")) or "none"),
    ]
    if led := origin.get("envelope"):  # versions that were added by an older pat have none
        rows.append(("envelope in training", guard.in_words(led).removeprefix("envelope: ")))
    for label, value in rows:
        table.add_row(label, UNKNOWN if value in (None, "") else str(value))
    return table


def diff_blocks(a: Version, b: Version, rows: Sequence[Row], every: bool) -> Iterator[Table | str]:
    """The difference of two versions' masks; `every` matrix, or sums only."""
    named = (f"version {a.number}", f"version {b.number}")
    if not rows:
        yield "neither version has masks: nothing was pruned"
        return
    yield _diff_table(f"{a.name}: {named[0]} and {named[1]}, by layer", by_layer(list(rows)), named)
    yield _diff_table("by matrix and structure", by_part(list(rows)), named)
    if every:
        yield _diff_table("each", rows, named)
    if len({row.units for row in rows}) == 2:
        yield "weights: what a mask removes; rows and columns that went with units count as units only"
    strange = [row.name for row in rows if not row.total]
    if strange:
        yield f"not compared, of other shapes: {', '.join(strange[:5])}{' ...' if len(strange) > 5 else ''}"


def checks_table(version: Version, checks: Sequence[Check]) -> Table:
    """The checks of `verify`."""
    table = Table(title=f"{version.name} version {version.number}", title_justify="left", show_header=False)
    for check in checks:
        table.add_row(check.name, "passed" if check.passed else "FAILED", check.said)
    return table


def outcome(version: Version, checks: Sequence[Check]) -> str:
    """What the checks of `verify` come to, in a sentence."""
    which, files = f"{version.name} version {version.number}", len(version.record["files"])
    failed = [check.name for check in checks if not check.passed]
    if not failed:
        return f"{which} is whole: its {files} files are as they were added, and all {len(checks)} checks passed"
    if "files" in failed:
        return f"{which} is damaged: its {files} files are not as they were added; add the variant again to repair it"
    return f"{which} failed {', '.join(failed)}: its {files} files are as they were added, but do not promote it"


def move(promotion: Promotion, name: str) -> str:
    """A move in a sentence."""
    return f"{promotion.alias} of {name}: version {promotion.before or 'none'} -> version {promotion.after or 'none'}"


def _diff_table(title: str, rows: Sequence[Row], named: tuple[str, str]) -> Table:
    table = Table(title=title, title_justify="left")
    heads = ("", "of", "pruned in both", f"only in {named[0]}", f"only in {named[1]}",
             *(f"kept in {each}" for each in named))  # fmt: skip
    for head in heads:
        table.add_column(head, justify="left" if head in ("", "of") else "right")
    for row in rows:
        if row.total:
            numbers = (row.both, row.only_a, row.only_b, row.kept_a, row.kept_b)
            unit = "units" if row.units else "weights"
            table.add_row(row.name, f"{row.total:,} {unit}", *(f"{each:,}" for each in numbers))
    return table


def _metrics(metrics: Mapping[str, Any] | None) -> str:
    numbers = {name: value for name, value in (metrics or {}).items() if isinstance(value, int | float)}
    return ", ".join(f"{name} {value:.4g}" for name, value in sorted(numbers.items()))


def _entries(content: Any) -> str:
    """What a JSON that came along says of itself."""
    models = content.get("models") if isinstance(content, Mapping) else None
    named = [str(one.get("folder") or one.get("name")) for one in models or [] if isinstance(one, Mapping)]
    return f"kept, of {', '.join(named)}" if named else "kept"


def _versions(versions: Mapping[str, str] | None) -> str | None:
    return ", ".join(f"{key} {value}" for key, value in versions.items()) if versions else None


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
