"""`pat submit` without a Slurm: settings, the script, and what sbatch and squeue are asked."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pat import cli
from pat.commands import train
from pat.common.files import read_json
from pat.config import cluster, compose, places
from pat.config.cluster import ClusterConfig
from pat.config.frozen import freeze, load
from pat.launch import slurm
from pat.launch.process import only_user_of
from pat.run import provenance
from pat.run.directory import ExitCode, RunDir, write_exit
from pat.schema import Config, ModelConfig, RunConfig
from pat.sweeps import on_slurm
from pat.sweeps.members import members_of
from pat.training import preflight

SMALL = ["recipe=parity", "logger=none"]
RANKS = ["cluster.nodes=2", "cluster.ranks_per_node=1"]


def submit(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(["submit", *SMALL, *arguments])
    return int(left.value.code or 0)


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """sbatch and squeue that say what DIR/says and DIR/state hold, and write down their arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, says in (("sbatch", "echo 41"), ("squeue", 'cat "$0.state"')):
        (folder / name).write_text(f'#!/bin/sh\necho "$@" >>"$0.asked"\n{says}\n')
        (folder / name).chmod(0o755)
    (folder / "squeue.state").write_text("")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_the_file_describes_every_key_and_gives_its_default():
    assert cluster.load("slurm", ["cluster.ranks_per_node=1"]) == ClusterConfig(ranks_per_node=1)
    text = (places.conf_dir() / "cluster" / "slurm.yaml").read_text()
    for name in ClusterConfig.__dataclass_fields__:
        assert f"\n{name}: " in text, f"{name} is not described"


def test_values_are_written_as_everywhere(tmp_path):
    path = tmp_path / "cluster" / "mine.yaml"
    path.parent.mkdir()
    path.write_text("gpus_per_node: 8\npartition: gpu\nsetup: [module load cuda]\n")
    found = cluster.load(
        "mine",
        ["cluster.nodes='2-4'", 'cluster.extra=["--qos=high","--mem=0"]', "cluster.partition=null"],
        str(tmp_path),
    )
    assert (found.ranks, found.node_range, found.partition) == (8, (2, 4), None)
    assert found.setup == ["module load cuda"] and found.extra == ["--qos=high", "--mem=0"]
    assert cluster.load(str(path)).partition == "gpu"


@pytest.mark.parametrize(
    "override, words",
    [
        ("cluster.node=2", "cluster.node is not a key of a cluster; allowed: nodes, .*did you mean nodes"),
        ("cluster.ranks_per_node=null", "no value for cluster.ranks_per_node: give it, or cluster.gpus_per_node"),
        ("cluster.ranks_per_node=0", "cluster.ranks_per_node is 0, but must be at least 1"),
        ("cluster.nodes=4-2", "cluster.nodes is '4-2': give a number of nodes, or a range"),
        ("cluster.time_limit_min=soon", "cluster: .*time_limit_min"),
        ("cluster.max_restarts=-1", "cluster.max_restarts is -1"),
        ("cluster.nodes=1,2", "a sweep is over keys of the run"),
        ("cluster.setup=[a", "cannot read 'cluster.setup=\\[a'"),
        ("cluster.mounts=[/data]", "cluster.mounts would be ignored without a container"),
        ("cluster.extra=['--qos=high --clusters=beta']", "cluster.extra names another cluster"),
        ("cluster.extra=['--mem=0','#SBATCH --qos=high']", "'#SBATCH --qos=high', which sbatch would not read"),
        ("cluster.extra=['qos=high']", "'qos=high', which sbatch would not read: give its options as --qos=high"),
        ("cluster.extra=['--clusters=beta']", "cluster.extra names another cluster, .* set SLURM_CLUSTERS=NAME"),
        ("cluster.extra=['--qos=high','-M beta']", "cluster.extra names another cluster"),
    ],
)
def test_what_does_not_fit_is_one_sentence(override, words):
    with pytest.raises(ValueError, match=words):
        cluster.load("slurm", ["cluster.ranks_per_node=1", override])


def test_an_unknown_cluster(tmp_path):
    with pytest.raises(ValueError, match="there is no cluster called 'slum'; allowed: slurm, .*did you mean slurm"):
        cluster.load("slum")
    with pytest.raises(ValueError, match="cannot read the cluster .*none.yaml"):
        cluster.load(str(tmp_path / "none.yaml"))


