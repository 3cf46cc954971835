"""A cluster's settings: conf/cluster/NAME.yaml and `cluster.KEY=VALUE`, as one typed object."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pat.common.text import did_you_mean
from pat.common.yaml_files import read_yaml
from pat.config.errors import explain
from pat.config.places import conf_dir

PREFIX = "cluster."


@dataclass
class ClusterConfig:
    """What a job asks Slurm for, and how its ranks start there; conf/cluster/slurm.yaml describes each key."""

    nodes: Any = 1  # a number, or "2-4"
    ranks_per_node: int | None = None  # default: gpus_per_node
    gpus_per_node: int | None = None
    cpus_per_rank: int | None = None
    partition: str | None = None
    account: str | None = None
    time_limit_min: int | None = None
    signal_lead_s: int | None = None  # default: from the measured time of a save
    first_signal_lead_s: int = 300  # before there is one
    max_restarts: int = 100
    grace_s: int = 120
    setup: list[str] = field(default_factory=list)
    command: str = "pat"
    pyxis_image: str | None = None
    apptainer_image: str | None = None
    mounts: list[str] = field(default_factory=list)
    offline: bool = False
    extra: list[str] = field(default_factory=list)

    @property
    def ranks(self) -> int:
        """Ranks on each node: ranks_per_node or, where it is not given, gpus_per_node."""
        ranks = self.ranks_per_node or self.gpus_per_node
        assert ranks
        return ranks

    @property
    def node_range(self) -> tuple[int, int]:
        """Fewest and most nodes."""
        least, _, most = str(self.nodes).partition("-")
        return int(least), int(most or least)


def load(name: str, overrides: Sequence[str] = (), config_dir: str | None = None) -> ClusterConfig:
    """The settings of a cluster (a name, or the path of a YAML file) with `cluster.KEY=VALUE` applied; ValueError."""
    path = _find(name, config_dir)
    try:
        content = read_yaml(path) or {}
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the cluster {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a mapping of keys to values")
    known = [item.name for item in fields(ClusterConfig)]
    values = content | _parse(overrides)
    for key in values:
        if key not in known:
            raise ValueError(
                f"{PREFIX}{key} is not a key of a cluster; allowed: {', '.join(known)}{did_you_mean(key, known)}"
            )
    try:
        cluster = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ClusterConfig), values))
    except OmegaConfBaseException as error:
        raise ValueError(f"cluster: {explain(error)}") from error
    assert isinstance(cluster, ClusterConfig)
    _validate(cluster)
    return cluster


def names(config_dir: str | None = None) -> list[str]:
    """The clusters that can be named."""
    folders = [conf_dir(), *([Path(config_dir)] if config_dir else [])]
    return sorted({path.stem for folder in folders for path in (folder / "cluster").glob("*.yaml")})


def split(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """(overrides of the cluster, all others)."""
    ours = [item for item in overrides if item.lstrip("+").startswith(PREFIX)]
    return ours, [item for item in overrides if item not in ours]


def _find(name: str, config_dir: str | None) -> Path:
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    for folder in ([Path(config_dir)] if config_dir else []) + [conf_dir()]:
        if (path := folder / "cluster" / f"{name}.yaml").is_file():
            return path
    known = names(config_dir)
    raise ValueError(
        f"there is no cluster called {name!r}; allowed: {', '.join(known)}, a path, or --config-dir DIR with "
        f"DIR/cluster/NAME.yaml{did_you_mean(name, known)}"
    )


def _parse(overrides: Sequence[str]) -> dict[str, Any]:
    """Values in Hydra's syntax, so that lists and quotes are written as everywhere else."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise ValueError(explain(error)) from error
    for item in parsed:
        if item.is_sweep_override():
            raise ValueError(f"{item.input_line}: a sweep is over keys of the run, not of the cluster")
    return {item.key_or_group.removeprefix(PREFIX): item.value() for item in parsed}


def _validate(cluster: ClusterConfig) -> None:
    for key in (item.name for item in fields(cluster) if item.name not in ("nodes", "max_restarts")):
        value = getattr(cluster, key)
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise ValueError(f"{PREFIX}{key} is {value}, but must be at least 1")
    if cluster.max_restarts < 0:
        raise ValueError(f"{PREFIX}max_restarts is {cluster.max_restarts}, but must be at least 0")
    try:
        least, most = cluster.node_range
    except ValueError:
        least = most = 0
    if not 1 <= least <= most:
        raise ValueError(f'{PREFIX}nodes is {cluster.nodes!r}: give a number of nodes, or a range such as "2-4"')
    if not (cluster.ranks_per_node or cluster.gpus_per_node):
        raise ValueError(f"no value for {PREFIX}ranks_per_node: give it, or {PREFIX}gpus_per_node")
    if cluster.pyxis_image and cluster.apptainer_image:
        raise ValueError(f"{PREFIX}pyxis_image and {PREFIX}apptainer_image are both set: give one of them")
    if cluster.mounts and not (cluster.pyxis_image or cluster.apptainer_image):
        raise ValueError(f"{PREFIX}mounts would be ignored without a container: set an image, or leave it out")
    if any(re.search(r"(^|\s)(-M|--clusters?(=|\s|$))", line.strip()) for line in cluster.extra):
        raise ValueError(
            f"{PREFIX}extra names another cluster, whose jobs squeue would not find here: leave it out and set "
            "SLURM_CLUSTERS=NAME in the environment, which all of Slurm's commands read"
        )
    if wrong := next((line for line in cluster.extra if not line.strip().startswith("-")), None):
        raise ValueError(
            f"{PREFIX}extra has {wrong!r}, which sbatch would not read: give its options as --qos=high, without #SBATCH"
        )
    for line in [*cluster.setup, *cluster.extra]:
        if "\n" in line.strip():
            raise ValueError(f"{PREFIX}setup and {PREFIX}extra are lists of single lines, but one is {line!r}")
