"""A Hugging Face model from the config: its weights, or random ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils import logging as transformers_logging

from pat.common.text import did_you_mean
from pat.models import heads, liger
from pat.models.names import folders, require_reachable, to_fetch
from pat.models.weight_files import check_weights
from pat.schema import ModelConfig

if TYPE_CHECKING:
    from pat.tasks.base import Task


log = logging.getLogger(__name__)

SUMMED_UP: Any = AutoModelForSequenceClassification  # a decoder of this kind answers at its last token
HEADED = (SUMMED_UP, AutoModelForTokenClassification)  # models with a head of one output per class
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)  # of the Hugging Face config: a model with none of these has no layers, or cannot be built
# What constructors raise for fields of the config that do not fit.
FLASH = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}  # by transformers' names
UNFIT = (ValueError, TypeError, ImportError, ArithmeticError, AttributeError, LookupError, AssertionError)


def build_config(
    cfg: ModelConfig,
    task: Task,
    num_labels: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    label_names: Sequence[str] | None = None,
) -> PretrainedConfig:
    """The Hugging Face config with `model.config` and the task's classes, and the tokenizer's ids where it has none."""
    fields = dict(cfg.config)
    for key in SIZES:
        if isinstance(fields.get(key), int) and fields[key] < 1:
            raise ValueError(f"model.config.{key} is {fields[key]}, but must be at least 1.")
    if cfg.path is not None:
        config = _config_from_path(cfg, fields)
    elif cfg.init == "random":
        config = _config_from_type(_ids(tokenizer) | fields)
    else:
        raise ValueError("model.path is not set: give a hub name or a folder, or model.init=random for random weights.")
    if tokenizer is not None and (cfg.path or task.auto_model is SUMMED_UP):
        heads.set_pad_token(config, tokenizer.pad_token_id, task.auto_model is SUMMED_UP)
    theirs = heads.labels_of(config) if cfg.path else None
    if task.set_head(config, label_names or [f"LABEL_{i}" for i in range(num_labels or 0)]):
        heads.check(cfg, theirs, _outputs(config))
    return config


def head_note(cfg: ModelConfig, task: Task, config: PretrainedConfig) -> str | None:
    """A sentence on what becomes of the head of model.path, for the start; None where that is obvious.

    ValueError where model.replace_head would be ignored.
    """
    pretrained = cfg.path is not None and cfg.init == "pretrained" and task.auto_model in HEADED
    theirs = heads.labels_of(_config_from_path(cfg, dict(cfg.config))) if pretrained else None
    if cfg.replace_head and theirs is None:
        raise ValueError(
            f"model.replace_head=true would be ignored: model.path={cfg.path} brings no head for "
            f"task.name='{task.name}', so a new one is made anyway; leave it out."
        )
    return heads.note(cfg, theirs, _outputs(config)) if theirs else None


def _outputs(config: PretrainedConfig) -> list[str]:
    return heads.names_of(config)


def build_model(
    cfg: ModelConfig,
    task: Task,
    dtype: torch.dtype,
    num_labels: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    label_names: Sequence[str] | None = None,
    complete: bool = False,
) -> PreTrainedModel:
    """The model that the task trains, in `dtype`, in training mode. Collective under ZeRO 3.

    With `complete`, every weight must be in the files: ValueError where one would be newly initialised.

    Its weights are a function of the files and of `torch.manual_seed`, the same at every ZeRO stage. At ZeRO 3 (an
    `HfDeepSpeedConfig` is alive) only the first rank draws the random numbers, so seed again before the next draw.
    """
    config = build_config(cfg, task, num_labels, tokenizer, label_names)
    options: dict[str, Any] = {"dtype": dtype}
    if cfg.attn_implementation is not None:
        options["attn_implementation"] = cfg.attn_implementation
    with quiet():
        if cfg.init == "random":
            model = _random(task, config, options)
        else:
            model = _pretrained(cfg, task, config, options, complete)
    if cfg.use_liger_kernel:
        liger.apply(model)
    return model.train()


def check_attention(cfg: ModelConfig) -> None:
    """ValueError where the package of this kind of attention is not installed."""
    if cfg.attn_implementation in FLASH and find_spec(FLASH[cfg.attn_implementation]) is None:
        raise ValueError(
            f"model.attn_implementation={cfg.attn_implementation} needs the package {FLASH[cfg.attn_implementation]}: "
            "install it, or take sdpa"
        )


def check_plain(cfg: ModelConfig, config: PretrainedConfig) -> None:
    """ValueError for quantised weights, which nothing can train or prune."""
    if given := getattr(config, "quantization_config", None):
        how = given.get("quant_method") if isinstance(given, dict) else getattr(given, "quant_method", None)
        raise ValueError(
            f"The weights of model.path='{cfg.path}' are quantised ({how or 'quantization_config'}), and cannot be "
            "trained or pruned: give the model that they were made from, and quantise what comes out."
        )


def config_of(cfg: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig | None:
    """The Hugging Face config regardless of the task; None where `build_config` would say what is wrong."""
    try:
        if cfg.path is not None:
            return _config_from_path(cfg, dict(cfg.config))
        return _config_from_type(_ids(tokenizer) | dict(cfg.config))
    except ValueError:
        return None


def _config_from_path(cfg: ModelConfig, fields: dict[str, Any]) -> PretrainedConfig:
    assert cfg.path is not None
    require_reachable(cfg.path, "model.path")
    if "model_type" in fields:
        raise ValueError(f"Give model.path='{cfg.path}' or model.config.model_type='{fields['model_type']}', not both.")
    config: Any
    unused: Any
    try:
        config, unused = AutoConfig.from_pretrained(
            cfg.path, revision=cfg.revision, return_unused_kwargs=True, trust_remote_code=False, **fields
        )
    except OSError as error:
        raise ValueError(
            f"No model could be loaded from model.path='{cfg.path}': misspelt, or offline and not in the local cache"
            f"{did_you_mean(cfg.path, folders('.')) or '.'}{to_fetch(cfg.path)}"
        ) from error
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise ValueError(
            f"model.path='{cfg.path}' with model.config={fields} is refused: {_sentence(error)}"
        ) from error
    unknown = [key for key in fields if key in unused]
    if unknown:
        raise _unknown_fields(config, unknown)
    return config


def _config_from_type(fields: dict[str, Any]) -> PretrainedConfig:
    model_type = fields.pop("model_type", None)
    if model_type is None:
        raise ValueError(
            "model.init=random needs an architecture: give +model.config.model_type=llama, for example, or model.path."
        )
    try:
        default = AutoConfig.for_model(model_type)
    except ValueError as error:
        raise ValueError(
            f"transformers knows no model.config.model_type='{model_type}': it is a name like llama."
        ) from error
    unknown = [key for key in fields if not hasattr(default, key)]
    if unknown:
        raise _unknown_fields(default, unknown)
    try:
        return AutoConfig.for_model(model_type, **fields)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ValueError(f"model.config={fields} is refused by '{model_type}': {_sentence(error)}") from error


def _ids(tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    """The config fields that a new model takes from its tokenizer; the vocabulary is rounded up to a multiple of 8."""
    if tokenizer is None:
        return {}
    return {
        "vocab_size": -(-len(tokenizer) // 8) * 8,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _random(task: Task, config: PretrainedConfig, options: dict[str, Any]) -> PreTrainedModel:
    try:
        if is_deepspeed_zero3_enabled():
            return task.auto_model.from_config(config, **options)
        # torch's own initialisation, which ZeRO 3 leaves out and transformers overwrites, would draw from the same
        # generator. Without it the weights are the same at every stage.
        with no_init_weights():
            model = task.auto_model.from_config(config, **options)
    except UNFIT as error:
        raise unfit(config, task, error) from error
    model.initialize_weights()
    model.tie_weights()
    return model


def _pretrained(
    cfg: ModelConfig, task: Task, config: PretrainedConfig, options: dict[str, Any], complete: bool
) -> PreTrainedModel:
    rng_state = torch.get_rng_state()
    try:
        model, report = task.auto_model.from_pretrained(
            cfg.path,
            config=config,
            revision=cfg.revision,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with the sizes
            **heads.without_head(cfg, task.auto_model, config),
            **options,
        )
    except OSError as error:
        raise ValueError(
            f"No weights could be loaded from model.path='{cfg.path}': misspelt, or offline and not in the local cache."
            + to_fetch(str(cfg.path))
        ) from error
    except SafetensorError as error:
        check_weights(str(cfg.path), "model.path", cfg.revision)
        raise ValueError(f"The weights of model.path='{cfg.path}' cannot be read: {_sentence(error)}") from error
    except (*UNFIT, RuntimeError) as error:
        raise unfit(config, task, error) from error
    if cfg.replace_head:
        heads.renew(model, rng_state)
    for name, saved, wanted in sorted(report["mismatched_keys"]):
        of_head = heads.is_of_head(type(model), name)
        if cfg.replace_head and of_head:
            continue
        raise ValueError(
            f"'{name}' is {tuple(saved)} in '{cfg.path}' but {tuple(wanted)} in the model: "
            "model.config, or the number of classes, does not go with these weights"
            + ("; model.replace_head=true takes a new head." if of_head else ".")
        )
    if report["missing_keys"] and complete:
        raise ValueError(
            f"model.path='{cfg.path}' has no weights for {', '.join(sorted(report['missing_keys']))}: "
            "give a model that was trained on the task."
        )
    if report["missing_keys"]:
        log.warning(
            "not in %s, so newly initialised (unless a checkpoint has them): %s",
            cfg.path,
            ", ".join(sorted(report["missing_keys"])),
        )
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' table and bar of loaded weights, which every rank would print."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


def _unknown_fields(config: PretrainedConfig, unknown: list[str]) -> ValueError:
    allowed = sorted(key for key in config.to_dict() if not key.startswith("_"))
    return ValueError(f"A '{config.model_type}' has no model.config.{unknown[0]}: allowed are {', '.join(allowed)}.")


def unfit(config: PretrainedConfig, task: Task, error: Exception) -> ValueError:
    """A ValueError for what transformers raised while it built a model of this config for the task."""
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return ValueError(f"A '{config.model_type}' cannot be built for task.name='{task.name}': {kind}{_sentence(error)}")


def _sentence(error: Exception) -> str:
    """The most informative line of a long message: transformers' validators put it last, its loaders first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if "alidation error" in lines[0]:
        return lines[-1]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
