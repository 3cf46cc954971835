"""`pat watch --tui`, driven by textual's own pilot: what it shows of a run that grows, is cut, and ends."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from textual.content import Content
from textual.widgets import ProgressBar, Sparkline, Static

from pat import cli
from pat.commands import watch
from pat.report.terminal import Followed, RunPanel, Watch, view
from tests import report_samples as samples


def write(run: Path, *lines: dict[str, Any], end: str = "") -> None:
    with open(run / "metrics.jsonl", "a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines) + end)


def test_a_run_as_it_grows_is_cut_and_ends(tmp_path: Path) -> None:
    """Fails if a torn line is lost for good, lines are read twice, or those that the run has cut stay."""
    run = samples.run(tmp_path / "run", done=False)
    (run / "metrics.jsonl").unlink()
    followed = Followed(run / "metrics.jsonl")
    assert (view(run, followed).step, view(run, followed).left_s) == (0, None)
    write(run, {"step": 10, "train/loss": 2.0, "train/step_seconds": 0.5, "pruning/phase": "soft"}, end='{"step": 20')
    found = view(run, followed)
    assert (found.step, found.num_steps, found.phase, found.left_s) == (10, samples.STEPS, "soft", 25.0)
    write(run, {}, end="")
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().replace('{"step": 20{}', '{"step": 20}'))
    write(run, {"step": 30, "train/loss": 1.0, "eval/accuracy": 0.75, "pruning/sparsity": 0.4, "pruning/target": 0.5})
    found = view(run, followed)
    assert found.losses == [2.0, 1.0] and found.metrics == {"accuracy": 0.75}
    assert (found.sparsity, found.target, view(run, followed).losses) == (0.4, 0.5, [2.0, 1.0])
    (run / "new").write_text(json.dumps({"step": 10, "train/loss": 2.0}) + "\n")
    (run / "new").replace(run / "metrics.jsonl")
    assert view(run, followed).losses == [2.0]
    (run / "exit.json").write_text('{"code": 3, "meaning": "diverged", "message": ""}')
    assert view(run, followed).left_s is None and "diverged" in view(run, followed).facts(time.time())


def test_on_a_terminal(tmp_path: Path) -> None:
    """Two runs; names are no markup and no control codes; a new line is shown; q ends it."""
    runs = [samples.run(tmp_path / "one", done=False), samples.run(tmp_path / "two", name=f"[red]{samples.NASTY}")]

    async def look() -> None:
        app = Watch(runs, every_s=3600)
        async with app.run_test(size=(100, 50)) as pilot:
            first, second = app.query(RunPanel)
            facts = first.query_one(".facts", Static)
            assert f"step {samples.STEPS} of {samples.STEPS}" in str(facts.content) and "hard" in str(facts.content)
            assert len(first.query_one(Sparkline).data or []) == samples.STEPS
            assert first.query_one(ProgressBar).percentage == 1.0
            title = Content.from_markup(str(second.border_title)).plain
            assert title.startswith("[red]<script>") and "\x1b" not in title
            write(runs[0], {}, {"step": 61, "train/loss": 0.1, "pruning/phase": "hard", "pruning/sparsity": 0.123})
            app.show()
            await pilot.pause()
            assert "12.3 %" in str(facts.content)
            (runs[0] / "config.yaml").unlink()
            app.show()
            await pilot.press("q")
        assert app.return_code == 0

    asyncio.run(look())


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["{run}", "--tui", "--port", "80"], "--port would be ignored"),
        (["{run}", "--tui", "--every", "0"], "give 1 second or more"),
        (["no", "--tui"], "cannot read no/config.yaml"),
        (["{run}", "--tui"], "needs a terminal"),
    ],
)
def test_mistakes(given: list[str], sentence: str, tmp_path: Path, capsys: Any) -> None:
    run = samples.run(tmp_path / "run")
    with pytest.raises(SystemExit) as stop:
        cli.main(["watch", *(word.format(run=run) for word in given)])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and sentence in said and said.count("\n") == 1


def test_without_textual(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(watch, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        cli.main(["watch", str(samples.run(tmp_path / "run")), "--tui"])
    assert stop.value.code == 2 and "pat-deepspeed[tui]" in capsys.readouterr().err
