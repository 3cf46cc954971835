"""Plant faults one at a time and see whether a test fails: `python -m tests.long.mutants`, a few hours, can be resumed.

    --list           the faults, and what is known of each
    --only GLOB      those whose name (FILE: WHAT) matches
    --jobs N         so many at once
    --ranks          tests on ranks, for what the quick tests let through
    --results FILE   what is known so far, a line of JSON each; what stands there is not run again

Each fault is planted in a copy of the checkout, and pytest runs there in a process forked from this one, which has
imported what is slow to import, but not `pat`. Of the tests named for its file those run that reach its line, the
quickest first (`tests.long.reach`); a line outside of functions meets all of them. A fault is killed by the first test
that fails. It is run again when its file has changed; one that survived also when its tests have.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from multiprocessing.pool import ThreadPool
from pathlib import Path
from queue import Queue
from typing import Any

from tests.long.faults import ACCEPTED, Fault, faults
from tests.long.reach import Only, Reach, Recorder

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "mutants.jsonl"
SUMMARY = "mutants.json"
LEFT_OUT = (".git", ".venv", "runs", "outputs", ".pytest_cache", ".ruff_cache", "*.jsonl")
REACHED = "reach"  # a folder beside the results
LIMIT_S = 900.0


@dataclass(frozen=True)
class Result:
    """What is known of one fault."""

    name: str
    key: str  # of the mutated file
    tests: str  # of the test files
    outcome: str  # killed | survived | timeout
    by: str  # the test that failed first
    ranks: bool  # whether tests on ranks have looked, too
    seconds: float


# -- one run -----------------------------------------------------------------------------------------------------------


@contextmanager
def planted(copy: Path, fault: Fault) -> Iterator[None]:
    """The copy with the fault in it; afterwards as it was, its time too, by which compiled files are found valid."""
    path = copy / fault.file
    text, stat = path.read_text(), path.stat()
    path.write_text(mutated(text, fault))
    try:
        yield
    finally:
        path.write_text(text)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def mutated(text: str, fault: Fault) -> str:
    """The file with the fault. ValueError where the old text is not there exactly once."""
    if text.count(fault.old) != 1:
        raise ValueError(
            f"{fault.name}: the text {fault.old!r} is {text.count(fault.old)} times in {fault.file}, not once"
        )
    return text.replace(fault.old, fault.new)


def lines_of(text: str, fault: Fault) -> range:
    """The lines that the fault changes, from 1."""
    first = text[: text.index(fault.old)].count("\n") + 1
    return range(first, first + fault.old.rstrip("\n").count("\n") + 1)


_FORKING = threading.Lock()  # one fork at a time: filelock, which libraries import, refuses one while another begins


def run_tests(
    copy: Path, tests: Sequence[str], limit_s: float, only: Sequence[str] | None = None, record: Sequence[str] = ()
) -> tuple[str, str, Any]:
    """(outcome, the first test that failed, what of the files in `record` every test has run) of pytest in the copy, in
    a forked process; `only` some tests of these files."""
    if only is not None and not only:
        return "survived", "", None
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_pytest, args=(copy, list(tests), send, only, record))
    with _FORKING:
        child.start()
    send.close()
    found = None
    try:
        if not receive.poll(limit_s):
            return "timeout", "", None
        code, failed, found = receive.recv()
    except EOFError:
        code, failed = 1, "the process died"
    finally:
        _kill(child)
    if code in (4, 5):
        raise ValueError(f"pytest found no tests in {', '.join(tests)}: {failed}")
    return ("survived" if code == 0 else "killed"), failed, found


def _kill(child: Any) -> None:
    """The child with all that it has started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        child.kill()
    child.join()


def _pytest(copy: Path, tests: list[str], send: Any, only: Sequence[str] | None, record: Sequence[str]) -> None:
    """In the child: pat and tests are those of the copy."""
    os.setpgid(0, 0)
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)
    sys.dont_write_bytecode = True
    sys.path[:] = [str(copy), *(p for p in sys.path if Path(p or ".").resolve() not in (ROOT, copy))]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("pat", "tests")]:
        del sys.modules[name]
    import pytest

    first, recorder = _First(), Recorder(copy, record) if record else None
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--rootdir={copy}"]
    plugins: list[Any] = [first, *([recorder] if recorder else []), *([] if only is None else [Only(only)])]
    files = tests if only is None else sorted({name.partition("::")[0] for name in only})
    code = int(pytest.main([*options, *files], plugins=plugins))
    send.send((code, first.failed, recorder.found() if recorder else None))
    send.close()
    os._exit(0)


class _First:
    """A pytest plugin: the first failure."""

    failed = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Of a test."""
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        """Of a module."""
        if report.failed and not self.failed:
            self.failed = f"{report.nodeid} (import)"


# -- all of them -------------------------------------------------------------------------------------------------------


def digest(*texts: str) -> str:
    """Short."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def tests_digest(root: Path, tests: Sequence[str]) -> str:
    """Of the content of test files."""
    return digest(*((root / test).read_text() for test in tests))


