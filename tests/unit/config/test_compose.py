from __future__ import annotations

import copy
import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
import yaml

from pat import cli
from pat import train as loop
from pat.commands import train
from pat.config import auto, compose, frozen, places
from pat.launch.environment import RankEnvironment
from pat.pruning import registry
from pat.pruning.schedules import Schedule
from pat.run.directory import ExitCode, RunDir, write_exit
from pat.schema import FILES, Config
from pat.sweeps import members
from pat.tasks import base
from tests import open_recipes
from tests.sets import thinned

PARITY = "recipe=parity"


def composed(*arguments: str) -> Config:
    return copy.deepcopy(_once(*arguments))


def _composed(*arguments: str) -> Config:
    found: list[Config] = []
    assert compose.compose(arguments, lambda config: found.append(config) or 0) == 0
    return found[0]


_once = cache(_composed)  # the same arguments come again and again


def refused(*arguments: str) -> str:
    with pytest.raises(ValueError) as error:
        _composed(*arguments)
    return str(error.value)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Hydra must not care where the user stands, and must leave nothing there."""
    monkeypatch.chdir(tmp_path)


def test_parity(tmp_path):
    """That every recipe composes is in tests/recipes."""
    config = composed(PARITY)
    assert (config.engine.world_size, config.engine.zero_stage, config.train.num_steps) == (2, 2, 30)
    assert registry.build("schedule", config.pruners["weights"].schedule).resolve(30).hard_from == 20
    frozen.freeze(config, tmp_path)
    assert frozen.load(tmp_path / "config.yaml") == config


def test_overrides():
    config = composed(
        PARITY,
        "pruners.weights.criterion.name=magnitude",
        "pruners.weights.budget.sparsity=0.5",
        "engine.zero_stage=3",
        "seed=1",
        "run.dir=/data/x",
        "+model.config.attention_dropout=0.1",
        "pruners.weights.schedule.end=0.6",
    )
    pruner = config.pruners["weights"]
    assert pruner.criterion == registry.build("criterion", "magnitude")
    assert pruner.budget.sparsity == 0.5 and pruner.schedule.end == 0.6
    assert (config.engine.zero_stage, config.seed, config.run.dir) == (3, 1, "/data/x")
    assert config.model.config["attention_dropout"] == 0.1


@pytest.mark.parametrize(
    "key", ["pruners.weights.criterion.name", "pruners.weights.criterion", "criterion@pruners.weights.criterion"]
)
def test_another_method_brings_its_own_fields(key):
    criterion = (
        composed(PARITY, f"{key}=soft_movement", "pruners.weights.criterion.tau=0.2").pruners["weights"].criterion
    )
    assert criterion == registry.build("criterion", {"name": "soft_movement", "tau": 0.2})


@pytest.mark.parametrize(
    "kind, written, expected",
    [
        ("criterion", "{name: soft_movement, tau: 0.2}", {"name": "soft_movement", "tau": 0.2}),
        ("criterion", "{name: 'magnitude'}", {"name": "magnitude"}),
        ("criterion.name", "'taylor'", {"name": "taylor"}),
        ("criterion", '"taylor"', {"name": "taylor"}),
        ("granularity", "{m: 4, n: 2, name: n_of_m}", {"name": "n_of_m", "n": 2, "m": 4}),
    ],
)
def test_a_method_may_be_a_mapping_or_in_quotes(kind, written, expected):
    """Would catch: keys of the recipe's method are missed, and those of the one that is named are unknown."""
    pruner = composed(PARITY, f"pruners.weights.{kind}={written}").pruners["weights"]
    kind = kind.removesuffix(".name")
    assert getattr(pruner, kind) == registry.build(kind, expected)


def test_a_shape_may_be_part_of_a_mapping_and_later_keys_add_to_it():
    given = "pruners.narrow.budget={name: shape, keep: {kv_groups: 0.5}, tensor_parallel: 2}"
    base = "recipe=decoder_narrow", "model.path=/m", "data=csv", "data.train=a", "train.num_steps=100"
    budget = composed(*base, given, "pruners.narrow.budget.keep.heads=4").pruners["narrow"].budget
    assert budget.keep == {"kv_groups": 0.5, "heads": 4} and budget.tensor_parallel == 2
    assert refused(*base, "pruners.narrow.gate={name: taylor, fade: 1, dekay: 0.9}").startswith(
        "there is no key 'pruners.narrow.gate.dekay'; allowed in pruners.narrow.gate: "
    )


def test_a_replaced_method_takes_its_settings_along(tmp_path):
    (tmp_path / "recipe").mkdir()
    recipe = (places.conf_dir() / "recipe" / "parity.yaml").read_text()
    methods = {"granularity": "weight", "criterion": "soft_movement", "budget": "sparsity", "schedule": "cubic"}
    lines = "".join(f"  - /{kind}@pruners.weights.{kind}: {name}\n" for kind, name in methods.items())
    recipe = recipe.replace("  - /pruner@pruners.weights: movement\n", lines).replace(
        "    budget:", "    criterion: { tau: 0.3 }\n    budget:"
    )
    (tmp_path / "recipe" / "mine.yaml").write_text(recipe)
    own = ("--config-dir", str(tmp_path), "recipe=mine")
    assert composed(*own).pruners["weights"].criterion.tau == 0.3
    assert composed(*own, "pruners.weights.criterion.name=magnitude").pruners["weights"].criterion == registry.build(
        "criterion", "magnitude"
    )
    named = recipe.replace("{ tau: 0.3 }", "{ name: soft_movement, tau: 0.3 }")
    (tmp_path / "recipe" / "mine.yaml").write_text(named)  # the command line's name counts, not the recipe's
    assert composed(*own, "pruners.weights.criterion.name=taylor").pruners["weights"].criterion.name == "taylor"
    samples = recipe.replace("soft_movement", "wanda").replace("{ tau: 0.3 }", "{ num_samples: 7 }")
    (tmp_path / "recipe" / "mine.yaml").write_text(samples)
    counts = [composed(*own, f"pruners.weights.criterion.name={name}").pruners["weights"].criterion.num_samples
              for name in ("alps", "movement")]  # fmt: skip
    assert counts == [7, registry.build("criterion", "movement").num_samples]  # movement calibrates for its prior only
    assert ", mine, " in refused("--config-dir", str(tmp_path), "recipe=yours")
    (tmp_path / "recipe" / "mine.yaml").write_text(recipe + "\n    speed: 3\n")
    assert (
        "in recipe/mine.yaml: there is no key 'pruners.weights.speed'; allowed in pruners.weights: allow_empty_matrices"
        in refused(*own)
    )


