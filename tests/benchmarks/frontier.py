"""The frontier: what a pruned model is worth for the training steps spent, by our methods and by other projects'.

    python launch/assets.py chats && python launch/assets.py reviews && python launch/assets.py sotu
    python tests/benchmarks/frontier.py --model decoder --data addresses --steps 0 --targets 50,2:4,70
    python tests/benchmarks/frontier.py --model encoder --steps 100 --targets 80 --methods alps,movement --seeds 3

A row is data x steps x target x method x seed; flags select rows, and a finished row is never repeated. Every row is a
list of commands that a user has, written to the results file with its figures, the commit and the whole config of each
of our runs: ours are `pat prune` (no steps) or `pat train recipe=decoder|encoder` and `pat export`; a peer's is a
script in tests/benchmarks/peers, run in an environment of that project's own, made when first needed. A peer sees the
samples that ours are calibrated on. Where a row has training steps, a peer's cut is trained by `pat train`, its zeros
kept. All end in the same `pat evaluate` of a Hugging Face folder. Ours and the peers' methods have their defaults, some
of which were chosen on these data for ours (see docs/frontier.md). `smaller` is a model of the same size, cut without
looking.

Decoders are cut as they are. The encoder has no head before it is trained: rows without steps cut the model that the
dense row of 100 steps ends with, and a peer's rows of N steps train a dense model for 30 % of them, as ours do, cut it
and train the rest. What cannot be installed or run is kept with its command and error, and tried again by
--again. Two such commands may run at once; each row is written when it ends. Ctrl-C and SIGTERM stop after `pat train`
has saved; the same command goes on there.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pat.common import signals
from pat.common.files import read_json, write_json
from pat.run.directory import ExitCode
from tests.benchmarks import frontier_report as report
from tests.benchmarks.commands import ONE_THREAD, PAT, ROOT, SHOWN, cpu_seconds_of_children, shown, tidy
from tests.benchmarks.frontier_rows import METHODS, SUBJECTS, Row, Subject, Target, rows
from tests.benchmarks.peers import HERE, PEERS, Peer

VERSIONS = ("torch", "transformers", "deepspeed")
DENSE_STEPS = 100  # of the encoder that rows without steps cut
BEFORE_THE_CUT = 0.3  # of an encoder's steps, see recipes/encoder.yaml
EXPORT = "export.json"  # has the config of the run that it is of
LOG = "last_command.log"  # in the folder of the row: what the running command says
DONE = "done.json"  # in the folder of a row that was stopped: its finished commands with their configs, the CPU time
Command = list[str]


@dataclass
class Measured:
    """What a row came to; `error` says why there is no figure."""

    metric: str
    value: float | None = None
    parameters: int | None = None
    nonzero_parameters: int | None = None
    cpu_seconds: float | None = None  # of all commands but the installation of a peer and the evaluation
    commands: list[str] = field(default_factory=list)
    configs: list[str] = field(default_factory=list)  # YAML, of our `pat train` and `pat prune` in their order
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None  # of pat
    error: str | None = None


class Runner:
    """Runs the commands of a row, and notes them as one would type them."""

    def __init__(self, folder: Path, execute: Callable[..., Any] | None = None) -> None:
        self.folder, self.execute = folder, execute or self._execute
        self.child: subprocess.Popen[bytes] | None = None  # the running command
        self.log = folder / LOG
        self.finished: dict[str, list[str]] = {}  # commands of the row, and the configs of what they wrote
        self.asked_to_stop = False
        self.commit = commit()  # while rows are measured, another may be made

    def measure(self, row: Row) -> Measured:
        """All commands of a row, and the figures of the last."""
        subject, method = SUBJECTS[row.data], METHODS[row.method]
        place = self.folder / folder_of(row)
        figures = place / "figures.json"
        measured = Measured(subject.metric, commit=self.commit)
        earlier = read_json(place / DONE)
        if earlier is None:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
        else:
            (place / DONE).unlink()  # where this start is killed, the row begins again
        self.log, self.finished = place / LOG, earlier["finished"] if earlier else {}
        measured.cpu_seconds = spent = earlier["cpu_seconds"] if earlier else 0
        try:
            if method.peer:
                self.install(PEERS[method.peer], measured)
            before = cpu_seconds_of_children()
            try:
                model = yield_from(self.commands(row, place), lambda command: self.run(command, measured))
            finally:
                measured.cpu_seconds = spent + round(cpu_seconds_of_children() - before)
            measured.versions = {name: importlib.metadata.version(name) for name in VERSIONS}
            if method.peer:
                measured.versions |= {f"{method.peer}: {k}": v for k, v in PEERS[method.peer].versions().items()}
            self.run([*PAT, "evaluate", model, *subject.judge, "--json", str(figures)], measured)
        except Failed as failure:
            measured.error, measured.cpu_seconds = str(failure), None
            return measured
        except Stopped:
            write_json(place / DONE, {"finished": self.finished, "cpu_seconds": measured.cpu_seconds})
            raise
        found = json.loads(figures.read_text())["models"][0]
        measured.value = found["metrics"][subject.metric]
        measured.parameters, measured.nonzero_parameters = found["parameters"], found["nonzero_parameters"]
        if not (row.target == "dense" and subject.kind == "encoder"):
            shutil.rmtree(place)  # large, and not needed again
        return measured

    def install(self, peer: Peer, measured: Measured) -> None:
        """Make the peer's environment, unless it stands."""
        for command in peer.installation():
            self.run(command, measured)
        peer.installed()

    def run(self, command: Command, measured: Measured) -> None:
        """One command; raises Failed with the end of what it said."""
        measured.commands.append(shown(command))
        if measured.commands[-1] in self.finished:
            measured.configs += self.finished[measured.commands[-1]]
            return
        print(f"  {measured.commands[-1]}", flush=True)
        own = {**os.environ, "OMP_NUM_THREADS": "1"}
        if command[0] != sys.executable:
            own.pop("PYTHONPATH", None)  # ours, which is no part of a peer's environment
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as output, signals.handled(self.stop):
            done = self.execute(command, cwd=ROOT, env=own, stdout=output, stderr=subprocess.STDOUT)
        if done.returncode == 0:
            self.finished[measured.commands[-1]] = written = config_written(command)
            measured.configs += written
        if self.asked_to_stop:  # whatever the command's exit code: a peer's script may have any
            raise Stopped(ExitCode.PREEMPTED)
        if done.returncode:
            raise Failed(tidy(self.log.read_text()[-SHOWN:]))

    def _execute(self, command: Command, **given: Any) -> subprocess.CompletedProcess[bytes]:
        self.child = child = subprocess.Popen[bytes](command, **given)
        return subprocess.CompletedProcess(command, child.wait())

    def stop(self, number: int, frame: Any) -> None:
        """The running command gets the signal, too, and leaves when it has saved. Ctrl-C it has from the terminal."""
        self.asked_to_stop = True
        if self.child is not None and number in signals.BY_OTHERS:
            self.child.send_signal(number)

    def commands(self, row: Row, place: Path) -> Iterator[Command | str]:
        """The commands, and last the folder that they made."""
        subject, method, target = SUBJECTS[row.data], METHODS[row.method], Target(row.target)
        model, out = f"assets/{subject.model}", str(place / "model")
        if row.target == "dense":
            if row.steps:
                yield from self._trained(subject, row, model, place, subject.dense)
                model = out
            elif subject.kind == "encoder":
                yield from self._base(subject, row.seed)
                model = str(self._base_folder(row.data, row.seed) / "model")
            yield model
            return
        if subject.kind == "encoder" and not row.steps:
            yield from self._base(subject, row.seed)
            model = str(self._base_folder(row.data, row.seed) / "model")
        if method.peer:
            yield from self._by_peer(subject, row, model, place)
        elif row.steps and method.taught:
            yield from self._taught(subject, row, model, place)
        elif row.steps:
            yield from self._trained(subject, row, model, place, method.keys_of(target))
        else:
            train, held_out = subject.files
            given = ["--data", train, "--eval", held_out, *target.flags(), "--method", method.option or row.method]
            given += ["--samples", str(subject.samples)] if method.calibrates else []
            given += ["--reconstruct", str(method.reconstruct)] if method.reconstruct else []
            given += ["--task", subject.task, "--max-length", str(subject.max_length), "--out", out]
            few = [key for key in subject.keys if key.startswith("data.")]
            yield [*PAT, "prune", model, *given, *few, *method.prune_keys, "engine.threads_per_rank=1"]
        yield out

    def _trained(self, subject: Subject, row: Row, model: str, place: Path, keys: Sequence[str]) -> Iterator[Command]:
        narrow = "_narrow" * Target(row.target).narrow  # also where a peer has cut it: the rate that such a model gets
        run, out = place / "run", place / "model"
        given = [f"recipe={subject.kind}{narrow}", *subject.described(row.steps), f"model.path={model}"]
        yield [*PAT, "train", *given, f"run.dir={run}", f"seed={row.seed}", *ONE_THREAD, *keys]
        yield [*PAT, "export", str(run), "--out", str(out), "--checkpoint", "last", "--dtype", "bf16"]
        shutil.rmtree(run, ignore_errors=True)

    def _taught(self, subject: Subject, row: Row, model: str, place: Path) -> Iterator[Command]:
        """A whole model for some of the steps; in the rest it is pruned, and learns from what it was. The rest has
        another seed: it sees other samples first."""
        method, teacher = METHODS[row.method], place / "teacher"
        first = Row(row.data, round(method.taught * row.steps), "dense", "dense", row.seed)
        yield from self._trained(subject, first, model, teacher, subject.dense)
        dense = str(teacher / "model")
        keys = [*method.keys_of(Target(row.target)), "distill=dense", f"distill.teacher={dense}", "distill.weight=0.8"]
        rest = Row(row.data, row.steps - first.steps, row.target, row.method, row.seed + 1)
        yield from self._trained(subject, rest, dense, place, keys)

    def _base_folder(self, data: str, seed: int) -> Path:
        return self.folder / folder_of(Row(data, DENSE_STEPS, "dense", "dense", seed))

    def _base(self, subject: Subject, seed: int) -> Iterator[Command]:
        """The dense encoder that rows without steps cut, unless its row has left it."""
        row = Row(subject.data, DENSE_STEPS, "dense", "dense", seed)
        place = self._base_folder(row.data, seed)
        if not (place / "model" / "config.json").exists():
            yield from self._trained(subject, row, f"assets/{subject.model}", place, subject.dense)

    def _by_peer(self, subject: Subject, row: Row, model: str, place: Path) -> Iterator[Command]:
        method = METHODS[row.method]
        assert method.peer is not None, "a peer's method"
        peer = PEERS[method.peer]
        steps = row.steps
        if steps and subject.kind == "encoder":
            before = round(BEFORE_THE_CUT * steps)
            first = Row(row.data, before, "dense", "dense", row.seed)
            yield from self._trained(subject, first, model, place / "before", subject.dense)
            model, steps = str(place / "before" / "model"), steps - before
        healed = steps and not method.loops
        samples, cut = str(place / "samples.jsonl"), str(place / ("cut" if healed else "model"))
        described = [f"recipe={subject.kind}", *subject.described(1), f"model.path={model}", f"seed={row.seed}"]
        count = steps * subject.batch if method.loops else subject.samples
        yield [sys.executable, "tests/benchmarks/peers/samples.py", str(count), samples, *described]
        script = str(HERE / peer.script)
        flags = ["--method", method.option, *Target(row.target).flags()]
        flags += ["--steps", str(steps)] if method.loops else []
        yield [str(peer.python), script, model, samples, cut, *flags]
        if not healed:
            return
        keys = subject.unpruned
        if not Target(row.target).narrow:
            keys = [f"pruners.weights.{key}" for key in ("criterion.name=magnitude", "scope=global")]
            keys += [f"pruners.weights.schedule.{key}" for key in ("name=one_shot", "start=0")]
            keys += [f"pruners.weights.budget.sparsity={zeros(Path(cut))!r}"]
        rest = Row(row.data, steps, row.target, row.method, row.seed)
        yield from self._trained(subject, rest, cut, place, keys)


