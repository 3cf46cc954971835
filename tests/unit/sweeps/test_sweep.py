"""Sweeps: which runs they are, how they are started and stopped, what they come to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pat.commands import sweep as command
from pat.common.files import write_json
from pat.config import compose, frozen
from pat.launch.process import Process
from pat.run.directory import ExitCode, RunDir
from pat.schema import Config
from pat.sweeps import latency, plot, results, runner, sweep
from pat.sweeps.members import Member, check_one, members_of, problems, sweep_name
from pat.sweeps.results import X_AXES, Point
from pat.sweeps.runner import Ended, Place, Runner

METHODS = "pruners.weights.criterion.name=magnitude,movement"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("it's a sweep, 50%") / "s=1,2"


@pytest.fixture(scope="module")
def members(out: Path) -> list[Member]:
    return members_of(["recipe=parity", METHODS, "seed=0,1", "optim.lr=1e-3"], out)


def test_members_are_all_combinations_with_names_of_what_differs(members: list[Member], out: Path) -> None:
    assert [m.name for m in members] == [
        f"weights.criterion={c},seed={s}" for c in ("magnitude", "movement") for s in (0, 1)
    ]
    assert [m.dir for m in members] == [out / m.name for m in members]
    assert [m.varied for m in members][1] == {"weights.criterion": "magnitude", "seed": "1"}
    assert [m.config.seed for m in members] == [0, 1, 0, 1]
    assert not out.exists(), "to look is not to run"


def test_the_command_of_a_member_composes_to_its_config(members: list[Member], out: Path) -> None:
    """Through Hydra's grammar and back, in a directory whose name is full of its signs."""
    for member in members:
        found: list[Config] = []
        compose.compose(member.command[1:], lambda config, found=found: found.append(config) or 0)
        (config,) = found
        assert (Path(config.run.dir), config.run.name) == (member.dir, member.name)
        assert config.logger.group == out.name, "wandb shows the members together"
        assert not frozen.changed_keys(config, member.config)


def test_a_group_that_the_user_gives_stays(tmp_path: Path) -> None:
    member = members_of(["recipe=parity", "seed=0,1", "logger.group=mine"], tmp_path)[0]
    assert not any(argument.startswith("logger.group='") for argument in member.command)


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["recipe=parity"], "nothing is swept"),
        (["recipe=parity", "seed=0,1", "run.dir=x"], "directories of their own below --out"),
        (["recipe=parity", "run.resume=never,must"], "run.resume is the sweep's own, .* leave it out"),
        (["recipe=parity", "seed=0,1", "run.until=3"], "run.until is the sweep's own, .* leave it out"),
        (["recipe=parity", "seed=0,1", "engine.zero_stage=2,7"], "engine.zero_stage"),
        (["recipe=parity", "seed=0,0"], "would share a folder .recipe=parity seed=0.: give each value of a key, and"),
        (["recipe=parity", "seed=0,1,0"], "would share a folder .recipe=parity seed=0."),
    ],
)
def test_what_is_no_sweep_is_refused_before_anything_runs(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        members_of(overrides, tmp_path)


def test_the_same_command_finds_its_sweep_again() -> None:
    given_ = ["recipe=parity", "seed=0,1", "logger=none"]
    assert sweep_name(given_) == sweep_name(given_[::-1]) == "parity,seed=0_1"
    assert sweep_name(["seed=0,1", "recipe=parity,sotu"]).startswith("parity_sotu,")


# -- running -----------------------------------------------------------------------------------------------------------


class Fake:
    """A member that ends when it is told to, or when a signal comes."""

    message = ""

    def __init__(self, code: int, polls: int, interrupts: Sequence[tuple[int, int]] = ()) -> None:
        self.code, self.polls, self.received = code, polls, []
        self.interrupts: dict[int, int] = dict(interrupts)  # which signal comes to this process in which poll

    def poll(self) -> int | None:
        self.polls -= 1
        if number := self.interrupts.pop(self.polls, None):
            os.kill(os.getpid(), number)
        return self.code if self.polls < 0 else None

    def send_signal(self, sig: int, /) -> None:
        self.received.append(sig)
        self.code, self.polls = ExitCode.PREEMPTED, 1


def some(count: int, tmp_path: Path) -> list[Member]:
    return [Member(f"m{i}", tmp_path / f"m{i}", {"seed": str(i)}, ("train",), Config()) for i in range(count)]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "POLL_S", 0.005)


