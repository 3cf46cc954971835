"""A run as a Slurm job: the script in its directory, its submission, and what Slurm says of it."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pat.common import files
from pat.common.files import read_json, write_atomic, write_json
from pat.config.cluster import PREFIX, ClusterConfig
from pat.config.validate import validate
from pat.launch.process import RankRecord, only_user_of
from pat.run.directory import ExitCode, RunDir
from pat.schema import Config

LEAD = "PAT_SIGNAL_LEAD_S"  # in the job: seconds between the signal and the time limit
# Slurm looks at time limits twice a minute, and may be up to a minute early; ranks also finish a step and leave.
SLACK_S = 60
FORGOTTEN = "FORGOTTEN"  # ours: the controller knows no job of this number any more
OVER = (
    "COMPLETED",
    "CANCELLED",
    "FAILED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    FORGOTTEN,
)
QUIET_S = 900.0  # without a line in its logs, a job that the controller does not know is over
SILENT = "SILENT"  # ours: the controller gave no answer, so the state is unknown
ANSWER_S = 30.0  # to wait for one
OF_OTHER_RANKS = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_OFFLINE = ("HF_HUB_OFFLINE=1", "HF_DATASETS_OFFLINE=1", "WANDB_MODE=offline")


def template() -> str:
    """The batch script, before it is filled in."""
    return Path(__file__).with_name("train.sbatch").read_text(encoding="utf-8")


def fit_ranks(config: Config, cluster: ClusterConfig) -> Config:
    """With the ranks of the largest job; ValueError where a job that Slurm may give cannot share the batch."""
    if config.engine.hostfile:
        raise ValueError(f"engine.hostfile={config.engine.hostfile}, but Slurm chooses the nodes: leave it out")
    least, most = cluster.node_range
    for nodes in range(least, most + 1):
        config = config.changed(engine__world_size=nodes * cluster.ranks)
        try:
            validate(config)
        except ValueError as error:
            raise ValueError(f"on {nodes} nodes of {cluster.ranks} ranks: {error}") from None
    return config


def script(config: Config, cluster: ClusterConfig) -> str:
    """The job of a run: the template with the cluster's settings."""
    run, here = Path(config.run.dir).resolve(), Path.cwd()
    fill = {
        "DIRECTIVES": "\n".join(f"#SBATCH {option}" for option in _directives(config, cluster, run, here)),
        "SCRIPT": shlex.quote(str(run / "job.sbatch")),
        "RUN": shlex.quote(str(run)),
        "SETUP": "\n".join(_setup(cluster, lead_s(cluster, run))),
        "RANKS": str(cluster.ranks),
        "GRACE": str(cluster.grace_s),
        "FINAL": " | ".join(str(int(code)) for code in ExitCode if code.final),
        "PREEMPTED": str(int(ExitCode.PREEMPTED)),
        "BAD_INPUT": str(int(ExitCode.BAD_INPUT)),
        "MAX_RESTARTS": str(cluster.max_restarts),
        "SRUN": " ".join(_srun(cluster, run, here)),
    }
    return re.sub(rf"@({'|'.join(fill)})@", lambda match: fill[match[1]], template())