def commit() -> str | None:
    """Of the code that is measured, with + where that has been changed since; None outside of a clone."""
    try:
        head, changed = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "pat", "conf", "recipes"])
        )
    except OSError:
        return None
    return f"{head}{'+' * bool(changed)}" if head else None


def folder_of(row: Row) -> str:
    """The name of a row's folder: without `=`, which a value of Hydra's cannot hold as it is."""
    return row.name.replace("=", "-")


def config_written(command: Command) -> list[str]:
    """The config of the run whose model a command of ours has written, as YAML; nothing where it writes none."""
    if tuple(command[: len(PAT)]) != PAT or "--out" not in command:
        return []
    out = Path(command[command.index("--out") + 1])
    return [tidy(yaml.safe_dump(json.loads((out / EXPORT).read_text())["config"], sort_keys=False))]


class Failed(Exception):
    """A command did."""


class Stopped(SystemExit):
    """By a signal; the row goes on from here when the same command is given again."""


def yield_from(commands: Iterator[Command | str], run: Callable[[Command], None]) -> str:
    """Run each command before the next is asked for; what is no command is the folder they made."""
    for command in commands:
        if isinstance(command, str):
            return command
        run(command)
    raise AssertionError("no folder was named")


def zeros(folder: Path) -> float:
    """The share of zeros in the matrices inside a folder's layers, those that `all-linear` means."""
    from safetensors import safe_open

    gone = total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():
                tensor = tensors.get_tensor(name)
                if tensor.dim() == 2 and (".layers." in name or ".layer." in name):
                    gone, total = gone + int((tensor == 0).sum()), total + tensor.numel()
    return gone / total