def test_dry_run_prints_a_script_and_writes_nothing(tmp_path, capsys):
    run = tmp_path / "a run"
    assert submit("--cluster", "slurm", *RANKS, f"run.dir='{run}'", "cluster.time_limit_min=60", "--dry-run") == 0
    text = capsys.readouterr().out
    assert not run.exists()
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    filled = text.replace('"$@"', "").replace("USR1@300", "").replace("${script@Q}", "")
    assert "@" not in filled, "a place in the template was not filled"
    asked = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"--nodes=2", "--ntasks-per-node=1", "--time=60", "--signal=B:USR1@300", "--requeue"} <= set(asked)
    assert f"--output='{run}/logs/slurm-%j.log'" in asked and not any("gpus" in line for line in asked)
    assert "\n0 | 2 | 3 | 4 | 5 | 6) ;;" in text and "\n85) again=1 ;;" in text
    assert f"pat train --frozen '{run}' engine.world_size=$ranks \"$@\" &" in text


def test_a_job_that_loses_ranks_comes_back_once_from_each_checkpoint(fake_slurm, tmp_path):
    """A node may be at fault, so the first loss is no verdict; the second from the same place is."""
    run = RunDir(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    script = slurm.script(Config(run=RunConfig(name="r", dir=str(run.path))), ClusterConfig(ranks_per_node=1))
    for name, says in (("srun", "exit 137"), ("scontrol", ""), ("sleep", "")):
        (fake_slurm / name).write_text(f'#!/bin/sh\necho "$@" >>"$0.asked"\n{says}\n')
        (fake_slurm / name).chmod(0o755)
    (fake_slurm / "squeue.state").write_text("RUNNING\n")
    requeued = []
    for restarts, newest in ((0, None), (1, None), (2, "step-00000005"), (3, None), (0, None)):
        if newest:
            (run.checkpoints / "latest").write_text(newest)
        given = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts), "SLURM_JOB_NUM_NODES": "2"}
        environment = os.environ | given | {"SLURM_JOB_NODELIST": "n[1-2]"}
        done = subprocess.run(["bash"], input=script, text=True, env=environment, capture_output=True)
        assert done.returncode == 137, done.stderr
        requeued.append("back into the queue" in done.stdout)
    assert requeued == [True, False, True, False, True]
    assert (fake_slurm / "scontrol.asked").read_text() == "requeue 7\n" * 3
    before, given = run.job.read_text(), given | {"SLURM_JOB_ID": "8"}
    done = subprocess.run(["bash"], input=script, text=True, env=os.environ | given, capture_output=True)
    assert done.returncode == 2 and "job 7 trains this run already" in done.stdout
    assert run.job.read_text() == before, "still that of the job that runs"
    (fake_slurm / "squeue.state").write_text("PENDING\n")
    done = subprocess.run(["bash"], input=script, text=True, env=environment | given, capture_output=True)
    assert done.returncode == 137 and '"8"' in run.job.read_text()


