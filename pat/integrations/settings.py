"""The settings of a pruner in somebody else's trainer: conf/'s `pruners`, with the same names, types and errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pat.common.yaml_files import read_yaml
from pat.config.frozen import to_config
from pat.config.validate import pruner_problems
from pat.pruning.weights.matrices import Matrices
from pat.schema import ANOTHER_TRAINERS, Config

KEYS = ("pruners", "seed", "kernels", "keep_last")
KEEP_LAST = 2  # states of the pruner in one folder, by default


@dataclass(frozen=True)
class Settings:
    """What the user gave, with the types of `pat.schema`."""

    content: Mapping[str, Any]

    @staticmethod
    def read(given: Mapping[str, Any] | str | Path) -> Settings:
        """From a mapping, or a YAML file of one: {pruners: {NAME: {...}}, seed: 0, kernels: auto, keep_last: 2}."""
        where = "the settings"
        if not isinstance(given, Mapping):
            where = str(given)
            try:
                given = read_yaml(Path(where))
            except (OSError, ValueError) as error:
                raise ValueError(f"cannot read the pruner's settings in {where}: {error}") from error
        pruners = given.get("pruners") if isinstance(given, Mapping) else None
        if not isinstance(given, Mapping) or not isinstance(pruners, Mapping) or not pruners:
            raise ValueError(f"{where} must have `pruners`: a mapping of named pruners, as in conf/config.yaml")
        unknown = [str(key) for key in given if key not in KEYS]
        if "defaults" in unknown:
            raise ValueError(f"{where} has `defaults`, which only recipes have: name each method, criterion: movement")
        if unknown:
            raise ValueError(f"{where} has {', '.join(unknown)}; allowed: {', '.join(KEYS)}")
        for name, pruner in pruners.items():
            for key in ("budget", "schedule"):
                if isinstance(pruner, Mapping) and not pruner.get(key):
                    raise ValueError(f"no value for pruners.{name}.{key}: see conf/config.yaml")
        keep_last = given.get("keep_last", KEEP_LAST)
        if keep_last is not None and (type(keep_last) is not int or keep_last < 1):
            raise ValueError(f"keep_last is {keep_last!r}; allowed: 1 or more states of the pruner, or null for all")
        settings = Settings(given)
        settings.config()  # raises for keys and types that do not exist
        return settings

    def config(self, num_steps: int | None = None, **facts: Any) -> Config:
        """The typed config of a run of `num_steps` optimizer steps; `facts`: sections of what the trainer decides.

        Without `num_steps` only keys and types are checked, with it also that a pruner's settings fit together.
        """
        base: dict[str, Any] = {
            "seed": self.content.get("seed", 0),
            "run": {"name": ANOTHER_TRAINERS, "dir": "."},
            "data": {"source": ANOTHER_TRAINERS, "max_length": 1},
            "task": {"name": ANOTHER_TRAINERS},
            "train": {"num_steps": num_steps or 1, "global_batch_size": 1},
            "engine": {"kernels": self.content.get("kernels", "auto")},
            "optim": {"lr": 1.0},
            "pruners": self.content["pruners"],
        }
        for section, values in facts.items():
            base[section] = base.get(section, {}) | values
        config = to_config(base)
        if config.engine.kernels not in ("auto", "compile", "eager"):
            raise ValueError(f"kernels is {config.engine.kernels!r}; allowed: auto, compile, eager")
        if num_steps is not None:
            for name in config.pruners:
                for problem in pruner_problems(config, name):
                    raise ValueError(problem)
        return config

    @property
    def keep_last(self) -> int | None:
        """How many states of the pruner one folder keeps, the newest; None: all."""
        return self.content.get("keep_last", KEEP_LAST)

    def owners(self, matrices: Matrices) -> dict[str, str]:
        """The weight pruner of each parameter, of those whose patterns take it."""
        pruners = self.config().pruners
        return {
            param: name
            for name, pruner in pruners.items()
            if not pruner.structures
            for param in matrices.take(pruner.params, pruner.exclude)
        }
