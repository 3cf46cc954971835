"""`pat prune`: a folder that was pruned and never trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from pat import cli
from pat.run.directory import ExitCode, RunDir
from pat.training.lost_zeros import KEEPS
from tests import models

pytestmark = pytest.mark.distributed
SPARSITY = 0.5


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a model's folder, a file of texts)."""
    folder = tmp_path_factory.mktemp("given")
    models.model("llama", vocab_size=264).save_pretrained(folder / "model")
    rows = [
        {"text": f"Row {i} says that the weather in May was {'warm' if i % 3 else 'cold'}. " * 3} for i in range(60)
    ]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "model", folder / "texts.jsonl"


def prune(given: tuple[Path, Path], out: Path, *more: str) -> int:
    """The exit code of the command."""
    keys = [
        "model.tokenizer=byte", f"data.cache_dir={out.parent / 'data'}", "train.global_batch_size=4",
        "train.eval_batch_size=4", "engine.kernels=eager", "engine.threads_per_rank=1",
    ]  # fmt: skip
    arguments = ["prune", str(given[0]), "--data", str(given[1]), "--max-length", "32", "--out", str(out), *keys]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*arguments, *more])
    return int(stopped.value.code or 0)


def log_of_training(model: Path, texts: Path, *more: str) -> str:
    """What a step of training from this folder says."""
    run = model.parent / "again"
    RunDir(run).log(0).unlink(missing_ok=True)
    keys = [
        f"model.path={model}", "model.tokenizer=byte", "data.source=json", f"data.train={texts}", "data.max_length=32",
        f"data.cache_dir={model.parent / 'data'}", f"run.dir={run}", "run.resume=never",
        "train.num_steps=1", "train.global_batch_size=4", "engine.world_size=1", "engine.kernels=eager",
        "engine.threads_per_rank=1", "engine.dtype=fp32", "logger=none",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "recipe=decoder", *keys, *more])
    assert not stopped.value.code
    return RunDir(run).log(0).read_text()


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def smallest_go(dense: Tensor) -> Tensor:
    """Half of a matrix at 0: the smallest."""
    kept = dense.flatten().abs().argsort(stable=True)[dense.numel() - round(dense.numel() * (1 - SPARSITY)) :]
    flags = torch.zeros(dense.numel(), dtype=torch.bool).index_fill(0, kept, True)
    return dense * flags.view_as(dense)