@pytest.mark.parametrize("leaves", [True, False], ids=["in time", "not"])
def test_ranks_that_do_not_leave_in_time_do_not_end_the_run_at_its_limit(leaves, fake_slurm, tmp_path):
    """Slurm does not put a job back that has reached its limit, so the script does it just before, and only then."""
    run = RunDir(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    cluster_ = ClusterConfig(ranks_per_node=1, signal_lead_s=100 if leaves else 1)
    script = slurm.script(Config(run=RunConfig(name="r", dir=str(run.path))), cluster_)
    (fake_slurm / "squeue.state").write_text("RUNNING\n")
    answer = "trap 'exit 85' USR1" if leaves else "trap '' USR1"
    waits = f"{answer}\necho started >'{tmp_path}/started'\nwhile :; do /bin/sleep 0.05; done"
    for name, says in (("srun", waits), ("scontrol", "kill -s KILL $PPID" if leaves else "")):
        (fake_slurm / name).write_text(f'#!/bin/sh\necho "$@" >>"$0.asked"\n{says}\n')
        (fake_slurm / name).chmod(0o755)
    given = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n1"}
    command = ["bash", "-c", script]
    with subprocess.Popen(command, env=os.environ | given, stdout=subprocess.PIPE, start_new_session=True) as job:
        wait_for((tmp_path / "started").exists)
        job.send_signal(signal.SIGUSR1)
        asked = fake_slurm / "scontrol.asked"  # is there a moment before the shell has written to it
        wait_for(lambda: asked.exists() and asked.read_text().endswith("\n"))
        os.killpg(job.pid, signal.SIGKILL)
        said = job.communicate()[0].decode()
    assert asked.read_text() == "requeue 7\n"
    assert ("have not left in time" in said) is not leaves


@pytest.mark.parametrize("silent, said", [(3, "back into the queue"), (99, "squeue gives no answer: sbatch ")])
def test_a_preempted_job_comes_back_though_the_controller_is_busy(silent, said, fake_slurm, tmp_path):
    """Many jobs may reach their limit at once. Would catch: one call without an answer that ends a run for good."""
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    later = 'n=$(wc -l <"$0.asked"); [ "$n" -gt {} ] || exit 1'
    busy = later.format(silent) + "; echo RUNNING"
    for name, says in (("srun", "exit 85"), ("squeue", busy), ("scontrol", later.format(1)), ("sleep", "")):
        (fake_slurm / name).write_text(f'#!/bin/sh\necho "$@" >>"$0.asked"\n{says}\n')
        (fake_slurm / name).chmod(0o755)
    script = slurm.script(Config(run=RunConfig(name="r", dir=str(run.path))), ClusterConfig(ranks_per_node=1))
    given = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n1"}
    done = subprocess.run(["bash"], input=script, text=True, env=os.environ | given, capture_output=True)
    assert done.returncode == 85 and said in done.stdout
    asked = fake_slurm / "scontrol.asked"
    assert asked.exists() is (silent < 5) and (silent > 5 or asked.read_text() == "requeue 7\n" * 2)


@pytest.mark.parametrize(
    "name, state",
    [("it's", "RUNNING"), ("a $(touch ran)", "RUNNING"), ('"`touch ran`', "RUNNING"), ("r", "CLUSTER: beta\nRUNNING")],
)
def test_whatever_its_path_and_cluster_a_preempted_job_comes_back(name, state, fake_slurm, tmp_path):
    """Fails if the shell reads a part of the path as its own language."""
    run = RunDir(tmp_path / name)
    run.path.mkdir()
    for command, says in (("srun", "exit 85"), ("scontrol", ""), ("sleep", "")):
        (fake_slurm / command).write_text(f'#!/bin/sh\necho "$@" >>"$0.asked"\n{says}\n')
        (fake_slurm / command).chmod(0o755)
    (fake_slurm / "squeue.state").write_text(f"{state}\n")
    given = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n1"}
    for restarts, words in ((100, "back into the queue"), (0, "allows no further restart: sbatch ")):
        cluster_ = ClusterConfig(ranks_per_node=1, max_restarts=restarts)
        script = slurm.script(Config(run=RunConfig(name="r", dir=str(run.path))), cluster_)
        done = subprocess.run(
            ["bash"], input=script, text=True, env=os.environ | given, capture_output=True, cwd=tmp_path
        )
        assert (done.returncode, done.stderr) == (85, "") and words in done.stdout
    command = done.stdout.partition("restart: ")[2].partition(" goes on")[0]
    assert shlex.split(command) == ["sbatch", f"{run.path}/job.sbatch"]
    assert (fake_slurm / "scontrol.asked").read_text() == "requeue 7\n"
    assert not (tmp_path / "ran").exists()


def test_containers_offline_and_setup(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config(run=RunConfig(name="r", dir=str(tmp_path / "r")))
    base = {"gpus_per_node": 8, "cpus_per_rank": 6, "offline": True, "setup": ["module load cuda"], "mounts": ["/data"]}
    text = slurm.script(config, ClusterConfig(**base, pyxis_image="nvcr.io#nvidia/pytorch"))
    mounts = f"{tmp_path}:{tmp_path},{tmp_path}/r:{tmp_path}/r,/data:/data"
    assert f"--container-image='nvcr.io#nvidia/pytorch' --container-mounts={mounts}" in text
    lines = text.splitlines()
    assert lines.index("export HF_HUB_OFFLINE=1") < lines.index("module load cuda") < lines.index("set +e")
    assert {"#SBATCH --gpus-per-node=8", "#SBATCH --ntasks-per-node=8", "#SBATCH --cpus-per-task=6"} <= set(lines)
    text = slurm.script(config, ClusterConfig(**base, apptainer_image="/img.sif"))
    assert f"--cpus-per-task=6 apptainer exec --nv --pwd={tmp_path} --bind={mounts} /img.sif pat train" in text
    with pytest.raises(ValueError, match="both set"):
        cluster.load("slurm", ["cluster.gpus_per_node=1", "cluster.pyxis_image=a", "cluster.apptainer_image=b"])


def test_a_job_that_is_submitted_from_a_job_does_not_inherit_it(fake_slurm, tmp_path, monkeypatch):
    """Fails if srun in the new job binds by the old one's cores; where Slurm is must stay known."""
    (fake_slurm / "sbatch").write_text(f"#!/bin/sh\nenv > {tmp_path}/environment\necho 41\n")
    for key in ("SLURM_CPU_BIND", "SLURM_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_CONF", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(key, "77")
    assert submit("--cluster", "slurm", *RANKS, f"run.dir={tmp_path}/run") == 0
    found = (tmp_path / "environment").read_text()
    assert [line for line in found.splitlines() if line.startswith(("SLURM_", "MASTER_"))] == ["SLURM_CONF=77"]


def test_submit_freezes_and_asks_sbatch(fake_slurm, tmp_path, capsys):
    run = RunDir(tmp_path / "run")
    asked = ["--cluster", "slurm", *RANKS, f"run.dir={run.path}"]
    assert submit(*asked, "run.resume=never") == 0
    assert (fake_slurm / "sbatch.asked").read_text() == f"--parsable {run.path}/job.sbatch\n"
    assert read_json(run.job) == {"job_id": "41", "restarts": 0, "nodes": ""}
    frozen = load(run.config)
    assert frozen.engine.world_size == 2
    assert frozen.run.resume == "auto", "a job that comes back would start over again and again"
    assert "job 41 is submitted" in capsys.readouterr().out
    (fake_slurm / "squeue.state").write_text("PENDING\n")
    assert submit(*asked) == 2
    assert "has a job already (41, pending): wait for it, or scancel 41" in capsys.readouterr().err
    (fake_slurm / "squeue.state").write_text("COMPLETED\n")
    (fake_slurm / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    assert submit(*asked) == 2
    assert "invalid partition" in capsys.readouterr().err


def test_what_is_printed_can_be_copied_into_a_shell(fake_slurm, tmp_path, capsys):
    run = tmp_path / "it is"
    assert submit("--cluster", "slurm", *RANKS, f"run.dir='{run}'", "--unchecked") == 0
    commands = capsys.readouterr().out.rpartition("is submitted: ")[2].removesuffix(" repeats it\n").split("; ")
    assert [shlex.split(command) for command in commands] == [
        ["pat", "status", str(run)], ["pat", "logs", str(run), "--follow"], ["sbatch", f"{run}/job.sbatch"],
    ]  # fmt: skip


@pytest.fixture
def started_over(tmp_path: Path) -> Config:
    """Of a folder that holds an earlier run with a checkpoint."""
    run = RunDir(tmp_path / "run")
    (run.checkpoints / "step-00000002").mkdir(parents=True)
    (run.checkpoints / "step-00000002" / "weights").write_text("trained")
    files = (run.config, run.version, run.metrics, run.summary, run.wandb_id, run.exit, run.path / "job.sbatch")
    for path in files:
        path.write_text(f'{{"old": "{path.name}"}}')
    return Config(run=RunConfig(name="r", dir=str(run.path), resume="never"))


def contents(folder: Path) -> dict[str, str]:
    """Without the lock, which stays."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def test_a_job_that_slurm_refuses_costs_the_run_before_it_nothing(fake_slurm, started_over):
    run, settings = RunDir(Path(started_over.run.dir)), ClusterConfig(ranks_per_node=1)
    before, accepts = contents(run.path), (fake_slurm / "sbatch").read_text()
    (fake_slurm / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    with pytest.raises(ValueError, match="sbatch refuses the job of .*invalid partition"):
        slurm.submit(started_over, settings)
    assert contents(run.path) == before
    (fake_slurm / "sbatch").write_text(accepts)
    assert slurm.submit(started_over, settings) == "41"
    assert (run.path / "checkpoints.1" / "step-00000002").is_dir() and not run.checkpoints.exists()
    assert not any(path.exists() for path in (run.metrics, run.summary, run.wandb_id, run.exit))


def test_no_job_goes_where_squeue_does_not_look(fake_slurm, started_over, monkeypatch):
    """Fails if a job of another cluster is taken for one that is over, and a second one is submitted."""
    before = contents(Path(started_over.run.dir))
    monkeypatch.setenv("SBATCH_CLUSTERS", "beta")
    for here in ("", "alpha"):
        monkeypatch.setenv("SLURM_CLUSTERS", here)
        with pytest.raises(ValueError, match="SBATCH_CLUSTERS=beta sends jobs where squeue does not look"):
            slurm.submit(started_over, ClusterConfig(ranks_per_node=1))
        assert contents(Path(started_over.run.dir)) == before and not (fake_slurm / "sbatch.asked").exists()
    monkeypatch.setenv("SLURM_CLUSTERS", "beta")
    assert slurm.submit(started_over, ClusterConfig(ranks_per_node=1)) == "41"


def test_no_job_is_submitted_of_a_run_that_another_start_holds(fake_slurm, started_over):
    """Fails if a job takes the checkpoints away from ranks that save into them."""
    run = Path(started_over.run.dir)
    before = contents(run)
    with only_user_of(run), pytest.raises(ValueError, match="is in use by process"):
        slurm.submit(started_over, ClusterConfig(ranks_per_node=1))
    assert contents(run) == before and not (fake_slurm / "sbatch.asked").exists()


def test_submit_without_slurm_and_with_other_ranks(tmp_path, monkeypatch, capsys):
    asked = ["--cluster", "slurm", *RANKS, f"run.dir={tmp_path / 'run'}"]
    monkeypatch.setattr(slurm.shutil, "which", lambda _: None)
    assert submit(*asked) == 2
    assert "sbatch is not on the PATH" in capsys.readouterr().err
    assert submit(*asked, "engine.world_size=4", "--dry-run") == 2
    assert "engine.world_size=4, but the job has 2 ranks" in capsys.readouterr().err
    assert submit(*asked, "cluster.nodes='2-4'", "--dry-run") == 2
    assert "on 3 nodes of 1 ranks: train.global_batch_size=8 cannot be shared" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_a_start_would_refuse_is_refused_before_a_job_is_queued(fake_slurm, tmp_path, capsys):
    asked = ["--cluster", "slurm", *RANKS, f"run.dir={tmp_path / 'run'}"]
    missing = ["data=json", "data.train=none.jsonl", "data.eval=null"]
    deepspeed = ["engine.deepspeed={zero_optimization: {stage3_max_live_parameter: 1}}"]  # its name ends in s
    for more, said in (
        (["pruners.weights.params=[nothing]"], "nothing"),
        (missing, "none.jsonl"),
        (deepspeed, "stage3_max_live_parameter"),
    ):
        for dry in ([], ["--dry-run"]):
            assert submit(*asked, *more, *dry) == 2
            assert said in capsys.readouterr().err
    assert submit(*asked, *missing, "--dry-run", "--unchecked") == 0, "the data may be on the nodes only"
    assert not (tmp_path / "run").exists()


def test_the_lead_follows_from_measured_saves(tmp_path):
    settings = ClusterConfig(ranks_per_node=1, time_limit_min=10)
    assert slurm.needed_lead_s(tmp_path) is None and slurm.lead_s(settings, tmp_path) == 300
    lines = [
        {"step": 1, "train/step_seconds": 2.0},
        {"step": 1, "checkpoint/seconds": 30.5},
        {"step": 2, "train/step_seconds": 9.0},
        {"step": 2, "checkpoint/seconds": 20.0},
    ]
    RunDir(tmp_path).metrics.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "trai')
    assert slurm.needed_lead_s(tmp_path) == 60 + 2 * (30.5 + 9)
    assert slurm.lead_s(settings, tmp_path) == 139
    assert slurm.lead_s(ClusterConfig(ranks_per_node=1, signal_lead_s=50), tmp_path) == 50
    assert slurm.short_lead(tmp_path, {}) is None and slurm.short_lead(tmp_path, {slurm.LEAD: "139"}) is None
    assert "comes 50 s before the time limit, but" in (slurm.short_lead(tmp_path, {slurm.LEAD: "50"}) or "")
    with pytest.raises(ValueError, match="139 s before the time limit of 120 s, so at once"):
        slurm.lead_s(ClusterConfig(ranks_per_node=1, time_limit_min=2), tmp_path)


def test_frozen_takes_no_keys(tmp_path, capsys):
    compose.compose([*SMALL, "run.dir=elsewhere"], lambda config: freeze(config, tmp_path) or 0)
    for argument, words in (
        ("seed=1", "--frozen takes the config of"),
        ("run.resume=soon", "run.resume is 'soon'"),
        ("engine.world_size=3", "train.global_batch_size=8 cannot be shared by engine.world_size=3"),
    ):
        with pytest.raises(SystemExit) as left:
            cli.main(["train", "--frozen", str(tmp_path), argument])
        assert left.value.code == 2 and words in capsys.readouterr().err


def test_a_frozen_run_is_described_or_started_as_it_is(tmp_path, monkeypatch):
    """Fails if a user who only looks, by --dry-run or --cfg, starts the ranks."""
    compose.compose([*SMALL, "run.dir=elsewhere"], lambda config: freeze(config, tmp_path) or 0)
    seen = []
    for name in ("_describe", "_start_ranks"):
        monkeypatch.setattr(train, name, lambda config, name=name: seen.append((name, config.run.dir)) or 0)
    assert train.main(["--frozen", str(tmp_path), "--dry-run"]) == 0
    assert seen == [("_describe", str(tmp_path))]
    for more in (["--cfg", "job"], ["--cfg", "job", "--dry-run"], ["-m"], ["--config-dir", "."]):
        with pytest.raises(ValueError, match=f"{more[0]} would be ignored: --frozen takes"):
            train.main(["--frozen", str(tmp_path), *more])
    assert len(seen) == 1


def test_a_run_that_was_started_over_goes_on_when_its_job_comes_back(tmp_path, monkeypatch):
    """`sbatch job.sbatch run.resume=never` freezes `never`; a restart gives no keys and must not start over again."""
    compose.compose([*SMALL, "run.dir=elsewhere", "run.resume=never"], lambda config: freeze(config, tmp_path) or 0)
    started = []
    monkeypatch.setattr(train, "_start_ranks", lambda config: started.append(config.run.resume) or 0)
    for more in ([], ["run.resume=never"]):
        assert train.main(["--frozen", str(tmp_path), *more]) == 0
    assert started == ["auto", "never"]
    compose.compose([*SMALL, "run.dir=elsewhere", "run.resume=must"], lambda config: freeze(config, tmp_path) or 0)
    assert train.main(["--frozen", str(tmp_path)]) == 0
    assert started[2:] == ["must"], "without a checkpoint it must not begin"


@pytest.mark.parametrize("key", train.RESTARTS)
def test_a_launcher_that_repeats_the_command_goes_on(key):
    """Would catch: `torchrun --max-restarts=3 ... run.resume=never` that throws away what the start before has done."""
    never, must = (Config(run=RunConfig(name="r", dir="r", resume=resume)) for resume in ("never", "must"))
    assert train._of_this_start(never, {}) == train._of_this_start(never, {key: "0"}) == never
    assert train._of_this_start(never, {key: "2"}).run.resume == "auto"
    assert train._of_this_start(must, {key: "2"}) == must


def test_starts(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert provenance.read(tmp_path) == []
    provenance.record(tmp_path, 2)
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    RunDir(tmp_path).checkpoints.mkdir()
    (RunDir(tmp_path).checkpoints / "latest").write_text("step-00000040")
    provenance.record(tmp_path, 4)
    with open(RunDir(tmp_path).starts, "a") as file:
        file.write('{"torn')
    first, second = provenance.read(tmp_path)
    assert (first["step"], first["ranks"]) == (0, 2) and "job_id" not in first
    assert (second["step"], second["ranks"], second["job_id"], second["job_restarts"]) == (40, 4, "9", 3)


def test_offline_fetches_models_by_their_revision_and_prepares_data(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, revision: asked.append((name, revision)))
    monkeypatch.setattr("pat.training.preflight.check_data", lambda config: f"data of {config.run.name}")
    config = Config(run=RunConfig(name="r"), model=ModelConfig(path="org/model", revision="v1"))
    config = config.changed(distill__teacher=str(tmp_path))  # a local folder is there already
    preflight.fetch(config)
    assert asked == [("org/model", "v1")] and capsys.readouterr().out == "data of r\n"


def test_the_wheel_carries_the_script(repository):
    build = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"]["packages"] == ["pat"]
    assert slurm.template() == (repository / "pat" / "launch" / "train.sbatch").read_text()


def test_members_of_a_sweep_are_jobs(fake_slurm, tmp_path, monkeypatch):
    """Submitted once, watched until they are over, and never run twice at once."""
    monkeypatch.setattr(on_slurm, "LOOK_S", 0.0)
    member, other = members_of(["recipe=parity", "logger=none", "seed=0,1"], tmp_path / "sweep")
    settings, state = ClusterConfig(ranks_per_node=2), fake_slurm / "squeue.state"
    job = on_slurm.start(member, "sweep", settings)
    frozen = load(RunDir(member.dir).config)
    assert (frozen.run.name, frozen.logger.group, frozen.engine.world_size, frozen.seed) == ("seed=0", "sweep", 2, 0)
    for word, expected in (("PENDING", None), ("RUNNING", None)):
        state.write_text(word)
        assert job.poll() is expected
    assert on_slurm.start(member, "sweep", settings).number == job.number == "41"
    assert (fake_slurm / "sbatch.asked").read_text().count("--parsable") == 1, "--continue takes the job that is there"
    changed = on_slurm.start(replace(member, config=member.config.changed(optim__lr=9.0)), "sweep", settings)
    assert changed.poll() == ExitCode.BAD_INPUT and "runs it with another config (optim.lr)" in changed.message
    write_exit(member.dir, ExitCode.DONE)
    for word in ("COMPLETED", ""):  # Slurm forgets a job a few minutes after its end
        state.write_text(word)
        assert job.poll() == ExitCode.DONE
    write_exit(member.dir, ExitCode.DIVERGED)
    for word in ("FAILED", ""):
        state.write_text(word)
        assert job.poll() == ExitCode.DIVERGED
    RunDir(member.dir).exit.unlink()
    assert job.poll() == ExitCode.ERROR
    job.send_signal(15)
    assert job.poll() == ExitCode.PREEMPTED and job.message == "job 41 was left to itself"
    write_exit(member.dir, ExitCode.DIVERGED)
    RunDir(member.dir).checkpoints.mkdir()
    state.write_text("FAILED")
    lower = replace(member, config=member.config.changed(optim__lr=member.config.optim.lr / 2))
    assert on_slurm.start(lower, "sweep", settings).number, "as the run itself advises"
    assert not RunDir(member.dir).exit.exists()
    (fake_slurm / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: too many jobs' >&2\nexit 1\n")
    refused = on_slurm.start(other, "sweep", settings)
    assert refused.poll() == ExitCode.BAD_INPUT and "too many jobs" in refused.message


def test_a_dry_run_of_a_sweep_shows_a_job_and_may_leave_the_data_unread(tmp_path, capsys):
    def sweep(*more: str) -> int:
        asked = ["sweep", *SMALL, *RANKS, "--cluster", "slurm", "seed=0,1", "--out", str(tmp_path / "s"), *more]
        with pytest.raises(SystemExit) as left:
            cli.main(asked)
        return int(left.value.code or 0)

    missing = ["data=json", "data.train=none.jsonl", "data.eval=null"]
    assert sweep("--dry-run") == 0
    said = capsys.readouterr().out
    assert "2 runs" in said and "#SBATCH --nodes=2" in said and f"{tmp_path}/s" in said.partition("#SBATCH")[2]
    assert sweep("--dry-run", *missing) == 2 and "none.jsonl" in capsys.readouterr().out
    assert sweep("--dry-run", "--unchecked", *missing) == 0
    assert sweep("--unchecked", "--race", "3") == 2 and "--unchecked is for jobs" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_a_sweep_whose_keys_of_a_cluster_would_be_ignored(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["sweep", "recipe=parity", "seed=0,1", "cluster.nodes=2"])
    assert left.value.code == 2 and "cluster.nodes=2 would be ignored without --cluster" in capsys.readouterr().err


def test_jobs_of_one_folder_are_refused(tmp_path, capsys):
    alike = f"run.dir={tmp_path}/run"
    assert submit("--cluster", "slurm", "--multirun", *RANKS, alike, "seed=0,1", "--dry-run") == 2
    assert f"{alike} would be the folder of every job" in capsys.readouterr().err
    own = f"run.dir={tmp_path}/${{seed}}"  # of two, the last counts
    assert submit("--cluster", "slurm", "--multirun", *RANKS, alike, own, "seed=0,1", "--dry-run") == 0
