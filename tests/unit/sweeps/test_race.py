"""A race: who is out and when, what is shared, and that it is resumed without repeating a heat."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from torch import nn

from pat.commands import sweep as command
from pat.common.files import read_json, write_json
from pat.config import compose, frozen
from pat.config.cluster import ClusterConfig
from pat.launch import slurm
from pat.run.directory import ExitCode, RunDir, write_exit
from pat.schema import Config
from pat.sweeps import on_slurm, race, results, runner
from pat.sweeps.heat import Heat, heat
from pat.sweeps.members import Member, members_of
from pat.sweeps.race import Race
from pat.sweeps.results import RACE_FILE
from pat.sweeps.runner import Place
from tests.fake_run import EndedRun, write_checkpoint

PARITY = ["recipe=parity", "logger=none", "pruners.weights.schedule.hard_from=20"]
FORK, STEP, STEPS = 5, 25, 30  # the first cut and the steps are the recipe's
RATES = {"0.001": 2.5, "0.002": 2.0, "0.004": 2.0, "0.008": 3.0}  # the loss of each at the step: the second is the best


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Member]:
    """They differ in their rates."""
    return members_of([*PARITY, f"optim.lr={','.join(RATES)}"], tmp_path_factory.mktemp("it's a race, 50%") / "r")


def test_candidates_are_sets_of_keys_that_need_not_be_the_same(tmp_path: Path) -> None:
    given = ["optim.lr=0.002 seed=1", "seed=2,3", ""]
    found = members_of(PARITY, tmp_path, candidates=given)
    names = [member.name for member in found]
    assert names == ["optim.lr=0.002,seed=1", "seed=2", "seed=3", "as-given"]
    assert [(m.config.seed, m.config.optim.lr) for m in found[:2]] == [(1, 2e-3), (2, found[3].config.optim.lr)]
    assert all(member.varied.keys() == found[0].varied.keys() for member in found), "one table"
    with pytest.raises(
        ValueError, match="^--candidate data.train=it's: a quote or a backslash has no end: close it, or write"
    ):
        members_of(PARITY, tmp_path, candidates=["seed=1", "data.train=it's"])


@pytest.mark.slow
def test_what_comes_before_the_first_cut_is_shared_where_it_is_the_same(members: list[Member], tmp_path: Path) -> None:
    """Rates change every step; budgets, and gates that look at no step, none before the first cut."""
    assert heat(members, STEP) == Heat(STEP, 0)
    budgets = members_of([*PARITY, "pruners.weights.budget.sparsity=0.5,0.8"], tmp_path)
    assert heat(budgets, STEP) == Heat(STEP, FORK)
    scores = members_of([*PARITY, "pruners.weights.criterion.name=magnitude,movement"], tmp_path)
    assert heat(scores, STEP) == Heat(STEP, 0), "scores gather before the cut"
    for step in (20, 30, 0):  # still cutting, the end, none
        with pytest.raises(ValueError):
            heat(members, step)


# -- the runs ----------------------------------------------------------------------------------------------------------


class Machine:
    """Starts runs, which leave the files that real ones leave, and notes where each was told to stop."""

    def __init__(self, codes: dict[str, int], losses: dict[str, float]) -> None:
        self.codes, self.losses, self.started = codes, losses, list[tuple[str, Any]]()
        self.commands: dict[str, tuple[str, ...]] = {}
        self.ranks: list[int] = []

    def __call__(self, member: Member, place: Place, log: Path) -> EndedRun:
        until: Any = next((each.partition("=")[2] for each in member.command if each.startswith("run.until=")), "end")
        until = int(until) if until.isdigit() else until
        self.started.append((member.name, until))
        self.commands[member.name] = member.command
        if code := self.codes.pop(member.name, 0):
            return EndedRun(code)
        run = RunDir(member.dir)
        if until == "end":
            assert (run.checkpoints / f"step-{STEP:08d}").exists(), "it goes on from there"
        frozen.freeze(member.config, run.path)
        step = STEPS if until == "end" else FORK if until == "first_cut" else int(until)
        write_checkpoint(run.checkpoints / f"step-{step:08d}", nn.Linear(4, 4), ranks=1, prune="-", step=step)
        (run.checkpoints / "latest").write_text(f"step-{step:08d}")
        loss = self.losses.get(member.name, 9.0)
        run.metrics.write_text(json.dumps({"step": step, "until/loss": loss}) + "\n")
        if until == "end":
            write_json(run.summary, {"step": STEPS, "sparsity": 0.8, "metrics": {"loss": loss / 2}})
        return EndedRun(0)

    def job(self, config: Config) -> str:
        """A job has a config only; its exit code is in the run's directory."""
        run = RunDir(Path(config.run.dir))
        member = Member(config.run.name, run.path, {}, ("train", f"run.until={config.run.until}"), config)
        run.path.mkdir(parents=True, exist_ok=True)
        self.ranks.append(config.engine.world_size)
        write_exit(run.path, ExitCode(self(member, Place(0, 1, 1), run.logs).code))
        write_json(run.job, {"job_id": str(len(self.started))})
        return str(len(self.started))


