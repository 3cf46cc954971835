"""What a model is trained for: how rows become tokens, the loss, the metrics. One file for each task, found by its
name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from pat.common import scan

if TYPE_CHECKING:
    import numpy.typing as npt
    from datasets import Dataset, Features
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from pat.schema import DataConfig


Batch = dict[
    str, Tensor
]  # the model's inputs, "labels", and in evaluation "weight", "sample" (its number), "num_samples" (of the split)
# What `pat.training.logit_cache` adds to a training batch: a teacher's draws, how much each counts, its entropy.
DRAWN_IDS, DRAWN_WEIGHTS, ENTROPY = "drawn_ids", "drawn_weights", "teacher_entropy"
NOT_INPUTS = ("labels", "weight", "sample", "num_samples", DRAWN_IDS, DRAWN_WEIGHTS, ENTROPY)
IGNORED = -100  # the label of a token that is not supervised
MULTIPLE = 8  # batches are padded to a multiple of this many tokens: few shapes, aligned matrices


@dataclass(frozen=True)
class Task(ABC):
    """A task; a subclass is a frozen dataclass whose field `name` has its default."""

    name: str
    auto_model: ClassVar[Any]  # a transformers AutoModelFor... class
    # A loss above this times what the model knew before the first step, or what knowing nothing costs, has diverged: a
    # cut may cost some of it
    worse: ClassVar[float] = 3.0
    labelled: ClassVar[bool] = False  # whether the model has one output per class
    per_sample: ClassVar[bool] = False  # whether a sample has one label, instead of one for each token
    by_word: ClassVar[bool] = False  # whether a row has a list of words, and one of their labels
    distribution: ClassVar[bool] = True  # whether softmax(logits) means something
    directions: ClassVar[Mapping[str, bool]]  # metric -> whether higher is better
    best_metric: ClassVar[str]  # by which the best checkpoint is chosen
    headline: ClassVar[str]  # the metric to show
    sample_metric: ClassVar[str]  # the metric that is a weighted mean over samples, see `sample_values`
    uneven: ClassVar[bool] = False  # whether batches of equal size may differ in their number of answers
    options: ClassVar[Mapping[str, Any]] = {}  # of the model's forward
    keys: ClassVar[tuple[str, ...]] = ()  # of the config's other sections, those that only some tasks take

    @abstractmethod
    def columns(self, cfg: DataConfig) -> dict[str, str]:
        """Name in this task -> column of the data set. Rows that agree in all but "label" count as equal."""

    @property
    def chunk_tokens(self) -> int | None:
        """How many rows of logits are computed at a time, where the model does not give all of them."""
        return None

    def columns_in(self, cfg: DataConfig, present: Sequence[str]) -> dict[str, str]:
        """The same for rows with these columns. Raises ValueError."""
        return self.columns(cfg)

    def with_words(self, rows: dict[str, Dataset]) -> dict[str, Dataset]:
        """The rows of each split; labels that are numbers, but not those of classes, as words."""
        return rows

    @abstractmethod
    def label_names(self, train: Dataset) -> list[str] | None:
        """The classes in the training rows, in the order of their numbers; None without classes. Raises ValueError."""

    def set_head(self, config: PretrainedConfig, names: Sequence[str]) -> bool:
        """Give the model's head the outputs that the task needs, one for each class. Returns whether that was possible.

        Without `names` the classes are not known yet.
        """
        return False

    @abstractmethod
    def encoder(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, label_names: Sequence[str] | None
    ) -> Encoder:
        """A new encoder of rows into samples, for one split."""

    def check_model(self, config: PretrainedConfig) -> None:
        """ValueError where this model cannot do what the task needs."""
        return None

    @abstractmethod
    def collate(self, samples: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """Samples (column -> values) as tensors of one shape."""

    def outputs(self, model: Any, batch: Batch, **options: Any) -> Any:
        """The outputs of a module or a DeepSpeed engine for a batch on its device."""
        return model(**inputs(batch), **self.options, **options)

    def loss(self, model: Any, batch: Batch) -> Tensor:
        """0-dim fp32: the mean loss of a batch over what counts in it, with its graph."""
        return self.loss_of(self.outputs(model, batch).logits, batch)

    @abstractmethod
    def loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean loss, fp32, of the model's logits."""

    @abstractmethod
    def supervised(self, batch: Batch) -> Tensor:
        """fp32, shaped as the logits without their last dimension: 1 where they count in the loss, else 0."""

    def fewest_labels(self, max_length: int) -> int:
        """How many labels of a sample count in the loss at least; `max_length` in tokens."""
        return 1

    @abstractmethod
    def sums(self, model: Any, batch: Batch) -> Tensor:
        """fp64, of one shape: what `metrics` needs, summed over the samples of weight 1."""

    def token_sums(self, model: Any, batch: Batch) -> Tensor:
        """(b, 2 or more) fp64, which `sums` adds up: of each sample what `sample_metric` is the mean of, summed; its
        supervised tokens; and what else `metrics` needs.

        Only of tasks with a label a token; of the others (`per_sample`) logits and labels tell all.
        """
        raise NotImplementedError(f"the task {self.name} has one label per sample")

    @abstractmethod
    def metrics(self, sums: Tensor) -> dict[str, float]:
        """The metrics from `sums` added over batches and ranks."""

    @abstractmethod
    def sample_values(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """((b,) fp64, (b,) fp64): `sample_metric` of each sample, and the weights by which its mean is the metric's."""

    def other_means(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """{metric: (b,) fp64} of the other metrics that are means over samples which all count alike."""
        return {}

    def details(self, sums: Tensor, names: Sequence[str]) -> dict[str, Any] | None:
        """More than metrics, as plain values for summary.json; `names` of the classes. None: nothing more."""
        return None

    def fitted(self, shares: Sequence[float]) -> Task:
        """The task, with facts from the training data: how often each class is seen. Raises ValueError."""
        return self

    def evaluate(
        self,
        model: Any,
        batches: Iterable[Batch],
        device: torch.device | str,
        sums: Callable[[Any, Batch], Tensor] | None = None,  # None: `sums`; another also notes what it sees
    ) -> Tensor:
        """fp64 on `device`: this rank's sums. Every rank must bring the same number of batches (ZeRO 3), at least 1."""
        total = torch.zeros((), dtype=torch.float64, device=device)
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                for batch in batches:
                    total = total + (sums or self.sums)(model, batch)
        finally:
            model.train(training)
        return total

    def chance_loss(self, config: PretrainedConfig, labels: npt.NDArray[Any]) -> float:
        """The loss of a model that guesses, in nats: ln(vocabulary). `labels` (n,): those of training, as they are
        learned; none where the texts are."""
        choices: Any = config.get_text_config().vocab_size
        return math.log(choices)

    def higher_is_better(self, metric: str) -> bool:
        """Which way a metric improves; ValueError for one that the task does not have."""
        if metric not in self.directions:
            raise ValueError(
                f"The task '{self.name}' has no metric '{metric}': allowed are {', '.join(self.directions)}."
            )
        return self.directions[metric]


class Encoder(ABC):
    """Rows in, samples out, in order; called with one batch of rows after another."""

    @abstractmethod
    def features(self) -> Features:
        """The samples' columns and their types on disk."""

    batch_rows: ClassVar[int] = 1000  # rows of a call

    @abstractmethod
    def __call__(self, rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Samples (column -> values) made of these rows; may be more or fewer than the rows."""

    def left_over(self) -> int:
        """Tokens that did not make a sample."""
        return 0

    def counts(self) -> dict[str, int]:
        """What else happened to the rows: counts by name."""
        return {}

    def why_none(self) -> str:
        """Why rows made no sample at all, and what to do."""
        return f"{self.left_over()} tokens in all, too few for one sample: give more text, or a smaller data.max_length"


def inputs(batch: Batch) -> Batch:
    """The part of a batch that the model's forward takes."""
    return {key: value for key, value in batch.items() if key not in NOT_INPUTS}


def padded_width(longest: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """`longest` rounded up, but not beyond the model's positions, whose number the tokenizer knows."""
    return max(longest, min(-(-longest // MULTIPLE) * MULTIPLE, tokenizer.model_max_length))


@cache
def classes() -> Mapping[str, type[Task]]:
    """Every task by its name."""
    return scan.named_classes("pat.tasks", "tasks")


def names() -> list[str]:
    """The tasks there are."""
    return list(classes())


def taking(key: str) -> list[str]:
    """The tasks that take a key of the config: one of their own fields, `task.FIELD`, or one among their `keys`."""
    return [
        name for name, cls in classes().items() if key in cls.keys or key in {f"task.{f.name}" for f in fields(cls)}
    ]


def build(cfg: Any) -> Task:
    """The task that a mapping or section with `name` and the task's own fields describes; null means not set."""
    given = dict(cfg)
    given = {key: value for key, value in given.items() if value is not None}
    name = str(given.get("name"))
    if name not in classes():
        raise ValueError(f"There is no task.name='{name}': allowed are {', '.join(names())}.")
    cls = classes()[name]
    allowed = [f.name for f in fields(cls)]
    unknown = [key for key in given if key not in allowed]
    if unknown:
        raise ValueError(f"The task '{name}' does not take task.{unknown[0]}: allowed are {', '.join(allowed)}.")
    return cls(**given)