class Results:
    """The results file. Rows of two commands at once do not undo one another."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self) -> dict[str, dict[str, Any]]:
        """What is measured, by name."""
        return json.loads(self.path.read_text())["rows"] if self.path.exists() else {}

    def finished(self, row: Row, again: bool) -> bool:
        """Whether a row is not to be measured any more; with `again`, one that failed is."""
        known = self.rows().get(row.name)
        return known is not None and not (again and known["error"])

    def add(self, row: Row, measured: Measured) -> None:
        """Write one row; the file is whole at any time."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # until it is closed
            found = self.rows() | {row.name: asdict(row) | asdict(measured)}
            written = {"device": f"CPU, one thread, {platform.machine()}", "rows": dict(sorted(found.items()))}
            whole = self.path.with_suffix(".part")
            whole.write_text(json.dumps(written, indent=1) + "\n")
            whole.replace(self.path)
        finally:
            os.close(folder)


def run_all(selected: Sequence[Row], results: Results, measure: Callable[[Row], Measured], again: bool) -> None:
    """Measure what the results file does not have; with `again`, what failed, too."""
    for row in selected:
        if results.finished(row, again):
            continue
        print(row.name, flush=True)
        measured = measure(row)
        results.add(row, measured)
        print(f"  {measured.metric} {measured.value}  {measured.error or ''}", flush=True)


