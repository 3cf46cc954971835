# pyright: reportMissingImports=false
"""A gated model with and without Liger's kernels, in Triton's interpreter: `python -m ... OUT` writes what differs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from pat.models import families, liger
from pat.pruning.structures.hooks import install
from tests import models as small


def teach_the_interpreter() -> None:
    """Two things that compiled kernels have and interpreted ones lack: float arguments are fp32 scalars, and rsqrt."""
    from liger_kernel.ops import rms_norm

    as_tensor = interpreter._implicit_cvt

    def with_floats(arg: Any) -> Any:
        if not isinstance(arg, float):
            return as_tensor(arg)
        return tl.tensor(interpreter.TensorHandle(np.array([arg], dtype=np.float32), tl.float32), tl.float32)

    interpreter._implicit_cvt = with_floats
    rms_norm.rsqrt = lambda x: tl.math.rsqrt(x)


def gradients(model_type: str, use_liger_kernel: bool) -> tuple[dict[str, torch.Tensor], set[str]]:
    """The loss, the gradient of each gate and of each weight; and which modules compute by Liger's functions."""
    model = small.model(model_type).train()
    hooks = install(small.sites(families.anatomy(model), "ffn", "kv_groups"), model, "gradient")
    if use_liger_kernel:
        liger.apply(model)
    for index, hook in enumerate(hooks):
        draw = torch.Generator().manual_seed(index)
        hook.z = (0.5 + torch.rand(hook.site.num_units, generator=draw)).requires_grad_()
    ids = small.tokens(1, 5)
    loss = torch.nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), ids.flatten())
    loss.backward()
    found = {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    gates = {f"gate {index}": hook.z for index, hook in enumerate(hooks)}
    found |= {name: z.grad for name, z in gates.items() if z is not None and z.grad is not None}
    code = sys.modules[type(model).__module__]
    functions = [module.forward.__func__ for module in model.modules()] + [code.apply_rotary_pos_emb]
    return found, {f.__qualname__ for f in functions if f.__module__.startswith("liger_kernel")}


def main(out: str) -> None:
    """Write the figures of both families."""
    teach_the_interpreter()
    seen: dict[str, Any] = {"patched": {}, "difference": 0.0}
    for model_type in ("llama", "qwen3"):
        plain, _ = gradients(model_type, False)
        fast, patched = gradients(model_type, True)
        assert plain.keys() == fast.keys()
        differences = [float((plain[name] - fast[name]).abs().max() / plain[name].abs().max()) for name in plain]
        seen["difference"] = max(seen["difference"], *differences)
        seen["patched"][model_type] = len(patched)
        seen["gates"] = sum(name.startswith("gate") for name in plain)
    try:
        liger.check("bert")
    except ValueError as error:
        seen["refused"] = str(error)
    Path(out).write_text(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
