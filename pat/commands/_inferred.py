"""What a model says of itself where its command is not told: the task, the length of samples, the columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pat.common.files import read_json
from pat.config.quoting import quoted
from pat.run.directory import RunDir
from pat.schema import ANOTHER_TRAINERS

NO_PATH, NO_MORE = r"(?<![\w./'-])", r"(?![\w/]|\.\w)"  # before and behind a key that is no part of a file's name
MAX_LENGTH = 512  # tokens of a sample, unless the model takes fewer or was exported by pat


def model_config(model: str, keys: Sequence[str]) -> Any:
    """The Hugging Face config of the model. Raises ValueError."""
    from transformers import AutoConfig

    from pat.models.names import require_reachable, to_fetch

    if RunDir(Path(model)).config.is_file():
        raise ValueError(f"{model} is a run: make a model of it with pat export {model} --out DIR, and give that")
    require_reachable(model, "MODEL")
    try:
        return AutoConfig.from_pretrained(model, revision=_value(keys, "model.revision"), trust_remote_code=False)
    except (OSError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise ValueError(f"{model} is neither a model's folder nor its name: {said}{to_fetch(model)}") from error


def task_of(model: str, config: Any, keys: Sequence[str]) -> str:
    """The task that a key names, or what the model's head is for. Raises ValueError where that cannot be evaluated."""
    given = _value(keys, "task")
    if given and given.isidentifier():
        return given
    heads = {
        "ForCausalLM": "causal_lm",
        "LMHeadModel": "causal_lm",
        "ForSequenceClassification": "classification",
        "ForTokenClassification": "token_classification",
    }
    names = list(getattr(config, "architectures", None) or [])
    for name in names:
        for head, task in heads.items():
            if name.endswith(head):
                amounts = task == "classification" and getattr(config, "problem_type", None) == "regression"
                return "regression" if amounts else task
    raise ValueError(
        f"{model} is a {' or '.join(names) or 'model without an architecture in its config'}, whose task is not known: "
        "give --task causal_lm, chat, classification, regression or token_classification; for a model that was never "
        "fine-tuned, `pat train recipe=encoder` fine-tunes and prunes it in one run"
    )


def classifies(task: str) -> bool:
    """Whether samples have labels."""
    return task not in ("causal_lm", "chat")


def samples(model: str, config: Any, task: str, max_length: int | None) -> list[str]:
    """The keys of samples of this length, or of that which fits the model, with columns called as in its training."""
    from pat.models import limits

    exported = exported_data(model)
    if max_length is None:
        max_length = exported.get("max_length") or min(MAX_LENGTH, limits.positions(config) or MAX_LENGTH)
    columns = ("text_column", "text_pair_column", "label_column") if classifies(task) else ("text_column",)
    named = [f"data.{name}={quoted(exported[name])}" for name in columns if exported.get(name)]
    return [f"data.max_length={max_length}", *named]


def exported_data(model: str) -> dict[str, Any]:
    """The `data` of the run that an export is of, so that both are evaluated on the same samples; empty: not known."""
    data = ((read_json(Path(model) / "export.json") or {}).get("config") or {}).get("data") or {}
    return {} if data.get("source") == ANOTHER_TRAINERS else data


def by_options(said: str, options: Mapping[str, str], words: Sequence[str]) -> str:
    """An error with options in place of the keys (patterns) that they set, but for keys that were given."""
    for key, option in options.items():
        if not any(re.search(key, word) for word in words):
            said = re.sub(NO_PATH + key, option, said)
    return said


def named_by_export(said: str, model: str | None, keys: Sequence[str]) -> str:
    """Where a column that is missing has its name from."""
    missing = re.match(r"(data\.\w+_column)='.*' is not in", said)
    if not missing or any(key.startswith(f"{missing[1]}=") for key in keys) or not exported_data(str(model)):
        return ""
    what_to_do = "" if f"Give {missing[1]}=" in said else f": give {missing[1]}=NAME"
    return f" It was called so when {model} was trained{what_to_do}."


def _value(keys: Sequence[str], name: str) -> str | None:
    return next((key.partition("=")[2] for key in keys if key.startswith(f"{name}=")), None)
