"""The `pat` command."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pat
from pat.run import ExitCode, RankEnvironment, RunDir, rank_environment
from pat.usage import EXAMPLES, EXIT_CODES, TRAIN_EXAMPLES, TRAIN_HELP

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of the console script."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"train": train, "export": export}
    parser = argparse.ArgumentParser(
        prog="pat",
        description=pat.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES + EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"pat {pat.__version__}")
    parser.add_argument(
        "command", choices=commands, help="train a model, or export a trained one; `pat COMMAND --help`"
    )
    options = parser.parse_args(_without_local_rank(arguments)[:1])
    with _one_sentence_errors():
        code = commands[options.command](_without_local_rank(arguments)[1:])
    raise SystemExit(int(code))


def train(arguments: Sequence[str]) -> int:
    """`pat train`: composes the config, then starts the ranks, or becomes one."""
    parser = _train_parser()
    if "--help" in arguments or "-h" in arguments:
        print(_train_help(parser), end="")
        return ExitCode.DONE
    options = parser.parse_intermixed_args(arguments)
    overrides = list(options.overrides)
    if options.recipe:
        overrides.insert(0, f"recipe={options.recipe}")
    environment = rank_environment()
    if environment:
        overrides = _with_world_size(overrides, environment)
    for name, value in (("--cfg", options.cfg), ("--config-dir", options.config_dir), ("--package", options.package)):
        overrides += [name, value] if value else []
    overrides += ["--multirun"] if options.multirun else []
    overrides += ["--resolve"] if options.resolve else []
    from pat.compose import compose

    if environment and options.multirun:
        raise ValueError("-m starts one run after another from a plain shell; under a launcher start each by itself")
    if options.dry_run:
        return compose(overrides, _describe)
    return compose(overrides, (lambda config: _become_rank(config, environment)) if environment else _start_ranks)


def export(arguments: Sequence[str]) -> int:
    """`pat export`: a Hugging Face folder from a run."""
    parser = argparse.ArgumentParser(
        prog="pat export",
        description="Write a stock Hugging Face folder (safetensors, tokenizer, config, model card, masks) from a\n"
        "run's checkpoint, tensor by tensor, without a GPU and without its ranks; then reload it and prove it equal.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  pat export runs/parity --out pruned\n"
        "  pat export runs/parity --out pruned --checkpoint 200 --dtype bf16\n\n" + EXIT_CODES,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run directory (run.dir of the training)")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write; must not exist or be empty"
    )
    parser.add_argument("--checkpoint", default="best", metavar="best|last|STEP", help="which one (default: best)")
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), help="of the weights (default: the dtype the run trained in)"
    )
    parser.add_argument(
        "--verify",
        choices=("auto", "logits", "weights"),
        default="auto",
        help="every tensor is compared bit for bit; logits: the reloaded model's, too; auto: up to 4 GiB of weights",
    )
    options = parser.parse_args(arguments)
    from rich.console import Console

    from pat.export.export import export_run, format_report

    console = Console(stderr=True)
    result = export_run(options.run, options.out, options.checkpoint, options.dtype, options.verify, console)
    Console().print(format_report(result))
    reader = result["loader"]
    print(f'written to {options.out}; in Python: {reader}("{options.out}")')
    return ExitCode.DONE


def _start_ranks(config: Any) -> int:
    """In a plain shell: freeze, prepare the data, start the ranks and wait for them."""
    from pat.build import is_complete, outcome, prepare
    from pat.compose import freeze
    from pat.launcher import launch
    from pat.process import clear_ranks, only_user_of

    run_dir = Path(config.run.dir)
    with _preempted_before_training(), only_user_of(run_dir):
        clear_ranks(run_dir)
        freeze(config, run_dir)
        if is_complete(config, run_dir):
            print(f"{outcome(RunDir(run_dir))}\nnothing is left to do; run.resume=never starts it over", flush=True)
            return ExitCode.DONE
        prepare(config, run_dir)
        return launch(run_dir, config)


def _become_rank(config: Any, environment: RankEnvironment) -> int:
    """Under a launcher: this process is one rank of the run. Rank 0 freezes the config, the others wait for it."""
    from pat.compose import freeze, wait_for_frozen
    from pat.launcher import rank_variables
    from pat.process import only_user_of
    from pat.rank import run_rank

    for key, value in rank_variables(config).items():
        os.environ.setdefault(key, value)
    environment.export()

    def work(run_dir: Path) -> int:
        import torch

        from pat import build
        from pat import train as loop

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # torch read the variable before it was set
        with only_user_of(run_dir) if environment.rank == 0 else contextlib.nullcontext():
            if environment.rank == 0:
                freeze(config, run_dir)
                RunDir(run_dir).exit.unlink(missing_ok=True)
            else:
                wait_for_frozen(config, run_dir)
            build.prepare(config, run_dir)
            return loop.main(run_dir)

    return run_rank(Path(config.run.dir), environment.rank, work, announce=True)


def _describe(config: Any) -> int:
    """`--dry-run`: the data last, since it may be long or not be there."""
    from pat.build import check_data
    from pat.compose import dump
    from pat.pruning.plan import describe
    from pat.teacher import describe as describe_teacher

    print(dump(config))
    print(describe(config), flush=True)
    if config.distill.teacher:
        print(describe_teacher(config))
    print(check_data(config))
    return ExitCode.DONE


def _with_world_size(overrides: list[str], environment: RankEnvironment) -> list[str]:
    key, size = "engine.world_size=", environment.world_size
    for override in overrides:
        if override.startswith(key) and override != f"{key}{size}":
            raise ValueError(f"{override}, but the launcher started {size} ranks: leave engine.world_size to it")
    return [*(override for override in overrides if not override.startswith(key)), f"{key}{size}"]


def _train_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pat train",
        usage="pat train recipe=NAME [key=value ...] [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=TRAIN_EXAMPLES + EXIT_CODES,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="a key to change, or GROUP=OPTION")
    parser.add_argument("--recipe", metavar="NAME", help="the same as recipe=NAME")
    parser.add_argument("--dry-run", action="store_true", help="print the config and what would be pruned, and stop")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"), help="print the composed config, and stop")
    parser.add_argument("--resolve", action="store_true", help="with --cfg: resolve interpolations")
    parser.add_argument("--package", "-p", metavar="KEY", help="with --cfg: only this part")
    parser.add_argument("--config-dir", "-cd", metavar="DIR", help="more groups and recipes: DIR/recipe/NAME.yaml")
    parser.add_argument(
        "--multirun", "-m", action="store_true", help="one run per combination: seed=0,1 engine=zero2,zero3"
    )
    parser.add_argument("--help", "-h", action="store_true", help="this text")
    return parser


def _train_help(parser: argparse.ArgumentParser) -> str:
    from pat.compose import conf_dir, recipes
    from pat.pruning import registry

    conf = conf_dir()
    options = {
        path.name: ", ".join(sorted(item.stem for item in path.glob("*.yaml")))
        for path in sorted(conf.iterdir())
        if path.is_dir() and path.name != "recipe"
    }
    parser.description = TRAIN_HELP.format(
        config=conf / "config.yaml",
        recipes=", ".join(recipes()),
        groups="\n".join(f"  {name:<8} {items}" for name, items in options.items()),
        methods="\n".join(
            f"  {kind:<12} {', '.join(registry.names(kind))}" for kind in registry.PACKAGES if kind != "structure"
        ),
        structures=", ".join(registry.names("structure")),
    )
    return parser.format_help()


def _without_local_rank(arguments: Sequence[str]) -> list[str]:
    """DeepSpeed's launcher appends `--local_rank=N`; the environment says the same."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and not argument.startswith(("--local_rank", "--local-rank")):
            kept.append(argument)
        skip = argument in ("--local_rank", "--local-rank")
    return kept


@contextlib.contextmanager
def _one_sentence_errors() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":  # all ranks would say the same
            print(f"pat: {error}", file=sys.stderr)
        raise SystemExit(int(ExitCode.BAD_INPUT)) from None
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        print(f"pat: {error.strerror}: {error.filename or 'while files were written'}", file=sys.stderr)
        raise SystemExit(int(ExitCode.ERROR)) from None
    except KeyboardInterrupt:
        raise SystemExit(int(ExitCode.INTERRUPTED)) from None
    except RuntimeError as error:
        from pat.checkpoint_reader import CheckpointError

        if not isinstance(error, CheckpointError):
            raise
        print(f"pat: {error}", file=sys.stderr)
        raise SystemExit(int(ExitCode.BROKEN_PROMISE)) from None


@contextlib.contextmanager
def _preempted_before_training() -> Iterator[None]:
    """A signal to stop, before there is anything to save, has the same exit code as one during training."""

    def leave(_number: int, _frame: Any) -> None:
        print("pat: asked to stop before training began; run the same command again", file=sys.stderr)
        raise SystemExit(int(ExitCode.PREEMPTED))

    numbers = (signal.SIGUSR1, signal.SIGTERM)
    before = [signal.signal(number, leave) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
