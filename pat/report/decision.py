"""The top of a report: whether the model is good enough, in a sentence that says where the answer comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pat.envelope.figures import with_unit
from pat.report import values
from pat.report.page import Decision
from pat.report.sources import Run, Sources, Variant, Written
from pat.report.values import get, mapping, number, sequence, text
from pat.run.directory import ExitCode

SHOWN = 8  # reasons that are listed


def decide(sources: Sources) -> Decision:
    """By the gate if there is one, else by the comparison, else by the facts of the run, the export or the sweep."""
    if sources.judging:
        return _beside(_of_gates(sources.judging), sources.telling)
    if sources.gates:
        said = [f"{each.path}: of {text(each.content, 'variant.folder')}" for each in sources.gates]
        return Decision("open", "Not decided", "The gate is of other weights than this page is about.", _first(said))
    if sources.telling:
        return of_comparison(sources.telling[0].content)
    if sources.comparisons:
        said = [f"{each.path}: {text(each.content, 'a')} and {text(each.content, 'b')}" for each in sources.comparisons]
        return Decision(
            "open",
            "Not decided",
            "The comparison is of other models than this page is about, or of other weights than they have now.",
            _first(said),
        )
    if sources.logs:
        return of_logs(sources.logs[0].content)
    subject = sources.subject
    if isinstance(subject, Run):
        return of_run(subject)
    if isinstance(subject, Variant):
        return _of_variant(subject)
    if sources.sweeps:
        return _of_sweep(sources.sweeps[0].content)
    return Decision("open", "Not decided", "No gate and no comparison is given, so this report decides nothing.")


def _of_gates(gates: list[Written]) -> Decision:
    checks = [check for gate in gates for check in sequence(gate.content, "checks") if isinstance(check, Mapping)]
    failed = [check for check in checks if check.get("passed") is not True]
    if not checks:
        return Decision("open", "Not decided", "The gate has no check.")
    if all(gate.content.get("passed") is True for gate in gates):
        many = f"all {len(checks)} checks of the gate pass" if len(checks) != 1 else "the one check of the gate passes"
        doubtful = [text(check, "name") for check in checks if check.get("certain") is False]
        noun = "check" if len(doubtful) == 1 else "checks"
        word = f"Good enough; {len(doubtful)} {noun} not certain" if doubtful else "Good enough"
        doubt = f"; not certain, as the limit lies within the interval: {', '.join(doubtful)}" if doubtful else ""
        return Decision("good", word, f"{many[0].upper()}{many[1:]}{doubt}.")
    verb = "fails" if len(failed) == 1 else "fail"
    what = f"{len(failed)} of {len(checks)} checks {verb}" if failed else "The gate says so without naming a check"
    reasons = [check_in_words(check) for check in failed]
    return Decision("bad", "Not good enough", f"{what}.", _first(reasons))


def _beside(gates: Decision, comparisons: list[Written]) -> Decision:
    """A gate that passes, with what a comparison of the same weights finds worse: no limit covers that."""
    found = of_comparison(comparisons[0].content) if comparisons else None
    if gates.tone != "good" or found is None or found.tone != "bad":
        return gates
    word = f"{gates.word}, but {found.word[0].lower()}{found.word[1:]}"
    sentence = f"{gates.sentence} Beside the gate: {found.sentence}"
    return replace(gates, word=word, sentence=sentence, reasons=found.reasons)


def check_in_words(check: Mapping[str, Any]) -> str:
    """`accuracy.drop: measured 0.71, baseline 0.8, must be at most 0.01 below the baseline`."""
    rule, limit = text(check, "rule"), get(check, "limit")
    parts = [f"{key} {of_figure(check, key)}" for key in ("measured", "baseline") if get(check, key) not in (None, {})]
    if rule:
        parts.append(f"must be {rule}")
    elif limit not in (None, {}):
        parts.append(f"limit {shown(limit)}")
    return f"{text(check, 'name', 'a check')}: {', '.join(parts) or 'nothing is measured'}"


def of_figure(check: Mapping[str, Any], key: str) -> str:
    """What a check measured, or its baseline, with the figure's unit."""
    said = shown(get(check, key))
    return said if number(check, key) is None else with_unit(said, text(check, "name"))


def of_comparison(content: Mapping[str, Any]) -> Decision:
    """Whether the b of a comparison is worse than its a, over all or in a slice."""
    outcomes = [one for one in sequence(content, "outcomes") if isinstance(one, Mapping)]
    a, b = values.both(content)
    whole = {"worse": [], "better": [], "": []}
    slices: list[str] = []
    for outcome in outcomes:
        name = text(outcome, "name", "the outcome")
        whole.setdefault(text(outcome, "overall.verdict"), []).append(_difference(name, mapping(outcome, "overall")))
        slices += [
            _difference(f"{name}, {text(one, 'name')}", one)
            for one in sequence(outcome, "slices")
            if text(one, "verdict") == "worse"
        ]
    of = f"{text(content, 'prompts', 'the same')} {text(content, 'what', 'prompts')}"
    on = f"on {of} ({text(content, 'data', 'unnamed data')})"
    if not outcomes:
        return Decision("open", "Not decided", f"The comparison {on} has no outcome.")
    if whole["worse"]:
        return Decision("bad", "Worse", f"{b} is worse than {a} {on}.", _first([*whole["worse"], *slices]))
    if slices:
        one = "slice" if len(slices) == 1 else "slices"
        return Decision("bad", "Worse in part", f"{b} is worse than {a} in {len(slices)} {one}, {on}.", _first(slices))
    if whole["better"]:
        return Decision("good", "Better", f"{b} is better than {a} {on}.", _first([*whole["better"], *whole[""]]))
    return Decision(
        "open",
        "No difference found",
        f"Chance explains the differences between {a} and {b} {on}. The intervals say how large a difference can be.",
        _first(whole[""]),
    )


