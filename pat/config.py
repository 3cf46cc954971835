"""The typed schema of everything a user can set.

`conf/config.yaml` gives each key its default and says what it does; this file gives each key its type. Criteria,
granularities, budgets and schedules are dataclasses beside their code (see `pat.pruning.registry`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

FILES = ("json", "csv", "parquet", "text")  # values of data.source that read local files


@dataclass
class RunConfig:
    """Where a run lives and how it restarts."""

    name: str = MISSING
    dir: str = MISSING
    recipe: str | None = None  # filled in when the config is composed
    resume: str = "auto"  # auto | never | must


@dataclass
class ModelConfig:
    """A Hugging Face model: a hub name or a local folder."""

    path: str | None = None
    revision: str | None = None
    init: str = "pretrained"  # pretrained | random (architecture only)
    config: dict[str, Any] = field(default_factory=dict)  # fields of the Hugging Face config to set
    tokenizer: str | None = None  # hub name or folder, or "byte"; default: `path`
    replace_head: bool = False  # of a classifier: a new one instead of that in the files
    attn_implementation: str | None = None
    use_liger_kernel: bool = False


@dataclass
class GeneratedConfig:
    """Pseudo-text made from the seed (`data.source=generated`)."""

    num_documents: int = 512
    sentences_per_document: int = 8
    num_words: int = 64  # the vocabulary
    num_classes: int = 2  # labels 0..n-1, for classification


@dataclass
class DataConfig:
    """Text, from the hub, from local files, or generated."""

    source: str = MISSING  # hub name | json | csv | parquet | text | generated | mixture
    sources: Any = None  # of a mixture: name -> source, weight and what differs from `data`
    subset: str | None = None  # the hub's "config name"
    revision: str | None = None  # of the hub data set: branch, tag or commit
    train: Any = "train"  # split of a hub data set, or file(s) / glob(s)
    eval: Any = None  # the same; null: hold out `eval_fraction` of train
    eval_fraction: float = 0.05
    text_column: str = "text"
    text_pair_column: str | None = None
    label_column: str = "label"
    delimiter: str = ","  # csv: between values; `tab` for a tab
    quote_char: str | None = '"'  # csv: around values; null: none
    encoding: str = "utf-8"  # csv, json, text
    sample_by: str = "line"  # a document of a text file: line | paragraph | document (the whole file)
    generated: GeneratedConfig = field(default_factory=GeneratedConfig)
    max_length: int = MISSING  # tokens
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    cache_dir: str | None = None  # default: $PAT_CACHE, else ~/.cache/pat


@dataclass
class TaskConfig:
    """Which loss and metrics."""

    name: str = MISSING  # a file in pat/tasks
    num_labels: int | None = None  # classification; default: counted in the training data
    class_weights: Any = None  # classification: balanced, or one number a class
    loss_on: str | None = None  # chat: answers | completion | all; default: by the rows' format
    truncation_side: str | None = None  # chat: right (default) | left
    empty_rows: str | None = None  # chat, rows without a supervised token: error (default) | drop
    packing: str | None = None  # chat: none (default) | best_fit
    template_options: Any = None  # chat: given to the chat template
    loss_chunk_tokens: int | None = None  # causal_lm, chat: logits of so many tokens at a time; default: of all


@dataclass
class TrainConfig:
    """The loop."""

    num_steps: int = MISSING
    global_batch_size: int = MISSING  # sequences per optimizer step, over all ranks
    micro_batch_size: int | None = None  # sequences per forward, per rank; default: global / ranks
    global_mean: bool = True  # false: the mean of the micro-batches' means
    log_every: int = 10
    eval_every: int | None = None
    eval_batch_size: int | None = None
    checkpoint_every: int | None = None  # steps
    checkpoint_every_min: float | None = 30.0  # minutes
    keep_last: int = 2  # checkpoints; the best one is kept besides
    best_metric: str | None = None  # default: the task's
    early_stopping_patience: int | None = None  # evaluations in the hard phase without a better one
    max_loss: float | None = None  # a logged loss above it stops the run; default: 3 times the initial, or chance
    max_skipped: int = 10  # of the last 50 steps
    export_at: list[float] = field(default_factory=list)  # sparsities at which a checkpoint is kept


@dataclass
class EngineConfig:
    """DeepSpeed and the ranks."""

    world_size: int = 1
    hostfile: str | None = None  # several machines: lines `HOST slots=N`
    zero_stage: int = 2
    dtype: str = "bf16"  # bf16 | fp32 | fp16
    reduce_dtype: str = "fp32"  # fp32 | model: the dtype in which gradients are reduced
    offload_optimizer: bool = False
    activation_checkpointing: bool = False
    gradient_clipping: float = 1.0  # 0: off
    kernels: str = "auto"  # auto | compile | eager
    deepspeed: Any = None  # path of a DeepSpeed JSON, or its keys; merged
    deepspeed_untested: list[str] = field(default_factory=list)  # keys of theirs to take all the same, with dots
    threads_per_rank: int | None = None  # OMP_NUM_THREADS; default: cores / ranks
    timeout_min: float = 30.0  # of a collective, and of all in which nothing happens


@dataclass
class OptimConfig:
    """AdamW and the learning rate."""

    name: str = "adamw"  # adamw (torch) | fused_adam, cpu_adam (DeepSpeed)
    implementation: str = "fused"  # of torch's adamw: fused | foreach | loop
    lr: float = MISSING
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.0
    no_decay: list[str] = field(default_factory=list)  # name patterns, besides all 1-D parameters
    trainable: list[str] = field(default_factory=lambda: ["*"])  # name patterns
    head_lr: float | None = None  # classification head; default: lr
    lr_schedule: str = "linear"  # linear | cosine | constant
    warmup: float = 0.0  # steps (whole number) or fraction of the run (below 1)
    min_lr_ratio: float = 0.0


@dataclass
class DistillConfig:
    """A dense teacher whose answers the model learns, too."""

    teacher: str | None = None  # hub name or folder; null: no distillation
    revision: str | None = None
    weight: float | None = None  # of the teacher's answers in the loss; needed with a teacher
    temperature: float = 1.0
    hidden_weight: float = 0.0  # of the hidden states; 0: not compared
    layer_map: list[int] | None = None  # teacher layer of each student layer; default: uniform
    start: int | float = 0  # the weights rise from 0 here ...
    end: int | float | None = None  # ... to their values here; default: at `start`


@dataclass
class PeftConfig:
    """LoRA adapters on a frozen model, by the peft library."""

    r: int | None = None  # rank; null: no adapters, the model itself trains
    alpha: float = 16.0  # the adapters count alpha / r
    dropout: float = 0.0  # on the adapters' input
    target_modules: list[str] | None = None  # ends of names of linear maps; null: all but the output's and the head's
    modules_to_save: list[str] | None = None  # ends of names, trained whole; null: a classification head


@dataclass
class LoggerConfig:
    """wandb; metrics.jsonl and summary.json are always written."""

    name: str = "wandb"  # wandb | none
    project: str = "pat"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    mode: str | None = None  # online | offline | disabled; default: online with an API key, else offline
    progress: str = "auto"  # auto | bar | lines | none


@dataclass
class MaskedGradConfig:
    """What a masked weight's gradient does while the mask may still change."""

    name: str = "zero"  # zero | straight_through
    sr_ste: float = 0.0  # weight decay of masked weights, arXiv:2102.04010


@dataclass
class PrunerConfig:
    """One named pruner: what it prunes, by which evidence, to which budget, when.

    Of weights (`params`, `granularity`, `criterion`), or of structures (`structures`, `gate`).
    """

    params: list[str] = field(default_factory=list)  # name patterns (shell style); only matrices are taken
    exclude: list[str] = field(default_factory=list)
    granularity: Any = None
    criterion: Any = None
    scope: str = "global"  # global | matrix
    allow_empty_matrices: bool = False  # a ranking may remove all weights of a matrix
    structures: list[str] = field(default_factory=list)  # names: ffn, kv_groups, heads, layers, ...
    gate: Any = None
    budget: Any = MISSING
    schedule: Any = MISSING
    masked_grad: MaskedGradConfig = field(default_factory=MaskedGradConfig)


@dataclass
class Config:
    """Everything."""

    seed: int = 0
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    peft: PeftConfig = field(default_factory=PeftConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    pruners: dict[str, PrunerConfig] = field(default_factory=dict)
