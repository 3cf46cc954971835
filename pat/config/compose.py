"""From the command line to one frozen config: Hydra's composition, with errors that a user can act on."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pat.common import scan
from pat.common.keys import structured
from pat.config import auto, command_line
from pat.config.errors import explain
from pat.config.frozen import ELASTIC, is_one_of, take_files_in, to_config
from pat.config.hostfile import take_world_size
from pat.config.places import conf_dir, options
from pat.config.task_keys import config_model
from pat.config.validate import validate
from pat.pruning import registry
from pat.run.directory import ExitCode
from pat.schema import ENDINGS, FILES, Config

PATHS = (
    ("run", "dir"), ("model", "path"), ("model", "tokenizer"), ("distill", "teacher"), ("distill", "cache"),
    ("engine", "hostfile"),
)  # fmt: skip

ANY_STEPS = 1_000  # for commands that make none


def compose(
    arguments: Sequence[str],
    use: Callable[[Config], int],
    guarded: bool = True,
    data_is_read: bool = True,
    steps_are_made: bool = True,
    left_open: set[str] | None = None,
) -> int:
    """Hydra's command line: composes the config (with `-m` each of several) and calls `use` with it.

    guarded=False: the envelope need not be able to lead a ramp, because another command judges by it.
    data_is_read=False: the data may be left open. steps_are_made=False: their number may be; `left_open` gets the key
    then. Returns the first exit code that is not 0. Raises ValueError, in one sentence, for what cannot be composed.
    """
    _register()
    _check_names(arguments)
    codes: list[int] = []
    errors: list[ValueError | OSError] = []

    def task(cfg: DictConfig) -> None:
        steps_given = True
        try:
            if not data_is_read and OmegaConf.is_missing(cfg.data, "source"):
                cfg.data.source = FILES[0]
            if not steps_are_made and OmegaConf.is_missing(cfg.train, "num_steps"):
                cfg.train.num_steps, steps_given = ANY_STEPS, False
                if left_open is not None:
                    left_open.add("train.num_steps")
            code = use(finish(cfg, list(HydraConfig.get().overrides.task), guarded))
        except (ValueError, OSError) as error:  # kept from Hydra, which would print a notice of its own
            errors.append(error if steps_given else _assumed(error))
            code = ExitCode.BAD_INPUT if isinstance(error, ValueError) else ExitCode.ERROR
        codes.append(code)
        if code in (ExitCode.PREEMPTED, ExitCode.INTERRUPTED):
            raise SystemExit(code)  # it would be printed for every member of a sweep

    main = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)
    try:
        with _hydra_process(command_line.for_hydra(arguments)):
            main()
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ValueError(explain(error)) from error
    except RecursionError as error:
        raise ValueError(
            "a recipe builds on itself without end: in its defaults name another as `- NAME`, not as `- /recipe: NAME`"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{_not_text(arguments)} is not text in UTF-8: {error.reason}") from error
    for error in errors:
        raise error
    return next((code for code in codes if code), 0)


def _assumed(error: ValueError | OSError) -> ValueError | OSError:
    """With where a number of steps comes from that nobody has given."""
    if not re.search(rf"\b({ANY_STEPS}|{ANY_STEPS - 1}|{ANY_STEPS:,})\b", str(error)):
        return error
    return ValueError(f"{error} (train.num_steps is open, and {ANY_STEPS:,} were assumed: give it)")


def finish(cfg: DictConfig, overrides: Sequence[str], guarded: bool = True) -> Config:
    """A composed config as a validated `Config`; ValueError for missing values and for what does not fit."""
    missing = OmegaConf.missing_keys(cfg)
    if missing:
        missing |= {"model.path"} if cfg.model.path is None and cfg.model.init == "pretrained" else set()
        chosen = any(override.lstrip("+").startswith("recipe=") for override in overrides)
        hint = "" if chosen else "; recipe=NAME gives them all, `pat train --help` lists the recipes"
        train = None if OmegaConf.is_missing(cfg.data, "train") else cfg.data.train
        source = ENDINGS.get(Path(train).suffix.lower()) if isinstance(train, str) else None
        if source and "data.source" in missing:
            hint = f"; for {train} data.source={source}{hint}"
        raise ValueError(f"no value for {', '.join(map(_how_to_choose, sorted(missing)))}{hint}")
    given = command_line.given_keys(overrides)
    content: Any = OmegaConf.to_container(cfg, resolve=True)
    for name in ("run", "model", "data", "task", "train", "engine", "optim", "distill", "peft", "logger"):
        if name not in content:
            raise ValueError(f"~{name} would take a whole section away: set its keys, {name}.KEY=VALUE")
    command_line.drop_merged(content, overrides)
    command_line.take_data_group(content["data"], given)
    command_line.drop_replaced_fields(content["pruners"], given)
    _expand_home(content)
    take_files_in(content)
    auto.choose(content["pruners"], content["train"]["num_steps"])
    auto.choose_trainable(content)
    runtime = HydraConfig.get().runtime
    folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file"]
    own_rate = auto.has_own_rate(runtime.choices.get("recipe"), folders)
    auto.keep_given_rate(content["optim"], given, own_rate or content["peft"]["r"] is not None)
    config = take_world_size(to_config(content), overrides)
    validate(config, given, guarded)
    command_line.check_replaced_files(content["data"], given)
    return config


def _expand_home(content: dict[str, Any]) -> None:
    """~ is the home directory, as in a shell, which leaves it alone behind `key=`."""
    for section, key in PATHS:
        value = content[section][key]
        if isinstance(value, str) and value.startswith("~"):
            content[section][key] = os.path.expanduser(value)


def run_name(overrides: Sequence[str], recipe: str | None, sweep: bool) -> str:
    """The name of the folder that run.dir gives. Else from the recipe and the overrides that change the result: the
    same command finds its run, and members of a sweep differ."""
    folders = [value for key, _, value in (override.partition("=") for override in overrides) if key == "run.dir"]
    if folders and not sweep and "$" not in folders[-1] and (name := Path(folders[-1].strip("'\"")).name):
        return name
    kept = []
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        always = key in ("recipe", "run.name", "run.dir", "run.resume") or key.startswith("logger")
        if not always and (sweep or not (key == "engine" or is_one_of(key, ELASTIC))):
            kept.append(override)
    words = [recipe or "train", *sorted(kept)]
    name = ",".join(re.sub(r"[^\w.=+~-]+", "_", part.replace("pruners.", "")) for part in words)
    if len(name.encode()) > 180:
        name = name.encode()[:160].decode(errors="ignore") + "-" + hashlib.sha256(name.encode()).hexdigest()[:12]
    return name


def _how_to_choose(key: str) -> str:
    how = {
        "task.name": f"task={' or task='.join(scan.declared('pat.tasks'))}",
        "model.path": "a folder, or a name on the Hugging Face hub",
        "data.source": f"{', '.join(FILES)} with data.train=FILE, or the name of a data set",
        "train.num_steps": "steps of train.global_batch_size samples each; 80 to 1,000 were measured",
    }
    return f"{key} ({how[key]})" if key in how else key


def _own_folders(arguments: Sequence[str]) -> list[Path]:
    """Those of --config-dir."""
    after = [value for flag, value in zip(arguments, arguments[1:], strict=False) if flag in ("--config-dir", "-cd")]
    return [Path(each) for each in (*after, *(a[13:] for a in arguments if a.startswith("--config-dir=")))]


def _check_names(arguments: Sequence[str]) -> None:
    """ValueError for a file of --config-dir that Hydra would pass over, as pat has one of that name."""
    ours = [path.relative_to(conf_dir()) for path in sorted(conf_dir().glob("*/*.yaml"))]
    names = [name for name in ours if name.parts[0] != "cluster"]  # of clusters one's own comes first
    for path in (folder / name for folder in _own_folders(arguments) for name in names):
        if path.is_file():
            raise ValueError(f"{path} has the name of a file of pat's own, which would be read: rename it")


def _not_text(arguments: Sequence[str]) -> str:
    """The config file that Hydra could not decode; it does not say which."""
    for path in (path for root in (conf_dir(), *_own_folders(arguments)) for path in sorted(root.rglob("*.yaml"))):
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return str(path)
    return "a config file"


def _register() -> None:
    """The schema and the methods as Hydra groups, and the resolver of run.name."""
    store = ConfigStore.instance()
    store.store(name="schema", node=structured(config_model()))
    for kind in registry.PACKAGES:
        for name in registry.names(kind):
            store.store(group=kind, name=name, node=registry.defaults(kind, name))
    store.store(group="schedule", name=auto.NAME, node=auto.OPEN)
    for name in set(scan.declared("pat.tasks")) - set(options("task")):
        store.store(group="task", name=name, node={"name": name})
    OmegaConf.register_new_resolver("pat.run_name", _resolve_run_name, replace=True)


def _resolve_run_name() -> str:
    cfg = HydraConfig.get()
    return run_name(list(cfg.overrides.task), cfg.runtime.choices.get("recipe"), cfg.mode == RunMode.MULTIRUN)


@contextlib.contextmanager
def _hydra_process(arguments: Sequence[str]) -> Iterator[None]:
    """Hydra reads sys.argv and, unless told otherwise, prints errors itself and exits with 1."""
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [argv[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR")
        if full_error is not None:
            os.environ["HYDRA_FULL_ERROR"] = full_error
