"""The one source of everything a user can set: each key with its type, default, bounds, choices and what it does.

`python -m pat.config.reference` makes conf/config.yaml, docs/reference/config.md and the JSON schema of it. Criteria,
granularities, gates, budgets and schedules are dataclasses beside their code (`pat.pruning.registry`); what relates
several keys is checked in `pat.config.validate`. How a key is declared: `pat.common.keys`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pat.common.keys import MISSING, Finite, Method, Section, key

LATELY = 50  # steps in which train.max_skipped of them may be skipped


FILES = ("json", "csv", "parquet", "text")  # values of data.source that read local files


class RunConfig(Section, frozen=True):
    """Where a run lives and how it restarts."""

    name: str = key(
        MISSING,
        "the recipe and the overrides that change the result: the same command finds its run again",
        composed="${pat.run_name:}",
        min_length=1,
    )
    dir: str = key(
        MISSING,
        "config.yaml, metrics.jsonl, summary.json, checkpoints/, logs/",
        composed="runs/${.name}",
        min_length=1,
    )
    recipe: str | None = key(None, "set by recipe=NAME", composed="${hydra:runtime.choices.recipe}")
    resume: Literal["auto", "never", "must"] = key(
        "auto", "auto: from the newest whole checkpoint, if there is one | must: fail without | never: set them aside"
    )


class ModelConfig(Section, frozen=True):
    """A Hugging Face model."""

    path: str | None = key(None, "hub name or local folder")
    revision: str | None = key(None, "of the hub: branch, tag or commit", only_with=".path")
    init: Literal["pretrained", "random"] = key("pretrained", "pretrained | random: the architecture only")
    config: dict[str, Any] = key(
        {}, "fields of the Hugging Face config to set; without `path` they are the whole config (needs model_type)"
    )
    tokenizer: str | None = key(None, "hub name or folder, or `byte`; null: the model's")
    replace_head: bool = key(
        False,
        "of a classifier with other labels: train a new head instead of the one in the files",
        only_with="task",
    )
    attn_implementation: str | None = key(None, "eager | sdpa | flash_attention_2; null: what transformers takes")
    use_liger_kernel: bool = key(
        False, "Triton kernels for norms, rotary embedding and gated MLP; needs a GPU and the extra `liger`"
    )


class GeneratedConfig(Section, frozen=True):
    """Pseudo-text made from the seed, for source: generated."""

    num_documents: int = key(512, "documents", ge=1)
    sentences_per_document: int = key(8, "sentences in each", ge=1)
    num_words: int = key(64, "the vocabulary", ge=1)
    num_classes: int = key(2, "classification: labels 0 to n-1", ge=1)


class DataConfig(Section, frozen=True):
    """Text, from the hub, from local files, or generated."""

    source: str = key(MISSING, "hub name | json | csv | parquet | text | generated | mixture: of `sources`")
    sources: dict[str, dict[str, Any]] | None = key(
        None,
        "{NAME: {source: ..., weight: 2.0, and keys of `data` that differ}}; weight 2: twice in an epoch",
        only_with=".source=mixture",
    )
    subset: str | None = key(
        None,
        "of a hub data set: its configuration's name",
        only_with=".source!=json|csv|parquet|text|generated",
    )
    revision: str | None = key(
        None, "of a hub data set: branch, tag or commit", only_with=".source!=json|csv|parquet|text|generated"
    )
    train: str | list[str] = key(
        "train", "split of a hub data set, or local file(s): a path, a glob, a list", only_with=".source!=generated"
    )
    eval: str | list[str] | None = key(
        None, "the same; null: hold out eval_fraction of train", only_with=".source!=generated"
    )
    eval_fraction: float = key(
        0.05, "held out of train when eval is null", gt=0, lt=1, only_with=".eval=null", inherited=True
    )
    text_column: str = key(
        "text", "chat: of rows without `messages` (`conversations`) and without `prompt` and `completion`"
    )
    text_pair_column: str | None = key(None, "second text of a pair", only_with="task")
    label_column: str = key("label", "classification, regression", only_with="task")
    delimiter: str = key(",", "csv: between values: one character, or tab", only_with=".source=csv")
    quote_char: str | None = key(
        '"',
        "csv: around values that contain the delimiter or a line's end; null: an ordinary character",
        only_with=".source=csv",
    )
    encoding: str = key(
        "utf-8",
        "csv, json, text: as Python names it: latin-1, cp1252, utf-16, ...",
        only_with=".source=csv|json|text",
    )
    sample_by: Literal["line", "paragraph", "document"] = key(
        "line", "what is one document of a text file: line | paragraph | document (the whole file)",
        only_with=".source=text",
    )  # fmt: skip
    generated: GeneratedConfig = key(
        GeneratedConfig(),
        "pseudo-text made from the seed, for source: generated",
        only_with=".source=generated|mixture",
    )
    max_length: int = key(MISSING, "tokens per sequence", ge=1)
    max_train_samples: int | None = key(None, "the first so many only", ge=1)
    max_eval_samples: int | None = key(None, "the same of eval", ge=1)
    cache_dir: str | None = key(None, "of prepared data; null: $PAT_CACHE, else ~/.cache/pat")


class TaskConfig(Section, frozen=True):
    """Which loss and metrics."""

    name: str = key(MISSING, "the loss and the metrics: a file of pat/tasks", names_in="pat.tasks")
    num_labels: int | None = key(None, "classification; null: counted in the training data", only_with="task")
    class_weights: Literal["balanced"] | list[float] | None = key(
        None,
        "classification, of the loss: balanced, or a list of numbers in the order of the labels; null: 1",
        only_with="task",
    )
    loss_on: Literal["answers", "completion", "all"] | None = key(
        None,
        "chat: answers | completion | all; null: answers of messages, completion of a prompt, all of a text",
        only_with="task",
    )
    truncation_side: Literal["right", "left"] | None = key(
        None,
        "chat: which end of a row is cut beyond max_length: right | left; null: right",
        only_with="task",
    )
    empty_rows: Literal["error", "drop"] | None = key(
        None,
        "chat: a row without a supervised token: error | drop (and count); null: error",
        only_with="task",
    )
    packing: Literal["none", "best_fit"] | None = key(
        None,
        "chat: none | best_fit: several rows in a sample, apart in attention and positions; null: none",
        only_with="task",
    )
    template_options: dict[str, Any] | None = key(
        None,
        "chat: given to the chat template beside the messages, e.g. {enable_thinking: false}",
        only_with="task",
    )
    loss_chunk_tokens: int | None = key(
        None,
        "causal_lm, chat: logits exist for so many tokens at a time, e.g. 1024; null: for all",
        only_with="task",
    )


class TrainConfig(Section, frozen=True):
    """The loop."""

    num_steps: int = key(MISSING, "optimizer steps; 0: only prune, at once and without training", ge=0)
    global_batch_size: int = key(MISSING, "sequences per optimizer step, over all ranks", ge=1)
    micro_batch_size: int | None = key(
        None, "sequences per forward and rank; null: global / ranks, so no accumulation", ge=1
    )
    global_mean: bool = key(
        True, "the loss is a mean over all answers of the global batch | false: the mean of micro-batches' means"
    )
    log_every: int = key(10, "steps", ge=1)
    eval_every: int | None = key(None, "steps; null: at the end only", ge=1)
    eval_batch_size: int | None = key(None, "per rank; null: micro_batch_size", ge=1)
    checkpoint_every: int | None = key(None, "steps", ge=1)
    checkpoint_every_minutes: float | None = key(
        30.0, "minutes; the first of both that is due; null: by steps only", gt=0
    )
    keep_last: int = key(2, "checkpoints; the best one is kept besides", ge=1)
    best_metric: str | None = key(None, "by which the best is chosen; null: the task's own")
    early_stopping_patience: int | None = key(
        None, "end after so many evaluations without a better one, all of them in the hard phase", ge=1
    )
    max_loss: float | None = key(
        None, "above it the run stops as diverged; null: 3 x max(loss before step 1, ln(classes or vocabulary))", gt=0
    )
    max_skipped: int = key(
        10, "more of the last 50 steps without a finite gradient stop it, too; fp16's first skips do not count", ge=0
    )
    export_at: list[float] = key(
        [], "e.g. [0.3, 0.5]: where sparsity first reaches one, evaluate and keep a checkpoint, as sparsity=0.3"
    )


class EngineConfig(Section, frozen=True):
    """DeepSpeed and the ranks."""

    world_size: int = key(1, "ranks; started by deepspeed, torchrun or srun: theirs", ge=1)
    hostfile: str | None = key(
        None, "several machines without Slurm, by ssh and pdsh: a file of lines `HOST slots=N`, N ranks on HOST"
    )
    zero_stage: Literal[0, 1, 2, 3] = key(
        2, "0 | 1 | 2 | 3: what is sharded: nothing, optimizer state, + gradients, + parameters"
    )
    dtype: Literal["bf16", "fp32", "fp16"] = key(
        "bf16", "bf16 | fp32 | fp16 (GPU): of forward and backward; the optimizer is fp32"
    )
    reduce_dtype: Literal["fp32", "model"] = key(
        "fp32",
        "fp32: same result on any ZeRO stage, twice the gradient traffic | model: in `dtype`",
        only_with=".dtype!=fp32",
    )
    offload_optimizer: bool = key(False, "optimizer state, and the pruner's, in CPU memory")
    activation_checkpointing: bool = key(False, "recompute activations in the backward: less memory, a third more time")
    gradient_clipping: float = key(1.0, "by the global norm of living weights' gradients; 0: off", ge=0)
    kernels: Literal["auto", "compile", "eager"] = key(
        "auto", "of the pruner: compile | eager | auto: compile where there is a compiler"
    )
    deepspeed: str | dict[str, Any] | None = key(
        None, "a DeepSpeed JSON (path) or its keys, merged with what pat sets; a contradiction is an error"
    )
    deepspeed_untested: list[str] = key(
        [], "keys of `deepspeed` to take although pruning was never tested with them, e.g. [fp16.loss_scale]"
    )
    threads_per_rank: int | None = key(None, "OMP_NUM_THREADS; null: cores / ranks", ge=1)
    timeout_min: Finite = key(30.0, "minutes without progress of a rank after which the run ends", gt=0)


class OptimConfig(Section, frozen=True):
    """AdamW and the learning rate."""

    name: Literal["adamw", "fused_adam", "cpu_adam"] = key("adamw", "adamw (torch) | fused_adam, cpu_adam (DeepSpeed)")
    implementation: Literal["fused", "foreach", "loop"] = key(
        "fused",
        "of adamw: fused (fastest) | foreach, loop (do not depend on where shards are cut)",
        only_with=".name=adamw",
    )
    lr: Finite = key(MISSING, "learning rate", gt=0)
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = key(
        [0.9, 0.999], "Adam's two, in [0, 1)"
    )
    eps: Finite = key(1e-8, "Adam's", gt=0)
    weight_decay: Finite = key(0.0, "decoupled, on living weights only", ge=0)
    no_decay: list[str] = key(
        [], "name patterns, as `trainable`; one-dimensional parameters never decay", only_with=".weight_decay"
    )
    trainable: list[str] = key(
        ["*"], "name patterns (shell style) of what trains; each must match, or be `optional:PATTERN`"
    )
    head_lr: Finite | None = key(None, "of a new classification head; null: lr", gt=0, only_with="task")
    lr_schedule: Literal["linear", "cosine", "constant", "per_cut"] = key(
        "linear", "linear | cosine (both down to min_lr_ratio) | constant | per_cut: linear, begun again at every cut"
    )
    warmup: Finite = key(0.0, "steps (1 or more), or a fraction of the run (below 1)", ge=0)
    min_lr_ratio: float = key(0.0, "last learning rate / lr", ge=0, le=1, only_with=".lr_schedule!=constant")


class DistillConfig(Section, frozen=True):
    """Learn a dense teacher's answers, too: (1 - weight) task + weight T^2 KL(teacher || model) + hidden_weight MSE"""

    teacher: str | None = key(
        None, "hub name or local folder, trained on the task and with the model's tokenizer; null: no distillation"
    )
    revision: str | None = key(None, "of the hub: branch, tag or commit", only_with=".teacher")
    cache: str | None = key(
        None, "folder with answers that `pat distill cache` has drawn: no teacher runs beside the model; null: none"
    )
    weight: float | None = key(None, "in [0, 1]; needed with a teacher", ge=0, le=1, only_with=".teacher or .cache")
    temperature: Finite = key(
        1.0, "T: above 1 the teacher's unlikely answers count more", gt=0, only_with=".teacher or .cache"
    )
    hidden_weight: Finite = key(
        0.0,
        "of the mean squared difference of the layers' outputs; needs equal hidden sizes; 0: off",
        ge=0,
        only_with=".teacher",
    )
    layer_map: list[int] | None = key(
        None,
        "the teacher's layer for each of the model's, counted from 0; null: equally spaced, last to last",
        only_with=".teacher, .hidden_weight",
    )
    start: int | float = key(
        0,
        "both weights rise from 0 at this step (whole numbers) or fraction of the run (with a point) ...",
        only_with=".teacher or .cache",
    )
    end: int | float | None = key(
        None, "... to their values at this one; null: constant from `start` on", only_with=".teacher or .cache"
    )

    @property
    def live(self) -> str | None:
        """The teacher that runs beside the model: none where its answers are in a cache."""
        return None if self.cache else self.teacher