def _directives(config: Config, cluster: ClusterConfig, run: Path, here: Path) -> list[str]:
    log = str(run / "logs" / "slurm-").replace("%", "%%") + "%j.log"
    options = {
        "job-name": f"pat-{config.run.name}",
        "chdir": str(here),
        "output": log,
        "open-mode": "append",
        "nodes": cluster.nodes,
        "ntasks-per-node": cluster.ranks,
        "gpus-per-node": cluster.gpus_per_node,
        "cpus-per-task": cluster.cpus_per_rank,
        "partition": cluster.partition,
        "account": cluster.account,
        "time": cluster.time_limit_min,
        "signal": f"B:USR1@{lead_s(cluster, run)}",
    }
    given = [f"--{name}={shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    return [*given, "--requeue" if cluster.max_restarts else "--no-requeue", *cluster.extra]


def _setup(cluster: ClusterConfig, lead: int) -> list[str]:
    exports = [f"export {LEAD}={lead}", *(f"export {variable}" for variable in _OFFLINE if cluster.offline)]
    return [*exports, *cluster.setup]


def _srun(cluster: ClusterConfig, run: Path, here: Path) -> list[str]:
    """The arguments after srun's own options: a container, if there is one, and the rank's command."""
    rank = [cluster.command, "train", "--frozen", shlex.quote(str(run))]
    mounts = [
        item if ":" in item else f"{item}:{item}" for item in (*map(str, dict.fromkeys([here, run])), *cluster.mounts)
    ]
    cpus = [f"--cpus-per-task={cluster.cpus_per_rank}"] if cluster.cpus_per_rank else []
    if cluster.pyxis_image:
        options = {"image": cluster.pyxis_image, "mounts": ",".join(mounts), "workdir": str(here)}
        return cpus + [f"--container-{name}={shlex.quote(value)}" for name, value in options.items()] + rank
    if cluster.apptainer_image:
        gpu = ["--nv"] if cluster.gpus_per_node else []
        bind = [f"--pwd={shlex.quote(str(here))}", f"--bind={shlex.quote(','.join(mounts))}"]
        return [*cpus, "apptainer", "exec", *gpu, *bind, shlex.quote(cluster.apptainer_image), *rank]
    return cpus + rank


# -- the lead of the signal --------------------------------------------------------------------------------------------


def needed_lead_s(run: Path) -> int | None:
    """SLACK_S + 2 (longest save + longest step) of this run so far, in seconds; None before its first save."""
    longest = {"checkpoint/seconds": 0.0, "train/step_seconds": 0.0}
    try:
        lines = RunDir(run).metrics.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        try:
            values = json.loads(line)
        except ValueError:  # half written
            continue
        for key in longest:
            longest[key] = max(longest[key], values.get(key) or 0.0)
    return math.ceil(SLACK_S + 2 * sum(longest.values())) if longest["checkpoint/seconds"] else None


def lead_s(cluster: ClusterConfig, run: Path) -> int:
    """Seconds between the signal and the time limit; ValueError where that leaves no time to train."""
    lead = cluster.signal_lead_s or needed_lead_s(run) or cluster.first_signal_lead_s
    limit = 60 * cluster.time_limit_min if cluster.time_limit_min else None
    if limit and lead >= limit:
        raise ValueError(
            f"the signal to save comes {lead} s before the time limit of {limit} s, so at once: raise "
            f"{PREFIX}time_limit_min, or give a smaller {PREFIX}signal_lead_s"
        )
    return lead


def short_lead(run: Path, environ: Mapping[str, str] = os.environ) -> str | None:
    """A sentence where this job will be asked to save too late, given how long saves of this run have taken."""
    needed, lead = needed_lead_s(run), int(environ.get(LEAD, "0"))
    if not lead or needed is None or needed <= lead:
        return None
    return (
        f"the signal to save comes {lead} s before the time limit, but by its longest save and step this run needs "
        f"{needed} s: submit it again with {PREFIX}signal_lead_s={needed}, or it may lose what it did since its last "
        "checkpoint"
    )


# -- submission --------------------------------------------------------------------------------------------------------


def submit(config: Config, cluster: ClusterConfig) -> str:
    """Freeze the run, write its job.sbatch and hand it to Slurm; returns the job's id. ValueError where it cannot."""
    from pat.config.frozen import dump, freeze, results, set_aside

    run = RunDir(Path(config.run.dir).resolve())
    if not shutil.which("sbatch"):
        raise ValueError("sbatch is not on the PATH: submit from a machine of the cluster, or look at --dry-run")
    job = (read_json(run.job) or {}).get("job_id")
    state = states([job]).get(job) if job else None
    if state == SILENT:
        raise ValueError(f"{run.path} has job {job}, and Slurm does not say whether it is over: try again later")
    if state and state not in OVER:
        raise ValueError(f"{run.path} has a job already ({job}, {state.lower()}): wait for it, or scancel {job}")
    text = script(config, cluster)
    old = (run.config, run.version, run.exit, run.path / "job.sbatch", *results(run))
    with files.taken_away(run.path, files.make(run.path, "run.dir")), files.put_back(*old):
        command, aside = ["sbatch", "--parsable", run.path / "job.sbatch"], None
        try:
            with only_user_of(run.path):  # not while sbatch runs: the job may start at once
                aside = set_aside(config, run.path)
                freeze(config, run.path)
                run.exit.unlink(missing_ok=True)  # of an earlier job; freeze looks at it
                if config.run.resume == "never":  # that is done here; a job that comes back must not start over
                    write_atomic(run.config, dump(config.changed(run__resume="auto")))
                run.logs.mkdir(exist_ok=True)
                write_atomic(run.path / "job.sbatch", text)
            done = subprocess.run(command, capture_output=True, text=True, env=_without_a_job(os.environ))
            if done.returncode:
                said = " ".join(done.stderr.split())
                raise ValueError(f"sbatch refuses the job of {run.path}, which --dry-run prints: {said}")
        except BaseException:
            if aside is not None:
                os.rename(aside, run.checkpoints)
            raise
    number = done.stdout.strip().partition(";")[0]
    if (read_json(run.job) or {}).get("job_id") != number:  # it may run by now and have written its own state
        write_json(run.job, {"job_id": number, "restarts": 0, "nodes": ""})
    return number


def gone(run: RunDir, job: str, elsewhere: Iterable[RankRecord]) -> bool:
    """Whether ranks on other machines are over because they are of a job that Slurm has forgotten. It may be on another
    cluster, whose squeue knows it: they count as over once they have logged nothing for QUIET_S."""
    heard = max((log.stat().st_mtime for log in run.logs.glob("rank-*.log")), default=0.0)
    return all(record.job == job for record in elsewhere) and time.time() - heard > QUIET_S


def _without_a_job(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what Slurm says of the job that this may run in, and where ranks started from this shell would meet:
    sbatch hands it on, srun would bind by it, and the job's ranks would look for each other there.

    ValueError where sbatch would give the job to another cluster than squeue asks.
    """
    other = environment.get("SBATCH_CLUSTERS")
    if other and other != environment.get("SLURM_CLUSTERS"):
        raise ValueError(
            f"SBATCH_CLUSTERS={other} sends jobs where squeue does not look: set SLURM_CLUSTERS, which both read"
        )
    kept = ("SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS")
    known = {key: value for key, value in environment.items() if key in kept or not key.startswith("SLURM_")}
    return {key: value for key, value in known.items() if key not in OF_OTHER_RANKS}


def states(jobs: Sequence[str]) -> dict[str, str]:
    """Slurm's word for each job (PENDING, RUNNING, ...), FORGOTTEN or SILENT; empty without Slurm."""
    if not jobs or not shutil.which("squeue"):
        return {}
    state_of = {}
    for job in jobs:  # squeue refuses a whole list if it has forgotten one of the jobs
        command = ["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S)
        except subprocess.TimeoutExpired:
            return state_of | dict.fromkeys(set(jobs) - set(state_of), SILENT)
        if done.returncode == 0 and done.stdout.strip():
            said = [line.strip() for line in done.stdout.splitlines() if not line.startswith("CLUSTER:")]
            state_of[job] = next(filter(None, said), FORGOTTEN)
        else:
            state_of[job] = FORGOTTEN if not done.returncode or "Invalid job id" in done.stderr else SILENT
    return state_of
