"""What the hardware could do and what it did: peak FLOPS, utilisation, memory."""

from __future__ import annotations

import re
import resource
import sys
from typing import Any

import torch

from pat.common.parameters import logical_numel
from pat.models.experts import share_of_tokens


def peak_memory_bytes() -> int:
    """Of this rank: the GPU's allocator if there is one, else the process's resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# FLOP/s of bf16 (fp16 alike) matrix products without sparsity, from NVIDIA's data sheets of these products and, for the
# RTX 4090, the Ada GPU architecture whitepaper. The first name whose words are in the device's counts.
PEAKS: tuple[tuple[str, float], ...] = (
    ("B200", 2250e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("H800", 989e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("A40", 149.7e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("RTX 4090", 165.2e12),
)


def peak_flops(device: str, dtype: str) -> float | None:
    """FLOP/s of one device in bf16 or fp16; None where it is not known, as for CPUs, fp32 and shares of a card."""
    if dtype not in ("bf16", "fp16"):
        return None
    if " MIG " in device:  # a share of a card
        return None
    return next((peak for name, peak in PEAKS if re.search(rf"\b{name}\b", device)), None)


def flops_per_token(model: Any, length: int) -> float:
    """6 N + 4 F + 12 L H S: forward and backward of one token in a sequence of S tokens.

    N weights that multiply and train, F that multiply and are frozen, so have no gradient of their own (the input
    embedding does not multiply, unless it is tied to the output), L layers, H hidden size. Pruned weights count: they
    are multiplied as zeros. Of E experts, of which each token passes k, a weight counts k / E. PaLM, Chowdhery et al.
    2022, appendix B, arXiv:2204.02311, where all train. Too high where the first layers are frozen: nothing runs back
    through them.
    """

    config = model.config.get_text_config()
    share = share_of_tokens(config.to_dict())

    def cost(parameter: Any, name: str = "") -> float:
        each = share if ".experts." in name else 1.0
        return (6 if parameter.requires_grad else 4) * logical_numel(parameter) * each

    products = sum(cost(parameter, name) for name, parameter in model.named_parameters())
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if inputs is not None and (outputs is None or outputs.weight is not inputs.weight):
        products -= cost(inputs.weight)
    layers, hidden = getattr(config, "num_hidden_layers", 0), getattr(config, "hidden_size", 0)
    return products + 12.0 * layers * hidden * length


def mfu(tokens_per_s: float, token_flops: float, device: str, dtype: str, devices: int) -> float | None:
    """Model FLOPs utilisation in [0, 1]: the FLOPs that the tokens need, over the peak of all devices; None without a
    peak."""
    peak = peak_flops(device, dtype)
    return None if peak is None else tokens_per_s * token_flops / (peak * devices)
