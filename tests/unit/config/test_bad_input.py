"""What cannot work is refused in one sentence before any rank starts: by composing the config and by `prepare`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pat import cli
from pat.checkpoint.manifest import describe_parameters
from pat.commands import train
from pat.config import compose, frozen, places
from pat.run.directory import ExitCode, RunDir
from pat.schema import Config
from pat.training import dry_run, preflight
from tests.sets import thinned

PARITY = ["recipe=parity", "logger=none"]
DS = "+engine.deepspeed"
P = "pruners.weights"
BLOCKS = [f"{P}.granularity.name=block", f"{P}.granularity.rows=4"]
N_OF_M = f"{P}.granularity.name=n_of_m"
ROWS = [{"text": f"text number {n} of the file", "label": n % 2} for n in range(20)]


def refused(run_dir: Path, *overrides: str) -> str:
    """The sentence with which `pat train` would end; everything up to the start of the ranks is done.

    A dry run must end with the same one.
    """

    def prepare(config: Config) -> int:
        with pytest.raises(ValueError) as dry, contextlib.redirect_stdout(io.StringIO()):
            train._describe(config)
        try:
            frozen.freeze(config, Path(config.run.dir))
            preflight.prepare(config, Path(config.run.dir))
        except ValueError as error:
            assert str(dry.value) == str(error)
            raise
        return 0

    with pytest.raises(ValueError) as error:
        compose.compose([*PARITY, f"run.dir={run_dir}", *overrides], prepare)
    message = str(error.value)
    assert message and "\n" not in message, message
    return message


@pytest.mark.parametrize(
    "overrides, words",
    thinned(
        [
            pytest.param(["model.path=./nowhere", "model.init=pretrained", "model.config={}"], "no folder", id="model"),
            pytest.param(["recipe=nope"], "there is no recipe called 'nope'; allowed: ", id="recipe"),
            pytest.param(["train.steps=3"], "there is no key 'train.steps'; allowed in train: ", id="key"),
            pytest.param(["model.config.foo=1"], "add it with a plus, +model.config.foo=", id="key of a model"),
            pytest.param([f"{P}.budget.sparsity=1.0"], "budget.sparsity is 1.0", id="sparsity of 1"),
            pytest.param([f"{P}.budget.sparsity=-0.1"], "budget.sparsity is -0.1", id="negative sparsity"),
            pytest.param(
                [f"{P}.budget.name=flops", f"{P}.budget.seq_len=8"],
                f"{P}.budget: flops counts structures; take one of sparsity",
                id="budget of structures",
            ),
            pytest.param(
                [f"{P}.budget.name=shape", f"{P}.budget.keep={{ffn: 64}}"],
                f"{P}.budget: shape counts structures",
                id="shape of weights",
            ),
            pytest.param([f"{P}.schedule.hard_from=30"], f"{P}.schedule: ", id="schedule ends after the run"),
            pytest.param(
                [f"{P}.schedule.end=40", f"{P}.schedule.hard_from=40"], f"{P}.schedule: ", id="ramp after the run"
            ),
            pytest.param(
                [N_OF_M, f"{P}.granularity.n=2", f"{P}.granularity.m=7"],
                "is not a multiple of m=7",
                id="N:M that does not divide",
            ),
            pytest.param(
                [N_OF_M, f"{P}.granularity.n=2", f"{P}.granularity.m=4"],
                "can remove 0, 0.25, 0.5 of the weights",
                id="N:M cannot reach 0.8",
            ),
            pytest.param(
                [*BLOCKS, f"{P}.granularity.cols=9"], "4 x 9 blocks do not divide", id="blocks that do not divide"
            ),
            pytest.param(["engine.world_size=3"], "cannot be shared by engine.world_size=3 ranks", id="batch"),
            pytest.param(["engine.dtype=fp16"], "engine.dtype=fp16 needs a GPU", id="fp16 on a CPU"),
            pytest.param([f"{P}.params=['*.nothing']"], "matches no matrix of the model", id="pattern"),
            pytest.param([f"{P}.exclude=['*']"], "matches no matrix of the model", id="everything excluded"),
            pytest.param(["optim.trainable=['*.mlp.*']"], "which optim.trainable leaves frozen", id="frozen"),
            pytest.param(["optim.trainable=['*.nothing']"], "matches no parameter", id="nothing to train"),
            pytest.param(
                [f"{P}.criterion.name=soft_movement", N_OF_M, f"{P}.granularity.n=1", f"{P}.granularity.m=4"]
                + [f"{P}.budget.sparsity=0.75"],
                "cannot select by a threshold",
                id="threshold with N:M",
            ),
            pytest.param(["run.resume=must"], "run.resume=must, but ", id="nothing to resume"),
            pytest.param(["data.max_length=512"], "more than the 256 positions", id="positions"),
        ],
        2,
    ),
)
def test_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], words: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert words in refused(tmp_path / "run", *overrides)


@pytest.mark.parametrize(
    "key, value, word",
    thinned(
        [
            ("zero_optimization.offload_optimizer.device", "nvme", "NVMe"),
            ("zero_optimization.offload_param.device", "nvme", "NVMe"),
            ("zero_optimization.round_robin_gradients", "true", "other weights"),
            ("zero_optimization.offload_optimizer.ratio", "0.5", "outside"),
            ("zero_optimization.offload_optimizer.super_offload", "true", "outside"),
            ("zero_optimization.zenflow.topk_ratio", "0.1", "outside"),
            ("zero_optimization.stage", "3", "pat's own keys make it 2"),
            ("optimizer.type", "Adam", "optim.*"),
        ],
        3,
    ),
)
def test_deepspeed_keys_that_would_prune_the_wrong_weights(tmp_path: Path, key: str, value: str, word: str) -> None:
    assert word in refused(tmp_path / "run", f"+engine.deepspeed.{key}={value}")
    *path, last = key.split(".")
    content: dict[str, object] = {last: json.loads(value) if value[0] in "t0123456789" else value}
    for part in reversed(path):
        content = {part: content}
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(content))
    assert word in refused(tmp_path / "run", f"engine.deepspeed={file}")


def test_two_pruners_of_one_parameter(tmp_path: Path) -> None:
    groups = {"granularity": "weight", "criterion": "magnitude", "budget": "sparsity", "schedule": "cubic"}
    (tmp_path / "recipe").mkdir()
    recipe = (places.conf_dir() / "recipe" / "parity.yaml").read_text()
    second = "".join(f"  - /{kind}@pruners.second.{kind}: {name}\n" for kind, name in groups.items())
    settings = recipe.partition("  weights:\n")[2].replace('["*_proj.weight"]', '["*.k_proj.weight"]')
    (tmp_path / "recipe" / "two.yaml").write_text(
        recipe.replace("  - _self_\n", f"{second}  - _self_\n") + f"\n  second:\n{settings}"
    )
    message = refused(tmp_path / "run", "recipe=two", "--config-dir", str(tmp_path))
    assert "pruners.second and pruners.weights both take model.layers.0.self_attn.k_proj.weight" in message


@pytest.mark.parametrize(
    "rows, overrides, words",
    thinned(
        [
            (ROWS, ["data.text_column=review"], "data.text_column='review' is not in data.train: the columns are text"),
            (
                ROWS,
                ["task=classification", "data.label_column=stars"],
                "data.label_column='stars' is not in data.train",
            ),
            (
                [{"messages": [{"role": "user", "content": "What?"}]}],
                ["task=causal_lm"],
                "the columns are messages. These rows are chats: take task=chat",
            ),
            ([], [], "has no rows"),
            (ROWS[:1], [], "none can be held out"),
            (None, [], "no file matches"),
        ],
        2,
    ),
)
def test_data(tmp_path: Path, rows: list[dict[str, object]] | None, overrides: list[str], words: str) -> None:
    file = tmp_path / "rows.jsonl"
    if rows is not None:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ["data=json", f"data.train={file}", f"data.cache_dir={tmp_path / 'cache'}"]
    assert words in refused(tmp_path / "run", *own, *overrides)


def test_a_dry_run_looks_at_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    own = ["data=json", f"data.train={file}", "data.eval_fraction=0.3", f"data.cache_dir={tmp_path / 'cache'}"]
    command = ["train", *PARITY, f"run.dir={tmp_path / 'run'}", *own, "--dry-run"]
    for overrides, code, words in (([], 0, "training and "), (["data.text_column=x"], 2, "columns are text, label")):
        with pytest.raises(SystemExit) as stop:
            cli.main([*command, *overrides])
        said = capsys.readouterr()
        assert stop.value.code == code and words in said.out.splitlines()[-1] + said.err
        assert "What would be pruned" in said.out and ("What this run does" in said.out) == (code == 0)
    assert not (tmp_path / "run").exists()
    file.unlink()
    with pytest.raises(SystemExit):
        cli.main(command)
    said = capsys.readouterr()
    assert "no file matches" in said.err and not said.out, "a file that is not there is said before anything else"


@pytest.fixture
def holds_a_checkpoint(tmp_path: Path) -> Path:
    """A run directory with a checkpoint of parity, as far as a manifest tells."""
    run_dir = tmp_path / "run"
    found: list[Config] = []
    compose.compose([*PARITY, f"run.dir={run_dir}"], lambda config: found.append(config) or 0)
    frozen.freeze(found[0], run_dir)
    keys = ("step", "world_size", "zero_stage", "dtype", "layout", "tied", "ranks", "files")
    manifest = dict.fromkeys(keys) | {"format": 1}
    manifest["parameters"] = describe_parameters(*dry_run.attached(found[0]))
    folder = RunDir(run_dir).checkpoints / "step-00000010"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return run_dir


@pytest.mark.parametrize(
    "overrides, words",
    thinned(
        [
            (["model.config.hidden_size=32"], "another model: model.embed_tokens.weight has shape [320, 32] here"),
            (["model.config.num_hidden_layers=3"], "another model: model.layers.2.self_attn.q_proj.weight has shape"),
            (["model.config.num_hidden_layers=1"], "another model: this one has no model.layers.1.self_attn.q_proj"),
            (
                [f"{P}.exclude=['*.k_proj.weight']"],
                "another pruner or optim.trainable: model.layers.0.self_attn.k_proj",
            ),
            (["optim.trainable=['*_proj.weight']"], "another pruner or optim.trainable: model.embed_tokens.weight had"),
        ],
        2,
    ),
)
def test_a_checkpoint_of_another_model_or_pruner(holds_a_checkpoint: Path, overrides: list[str], words: str) -> None:
    run_dir = holds_a_checkpoint
    assert "holds a run with another config" in refused(run_dir, *overrides)
    (run_dir / "config.yaml").unlink()  # as if only the checkpoints had been put here
    message = refused(run_dir, *overrides)
    assert words in message and "run.dir" in message


def test_the_same_model_with_other_ranks_goes_on_and_never_sets_aside(holds_a_checkpoint: Path) -> None:
    def prepare(config: Config) -> int:
        frozen.freeze(config, holds_a_checkpoint)
        preflight.prepare(config, holds_a_checkpoint)
        frozen.set_aside(config, holds_a_checkpoint)
        return 0

    for more in (["engine.zero_stage=3", "engine.world_size=1"], ["run.resume=must"], ["seed=1", "run.resume=never"]):
        assert compose.compose([*PARITY, f"run.dir={holds_a_checkpoint}", *more], prepare) == 0
    assert [path.name for path in (holds_a_checkpoint / "checkpoints.1").iterdir()] == ["step-00000010"]
    assert not (holds_a_checkpoint / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("overrides, words", [(["data.text_column=x", "data=json", "data.train=ROWS"], "are text")])
def test_the_command_says_one_line_and_starts_nobody(tmp_path: Path, overrides: list[str], words: str) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in ROWS))
    command = [sys.executable, "-m", "pat.cli", "train", *PARITY, f"run.dir={tmp_path / 'run'}"]
    command += [override.replace("ROWS", str(rows)) for override in overrides]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PAT_CACHE": str(tmp_path)})
    assert done.returncode == ExitCode.BAD_INPUT and not done.stdout
    assert done.stderr.startswith("pat: ") and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not RunDir(tmp_path / "run").ranks.exists()
