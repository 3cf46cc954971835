"""The pruner inside Hugging Face's Trainer with its DeepSpeed config, and inside trainers built on it, as TRL's.

    from pat.integrations.hf import PruningCallback
    trainer = Trainer(..., callbacks=[PruningCallback("pruning.yaml")])     # with TrainingArguments(deepspeed=...)
    trainer.train()

Checkpoints get a `pat` folder, `train(resume_from_checkpoint=...)` goes on from it, and the final model has exact
zeros; `export_pruned`, or `pat export OUT/checkpoint-N --out DIR`, takes out what is gone. Where zeros in a stock model
are not the result (removed layers of BERT and its like), only the export is, and the end of the training says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import deepspeed as hf_deepspeed

from pat.export.export import export_run
from pat.integrations.attach import Pruning
from pat.integrations.samples import RowsOf


class PruningCallback(TrainerCallback):
    """Prunes the trainer's model while it trains. Settings: a mapping or YAML file, see `pat.integrations.attach`.

    Methods that are calibrated (alps, wanda, obs, ...) take `samples`, this rank's batches, or else the first rows of
    the training data, as the trainer collates them. The finished layers of a cut are kept in `calibration` of the
    trainer's output_dir until a checkpoint holds it, so that a cut that is killed goes on there.
    """

    def __init__(
        self, settings: Mapping[str, Any] | str | Path, samples: Iterable[Mapping[str, Any]] | None = None
    ) -> None:
        self.pruning = Pruning(settings, samples)

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The trainer has its model: wait for its DeepSpeed engine."""
        if args.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end would put back a model from before the pruning was final: set it to False"
            )
        if args.auto_find_batch_size:
            raise ValueError(
                "auto_find_batch_size starts the training more than once: give per_device_train_batch_size"
            )
        if args.save_only_model:
            raise ValueError(
                "save_only_model leaves out the pruner's state, which resuming and exporting need: set it to False"
            )
        self.pruning.attach(kwargs["model"], kwargs.get("processing_class"))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The engine is there, and loaded: bind. Collective."""
        if self.pruning.model is None:
            raise ValueError("give the PruningCallback to the trainer when it is made: Trainer(callbacks=[...])")
        if self.pruning.engine is None and getattr(args, "deepspeed", None):
            raise ValueError(
                "the trainer trains another model than it was made with, as with model_init: give it `model` instead"
            )
        if self.pruning.engine is None:
            raise ValueError(
                "this trainer has no DeepSpeed engine, in which the pruner works: set TrainingArguments(deepspeed=...)"
            )
        if self.pruning.pruner is not None:
            raise ValueError("a PruningCallback prunes one training: make a new model, trainer and callback")
        if self.pruning.samples is None and (loader := kwargs.get("train_dataloader")) is not None:
            size = args.per_device_train_batch_size
            self.pruning.samples = RowsOf(loader, size, args.process_index, args.world_size)
        if args.output_dir is not None:
            self.pruning.calibration_dir = Path(args.output_dir) / "calibration"
        self.pruning.start(state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Phase and sparsity, for the trainer's own line and log_history."""
        if logs is not None and "loss" in logs:
            logs.update(self.pruning.figures())
            if state.log_history:
                state.log_history[-1].update(self.pruning.figures())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """All guarantees of a run that went to its end. Collective."""
        if state.global_step >= state.max_steps:
            self.pruning.check()
        elif state.is_world_process_zero:
            warnings.warn(
                f"the training has ended at step {state.global_step} of {state.max_steps}, for which the pruning was "
                "planned: its target is not reached, and what it has removed so far may not be exact zeros",
                stacklevel=2,
            )


def export_pruned(
    checkpoint: str | Path, out: str | Path, dtype: str | None = None, verify: str = "auto"
) -> dict[str, Any]:
    """Write a trainer's checkpoint (OUT/checkpoint-N) as a stock Hugging Face folder, narrowed and proven equal.

    Without ranks or a GPU; the same as `pat export CHECKPOINT --out OUT`. dtype: fp32, bf16, fp16; None: that of the
    training. verify: auto, logits, layers, weights. Returns what `export.json` holds. Raises ValueError for a folder
    that is there already, CheckpointError for a checkpoint that is not whole, and ExportError where the folder is not
    its model.
    """
    with _outside_zero_init():
        return export_run(checkpoint, out, "last", dtype, verify)


@contextmanager
def _outside_zero_init() -> Iterator[None]:
    """After a training at ZeRO 3 transformers would still shard every model, and wait for the other ranks."""
    weak = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if weak is not None and (config := weak()) is not None:
            hf_deepspeed.set_hf_deepspeed_config(config)
