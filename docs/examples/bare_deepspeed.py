"""The pruner in a DeepSpeed loop of your own: the three lines that end in `# pat`.

deepspeed docs/examples/bare_deepspeed.py runs/bare && pat export runs/bare --out pruned
"""

import os
import sys
from pathlib import Path

import deepspeed
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pat.integrations import attach  # pat

STEPS, BATCH, OUT = 20, 4, Path(sys.argv[-1])
SHAPE = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, use_cache=False
)
CONFIG = {"train_micro_batch_size_per_gpu": BATCH, "bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}

model = LlamaForCausalLM(SHAPE)
pruning = attach(model, Path(__file__).with_name("pruning.yaml"), num_steps=STEPS)  # pat
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
untested = {"zero_allow_untested_optimizer": True}  # torch's own AdamW
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=CONFIG | untested)
if (OUT / "latest").exists():
    engine.load_checkpoint(OUT)  # and what the pruner saved beside it
for t in range(engine.global_steps, STEPS):
    torch.manual_seed(t * 1000 + int(os.environ["RANK"]))
    tokens = (torch.randint(64, (BATCH, 1)) + torch.arange(16)).remainder(64).to(engine.device)
    engine.backward(engine(input_ids=tokens, labels=tokens).loss)
    engine.step()
    if (t + 1) % 10 == 0:
        engine.save_checkpoint(OUT)
pruning.check()  # pat: the target is reached, and pruned weights are zero
print(pruning.figures())