def test_by_magnitude_the_smallest_half_of_every_matrix_is_gone_and_nothing_else_moves(
    given: tuple[Path, Path],
    forked: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "pruned"
    (out / ".1-dead.partial").mkdir(parents=True)  # of an export that was killed, which is not in the way
    assert prune(given, out, "--sparsity", str(SPARSITY), "--method", "magnitude") == ExitCode.DONE
    before, after = weights(given[0]), weights(out)
    assert set(before) == set(after)
    for name, dense in before.items():
        inside = ".layers." in name and dense.dim() == 2
        assert torch.equal(after[name], smallest_go(dense) if inside else dense), name
    summary: dict[str, Any] = json.loads((tmp_path / "pruned.run" / "summary.json").read_text())
    assert summary["step"] == 0 and summary["phase"] == "hard" and summary["sparsity"] == SPARSITY
    assert summary["dense_metrics"]["loss"] != summary["metrics"]["loss"]
    assert not (tmp_path / "pruned.run" / "checkpoints").exists()
    given_keys: list[str] = []
    with monkeypatch.context() as patched:  # an export is pruned again on the samples of its own run
        patched.setattr("pat.commands.train.main", lambda keys: given_keys.extend(keys) or ExitCode.ERROR)
        with pytest.raises(SystemExit):
            cli.main(
                ["prune", str(out), "--data", str(given[1]), "--sparsity", "0.5", "--out", str(tmp_path / "twice")]
            )
    assert "data.max_length=32" in given_keys
    zeros = "50 % of the weights in the layers' linear maps are 0"
    assert zeros in log_of_training(out, given[1], "pruners={}")
    assert zeros not in log_of_training(out, given[1], *KEEPS)
    capsys.readouterr()
    assert prune(given, out, "--sparsity", "0.5") == ExitCode.BAD_INPUT  # what is there is never written over
    assert str(out) in capsys.readouterr().err


@pytest.mark.slow
def test_other_data_calibrates_as_it_would_as_training_data(
    given: tuple[Path, Path], forked: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a key that is read and not used: the same bits as where these texts are the training data, and others
    than by the training data."""
    other, calibration = tmp_path / "other.jsonl", f"data.calibration={given[1]}"
    other.write_text(
        "".join(json.dumps({"text": f"{i} ships left the harbour at {i}. " * 4}) + "\n" for i in range(60))
    )
    made = {}
    for name, data, more in (("own", given[1], ()), ("moved", other, (calibration,)), ("other", other, ())):
        how = ("--eval", str(other), "--sparsity", str(SPARSITY), "--method", "wanda", "--samples", "16", *more)
        assert prune((given[0], data), tmp_path / name, *how) == ExitCode.DONE
        made[name] = weights(tmp_path / name)
    assert f"on 16 samples of {given[1]}" in capsys.readouterr().out
    same = {name: all(torch.equal(tensor, made[name][key]) for key, tensor in made["own"].items()) for name in made}
    assert same == {"own": True, "moved": True, "other": False}


@pytest.mark.parametrize(
    ("keep", "neurons", "groups"), [("ffn=0.5", 64, 4), pytest.param("kv_groups=0.5", 128, 2, marks=pytest.mark.slow)]
)
def test_structures_go_and_stock_code_loads_the_rest(
    given: tuple[Path, Path], forked: None, tmp_path: Path, keep: str, neurons: int, groups: int
) -> None:
    """Would catch a recipe's own structure that stays beside the one asked for, and a share that is none."""
    fit = ("--samples", "16", "--reconstruct", "1")
    assert prune(given, tmp_path / "out", "--keep", keep, *fit) == ExitCode.DONE
    small = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert small.config.intermediate_size == neurons and small.config.num_key_value_heads == groups
    before, after = (weights(folder)["model.layers.0.mlp.down_proj.weight"] for folder in (given[0], tmp_path / "out"))
    assert after.shape == (before.shape[0], neurons)
    if neurons < before.shape[1]:  # what stays is fitted, and no copy
        assert not any(torch.equal(after[:, 0], column) for column in before.T)


@pytest.mark.slow
def test_calibrated_it_is_the_same_at_every_zero_stage_and_goes_on_from_what_is_saved(
    given: tuple[Path, Path], tmp_path: Path
) -> None:
    """Would catch a cut without a step that leaves the forward copies, or another stage's shards, as they were."""
    hashes = []
    for stage in (1, 3):
        out = tmp_path / f"zero{stage}"
        keys = [f"engine.zero_stage={stage}", "engine.dtype=bf16"]
        assert prune(given, out, "--pattern", "2:4", "--ranks", "2", "--samples", "16", *keys) == ExitCode.DONE
        for name, weight in weights(out).items():
            if ".layers." in name and weight.dim() == 2:
                assert (weight.view(-1, 4).count_nonzero(1) == 2).all(), name
        run = json.loads((tmp_path / f"zero{stage}.run" / "summary.json").read_text())
        assert 0.0 == run["train_seconds"] < run["calibration_seconds"]
        hashes.append((run["mask_sha256"], run["weights_sha256"], run["metrics"]["loss"]))
    assert len({each[:2] for each in hashes}) == 1 and max(h[2] for h in hashes) - min(h[2] for h in hashes) < 1e-3


def test_what_cannot_be_pruned_is_one_sentence(
    given: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["prune", str(given[0]), "--sparsity", "0.5", "--out", str(tmp_path / "out")])
    assert "no --data FILE is given" in capsys.readouterr().err
    for more, word in (
        (["--pattern", "4:2"], "--pattern 4:2"),
        (["--keep", "ffn=half"], "--keep ffn=half"),
        (["--sparsity", "1.5"], "--sparsity is 1.5"),
        (["--sparsity", "0.5", "run.dir=elsewhere"], "run.dir"),
        (["--sparsity", "0.5", "--method", "magnitude", "--samples", "8"], "--samples 8"),
        (["--sparsity", "0.5", "--method", "magnitude", "--reconstruct", "8"], "--reconstruct 8"),
    ):
        assert prune(given, tmp_path / "out", *more) == ExitCode.BAD_INPUT
        said = capsys.readouterr().err
        assert word in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_what_would_go_by_the_keys_that_are_left_and_writes_nothing(
    given: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a key that is taken away (~key) and is read as a second model."""
    keys = ["~pruners.weights.criterion.gradient_samples", "pruners.weights.scope=matrix"]
    assert prune(given, tmp_path / "out", "--sparsity", "0.5", *keys, "--dry-run") == ExitCode.DONE
    said = capsys.readouterr().out
    assert "What would be pruned" in said and "gradients" not in said and str(tmp_path / "out") in said
    assert not {"out", "out.run"} & {path.name for path in tmp_path.iterdir()}
    assert prune(given, tmp_path / "out", "--sparsity", "0.5", "--dry-run") == ExitCode.DONE
    assert "gradients" in capsys.readouterr().out