class PeftConfig(Section, frozen=True):
    """Structures of a frozen model, with LoRA adapters that train: pip install 'pat-deepspeed[peft]'"""

    r: int | None = key(None, "rank of the adapters; null: none, the model itself trains. peft=lora: 16", ge=1)
    alpha: Finite = key(16.0, "the adapters count alpha / r", gt=0, only_with=".r")
    dropout: float = key(0.0, "on their input", ge=0, lt=1, only_with=".r")
    target_modules: list[str] | None = key(
        None,
        "ends of the names of linear maps, e.g. [q_proj, v_proj]; null: all but the output's and the head's",
        only_with=".r",
    )
    modules_to_save: list[str] | None = key(
        None, "the same, of modules that train whole; null: the head of a classifier, else none", only_with=".r"
    )


class LoggerConfig(Section, frozen=True):
    """Where metrics go besides metrics.jsonl and summary.json."""

    name: Literal["wandb", "none"] = key("wandb", "wandb | none; metrics.jsonl and summary.json are always written")
    project: str = key("pat", "of wandb")
    entity: str | None = key(None, "of wandb: a user or a team; null: yours")
    group: str | None = key(None, "of wandb: runs that belong together")
    tags: list[str] = key([], "of wandb")
    mode: Literal["online", "offline", "disabled"] | None = key(
        None, "online | offline | disabled; null: online with an API key, else offline; never asks"
    )
    progress: Literal["auto", "bar", "lines", "none"] = key(
        "auto", "bar | lines | none; auto: a bar on a terminal, else a line every log_every steps"
    )