def runner_of(jobs: int, fakes: dict[str, Fake], tmp_path: Path) -> tuple[Runner, list[tuple[str, Any]]]:
    happened: list[tuple[str, Any]] = []
    places: dict[str, Place] = {}

    def start(member: Member, place: Place) -> Fake:
        assert place not in places.values(), "two members in one place"
        places[member.name] = place
        happened.append(("start", member.name))
        assert len(places) <= jobs
        return fakes[member.name]

    def ended(member: Member, how: Ended) -> None:
        del places[member.name]
        happened.append((member.name, how.code))

    return Runner(jobs, start, lambda m: tmp_path / f"{m.name}.log", lambda m: None, ended), happened


def test_so_many_at_once_and_a_failure_costs_only_itself(tmp_path: Path, quick: None) -> None:
    fakes = {"m0": Fake(0, 9), "m1": Fake(3, 1), "m2": Fake(-9, 2), "m3": Fake(0, 1)}
    run, happened = runner_of(2, fakes, tmp_path)
    assert run.run(some(4, tmp_path)) is False
    assert happened[:2] == [("start", "m0"), ("start", "m1")]
    assert dict(h for h in happened if h[0] != "start") == {"m0": 0, "m1": 3, "m2": ExitCode.ERROR, "m3": 0}
    assert happened.index(("m1", 3)) < happened.index(("start", "m2")), "its place was free"


@pytest.mark.parametrize("sent, received", [("SIGINT", "SIGTERM"), ("SIGTERM", "SIGTERM"), ("SIGUSR1", "SIGUSR1")])
def test_a_signal_reaches_all_that_run_and_no_other_is_started(
    tmp_path: Path, quick: None, sent: str, received: str
) -> None:
    before = signal.getsignal(signal.Signals[sent])
    fakes = {f"m{i}": Fake(0, 1000) for i in range(3)}
    fakes["m1"].interrupts = {990: int(signal.Signals[sent])}
    run, happened = runner_of(2, fakes, tmp_path)
    assert run.run(some(3, tmp_path)) is True
    assert [fake.received for fake in fakes.values()] == [[signal.Signals[received]]] * 2 + [[]]
    assert happened[-2:] == [("m0", ExitCode.PREEMPTED), ("m1", ExitCode.PREEMPTED)]
    assert signal.getsignal(signal.Signals[sent]) is before


def test_a_second_interrupt_ends_the_members_at_once(tmp_path: Path, quick: None, monkeypatch) -> None:
    monkeypatch.setattr(runner, "SECOND_SIGNAL_S", 0.01)
    fake = Fake(0, 1000, [(990, signal.SIGINT), (980, signal.SIGINT)])
    fake.send_signal = lambda sig, /: (
        fake.received.append(sig)
        or (  # leaves at the second interrupt only
            setattr(fake, "polls", 0) if fake.received.count(signal.SIGINT) == 2 else None
        )
    )
    run, _ = runner_of(1, {"m0": fake}, tmp_path)
    assert run.run(some(1, tmp_path)) is True
    assert fake.received == [signal.SIGTERM, signal.SIGINT, signal.SIGINT]


