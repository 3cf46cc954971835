"""The dtypes that a model trains in and is exported to, by the names they have in configs and on the command line."""

from __future__ import annotations

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
