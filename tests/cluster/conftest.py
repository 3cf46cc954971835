from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.lab import HERE, Lab
from tests.distributed import runs
from tests.distributed.conftest import once
from tests.install import may_install


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The cluster, installed where it is missing; skips where this machine cannot have it."""
    if not may_install():
        pytest.skip("a real Slurm with emulated nodes needs root on Debian or Ubuntu")
    if subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("a real Slurm with emulated nodes needs UTS and mount name spaces, which are not allowed here")
    found = Lab(tmp_path_factory.mktemp("slurm"))
    for folder in [found.path, *found.path.parents]:  # munged is another user
        if Path(tempfile.gettempdir()) in folder.parents:
            folder.chmod(0o755)
    found.disk.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", found.disk], check=True
    )  # before there are nodes
    try:
        found.script("up.sh")
        yield found
    finally:
        subprocess.run([HERE / "down.sh"], env=found.environment, stdin=subprocess.DEVNULL, capture_output=True)
        subprocess.run(["umount", "--lazy", found.disk], check=True)


@pytest.fixture(scope="module")
def undisturbed(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of a job that nobody disturbs."""
    return runs.result(once(tmp_path_factory, "submitted", lambda run_dir: lab.submit(run_dir).until_done()))
