"""What a run learns from: its task, its tokenizer and its data."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from pat.data import prepare
from pat.data.checks import label_shares
from pat.data.prepare import PreparedData
from pat.models import tokenizers
from pat.schema import Config
from pat.tasks import base
from pat.tasks.base import Task


def prepared_data(config: Config) -> tuple[Task, PreTrainedTokenizerBase, PreparedData]:
    """The task, fitted to the data; the tokenizer; the data, tokenised, from the cache where it is there. ValueError
    for data that the task cannot read."""
    task = base.build(config.task)
    tokenizer = tokenizers.build_tokenizer(config.model)
    data = prepare.prepare(config.data, tokenizer, task, config.seed)
    return task.fitted(label_shares(data)), tokenizer, data
