"""Where everything comes from: hashes, versions, model, data, settings that differ, and the commands to repeat it."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pat.common.text import plain
from pat.report import values
from pat.report.page import Block, Code, Facts, Heading, Section, Table, Text
from pat.report.sources import Run, Sources, Variant, settings, without_training
from pat.report.values import get, mapping, number, sequence, text
from pat.run.directory import RunDir

NAME = 100  # characters of a model or a data set in the first sentence
MANY = 60  # settings that differ which are listed


def lineage(sources: Sources) -> Section:
    """The lineage of every run and export, and the settings in which they differ."""
    blocks: list[Block] = []
    for model in sources.models:
        blocks.append(Heading(sources.label(model)))
        rows = _run(model) if isinstance(model, Run) else _variant(model)
        blocks.append(Facts([(name, value) for name, value in rows if value]))
    for gate in sources.gates:
        known = [(key, str(value)) for key, value in values.flat(mapping(gate.content, "variant")) if key]
        if known:
            blocks += [Heading("What the gate was asked about"), Facts(known)]
    blocks += _differences(sources)
    if not sources.models:
        blocks.append(Text("No run and no export is given, so there is no lineage to show."))
    return Section("lineage", "Lineage", blocks)


def commands(sources: Sources) -> Section:
    """The commands that give the same again, by the folder that their paths start in."""
    commits = {text(_versions(model), "git") for model in sources.models} - {""}
    code = [f"git checkout {shlex.quote(commit.removesuffix('-dirty'))}" for commit in sorted(commits)]
    here = str(Path.cwd())
    lines = [(here, line) for line in _of_models(sources)]
    for kind in (sources.evaluations, sources.comparisons, sources.logs, sources.profiles, sources.gates):
        for written in kind:  # a gate reads a profile
            if words := sequence(written.content, "command"):
                lines.append((text(written.content, "directory", here), shlex.join(map(str, words))))
    blocks: list[Block] = [Code("In a clone of pat, for the code", code)] if code else []
    for place, own in itertools.groupby(lines, key=lambda one: one[0]):
        caption = "In a shell, from the folder that this report was made in" if place == here else f"In {plain(place)}"
        blocks.append(Code(caption, [line for _, line in own]))
    if any(commit.endswith("-dirty") for commit in commits):
        blocks.append(Text("The checkout had been edited, so the commit alone does not give the same code."))
    return Section("commands", "Reproduce", blocks or [Text("Nothing that is given says how it was made.")])


def _of_models(sources: Sources) -> Iterator[str]:
    """Of sweeps, runs and exports."""
    made = set[Path]()
    for sweep in sources.sweeps:
        yield shlex.join(map(str, sequence(sweep.content, "command")))
    for run in sources.runs:
        yield _again(_path(run.path))
        if run.code == 0 and not any(map(run.became, sources.variants)):
            yield f"pat export {_path(run.path)} --out {_new(Path(f'{run.path.resolve().name}-export'), made)}"
    for variant in sources.variants:
        if label := text(variant.registered, "label"):
            name, _, version = label.partition(" version ")
            out = _new(Path(f"{name}-{version}"), made)
            yield f"pat registry get {shlex.quote(name)} {version} --out {out}    # bit for bit"
        elif text(variant.export, "lineage.directory"):
            yield from _of_export(sources, variant, made)


def _of_export(sources: Sources, variant: Variant, made: set[Path]) -> Iterator[str]:
    """`pat prune` removes the checkpoint that it exports, so its run is started over, too."""
    directory, step, dtype = (text(variant.export, key) for key in ("lineage.directory", "lineage.step", "dtype"))
    given = next((_path(run.path) for run in sources.runs if run.path.name == directory), None)
    known = (variant.path.parent / directory, Path(text(variant.config, "run.dir", directory)))
    run = given or next((_path(place) for place in known if RunDir(place).config.is_file()), "RUN")
    pruned = without_training(variant)
    if pruned and not given:
        yield _again(run)
    said = f"    # RUN: where the run {plain(directory)} is" if run == "RUN" else ""
    precision = f" --dtype {dtype}" if dtype else ""
    yield f"pat export {run} --out {_new(variant.path, made)} --checkpoint {step}{precision}{said}"


def _again(run: str) -> str:
    return f"pat train --frozen {run} run.resume=never    # starts {run} over"


def what(sources: Sources) -> str:
    """The subject of the report, in a sentence."""
    subject = sources.subject
    if subject is not None and subject.config:
        model = text(subject.config, "model.path") or f"a random {text(subject.config, 'model.config.model_type')}"
        how = "pruned without training" if without_training(subject) else "pruned while it was trained"
        pruned = how if subject.is_pruned else "trained, nothing pruned"
        kind = "A run" if isinstance(subject, Run) else "An export"
        return f"{kind} of {plain(values.last(model), NAME)} on {plain(_data(subject.config), NAME)}, {pruned}."
    if sources.sweeps:
        content = sources.sweeps[0].content
        return f"A sweep of {len(sequence(content, 'members'))} runs."
    for written in [*sources.comparisons, *sources.logs]:
        return f"{text(written.content, 'b', 'B')} compared with {text(written.content, 'a', 'A')}."
    return "Models and what was measured of them."


def _run(run: Run) -> Iterator[tuple[str, str]]:
    config, summary = run.config, run.summary
    yield "directory", str(run.path)
    yield from _common(config)
    yield "phase", text(summary, "phase")
    yield (
        "steps",
        f"{text(summary, 'step') or (run.lines[-1]['step'] if run.lines else 0)} of {text(config, 'train.num_steps')}",
    )
    yield (
        "ranks, ZeRO stage, dtype",
        ", ".join(filter(None, (text(summary, key) for key in ("world_size", "zero_stage", "dtype")))),
    )
    yield "teacher", text(config, "distill.teacher")
    yield from _hashes(summary)
    if run.starts:
        steps = ", ".join(text(start, "step") for start in run.starts)
        first = values.time_of(number(run.starts[0], "time"))
        yield "started", f"{first}, at step {steps}" if len(run.starts) > 1 else first
    yield "ended", values.time_of(number(run.exit, "time")) if run.exit else ""
    yield "versions", _listed(_versions(run))


def _variant(variant: Variant) -> Iterator[tuple[str, str]]:
    export, registered = variant.export, variant.registered
    yield "folder", str(variant.path)
    if registered:
        yield (
            "added to the registry",
            f"{values.time_of(number(registered, 'added_s'))} by {text(registered, 'added_by')}",
        )
        yield "aliases", ", ".join(map(str, sequence(registered, "aliases")))
        yield "files sha256", text(registered, "variant_sha256")
    yield "architecture", ", ".join(map(str, sequence(variant.model, "architectures")))
    yield from _common(variant.config)
    yield "run", text(export, "lineage.directory")
    yield "checkpoint", f"step {text(export, 'lineage.step')}, {text(export, 'lineage.phase')}" if export else ""
    yield "loaded by", text(export, "loader")
    yield from _hashes(mapping(export, "lineage"))
    yield "mask sha256", text(export, "mask_sha256")
    yield "weights sha256", text(export, "weights_sha256")
    for name, file in mapping(export, "files").items():
        yield f"{name} sha256", text(file, "sha256")
    yield "largest logit difference to the run", text(export, "max_abs_logit_diff")
    yield "versions", _listed(_versions(variant))


def _common(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if config:
        revision = text(config, "model.revision")
        yield "base model", text(config, "model.path", "random") + (f" at {revision}" if revision else "")
        yield "data", _data(config)
        if calibration := get(config, "data.calibration"):
            yield "calibration", values.setting(calibration)
        yield "recipe", text(config, "run.recipe")
        yield "seed", text(config, "seed")


def _hashes(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Of base weights, data, config, masks, weights: as far as they are recorded."""
    for key, value in content.items():
        if key.endswith("_sha256") and isinstance(value, str):
            yield key.replace("_", " "), value


