"""The `pat` command: finds the command asked for, and turns errors into a sentence and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterator, Sequence

import pat
from pat import commands
from pat.commands._help import EXAMPLES, EXIT_CODES
from pat.run.directory import ExitCode

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
# The variables by which launchers number a process, among all and on its machine.
_RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
_LOCAL_RANKS = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
# Of a path that was given: where nothing closer to the fault has said more.
_OF_A_PATH = (
    errno.ENOENT,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
)
_LESS_MEMORY = (
    "In training a lower train.micro_batch_size (the global batch stays as it is) or data.max_length needs less, and "
    "so do engine.zero_stage=3, engine.activation_checkpointing=true and engine.offload_optimizer=true: `pat plan` "
    "says how much a rank needs. HYDRA_FULL_ERROR=1 shows where it happened"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of the console script."""
    arguments = _without_local_rank(list(sys.argv[1:] if arguments is None else arguments))
    listed = "\n".join(f"  {name:<12} {commands.summary(name)}" for name in commands.names())
    parser = argparse.ArgumentParser(
        prog="pat",
        usage="pat COMMAND ...",
        description=f"{pat.__doc__}\n\ncommands (pat COMMAND --help says more):\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES + EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"pat {pat.__version__}")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="what to do")
    options = parser.parse_args(arguments[:1])
    if options.command is None:
        parser.print_help()
        raise SystemExit(int(ExitCode.BAD_INPUT))
    with _one_sentence_errors():
        if options.command not in commands.names():
            from pat.common.text import did_you_mean  # which takes Hydra along

            known = commands.names()
            raise ValueError(
                f"there is no command {options.command!r}; allowed: {', '.join(known)}"
                f"{did_you_mean(options.command, known)}; pat --help says what each does"
            )
        code = commands.load(options.command).main(arguments[1:])
    raise SystemExit(int(code))


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
        if _rank(_LOCAL_RANKS) == "0":  # the others would say the same
            print(f"pat: {_whose()}{error}", file=sys.stderr)
        raise SystemExit(int(getattr(error, "exit_code", ExitCode.BAD_INPUT))) from None
    except BrokenPipeError:  # as by `pat ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left must not fail at the exit
        raise SystemExit(int(ExitCode.ERROR)) from None
    except OSError as error:
        of_a_path = error.errno in _OF_A_PATH and error.filename is not None
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not (of_a_path or error.errno in _OF_THE_DISK):
            raise
        print(f"pat: {error.strerror}: {error.filename or 'while files were written'}", file=sys.stderr)
        raise SystemExit(int(ExitCode.BAD_INPUT if of_a_path else ExitCode.ERROR)) from None
    except (MemoryError, RuntimeError) as error:
        why = str(error).strip().partition("\n")[0].rstrip(".") or "out of memory"
        of_memory = isinstance(error, MemoryError) or "out of memory" in why or "can't allocate memory" in why  # torch
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not of_memory:
            raise
        print(f"pat: {_whose()}{why}. {_LESS_MEMORY}", file=sys.stderr)
        raise SystemExit(int(ExitCode.ERROR)) from None
    except KeyboardInterrupt:
        raise SystemExit(int(ExitCode.INTERRUPTED)) from None


def _rank(variables: Sequence[str]) -> str:
    return next(filter(None, map(os.environ.get, variables)), "0")


def _whose() -> str:
    """Before what another rank than the first one says."""
    rank = _rank(_RANKS)
    return "" if rank == "0" else f"rank {rank} on {socket.gethostname()}: "


if __name__ == "__main__":
    main()
