"""A verdict for CI: JUnit XML, a summary in Markdown. Names of models and mixes are written as text, never as
markup."""

from __future__ import annotations

import html
import math
import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from typing import Any

from pat.common.text import plain
from pat.envelope.figures import PROFILE, figures, with_unit
from pat.envelope.judge import Check
from pat.envelope.spec import SLICES
from pat.gate.verdict import Verdict

MANY = 8  # slices of a dimension that are named

SUITE = "pat gate"
NAME = 32  # characters of a check that are on one line, however narrow the terminal
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~-])")


def junit(verdict: Verdict, now: float | None = None) -> bytes:
    """One test suite with a test case for each check; elements and attributes of the schema that Jenkins and GitLab
    read.

    Source: github.com/jenkinsci/xunit-plugin, junit-10.xsd.
    """
    failed = sum(not check.passed for check in verdict.checks)
    counts = {"tests": str(len(verdict.checks)), "failures": str(failed), "errors": "0"}
    root = ET.Element("testsuites", {"name": SUITE, **counts, "time": f"{verdict.seconds:.3f}"})
    suite = ET.SubElement(
        root,
        "testsuite",
        {
            "name": SUITE,
            **counts,
            "skipped": "0",
            "time": f"{verdict.seconds:.3f}",
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)),
        },
    )
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(verdict):
        ET.SubElement(properties, "property", {"name": name, "value": plain(value)})
    for check in verdict.checks:
        case = ET.SubElement(suite, "testcase", {"classname": SUITE, "name": plain(check.name), "time": "0"})
        if not check.passed:
            said = plain(sentence(check))
            ET.SubElement(case, "failure", {"message": said, "type": "OutsideEnvelope"}).text = said
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True)


def markdown(verdict: Verdict) -> str:
    """A table, the checks that failed first."""
    failed = sum(not check.passed for check in verdict.checks)
    head = "passed" if verdict.passed else f"failed: {failed} of {len(verdict.checks)} checks"
    lines = [f"## pat gate {head}", ""]
    lines += [f"- {name}: {_escaped(value)}" for name, value in _properties(verdict)]
    lines += ["", "| | check | n | rule | measured | baseline | judged | interval |", "| --- |" + " --- |" * 7]
    for check in sorted(verdict.checks, key=lambda check: check.passed):
        cells = (
            "pass" if check.passed else "**FAIL**", _escaped(check.name), count(check), _escaped(check.rule),
            *numbers(check),
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    for said in notes(verdict):
        lines += ["", _escaped(said)]
    return "\n".join(lines) + "\n"


def uncertain(verdict: Verdict) -> str:
    """What passes or fails by its figure alone; "" for none."""
    names = ", ".join(check.name for check in verdict.checks if not check.certain)
    return f"not certain, as the limit lies within the interval: {names}" if names else ""


def notes(verdict: Verdict) -> list[str]:
    """What the table does not say: the checks that are not certain, the slices that are not judged."""
    least = verdict.envelope.get(SLICES, {}).get("least")
    slices = ", ".join(_left_out(verdict.left_out))
    few = f"not judged, with fewer than {least} samples or prompts (slices.least): {slices}"
    return [*filter(None, [uncertain(verdict), _paired(verdict)]), *([few] if slices else [])]


def _paired(verdict: Verdict) -> str:
    """The ratios that are not those of the two figures beside them; "" for none."""
    measured = {name for name, figure in figures().items() if PROFILE in figure.sources}
    names = [
        check.name
        for check in verdict.checks
        if check.name.endswith(".ratio") and check.name.removesuffix(".ratio") in measured and check.baseline
        if not math.isclose(check.quantity, check.measured / check.baseline, rel_tol=1e-3)
    ]
    said = "judged by the ratio of requests that both models had in turn, not by that of the two figures: "
    return said + ", ".join(names) if names else ""


def _left_out(found: Mapping[str, int]) -> Iterator[str]:
    """The slices with their samples; of a dimension with more than MANY only how many."""
    dimensions: dict[str, dict[str, int]] = {}
    for name, n in found.items():
        dimensions.setdefault(name.partition("=")[0], {})[name] = n
    for dimension, slices in dimensions.items():
        if len(slices) > MANY:
            yield f"{len(slices)} of {dimension} ({min(slices.values())} to {max(slices.values())})"
        else:
            yield from (f"{name} ({n})" for name, n in slices.items())


def sentence(check: Check) -> str:
    """The result of a check as a sentence."""
    measured, baseline, quantity, interval = numbers(check)
    against = f" against {baseline}" if check.baseline is not None else ""
    judged = f", judged {quantity}" if check.quantity != check.measured else ""
    spread = f" (interval {interval})" if check.interval is not None else ""
    return f"{check.name}: {measured}{against}{judged}{spread}, must be {check.rule}{check.edge}"


def count(check: Check) -> str:
    """The samples or prompts of a check; - where it is of the model itself, or of a profile."""
    return "-" if check.n is None else f"{check.n:,}"


def numbers(check: Check) -> tuple[str, str, str, str]:
    """Measured, baseline, judged quantity and interval, as people read them; - where there is none."""
    interval = "-" if check.interval is None else " to ".join(f"{end:z.4g}" for end in check.interval)
    measured, baseline = (_measured(value, check.name) for value in (check.measured, check.baseline))
    return measured, baseline, f"{check.quantity:z.4g}", interval


def _measured(value: float | None, check: str) -> str:
    if value is None:
        return "-"
    return with_unit(f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:z.6g}", check)


def table(verdict: Verdict) -> Any:
    """The same for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, caption=Text(plain("\n".join(notes(verdict)))) or None, caption_justify="left")
    made.add_column("", no_wrap=True, min_width=len("FAIL"))
    longest = max((len(plain(check.name)) for check in verdict.checks), default=0)
    made.add_column("check", overflow="fold", min_width=min(longest, NAME))
    made.add_column("n", justify="right")
    made.add_column("rule", overflow="fold")
    for column in ("measured", "baseline", "judged", f"{verdict.confidence:.0%} interval"):
        made.add_column(column, justify="right", overflow="fold")
    for check in verdict.checks:
        passed = "pass" if check.passed else "FAIL"
        made.add_row(passed, Text(plain(check.name)), count(check), check.rule, *numbers(check))
    return made


def _properties(verdict: Verdict) -> list[tuple[str, str]]:
    models = [("variant", verdict.variant), ("baseline", verdict.baseline)]
    said = [(name, f"{one['folder']} (stored weights {one['weights_sha256'][:16]})") for name, one in models if one]
    whole = "the whole interval must be inside" if verdict.confident else "the figure must be inside"
    return [
        *said,
        ("data", "; ".join(verdict.data) or "none"),
        ("rule", f"{whole}, {verdict.confidence:.0%} intervals"),
    ]


def _escaped(text: str) -> str:
    return html.escape(_MARKDOWN.sub(r"\\\1", plain(text)), quote=False).replace("\n", " ")
