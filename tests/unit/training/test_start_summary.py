"""What a run says before it trains: figures of the data, the model and the schedule, and a warning for each trap."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from pat import cli
from pat.commands import train
from pat.common import machine
from pat.config import compose, frozen
from pat.launch.environment import RankEnvironment
from pat.launch.process import rank_records
from pat.pruning import timetable
from pat.pruning.pruner import Pruner
from pat.run.directory import RunDir
from pat.schema import Config, PrunerConfig
from pat.training import dry_run, preflight, start_warnings
from pat.training import start_summary as start_summary_module
from pat.training.start_summary import start_summary
from tests import models as small


def attached(schedule: dict[str, Any], num_steps: int = 200, sparsity: float = 0.8, **more: Any) -> Pruner:
    weights: dict[str, Any] = {"params": ["*_proj.weight"], "granularity": "weight", "criterion": "magnitude"}
    budget: Any = {"name": "sparsity", "sparsity": sparsity}
    if "gate" in more:
        weights, budget = {"structures": ["ffn"]}, more.pop("budget")
    settings = PrunerConfig(**(weights | more), budget=budget, schedule=schedule)
    pruner = Pruner(Config().changed(train__num_steps=num_steps, pruners__p=settings))
    model: nn.Module = small.model("llama")
    pruner.attach(model)
    return pruner


CUBIC = {"name": "cubic", "start": 20, "end": 140}
NARROW = {"gate": "l0", "budget": {"name": "shape", "keep": {"ffn": 64}}}


@pytest.mark.parametrize(
    ("schedule", "more", "expected"),
    [
        (CUBIC | {"select_every": 5}, {}, []),
        (CUBIC | {"select_every": 60}, {}, ["jumps by 70 points at step 80, from 0 % to 70 %", "only 2 selections"]),
        (
            {"name": "linear", "start": 20, "end": 140, "select_every": 40},
            {},
            ["jumps by 27 points", "only 3 selections"],
        ),
        (
            {"name": "cubic", "start": 20, "end": 1.0},
            {},
            ["the last selection is at step 199 of 200, with 1 step left"],
        ),
        ({"name": "cubic", "start": 20, "end": 100, "hard_from": 195}, {}, ["at step 195 of 200, with 5 steps left"]),
        ({"name": "one_shot", "start": 20}, {}, ["jumps by 80 points at step 20, from 0 % to 80 %: take a schedule"]),
        ({"name": "one_shot", "start": 20}, {"sparsity": 0.2}, []),
        (CUBIC | {"select_every": 60}, {"sparsity": 0.1}, []),  # little goes, whatever the steps
        (CUBIC | {"select_every": 60}, {"criterion": "soft_movement"}, []),  # its threshold moves, not the target
        ({"name": "one_shot", "start": 20}, {"granularity": {"name": "n_of_m", "n": 2, "m": 4}, "sparsity": 0.5}, []),
        (CUBIC, NARROW, []),
        (CUBIC | {"select_every": 60}, NARROW, []),  # learned gates move at every step
        (CUBIC | {"select_every": 60}, NARROW | {"gate": "taylor"}, ["jumps by 44 points", "only 2 selections"]),
    ],
)
def test_warnings_of_a_schedule(schedule: dict[str, Any], more: dict[str, Any], expected: list[str]) -> None:
    (pruner,) = attached(schedule, **more).pruners
    said = timetable.warnings(pruner)
    assert len(said) == len(expected), said
    for sentence, words in zip(said, expected, strict=True):
        assert words in sentence and sentence.startswith("pruners.p.schedule: ")


def test_a_schedule_in_words() -> None:
    pairs = attached(CUBIC | {"select_every": 20}, sparsity=0.5, granularity={"name": "n_of_m", "n": 2, "m": 4})
    assert pairs.cuts == (60, 140), "a slot of every group at a time; a learning rate per cut follows these"
    assert "2 rises (cubic): 25 % at step 60, 50 % at step 140" in timetable.in_words(pairs.pruners[0])
    (pruner,) = attached({"name": "linear", "start": 20, "end": 140, "select_every": 30}).pruners
    assert timetable.in_words(pruner) == (
        "20 steps dense; 4 rises every 30 steps (linear): 20 % at step 50, 40 % at step 80, 60 % at step 110, 80 % at "
        "step 140; permanent from step 140, 60 steps left to recover"
    )


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A small classifier on rows some of which are too long, with a part of it frozen."""
    monkeypatch.chdir(tmp_path)
    words = ["short", "word " * 40]
    rows = [{"text": f"{n} {words[n % 4 == 0]}", "label": "good" if n % 4 else "bad"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found: list[Config] = []
    own = ["task=classification", "data=json", "data.train=rows.jsonl", "data.eval=rows.jsonl", "data.max_length=32"]
    own += ["optim.trainable=['model.layers.*','score.*']", "data.cache_dir=cache", "run.dir=run", "logger=none"]
    own += ["pruners.weights.exclude=['*.mlp.*','*.input_layernorm.*']"]
    compose.compose(["recipe=parity", *own], lambda config: found.append(config) or 0)
    return found[0]


def test_figures_and_warnings(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = preflight.prepare(config, Path("run"))
    monkeypatch.setattr("pat.data.prepare.prepare", None)  # nothing is tokenised or built again for the summary
    monkeypatch.setattr("pat.training.dry_run.attached", None)
    assert "never tested" not in start_summary(config, checked)
    said = start_summary(config.changed(engine__deepspeed_untested=["fp16.loss_scale"]), checked)
    lowered = start_summary(config.changed(optim__base_width=16), checked)
    assert "learning rate 0.00075 (0.003 is meant for hidden size 16), 3 steps" in lowered
    every = sum(p.numel() for p in checked.model.parameters())
    for words in (
        "40 samples (", "for training, seen 6 times; 32 samples of 40 for",
        "10 of 40 train rows (25 %) are cut to data.max_length=32",
        "2: good 30 (75 %), bad 10 (25 %)",
        f"{every:,} parameters, ", "frozen: model.embed_tokens.weight, model.norm.weight",
        "weights: 80 % of ", "in 8 matrices, by movement", "model.layers.*.self_attn.q_proj.weight",
        "30 steps of 8 sequences; learning rate 0.003, 3 steps of warm-up, then linear",
        "weights: 5 steps dense; 3 rises every 5 steps",
        "deepspeed never tested under pruning, and taken all the same: fp16.loss_scale",
        "sparsity jumps by 56 points at step 10",
        "pruners.weights.exclude: '*.input_layernorm.*' matches nothing that params take",
    ):  # fmt: skip
        assert words in said, (words, said)
    assert said.rindex("  warning") > said.rindex("  schedule"), "warnings come last"


def test_how_small_a_narrow_model_becomes_is_said(config: Config) -> None:
    """Of zeros nothing is said: they stay parameters."""
    gates = PrunerConfig(**NARROW, structures=["ffn"], schedule={"name": "one_shot", "start": 5, "hard_from": 9})
    checked = preflight.prepare(config.changed(pruners={"p": gates}), Path("run"))
    every = sum(p.numel() for p in checked.model.parameters())
    left = every - checked.pruner.structure_pruners[0].target_weights
    assert f"of all parameters; about {left / 1e6:,.1f} M are left" in start_summary(config, checked)
    assert "are left" not in start_summary(config, preflight.prepare(config, Path("run")))


def test_an_evaluation_that_shows_nothing_is_said(config: Config) -> None:
    """Of 40 rows every fourth is `bad`: the first three for evaluation are of the other label."""
    rows = Path("rows.jsonl").read_text().splitlines(keepends=True)
    Path("few.jsonl").write_text("".join(rows[1:4]))
    few = config.changed(data__eval="few.jsonl")
    said = start_summary(few, preflight.prepare(few, Path("run")))
    assert "3 samples for evaluation: each is 33.3 % of the metrics" in said
    assert "no sample for evaluation has the label bad: " in said


def test_calibration_on_too_little_is_said(config: Config) -> None:
    """Of 40 samples of at most 32 tokens, for the 128 inputs of down_proj."""
    few = "criterion.num_samples=2 are at most 64 tokens for the"
    for num_samples, words in ((100, "on all 40 training samples"), (2, few), (30, "on the 30 samples that training")):
        calibrated = config.changed(
            pruners__weights__criterion={"name": "alps", "num_samples": num_samples}, pruners__weights__scope="matrix",
            pruners__weights__exclude=[], pruners__weights__schedule={"name": "one_shot", "start": 0},
        )  # fmt: skip
        said = start_summary(calibrated, preflight.prepare(calibrated, Path("run")))
        assert words in said and ("criterion.num_samples" in said) == (words == few)


def test_the_command_says_it_once_and_it_is_in_the_log(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pat.launch.single_node.launch", lambda run_dir, config: 0)
    assert train._start_ranks(config) == 0
    assert capsys.readouterr().out.count("What this run does") == 1
    assert RunDir(Path("run")).log(0).read_text().count("What this run does") == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_under_a_launcher_rank_0_says_it(
    config: Config, rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frozen.freeze(config, Path("run"))
    monkeypatch.setattr("pat.launch.rank.run_rank", lambda run_dir, rank, work, announce, own: work(run_dir))
    known: list[int] = []
    monkeypatch.setattr("pat.zero.engine.init_distributed", lambda config: known.append(len(rank_records(Path("run")))))
    monkeypatch.setattr("pat.train.main", lambda run_dir: 0)
    monkeypatch.setattr("pat.launch.single_node.rank_variables", lambda config: {"OMP_NUM_THREADS": "1"})
    monkeypatch.setattr(RankEnvironment, "export", lambda self: None)
    environment = RankEnvironment(rank, 2, rank, "127.0.0.1", 1, "torch")
    assert train._become_rank(config, environment) == 0
    assert capsys.readouterr().out.count("What this run does") == (rank == 0)
    assert known == [rank == 0] and len(rank_records(Path("run"))) == 1, "others say so once they have met rank 0"


def test_a_dry_run_refuses_another_runs_directory(
    config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen.freeze(config, Path("run"))
    finished = RunDir(Path("run")).checkpoints / "step-00000002"
    finished.mkdir(parents=True)
    (finished / "manifest.json").touch()
    assert train._describe(config) == 0
    assert "  resume    goes on at step 2 of " in capsys.readouterr().out
    aside = finished.with_name("step-00000002.replaced")  # a kill left nothing else
    finished.rename(aside)
    assert train._describe(config) == 0
    assert "goes on at step 2 of " in capsys.readouterr().out
    config = config.changed(seed=7)
    with pytest.raises(ValueError, match="holds a run with another config"):
        train._describe(config)
    assert train._describe(config.changed(run__resume="never")) == 0
    assert RunDir(Path("run")).checkpoints.exists(), "a dry run changes nothing"
    said = capsys.readouterr().out
    assert "What this run does" in said and "  resume " not in said


@pytest.mark.parametrize(
    "schedule, granularity, columns, removed",
    [
        (CUBIC, "weight", {"dense steps", "soft steps", "soft"}, "57,024 weights"),
        ({"name": "one_shot", "start": 0}, "weight", {"at the cut"}, "57,024 weights"),
        (CUBIC, {"name": "n_of_m", "n": 1, "m": 4}, {"dense steps", "soft steps", "soft"}, "57,024 weights"),
        (
            {"name": "one_shot", "start": 5},
            {"name": "block", "rows": 4, "cols": 4},
            {"units", "dense steps", "at the cut"},
            "3,564 units",
        ),
    ],
)
def test_a_dry_runs_table_has_only_what_there_is(
    schedule: dict[str, Any], granularity: Any, columns: set[str], removed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: "units" of single weights, "soft" where all is cut at once."""
    pruner = attached(schedule, granularity=granularity, sparsity=0.75)
    monkeypatch.setattr(dry_run, "attached", lambda *_: (None, pruner))
    head, row = (line for line in dry_run.describe(Config()).splitlines() if "pruner " in line or " p " in line)
    every = {"units", "dense steps", "soft steps", "soft", "at the cut"}
    assert {cell for cell in every if re.search(rf"[┃,] +{cell} +┃", head)} == columns
    assert f" {removed} " in row


def test_a_dry_run_needs_no_directory(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "recipe=parity", "--dry-run", "train.best_metric=f1"])
    assert stop.value.code == 2 and "allowed are loss, perplexity" in capsys.readouterr().err


@pytest.mark.parametrize(
    "keys, gpus, said",
    [
        ({}, 0, ["2 ranks on the CPU, ZeRO 3, bf16"]),
        ({"world_size": 1, "dtype": "fp32"}, 0, ["1 rank on the CPU, ZeRO 3, fp32"]),
        ({}, 2, ["2 ranks on a GPU each, ZeRO 3, bf16"]),
        ({}, 8, ["2 ranks on a GPU each, ZeRO 3, bf16", "this machine has 8 GPUs: engine.world_size=8 takes all"]),
        ({"hostfile": "hosts"}, None, ["2 ranks on the hosts of hosts, ZeRO 3, bf16"]),
        ({"hostfile": "hosts"}, 8, ["2 ranks on the hosts of hosts, ZeRO 3, bf16"]),  # in a dry run
        ({}, 3, ["2 ranks on a GPU each, ZeRO 3, bf16"]),  # three do not share out the batch
        ({"world_size": 16}, None, ["16 ranks, ZeRO 3, bf16"]),  # of a job, on whatever the nodes have
    ],
)
def test_where_it_computes_is_said(
    keys: dict[str, Any], gpus: int | None, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: a night on one of eight cards."""
    monkeypatch.setattr(start_summary_module, "accelerator", lambda: "cuda" if gpus else "cpu")
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.delenv("RANK", raising=False)
    given = {"train__global_batch_size": 16}
    given |= {f"engine__{key}": value for key, value in {"world_size": 2, "dtype": "bf16", **keys}.items()}
    assert list(start_summary_module._engine(Config().changed(engine__zero_stage=3, **given), gpus is not None)) == said


@pytest.mark.parametrize(
    "ranks, threads, quota, free, said",
    [
        (2, 2, "max 100000", 4.0, None),
        (
            2,
            4,
            "max 100000",
            4.0,
            "8 threads (2 ranks with 4) share 4 cores, which is slow: engine.threads_per_rank=2",
        ),
        (
            2,
            2,
            "150000 100000",
            2.0,
            "4 threads (2 ranks with 2) share 2 cores, which is slow: engine.threads_per",
        ),
        (
            2,
            1,
            "100000 100000",
            1.0,
            "2 threads (2 ranks with 1) share 1 core, which is slow: engine.world_size=1",
        ),
        (1, None, "150000 100000", 2.0, None),  # by default all that it may use
        (
            1,
            4,
            "max 100000",
            1.2,
            "leave about 1.2 of 4 cores to 4 threads (1 rank with 4): engine.threads_per_rank=1",
        ),
        (1, 1, "max 100000", 0.2, None),  # nothing would help
        (1, 4, "max 100000", 3.3, None),  # what any machine does beside
        (8, 2, "max 100000", 4.0, "16 threads (8 ranks with 2) share 4 cores, which is slow: engine.world_size=4"),
    ],
)
def test_threads_that_wait_for_cores_are_told_the_key(
    ranks: int, threads: int | None, quota: str, free: float, said: str | None, tmp_path: Path, monkeypatch: Any
) -> None:
    """Would catch: two threads on one free core, at a fifth of the speed of one."""
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr(start_summary_module, "free_cores", lambda: free)
    monkeypatch.setattr(start_summary_module, "accelerator", lambda: "cpu")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    config = Config().changed(engine__world_size=ranks, engine__threads_per_rank=threads)
    lines = list(start_summary_module._cores(config, here=True))
    assert len(lines) == (said is not None) and (said or "") in "".join(lines)
    assert not list(start_summary_module._cores(config, here=False))
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    assert threads or not list(start_summary_module._cores(config, here=True)), "levels of nested threads"


def test_cores_that_are_free_are_measured() -> None:
    assert 0.0 <= machine.free_cores(0.05) <= machine.usable_cores()


@pytest.mark.parametrize("gate, warned", [("pair_similarity", False), ("similarity", False), ("taylor", True)])
def test_layers_that_are_dropped_together_are_no_jump(gate: str, warned: bool) -> None:
    """Would catch: a warning of the command that the pages advise."""
    keep = {"name": "shape", "keep": {"layers": 2}}
    settings = PrunerConfig(structures=["layers"], gate=gate, budget=keep, schedule={"name": "one_shot", "start": 20})
    pruner = Pruner(Config().changed(train__num_steps=200, pruners__p=settings))
    pruner.attach(small.model("llama"))
    (one,) = pruner.structure_pruners
    assert any("jumps" in said for said in timetable.warnings(one)) == warned


@pytest.mark.parametrize(
    "given, said",
    [
        ({}, []),
        ({"teacher": "d"}, ["d, which runs beside the model: weight 0.5, temperature 2"]),
        ({"teacher": "d", "hidden_weight": 0.1}, ["weight 0.5, temperature 2, weight 0.1 of hidden states"]),
        ({"teacher": "d", "cache": "c"}, ["drawn answers in c: weight 0.5, temperature 2"]),
    ],
)
def test_whose_answers_are_learned_is_said(given: dict[str, Any], said: list[str]) -> None:
    keys = {f"distill__{key}": value for key, value in given.items()}
    lines = list(start_summary_module._teacher(Config().changed(distill__weight=0.5, distill__temperature=2.0, **keys)))
    assert len(lines) == len(said) and all(line.endswith(end) for line, end in zip(lines, said, strict=True))


@pytest.mark.parametrize(
    "dtype, flags, device, weights, warned",
    [
        ("bf16", "fma avx512f", "cpu", start_warnings.LARGE, True),
        ("fp32", "fma avx512f", "cpu", start_warnings.LARGE, False),
        ("bf16", "fma avx512f avx512_bf16", "cpu", start_warnings.LARGE, False),
        ("bf16", "fp asimd bf16", "cpu", start_warnings.LARGE, False),
        ("bf16", "arm64", "cpu", start_warnings.LARGE, False),  # of a system that lists nothing
        ("bf16", "fma avx512f", "cuda", start_warnings.LARGE, False),
        ("bf16", "fma avx512f", "cpu", 8, False),
    ],
)
def test_bf16_without_units_for_it_is_said(
    dtype: str, flags: str, device: str, weights: int, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: the first hour spent on steps that take a third of the time in fp32."""
    monkeypatch.setattr(machine, "cpu_features", lambda: flags)
    monkeypatch.setattr(start_warnings, "accelerator", lambda: device)
    model = nn.Linear(1, weights, device="meta")
    checked = preflight.Checked(None, model, None)  # type: ignore[arg-type]
    said = list(start_warnings._slow_dtype(Config().changed(engine__dtype=dtype), checked))
    assert len(said) == warned and all("engine.dtype=fp32" in sentence for sentence in said)
