"""The list of planted faults cannot rot, and the run tells a fault that is seen from one that is not."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.long import mutants
from tests.long.faults import ACCEPTED, Fault, faults

FAULTS = faults()


def test_every_fault_is_in_its_file_once_and_is_python(repository: Path) -> None:
    """Would catch: a text that a later change took away, a fault that is no Python or that changes nothing."""
    problems: list[str] = []

    @cache
    def tree(text: str) -> str:
        return ast.dump(ast.parse(text))

    for fault in FAULTS:
        text = (repository / fault.file).read_text()
        if text.count(fault.old) != 1:
            problems.append(f"{fault.name}: {fault.old!r} is there {text.count(fault.old)} times")
            continue
        try:
            changed = tree(mutants.mutated(text, fault)) != tree(text)
        except SyntaxError as error:
            problems.append(f"{fault.name}: {error}")
            continue
        if not changed:
            problems.append(f"{fault.name}: changes nothing")
    assert not problems, "\n".join(problems)


def test_names_are_there_once_and_tests_exist(repository: Path) -> None:
    assert len(FAULTS) >= 200 and len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert set(ACCEPTED) <= {fault.name for fault in FAULTS} and all(ACCEPTED.values())
    files = {test for fault in FAULTS for test in [*fault.tests, *fault.ranks]}
    assert not [file for file in files if not (repository / file).is_file()]


def toy(root: Path) -> list[Fault]:
    code, tests = root / "pat" / "zero", root / "tests" / "unit"
    for folder in (code, tests / "zero", tests / "pruning" / "structures"):
        folder.mkdir(parents=True)
    for folder in ("pat", "pat/zero", "tests", "tests/unit"):
        (root / folder / "__init__.py").touch()
    (code / "engine.py").write_text("def f(x):\n    return x + 1\n\n\ndef g(x):\n    return x * 2\n")
    (tests / "zero" / "test_engine.py").write_text(
        "from pat.zero.engine import f\n\n\ndef test_f():\n    assert f(1) == 2\n"
    )
    (tests / "pruning" / "structures" / "test_gate_oracle.py").write_text("def test_nothing():\n    pass\n")
    return [
        Fault("pat/zero/engine.py", "x + 1", "x + 2", "seen"),
        Fault("pat/zero/engine.py", "x * 2", "x * 3", "not seen"),
        Fault("pat/zero/engine.py", "return x + 1", "while True: __import__('time').sleep(1)", "never ends"),
    ]


@pytest.mark.real_processes
@pytest.mark.slow
def test_a_kill_and_a_survivor_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a toy package: outcomes, the checkout as it was, nothing run twice, a survivor again when its tests change."""
    root, results = tmp_path / "toy", tmp_path / "found.jsonl"
    root.mkdir()
    chosen = toy(root)
    mutants.run_all(root, chosen[:2], results, jobs=2, ranks=False, limit_s=20)
    mutants.run_all(root, chosen[2:], results, jobs=1, ranks=False, limit_s=2)
    known = mutants.read(results)
    assert [known[fault.name].outcome for fault in chosen] == ["killed", "survived", "timeout"]
    assert known[chosen[0].name].by == "tests/unit/zero/test_engine.py::test_f"
    assert "x + 1" in (root / "pat" / "zero" / "engine.py").read_text()
    said = mutants.summary(chosen, known)
    assert (said["killed"], said["run"], list(said["survivors"])) == (2, 3, [chosen[1].name])

    with open(results, "a") as file:
        file.write('{"name": "torn')
    ran: list[str] = []
    plain = mutants.run_tests
    monkeypatch.setattr(mutants, "run_tests", lambda *given: (ran.append(given[0].name), plain(*given))[1])
    mutants.run_all(root, chosen, results, jobs=1, ranks=False, limit_s=20)
    assert not ran
    with open(root / "tests" / "unit" / "zero" / "test_engine.py", "a") as file:
        file.write("\n\ndef test_g():\n    from pat.zero.engine import g\n\n    assert g(1) == 2\n")
    mutants.run_all(root, chosen, results, jobs=1, ranks=False, limit_s=20)
    assert len(ran) == 1 and mutants.read(results)[chosen[1].name].outcome == "killed"