def test_a_real_member_has_a_session_of_its_own_and_dies_with_the_sweep(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(runner, "python_command", lambda m: [sys.executable, "-c", "import time; time.sleep(60)"])
    (member,) = some(1, tmp_path)
    started = runner.start_here(member, Place(0, 1, 1), tmp_path / "logs" / "m0.log")
    assert os.getsid(started.pid) == started.pid != os.getsid(0)
    started.send_signal(signal.SIGTERM)
    assert started.wait(60) == -signal.SIGTERM
    script = (
        "import sys; from pathlib import Path; from pat.schema import Config; from pat.sweeps import runner\n"
        "from pat.sweeps.members import Member\n"
        "runner.python_command = lambda m: [sys.executable, '-c', 'import time; time.sleep(60)']\n"
        "m = Member('m', Path('m'), {}, (), Config())\n"
        "print(runner.start_here(m, runner.Place(0, 1, 1), Path(sys.argv[1])).pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "log")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    end = time.monotonic() + 60
    while Process.of(child):
        assert time.monotonic() < end, "it outlived the sweep"
        time.sleep(0.02)


def test_members_share_cores_and_never_a_gpu(tmp_path: Path, monkeypatch) -> None:
    (member,) = some(1, tmp_path)
    member = replace(member, config=member.config.changed(engine__world_size=2))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr("pat.common.machine.CGROUPS", tmp_path)  # no quota
    assert runner.environment(member, Place(0, 1, 2))["OMP_NUM_THREADS"] == "8"
    assert runner.environment(member, Place(0, 4, 2))["OMP_NUM_THREADS"] == "2"
    monkeypatch.setattr(runner, "visible_devices", lambda: ["4", "5", "6", "7"])
    alone = replace(member, config=member.config.changed(engine__world_size=1))
    for second, devices in ((member, "6,7"), (alone, "6")):  # a smaller one begins where the largest would
        places = [Place(number, 2, runner.most_ranks([member, second])) for number in (0, 1)]
        given = [runner.environment(each, place) for each, place in zip((member, second), places, strict=True)]
        assert [each["CUDA_VISIBLE_DEVICES"] for each in given] == ["4,5", devices]
    with pytest.raises(ValueError, match="needs 6 GPUs and this machine shows 4: give at most --jobs 2"):
        runner.check_places([member], 3, ["4", "5", "6", "7"])
    runner.check_places([member], 9, [])
    with pytest.raises(ValueError, match="needs 2 GPUs and this machine shows 1: set engine.world_size to at most 1"):
        runner.check_places([member], 1, ["4"])


def test_ranks_on_other_hosts_take_no_device_of_this_machine(members: list[Member]) -> None:
    """Neither their number nor their kind is this machine's: fp16 needs a GPU."""
    there = [
        replace(each, config=each.config.changed(engine__world_size=16, engine__hostfile="h", engine__dtype="fp16"))
        for each in members
    ]
    runner.check_places(there, 1, ["0"])
    with pytest.raises(ValueError, match="--jobs 2: all runs would take the hosts of engine.hostfile"):
        runner.check_places(there, 2, [])
    check_one(there)
    assert not problems(there)


@pytest.mark.parametrize(
    "text, said",
    [
        ("step 1\npat: the loss is inf\nbuilding\n", "the loss is inf"),
        ("Traceback\nMemoryError\n\n", "MemoryError"),
        ("", ""),
    ],
)
def test_the_last_sentence(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "log").write_text(text)
    assert runner.last_sentence(tmp_path / "log") == said
    assert runner.last_sentence(tmp_path / "none") == ""


# -- results -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12), st.booleans(), st.booleans())
def test_the_front_is_what_no_other_point_beats(values: list[tuple[int, int]], x_higher: bool, y_higher: bool) -> None:
    """Against the definition by sorting: from the best x on, only a y that is better than all before stays."""
    signed = [(a if x_higher else -a, b if y_higher else -b) for a, b in values]
    stays, best = set(), float("-inf")
    for a in sorted({a for a, _ in signed}, reverse=True):
        top = max(b for c, b in signed if c == a)
        if top > best:
            stays.add((a, top))
            best = top
    floats = [(float(a), float(b)) for a, b in values]
    assert results.pareto(floats, x_higher, y_higher) == [point in stays for point in signed]


def record(member: Member, accuracy: float, sparsity: float) -> dict[str, Any]:
    summary = {"sparsity": sparsity, "parameters": 1000, "sparsity_all_parameters": sparsity / 2}
    write_json(RunDir(member.dir).summary, summary | {"metrics": {"accuracy": accuracy}})
    return results.record_of(member, Ended(0, 1.0))


def test_points_are_means_over_seeds(members: list[Member], tmp_path: Path) -> None:
    y = results.Axis("accuracy", "accuracy", True)
    moved = [Member(m.name, tmp_path / m.name, m.varied, m.command, m.config) for m in members]
    for m in moved:
        m.dir.mkdir()
    records = [record(m, a, 0.5) for m, a in zip(moved, (0.7, 0.9, 0.5, 0.7), strict=True)]
    found = results.points(records, X_AXES["sparsity"], y)
    assert [(p.varied, p.members, p.best) for p in found] == [
        ({"weights.criterion": "magnitude"}, 2, True),
        ({"weights.criterion": "movement"}, 2, False),
    ]
    assert [p.y for p in found] == pytest.approx([0.8, 0.6])
    assert [(p.y_low, p.y_high) for p in found] == [(0.7, 0.9), (0.5, 0.7)]
    assert X_AXES["parameters"].value(records[0]) == 750
    records[1] = results.record_of(moved[1], Ended(3, 2.0, "the loss is inf"))
    assert (records[1]["meaning"], records[1]["message"]) == ("diverged", "the loss is inf")
    RunDir(moved[2].dir).summary.unlink()
    unfinished = results.record_of(moved[2], Ended(0, 1.0))
    assert (unfinished["code"], unfinished["message"]) == (ExitCode.ERROR, "it ended without a summary.json")
    assert results.points(records, X_AXES["sparsity"], y)[0].members == 1, "an old summary is not a failed run's"
    results.write(tmp_path, ["pat", "sweep"], records, X_AXES["sparsity"], y)
    saved = json.loads((tmp_path / "sweep.json").read_text())
    assert [m["code"] for m in saved["members"]] == [0, 3, 0, 0] and len(saved["points"]) == 2


def test_a_list_in_brackets_is_shown_as_it_is(members: list[Member], capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if a value is taken for markup: the table is empty there, or a path ends the sweep with a traceback."""
    varied = {"data.train": "[/data/a.jsonl]", "pruners.narrow.structures": "[ffn]"}
    shown = [results.record_of(replace(each, varied=varied), Ended(3, 2.0, "")) for each in members]
    Console(width=200).print(results.table(shown, X_AXES["sparsity"], results.y_axis(members, "loss"), "sweep x"))
    said = capsys.readouterr().out
    assert said.count("[/data/a.jsonl]") == said.count("[ffn]") == len(members)


def test_a_swept_sparsity_and_the_measured_one_have_names_of_their_own(members: list[Member]) -> None:
    key = "pruners.weights.budget.sparsity"
    shown = [results.record_of(replace(each, varied={key: "0.5"}), Ended(3, 2.0, "")) for each in members]
    heads = [c.header for c in results.table(shown, X_AXES["sparsity"], results.y_axis(members, "loss"), "x").columns]
    assert heads[0] == key and heads.count("sparsity") == 1


def test_a_metric_that_the_task_has_not_is_refused(members: list[Member]) -> None:
    assert results.y_axis(members, None).name == "perplexity"
    assert not results.y_axis(members, "loss").higher_is_better
    with pytest.raises(ValueError, match="no metric 'accuracy'"):
        results.y_axis(members, "accuracy")


POINTS = [
    Point({"criterion": c, "decay": "0.1", "lr": lr, "budget.sparsity": str(s)}, s, y, y - 0.02, y + 0.01, 2, best)
    for c, lr, s, y, best in (
        ("magnitude", "1e-3", 0.5, 0.80, True),
        ("magnitude", "3e-3", 0.8, 0.70, False),
        ("movement", "1e-3", 0.5, 0.60, False),
        ("movement", "3e-3", 0.8, 0.75, True),
    )
]


def test_the_picture_names_its_axes_and_pales_what_is_beaten(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    y = results.Axis("accuracy", "accuracy on held-out data (higher is better)", True)
    axes = plot.figure_of(POINTS, X_AXES["sparsity"], y, "title").axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == (X_AXES["sparsity"].label, y.label)
    legend = axes.get_legend()
    assert legend and [t.get_text() for t in legend.get_texts()] == ["Pareto front", "magnitude", "movement"]
    (front,) = [line for line in axes.lines if line.get_label() == "Pareto front"]
    assert front.get_xydata().tolist() == [[50, 0.8], [80, 0.75]]  # pyright: ignore[reportAttributeAccessIssue]
    drawn = {
        (float(bar[0].get_xdata()[0]), float(bar[0].get_ydata()[0])): bar[0].get_alpha() for bar in axes.containers
    }
    assert drawn == {(p.x * 100, p.y): 1.0 if p.best else plot.PALE for p in POINTS}
    assert [t.get_text() for t in axes.texts] == ["lr 1e-3", "lr 3e-3"], "no word of what the axis shows"
    plot.draw(POINTS, X_AXES["sparsity"], y, "title", tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments, words", [(["seed=0,1", "--jobs", "0"], "give 1 or more"), (["seed=0,1", "--y", "f1"], "no metric 'f1'")]
)
def test_the_command_refuses_in_a_sentence(arguments: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        command.main(["recipe=parity", *arguments, "--out", str(tmp_path / "s")])


def test_a_sweep_is_not_run_over_another(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text('{"members": []}')
    with pytest.raises(ValueError, match="holds a sweep: --continue"):
        command.main(["recipe=parity", "seed=0,1", "--out", str(tmp_path)])
    began = {"members": [{"name": "seed=0"}, {"name": "optim.lr=0.1"}, {"name": "optim.lr=0.2"}]}
    write_json(tmp_path / "sweep.json", began)
    with pytest.raises(ValueError, match=r"holds the run optim.lr=0.1 and 1 more, which this command does not have"):
        command.main(["recipe=parity", "seed=0,1", "--out", str(tmp_path), "--continue"])
    assert json.loads((tmp_path / "sweep.json").read_text()) == began
    (tmp_path / "race.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a race: give its --race STEP, or another --out"):
        command.main(["recipe=parity", "seed=0,1", "--out", str(tmp_path), "--continue"])


def test_a_sweep_that_goes_on_adds_up_its_starts_and_lacks_only_the_latency_that_failed(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second member is stopped once; the first one's export fails."""
    said, codes, finished = list[str](), {"m1": ExitCode.PREEMPTED}, set[str]()

    def start(member: Member, place: Place, log: Path) -> Fake:
        code = codes.pop(member.name, ExitCode.DONE)
        if not code:
            member.dir.mkdir()
            record(member, 0.5, 0.5)
            finished.add(member.name)
        return Fake(code, 20)

    def forward_ms(folder: Path) -> float:
        if folder.name == "m0":
            raise ValueError("it has no model folder")
        return 2.0

    monkeypatch.setattr(sweep, "start_here", start)
    monkeypatch.setattr(sweep, "is_done", lambda member: member.name in finished)
    monkeypatch.setattr(latency, "forward_ms", forward_ms)

    def run(x: str) -> tuple[int, list[dict[str, Any]]]:
        y = results.Axis("accuracy", "accuracy", True)
        made = sweep.Sweep(tmp_path, ["pat"], some(2, tmp_path), X_AXES[x], y, 1, said.append, checked=False)
        return made.run(go_on=True), json.loads((tmp_path / "sweep.json").read_text())["members"]

    code, first = run("sparsity")
    assert code == ExitCode.PREEMPTED and all(each["seconds"] >= 0.1 for each in first)
    code, second = run("latency")
    assert code == ExitCode.ERROR and [each["code"] for each in second] == [0, 0]
    assert second[0]["seconds"] == first[0]["seconds"] and second[1]["seconds"] >= first[1]["seconds"] + 0.1
    assert [each["latency_ms"] for each in second] == [None, 2.0]
    assert second[0]["message"] == "no latency: it has no model folder"
    assert "m0: done: no latency: it has no model folder" in said
    code, third = run("sparsity")
    assert (code, third[0]["message"], third[1]["seconds"]) == (0, "", second[1]["seconds"])


def test_a_dry_run_lists_the_members(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["recipe=parity", "seed=range(0,3)", "--out", str(tmp_path / "s"), "--dry-run"]) == 0
    assert capsys.readouterr().out.split("\n")[1:4] == ["  seed=0", "  seed=1", "  seed=2"]
    assert not (tmp_path / "s").exists()


def test_a_dry_run_checks_every_member(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swept = "pruners.weights.params=[q_proj],[*_proj.weight]"
    assert command.main(["recipe=parity", swept, "--out", str(tmp_path / "s"), "--dry-run"]) == 2
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert "match" in first and second.endswith("_proj.weight_") and not (tmp_path / "s").exists()