def read(path: Path) -> dict[str, Result]:
    """The last result of each name; a line that is torn does not count."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            result = Result(**json.loads(line))
        except (ValueError, TypeError):
            continue
        found[result.name] = result
    return found


def append(path: Path, result: Result) -> None:
    """One write of one line, which a kill leaves whole or torn, and then it is run again."""
    with open(path, "ab") as file:
        start = b"" if not file.tell() or path.read_bytes().endswith(b"\n") else b"\n"
        file.write(start + json.dumps(asdict(result)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def is_known(root: Path, fault: Fault, known: dict[str, Result], ranks: bool) -> bool:
    """Whether nothing has changed since the fault was run."""
    result = known.get(fault.name)
    if result is None or result.key != digest(mutated((root / fault.file).read_text(), fault)):
        return False
    if result.outcome != "survived":
        return True
    return result.tests == tests_digest(root, fault.tests) and (result.ranks or not ranks)


def run_all(root: Path, chosen: Sequence[Fault], results: Path, jobs: int, ranks: bool, limit_s: float) -> None:
    """Run what is not known yet, each in a copy of `root`."""
    known, reach = read(results), Reach(results.parent / REACHED)
    todo = [fault for fault in chosen if not is_known(root, fault, known, ranks)]
    copies: Queue[Path] = Queue()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        for number in range(jobs):
            copy = Path(folder).resolve() / str(number)
            shutil.copytree(root, copy, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
            copies.put(copy)

        def work(fault: Fault) -> Result:
            copy, start = copies.get(), time.monotonic()
            try:
                before = known.get(fault.name)
                fresh = before is None or before.outcome != "survived" or before.tests != tests_digest(
                    copy, fault.tests
                )  # fmt: skip
                outcome, by = "survived", ""
                text = (copy / fault.file).read_text()
                reaching = [(test, tests_digest(copy, [test])) for test in fault.tests]
                only = reach.tests(fault.file, text, lines_of(text, fault), reaching) if reach.folder.is_dir() else None
                with planted(copy, fault):
                    key = digest((copy / fault.file).read_text())
                    if fresh or before is None or before.key != key:
                        outcome, by, _ = run_tests(copy, fault.tests, limit_s, only)
                    if ranks and outcome == "survived":
                        outcome, by, _ = run_tests(copy, fault.ranks, 4 * limit_s)
                seconds = round(time.monotonic() - start, 1)
                return Result(fault.name, key, tests_digest(copy, fault.tests), outcome, by, ranks, seconds)
            finally:
                copies.put(copy)

        with ThreadPool(jobs) as pool:
            for number, result in enumerate(pool.imap_unordered(work, todo), 1):
                append(results, result)
                print(f"{number}/{len(todo)}  {result.outcome:<9} {result.name}  {result.by}", flush=True)


def check_baseline(root: Path, chosen: Sequence[Fault], results: Path, limit_s: float, jobs: int = 1) -> None:
    """Every test file passes without a fault, or a kill says nothing. ValueError names one that does not. What each
    test reaches is written down."""
    reach, files = Reach(results.parent / REACHED), {fault.file for fault in chosen}

    def work(test: str) -> None:
        start, tests = time.monotonic(), tests_digest(root, [test])
        outcome, by, found = run_tests(root, [test], limit_s, record=sorted(files | reach.files(test, tests)))
        if outcome != "survived":
            raise ValueError(f"{test} fails without any fault ({outcome}: {by}); mend it first")
        reach.write(test, tests, found)
        print(f"passes  {test}  {time.monotonic() - start:.0f} s", flush=True)

    every = sorted({test for fault in chosen for test in fault.tests})
    needed = {test: {fault.file for fault in chosen if test in fault.tests} for test in every}
    todo = [test for test in every if not needed[test] <= reach.files(test, tests_digest(root, [test]))]
    with ThreadPool(jobs) as pool:
        pool.map(work, todo, chunksize=1)


def summary(chosen: Sequence[Fault], known: dict[str, Result]) -> dict[str, Any]:
    """The score, and what survived with the reason where there is one."""
    found = [known[fault.name] for fault in chosen if fault.name in known]
    survived = [result for result in found if result.outcome == "survived"]
    files: dict[str, list[int]] = {}
    for result in found:
        line = files.setdefault(result.name.partition(": ")[0], [0, 0])
        line[0] += result.outcome != "survived"
        line[1] += 1
    return {
        "faults": len(chosen),
        "run": len(found),
        "killed": len(found) - len(survived),
        "score": round((len(found) - len(survived)) / len(found), 4) if found else None,
        "survivors": {result.name: ACCEPTED.get(result.name, "") for result in survived},
        "killed_of_run_by_file": files,
    }


def preload() -> None:
    """What takes long to import, and does not import pat."""
    import deepspeed  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--only", default="*")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--ranks", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--limit-s", type=float, default=LIMIT_S)
    given = parser.parse_args()
    chosen = [fault for fault in faults() if fnmatchcase(fault.name, given.only)]
    if given.list:
        known = read(given.results)
        for fault in chosen:
            print(f"{known[fault.name].outcome if fault.name in known else 'not run':<9} {fault.name}")
        return
    preload()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:  # the checkout may change meanwhile
        root = Path(folder).resolve() / "checkout"
        shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
        check_baseline(root, chosen, given.results, given.limit_s, given.jobs)
        run_all(root, chosen, given.results, given.jobs, given.ranks, given.limit_s)
    said = summary(chosen, read(given.results))
    (given.results.parent / SUMMARY).write_text(json.dumps(said, indent=2) + "\n")
    print(json.dumps(said, indent=2))


if __name__ == "__main__":
    main()