def _difference(name: str, one: Mapping[str, Any]) -> str:
    """`passed: from 0.31 to 0.17 (-0.137, interval -0.224 to -0.0606)`."""
    a, b, by, low, high = (number(one, f"found.{key}") for key in ("a", "b", "difference", "low", "high"))
    interval = f", interval {values.signed(low)} to {values.signed(high)}" if low is not None else ""
    return f"{name}: from {values.short(a)} to {values.short(b)} ({values.signed(by)}{interval})"


def of_logs(content: Mapping[str, Any]) -> Decision:
    """In which outcomes two logs differ so far."""
    names, said, verdicts = values.both(content), list[str](), list[str]()
    for one in sequence(content, "watched"):
        name, look = text(one, "name", "the outcome"), mapping(one, "overall.look")
        a, b = (values.short(number(look, key)) for key in "ab")
        said.append(f"{name} is {a} in {names[0]} and {b} in {names[1]}")
        verdict = text(one, "overall.verdict")
        if verdict in ("higher", "lower"):
            verdicts.append(f"{name} {verdict}")
    together = "; ".join(said)
    if not verdicts:
        return Decision("open", "Not decided yet", f"The logs say nothing certain so far: {together}.")
    title = f"{names[1]}: {', '.join(verdicts)}"
    return Decision("open", title, f"By the sequential test on the logs {together}.")


def of_run(run: Run) -> Decision:
    """The state of a run, or how it ended."""
    code, name = run.code, run.name
    if code is None:
        steps, last = get(run.config, "train.num_steps"), run.lines[-1]["step"] if run.lines else 0
        words = {"running": "Running", "starting": "Starting", "died": "Died", "not started": "Not started"}
        word = words.get(run.state, "Not finished")
        tone = "bad" if word == "Died" else "open"
        how = "" if word in ("Running", "Starting") else ", and has not said how it ended"
        return Decision(tone, word, f"{name} has logged step {last} of {steps}{how}.")
    if code != ExitCode.DONE:
        known = ExitCode(code).meaning if code in list(ExitCode) else f"exit code {code}"
        message = text(run.exit, "message")
        word = "Preempted" if code == ExitCode.PREEMPTED else "Failed"
        tone = "open" if code == ExitCode.PREEMPTED else "bad"
        return Decision(tone, word, f"{name} ended without a result: {known}.", [message] if message else [])
    removed = _removed(number(run.summary, "sparsity"), number(run.summary, "prunable_parameters"))
    stopped = "stopped early" if run.summary.get("stopped_early") else "is done"
    sentence = f"{name} {stopped} at step {values.short(number(run.summary, 'step'))}: {removed}{_quality(run)}."
    return Decision("open", "Not decided", sentence, [_next(f"pat compare DENSE {run.path}")])


def _of_variant(variant: Variant) -> Decision:
    removed = _removed(number(variant.export, "sparsity"), number(variant.export, "prunable_parameters"))
    sentence = f"{variant.name}: {removed}{_quality(variant)}."
    return Decision("open", "Not decided", sentence, [_next(f"pat compare DENSE {variant.path}")])


def _removed(sparsity: float | None, prunable: float | None) -> str:
    if not prunable:
        return "nothing was pruned; "
    return f"{values.percent(sparsity)} of {values.short(prunable)} prunable weights are removed; "


def _quality(one: Run | Variant) -> str:
    shown = _figures(one.metrics)
    before = _figures(one.before)
    if not shown:
        return "it was not evaluated"
    return shown + (f"; {one.began}: {before}" if before else "")


def _figures(metrics: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {values.short(value)}" for name, value in values.numbers(metrics).items())


def _next(command: str) -> str:
    return f"Whether that is good enough is not measured here: {command} --json FILE, and give FILE to this report."


def _of_sweep(content: Mapping[str, Any]) -> Decision:
    members = [one for one in sequence(content, "members") if isinstance(one, Mapping)]
    done = sum(number(one, "code") == ExitCode.DONE for one in members)
    points = sequence(content, "points")
    front = sum(get(one, "best") is True for one in points)
    both = f"{text(content, 'x')} and {text(content, 'y', 'quality')}"
    best = "the only point is" if len(points) == 1 else f"{front} of {len(points)} points {_is(front)}"
    said = f"{best} on the front of {both}" if points else f"none has both {both}"
    sentence = f"{done} of {len(members)} runs {_is(done)} done; {said}."
    if done < len(members):
        return Decision("open", "Not finished", sentence)
    if len(points) < 2:
        return Decision("open", "Not decided", sentence, ["A choice needs two points that have both figures."])
    if front == 1:
        return Decision("open", "One is the best", sentence, ["No other point is better in either figure."])
    return Decision(
        "open",
        "A choice to make",
        sentence,
        ["No point of the front is better in one without being worse in the other."],
    )


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def shown(value: Any) -> str:
    """A measured value, a limit or an interval, in whatever form it comes."""
    found = values.finite(value)
    if found is not None:
        return values.short(found)
    if isinstance(value, Mapping):
        return " ".join(f"{name} {shown(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return " to ".join(map(shown, value))
    return values.NONE if value is None else str(value)


def _first(reasons: list[str]) -> list[str]:
    more = len(reasons) - SHOWN
    return reasons[:SHOWN] + ([f"and {more} more"] if more > 0 else [])
