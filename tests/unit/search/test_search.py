"""A search: which values it tries, that it is resumed without repeating a run, and what it says in the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pat.commands import search as command
from pat.commands import train
from pat.common.files import read_json, write_json
from pat.config import compose, frozen, places
from pat.evaluation.folders import Size
from pat.evaluation.measures import of_rows
from pat.evaluation.samples import Rows
from pat.gate import profile
from pat.gate.measure import Facts
from pat.models.tokenizers import byte_tokenizer
from pat.run.directory import ExitCode, RunDir
from pat.schema import Config
from pat.search import bisection, judged, plan, quantity
from pat.search.judged import Judge
from pat.search.plan import Plan, Span
from pat.search.quantity import Quantity
from pat.search.search import SEARCH_FILE, Search
from pat.sweeps import runner
from pat.sweeps.members import Member
from pat.sweeps.runner import Place
from tests import models as small
from tests.fake_run import EndedRun, write_checkpoint, write_run

PARITY = ["recipe=parity", "logger=none"]
LOSS = "envelope.loss.max=2.5"
FORK, STEPS = 5, 30  # of the recipe


# -- which value comes next --------------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(-1, 200), st.integers(1, 8))
def test_bisection_finds_the_last_that_is_inside_in_as_many_runs_and_rounds_as_it_says(
    number: int, last: int, at_once: int
) -> None:
    """However many run at once: what one at a time finds."""
    known: dict[int, bool] = {}
    rounds = 0
    while batch := bisection.upcoming(number, known, at_once):
        assert len(set(batch)) == len(batch) <= at_once and not known.keys() & set(batch)
        known |= {index: index <= last for index in batch}
        rounds += 1
    assert bisection.best(known) == (min(last, number - 1) if last >= 0 else None)
    if 0 <= last < number - 1:
        assert bisection.outside(known) == last + 1
    if at_once == 1:
        assert rounds <= min(number, 2 + max(number - 2, 0).bit_length())


@pytest.mark.parametrize("at_once, found", [(1, (8, 8)), (2, (10, 5)), (4, (12, 3)), (8, (16, 2))])
def test_more_at_once_take_fewer_rounds(at_once: int, found: tuple[int, int]) -> None:
    assert bisection.at_most(64, at_once) == found


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 6))
def test_what_noise_makes_of_the_order_still_ends(inside: list[bool], at_once: int) -> None:
    known: dict[int, bool] = {}
    while batch := bisection.upcoming(len(inside), known, at_once):
        assert not known.keys() & set(batch)
        known |= {index: inside[index] for index in batch}
    low = bisection.best(known)
    assert low in (None, len(inside) - 1) or known[low + 1] is False


SPARSITY, KEEP = Quantity("weights"), Quantity("narrow", ("ffn",))


@pytest.mark.parametrize(
    "what, arguments, values",
    [
        (SPARSITY, (0.8, None, None, 0.2), [0.2, 0.4, 0.6, 0.8]),
        (SPARSITY, (0.8, 0.5, 0.7, 0.1), [0.5, 0.6, 0.7]),
        (SPARSITY, (0.8, 0.45, 0.7, 0.1), [0.45, 0.5, 0.6, 0.7]),
        (KEEP, (0.5, None, None, 0.125), [0.875, 0.75, 0.625, 0.5]),
        (KEEP, (0.5, 0.95, 0.6, 0.2), [0.95, 0.8, 0.6]),
    ],
)
def test_values_go_from_the_least_pruned_to_the_most(what: Quantity, arguments: Any, values: list[float]) -> None:
    assert quantity.grid(what, *arguments) == values


@pytest.mark.parametrize(
    "what, arguments",
    [(SPARSITY, (0.8, 0.9, None, 0.1)), (KEEP, (0.5, 0.4, None, 0.1)), (SPARSITY, (0.8, None, None, 0.0))],
)
def test_a_span_that_is_none_is_refused(what: Quantity, arguments: Any) -> None:
    with pytest.raises(ValueError):
        quantity.grid(what, *arguments)


# -- the plan ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("it's a search, 50%")


@pytest.fixture(scope="module")
def planned(out: Path) -> Plan:
    return plan.make([*PARITY, LOSS], out / "s", Span(first=0.2, within=0.2), None)


def composed(member: Member) -> Config:
    found: list[Config] = []
    compose.compose(member.command[1:], lambda config: found.append(config) or 0)
    return found[0]


def test_the_command_of_a_run_composes_to_its_config(planned: Plan) -> None:
    """Without the envelope, which would lead its ramp; the dense part stops where the others begin."""
    assert (planned.order, planned.fork_step) == ([0.2, 0.4, 0.6, 0.8], FORK)
    for member in (planned.member(0.4), planned.dense):
        config = composed(member)
        assert not frozen.changed_keys(config, member.config) and config.envelope == {}
        assert (config.run.dir, config.run.name) == (str(member.dir), member.name)
        assert config.run.until == ("first_cut" if member.name == "dense" else "end")
    assert planned.member(0.4).config.pruners["weights"].budget.sparsity == 0.4
    assert not planned.out.exists(), "to look is not to run"


def test_a_search_lives_where_run_dir_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """~ is the home directory there, as in `pat train`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    span = Span(first=0.2, within=0.6)
    assert plan.make([*PARITY, LOSS, "run.dir='~/s'"], None, span, None).out == tmp_path / "s"
    named = plan.make([*PARITY, LOSS, "run.name='a b'"], None, span, None)
    assert named.out == Path("searches/a b").absolute()