@pytest.mark.parametrize(
    "overrides, words",
    thinned(
        [
            ("recipe=nope", "there is no recipe called 'nope'; allowed: "),
            (f"{PARITY} engine=zero9", "there is no engine called 'zero9'; allowed: zero0, zero1, zero2, zero3"),
            (
                f"{PARITY} engine.zer=3",
                "there is no key 'engine.zer'; allowed in engine: activation_checkpointing, deepspeed",
            ),
            (f"{PARITY} +engine.extra=3", "there is no key 'engine.extra'; allowed in engine"),
            (f"{PARITY} sed=3", "there is no key 'sed'; allowed at the top: data, distill, engine"),
            (f"{PARITY} trainn.num_steps=3", "did you mean train?"),
            (
                "recipe=encoder_narrow pruners.narrow.budget.sparsity=0.5",
                "tensor_parallel; to keep half of the neurons: pruners.narrow.budget.keep.ffn=0.5",
            ),
            (f"{PARITY} sparsity=0.5", "task, train; did you mean pruners.weights.budget.sparsity?"),
            (f"{PARITY} dtype=bf16", "task, train; did you mean engine.dtype?"),
            (f"{PARITY} engine.zero_stage=abc", "engine.zero_stage is 'abc', but must be a whole number"),
            (f"{PARITY} optim.lr=fast", "optim.lr is 'fast', but must be a number"),
            (
                f"{PARITY} engine.offload_optimizer=maybe",
                "engine.offload_optimizer is 'maybe', but must be true or false",
            ),
            (f"{PARITY} train.num_steps=null", "train.num_steps must have a value"),
            (f"{PARITY} train.export_at=0.3", "train.export_at must be a list, [a, b], but is of type float"),
            (f"{PARITY} model.config=3", "model.config must be a mapping, {key: value}, but is of type int"),
            (
                f"{PARITY} +pruners.x={{speed:3}}",
                "pruners.x is new and cannot be given whole: +pruner@pruners.x=alps|",
            ),
            (
                "recipe=encoder pruners.narrow.budget.keep.ffn=0.5",
                "no pruner called 'narrow': recipes encoder and decoder have `weights`, encoder_narrow",
            ),
            (
                f"{PARITY} pruners.weights.criterion.name=nope",
                "there is no criterion called 'nope'; allowed: alps, magnitude",
            ),
            (
                f"{PARITY} pruners.weights.schedule.last=3",
                "allowed in pruners.weights.schedule: end, hard_from, initial",
            ),
            (f"{PARITY} pruners.other.scope=matrix", "in pruners: weights; recipes encoder and decoder"),
            (f"{PARITY} +pruners.x=obs", "obs is not a pruner: pruners.NAME is a mapping with keys out of"),
            (f"{PARITY} +pruners.x.structures=[ffn]", "; +pruner@pruners.x=alps|"),
            (f"{PARITY} pruners.x.gate=taylor", "; +pruner@pruners.NAME=alps|"),
            (f"{PARITY} criterion@pruners.x.criterion=taylor", "did you mean criterion@pruners.weights.criterion"),
            (
                "criterion@pruners.x.criterion=taylor",
                "defaults list must say `- /criterion@pruners.x.criterion: OPTION`",
            ),
            (f"{PARITY} pruners.weights.granularity.name=n_of_m", "no value for pruners.weights.granularity.m"),
            (f"{PARITY} seed=1,2", "seed=1,2 is several values: pat sweep compares a run of each"),
            (
                "recipe=decoder_narrow pruners.narrow.budget.keep.ffn=0.5,0.75",
                "or write pruners.narrow.budget.keep.ffn=[0.5,0.75] for a list",
            ),
            (f"{PARITY} nonsense", "cannot read 'nonsense': write key=value"),
            (f"{PARITY} data.delimiter=;", """would split, such as 'data.delimiter=";"'"""),
            (
                "recipe=decoder model.path=/m data.source=json data.train=t",
                "no value for train.num_steps (steps of train.global_batch_size samples each; 80 to 1,000 were",
            ),
            ("recipe=encoder model.path=/m data.train=a/x.csv train.num_steps=9", "); for a/x.csv data.source=csv"),
            (
                "task=causal_lm",
                "the name of a data set), model.path (a folder, or a name on the Hugging Face hub)",
            ),
            (
                PARITY + " task.name=???",
                f"task.name (task={' or task='.join(base.names())})",
            ),
            (f"{PARITY} engine.world_size=3", "take 6, 9, or 1, 2, 4, 8 ranks"),
            (
                f"{PARITY} engine.world_size=16",
                "cannot be shared by engine.world_size=16 ranks: take 16, or 1, 2, 4, 8",
            ),
            (f"{PARITY} train.micro_batch_size=3", "take a micro_batch_size of 1, 2, 4, or null"),
            (f"{PARITY} engine.dtype=int8", "engine.dtype is 'int8'; allowed: bf16, fp16, fp32"),
            (f"{PARITY} logger.mode=on", "logger.mode is 'on'; allowed: disabled, offline, online, null"),
            (f"{PARITY} engine.zero_stage=4", "engine.zero_stage is 4; allowed: 0, 1, 2, 3"),
            (f"{PARITY} train.num_steps=-1", "train.num_steps is -1, but must be at least 0"),
            (f"{PARITY} train.early_stopping_patience=0", "train.early_stopping_patience is 0, but must be at least 1"),
            (
                f"{PARITY} train.early_stopping_patience=1 train.eval_every=null",
                "train.early_stopping_patience counts evaluations: give train.eval_every, too",
            ),
            (f"{PARITY} optim.lr=0", "optim.lr is 0.0, but must be above 0"),
            (f"{PARITY} optim.warmup=2.5", "steps are whole numbers"),
            (f"{PARITY} optim.betas=[0.9]", "optim.betas is [0.9]"),
            (f"{PARITY} optim.trainable=[]", "nothing would be trained"),
            (f"{PARITY} optim.name=cpu_adam", "needs engine.offload_optimizer=true"),
            (
                f"{PARITY} engine=zero0 engine.offload_optimizer=true",
                "offload_optimizer=true would be ignored at ZeRO 0",
            ),
            (f"{PARITY} model.init=pretrained", "model.path is not set"),
            (f"{PARITY} data.eval_fraction=0", "data.eval_fraction is 0.0"),
            (f"{PARITY} pruners.weights.scope=layer", "allowed are global, matrix, row"),
            (f"{PARITY} pruners.weights.params=[]", "pruners.weights.params is empty"),
            (f"{PARITY} pruners.weights.budget.sparsity=1.0", "pruners.weights.budget: budget.sparsity is 1.0"),
            (f"{PARITY} pruners.weights.schedule.hard_from=30", "pruners.weights.schedule: "),
            ("--config-dir nowhere recipe=parity", "nowhere' not found"),
        ],
        3,
    ),
)
def test_bad_input_is_one_sentence(overrides, words):
    message = refused(*overrides.split())
    assert words in message and "\n" not in message


