"""HF Trainer, TRL's SFTTrainer and a loop on Accelerate against our own loop on the same rows, resumed, exported."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DeepSpeedPlugin, skip_first_batches
from accelerate.state import AcceleratorState
from datasets import Dataset
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.loss.loss_utils import ForCausalLMLoss

from pat.integrations import attach
from pat.integrations.attach import Pruning
from pat.integrations.hf import PruningCallback, export_pruned
from pat.pruning.calibration.calibrator import Surroundings
from pat.schema import PrunerConfig
from pat.training import learning_rate
from pat.zero import engine as ds
from tests.distributed import hf_on_cpu
from tests.distributed.harness import (
    STEPS,
    Trained,
    build,
    build_model,
    digest,
    from_rank_0,
    inputs,
    main,
    make_config,
    pruner_config,
    settings,
    text,
)

SAVED = 5  # a step of the soft phase


def _calibrated(num_samples: int) -> PrunerConfig:
    made = pruner_config("alps")
    criterion = {"name": "alps", "reconstruct": 1, "num_samples": num_samples, "gradient_samples": 8}
    return made.model_copy(update={"criterion": criterion})


CASES = {
    "movement zero2": ("movement", {"engine__zero_stage": 2}),
    "movement zero2 in SFTTrainer": ("movement", {"engine__zero_stage": 2}),
    "movement zero2 in SFTTrainer by the model's loss": ("movement", {"engine__zero_stage": 2}),
    "movement zero2 on Accelerate": ("movement", {"engine__zero_stage": 2}),
    "movement zero2 with a scheduler on Accelerate": (
        "movement",
        {"engine__zero_stage": 2, "optim__lr_schedule": "linear", "optim__warmup": 4},
    ),
    "l0 zero3 on Accelerate": ("l0", {"engine__zero_stage": 3}),
    "movement zero3": ("movement", {"engine__zero_stage": 3}),
    "n_of_m zero2": ("n_of_m", {"engine__zero_stage": 2}),
    "l0 zero2": ("l0", {"engine__zero_stage": 2}),
    "activation zero2": ("activation", {"engine__zero_stage": 2}),
    "activation zero3 on Accelerate": ("activation", {"engine__zero_stage": 3}),
    "l0 zero3": ("l0", {"engine__zero_stage": 3}),
    "alps zero2": ("alps", {"engine__zero_stage": 2, "pruners__weights": _calibrated(32)}),
}
OPTIM = {"optim__implementation": "loop", "optim__lr_schedule": "constant"}


class Rows(torch.utils.data.Dataset):
    """The harness's batches, row after row."""

    def __init__(self, config: Any) -> None:
        batch, self.config = config.train.global_batch_size, config
        self.rows = torch.cat([text(1000 * (config.seed + 1) + t, batch) for t in range(STEPS)])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return inputs(self.rows[index], self.config)


def trainer(config: Any, out: Path, case: str = "", **arguments: Any) -> tuple[Trainer, PruningCallback]:
    """A plain HF Trainer, or TRL's, of the harness's model and rows, with its own DeepSpeed config."""
    deepspeed = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "communication_data_type": "fp32",
        "zero_optimization": {"stage": config.engine.zero_stage, "stage3_gather_16bit_weights_on_model_save": True},
    }
    model = build_model(config)
    callback = PruningCallback(settings(config))
    given: dict[str, Any] = {
        "output_dir": str(out), "deepspeed": deepspeed, "max_steps": STEPS, "report_to": "none", "optim": "adamw_torch",
        "bf16": True, "per_device_train_batch_size": config.train.micro_batch_size, "learning_rate": config.optim.lr,
        "lr_scheduler_type": "constant", "weight_decay": config.optim.weight_decay, "max_grad_norm": 0.2,
        "train_sampling_strategy": "sequential", "save_steps": SAVED, "logging_steps": 1, "disable_tqdm": True,
    } | arguments  # fmt: skip
    rows = Rows(config)
    if "SFTTrainer" in case:  # which makes the labels itself
        from trl.trainer.sft_config import SFTConfig  # heavy, and read by tests that only ask for the names of cases
        from trl.trainer.sft_trainer import SFTTrainer

        data = Dataset.from_dict({"input_ids": rows.rows.tolist()})
        settled = SFTConfig(**given, gradient_checkpointing=False, max_length=None)
        return SFTTrainer(
            model=model,
            args=settled,
            train_dataset=data,
            processing_class=numerals(model.config.vocab_size),
            callbacks=[callback],
            compute_loss_func=model_loss if case.endswith("by the model's loss") else None,
        ), callback
    settled = TrainingArguments(**given)
    return Trainer(model=model, args=settled, train_dataset=rows, eval_dataset=rows, callbacks=[callback]), callback


