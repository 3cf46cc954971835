"""What a model sees of a row, by its type: whether it suits a task."""

from __future__ import annotations

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

READ_THE_LAST_POSITION = ("xlnet",)  # of a batch that is padded on the right
BIDIRECTIONAL = ("flaubert", "xlm", "xlnet")  # and have no is_decoder


def check_summary(config: PretrainedConfig) -> None:
    """ValueError for a classifier that reads the last position of each row, where the padding is."""
    if config.model_type in READ_THE_LAST_POSITION:
        raise ValueError(
            f"A classifier of model type '{config.model_type}' reads the last position of a row, and pat pads rows "
            "there: take another encoder"
        )


def check_causal(config: PretrainedConfig) -> None:
    """ValueError for a language model that sees the tokens which it should guess."""
    either = config.model_type in CAUSAL and config.model_type in MASKED and not config.is_encoder_decoder
    if config.model_type in BIDIRECTIONAL or (either and not getattr(config, "is_decoder", True)):
        decoder = "" if config.model_type in BIDIRECTIONAL else ", +model.config.is_decoder=true to make it one"
        raise ValueError(
            f"A '{config.model_type}' sees the tokens behind each one, too, so it would be trained and judged with the "
            f"answer in view: take a decoder{decoder}, or recipe=encoder for a classifier"
        )