@pytest.mark.parametrize("recipe", thinned(["reviews", "sotu", "smollm2_chat", "llama3_8b_chat"], 4))
def test_files_for_training_and_evaluation_are_replaced_together(recipe):
    """Would catch: the user's model measured on the recipe's data, or the recipe's on the user's."""
    name = f"recipe={recipe}"
    if composed(name).data.source not in FILES:  # splits of one data set
        assert composed(name, "data.train=test_sft").data.eval
        return
    message = refused(name, "data.train=mine.jsonl")
    assert "data.eval=FILE" in message and "data.eval=null" in message and str(composed(name).data.eval) in message
    assert "data.eval=FILE" in refused(name, "data.source=csv", "++data.train=[mine.csv]")
    assert "give data.train, too" in refused(name, "data.eval=mine.jsonl")
    assert composed(name, "data.train=mine.jsonl", "data.eval=null").data.eval is None
    assert composed(name, "data.train=mine.jsonl", "data.eval=other.jsonl").data.eval == "other.jsonl"
    assert composed(name, "data.max_length=20").data.eval == composed(name).data.eval


@pytest.mark.parametrize("data", ["data=json", "data.source=json"])
def test_ones_own_file_takes_the_place_of_a_recipes_data_set(data):
    """Would catch: the source in a recipe's body, which is composed after the group; and its subset, refused as one's
    own."""
    config = composed("recipe=llama3_8b", data, "data.train=mine.jsonl")
    assert (config.data.source, config.data.train) == ("json", "mine.jsonl")
    assert composed("recipe=llama3_8b").data.subset == "sample-10BT"
    assert "data.subset" in refused("recipe=llama3_8b", data, "data.train=mine.jsonl", "data.subset=x")


def test_a_file_that_would_be_passed_over_is_refused(tmp_path):
    """Would catch: Hydra, which reads pat's own file of that name, and trains what was not asked for."""
    for place in ("recipe/parity.yaml", "optim/adamw.yaml", "cluster/local.yaml"):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_text("")
        ways = (["--config-dir", str(tmp_path)], [f"--config-dir={tmp_path}"])
        for way in ways if "cluster" not in place else ():
            assert f"{place} has the name of a file of pat's own" in refused("recipe=parity", *way)
        (tmp_path / place).rename(tmp_path / place.replace(".yaml", "2.yaml"))
    composed("recipe=parity", "--config-dir", str(tmp_path))


def test_a_recipe_that_builds_on_itself_is_refused(tmp_path):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - /recipe: parity\n  - _self_\n")
    assert "name another as `- NAME`" in refused("recipe=mine", "--config-dir", str(tmp_path))


def test_a_section_cannot_be_taken_away():
    assert "~train would take a whole section away" in refused("recipe=parity", "~train")


def test_files_of_a_mixture_are_replaced_together(tmp_path):
    (tmp_path / "recipe").mkdir()
    mixed = "  source: mixture\n  sources: {a: {source: json, train: a.jsonl, eval: b.jsonl}, c: {source: generated}}\n"
    recipe = (places.conf_dir() / "recipe" / "parity.yaml").read_text()
    (tmp_path / "recipe" / "mixed.yaml").write_text(recipe.replace("\ndata:\n", f"\ndata:\n{mixed}"))
    own = ("--config-dir", str(tmp_path), "recipe=mixed")
    assert "data.sources.a.eval=null" in refused(*own, "data.sources.a.train=mine.jsonl")
    assert composed(*own, "data.sources.a.train=mine.jsonl", "data.sources.a.eval=null")


