"""The pruner in a Hugging Face Trainer: the lines that end in `# pat`.

deepspeed docs/examples/hf_trainer.py runs/hf && pat export runs/hf/checkpoint-20 --out pruned

It needs a GPU: Accelerate has no DeepSpeed on CPUs.
"""

import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from pat.integrations.hf import PruningCallback  # pat

SHAPE = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, use_cache=False
)
ZERO = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "zero_optimization": {"stage": 2},
}

args = TrainingArguments(
    sys.argv[-1], deepspeed=ZERO, bf16=True, max_steps=20, per_device_train_batch_size=4, save_steps=10,
    logging_steps=5, optim="adamw_torch", report_to="none",
)  # fmt: skip
rows = (torch.arange(256)[:, None] + torch.arange(16)).remainder(64)
data = Dataset.from_dict({"input_ids": rows.tolist(), "labels": rows.tolist()})
pruning = PruningCallback(Path(__file__).with_name("pruning.yaml"))  # pat
trainer = Trainer(LlamaForCausalLM(SHAPE), args, train_dataset=data, callbacks=[pruning])  # pat
trainer.train()
trainer.save_model(sys.argv[-1])  # with exact zeros; `pat export` takes out what is gone, too