def test_runs_that_share_a_dense_part_have_one_schedule(out: Path) -> None:
    much = [*PARITY, LOSS, "pruners.weights.schedule.name=auto", "pruners.weights.budget.sparsity=0.96"]
    with pytest.raises(ValueError, match=r"pruners.weights.schedule.name=one_shot"):
        plan.make(much, out / "auto", Span(first=0.5, within=0.2), None)
    planned = plan.make(much, out / "auto", Span(first=0.92, within=0.02), None)
    assert composed(planned.member(0.92)).pruners["weights"].schedule == planned.config.pruners["weights"].schedule


@pytest.mark.parametrize(("own", "span"), [(0.96, Span(None, 0.5, 0.8, 0.3)), (0.5, Span(None, 0.9, 0.95, 0.05))])
def test_the_fork_is_at_the_first_cut_of_the_searched_values(own: float, span: Span, out: Path) -> None:
    """Would catch a schedule that auto chose by the config's own budget, where all values have the other one."""
    recipes_own = [f"pruners.weights.schedule.{key}=null" for key in ("start", "end", "hard_from", "select_every")]
    keys = [*PARITY, LOSS, "pruners.weights.schedule.name=auto", *recipes_own, f"pruners.weights.budget.sparsity={own}"]
    planned = plan.make(keys, out / "auto", span, None)
    for member in (planned.dense, *map(planned.member, planned.order)):
        config = composed(member)
        assert not frozen.changed_keys(config, member.config)
        assert config.pruners["weights"].schedule.resolve(STEPS).start == planned.fork_step


def test_shares_of_structures_that_come_to_the_same_units_are_one_run(planned: Plan, out: Path) -> None:
    """Of 128 neurons with multiples of 32."""
    narrow = {
        "structures": ["ffn"], "gate": {"name": "taylor", "fade": 1},
        "budget": {"name": "shape", "keep": {"ffn": 32}, "multiple_of": 32},
        "schedule": {"name": "linear", "start": FORK, "end": 20, "select_every": 5},
    }  # fmt: skip
    from pat.training.preflight import prepare

    config = planned.config.changed(envelope={}, pruners={"narrow": narrow})
    what = quantity.quantity_of(config, None)
    checked = prepare(config, out / "none")
    wanted = quantity.asked(config, what, checked.pruner)
    assert (what.keep, wanted) == (("ffn",), 0.25)
    values = quantity.realised(config, what, quantity.grid(what, wanted, None, None, 0.02), checked.model)
    assert len(values) == 3 and sorted(values, reverse=True) == list(values), "96, 64 and 32 neurons"
    assert sorted(values.values()) == list(values.values())
    given_ = what.override(0.25)
    assert what.applied(config, 0.25).pruners["narrow"].budget.keep == {"ffn": 0.25}
    assert given_ == "pruners.narrow.budget.keep={ffn:0.25}"


