"""Any element of any parameter comes back from whichever files hold it; anything that is not whole is refused."""

from __future__ import annotations

import argparse
import errno
import io
import json
import pickle
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from pat.checkpoint import reader as checkpoint_reader
from pat.checkpoint.reader import CheckpointReader
from pat.common.hashing import file_sha256
from pat.zero import checkpoint_files
from pat.zero.checkpoint_files import CheckpointError
from tests.fake_run import write_checkpoint


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.up_proj = nn.Linear(7, 11)
        self.mid = nn.Linear(5, 5)
        self.down_proj = nn.Linear(11, 3)
        self.bn = nn.BatchNorm1d(3)


CASES = {
    "zero12": {"layout": "zero12", "ranks": 3},
    "zero12, a rank with nothing": {"layout": "zero12", "ranks": 5, "cut": -16},
    "one rank": {"layout": "zero12", "ranks": 1},
    "zero3": {"layout": "zero3", "ranks": 4},
}


@pytest.fixture(scope="module", params=CASES)
def saved(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint") / "step-00000020"
    return write_checkpoint(folder, Tiny(), frozen="mid.*", **CASES[request.param])


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_range_of_any_tensor(saved, data):
    reader = CheckpointReader(saved.dir, verify=False)
    name = data.draw(st.sampled_from(sorted(saved.weight)))
    start = data.draw(st.integers(0, len(saved.weight[name])))
    numel = data.draw(st.integers(0, len(saved.weight[name]) - start))
    part = slice(start, start + numel)
    assert torch.equal(reader.read("weight", name, start, numel), saved.weight[name][part])
    assert torch.equal(reader.read("exp_avg_sq", name, start, numel), saved.exp_avg[name][part] ** 2)
    out = torch.zeros(numel)
    assert reader.read("exp_avg", name, start, numel, out=out) is out
    assert torch.equal(out, saved.exp_avg[name][part])
    if name in saved.keep:
        assert torch.equal(reader.pruner("keep", "weights", name, start, numel), saved.keep[name][part])
        assert torch.equal(reader.pruner("score", "weights", name, start, numel), saved.score[name][part])


def test_whole_parameters_buffers_and_steps(saved):
    reader = CheckpointReader(saved.dir)
    for name in reader.parameters:
        shape = tuple(reader.parameters[name]["shape"])
        expected = saved.frozen[name].float() if name in saved.frozen else saved.weight[name]
        assert reader.weight(name).shape == shape and reader.weight(name).dtype == torch.float32
        assert torch.equal(reader.weight(name).reshape(-1), expected)
        keep = reader.keep(name)
        assert (keep is None) == (name not in saved.keep)
        if keep is not None:
            assert keep.shape == shape and torch.equal(keep.reshape(-1), saved.keep[name])
        assert reader.has("exp_avg", name) == (name in saved.weight)
        assert not reader.has("dense", name)
        if name in saved.weight:
            assert reader.optimizer_step(name) == 20
    assert reader.frozen("mid.weight").dtype == torch.bfloat16
    assert sorted(reader.buffers()) == ["bn.num_batches_tracked", "bn.running_mean", "bn.running_var"]
    assert torch.equal(reader.frozen("bn.running_var"), torch.ones(3))


def test_dropped_mappings_change_nothing(saved, monkeypatch):
    monkeypatch.setattr(checkpoint_reader, "WINDOW", 50)
    test_whole_parameters_buffers_and_steps(saved)


@pytest.fixture
def fresh(tmp_path):
    return write_checkpoint(tmp_path / "step-00000020", Tiny(), frozen="mid.*")


def edit(saved, **changes):
    manifest = json.loads((saved.dir / "manifest.json").read_text())
    (saved.dir / "manifest.json").write_text(json.dumps(manifest | changes))
    return manifest


def test_torn_files_are_refused(fresh):
    optim = fresh.dir / "deepspeed" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    content = optim.read_bytes()
    optim.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="bytes, not"):
        CheckpointReader(fresh.dir)
    optim.write_bytes(content + b"\0")
    with pytest.raises(CheckpointError, match="bytes, not"):
        CheckpointReader(fresh.dir)
    optim.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    with pytest.raises(CheckpointError, match="sha256"):
        CheckpointReader(fresh.dir)
    shares = [CheckpointReader(fresh.dir, verify=False) for _ in range(3)]
    refused = 0
    for i, reader in enumerate(shares):
        try:
            reader.verify_files(share=(i, 3))
        except CheckpointError:
            refused += 1
    assert refused == 1
    optim.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        CheckpointReader(fresh.dir)


@pytest.mark.parametrize("name", ["manifest.json", "optim_states.pt"])
def test_files_that_cannot_be_read_are_refused(fresh, monkeypatch, name):
    """Would catch an I/O error that ends the run: `find` passes over what is refused, and takes the one before it."""
    plain = io.open

    def failing(file, *args, **kwargs):
        if str(file).endswith(name):
            raise OSError(errno.EIO, "Input/output error", str(file))
        return plain(file, *args, **kwargs)

    for module in ("io", "builtins"):
        monkeypatch.setattr(f"{module}.open", failing)
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read \(.*Input/output error.*; use an older"):
        CheckpointReader(fresh.dir)


def test_torn_or_foreign_manifests_are_refused(fresh, tmp_path):
    path = fresh.dir / "manifest.json"
    with pytest.raises(CheckpointError, match="no manifest"):
        CheckpointReader(tmp_path)
    manifest = edit(fresh, format=2)
    with pytest.raises(CheckpointError, match="format 2"):
        CheckpointReader(fresh.dir)
    edit(fresh, format=1, layout="pipeline")
    with pytest.raises(CheckpointError, match="pipeline"):
        CheckpointReader(fresh.dir)
    del manifest["ranks"][0]["segments"][-1]
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="no rank holds"):
        CheckpointReader(fresh.dir)
    del manifest["ranks"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="lacks ranks"):
        CheckpointReader(fresh.dir)
    path.write_text(path.read_text()[:-10])
    with pytest.raises(CheckpointError, match="torn"):
        CheckpointReader(fresh.dir)