@pytest.mark.slow
def test_only_tests_that_reach_a_fault_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quickest first; none for a line that nothing runs, all for a line of an import. Would catch: a fault that
    counts as let through because the test that sees it was left out."""
    root, results = tmp_path / "toy", tmp_path / "found.jsonl"
    root.mkdir()
    chosen = toy(root)[:2]
    (root / "pat" / "zero" / "engine.py").write_text(
        "ONE = 1\n\n\ndef f(x):\n    return x + 1\n\n\ndef g(x):\n    return x * 2\n"
    )
    (root / "tests" / "unit" / "zero" / "test_engine.py").write_text(
        "import time\n\nfrom pat.zero.engine import ONE, f\n\n\n"
        "def test_slow():\n    time.sleep(0.3)\n    assert f(1)\n\n\n"
        "def test_f():\n    assert f(1) == 2\n\n\ndef test_one():\n    assert ONE == 1\n"
    )
    chosen.append(Fault("pat/zero/engine.py", "ONE = 1", "ONE = 2", "of the import"))
    mutants.check_baseline(root, chosen, results, 20)
    ran: list[list[str]] = []
    plain = mutants.run_tests
    monkeypatch.setattr(mutants, "run_tests", lambda *given: (ran.append(given[3]), plain(*given))[1])
    mutants.run_all(root, chosen, results, jobs=1, ranks=False, limit_s=20)
    names = [[name.partition("::")[2] for name in only] for only in ran]
    assert names[:2] == [["test_f", "test_slow"], []] and names[2][-1] == "test_slow" and len(names[2]) >= 3
    known = mutants.read(results)
    assert [known[fault.name].outcome for fault in chosen] == ["killed", "survived", "killed"]


@pytest.mark.slow
def test_what_several_tests_share_is_reached_by_each(tmp_path: Path) -> None:
    """Would catch: a fault in what a fixture of a module does, seen by the second test that takes it."""
    root, results = tmp_path / "toy", tmp_path / "found.jsonl"
    root.mkdir()
    toy(root)
    (root / "tests" / "unit" / "zero" / "test_engine.py").write_text(
        "import pytest\n\nfrom pat.zero.engine import f\n\n\n"
        '@pytest.fixture(scope="module")\ndef made():\n    return f(1)\n\n\n'
        "def test_first(made):\n    assert made\n\n\ndef test_second(made):\n    assert made == 2\n"
    )
    chosen = [Fault("pat/zero/engine.py", "x + 1", "x + 2", "seen by the second")]
    mutants.check_baseline(root, chosen, results, 20)
    mutants.run_all(root, chosen, results, jobs=1, ranks=False, limit_s=20)
    assert mutants.read(results)[chosen[0].name].by == "tests/unit/zero/test_engine.py::test_second"


@pytest.mark.slow
def test_what_a_test_runs_of_one_file_says_nothing_of_another(tmp_path: Path) -> None:
    """Would catch: a fault that counts as let through as an earlier run noted what tests reach, but of other files."""
    root, results = tmp_path / "toy", tmp_path / "found.jsonl"
    root.mkdir()
    first = toy(root)[:1]
    (root / "pat" / "training").mkdir()
    (root / "pat" / "training" / "__init__.py").touch()
    (root / "pat" / "training" / "learning_rate.py").write_text("def h(x):\n    return x - 1\n")
    (root / "tests" / "unit" / "zero" / "test_engine.py").write_text(
        "from pat.training.learning_rate import h\n\n\ndef test_h():\n    assert h(1) == 0\n"
    )
    second = [Fault("pat/training/learning_rate.py", "x - 1", "x - 2", "seen")]
    for chosen in (first, second):
        mutants.check_baseline(root, chosen, results, 20)
    mutants.run_all(root, second, results, jobs=1, ranks=False, limit_s=20)
    assert mutants.read(results)[second[0].name].outcome == "killed"


@pytest.mark.slow
def test_a_test_that_fails_without_a_fault_is_named(tmp_path: Path) -> None:
    root = tmp_path / "toy"
    root.mkdir()
    chosen = toy(root)
    (root / "tests" / "unit" / "zero" / "test_engine.py").write_text("def test_f():\n    assert False\n")
    with pytest.raises(ValueError, match="test_engine.py fails without any fault"):
        mutants.check_baseline(root, chosen, tmp_path / "found.jsonl", 20)