def test_names_are_those_of_what_changes_the_result():
    def name(*overrides, sweep=False):
        return compose.run_name(overrides, "r", sweep)

    assert name("recipe=r") == name("recipe=r", "run.resume=must", "logger=none", "engine.world_size=4") == "r"
    assert name("engine=zero3", "engine.zero_stage=3") == "r", "both are ways to say the same"
    assert name("seed=1", "optim.lr=1e-3") == name("optim.lr=1e-3", "seed=1") == "r,optim.lr=1e-3,seed=1"
    assert name("engine.zero_stage=3", sweep=True) == "r,engine.zero_stage=3"
    assert name("seed=1", "run.dir='out/my run/'") == "my run"
    assert name("seed=1", "run.dir=out/${.name}") == name("seed=1", "run.dir=out", sweep=True) == "r,seed=1"
    assert name("pruners.w.params=[a/b,'c d']") == "r,w.params=_a_b_c_d_"
    long = [f"+model.config.key{i}={i}" for i in range(30)]
    assert len(name(*long)) < 200 and name(*long) != name(*long[1:])
    for letters in ("отзывы", "评论", "é"):
        given = {"data.train": letters * 60, "seed": "1"}
        made = [name(*(f"{key}={value}" for key, value in given.items())), members._name(given)]
        assert [len(each.encode()) <= most for each, most in zip(made, (180, 120), strict=True)] == [True, True], made
        assert members._name(given) != members._name({**given, "seed": "2"})


def test_the_same_directory_goes_on_only_with_the_same_config(tmp_path):
    config, run = composed(PARITY), RunDir(tmp_path / "run")
    frozen.freeze(config, run.path)
    assert json.loads(run.version.read_text())["pat"]
    changed = config.changed(seed=7)
    frozen.freeze(changed, run.path)  # nothing has come of the first one yet
    run.checkpoints.mkdir()
    with pytest.raises(ValueError, match=r"another config \(seed was 7, now 0\): .*run.dir, .* run.resume=never"):
        frozen.freeze(config, run.path)
    with pytest.raises(ValueError, match=r"another config \(pruners.weights is gone\): go on with the old values"):
        frozen.freeze(changed.changed(pruners={}), run.path)
    ends = changed.changed(pruners__weights__schedule={**changed.pruners["weights"].plain()["schedule"], "end": None})
    with pytest.raises(ValueError, match=r"pruners.weights.schedule.end was .*, now None"):
        frozen.freeze(ends, run.path)
    elastic = changed.changed(engine__world_size=4, engine__zero_stage=3, engine__offload_optimizer=True)
    elastic = elastic.changed(logger__tags=["x"], run__resume="must", train__checkpoint_every_minutes=7.0)
    frozen.freeze(elastic, run.path)
    assert frozen.load(run.config) == elastic
    (run.checkpoints / "step-1").mkdir()
    for path in (run.summary, run.metrics, run.wandb_id):
        path.touch()
    earlier = (run.checkpoints, run.summary, run.metrics, run.wandb_id)
    over = config.changed(run__resume="never")
    frozen.freeze(over, run.path)
    assert all(path.exists() for path in earlier), "the start may still be refused"
    assert frozen.set_aside(elastic, run.path) is None and all(path.exists() for path in earlier)
    assert frozen.set_aside(over, run.path) == run.path / "checkpoints.1"
    assert not any(path.exists() for path in earlier)
    assert (run.path / "checkpoints.1/step-1").is_dir()
    run.summary.touch()
    assert frozen.set_aside(over, run.path) is None and not run.summary.exists(), "there was nothing to rename"


def test_the_size_of_micro_batches_changes_only_where_it_changes_no_loss(tmp_path):
    """Fails if answers count more or less than before, because other micro-batches are averaged, without a word."""
    even = composed("recipe=sotu", "train.global_mean=false").changed(train__global_batch_size=8)
    for config, refused in (
        (composed("recipe=smollm2_chat").changed(train__global_batch_size=8), False),
        (even, False),
        (even.changed(distill__hidden_weight=0.5), True),
        (even.changed(task=composed("recipe=smollm2_chat").task.plain()), True),
    ):
        run = RunDir(tmp_path / "run")
        given = config.changed(engine__world_size=2, train__micro_batch_size=None)
        frozen.freeze(given.changed(run__resume="never"), run.path)
        run.checkpoints.mkdir(exist_ok=True)
        frozen.check_same_run(given.changed(engine__world_size=1, train__micro_batch_size=4), run.path)
        with pytest.raises(ValueError, match="size was 4, now 2, which train.glob") if refused else nullcontext():
            frozen.check_same_run(given.changed(engine__world_size=4), run.path)


def test_after_a_divergence_the_run_goes_on_with_another_learning_rate(tmp_path):
    config, run = composed(PARITY), RunDir(tmp_path / "run")
    frozen.freeze(config, run.path)
    run.checkpoints.mkdir()
    slower = config.changed(optim__lr=config.optim.lr / 2)
    with pytest.raises(ValueError, match="another config .optim.lr was"):
        frozen.freeze(slower, run.path)
    write_exit(run.path, ExitCode.DIVERGED)
    with pytest.raises(ValueError, match="another config .seed was"):
        frozen.freeze(slower.changed(seed=7), run.path)
    with pytest.raises(ValueError, match="another config .optim.lr_schedule was"):
        frozen.freeze(slower.changed(optim__lr_schedule="cosine"), run.path)
    run.exit.unlink()  # of a start that was killed before it could diverge again
    frozen.freeze(slower, run.path)
    assert frozen.load(run.config) == slower
    with pytest.raises(ValueError, match="another config .optim.lr was"):
        frozen.freeze(config, run.path)  # only once
    write_exit(run.path, ExitCode.DIVERGED)
    write_exit(run.path, ExitCode.DONE)
    with pytest.raises(ValueError, match="another config .optim.lr was"):
        frozen.freeze(config, run.path)


