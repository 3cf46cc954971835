"""The one source of everything a user can set: each key with its type, default, bounds, choices and what it does.

`python -m pat.config.reference` makes conf/config.yaml, docs/reference/config.md and the JSON schema of it. Criteria,
granularities, gates, budgets and schedules are dataclasses beside their code (`pat.pruning.registry`); relations
between keys are checked in `pat.config.validate`. How a key is declared: `pat.common.keys`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import Field, field_validator

from pat.common.keys import MISSING, Finite, Method, Section, key
from pat.envelope.spec import Limit, nested

ALL_BUT_EMBEDDINGS = "all-but-embeddings"
LATELY = 50  # steps in which train.max_skipped of them may be skipped


ANOTHER_TRAINERS = "another trainer's"  # source of data that only somebody else's trainer knows
ENDINGS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".txt": "text"}
FILES = tuple(dict.fromkeys(ENDINGS.values()))  # values of data.source that read local files, whose names end so


class RunConfig(Section, frozen=True):
    """Where a run lives and how it restarts."""

    name: str = key(
        MISSING,
        "name of the run; by default that of run.dir's folder where one is given, else from the recipe and the "
        "overrides, so that the same command finds its run again",
        composed="${pat.run_name:}",
        min_length=1,
    )
    dir: str = key(
        MISSING,
        "directory of the run: config, metrics, summary, checkpoints, logs",
        composed="runs/${.name}",
        min_length=1,
    )
    recipe: str | None = key(
        None, "the recipe that was chosen; set by recipe=NAME", composed="${hydra:runtime.choices.recipe}"
    )
    resume: Literal["auto", "never", "must"] = key(
        "auto",
        "auto: go on from the newest whole checkpoint, if any | must: fail without one | never: start anew",
    )
    until: int | Literal["end", "first_cut"] = key(
        "end",
        "end: all steps | first_cut: stop before the first mask or gate, saved; `pat search` goes on from there | a "
        "number: stop before that step, saved and evaluated; `pat sweep --race` goes on from there",
    )


class ModelConfig(Section, frozen=True):
    """A Hugging Face model."""

    path: str | None = key(None, "name on the Hugging Face hub, or a local folder")
    revision: str | None = key(None, "branch, tag or commit on the hub", only_with=".path")
    init: Literal["pretrained", "random"] = key(
        "pretrained", "pretrained: load the weights | random: only the architecture"
    )
    config: dict[str, Any] = key(
        {}, "fields of the Hugging Face config to change; without `path`, the whole config (give model_type)"
    )
    tokenizer: str | None = key(None, "hub name, folder, or `byte` (one token for each byte); null: the model's own")
    replace_head: bool = key(
        False,
        "train a new classification head, although the files hold one for other labels",
        only_with="task",
    )
    attn_implementation: str | None = key(None, "eager | sdpa | flash_attention_2; null: transformers chooses")
    use_liger_kernel: bool = key(
        False,
        "use Liger's Triton kernels for norms, rotary embeddings and gated MLPs; needs a GPU and the extra `liger`",
    )


class GeneratedConfig(Section, frozen=True):
    """Pseudo-text made from the seed, for `source: generated`."""

    num_documents: int = key(512, "number of documents", ge=1)
    sentences_per_document: int = key(8, "sentences in each document", ge=1)
    num_words: int = key(64, "number of different words", ge=1, le=300_000)
    num_classes: int = key(2, "classification: number of labels, 0 to n-1", ge=1)


class DataConfig(Section, frozen=True):
    """Text, from the hub, from local files, or generated."""

    source: str = key(
        MISSING, "a data set on the hub | json | csv | parquet | text | generated | mixture (see `sources`)"
    )
    sources: dict[str, dict[str, Any]] | None = key(
        None,
        "{NAME: {source: ..., weight: 2.0, keys of `data` that differ}}; weight 2: seen twice per epoch",
        only_with=".source=mixture",
    )
    subset: str | None = key(
        None,
        "configuration (subset) of the data set on the hub",
        only_with=".source!=json|csv|parquet|text|generated",
    )
    revision: str | None = key(
        None, "branch, tag or commit of the data set on the hub", only_with=".source!=json|csv|parquet|text|generated"
    )
    train: str | list[str] = key(
        "train",
        "training data: a split on the hub, or local files (a path, a glob or a list)",
        only_with=".source!=generated",
    )
    eval: str | list[str] | None = key(
        None,
        "evaluation data, given like `train`; null: hold out eval_fraction of train",
        only_with=".source!=generated",
    )
    calibration: str | list[str] | None = key(
        None,
        "what calibrated methods measure, given like `train`, with the same columns; null: the first training samples",
        only_with=".source!=generated|mixture",
    )
    eval_fraction: float = key(
        0.05,
        "share of the training data that is held out when `eval` is null, about: each row by the hash of its content",
        gt=0,
        lt=1,
        only_with=".eval=null",
        inherited=True,
    )
    text_column: str = key(
        "text", "column with the text; for chat, of rows that have neither `messages` nor `prompt` and `completion`"
    )
    text_pair_column: str | None = key(None, "column with the second text of a pair", only_with="task")
    label_column: str = key("label", "column with the label", only_with="task")
    slice_column: str | None = key(
        None,
        "column of the evaluation data with a slice (domain, language) of each row: figures are also given per slice, "
        "and `envelope.slices` can limit them",
    )
    delimiter: str = key(
        ",",
        "csv: character between values, or tab; while it is `,`, files that end in .tsv have tabs",
        only_with=".source=csv",
    )
    quote_char: str | None = key(
        '"',
        "csv: character around values that contain the delimiter or a line break; null: there is none",
        only_with=".source=csv",
    )
    encoding: str = key(
        "utf-8",
        "encoding of the files, by its Python name: utf-8, latin-1, cp1252, utf-16, ...",
        only_with=".source=csv|json|text",
    )
    sample_by: Literal["line", "paragraph", "document"] = key(
        "line", "text: what counts as one document: line | paragraph | document (the whole file)",
        only_with=".source=text",
    )  # fmt: skip
    generated: GeneratedConfig = key(
        GeneratedConfig(),
        "pseudo-text made from the seed, for source: generated",
        only_with=".source=generated|mixture",
    )
    max_length: int = key(MISSING, "longest sequence, in tokens; longer ones are cut", ge=1)
    max_train_samples: int | None = key(
        None,
        "use at most N training rows, spread evenly and taken before tokenising, and at most N samples",
        ge=1,
    )
    max_eval_samples: int | None = key(None, "use at most N evaluation samples, spread evenly", ge=1)
    num_proc: int | None = key(
        None, "processes that tokenise; null: one per core, at most one per 10,000 rows. The samples are the same", ge=1
    )
    cache_dir: str | None = key(None, "where prepared data is cached; null: $PAT_CACHE, else ~/.cache/pat")


class TaskConfig(Section, frozen=True):
    """What is learned: the loss and the metrics."""

    name: str = key(MISSING, "what the model learns: a file of pat/tasks", names_in="pat.tasks")
    num_labels: int | None = key(
        None, "classification: number of labels; null: counted in the training data", only_with="task"
    )
    class_weights: Literal["balanced"] | list[float] | None = key(
        None,
        "classification: weights of the labels in the loss, `balanced` or a list in their order; null: all 1",
        only_with="task",
    )
    loss_on: Literal["answers", "completion", "all"] | None = key(
        None,
        "chat: which tokens are learned: answers | completion | all; null: what fits the row's format",
        only_with="task",
    )
    truncation_side: Literal["right", "left"] | None = key(
        None,
        "chat: which end of a long row is cut: right | left; null: right",
        only_with="task",
    )
    empty_rows: Literal["error", "drop"] | None = key(
        None,
        "chat: what to do with a row that has no token to learn: error | drop (they are counted); null: error",
        only_with="task",
    )
    packing: Literal["none", "best_fit"] | None = key(
        None,
        "chat: best_fit packs several rows into a sample, kept apart in attention and positions; null: none",
        only_with="task",
    )
    template_options: dict[str, Any] | None = key(
        None,
        "chat: variables for the chat template, e.g. {enable_thinking: false}",
        only_with="task",
    )
    loss_chunk_tokens: int | None = key(
        None,
        "compute logits for this many tokens at a time, e.g. 1024, to save memory; null: for all at once",
        only_with="task",
    )


class TrainConfig(Section, frozen=True):
    """The training loop."""

    num_steps: int = key(MISSING, "optimizer steps; 0: prune at once, without training", ge=0)
    global_batch_size: int = key(MISSING, "sequences per optimizer step, summed over all ranks", ge=1)
    micro_batch_size: int | None = key(
        None, "sequences per forward on each rank; null: global_batch_size / ranks, which means no accumulation", ge=1
    )
    global_mean: bool = key(
        True,
        "true: average the loss over all labels of the global batch | false: average the means of the micro-batches, "
        "whose size a run of chats or with distill.hidden_weight then keeps",
    )
    log_every: int = key(10, "steps between log lines", ge=1)
    eval_every: int | None = key(None, "steps between evaluations; null: evaluate only at the end", ge=1)
    eval_batch_size: int | None = key(
        None, "sequences per forward in evaluations, on each rank; null: micro_batch_size", ge=1
    )
    checkpoint_every: int | None = key(None, "steps between checkpoints; null: by minutes only", ge=1)
    checkpoint_every_minutes: float | None = key(
        30.0, "minutes between checkpoints; with both keys, whichever is due first; null: by steps only", gt=0
    )
    keep_last: int = key(2, "how many of the newest checkpoints to keep; the best one is kept as well", ge=1)
    best_metric: str | None = key(None, "metric that decides which checkpoint is best; null: the task's own")
    early_stopping_patience: int | None = key(
        None, "stop after this many evaluations of the hard phase without a better one; null: never", ge=1
    )
    envelope_patience: int = key(
        2,
        "evaluations in a row outside `envelope` that a hold may last before the run goes back",
        ge=0,
        only_with="envelope",
    )
    max_loss: float | None = key(
        None,
        "stop as diverged above this loss; null: 3 x max(loss before step 1, ln(classes or vocabulary)); of a "
        "regression 100 x max(loss before step 1, variance of the labels)",
        gt=0,
    )
    max_skipped: int = key(
        10,
        "stop as diverged when more of the last 50 steps had no finite gradient; fp16's first skips do not count",
        ge=0,
    )
    export_at: list[float] = key(
        [], "sparsities, e.g. [0.3, 0.5]: when one is first reached, evaluate and keep a checkpoint called sparsity=0.3"
    )


class EngineConfig(Section, frozen=True):
    """DeepSpeed, the ranks and their numerics."""

    world_size: int = key(1, "number of ranks; under deepspeed, torchrun or srun it is theirs", ge=1)
    hostfile: str | None = key(
        None, "file of lines `HOST slots=N`: start N ranks on each host by ssh and pdsh, without Slurm"
    )
    zero_stage: Literal[0, 1, 2, 3] = key(
        2, "what is sharded: 0 nothing | 1 optimizer state | 2 gradients, too | 3 parameters, too"
    )
    dtype: Literal["bf16", "fp32", "fp16"] = key(
        "bf16", "precision of forward and backward: bf16 | fp32 | fp16 (GPU only); the optimizer works in fp32"
    )
    reduce_dtype: Literal["fp32", "model"] = key(
        "fp32",
        "fp32: the same result at every ZeRO stage, for twice the traffic of gradients | model: reduce in `dtype`",
        only_with=".dtype!=fp32",
    )
    offload_optimizer: bool = key(False, "keep the optimizer's and the pruner's state in CPU memory")
    activation_checkpointing: bool = key(
        False, "recompute activations in the backward: less memory for about a third more time"
    )
    gradient_clipping: float = key(
        1.0, "clip gradients to this global norm, over weights that are not pruned; 0: off", ge=0
    )
    kernels: Literal["auto", "compile", "eager"] = key(
        "auto",
        "how the pruner's kernels run: compile | eager | "
        "auto (compile shards of more than 8.4 million weights, if there is a compiler)",
    )
    deepspeed: str | dict[str, Any] | None = key(
        None, "a DeepSpeed config (a path or keys), merged with what pat sets; contradictions are errors"
    )
    deepspeed_untested: list[str] = key(
        [], "keys of `deepspeed` to accept although pruning was never tested with them, e.g. [fp16.loss_scale]"
    )
    threads_per_rank: int | None = key(
        None, "CPU threads of each rank (OMP_NUM_THREADS); null: usable cores / ranks", ge=1
    )
    timeout_min: Finite = key(30.0, "abort when a rank makes no progress for this many minutes", gt=0)


class OptimConfig(Section, frozen=True):
    """AdamW and the learning rate."""

    name: Literal["adamw", "fused_adam", "cpu_adam"] = key(
        "adamw", "adamw (torch's) | fused_adam | cpu_adam (both DeepSpeed's)"
    )
    implementation: Literal["fused", "foreach", "loop"] = key(
        "fused",
        "variant of adamw: fused (fastest) | foreach | loop (the last two give the same bits however shards are cut)",
        only_with=".name=adamw",
    )
    lr: Finite = key(MISSING, "highest learning rate", gt=0)
    base_width: int | None = key(
        None, "hidden size that lr is meant for: a wider model takes lr * base_width / its hidden size; null: lr", ge=1
    )
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = key(
        [0.9, 0.999], "decay rates of Adam's two moments"
    )
    eps: Finite = key(1e-8, "epsilon of Adam", gt=0)
    weight_decay: Finite = key(0.0, "decoupled weight decay, on weights that are not pruned", ge=0)
    no_decay: list[str] = key(
        [],
        "name patterns of parameters without weight decay; one-dimensional ones never have it",
        only_with=".weight_decay",
    )
    trainable: list[str] = key(
        ["*"],
        "name patterns (shell style) of the parameters that train; each must match one, or be `optional:PATTERN`; "
        "all-but-embeddings: all but the tables of tokens and positions and a language model's output matrix; auto: "
        "that for a pretrained model and task=causal_lm, else all",
    )
    head_lr: Finite | None = key(
        None, "learning rate of a new classification head; null: lr", gt=0, only_with="task", inherited=True
    )
    lr_schedule: str = key(
        "linear",
        "after the warm-up: linear or cosine, down to min_lr_ratio; constant; per_cut: linear, back to lr at every cut",
        names_in="pat.learning_rates",
    )
    warmup: Finite = key(0.0, "warm-up, in steps (1 or more) or as a fraction of the run (below 1)", ge=0)
    min_lr_ratio: float = key(
        0.0, "last learning rate, as a share of lr", ge=0, le=1, only_with=".lr_schedule!=constant"
    )


class DistillConfig(Section, frozen=True):
    """Learn a dense teacher's answers: (1 - weight) task + weight T^2 KL(teacher || model) + hidden_weight MSE"""

    teacher: str | None = key(
        None,
        "hub name or folder of a dense model trained on the task, with the same tokenizer; null: no teacher",
    )
    revision: str | None = key(None, "branch, tag or commit of the teacher on the hub", only_with=".teacher")
    cache: str | None = key(
        None, "folder that `pat distill cache` wrote: its drawn answers replace a running teacher; null: none"
    )
    weight: float | None = key(
        None, "share of the teacher's answers in the loss", ge=0, le=1, only_with=".teacher or .cache"
    )
    temperature: Finite = key(
        1.0, "temperature T; above 1, unlikely answers count more", gt=0, only_with=".teacher or .cache"
    )
    hidden_weight: Finite = key(
        0.0,
        "weight of the mean squared difference between the layers' outputs; needs equal hidden sizes; 0: off",
        ge=0,
        only_with=".teacher",
    )
    layer_map: list[int] | None = key(
        None,
        "for each layer of the model, the teacher's layer to match, counted from 0; null: equally spaced",
        only_with=".teacher, .hidden_weight",
    )
    start: int | float = key(
        0,
        "step (a whole number) or fraction of the run (with a point) where both weights start to rise from 0",
        only_with=".teacher or .cache",
    )
    end: int | float | None = key(
        None,
        "step or fraction at which both weights are at their full values; null: from `start` on",
        only_with=".teacher or .cache",
    )

    @property
    def live(self) -> str | None:
        """The teacher that runs beside the model: none where its answers are in a cache."""
        return None if self.cache else self.teacher


