"""Real jobs over two nodes of a real Slurm: however they are disturbed, they come back, and no bit is lost.

Times that Slurm is free to choose are not asserted: it looks at limits twice a minute.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from pat.common.files import read_json
from pat.run.directory import RunDir
from tests.cluster.lab import RUN, Job, Lab
from tests.distributed import runs

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.real_processes]


def saved_step(job: Job) -> int:
    """Where the last start went on: at a checkpoint that nobody asked for."""
    step: int = job.starts[-1]["step"]
    assert step > 0 and step % 40 == 0
    return step


def test_preempted_twice(lab: Lab, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    with lab.waiting():  # a busy machine may have trained all of it before it can be submitted again
        job = lab.submit(tmp_path / "run")
        with pytest.raises(AssertionError, match="has a job already"):
            lab.submit(tmp_path / "run")
    for number, step in ((1, 20), (2, 100)):  # soft, hard
        job.until_step(step, number)
        lab.preempt()
        job.until_start(number + 1)
        saved = job.starts[-1]["step"]
        assert saved >= step and f"stopped on request at step {saved}, all saved" in job.text()
    assert job.until_done() == undisturbed
    assert [start["job_restarts"] for start in job.starts] == [0, 1, 2] and job.detail("Restarts") == "2"
    assert {start["ranks"] for start in job.starts} == {2}
    row = lab.pat("status", str(job.run.path)).splitlines()[-1].split()
    assert row[1:6] == ["done", "280/280", "hard", "0.800", "2"], row
    assert "resumed at step" in lab.pat("logs", str(job.run.path), "--rank", "0")
    assert f"job {job.id} on n[1-2], restart 2" in lab.pat("logs", str(job.run.path), "--job")


def test_a_killed_rank_a_full_disk_and_a_hung_rank(lab: Lab, undisturbed: dict[str, Any]) -> None:
    job = lab.submit(lab.disk / "run", "engine.timeout_min=0.5")
    job.until_step(45)
    job.send(1, signal.SIGKILL)
    job.until_start(2)
    first = saved_step(job)
    job.until_step(first + 5, start=2)
    with lab.full_disk():  # too little is left for another checkpoint
        job.until(lambda: job.detail("JobState") == "FAILED")
    code = read_json(job.run.exit)
    assert code and code["code"] == 4 and "could not be written" in code["message"] and len(job.starts) == 2
    job = lab.submit(job.run.path, "engine.timeout_min=0.5")
    job.until_start(3)
    second = saved_step(job)
    assert second >= first
    job.until_step(second + 5, start=3)
    job.send(1, signal.SIGSTOP)  # 30 s until the other gives up, then 10 s of grace
    job.until_start(4)
    assert saved_step(job) >= second and "a rank may hang or be gone" in job.text()
    assert job.until_done() == undisturbed


def test_time_limit_then_cancelled(lab: Lab, tmp_path: Path) -> None:
    job = lab.submit(tmp_path / "run", "train.num_steps=100000", "cluster.signal_lead_s=25")
    job.until_step(1)
    job.limit(job.minutes_after(30))
    job.until(lambda: job.detail("Restarts") == "1")
    job.limit(30)  # the second start is for scancel
    job.until_start(2)
    assert job.starts[1]["step"] > 0 and "pat: code 85; back into the queue" in job.text()
    job.until_step(job.starts[1]["step"] + 1, start=2)
    assert "the signal to save comes 25 s before the time limit, but" in job.text(), "the lead is below Slurm's slack"
    lab.call("scancel", job.id)
    job.until(lambda: job.detail("JobState") == "CANCELLED" and job.run.exit.exists())
    code = read_json(job.run.exit)
    assert code and code["code"] == 85 and runs.latest(job.run.path) > job.starts[1]["step"]
    assert len(job.starts) == 2, "what a user has cancelled must not come back"


def test_a_node_dies_and_comes_back(lab: Lab, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """The run goes on with the other, and with both when it is submitted again.

    Not requeued: Slurm repeats to a node that comes back what it has missed, the end of the step among it, and the next
    start of the same job would be hit.
    """
    job = lab.submit(tmp_path / "run", "cluster.nodes='1-2'")
    job.until_step(45)
    lab.script("node_kill.sh", "n2")
    try:
        job.until_start(2)
    finally:
        lab.script("node_up.sh", "n2")
    saved = saved_step(job)
    assert job.starts[1]["ranks"] == 1
    job.until_step(saved + 10, start=2)
    lab.call("scancel", job.id)
    job.until_left()
    job = lab.submit(job.run.path, "cluster.nodes='1-2'")
    found = job.until_done()
    assert job.starts[2]["ranks"] == 2 and job.starts[2]["step"] >= saved + 10 and len(job.starts) == 3
    for key in ("step", "phase", "sparsity"):
        assert found[key] == undisturbed[key]
    assert found["metrics"]["loss"] == pytest.approx(undisturbed["metrics"]["loss"], rel=0.05)


def test_several_jobs_an_array_and_a_run_from_its_folder(lab: Lab, tmp_path: Path) -> None:
    short = ["train.num_steps=10", "pruners.weights.schedule.end=8", "pruners.weights.schedule.hard_from=8"]
    name = "run.dir=" + str(tmp_path) + "/${seed}"
    lab.submit(tmp_path, "-m", "seed=0,1", name, *short, "train.eval_every=null", "cluster.nodes=1")
    jobs = [Job(lab, RunDir(tmp_path / seed)) for seed in ("0", "1")]
    first, second = (job.until_done() for job in jobs)
    assert first["weights_sha256"] != second["weights_sha256"] and {len(job.starts) for job in jobs} == {1}
    again = jobs[1].run.path / "job.sbatch"
    assert lab.call("sbatch", "--parsable", "--wait", str(again), "run.resume=never")
    assert runs.result(jobs[1].run.path) == second and [start["step"] for start in jobs[1].starts] == [0, 0]
    ours = f"seed=$SLURM_ARRAY_TASK_ID run.dir={tmp_path}/array-$SLURM_ARRAY_TASK_ID engine.world_size=1"
    wrap = f"{sys.executable} -m pat.cli train {' '.join([*RUN, *short])} train.eval_every=null {ours}"
    lab.call("sbatch", "--wait", "--array=1", "--nodes=1", f"--output={lab.path}/array-%a.log", "--wrap", wrap)
    assert runs.result(tmp_path / "array-1") == second


def test_the_doctor_looks_at_every_node_of_an_allocation(lab: Lab, tmp_path: Path) -> None:
    """By srun, a rank a node: one table of both, with the link between them and how far their clocks are apart."""
    out, log = tmp_path / "doctor.json", tmp_path / "doctor.log"
    wrap = f"srun {sys.executable} -m pat.cli doctor --device cpu --dir {tmp_path} --json {out} || true"
    lab.call("sbatch", "--wait", "--nodes=2", "--ntasks-per-node=1", f"--output={log}", "--wrap", wrap)
    found = read_json(out)
    assert found and found["well"] and found["ranks"] == 2, log.read_text()
    figures = {finding["check"]: finding["figures"] for finding in found["findings"]}
    assert set(figures["disk"]) == {"n1", "n2"} and figures["resume"] == figures["ZeRO 1, 2, 3"]["ZeRO 2"]
    assert [one["link"] for one in figures["links"]["links"]] == ["n1 - n2", "all ranks"]


def test_a_sweep_of_jobs(lab: Lab, tmp_path: Path) -> None:
    """One of them cannot work, which costs only itself; the others end in one table."""
    short = ["train.num_steps=10", "pruners.weights.schedule.end=8", "pruners.weights.schedule.hard_from=8"]
    limits = "train.max_loss=50,0.001"  # the second has diverged at once
    command = ["sweep", "--cluster", str(lab.settings()), "cluster.nodes=1", *RUN, *short, limits]
    done = lab.run("-m", "pat.cli", *command, "train.eval_every=null", "train.log_every=1", f"--out={tmp_path / 's'}")
    found = read_json(tmp_path / "s" / "sweep.json")
    assert found, done.stdout + done.stderr
    assert [member["code"] for member in found["members"]] == [0, 3] and done.returncode == 3, done.stdout
    assert found["members"][0]["summary"]["step"] == 10
    jobs = [read_json(RunDir(tmp_path / "s" / member["name"]).job) for member in found["members"]]
    assert len({job["job_id"] for job in jobs if job}) == 2


def test_a_race_of_jobs(lab: Lab, tmp_path: Path) -> None:
    """The steps before the first cut, a heat for each, and the rest of the winner: four jobs, the forks with the
    checkpoint of another."""
    short = ["train.num_steps=10", "pruners.weights.schedule.end=6", "pruners.weights.schedule.hard_from=6"]
    budgets = "pruners.weights.budget.sparsity=0.5,0.9"
    command = ["sweep", "--cluster", str(lab.settings()), "cluster.nodes=1", *RUN, *short, budgets, "--race", "8"]
    done = lab.run("-m", "pat.cli", *command, "train.eval_every=null", "train.log_every=1", f"--out={tmp_path / 'r'}")
    found = read_json(tmp_path / "r" / "race.json")
    assert found and done.returncode == 0, done.stdout + done.stderr
    assert found["shared_steps"] > 0 and found["winner"] and all(member["ended"] for member in found["members"])
    summaries = {m["name"]: read_json(RunDir(tmp_path / "r" / m["name"]).summary) for m in found["members"]}
    steps = {name: summary["step"] for name, summary in summaries.items() if summary}
    assert steps == {found["winner"]: 10}
    assert read_json(RunDir(tmp_path / "r" / "dense").job), "it was a job, too"