@pytest.mark.parametrize(
    "arguments",
    [
        [*PARITY],
        [*PARITY, LOSS, "train.envelope_patience=1"],
        [*PARITY, LOSS, "pruners={}"],
        [*PARITY, LOSS, "run.resume=never"],
        [*PARITY, "envelope.f1.drop=0.1"],
        [*PARITY, "envelope.parameters.ratio=0.5"],
        [*PARITY, LOSS, "envelope.passed.min=0.5"],
        [*PARITY, LOSS, "envelope.cost_per_million_tokens.max=1"],
        *([*PARITY, LOSS, "envelope.latency_p95.max=3", "--price-per-hour", wrong] for wrong in ("-3", "0", "nan")),
        [*PARITY, LOSS, "envelope.slices.rise=1", "pruners.weights.schedule.start=0"],
        [*PARITY, LOSS, "envelope.slices.rise=1"],
        [*PARITY, LOSS, "--mix", "chats"],
        [*PARITY, "envelope={loss: {max: 2.5}}", "--mix", "chats"],
        [*PARITY, LOSS, "train.export_at=[0.5]"],
        [*PARITY, LOSS, "envelope.slices.max=3", "--lengths", "8:2"],
        *([*PARITY, LOSS, "envelope.latency_p95.max=3", "--lengths", wrong] for wrong in ("abc", "128", "8:2,250:9")),
        [*PARITY, LOSS, "envelope.passed.min=0.5", "--mix", "nowhere"],
        [*PARITY, LOSS, "envelope.slices.max=3", "--allow-code"],
        [*PARITY, LOSS, "--pruner", "none"],
        [*PARITY, LOSS, "--from", "0.9"],
    ],
)
def test_what_is_no_search_is_refused_before_anything_runs(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        command.main([*arguments, "--out", str(tmp_path / "s")])
    assert not (tmp_path / "s").exists()


def test_limits_of_a_recipe_are_measured_as_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if only limits of the command line decide whether --mix, --lengths and the like would be ignored."""
    (tmp_path / "recipe").mkdir()
    recipe = (places.conf_dir() / "recipe" / "parity.yaml").read_text()

    def search(limits: str, *more: str) -> int:
        (tmp_path / "recipe" / "mine.yaml").write_text(f"{recipe}\nenvelope: {limits}\n")
        own = ["recipe=mine", "logger=none", "--config-dir", str(tmp_path), "--out", str(tmp_path / "s"), "--dry-run"]
        return command.main([*own, *more])

    assert search("{loss: {max: 2.5}, latency_p95: {ratio: 0.9}}", "--lengths", "8:2") == 0
    assert "latency_p95.ratio 0.9" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--confident would be ignored"):
        search("{loss: {max: 2.5}}", "--confident")


def test_train_hands_a_search_over(monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[list[str]] = []
    monkeypatch.setattr(command, "main", lambda arguments: handed.append(list(arguments)) or 7)
    assert train.main([*PARITY, LOSS, command.BUDGET, "--dry-run"]) == 7
    assert handed == [[*PARITY, LOSS, command.BUDGET, "--dry-run"]]
    for wrong in (["budget=smallest"], [command.BUDGET, "-m"], [command.BUDGET, "--cfg", "job"]):
        with pytest.raises(ValueError):
            train.main([*PARITY, LOSS, *wrong])


# -- the runs ----------------------------------------------------------------------------------------------------------


class Machine:
    """Starts runs, and notes which. The loss is ten times what is above 0.5, on 2."""

    def __init__(self, codes: dict[str, int] | None = None) -> None:
        self.codes, self.started, self.places = codes or {}, list[str](), list[int]()

    def __call__(self, member: Member, place: Place, log: Path) -> EndedRun:
        self.started.append(member.name)
        self.places.append(place.number)
        code = self.codes.pop(member.name, 0)
        run = RunDir(member.dir)
        if member.name == "dense":
            assert not code
            self._checkpoint(run, FORK)
            run.metrics.write_text("before\nafter\n")
            return EndedRun(0)
        assert [p.name for p in run.checkpoints.glob("step-*")] == [f"step-{FORK:08d}"], "forked"
        assert (run.metrics.read_text(), (run.checkpoints / "latest").read_text()) == ("before\n", f"step-{FORK:08d}")
        if not code:
            sparsity = member.config.pruners["weights"].budget.sparsity
            loss = 2.0 + 10 * max(0.0, sparsity - 0.5)
            self._checkpoint(run, STEPS, loss)
            frozen.freeze(member.config, run.path)
            (run.checkpoints / "best").write_text(f"step-{STEPS:08d}")
            summary = {"step": STEPS, "sparsity": sparsity, "dense_metrics": {"loss": 2.0}, "metrics": {"loss": 99.0}}
            write_json(run.summary, summary | {"train_seconds": 1.0})
        return EndedRun(code)

    def _checkpoint(self, run: RunDir, step: int, loss: float = 2.0) -> None:
        folder = run.checkpoints / f"step-{step:08d}"
        write_checkpoint(folder, nn.Linear(4, 4), ranks=1, prune="-", step=step)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["metrics"] = {"loss": loss}
        manifest["trainer"] |= {"logged_bytes": len("before\n")}
        (folder / "manifest.json").write_text(json.dumps(manifest))


Searched = Callable[..., tuple[int, Machine, dict[str, Any]]]


@pytest.fixture
def searched(planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Searched:
    """(exit code, what was started, search.json) of a start of one search, with these values."""
    monkeypatch.setattr(runner, "POLL_S", 0.001)

    def start(
        codes: dict[str, int] | None = None, jobs: int = 1, **changed: Any
    ) -> tuple[int, Machine, dict[str, Any]]:
        made = Plan(**{**planned.__dict__, "out": tmp_path / "s", **changed})
        machine = Machine(codes)
        code = Search(made, ["pat", "search"], lambda text: None, jobs=jobs, start=machine).run()
        return code, machine, read_json(made.out / SEARCH_FILE) or {}

    return start


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("*/checkpoints"))


def test_it_finds_the_largest_inside_and_says_what_more_would_cost(searched: Searched, tmp_path: Path) -> None:
    """Inside are 0.2 and 0.4; at 0.6 the loss is 3."""
    code, machine, found = searched()
    assert code == 0
    assert machine.started == ["dense", "sparsity=0.8", "sparsity=0.2", "sparsity=0.4", "sparsity=0.6"]
    result = found["result"]
    assert (result["allowed"], result["asked"], result["runs"]) == (0.4, 0.8, 4)
    assert result["further"]["value"] == 0.6 and result["further"]["metrics"]["loss"] == pytest.approx(3.0)
    assert result["steps"] == FORK + 4 * (STEPS - FORK)
    verdicts = {each["value"]: each["inside"] for each in found["candidates"]}
    assert verdicts == {0.2: True, 0.4: True, 0.6: False, 0.8: False}
    assert checkpoints(tmp_path / "s") == ["sparsity=0.4"], "the best run is what is left"
    assert Path(result["dir"]) == tmp_path / "s" / "sparsity=0.4"
    assert searched()[1].started == [], "nothing is left to do"


def test_all_that_is_asked_for_takes_one_run(searched: Searched, planned: Plan) -> None:
    config = planned.config.changed(envelope={"loss": {"max": 9.0}})
    code, machine, found = searched(config=config)
    assert (code, machine.started) == (0, ["dense", "sparsity=0.8"])
    assert found["result"]["allowed"] == 0.8 and found["result"]["further"] is None


def test_nothing_inside_at_the_lower_end_is_the_gates_exit_code(searched: Searched, planned: Plan) -> None:
    config = planned.config.changed(envelope={"loss": {"max": 1.0}})
    code, machine, found = searched(config=config)
    assert code == ExitCode.OUTSIDE_ENVELOPE and machine.started == ["dense", "sparsity=0.8", "sparsity=0.2"]
    assert found["result"]["allowed"] is None and found["result"]["further"]["value"] == 0.2


@pytest.mark.slow
@pytest.mark.real_processes
def test_a_run_is_asked_and_timed_beside_the_dense_one(tmp_path: Path) -> None:
    """By the gate's own measurements and a real profile, kept beside the search: six limits, all measured."""
    model = small.model("llama", vocab_size=320)
    for name, prune in (("dense", ""), ("pruned", "*_proj.weight")):
        write_run(tmp_path / name, model, byte_tokenizer(), "causal_lm", prune=prune, dtype="fp32", steps=(10,))
    summary = {"metrics": {"loss": 2.0}, "dense_metrics": None, "sparsity": 0.5, "train_seconds": 1.0, "step": 10}
    (tmp_path / "pruned" / "summary.json").write_text(json.dumps(summary))
    prompts = [
        {"prompt": f"say {i}", "reference": "yes", "slices": {"kind": str(i % 2)}, "output_tokens": 2} for i in range(6)
    ]
    (tmp_path / "mix.jsonl").write_text("".join(json.dumps(each) + "\n" for each in prompts))
    limits: Any = {"reference_loss": {"ratio": 9.0}, "slices": {"rise": 9.0, "least": 1}, "latency_p95": {"ratio": 9.0}}
    limits |= {"tokens_per_s": {"ratio": 0.01}, "sparsity": {"min": 0.01}, "cost_per_million_tokens": {"max": 0.0}}
    config = Config().changed(task__name="causal_lm", envelope=limits)
    how = judged.Measuring(mix=str(tmp_path / "mix.jsonl"), lengths="8:2", requests=6, price_per_hour=2.0)
    found = judged.Judge(config, how, tmp_path / "dense", tmp_path)(RunDir(tmp_path / "pruned"))
    assert found["inside"] and not found["outside"] and list(found["missed"]) == ["cost_per_million_tokens"]
    assert {"reference_loss", "reference_loss[kind=0]", "latency_p95", "tokens_per_s"} <= found["metrics"].keys()
    kept = profile.read(tmp_path / "profiles" / "pruned.json")
    assert list(kept.models) == [tmp_path / "dense", tmp_path / "pruned"]


class Asks:
    """What the gate would find: the loss of texts that are long grows with what is gone above 0.5, that of the others
    stays; p95 is what is left, and a parameter is one in a thousand."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.profiled: list[str] = []
        patch.setattr("pat.search.judged.measure.ask", self.ask)
        patch.setattr("pat.search.judged.Judge._profile", lambda judge, run: self.profile(judge, run))

    def sparsity(self, path: Path) -> float:
        return (read_json(RunDir(path).summary) or {"sparsity": 0.0})["sparsity"]

    def ask(self, path: Path, asked: Any, task: Any) -> Facts:
        sparsity = self.sparsity(path)
        losses = [2.0, 2.0 + 10.0 * max(0.0, sparsity - 0.5)] * 10
        rows = Rows(task, "d", list(range(20)), torch.tensor([[loss, 1.0] for loss in losses]).double(), None,
                    [("form=short",), ("form=long",)] * 10)  # fmt: skip
        size = Size(int(1000 * (1.0 - sparsity)), 0, sparsity, 0)
        return Facts(path, "ab", task, "t", size, {"samples": of_rows(rows)})

    def profile(self, judge: Judge, run: RunDir) -> profile.Profile:
        self.profiled.append(run.path.name)
        models = {path: {"latency_p95": 1.0 - self.sparsity(path)} for path in (judge.dense, run.path) if path}
        return profile.Profile(Path("p"), {path.resolve(): said for path, said in models.items()}, {})


def test_slices_and_latencies_are_judged_as_the_gate_does(
    searched: Searched, planned: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean over all would be inside at 0.6. Would catch: a search that takes what is too slow, though less pruned,
    for inside; or that goes by latency, which is better the more is gone."""
    limits = {"loss": {"rise": 0.9}, "slices": {"rise": 0.6, "least": 10}, "latency_p95": {"ratio": 0.7}}
    asks, config = Asks(monkeypatch), planned.config.changed(envelope=limits)
    code, machine, found = searched(config=config)
    assert code == 0 and machine.started == ["dense", "sparsity=0.8", "sparsity=0.2", "sparsity=0.4", "sparsity=0.6"]
    assert found["result"]["allowed"] == 0.4 and asks.profiled == ["sparsity=0.2", "sparsity=0.4"]
    further = found["result"]["further"]
    assert further["value"] == 0.6 and list(further["outside"]) == ["loss[form=long]"]
    assert further["dense_metrics"]["loss[form=long]"] == pytest.approx(2.0)
    records = {each["value"]: each for each in found["candidates"]}
    assert list(records[0.2]["missed"]) == ["latency_p95"] and not records[0.4]["missed"]
    assert records[0.4]["metrics"]["latency_p95"] == pytest.approx(0.6)


def test_the_most_that_quality_allows_may_still_be_too_little(
    searched: Searched, planned: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = Asks(monkeypatch)
    limits = {"slices": {"rise": 0.6}, "parameters": {"max": 500}, "sparsity": {"min": 0.3}}
    code, _, found = searched(config=planned.config.changed(envelope=limits))
    assert code == ExitCode.OUTSIDE_ENVELOPE and found["result"]["allowed"] is None and not asks.profiled
    missed = found["result"]["missed"]
    assert (missed["value"], missed["missed"], missed["metrics"]["parameters"]) == (
        0.4,
        {"parameters": "at most 500"},
        600,
    )


@pytest.mark.parametrize("code", [ExitCode.PREEMPTED, ExitCode.ERROR, -9])
def test_stopped_in_the_middle_it_goes_on_and_repeats_no_finished_run(searched: Searched, code: int) -> None:
    """The run that was stopped goes on from its fork, without a second dense part."""
    left, machine, found = searched({"sparsity=0.4": code})
    assert left == (code if code > 0 else ExitCode.ERROR) and machine.started[-1] == "sparsity=0.4"
    assert [each["value"] for each in found["candidates"]] == [0.8, 0.2] and found["result"] is None
    assert searched()[1].started == ["sparsity=0.4", "sparsity=0.6"]


def test_several_at_once_find_the_same_in_fewer_rounds(searched: Searched, tmp_path: Path) -> None:
    """Both ends and one between; then what is left. Each has a place of its own."""
    code, machine, found = searched(jobs=3)
    assert code == 0 and machine.started == ["dense", "sparsity=0.8", "sparsity=0.2", "sparsity=0.4", "sparsity=0.6"]
    assert machine.places == [0, 0, 1, 2, 0] and found["round"] == [0.6]
    result = found["result"]
    assert (result["allowed"], result["further"]["value"], result["runs"]) == (0.4, 0.6, 4)
    assert checkpoints(tmp_path / "s") == ["sparsity=0.4"]
    assert searched(jobs=3)[1].started == [] and searched()[1].started == []


@pytest.mark.parametrize("code", [ExitCode.PREEMPTED, ExitCode.ERROR, -9])
def test_stopped_in_a_round_it_ends_that_round_first(searched: Searched, code: int) -> None:
    """The others of the round are on record; another number at once begins no other values before."""
    left, machine, found = searched({"sparsity=0.2": code}, jobs=3)
    assert left == (code if code > 0 else ExitCode.ERROR)
    assert [each["value"] for each in found["candidates"]] == [0.8, 0.4] and found["result"] is None
    assert searched(jobs=2)[1].started == ["sparsity=0.2", "sparsity=0.6"]


def test_a_run_that_ended_before_it_was_judged_is_not_run_again(
    searched: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between its end and its record."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Judge, "__call__", lambda self, run: (_ for _ in ()).throw(KeyboardInterrupt))
        searched()
    assert searched()[1].started == ["sparsity=0.2", "sparsity=0.4", "sparsity=0.6"]


def test_a_run_that_diverges_is_outside(searched: Searched) -> None:
    code, machine, found = searched({"sparsity=0.4": ExitCode.DIVERGED})
    assert code == 0 and found["result"]["allowed"] == 0.2
    assert found["result"]["further"]["code"] == ExitCode.DIVERGED


def test_another_search_in_the_same_folder_is_refused(searched: Searched, planned: Plan) -> None:
    how = judged.Measuring(lengths="8:2")
    searched({"sparsity=0.8": ExitCode.ERROR}, measuring=how)
    assert searched()[0] == 0, "nothing was measured, so it may be measured otherwise"
    with pytest.raises(ValueError, match="holds another search .measuring was "):
        searched(measuring=how)
    for changed in ({"config": planned.config.changed(seed=1)}, {"values": {0.2: 0.2, 0.8: 0.8}}):
        with pytest.raises(ValueError):
            searched(**changed)


def test_a_cut_at_step_0_leaves_nothing_to_share(searched: Searched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run is one from the start."""
    monkeypatch.setattr(Machine, "__call__", lambda self, member, *_: self.started.append(member.name) or EndedRun(85))
    code, machine, found = searched(fork_step=0)
    assert (code, machine.started) == (ExitCode.PREEMPTED, ["sparsity=0.8"])