class PeftConfig(Section, frozen=True):
    """LoRA adapters on a frozen model, whose structures are pruned: pip install 'pat-deepspeed[peft]'"""

    r: int | None = key(
        None, "rank of the adapters; peft=lora sets 16; null: no adapters, the model itself trains", ge=1
    )
    alpha: Finite = key(16.0, "scale of the adapters, which count alpha / r", gt=0, only_with=".r")
    dropout: float = key(0.0, "dropout on the adapters' input", ge=0, lt=1, only_with=".r")
    target_modules: list[str] | None = key(
        None,
        "names of linear maps that get adapters, e.g. [q_proj, v_proj]; null: all but the output and the head",
        only_with=".r",
    )
    modules_to_save: list[str] | None = key(
        None, "names of modules that train in full; null: a classifier's head, else none", only_with=".r"
    )


class LoggerConfig(Section, frozen=True):
    """Where metrics go, besides metrics.jsonl and summary.json."""

    name: Literal["wandb", "tensorboard", "none"] = key(
        "wandb", "wandb | tensorboard | none; metrics.jsonl and summary.json are always written"
    )
    project: str = key("pat", "project in Weights & Biases")
    entity: str | None = key(None, "user or team in Weights & Biases; null: yours")
    group: str | None = key(None, "group of runs in Weights & Biases")
    tags: list[str] = key([], "tags in Weights & Biases")
    mode: Literal["online", "offline", "disabled"] | None = key(
        None, "online | offline | disabled; null: online with an API key, else offline"
    )
    progress: Literal["auto", "bar", "lines", "none"] = key(
        "auto", "bar | lines | none; auto: a bar on a terminal, elsewhere a line every log_every steps"
    )


