"""The pruner in a loop of your own on Accelerate: the three lines that end in `# pat`.

accelerate launch docs/examples/accelerate_loop.py runs/accelerate && pat export runs/accelerate/step-20 --out pruned

It needs a GPU: Accelerate has no DeepSpeed on CPUs.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator, DeepSpeedPlugin, skip_first_batches
from torch.utils.data import DataLoader, TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM

from pat.integrations import attach  # pat

STEPS, BATCH, OUT = 20, 4, Path(sys.argv[-1])
SHAPE = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, use_cache=False
)
ZERO = {"train_micro_batch_size_per_gpu": BATCH, "bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}

accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=ZERO))
model = LlamaForCausalLM(SHAPE)
pruning = attach(model, Path(__file__).with_name("pruning.yaml"), num_steps=STEPS)  # pat
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
rows = (torch.arange(STEPS * BATCH * accelerator.num_processes)[:, None] + torch.arange(16)).remainder(64)
model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(TensorDataset(rows), BATCH))
if saved := sorted(OUT.glob("step-*"), key=lambda folder: int(folder.name.removeprefix("step-"))):
    accelerator.load_state(str(saved[-1]))  # and what the pruner saved beside it
for (tokens,) in skip_first_batches(loader, model.global_steps):  # of the one epoch
    accelerator.backward(model(input_ids=tokens, labels=tokens).loss)  # and DeepSpeed's step
    optimizer.zero_grad()
    if model.global_steps % 10 == 0:
        accelerator.save_state(f"{OUT}/step-{model.global_steps}")
pruning.check()  # pat: the target is reached, and pruned weights are zero
accelerator.print(pruning.figures())