def model_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
    """The model's own loss of its logits, which TRL replaces by log-probabilities from a fused output layer."""
    vocabulary = outputs.logits.shape[-1]
    return ForCausalLMLoss(outputs.logits, labels, vocabulary, num_items_in_batch=num_items_in_batch)


def numerals(count: int) -> PreTrainedTokenizerFast:
    """Token i is the word i."""
    words = models.WordLevel({str(i): i for i in range(count)}, unk_token="0")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="0", eos_token="1", unk_token="0")


def on_accelerate(config: Any, folder: Path, load: Path | None = None) -> Pruning:
    """Steps of a loop on Accelerate, as docs/examples has it; saved after each SAVED steps."""
    AcceleratorState._reset_state(reset_partial_state=True)
    batch = config.train.micro_batch_size
    deepspeed = {
        "train_micro_batch_size_per_gpu": batch,
        "gradient_clipping": config.engine.gradient_clipping,
        "bf16": {"enabled": True},
        "communication_data_type": "fp32",
        "zero_optimization": {"stage": config.engine.zero_stage},
    }
    plain = build_model(config)
    plugin = DeepSpeedPlugin(hf_ds_config=deepspeed)
    accelerator = Accelerator(deepspeed_plugin=plugin, step_scheduler_with_optimizer=False)
    pruning = attach(plain, settings(config), num_steps=STEPS)
    groups = ds.param_groups(plain, config.optim, {})
    optimizer = torch.optim.AdamW([group | {"lr": config.optim.lr} for group in groups], foreach=False, fused=False)
    rows = DataLoader(Rows(config), batch)
    schedule = LambdaLR(
        optimizer, lambda t: learning_rate.lr_factor(t, STEPS, config.optim)
    )  # made before there is an engine
    model, optimizer, loader, schedule = accelerator.prepare(plain, optimizer, rows, schedule)
    if load is not None:
        accelerator.load_state(str(load))
        loader = skip_first_batches(loader, model.global_steps)
    for given in loader:
        accelerator.backward(model(**given).loss)
        schedule.step()
        optimizer.zero_grad()
        if model.global_steps % SAVED == 0:
            accelerator.save_state(str(folder / f"checkpoint-{model.global_steps}"))
    pruning.check()
    return pruning


def our_loop(case: str) -> tuple[Any, dict[str, Any]]:
    """The config of a case, and what our loop comes to."""
    kind, overrides = CASES[case]
    config = make_config(kind, **OPTIM | overrides)
    ours = build(config)
    ours.pruner.calibrator.surroundings = Surroundings(samples=lambda number: first_rows(config, number))
    ours.run(0, STEPS)
    said = {"ours": digest(ours), "target": ours.pruner.totals.target}
    ours.engine.destroy()
    return config, said


def first_rows(config: Any, number: int) -> list[dict[str, torch.Tensor]]:
    """This rank's batches of the first rows, which go to the ranks in turn."""
    size, world = config.train.micro_batch_size, dist.get_world_size()
    mine = Rows(config).rows[:number][dist.get_rank() :: world]
    return [inputs(each, config) for each in mine.split(size)]