def _listed(text: str) -> list[str]:
    return text.split(",")


def main() -> None:
    """Run what is selected; write the results file, the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("decoder", "encoder"), help="default: both")
    parser.add_argument("--data", type=_listed, default=list(SUBJECTS), help=f"of {','.join(SUBJECTS)}")
    parser.add_argument("--steps", type=_listed, default=["0"], help="such as 0,100,1000")
    parser.add_argument("--targets", type=_listed, default=["50"], help="such as 50,70,2:4,ffn=0.5")
    parser.add_argument("--methods", type=_listed, default=list(METHODS), help=f"of {','.join(METHODS)}")
    parser.add_argument("--seeds", type=int, default=1, help="how many, where it trains")
    parser.add_argument("--again", action="store_true", help="try once more what failed")
    parser.add_argument("--dry-run", action="store_true", help="run nothing: only say which rows would be measured")
    parser.add_argument("--table", action="store_true", help="run nothing: only write the table and the picture")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "frontier", help="of the runs")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "frontier.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "frontier.md", help="whose tables are replaced")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "frontier.png")
    options = parser.parse_args()
    for given, known in ((options.data, SUBJECTS), (options.methods, METHODS)):
        unknown = [name for name in given if name not in known]
        if unknown:
            parser.error(f"{', '.join(unknown)}: give some of {', '.join(known)}")
    data = [name for name in options.data if options.model in (None, SUBJECTS[name].kind)]
    results = Results(options.out)
    selected = rows(data, list(map(int, options.steps)), options.targets, options.methods, options.seeds)
    if not selected and not options.table:
        parser.error("no row fits: each method has its targets, and some have no rows without steps")
    if options.dry_run:
        print("\n".join(f"{row.name}{'  (measured)' * results.finished(row, options.again)}" for row in selected))
        return
    if not options.table:
        run_all(selected, results, Runner(options.folder.resolve()).measure, options.again)
    table = report.lines(list(results.rows().values()))
    print("\n".join(report.markdown(table)))
    report.into_page(options.page, report.EVERY, report.markdown(table))
    for mark, other in report.OTHERS.items():
        report.into_page(options.page, mark, report.on_other_data(table, other))
    report.picture(table, options.picture)


if __name__ == "__main__":
    main()