def test_the_advice_after_a_divergence_finds_the_run():
    """Fails if a lower rate begins a new run, whose folder is named after it, and not the one that was saved."""
    config = composed(PARITY, "optim.lr=1")
    run = RunDir(Path(config.run.dir))
    frozen.freeze(config, run.path)
    write_exit(run.path, ExitCode.DIVERGED)
    slower = PARITY, "optim.lr=0.5"
    assert "lower optim.lr: the same command then begins again" in loop.after_divergence(run.path)
    (run.checkpoints / "step-00000004").mkdir(parents=True)
    (run.checkpoints / "step-00000004" / "manifest.json").touch()
    advice = loop.after_divergence(run.path)
    key = next(word for word in shlex.split(advice) if word.startswith("run.dir=")).removesuffix(":")
    assert advice.endswith(": the same command then goes on from step-00000004")
    assert composed(*slower, key).run.dir == config.run.dir != composed(*slower).run.dir
    frozen.freeze(composed(*slower, key), run.path)


def test_the_command_that_goes_on_is_named_as_one_that_does(tmp_path):
    assert frozen.same_command(tmp_path) == "the same command", "nothing is known"
    config = composed(PARITY)
    frozen.freeze(config, tmp_path)
    assert frozen.same_command(tmp_path) == "the same command"
    frozen.freeze(config.changed(run__resume="never"), tmp_path)
    assert frozen.same_command(tmp_path) == "the same command without run.resume=never"


def test_a_rank_does_not_wait_for_a_first_that_has_left(tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "REFUSED_AFTER_S", 0.05)
    config = composed(PARITY)
    answers = iter([None, "it holds another config"])
    with pytest.raises(ValueError, match="^rank 0 has left: it holds another config$"):
        frozen.wait_for_frozen(config, tmp_path, 30.0, lambda: next(answers))
    with pytest.raises(ValueError, match="rank 0 has not written this rank's config .* within 0 s"):
        frozen.wait_for_frozen(config, tmp_path, 0.1)
    frozen.freeze(config, tmp_path)
    frozen.wait_for_frozen(config, tmp_path, 0.0)


def test_a_frozen_config_with_a_strange_key_is_refused(tmp_path):
    frozen.freeze(composed(PARITY), tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text() + "extra: 1\n")
    with pytest.raises(ValueError, match="there is no key 'extra'"):
        frozen.load(path)
    with pytest.raises(ValueError, match="cannot read the run's config"):
        frozen.load(tmp_path / "nothing.yaml")


def test_other_ranks_wait_for_the_same_config(tmp_path):
    config = composed(PARITY)
    frozen.freeze(config, tmp_path)
    frozen.wait_for_frozen(config, tmp_path, timeout_s=0.0)
    with pytest.raises(ValueError, match="the same on every rank"):
        frozen.wait_for_frozen(config.changed(seed=3), tmp_path, timeout_s=0.2)


def test_hydra_leaves_no_trace(tmp_path):
    environment, argv = dict(os.environ), list(sys.argv)
    _composed(PARITY)
    refused("recipe=nope")
    assert list(tmp_path.iterdir()) == [] and Path.cwd() == tmp_path
    assert dict(os.environ) == environment and sys.argv == argv


def test_multirun_members_have_directories_of_their_own():
    found: list[Config] = []
    compose.compose(["--multirun", PARITY, "seed=0", "engine=zero2,zero3"], lambda c: found.append(c) or 0)
    assert len({config.run.dir for config in found}) == 2
    assert found[1].run.dir == "runs/parity,engine=zero3,seed=0"


def test_multirun_returns_the_first_failure_and_stops_when_preempted():
    codes = iter([0, 3, 4])
    assert compose.compose(["-m", PARITY, "seed=0,1,2"], lambda _: next(codes)) == 3
    codes = iter([85, 0])
    with pytest.raises(SystemExit) as stop:
        compose.compose(["-m", PARITY, "seed=0,1"], lambda _: next(codes))
    assert stop.value.code == 85 and next(codes) == 0


def run_pat(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pat.cli", *arguments], capture_output=True, text=True, env=os.environ | environ
    )