Raced = Callable[..., tuple[int, Machine, dict[str, Any]]]


@pytest.fixture
def raced(members: list[Member], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Raced:
    """(exit code, the machine, race.json) of a start of one race, with these exit codes."""
    monkeypatch.setattr(runner, "POLL_S", 0.001)
    monkeypatch.setattr(on_slurm, "LOOK_S", 0.0)
    losses = dict(zip((member.name for member in members), RATES.values(), strict=True))

    def start(
        codes: dict[str, int] | None = None,
        step: int = STEP,
        shared: int = 0,
        go_on: bool = True,
        answers: int = 9,  # of Slurm for each job
        left_out: int = 0,  # of the members
        changed: Mapping[str, Any] = MappingProxyType({}),  # keys of all of them
        **more: Any,
    ) -> tuple[int, Machine, dict[str, Any]]:
        asked = list[str]()

        def states(jobs: list[str]) -> dict[str, str]:
            asked.extend(jobs)
            return {job: "COMPLETED" if asked.count(job) <= answers else slurm.SILENT for job in jobs}

        out, machine = tmp_path / "r", Machine(codes or {}, losses)
        moved = [
            replace(member, dir=out / member.name, config=member.config.changed(**changed))
            for member in members[left_out:]
        ]
        y, heat = results.y_axis(members, "loss"), Heat(step, shared)
        new = Race(out, ["pat"], moved, y, heat, 1, lambda text: None, machine, **more)
        if "cluster" in more:  # what sbatch and squeue would do, and the job
            monkeypatch.setattr(slurm, "submit", lambda config, _: machine.job(config))
            monkeypatch.setattr(slurm, "states", states)
        return new.run(go_on), machine, read_json(out / RACE_FILE) or {}

    return start


NAMES = [f"optim.lr={rate}" for rate in RATES]


def test_the_best_goes_on_and_who_was_out_is_on_record(raced: Raced) -> None:
    """Of two that are equal the first."""
    code, machine, found = raced()
    assert code == 0 and machine.started == [*((name, STEP) for name in NAMES), (NAMES[1], "end")]
    assert found["winner"] == NAMES[1]
    assert [(m["value"], m["out"] is None) for m in found["members"]] == [
        (2.5, False), (2.0, True), (2.0, False), (3.0, False),
    ]  # fmt: skip
    dirs = [Path(member["dir"]) for member in found["members"]]
    assert [RunDir(d).checkpoints.exists() for d in dirs] == [False, True, False, False]
    assert [RunDir(d).summary.exists() for d in dirs] == [False, True, False, False]
    assert all(RunDir(d).metrics.exists() for d in dirs)
    with pytest.raises(ValueError):
        raced(go_on=False)
    with pytest.raises(ValueError):
        raced(step=STEP - 1)
    with pytest.raises(ValueError, match=f"holds the run {NAMES[0]}, which this command does not have"):
        raced(left_out=1)


def test_steps_that_all_share_are_run_once(raced: Raced) -> None:
    code, machine, found = raced(shared=FORK)
    assert code == 0 and machine.started[:2] == [("dense", "first_cut"), (NAMES[0], STEP)] and len(machine.started) == 6
    configs: list[Config] = []
    for name in ("dense", NAMES[0]):
        compose.compose(machine.commands[name][1:], lambda config: configs.append(config) or 0)
    assert [(Path(c.run.dir).name, c.run.name, c.run.until) for c in configs] == [
        ("dense", "dense", "first_cut"), (NAMES[0], NAMES[0], STEP),
    ]  # fmt: skip
    assert (
        found["shared_steps"] == FORK and not (Path(found["members"][0]["dir"]).parent / "dense/checkpoints").exists()
    )


def test_heats_and_the_rest_of_the_winner_are_jobs_of_a_cluster(raced: Raced) -> None:
    """Each with its own end in the config that the job freezes, and the ranks of the cluster; a job that failed is
    submitted again."""
    more = {"shared": FORK, "cluster": ClusterConfig(ranks_per_node=2)}
    code, machine, found = raced({NAMES[2]: ExitCode.ERROR}, **more)
    heats = [("dense", "first_cut"), *((name, STEP) for name in NAMES)]
    assert (code, machine.started, found["winner"]) == (ExitCode.ERROR, heats, None)
    assert set(machine.ranks) == {2}
    code, machine, found = raced(**more)
    assert (code, machine.started) == (0, [(NAMES[2], STEP), (NAMES[1], "end")]) and found["winner"] == NAMES[1]
    assert [member["out"] is None for member in found["members"]] == [False, True, False, False]


def test_a_winner_is_not_taken_as_finished_by_the_end_of_its_heat(
    raced: Raced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When its rest is to begin, Slurm does not answer for the heat's job, whose exit code is in the folder."""
    cluster, heats = ClusterConfig(ranks_per_node=2), [(name, STEP) for name in NAMES]
    code, machine, found = raced(cluster=cluster, answers=1)
    assert (code, machine.started, found["winner"]) == (ExitCode.BAD_INPUT, heats, NAMES[1])
    with monkeypatch.context() as patched:
        patched.setattr(race, "is_done", lambda _: False)
        code, machine, _ = raced(cluster=cluster)
        assert (code, machine.started) == (ExitCode.ERROR, [(NAMES[1], "end")]), "an exit code 0 alone is no end"
    code, machine, _ = raced(cluster=cluster)
    assert (code, machine.started) == (0, [])


@pytest.mark.parametrize("code", [ExitCode.PREEMPTED, ExitCode.ERROR, -9])
def test_stopped_it_goes_on_and_repeats_no_heat(raced: Raced, code: int) -> None:
    """In the third heat, and then in the winner's rest. No winner is chosen while a heat is missing."""
    left, machine, found = raced({NAMES[2]: code})
    assert left == (code if code > 0 else ExitCode.ERROR) and found["winner"] is None
    assert all(RunDir(Path(found["members"][i]["dir"])).checkpoints.exists() for i in (0, 1))
    done = {name for name, _ in machine.started} - {NAMES[2]}
    machine = raced({NAMES[1]: code})[1]
    assert machine.started == [*((name, STEP) for name in NAMES if name not in done), (NAMES[1], "end")]
    code, machine, found = raced()
    assert (code, machine.started, found["winner"]) == (0, [(NAMES[1], "end")], NAMES[1])


def test_shared_steps_of_another_config_are_not_taken_over(raced: Raced) -> None:
    """Would catch: members that hold a fork and no config, and go on under a rate that it was not trained with."""
    code, *_ = raced({NAMES[0]: ExitCode.PREEMPTED}, shared=FORK)
    assert code == ExitCode.PREEMPTED
    with pytest.raises(ValueError, match="share steps of another config .*optim.weight_decay was .*, now 0.5"):
        raced(shared=FORK, changed={"optim__weight_decay": 0.5})
    code, machine, _ = raced(shared=FORK)
    assert code == 0 and machine.started[0] == (NAMES[0], STEP)


def test_who_diverges_is_out_and_all_of_them_are_no_race(raced: Raced) -> None:
    code, _, found = raced({NAMES[1]: ExitCode.DIVERGED})
    assert code == 0 and found["winner"] == NAMES[2] and found["members"][1]["out"] == "diverged"


def test_no_winner_where_all_diverge(raced: Raced) -> None:
    code, machine, found = raced(dict.fromkeys(NAMES, ExitCode.DIVERGED))
    assert (code, found["winner"], len(machine.started)) == (ExitCode.DIVERGED, None, 4)


def test_the_command_says_what_it_would_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*PARITY, "pruners.weights.budget.sparsity=0.5,0.8", "--out", str(tmp_path / "s"), "--race"]
    assert command.main([*given, str(STEP), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"{FORK} steps" in said and f"to step {STEPS}\n" in said and not (tmp_path / "s").exists()
    ends = [*PARITY, "--out", str(tmp_path / "s"), "--race", "25", "--dry-run", "train.num_steps=30,40"]
    assert command.main(ends) == 0
    assert "the best perplexity to its end" in capsys.readouterr().out
    for wrong in (["20"], [str(STEP), "--x", "latency"], [str(STEP), "run.until=3"]):
        with pytest.raises(ValueError):
            command.main([*given, *wrong])