def accelerate_case(case: str, folder: Path) -> dict[str, Any]:
    """Our loop, Accelerate's, Accelerate's resumed; what it saved."""
    unset_hf_deepspeed_config()
    config, said = our_loop(case)
    for name, load in (("theirs", None), ("resumed", folder / f"checkpoint-{SAVED}")):
        pruning = on_accelerate(config, folder if load is None else folder / "again", load)
        said[name] = found(pruning)
        pruning.engine.destroy()
    if dist.get_rank() == 0:
        said["exported"] = export_pruned(folder / f"checkpoint-{2 * SAVED}", folder / "exported")
    AcceleratorState._reset_state(reset_partial_state=True)  # of which a Trainer would take the plugin
    dist.barrier()
    return said


def found(pruning: Pruning) -> dict[str, Any]:
    """All state of a trained engine."""
    assert pruning.pruner is not None
    return digest(Trained(pruning.config, pruning.engine, pruning.pruner))


def trainer_case(case: str, folder: Path) -> dict[str, Any]:
    """One method on one layout: our loop, theirs, theirs resumed; what they saved."""
    unset_hf_deepspeed_config()  # of the case before, which transformers still knows
    config, said = our_loop(case)
    theirs, callback = trainer(config, folder, case)
    theirs.train()
    said["theirs"] = found(callback.pruning)
    logged = [line for line in theirs.state.log_history if "loss" in line]
    said["logged"] = [line["pruning/sparsity"] for line in logged]
    theirs.save_model(str(folder / "final"))
    callback.pruning.engine.destroy()

    again, callback = trainer(config, folder / "again", case)
    again.train(resume_from_checkpoint=str(folder / f"checkpoint-{SAVED}"))
    said["resumed"] = found(callback.pruning)
    callback.pruning.engine.destroy()

    if dist.get_rank() == 0:
        final = load_file(folder / "final" / "model.safetensors")
        said["zeros"] = sum(int((value == 0).sum()) for name, value in final.items() if value.dim() == 2)
        said["exported"] = export_pruned(folder / f"checkpoint-{2 * SAVED}", folder / "exported")
    dist.barrier()
    return said


def refusals(folder: Path) -> dict[str, str]:
    """What a user gets wrong, and what is said."""
    said = {}
    config = make_config("movement", **OPTIM, engine__zero_stage=2)

    def attempt(name: str, work: Any) -> None:
        try:
            work()
            said[name] = "nothing"
        except ValueError as error:
            said[name] = str(error)

    unset_hf_deepspeed_config()
    other, callback = trainer(make_config("magnitude", **OPTIM, engine__zero_stage=2), folder / "other")
    attempt("other pruner", lambda: other.train(resume_from_checkpoint=str(folder / f"checkpoint-{SAVED}")))
    callback.pruning.engine.destroy()

    torn = folder / f"checkpoint-{SAVED}" / "pat" / "checkpoints" / f"step-{SAVED:08d}"
    if dist.get_rank() == 0:
        file = next(torn.glob("pruner-*"))
        file.write_bytes(file.read_bytes()[:-8] + b"12345678")
    dist.barrier()
    again, callback = trainer(config, folder / "torn")
    attempt("torn", lambda: again.train(resume_from_checkpoint=str(folder / f"checkpoint-{SAVED}")))
    callback.pruning.engine.destroy()
    attempt(
        "best",
        lambda: trainer(config, folder / "x", load_best_model_at_end=True, eval_strategy="steps", eval_steps=SAVED),
    )
    return said


def checks(arguments: list[str]) -> dict[str, Any]:
    """Of the named cases."""
    hf_on_cpu.allow()
    with tempfile.TemporaryDirectory() as own:
        root = Path(from_rank_0(own))
        said: dict[str, Any] = {}
        for number, name in enumerate(json.loads(arguments[0])):
            run = accelerate_case if name.endswith("Accelerate") else trainer_case
            said[name] = run(name, root / str(number))
        if "movement zero2" in said:
            said["refusals"] = refusals(root / "0")
        dist.barrier()
    return said


if __name__ == "__main__":
    main(checks)
