"""Liger's kernels: what is refused where they cannot run, and that they change nothing but the speed where they do.

Triton's interpreter runs them without a GPU. The test installs Liger and Triton beside the environment, not into it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pat.models import liger

REQUIREMENTS = ("liger-kernel==0.8.5", "triton==3.9.0")  # tested; their wheels are 200 MB


def test_what_cannot_run_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(liger, "find_spec", lambda name: None)
    monkeypatch.setattr(liger.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs a GPU"):  # nobody shall install it for nothing
        liger.check("llama")
    monkeypatch.setattr(liger.torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"needs Liger: pip install 'pat-deepspeed\[liger\]'"):
        liger.check("llama")


@pytest.mark.slow
def test_same_loss_and_gradients_of_gates_and_weights(tmp_path):
    site, out = tmp_path / "site", tmp_path / "out.json"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), *REQUIREMENTS]
    if subprocess.run(pip).returncode:
        pytest.skip(f"pip could not get {' and '.join(REQUIREMENTS)}")
    paths = [str(Path(__file__).parents[2]), str(site), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-m", "tests.liger_in_interpreter", str(out)], env=environment, check=True)
    seen = json.loads(out.read_text())
    assert seen["patched"] == {"llama": 3, "qwen3": 3}, "the rotary embedding, the MLP and the norms"
    assert seen["gates"] > 0, "the gates have gradients"
    assert seen["difference"] < 1e-5, "of the loss and of each gradient, relative to the largest of its tensor"
    assert "has no kernels for a bert" in seen["refused"]
