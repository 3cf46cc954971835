"""Every command of the pages is run by a test: typed as it is written, or in the test that is named here."""

from __future__ import annotations

import re
import shlex

from tests.recipes import test_docs_train as training
from tests.unit.house import test_docs_as_written as typed
from tests.unit.house import test_docs_dry as dry
from tests.unit.house.test_docs import PAGES, ROOT, code_in, composable

OF_A_SHELL = ("source ", "pip install ", "git clone ", "cd ", "python -c ", "mkdocs ", "sbatch ")
CALLED = re.compile(r"(?:[A-Z_]+=\S+ )*(?:srun (?:\S+ )*?|torchrun |mpirun )?(pat|python|launch/\S+|tests/\S+) ?(.*)")
ELSEWHERE = {  # what a command has in it, and where it runs on what is small
    "launch/demo.sh": "tests/distributed/test_scripts.py",
    "launch/decide.sh": "tests/distributed/test_scripts.py",
    "launch/setup.sh": "tests/unit/house/test_docker.py",
    "launch/assets.py": "tests/unit/house/test_assets.py",
    "tests/run.sh": "tests/run.sh",
    "benchmarks/frontier.py": "tests/unit/house/test_frontier.py",
    "benchmarks/other_data.py": "tests/unit/house/test_frontier.py",
    "benchmarks/other_texts.py": "tests/unit/house/test_frontier.py",
    "benchmarks/other_chats.py": "tests/unit/house/test_frontier.py",
    "benchmarks/upcycle.py": "tests/unit/pruning/calibration/test_experts.py",
    "pat train recipe=llama3_8b": "tests/recipes/test_recipes.py",
    "--table latency.json": "tests/distributed/test_latency.py",
    "engine.hostfile": "tests/distributed/test_hosts.py",
    "srun ": "tests/cluster/test_slurm.py",
    "pat doctor": "tests/distributed/test_doctor.py",
    "pat watch": "tests/unit/report",
    "pat export RUN": "tests/unit/export",
    "pat evaluate DIR": "tests/unit/evaluation",
    "pat export runs/": "tests/unit/export",
    "pat logs /shared": "tests/unit/launch/test_status.py",
    "pat COMMAND": "tests/unit/house/test_docs.py",
}


def elsewhere(command: str) -> set[str]:
    """What a command may have in it that runs elsewhere: as named here, or by the test that types such commands."""
    of_typed = typed.ELSEWHERE if command in typed.COMMANDS else ()
    return {*ELSEWHERE, *of_typed, *(training.ELSEWHERE if command == "train" else ())}


def unaccounted() -> list[str]:
    """Commands that nothing runs."""
    as_written = {tuple(words) for words in dry.written()}
    as_written |= {tuple(shlex.split(command, comments=True)) for command in typed.written()}
    trained, found = set(training.written()), list[str]()
    for page in PAGES:
        for code in code_in(page.read_text()):
            called = CALLED.match(code)
            if not called and re.search(r"\bpat [a-z]", code) and not code.startswith(OF_A_SHELL):
                found.append(f"{page.name}: {code} (how is pat called here?)")
            if not called or code.startswith(OF_A_SHELL):
                continue
            words = shlex.split(called[2], comments=True)
            if any(part in code for part in elsewhere(words[0] if words else "")):
                continue
            keys = composable(words) if words and words[0] == "train" else []
            if tuple(words) not in as_written and not (keys and tuple(keys) in trained):
                found.append(f"{page.name}: {code}")
    return found


def test_every_command_of_the_pages_is_run() -> None:
    assert not unaccounted()


def test_where_they_run_is_there() -> None:
    text = "\n".join(code for page in PAGES for code in code_in(page.read_text()))
    for part, where in ELSEWHERE.items():
        assert (ROOT / where).exists(), where
        assert part in text or part == "pat COMMAND", f"{part}: no page has it any more"