def test_command_line_shows_configs_and_help():
    shown = run_pat("train", "--cfg", "job", "--recipe", "parity", "engine.zero_stage=3", "--local_rank=1")
    assert shown.returncode == 0, shown.stderr
    content = yaml.safe_load(shown.stdout)
    assert content["engine"]["zero_stage"] == 3 and content["run"]["dir"] == "runs/${.name}"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--help"], ["train", "export", "85 "]),
        (["train", "--help"], ["parity", "zero3", "soft_movement", "exit codes", "run.resume=auto", "srun"]),
        (["export", "--help"], ["--checkpoint", "--dtype", "--verify", "  4    the checkpoint"]),
    ],
)
def test_help(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(word in out for word in words)


@pytest.mark.parametrize(
    "keys, expected",
    [
        ([], ["all-but-embeddings"]),
        (["task=chat"], ["*"]),
        (["peft=lora", "pruners={}"], ["*"]),
        (["model.init=random"], ["*"]),
        (["optim.trainable=[*]"], ["*"]),
        (["optim.trainable=[model.layers.*]"], ["model.layers.*"]),
    ],
)
def test_embeddings_of_a_general_decoder_train_on_chats_only(keys, expected):
    """Fails if a recipe's `auto` reaches a run, or wins over what is given."""
    given = ["recipe=decoder", "model.path=x", "data.source=json", "data.train=x.jsonl", "train.num_steps=9", *keys]
    assert composed(*given).optim.trainable == expected


def test_auto_stands_by_itself():
    assert "auto stands by itself" in refused(PARITY, "optim.trainable=[auto,model.norm.*]")


@pytest.mark.parametrize(
    "word, expected",
    [
        ("alps", ["pruners.NAME.criterion.iterations=60   of alps", "most iterations of ADMM"]),
        ("schedule.cubic", ["pruners.NAME.schedule.initial=0.0   of cubic"]),
        ("base_width", ["lr * base_width / its hidden size"]),
        ("optim.lr", ["optim.lr=???", "optim.lr_schedule=linear", "[constant, cosine, linear, per_cut]"]),
    ],
)
def test_keys_are_described(word, expected, capsys):
    assert train.main(["--keys", word]) == 0
    out = capsys.readouterr().out
    assert all(line in out for line in expected) and "optim.betas" not in out


def test_an_unknown_key_is_no_empty_answer():
    with pytest.raises(ValueError, match="--keys x9"):
        train.main(["--keys", "x9"])


@pytest.mark.parametrize("command", ["data", "doctor", "evaluate", "export", "plan", "sensitivity"])
def test_help_lists_no_exit_code_of_training_where_nothing_is_trained(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    listed = capsys.readouterr().out.partition("exit codes:")[2]
    assert [int(line.split()[0]) for line in listed.strip().splitlines()] == sorted(
        {0, 1, 2, 130} | ({4} if command in ("doctor", "export") else set())
    )


@pytest.mark.parametrize("command", ["compare", "evaluate", "export", "gate", "monitor", "profile", "prune", "search"])
def test_help_says_which_precision_is_the_default(command, capsys):
    """Would catch: fp32 on a GPU, of a model in bf16, where nothing says so."""
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    said = capsys.readouterr().out.partition("  --dtype ")[2].partition("\n  --")[0]
    assert "(default: " in " ".join(said.split())


def test_help_of_a_search_lists_the_verdict_of_envelopes_but_no_alert(capsys):
    with pytest.raises(SystemExit):
        cli.main(["search", "--help"])
    listed = capsys.readouterr().out.partition("exit codes:")[2]
    assert [int(line.split()[0]) for line in listed.strip().splitlines()] == [0, 1, 2, 3, 4, 5, 85, 130]


def test_errors_exit_with_2_and_one_line(capsys):
    done = run_pat("train", "recipe=nope")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pat: there is no recipe called 'nope'") and done.stderr.count("\n") == 1
    said = []
    for arguments in (["train", "recipe=review"], ["train", "--unknown"], ["trian"], []):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2
        said.append(capsys.readouterr().err)
    assert "did you mean reviews?" in said[0]


def test_a_launcher_sets_the_number_of_ranks(monkeypatch):
    environment = RankEnvironment(0, 4, 0, "n1", 1, "torch")
    assert train._with_world_size([PARITY], environment) == [PARITY, "engine.world_size=4"]
    with pytest.raises(ValueError, match="the launcher started 4 ranks"):
        train._with_world_size(["engine.world_size=2"], environment)


def test_no_pruners_means_none():
    """Hydra merges an empty mapping into the recipe's, which would go on pruning in silence."""
    assert composed(PARITY).pruners
    lost = "pruners.weights.budget.sparsity=0.3"
    for none in ("pruners={}", "pruners={ }", "~pruners"):
        assert not composed(PARITY, none).pruners
    said = refused(PARITY, "pruners={}", lost)
    assert f"pruners={{}} takes all pruners away, so {lost} has none to set: leave one of them out" in said


def test_an_empty_mapping_that_would_take_nothing_away_is_refused():
    assert composed(PARITY, "+engine.deepspeed={}", "envelope={}")
    for key in ("model", "pruners.weights.budget"):
        assert f"{key}={{}} changes nothing, {key} keeps its values: leave it out" in refused(PARITY, f"{key}={{}}")


def test_no_envelope_means_none_but_for_later_limits():
    def limits(*given: str) -> dict[str, dict[str, float]]:
        return {name: limit.bounds() for name, limit in composed(PARITY, *given).envelope.items()}

    before = ("envelope.loss.rise=0.5", "envelope.perplexity.ratio=2", "envelope={}")
    assert limits(*before) == {}
    later = limits(*before, "envelope.loss.ratio=1.1", "++envelope.slices.max=9")
    assert later == {"loss": {"ratio": 1.1}, "slices": {"max": 9.0}}
    assert limits(*before, "envelope={loss:{ratio:1.1,rise:1}}") == {"loss": {"ratio": 1.1, "rise": 1.0}}


def test_a_shape_that_is_written_whole_is_the_shape():
    recipe = [*open_recipes.of("decoder_narrow"), "pruners.narrow.structures=[ffn,kv_groups]"]
    for given, keep in (
        ("pruners.narrow.budget.keep={kv_groups:2}", {"kv_groups": 2}),
        ("pruners.narrow.budget.keep={ffn:0.25,kv_groups: 2}", {"ffn": 0.25, "kv_groups": 2}),
        ("pruners.narrow.budget.keep.kv_groups=2", {"ffn": 0.5, "kv_groups": 2}),
    ):
        assert composed(*recipe, given).pruners["narrow"].budget.keep == keep
    whole, one = "pruners.narrow.budget.keep={ffn:50}", "pruners.narrow.budget.keep.kv_groups=2"
    for both, keep in (((whole, one), {"ffn": 50, "kv_groups": 2}), ((one, whole), {"ffn": 50})):
        assert composed(*recipe, *both).pruners["narrow"].budget.keep == keep


def test_a_mapping_of_free_keys_that_is_written_whole_replaces_the_recipes():
    """Would catch: a model that trains on a recipe's sources beside the user's own, or with a template's option that
    the command line took away."""
    chat = ("recipe=qwen3_8b_chat",)
    for given, options in (
        ("task.template_options={}", {}),
        ("task.template_options={ tone: dry }", {"tone": "dry"}),
        ("+task.template_options.tone=dry", {"enable_thinking": False, "tone": "dry"}),
    ):
        assert composed(*chat, given).task.template_options == options
    ours = [f"data.sources.{name}={{source: text, train: {name}.txt}}" for name in ("a", "b")]
    mixed = (PARITY, "data.source=mixture", *ours)
    whole = "data.sources={mine: {source: text, train: mine.txt}, a: {source: json, train: a.jsonl}}"
    assert list(composed(*mixed).data.sources or {}) == ["a", "b"]
    replaced = composed(*mixed, whole, "data.sources.mine.weight=3").data.sources
    assert replaced == {
        "mine": {"source": "text", "train": "mine.txt", "weight": 3}, "a": {"source": "json", "train": "a.jsonl"},
    }  # fmt: skip
    for given in ("data.train=own.txt", "data.train=own.txt data.eval=held.txt"):
        said = refused(*mixed, *given.split())
        assert "data.train=own.txt would not be read, as each of data.sources (a, b) names its own" in said
    deepspeed = composed(PARITY, "engine.deepspeed={a: {b: 1}}", "engine.deepspeed={a: {c: 2}}").engine.deepspeed
    assert deepspeed == {"a": {"c": 2}}


def test_a_target_from_the_environment_is_said_to_be_text(monkeypatch):
    monkeypatch.setenv("S", "0.5")
    said = refused(*open_recipes.of("encoder"), "pruners.weights.budget.sparsity=${oc.env:S}")
    assert "pruners.weights.budget.sparsity is '0.5', a text, but must be a number" in said


def test_a_pruner_is_added_as_the_refusal_of_a_mapping_says():
    advice = refused(PARITY, "+pruners.narrow={structures: [ffn], gate: taylor}")
    key, _, options = advice.partition(" adds a pruner")[0].rpartition(" ")[2].partition("=")
    assert "obs" in options.split("|")
    keys = ("structures=[ffn]", "budget.keep.ffn=64", "schedule.start=3")
    config = composed(PARITY, f"{key}=obs", *(f"pruners.narrow.{each}" for each in keys))
    assert config.pruners["narrow"].structures == ["ffn"] and set(config.pruners) == {"weights", "narrow"}


def test_files_that_decide_on_a_result_are_part_of_the_config(tmp_path):
    """Fails if a run that goes on elsewhere, or after the file was edited, is another one without a word."""
    deepspeed, table = {"zero_optimization": {"overlap_comm": False}}, {"format": 1, "model_type": "llama", "ffn": []}
    for file, content in (("ds.json", deepspeed), ("table.json", table)):
        (tmp_path / file).write_text(json.dumps(content))
    own = ["pruners.narrow.budget.name=latency", "pruners.narrow.budget.sparsity=0.3"]
    recipe, place = [*open_recipes.of("decoder_narrow"), *own], "pruners.narrow.budget.table"
    config = _composed(*recipe, "engine.deepspeed=ds.json", f"{place}=table.json")
    assert config.engine.deepspeed == deepspeed and config.pruners["narrow"].budget.table == table
    frozen.freeze(config, tmp_path / "run")
    for file in ("ds.json", "table.json"):
        (tmp_path / file).write_text("{torn")
    assert frozen.load(tmp_path / "run/config.yaml") == config
    (tmp_path / "ds2.json").write_text(json.dumps(deepspeed))
    older = config.changed(engine__deepspeed="ds2.json")  # as versions before this one froze it
    assert not frozen.changed_keys(older, config) and not frozen.changed_keys(older, older)
    named = _composed(*recipe, "engine.deepspeed=ds.json", f"{place}=nowhere.json")
    names = (named.engine.deepspeed, named.pruners["narrow"].budget.table)
    assert names == ("ds.json", "nowhere.json"), "what reads them says what is wrong"


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    """Fails if a run lands in ./~, because a shell leaves ~ alone behind `key=`."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "hosts").write_text("a slots=2\n")
    keys = ("run.dir", "model.path", "model.tokenizer", "distill.teacher", "distill.cache", "engine.hostfile")
    given = [f"{key}='~/hosts'" for key in keys]
    config = _composed(PARITY, "distill.weight=0.5", *given)
    flat = frozen.flat(config.plain())
    assert {key: flat[key] for key in keys} == dict.fromkeys(keys, str(tmp_path / "home" / "hosts"))
    assert _composed(PARITY, "run.dir='runs/~x'").run.dir == "runs/~x"
    (tmp_path / "home" / "ds.json").write_text('{"steps_per_print": 7}')
    assert _composed(PARITY, "engine.deepspeed='~/ds.json'").engine.deepspeed == {"steps_per_print": 7}


def test_a_decay_that_fp32_cannot_hold_is_refused():
    masked = "pruners.weights.masked_grad={name: straight_through, sr_ste: %s}"
    movement = ("recipe=parity", "optim.lr=2e-5", "pruners.weights.schedule.hard_from=0.8")
    with pytest.raises(ValueError, match=r"is less than a factor in fp32 can hold: give 0.0015 or more, or 0"):
        composed(*movement, masked % 2e-4)
    assert composed(*movement, masked % 0.01).pruners["weights"].masked_grad.sr_ste == 0.01


def test_a_rate_of_the_command_line_is_the_rate_at_any_width():
    own = ("recipe=encoder", "task=classification", "model.path=m", "data=csv", "data.train=t", "train.num_steps=9")
    optim = [
        composed(*own, *given).optim for given in ((), ("optim.lr=1e-4",), ("optim.lr=1e-4", "optim.base_width=768"))
    ]
    assert [(each.lr, each.base_width) for each in optim] == [(3e-4, 384), (1e-4, None), (1e-4, 768)]
    narrow = composed("recipe=encoder_narrow", *own[1:], "peft=lora").optim
    assert (narrow.lr, narrow.base_width) == (1.5e-4, None), "adapters have as many inputs as their rank"
    whole = [composed(*own, given).optim for given in ("optim={lr: 1e-4}", "optim={lr: 1e-4, base_width: 768}")]
    assert [(each.lr, each.base_width) for each in whole] == [(1e-4, None), (1e-4, 768)]


def test_auto_cuts_once_or_several_times_by_how_much_goes():
    own = ("recipe=encoder", "task=classification", "model.path=m", "data=csv", "data.train=t", "train.num_steps=9")
    place = "pruners.weights.schedule"

    def schedule(*overrides: str) -> Schedule:
        return composed(*own, *overrides).pruners["weights"].schedule

    once, many = (schedule(f"pruners.weights.budget.sparsity={share}") for share in (0.85, 0.9))
    assert (once.name, once.start) == ("one_shot", 0.3)
    assert (many.name, many.initial) == ("exponential", 0.7)
    none = schedule("pruners.weights.budget.sparsity=0.9", "train.num_steps=0")
    assert (none.start, none.end, none.select_every) == (0.15, 0.65, 0.1)
    for steps in (*range(8, 60), 101, 201, 499, 1001):  # a seventh would be a step after the sixth
        pruner = {"schedule": dict(auto.OPEN), "budget": {"name": "sparsity", "sparsity": 0.9}}
        auto.choose({"weights": pruner}, steps)
        line = registry.build("schedule", pruner["schedule"]).resolve(steps)
        typed = "pruners.weights.budget.sparsity=0.9", f"train.num_steps={steps}"
        assert steps > 9 or line == schedule(*typed).resolve(steps), "it is what a command comes to"
        cuts = [t for t in range(steps) if line.is_selection_step(t)]
        assert len(cuts) == 6 and len({b - a for a, b in zip(cuts, cuts[1:], strict=False)}) == 1, cuts
        assert abs(cuts[0] - 0.15 * steps) <= 1 and abs(cuts[-1] - 0.65 * steps) <= 3, cuts
    assert schedule(f"{place}.start=0.4").start == 0.4  # what is given stays
    assert schedule(f"{place}.name=cubic", f"{place}.start=0", f"{place}.end=0.5").name == "cubic"
    assert f"{place}=auto" in refused("recipe=parity", f"{place}.name=auto", "pruners.weights.budget.sparsity=null")


RECIPES = {  # of a user, each on `encoder`
    "rate": "optim: {lr: 2.0e-5}",
    "width": "optim: {lr: 2.0e-5, base_width: 768}",
    "ramp": "pruners: {weights: {schedule: {name: cubic, start: 0.1, end: 0.6}}}",
    "number": "pruners: {weights: {schedule: 0.3}}",
    "word": "pruners: {weights: {schedule: one_shot}}",
}


@pytest.fixture
def own(tmp_path: Path) -> list[str]:
    """Keys that find these recipes; `more` builds on `rate`."""
    (tmp_path / "recipe").mkdir()
    for name, text in {**RECIPES, "more": "seed: 3"}.items():
        base = "rate" if name == "more" else "encoder"
        content = f"# @package _global_\ndefaults:\n  - {base}\n  - _self_\n{text}\n"
        (tmp_path / "recipe" / f"{name}.yaml").write_text(content)
    return [
        "--config-dir",
        str(tmp_path),
        "model.path=/m",
        "data=csv",
        "data.train=a",
        "data.eval=b",
        "train.num_steps=100",
    ]


@pytest.mark.parametrize("name, width", [("rate", None), ("more", None), ("width", 768), ("ramp", 384)])
def test_a_rate_of_a_users_recipe_is_taken_as_it_is(own: list[str], name: str, width: int | None) -> None:
    """Fails if a wider model trains at less, because `encoder` says for which width its own rate is."""
    config = composed(*own, f"recipe={name}")
    assert config.optim.base_width == width and config.optim.lr == (3e-4 if name == "ramp" else 2e-5)


def test_a_schedule_takes_the_place_of_auto(own: list[str]) -> None:
    for keys in (["recipe=ramp"], ["recipe=encoder", "pruners.weights.schedule={name:cubic,start:0.1,end:0.6}"]):
        schedule = composed(*own, *keys).pruners["weights"].schedule
        assert (schedule.name, schedule.start, schedule.end, schedule.select_every) == ("cubic", 0.1, 0.6, 1)


@pytest.mark.parametrize(
    "keys, sentence",
    [
        (["recipe=number"], "pruners.weights.schedule: A schedule is a name or a mapping, {name: ...}, and not 0.3."),
        (["recipe=word"], "schedule one_shot needs start"),
        (["recipe=encoder", "pruners.weights.budget=0.5"], "pruners.weights.budget: A budget is a name or a mapping"),
        (["recipe=decoder", "pruners.weights.budget=0.5"], "pruners.weights.budget: A budget is a name or a mapping"),
        (["recipe=encoder_narrow", "pruners.narrow.gate=0.5"], "pruners.narrow.gate: A gate is a name or a mapping"),
    ],
)
def test_what_is_no_method_is_said_in_a_sentence(own: list[str], keys: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        composed(*own, *keys)
