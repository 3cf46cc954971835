"""What pytest does with a failure: a second run where the machine may be at fault; its name at once, and again at the
end of the output, for a run that is stopped has no end and of a long one only the end may be kept.

Tests marked `real_processes` wait for daemons and signals or take times, so a machine that stands still for a minute
can fail them. They are run once more. A pass then counts as a pass, but the first failure is shown and counted as
`run once more`, so a change that makes a test fail now and then shows in that number.

What was skipped in NEEDS_ROOT (a real Slurm, sshd, a full disk) is counted at the end with its reason. Where
CI=true, as on GitHub and in .ci/run, such a skip fails the run: there it would mean that nobody ever runs these. So it
is with what was skipped in INSTALLED (a browser, PostgreSQL, another user's Python), but only where tests may install
what is missing; elsewhere many machines have it, and it is only counted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from tests.install import may_install

MARK = "real_processes"
ONCE_MORE = "run once more"  # the outcome of a first failure, and its word in pytest's last line
LAST_LINES = 8  # of what a test failed with
_terminal: Any = None
NEEDS_ROOT = ("tests/cluster/", "tests/distributed/", "tests/unit/registry/test_mlflow.py")
INSTALLED = ("tests/browser/", "tests/unit/house/test_docker.py", "tests/unit/registry/test_postgresql.py")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a test of real processes once more if it fails; other tests as ever."""
    if item.get_closest_marker(MARK) is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    failed = [report for report in reports if report.failed and not hasattr(report, "wasxfail")]
    if failed:
        for report in failed:
            report.outcome = ONCE_MORE  # pyright: ignore[reportAttributeAccessIssue]: pytest counts any word
            item.ihook.pytest_runtest_logreport(report=report)
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_report_teststatus(report: Any) -> tuple[str, str, str] | None:
    """How a first failure is counted and shown."""
    return (ONCE_MORE, "R", "RUN ONCE MORE") if report.outcome == ONCE_MORE else None


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: Any) -> None:
    """Show a failure when it happens."""
    if _terminal is not None and report.outcome in ("failed", ONCE_MORE):
        _terminal.ensure_newline()
        _show(_terminal, "failed" if report.outcome == "failed" else "failed, is run once more", report)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Only the process that prints has a terminal."""
    global _terminal
    _terminal = None if hasattr(config, "workerinput") else config.pluginmanager.get_plugin("terminalreporter")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any) -> Generator[None]:
    """After all that pytest shows: the names of what failed and its last lines, in case only the end is kept."""
    yield
    stats = terminalreporter.stats
    for reason, count in _skipped(terminalreporter, NEEDS_ROOT + INSTALLED).items():
        terminalreporter.line(f"skipped {count} that need root or an installation: {reason}")
    passed = {report.nodeid for report in stats.get("passed", [])}
    for report in stats.get(ONCE_MORE, []):
        then = "passed" if report.nodeid in passed else "did not pass then, either"
        _show(terminalreporter, f"failed, was run once more and {then}", report)
    for kind in ("failed", "error"):
        for report in stats.get(kind, []):
            _show(terminalreporter, kind, report)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """On CI a skip of what needs root is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    places = NEEDS_ROOT + (INSTALLED if may_install() else ())
    if os.environ.get("CI") == "true" and reporter is not None and _skipped(reporter, places):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _skipped(terminalreporter: Any, places: tuple[str, ...]) -> Counter[str]:
    """How often tests of these places were skipped, by the reason."""
    skipped = terminalreporter.stats.get("skipped", [])
    return Counter(_reason(report) for report in skipped if report.nodeid.startswith(places))


def _reason(report: Any) -> str:
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)


def _show(terminalreporter: Any, kind: str, report: Any) -> None:
    terminalreporter.section(f"{kind}: {report.nodeid}", sep="-")
    for line in str(report.longrepr).rstrip().splitlines()[-LAST_LINES:]:
        terminalreporter.line(line)
