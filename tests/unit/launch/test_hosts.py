"""Several machines, before any of them is asked; tests/distributed/test_hosts.py asks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pat import cli
from pat.commands import train
from pat.config import hostfile
from pat.config.cluster import ClusterConfig
from pat.launch import multi_node, slurm
from pat.launch.environment import RankEnvironment
from pat.schema import Config, EngineConfig, RunConfig


def config(path: Path, **engine) -> Config:
    return Config(run=RunConfig(name="r", dir="r"), engine=EngineConfig(hostfile=str(path), **engine))


def test_a_hostfile_is_read_as_deepspeed_does(tmp_path):
    path = tmp_path / "hostfile"
    path.write_text("# ours\n\nnode-1 slots=4 # old\n10.0.0.2   slots=2\nn3.example.org\tslots=1\n")
    assert hostfile.read_hostfile(path) == {"node-1": 4, "10.0.0.2": 2, "n3.example.org": 1}
    found = config(path)
    found = hostfile.take_world_size(found, ["seed=1", "engine.world_size=7"])
    assert found.engine.world_size == 7
    with pytest.raises(ValueError, match=r"^engine.world_size=8, but engine.hostfile=.* has 7 slots: leave one"):
        hostfile.take_world_size(found, ["engine.world_size=8"])


@pytest.mark.parametrize(
    "text, problem",
    [
        ("", "names no host"),
        ("# a slots=1\n", "names no host"),
        ("a slots=2\nb\n", "line 2, 'b', is not `HOST slots=N`"),
        ("a slots=0", "line 1, 'a slots=0', is not"),
        ("a slots=two", "is not"),
        ("a,b slots=2", "is not"),  # pdsh would take it for two, and `-x` or `^x` for something else
        ("-a slots=2", "is not"),
        ("a slots=1\n\na slots=2", "line 3, 'a slots=2', names a host a second time"),
        (None, "cannot be read: No such file"),
        (b"\xff\xfe", "it is not text"),
    ],
)
def test_a_bad_hostfile_is_one_sentence(tmp_path, text, problem):
    path = tmp_path / "hostfile"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match="^engine.hostfile=") as error:
        hostfile.read_hostfile(path)
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_the_command_says_so_before_anything_is_started(tmp_path, capsys, monkeypatch):
    path = tmp_path / "hostfile"

    def said() -> str:
        with pytest.raises(SystemExit, match="2"):
            cli.main(["train", "recipe=parity", f"run.dir={tmp_path}/run", f"engine.hostfile={path}"])
        return capsys.readouterr().err

    assert "cannot be read" in said()
    path.write_text("here slots=3\n")
    assert "cannot be shared by engine.world_size=3 ranks" in said()
    path.write_text("here slots=2\n")
    monkeypatch.setenv("PATH", "")
    assert "needs pdsh, which is not on this machine" in said()
    with pytest.raises(ValueError, match="Slurm chooses the nodes"):
        slurm.fit_ranks(config(path), ClusterConfig(nodes=2))
    with pytest.raises(ValueError, match="started by a launcher already"):
        train._become_rank(config(path), RankEnvironment(0, 2, 0, "here", 1, "torch"))


def test_hosts_must_be_able_to_find_the_first_and_take_its_first_gpus():
    def refused(hosts, **environ):
        with pytest.raises(ValueError) as error:
            multi_node._check_names(dict.fromkeys(hosts, 2), "hosts", environ)
        return str(error.value)

    for first in ("localhost", "127.0.0.1"):
        assert f"{first} is where b would look for rank 0" in refused([first, "127.0.0.2", "b"])
        multi_node._check_names({first: 2, "127.0.0.2": 2}, "hosts", {})
        multi_node._check_names({first: 2, "b": 2}, "hosts", {"MASTER_ADDR": "a"})
    assert "CUDA_VISIBLE_DEVICES=4,5 names GPUs of this machine" in refused(["a"], CUDA_VISIBLE_DEVICES="4, 5")
    for visible in ("", "0", "0,1"):
        multi_node._check_names({"a": 2, "b": 2}, "hosts", {"CUDA_VISIBLE_DEVICES": visible})


def test_hosts_get_the_environment_and_nobody_else(tmp_path, monkeypatch):
    path = tmp_path / "hostfile"
    path.write_text("here slots=2\nthere slots=2\n")
    odd = 'it\'s $HOME; `x` "100%"\nand more'
    monkeypatch.setenv("LATIN", os.fsdecode(b"caf\xe9"))
    for key, value in {"WANDB_API_KEY": odd, "SSH_AUTH_SOCK": "/run/x", "TMPDIR": "/scratch/job", "RANK": "3"}.items():
        monkeypatch.setenv(key, value)
    with multi_node._script(tmp_path, config(path, threads_per_rank=3)) as script:
        assert script.stat().st_mode & 0o777 == 0o600
        text = script.read_text(errors="surrogateescape")
        print_key = (
            text[: text.index("exec ")] + 'printf %s "$WANDB_API_KEY"; printf %s "$OMP_NUM_THREADS$SSH_AUTH_SOCK"'
        )
        said = subprocess.run(["sh", "-c", print_key], capture_output=True, text=True, env={"HOME": "/"}).stdout
        assert said == odd + "3" and f"cd {os.getcwd()}" in text
        assert "export TMPDIR" not in text and "export RANK" not in text and "export PYTHONSAFEPATH=1" in text
        command = multi_node._pdsh({"here": 2, "there": 2}, script, "start")
        assert "here,there" in command and not any("API" in word for word in command)
    assert not script.exists()
