"""Give a run to Slurm."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pat.commands._help import command_parser
from pat.run.directory import ExitCode


def main(arguments: Sequence[str]) -> int:
    """`pat submit`: composes the config once, freezes it in the run directory, and submits a job that trains it."""
    parser = command_parser(
        prog="pat submit",
        usage="pat submit --cluster NAME recipe=NAME [key=value ...] [cluster.key=value ...] [options]",
        description="Check all that a start checks (data, model, patterns, DeepSpeed's keys), freeze the run's config\n"
        "in its directory, write job.sbatch beside it and submit that. After its time limit or a preemption the job\n"
        "comes back by itself and goes on from its newest checkpoint. All keys of a cluster are described in\n"
        "conf/cluster/slurm.yaml.",
        epilog="examples:\n"
        "  pat submit --cluster slurm recipe=llama3_8b cluster.nodes=2 cluster.gpus_per_node=8 \\\n"
        "      cluster.partition=gpu cluster.time_limit_min=480 \\\n"
        '      \'cluster.setup=["module load cuda","source ~/venv/bin/activate"]\'\n'
        "  pat submit --cluster mine --config-dir conf recipe=llama3_8b run.dir=/shared/first --dry-run\n"
        "  pat submit --cluster mine --config-dir conf -m recipe=llama3_8b seed=0,1,2      a job each\n"
        "  sbatch /shared/first/job.sbatch                     the same run again, from its folder\n",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="keys as in `pat train`, and cluster.key=value"
    )
    parser.add_argument("--cluster", required=True, metavar="NAME", help="conf/cluster/NAME.yaml, or a path")
    parser.add_argument("--recipe", metavar="NAME", help="the same as recipe=NAME")
    parser.add_argument("--dry-run", action="store_true", help="check, print the job script, and submit nothing")
    parser.add_argument(
        "--unchecked", action="store_true", help="do not read model and data first: they are on the nodes only"
    )
    parser.add_argument("--config-dir", "-cd", metavar="DIR", help="more groups, recipes and clusters")
    parser.add_argument("--multirun", "-m", action="store_true", help="one job per combination: seed=0,1")
    options = parser.parse_intermixed_args(arguments)
    from pat.config import cluster as clusters
    from pat.config.compose import compose
    from pat.launch import slurm

    of_cluster, overrides = clusters.split(options.overrides)
    cluster = clusters.load(options.cluster, of_cluster, options.config_dir)
    ranks = cluster.node_range[1] * cluster.ranks
    for override in overrides:
        if override.startswith("engine.world_size=") and override != f"engine.world_size={ranks}":
            raise ValueError(
                f"{override}, but the job has {ranks} ranks (cluster.nodes x cluster.ranks_per_node): leave it out"
            )
    overrides += [f"recipe={options.recipe}"] if options.recipe else []
    overrides += ["--config-dir", options.config_dir] if options.config_dir else []
    overrides += ["--multirun"] if options.multirun else []

    folders = [each for each in overrides if each.startswith("run.dir=")]  # the last one counts
    if options.multirun and folders and not any(mark in folders[-1] for mark in (",", "${")):
        raise ValueError(
            f"{folders[-1]} would be the folder of every job: leave it out, or use `pat sweep --cluster NAME --out DIR`"
        )

    def use(config: Any) -> int:
        from pat.training import preflight  # heavy
        from pat.training.start_summary import start_summary

        config = slurm.fit_ranks(config, cluster)
        if not options.unchecked:
            checked = preflight.prepare(config, Path(config.run.dir), here=False)
            print(start_summary(config, checked, here=False), file=sys.stderr)  # stdout is the script's
        if options.dry_run:
            print(slurm.script(config, cluster), end="")
            return ExitCode.DONE
        if cluster.offline:
            preflight.fetch(config)
        job = slurm.submit(config, cluster)
        run = shlex.quote(config.run.dir)
        print(f"job {job} is submitted: pat status {run}; pat logs {run} --follow; sbatch {run}/job.sbatch repeats it")
        return ExitCode.DONE

    return compose(overrides, use)
