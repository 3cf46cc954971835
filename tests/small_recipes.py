"""A recipe, or a command with one, on a model and data that are small: methods, patterns, engine and optimizer stay."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from pat.config import compose
from pat.pruning import registry
from pat.pruning.gates import CalibratedGate
from pat.schema import Config
from tests.distributed import ranks

# Two layers with the heads of the real model; hidden width and vocabulary are small.
LARGE = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 256}
HEADS_8B = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False}
STAND_INS: dict[str, dict[str, object]] = {
    "minilm": {
        "model_type": "bert",
        "num_hidden_layers": 2,
        "hidden_size": 48,
        "intermediate_size": 128,
        "num_attention_heads": 12,
        "vocab_size": 30522,
    },
    "smollm2": {
        **LARGE,
        "model_type": "llama",
        "hidden_size": 72,  # Llama wants a multiple of the heads, also where head_dim is given
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 4096,
        "tie_word_embeddings": True,
    },
    "Llama-3.1-8B": {**LARGE, **HEADS_8B, "model_type": "llama", "vocab_size": 4096},
    "Qwen3-8B-Base": {**LARGE, **HEADS_8B, "model_type": "qwen3", "vocab_size": 4096},
    "Llama-3.1-8B-Instruct": {**LARGE, **HEADS_8B, "model_type": "llama", "vocab_size": 4096},
    "Qwen3-8B": {**LARGE, **HEADS_8B, "model_type": "qwen3", "vocab_size": 4096},
    "Mistral-7B-v0.3": {**LARGE, **HEADS_8B, "model_type": "mistral", "vocab_size": 4096},
}

_KINDS = {"classification": "minilm", "causal_lm": "smollm2", "chat": "smollm2"}  # of a model that is not named above
KEPT = {"ffn": 64, "layers": 2}  # of the 128 that each stand-in has; of the four that it gets where layers go


@cache
def composed(*overrides: str) -> Config:
    """The config that a command line comes to."""
    found: list[Config] = []
    assert compose.compose(overrides, lambda config: found.append(config) or 0) == 0
    return found[0]


def small(config: Config, folder: Path) -> list[str]:
    """Overrides that leave a recipe's methods, patterns, engine and optimizer, and replace what it would load."""
    ramp = 2 * bool(config.envelope)  # steps that a guarded ramp takes
    overrides = [
        f"run.dir={folder / 'run'}",
        f"train.num_steps={min(config.train.num_steps, 2 + ramp)}",
        "train.global_batch_size=4",
        "train.micro_batch_size=2",
        "train.eval_batch_size=4",
        "optim.warmup=0.0",
        "data.max_length=32",
        "data.max_train_samples=16",
        "data.max_eval_samples=4",
        f"data.cache_dir={folder / 'data'}",
        "engine.world_size=1",
        "engine.kernels=eager",  # compiling has its own tests
        "logger.name=none",
    ]
    overrides += ["train.eval_every=1"] if ramp else []
    for name, pruner in config.pruners.items():
        keep = getattr(pruner.budget, "keep", {})
        overrides += [f"pruners.{name}.budget.keep.{key}={KEPT[key]}" for key in keep if key in KEPT]
        if not config.train.num_steps:
            continue
        schedule = f"pruners.{name}.schedule"
        after_gates = not pruner.structures and any(other.structures for other in config.pruners.values())
        gate = registry.build("gate", pruner.gate) if pruner.structures else None
        at_once = isinstance(gate, CalibratedGate) or "layers" in pruner.structures
        overrides += [f"{schedule}.start={int(after_gates or at_once)}", f"{schedule}.hard_from={1 + ramp}"]
        overrides += [f"{schedule}.select_every=1"]
        if config.pruners[name].schedule.end is not None:
            overrides.append(f"{schedule}.end={1 + ramp}")
    if config.model.path is not None:
        stand_in = STAND_INS.get(Path(config.model.path).name) or STAND_INS[_KINDS[config.task.name]]
        overrides += ["model.path=null", "model.init=random", "model.tokenizer=byte"]
        overrides += [f"++model.config.{key}={json.dumps(value)}" for key, value in stand_in.items()]
        if any("layers" in pruner.structures for pruner in config.pruners.values()):
            overrides += ["model.config.num_hidden_layers=4"]  # of two, both pairs of neighbours would be one
    if config.data.source != "generated":
        file = folder / "text.jsonl"
        text, label = config.data.text_column, config.data.label_column
        rows = [{text: f"Sentence {i} is about the weather in May. " * 4, label: i % 2} for i in range(40)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        overrides += ["data.source=json", "data.subset=null", f"data.train={file}", "data.eval=null"]
        overrides += ["data.eval_fraction=0.25"]
        overrides += [f"data.calibration={file}"] if config.data.calibration else []
    return overrides


def start(folder: Path, overrides: list[str]) -> tuple[int | None, str]:
    """The command that a user would give, as the one rank of a launcher; its exit code and what it says."""
    log = folder / "output"
    (code,) = ranks.exit_codes(ranks.fork_ranks("pat.cli", ["train", *overrides], [log], cwd=folder), 600)
    return code, log.read_text(errors="replace")
