"""Many runs of one recipe, with a table and a picture of their results."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pat.commands._help import RUN_EXIT_CODES, command_parser
from pat.launch.environment import rank_environment
from pat.run.directory import ExitCode

EXAMPLES = """\
examples:
  pat sweep recipe=parity pruners.weights.budget.sparsity=0.5,0.8 seed=0,1
  pat sweep recipe=reviews pruners.weights.criterion.name=magnitude,movement seed=0,1,2 --jobs 2 --y accuracy
  pat sweep recipe=reviews_narrow pruners.narrow.budget.keep.ffn=384,768,1152 --x latency --out sweeps/widths
  pat sweep --cluster slurm cluster.gpus_per_node=8 recipe=llama3_8b seed=0,1 --out /shared/sweep     a job each
  pat sweep recipe=reviews_narrow pruners.narrow.gate.name=taylor,fisher optim.lr=1e-4,3e-4 --race 150
  pat sweep --cluster slurm cluster.gpus_per_node=8 recipe=llama3_8b optim.lr=1e-5,3e-5 --race 500 --out /shared/race
  pat sweep recipe=encoder ... --race 60 --candidate optim.lr=1e-4 --candidate 'optim.lr=3e-4 optim.lr_schedule=per_cut'
  ... --continue                          the same command again: runs what is missing or has failed

DIR gets sweep.json (members, exit codes, results, points), pareto.png, logs/ and a run directory for each member; of a
race race.json, and checkpoints of the winner only.
Ctrl-C, SIGTERM and SIGUSR1 reach every member: it saves and leaves, and --continue goes on from there. Jobs of a
cluster are left in its queue (scancel ends them), and --continue watches them again.

"""


def main(arguments: Sequence[str]) -> int:
    """`pat sweep`."""
    parser = command_parser(
        prog="pat sweep",
        usage="pat sweep recipe=NAME key=a,b,c [key=value ...] [options]",
        description="Run every combination of the values given, each as a `pat train` of its own, and compare them.\n"
        "Values are swept as Hydra's multirun does: a,b,c or range(0,5) or choice(a,b).",
        epilog=EXAMPLES + RUN_EXIT_CODES,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=a,b", help="a key to sweep or to change")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at once (default: 1; on a cluster: all)")
    parser.add_argument(
        "--race", type=int, metavar="STEP", help="stop all runs at that step, and finish only the best (docs/search.md)"
    )
    parser.add_argument(
        "--candidate",
        action="append",
        default=[],
        metavar="KEYS",
        help="keys of a run, in place of all combinations of values; once for each run",
    )
    parser.add_argument("--cluster", metavar="NAME", help="each run is a Slurm job, as in `pat submit --cluster NAME`")
    parser.add_argument("--continue", dest="go_on", action="store_true", help="run what is missing or has failed")
    parser.add_argument(
        "--x",
        choices=("sparsity", "parameters", "latency"),
        default="sparsity",
        help="the picture's x-axis (default: %(default)s)",
    )
    parser.add_argument("--y", metavar="METRIC", help="the picture's y-axis (default: the metric of the task)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write (default: sweeps/NAME, named by the command)"
    )
    parser.add_argument("--config-dir", metavar="DIR", help="more groups and recipes: DIR/recipe/NAME.yaml")
    parser.add_argument(
        "--dry-run", action="store_true", help="check and list the runs (with --cluster also a job's script), and stop"
    )
    parser.add_argument(
        "--unchecked",
        action="store_true",
        help="with --cluster: do not read model and data first, as with `pat submit --unchecked`",
    )
    options = parser.parse_intermixed_args(arguments)
    if options.jobs is not None and options.jobs < 1:
        raise ValueError(f"--jobs {options.jobs}: give 1 or more")
    if options.race is not None and options.x != "sparsity":
        raise ValueError("--race draws no picture: leave --x out")
    if options.unchecked and (not options.cluster or options.race is not None):
        raise ValueError("--unchecked is for jobs of a cluster (--cluster), and a race reads its model: leave it out")
    if rank_environment():
        raise ValueError("a sweep starts its runs' ranks itself: call it from a plain shell, not under a launcher")
    from pat.config import cluster as clusters
    from pat.sweeps import results
    from pat.sweeps.members import members_of, sweep_name
    from pat.sweeps.sweep import Sweep

    of_cluster, overrides = clusters.split(options.overrides)
    if of_cluster and not options.cluster:
        raise ValueError(f"{of_cluster[0]} would be ignored without --cluster NAME: give it, or leave the key out")
    cluster = clusters.load(options.cluster, of_cluster, options.config_dir) if options.cluster else None
    out = (options.out or Path("sweeps") / sweep_name(overrides)).absolute()
    members = members_of(overrides, out, options.config_dir, options.candidate)
    metric = options.y or (members[0].config.train.best_metric if options.race is not None else None)
    if cluster and options.x == "latency":
        raise ValueError("--x latency would measure this machine, not the cluster: `pat profile` measures it there")
    x, y = results.X_AXES[options.x], results.y_axis(members, metric)
    if options.dry_run and options.race is None:
        return _dry_run(out, members, cluster, options.unchecked)
    jobs = options.jobs or (len(members) if cluster else 1)
    if options.race is not None:
        return _race(out, ["pat", "sweep", *arguments], members, y, options, jobs, cluster)
    given, say = ["pat", "sweep", *arguments], lambda text: print(text, flush=True)
    return Sweep(out, given, members, x, y, jobs, say, cluster, not options.unchecked).run(options.go_on)


def _dry_run(out: Path, members: Sequence[Any], cluster: Any, unchecked: bool) -> int:
    from pat.launch import slurm
    from pat.sweeps import on_slurm
    from pat.sweeps.members import problems

    if cluster is not None:
        members = [replace(member, config=on_slurm.config_of(member, out.name, cluster)) for member in members]
    wrong = {} if unchecked else problems(members, here=cluster is None)
    print(f"{len(members)} runs, in {out}:")
    for member in members:
        print(f"  {member.name}" + (f": {wrong[member.name]}" if member.name in wrong else ""))
    if cluster is not None:
        print(f"\nthe job of {members[0].name}:\n\n{slurm.script(members[0].config, cluster)}", end="")
    return ExitCode.BAD_INPUT if wrong else ExitCode.DONE


def _race(
    out: Path,
    command: list[str],
    members: Sequence[Any],
    y: Any,
    options: argparse.Namespace,
    jobs: int,
    cluster: Any,  # None: on this machine
) -> int:
    from pat.sweeps import on_slurm
    from pat.sweeps.heat import end_of, heat
    from pat.sweeps.race import Race

    if cluster is not None:  # with the ranks that they will have
        members = [replace(member, config=on_slurm.config_of(member, out.name, cluster)) for member in members]
    made = heat(members, options.race, here=cluster is None)
    if cluster is not None and cluster.offline:
        on_slurm.fetch(members)
    shared = f"{made.shared} steps that all share, then " if made.shared else ""
    print(
        f"race in {out}: {shared}{len(members)} runs to step {made.step}, and the one with the best {y.name} to "
        f"{end_of(members)}",
        flush=True,
    )
    for member in members:
        print(f"  {member.name}")
    if options.dry_run:
        return ExitCode.DONE
    race = Race(out, command, members, y, made, jobs, lambda text: print(text, flush=True), cluster=cluster)
    return race.run(options.go_on)