class MaskedGradConfig(Section, frozen=True):
    """What a masked weight's gradient does while the mask may still change."""

    name: Literal["zero", "straight_through"] = key("zero", "zero | straight_through")
    sr_ste: float = key(
        0.0,
        "weight decay of masked weights, arXiv:2102.04010",
        ge=0,
        only_with=".name=straight_through",
    )


class PrunerConfig(Section, frozen=True):
    """One named pruner: what it prunes, by which evidence, to which budget, when.

    Of weights (`params`, `granularity`, `criterion`), or of structures (`structures`, `gate`).
    """

    params: list[str] = key([], "name patterns (shell style) of matrices; all-linear: linear maps inside the layers")
    exclude: list[str] = key([], "name patterns; each must match, or be optional:PATTERN")
    granularity: Annotated[Any, Method("granularity")] = key(None, "what is pruned as one: pat/pruning/granularity")
    criterion: Annotated[Any, Method("criterion")] = key(None, "the evidence: pat/pruning/criteria")
    scope: Literal["global", "matrix", "row"] = key(
        "global",
        "global: one ranking over all | matrix: each to the target | row: each output to the target",
        only_with=".granularity.name!=n_of_m",
        inherited=True,
    )
    allow_empty_matrices: bool = key(False, "true: a ranking may remove all weights of a matrix")
    structures: list[str] = key(
        [], "names: ffn, kv_groups, heads, layers, ...: pat/pruning/structures", names_in="pat.pruning.structures.kinds"
    )
    gate: Annotated[Any, Method("gate")] = key(None, "of structures: pat/pruning/gates")
    budget: Annotated[Any, Method("budget")] = key(MISSING, "how much goes: pat/pruning/budgets")
    schedule: Annotated[Any, Method("schedule")] = key(MISSING, "when: pat/pruning/schedules")
    masked_grad: MaskedGradConfig = key(MaskedGradConfig(), "of masked weights, as long as the mask may change")


class Config(Section, frozen=True):
    """Everything."""

    seed: int = key(0, "of the order of samples, new layers, dropout and the `random` criterion", ge=0, le=2**63 - 1)
    run: RunConfig = Field(default_factory=RunConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    task: TaskConfig = Field(default_factory=TaskConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    engine: EngineConfig = Field(default_factory=EngineConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    distill: DistillConfig = Field(default_factory=DistillConfig)
    peft: PeftConfig = Field(default_factory=PeftConfig)
    logger: LoggerConfig = Field(default_factory=LoggerConfig)
    pruners: dict[str, PrunerConfig] = key({}, "a mapping of named pruners; {} trains dense")