def _differences(sources: Sources) -> Iterator[Block]:
    """The settings that differ between models with a config."""
    models = [model for model in sources.models if model.config]
    if len(models) < 2:
        return
    each = [settings(model.config) for model in models]
    keys = [
        key
        for key in dict.fromkeys(key for one in each for key in one)
        if len({repr(one.get(key)) for one in each}) > 1
    ]
    yield Heading("Settings that differ")
    if not keys:
        yield Text("None, but for where they ran and what they logged.")
        return
    rows = [(key, *("" if key not in one else values.setting(one[key]) for one in each)) for key in keys[:MANY]]
    yield Table("Settings that differ", ("key", *map(sources.label, models)), rows)
    if len(keys) > MANY:
        yield Text(f"and {len(keys) - MANY} more.")


def _versions(model: Run | Variant) -> dict[str, Any]:
    if isinstance(model, Run):
        return dict(model.versions) or mapping(model.summary, "versions")
    return mapping(model.export, "lineage.versions")


def _listed(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in versions.items())


def _data(config: Mapping[str, Any]) -> str:
    source, train = text(config, "data.source", "unnamed data"), get(config, "data.train")
    if source in ("json", "csv", "parquet", "text"):
        return ", ".join(map(str, train)) if isinstance(train, list) else str(train)
    subset = text(config, "data.subset")
    return f"{source}/{subset}" if subset else source


def _new(path: Path, made: set[Path]) -> str:
    """The path, or one beside it that is not taken yet, also by the commands before, which made `made`: export and
    registry write to no folder that holds something."""
    path = path if path.name else path.resolve()  # of "."
    while path.exists() or path in made:
        path = path.with_name(f"{path.name}-again")
    made.add(path)
    return _path(path)


def _path(path: Path) -> str:
    return shlex.quote(str(path))