class MaskedGradConfig(Section, frozen=True):
    """What happens to the gradient of a masked weight in the soft phase."""

    name: Literal["zero", "straight_through"] = key(
        "zero", "zero: it is dropped | straight_through: it reaches the dense weight"
    )
    sr_ste: float = key(
        0.0,
        "weight decay of masked weights, times lr a step, as weight_decay is (SR-STE, arXiv:2102.04010)",
        ge=0,
        only_with=".name=straight_through",
    )


class PrunerConfig(Section, frozen=True):
    """One named pruner: what it prunes, by which evidence, to which budget, when.

    Of weights (`params`, `granularity`, `criterion`), or of structures (`structures`, `gate`).
    """

    params: list[str] = key(
        [],
        "name patterns (shell style) of matrices to prune; all-linear: the layers' linear maps, experts' included",
    )
    exclude: list[str] = key([], "name patterns of matrices to leave out; each must match one, or be optional:PATTERN")
    granularity: Annotated[Any, Method("granularity")] = key(None, "what is pruned as one unit")
    criterion: Annotated[Any, Method("criterion")] = key(None, "how weights are chosen")
    scope: str = key(
        "global",
        "what is ranked together, and meets the target: global (all matrices) | matrix | row (each output)",
        only_with=".granularity.name!=n_of_m",
        inherited=True,
        names_in="pat.pruning.scopes",
    )
    allow_empty_matrices: bool = key(False, "allow a ranking to remove all weights of a matrix")
    structures: list[str] = key(
        [], "structures to prune: ffn, kv_groups, heads, layers, ...", names_in="pat.pruning.structures.kinds"
    )
    gate: Annotated[Any, Method("gate")] = key(None, "how structures are chosen")
    budget: Annotated[Any, Method("budget")] = key(MISSING, "how much is removed")
    schedule: Annotated[Any, Method("schedule")] = key(
        MISSING, "when it is removed; auto: weights at once, or in six cuts where more than 85 % are to go"
    )
    masked_grad: MaskedGradConfig = key(
        MaskedGradConfig(), "what happens to the gradient of a masked weight in the soft phase"
    )


class Config(Section, frozen=True):
    """Everything."""

    seed: int = key(
        0, "seed of the order of samples, new layers, dropout and the `random` criterion", ge=0, le=2**63 - 1
    )
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
    pruners: dict[str, PrunerConfig] = key({}, "named pruners; {} trains the dense model")
    envelope: dict[str, Annotated[Limit, Field()]] = key(
        {}, "limits of metrics, {METRIC: {ratio: 1.05}}: prune only as far as evaluations stay inside; {}: no limit"
    )

    @field_validator("envelope", mode="before")
    @classmethod
    def _nest(cls, value: Any) -> Any:
        """`slices.min: 0.7` is a bound, as in `pat gate`."""
        return nested(cast("Mapping[Any, Any]", value)) if isinstance(value, Mapping) else value
