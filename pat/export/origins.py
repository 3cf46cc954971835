"""The data that a run's or an export's model was made for, and the model itself."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pat.common.files import read_json
from pat.config import frozen
from pat.config.command_line import drop_merged
from pat.config.errors import explain
from pat.config.quoting import quoted
from pat.config.validate import validate
from pat.run.directory import RunDir
from pat.schema import ANOTHER_TRAINERS, Config, DataConfig

# The keys of a config that decide on which samples, and how, a model is evaluated.
DECIDES = ("data.", "task.", "seed", "train.eval_batch_size")


def is_run(path: Path) -> bool:
    """Whether it is the directory of a run (`pat export` writes no config.yaml)."""
    return RunDir(path).config.is_file()


def config_of(path: Path) -> Config | None:
    """The config of the run that is, or made, this model; None where the folder does not say, or another trainer had
    the data."""
    if is_run(path):
        return frozen.load(RunDir(path).config)
    return config_in(read_json(path / "export.json") or {})


def config_in(said: Mapping[str, Any]) -> Config | None:
    """The same by what its export.json says."""
    config = None if said.get("config") is None else frozen.to_config(said["config"])
    return None if config is None or config.data.source == ANOTHER_TRAINERS else config


def configs(paths: Sequence[Path], overrides: Sequence[str]) -> list[Config]:
    """Each model's own config with the given keys; a folder without one takes that of the first folder that has one.

    ValueError where none has, and for a key that would be ignored.
    """
    for override in overrides:
        key = override.lstrip("+").partition("=")[0]
        if not key.startswith(DECIDES):
            group = (
                " is a group, and" if "." not in key else " would be ignored: models are evaluated by their own data,"
            )
            raise ValueError(
                f"{override}: {key}{group} without recipe=NAME only keys of data and task, seed and "
                "train.eval_batch_size can be given, such as data.source=csv"
            )
    given = {override.lstrip("+").partition("=")[0] for override in overrides}
    if "data.source" in given and "data.train" not in given:
        raise ValueError(
            "data.source is given, but data.train is still the model's own, of another source: give data.train, too; "
            "labels and their order come from it (data.eval is what is measured)"
        )
    own = [config_of(path) for path in paths]
    first = next((config for config in own if config is not None), None)
    if first is None:
        if not (paths[0] / "config.json").is_file():
            raise ValueError(
                f"{paths[0]} holds no config.json: give a run directory, or a folder such as `pat export` writes"
            )
        raise ValueError(
            f"{paths[0]} does not say which data it was made for (it has neither config.yaml nor an export.json with "
            "one): give recipe=NAME, or an export or a run beside it"
        )
    return [_with(first if config is None else config, overrides) for config in own]


def one_config(paths: Sequence[Path], overrides: Sequence[str]) -> Config:
    """The config by which all are evaluated. ValueError where they would be on different samples."""
    own = configs(paths, overrides)
    if differing := _differing(own):
        key, values = next(iter(differing.items()))
        raise ValueError(
            f"the two were evaluated on different samples, so they cannot be paired: {differing_data(own)}; give "
            f"such a key for both, as in {key}={_for_both(key, values)}, or recipe=NAME, or --mix"
        )
    return own[0]


def _for_both(key: str, values: Sequence[str]) -> str:
    """The one of two models' values by which neither is evaluated on rows that it was trained on, where one is."""
    if key == "data.eval_fraction":
        return min(values, key=float)
    return max(values, key=lambda one: one != "null")


def differing_data(configs: Sequence[Config]) -> str | None:
    """The keys by which these configs are evaluated on different samples, with their values."""
    return ", ".join(f"{key} is {' and '.join(each)}" for key, each in _differing(configs).items()) or None


OF_TRAINING = (  # keys of data and task that change no sample of an evaluation, and none of its figures
    "data.cache_dir", "data.num_proc", "data.max_train_samples", "data.calibration", "task.loss_chunk_tokens",
    "task.class_weights",
)  # fmt: skip


def _differing(configs: Sequence[Config]) -> dict[str, list[str]]:
    """The values of these keys."""
    flat = [
        {
            f"{section}.{key}": value
            for section in ("data", "task")
            for key, value in getattr(c, section).plain().items()
        }
        | ({"seed": c.seed} if any(_generated(each.data) for each in configs) else {})
        for c in configs
    ]
    values = {key: list(dict.fromkeys(_typed(one[key]) for one in flat)) for key in flat[0] if key not in OF_TRAINING}
    return {key: each for key, each in values.items() if len(each) > 1}


def _typed(value: Any) -> str:
    """As a key's value is typed."""
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_typed(each)}' for key, each in value.items())}}}"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value) if re.fullmatch(r"[\w./-]+", str(value)) else quoted(value)


def _generated(data: DataConfig) -> bool:
    """Whether the seed makes texts of it; nothing else of an evaluation depends on the seed."""
    return "generated" in (data.source, *(one.get("source") for one in (data.sources or {}).values()))


@contextlib.contextmanager
def model_folder(path: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """(a Hugging Face folder of the model, what export.json says): of a run, its best checkpoint, exported for as long
    as it is needed, or the last one where none is the best yet."""
    if not is_run(path):
        yield path, read_json(path / "export.json") or {}
        return
    from pat.export.export import export_run

    checkpoint = "best" if (RunDir(path).checkpoints / "best").is_file() else "last"
    with tempfile.TemporaryDirectory(prefix="pat-evaluate-") as folder:
        yield Path(folder), export_run(path, folder, checkpoint, verify="weights")


def _with(config: Config, overrides: Sequence[str]) -> Config:
    """The config with these keys."""
    if not overrides:
        return config
    try:
        changes = OmegaConf.create()
        for one in OverridesParser.create().parse_overrides([override.lstrip("+") for override in overrides]):
            if one.is_sweep_override():
                raise ValueError(f"{one.input_line} names several values: give one, or a list in [brackets]")
            OmegaConf.update(changes, one.key_or_group, one.value())
        merged: Any = OmegaConf.to_container(OmegaConf.merge(config.plain(), changes))
        drop_merged(merged, overrides)
    except (OmegaConfBaseException, OverrideParseException) as error:
        raise ValueError(explain(error)) from error
    changed = frozen.to_config(merged)
    validate(changed)
    return changed
