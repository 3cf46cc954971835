from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_autotuners_mlflow_is_not_imported_and_can_be_later() -> None:
    """Also where a program has it already."""
    code = """
import sys
from pat.zero.import_deepspeed import import_deepspeed
assert import_deepspeed() is sys.modules["deepspeed"]
assert not any(name.partition(".")[0] == "mlflow" for name in sys.modules)
import mlflow
assert import_deepspeed().autotuning and sys.modules["mlflow"] is mlflow
"""
    subprocess.run([sys.executable, "-c", code], check=True)
