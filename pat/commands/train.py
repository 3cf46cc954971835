"""Fine-tune a model and prune it while it trains."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pat.commands._help import RUN_EXIT_CODES, TRAIN_EXAMPLES, TRAIN_HELP, command_parser
from pat.common import files, signals
from pat.common.imports import no_collector
from pat.launch.environment import RankEnvironment, rank_environment
from pat.run import provenance
from pat.run.directory import ExitCode, RunDir
from pat.run.preemption import preemption_flag

RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")  # how often a launcher has repeated the command


def main(arguments: Sequence[str]) -> int:
    """`pat train`: composes the config, then starts the ranks, or becomes one."""
    parser = _train_parser()
    if "--help" in arguments or "-h" in arguments:
        print(_train_help(parser), end="")
        return ExitCode.DONE
    options = parser.parse_intermixed_args(arguments)
    if options.keys:
        return _print_keys(options.keys)
    overrides = list(options.overrides)
    if options.recipe:
        overrides.insert(0, f"recipe={options.recipe}")
    if any(override.startswith("budget=") for override in overrides):
        return _search(overrides, options)
    environment = rank_environment()
    if environment:
        preemption_flag()  # from here on a signal waits for the first step
    if options.frozen:
        others = {"--cfg": options.cfg, "--config-dir": options.config_dir, "--package": options.package}
        others |= {"-m": options.multirun, "--resolve": options.resolve}
        if ignored := next((name for name, value in others.items() if value), None):
            raise ValueError(f"{ignored} would be ignored: --frozen takes the config as it is in a run")
        config = _frozen(options.frozen, overrides, environment)
        if options.dry_run:
            return _describe(config)
        return _become_rank(config, environment) if environment else _start_ranks(config)
    if environment:
        overrides = _with_world_size(overrides, environment)
    for name, value in (("--cfg", options.cfg), ("--config-dir", options.config_dir), ("--package", options.package)):
        overrides += [name, value] if value else []
    overrides += ["--multirun"] if options.multirun else []
    overrides += ["--resolve"] if options.resolve else []
    from pat.config.compose import compose

    if environment and options.multirun:
        raise ValueError("-m starts one run after another from a plain shell; under a launcher start each by itself")
    if options.dry_run:
        return compose(overrides, _describe)
    return compose(overrides, (lambda config: _become_rank(config, environment)) if environment else _start_ranks)


def _start_ranks(config: Any) -> int:
    """In a plain shell: freeze, prepare the data, start the ranks and wait for them."""
    from pat.config.frozen import check_same_run, freeze
    from pat.launch import multi_node, single_node
    from pat.launch.process import clear_ranks, only_user_of

    with no_collector():
        from pat.training.preflight import is_complete, prepare
        from pat.training.start_summary import append_to_log, start_summary
        from pat.training.start_warnings import warnings
        from pat.training.summary import outcome

    run_dir = Path(config.run.dir)
    several = config.engine.hostfile is not None
    with _preempted_before_training(), only_user_of(run_dir):
        if several:
            multi_node.check(run_dir, config)
        clear_ranks(run_dir)

        check_same_run(config, run_dir)
        if is_complete(config, run_dir):
            freeze(config, run_dir)
            print(f"{outcome(RunDir(run_dir))}\nnothing is left to do; run.resume=never starts it over", flush=True)
            return ExitCode.DONE

        checked = prepare(config, run_dir, here=not several)  # the hosts check their own devices
        said = start_summary(config, checked, here=not several)
        print(said, flush=True)
        _set_aside(config, run_dir)  # only now: a refused command leaves nothing behind, and costs nothing
        freeze(config, run_dir)
        append_to_log(run_dir, said)
        _say_that_it_starts(run_dir, config.engine.world_size, warnings(config, checked, here=not several))
        return (multi_node if several else single_node).launch(run_dir, config)


def _become_rank(config: Any, environment: RankEnvironment) -> int:
    """Under a launcher: this process is one rank of the run. Rank 0 freezes the config, the others wait for it."""
    from pat.config.frozen import check_same_run, freeze, wait_for_frozen
    from pat.launch.process import forget_ranks_from, only_user_of, said_by_first
    from pat.launch.rank import OwnRecord, run_rank
    from pat.launch.single_node import rank_variables

    config = _of_this_start(config)
    if config.engine.hostfile:
        raise ValueError(
            f"engine.hostfile={config.engine.hostfile}, but this rank was started by a launcher already: leave it out, "
            "or run `pat train` once, in a plain shell"
        )
    for key, value in rank_variables(config).items():
        if key == "OMP_NUM_THREADS" and config.engine.threads_per_rank:  # torchrun sets it to 1
            os.environ[key] = value
        os.environ.setdefault(key, value)
    environment.export()
    # Another start may hold the directory, and its supervisor would take this rank's record for one of its own ranks'.
    own, began = OwnRecord(Path(config.run.dir), environment.rank), time.time()

    def work(run_dir: Path) -> int:
        with no_collector():
            import torch

            from pat import train as loop
            from pat.training import preflight
            from pat.training.start_summary import start_summary
            from pat.training.start_warnings import warnings
            from pat.zero.engine import init_distributed

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # torch read the variable before it was set
        only_user = only_user_of(run_dir) if environment.rank == 0 else contextlib.nullcontext()
        with only_user:
            if environment.rank == 0:
                own.write()
                check_same_run(config, run_dir)
            checked = preflight.prepare(config, run_dir)
            if environment.rank == 0:  # only now: a refused start, or one that is killed, leaves the run as it was
                _set_aside(config, run_dir)
                freeze(config, run_dir)
                RunDir(run_dir).exit.unlink(missing_ok=True)
                forget_ranks_from(run_dir, 1)  # of an earlier start: those of this one say so once all have met
                print(start_summary(config, checked), flush=True)
                _say_that_it_starts(run_dir, environment.world_size, warnings(config, checked))
            else:
                patience_s = max(120.0, 60.0 * config.engine.timeout_min)  # rank 0 may prepare longer
                wait_for_frozen(config, run_dir, patience_s, refused=lambda: said_by_first(run_dir, began))
            init_distributed(config)  # collective: rank 0 is there, so this start holds the directory
            own.write()
            return loop.main(run_dir)

    return run_rank(Path(config.run.dir), environment.rank, work, announce=True, own=own)


def _of_this_start(config: Any, environ: Mapping[str, str] = os.environ) -> Any:
    """Where a launcher has repeated the command, run.resume=never was for the first start, and this one goes on."""
    again = any(int(environ.get(key) or 0) for key in RESTARTS)
    return config.changed(run__resume="auto") if again and config.run.resume == "never" else config


def _search(overrides: Sequence[str], options: argparse.Namespace) -> int:
    """`budget=largest_within_envelope`: `pat search` with the same keys."""
    from pat.commands import search

    for given in overrides:
        if given.startswith("budget=") and given != search.BUDGET:
            raise ValueError(
                f"{given}: the one value is {search.BUDGET}, a search (pat search); how much a pruner removes is "
                "pruners.NAME.budget"
            )
    for name in ("frozen", "cfg", "package", "multirun", "resolve"):
        if getattr(options, name):
            raise ValueError(
                f"--{name} works only for a single run, and {search.BUDGET} starts a search: leave one of them out"
            )
    more = ["--config-dir", options.config_dir] if options.config_dir else []
    return search.main([*overrides, *more, *(["--dry-run"] if options.dry_run else [])])


def _describe(config: Any) -> int:
    """`--dry-run`: refuse all that a start would refuse. Reading the data comes last: it may take long."""
    from pat.config.frozen import check_same_run
    from pat.data import sources
    from pat.training.dry_run import describe
    from pat.training.logit_cache import LogitCache
    from pat.training.preflight import data_in_words, prepare
    from pat.training.start_summary import start_summary
    from pat.training.teacher import describe as describe_teacher

    run_dir = Path(config.run.dir)
    files.remove_empty(files.make(run_dir, "run.dir"))
    check_same_run(config, run_dir)
    sources.check_files(config.data)
    print(describe(config), flush=True)
    if config.distill.live:
        print(describe_teacher(config))
    if config.distill.cache:
        print(f"No teacher runs: {LogitCache(Path(config.distill.cache)).describe()}.")
    checked = prepare(config, run_dir, here=config.engine.hostfile is None)
    print(start_summary(config, checked))
    print(data_in_words(config, checked.prepared))
    return ExitCode.DONE


def _set_aside(config: Any, run_dir: Path) -> None:
    from pat.config.frozen import set_aside

    if (aside := set_aside(config, run_dir)) is not None:
        print(
            f"run.resume=never: the checkpoints of the run before are in {aside}, its figures are removed", flush=True
        )


def _say_that_it_starts(run_dir: Path, ranks: int, warnings: Sequence[str]) -> None:
    from pat.launch import slurm

    provenance.record(run_dir, ranks, warnings)
    if warning := slurm.short_lead(run_dir):
        print(f"pat: {warning}", flush=True)


def _frozen(run_dir: Path, overrides: Sequence[str], environment: RankEnvironment | None) -> Any:
    """The config in a run directory, for the ranks that were started: a Slurm job may come back with other nodes."""
    from pat.config.frozen import load
    from pat.config.hostfile import take_world_size
    from pat.config.validate import validate

    config = load(RunDir(run_dir).config).changed(run__dir=str(run_dir))
    if config.run.resume == "never":  # it was for the start that froze it: a job that comes back goes on
        config = config.changed(run__resume="auto")
    for override in _with_world_size(list(overrides), environment) if environment else overrides:
        key, _, value = override.partition("=")
        if key == "run.resume":
            config = config.changed(run__resume=value)
        elif key == "engine.world_size" and value.isdigit():
            config = config.changed(engine__world_size=int(value))
        else:
            raise ValueError(
                f"--frozen takes the config of {run_dir} as it is, but got {override}: only run.resume and "
                "engine.world_size may differ"
            )
    config = take_world_size(config, overrides)
    validate(config)
    return config


def _with_world_size(overrides: list[str], environment: RankEnvironment) -> list[str]:
    key, size = "engine.world_size=", environment.world_size
    for override in overrides:
        if override.startswith(key) and override != f"{key}{size}":
            raise ValueError(f"{override}, but the launcher started {size} ranks: leave engine.world_size to it")
    return [*(override for override in overrides if not override.startswith(key)), f"{key}{size}"]


def _train_parser() -> argparse.ArgumentParser:
    parser = command_parser(
        prog="pat train",
        usage="pat train recipe=NAME [key=value ...] [options]",
        epilog=TRAIN_EXAMPLES + RUN_EXIT_CODES,
        add_help=False,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="a key to change, or GROUP=OPTION")
    parser.add_argument("--recipe", metavar="NAME", help="the same as recipe=NAME")
    parser.add_argument("--frozen", type=Path, metavar="RUN", help="the config that a run directory holds, as it is")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check all that a start checks, say what the run would do, and stop (--cfg job prints its whole config)",
    )
    parser.add_argument("--keys", metavar="WORD", help="print the keys with WORD in their name, or of the method WORD")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"), help="print the composed config, and stop")
    parser.add_argument("--resolve", action="store_true", help="with --cfg: resolve interpolations")
    parser.add_argument("--package", "-p", metavar="KEY", help="with --cfg: only this part")
    parser.add_argument("--config-dir", "-cd", metavar="DIR", help="more groups and recipes: DIR/recipe/NAME.yaml")
    parser.add_argument(
        "--multirun", "-m", action="store_true", help="one run per combination: seed=0,1 engine=zero2,zero3"
    )
    parser.add_argument("--help", "-h", action="store_true", help="show this text")
    return parser


def _print_keys(word: str) -> int:
    from pat.config.reference import keys_about

    found = keys_about(word)
    if not found:
        raise ValueError(f"--keys {word}: no key and no method has this in its name; --keys . prints all keys")
    for key, what in found:
        print(f"{key}\n    {what}")
    return ExitCode.DONE


def _train_help(parser: argparse.ArgumentParser) -> str:
    from pat.common import scan
    from pat.config import auto
    from pat.config.places import conf_dir, recipes
    from pat.pruning import registry

    conf = conf_dir()
    options = {
        path.name: ", ".join(sorted(item.stem for item in path.glob("*.yaml")))
        for path in sorted(conf.iterdir())
        if path.is_dir() and path.name not in ("recipe", "cluster", "architectures")
    }
    options["task"] = ", ".join(scan.declared("pat.tasks"))  # which need no file in conf/
    parser.description = TRAIN_HELP.format(
        config=conf / "config.yaml",
        recipes=", ".join(recipes()),
        groups="\n".join(f"  {name:<8} {items}" for name, items in options.items()),
        methods="\n".join(
            f"  {kind:<12} {', '.join(auto.names(kind))}" for kind in registry.PACKAGES if kind != "structure"
        ),
        structures=", ".join(registry.names("structure")),
    )
    return parser.format_help()


@contextlib.contextmanager
def _preempted_before_training() -> Iterator[None]:
    """A signal to stop, before there is anything to save, has the same exit code as one during training."""

    def leave(_number: int, _frame: Any) -> None:
        print("pat: asked to stop before training began; run the same command again", file=sys.stderr)
        raise SystemExit(int(ExitCode.PREEMPTED))

    with signals.handled(leave, signals.BY_OTHERS):
        yield