def test_a_parameter_is_put_together_by_index_whichever_rank_has_what(fresh):
    """As a layout may have it in which a later rank holds the earlier elements: ranks 0 and 2 change names."""
    folder, swapped = fresh.dir / "deepspeed", {0: 2, 1: 1, 2: 0}
    optim = [f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(3)]
    contents = [(folder / name).read_bytes() for name in optim]
    for rank, content in enumerate(contents):
        (folder / optim[swapped[rank]]).write_bytes(content)
    ranks = edit(fresh)["ranks"]
    edit(fresh, ranks=[rank | {"rank": swapped[rank["rank"]]} for rank in ranks])
    reader = CheckpointReader(fresh.dir, verify=False)
    for name, value in fresh.weight.items():
        assert torch.equal(reader.weight(name).reshape(-1), value)
        assert torch.equal(reader.read("exp_avg", name), fresh.exp_avg[name])


def test_ranks_that_counted_other_steps_are_refused(fresh):
    path = fresh.dir / "deepspeed" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    content = torch.load(path)
    for state in content["optimizer_state_dict"]["base_optimizer_state"]["state"].values():
        state["step"] -= 1
    torch.save(content, path)
    reader = CheckpointReader(fresh.dir, verify=False)
    with pytest.raises(CheckpointError, match=r"no single optimizer step for up_proj.weight: \[19, 20\]"):
        reader.optimizer_step("up_proj.weight")


def test_steps_that_adam_counts_by_group_are_read():
    """FusedAdam has them there, torch's Adam beside the moments, which is nearer."""
    groups = [{"step": 7, "params": [0, 1]}, {"params": [2]}]
    state = {0: {"exp_avg": torch.ones(2)}, 1: {"step": torch.tensor(5.0)}}
    saved = {"single_partition_of_fp32_groups": [], "base_optimizer_state": {"state": state, "param_groups": groups}}
    found = checkpoint_files.shards("zero12", {"optimizer_state_dict": saved}, {})
    assert [None if s["step"] is None else float(s["step"]) for s in found.states] == [7.0, 5.0, None]


class Evil:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("content", [Evil(), pickle.dumps(3)])
def test_a_pickle_with_code_is_not_executed(fresh, content, capsys):
    name = "deepspeed/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save({"optimizer_state_dict": content}, fresh.dir / name)
    files = edit(fresh)["files"]
    path = fresh.dir / name
    edit(fresh, files=files | {name: {"sha256": file_sha256(path), "bytes": path.stat().st_size}})
    with pytest.raises(CheckpointError):
        CheckpointReader(fresh.dir).read("weight", "up_proj.weight")
    assert "executed" not in capsys.readouterr().out


def test_what_a_client_state_holds_is_opened_and_never_called(tmp_path, capsys):
    state = {"numpy": np.float64(1.5), "array": np.arange(3), "args": argparse.Namespace(lr=1), "dir": Path("x")}
    state |= {"evil": Evil(), "when": datetime(2026, 1, 1), "weights": torch.arange(3.0), "plain": [1, "a", None]}
    torch.save(state, tmp_path / "states.pt")
    found = checkpoint_files.load(tmp_path / "states.pt")
    assert torch.equal(found["weights"], torch.arange(3.0)) and found["plain"] == [1, "a", None]
    assert type(found["evil"]) is type(found["dir"]) is checkpoint_files._Inert
    assert found["evil"].args == ("executed",) and "executed" not in capsys.readouterr().out


def test_wrong_requests(fresh):
    reader = CheckpointReader(fresh.dir)
    for wrong in (
        lambda: reader.read("weight", "other.weight"),
        lambda: reader.read("momentum", "up_proj.weight"),
        lambda: reader.read("weight", "up_proj.weight", 70, 8),
        lambda: reader.read("weight", "up_proj.weight", 0, 3, out=torch.empty(4)),
        lambda: reader.read("weight", "mid.weight"),
        lambda: reader.frozen("up_proj.other"),
        lambda: reader.pruner("dense", "weights", "up_proj.weight"),
        lambda: reader.pruner("keep", "other", "up_proj.weight"),
        lambda: reader.optimizer_step("mid.weight"),
    ):
        with pytest.raises(ValueError):
            wrong()


MEASURE = """
import sys, torch
import pat.export.export
from pat.checkpoint import reader
from pat.checkpoint.reader import CheckpointReader

def resident(kind):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(kind)) << 10

assert "deepspeed" not in sys.modules
reader.WINDOW = 4 << 20
reader = CheckpointReader(sys.argv[1])
out = torch.empty(1 << 20)
reader.read("weight", "0.weight", out=out)
before = resident("VmRSS")
for name in reader.parameters:
    reader.read("weight", name, out=out)
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_streaming_all_parameters_holds_one_and_nothing_of_deepspeed_is_imported(tmp_path):
    model = nn.Sequential(*(nn.Linear(1 << 10, 1 << 10, bias=False) for _ in range(12)))  # 48 MB of fp32
    write_checkpoint(tmp_path / "step", model, prune="")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "step")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 16 << 20, f"{grown >> 20} MB"
