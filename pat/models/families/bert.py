"""BERT and what is built like it: CamemBERT, ELECTRA, ERNIE, RoBERTa, XLM-RoBERTa."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pat.models.anatomy import Anatomy, Attention, Layer, Mlp, base_prefix, describe, projection
from pat.models.families import keep_all_heads

MODEL_TYPES = ("bert", "camembert", "electra", "ernie", "roberta", "xlm-roberta")

ONCE = ("ForSequenceClassification", "ForMultipleChoice", "ForNextSentencePrediction")  # read the first token only


def anatomy(model: Any) -> Anatomy:
    """Post-norm, plain MLP, as many KV heads as heads. ValueError with cross-attention."""
    config = model.config
    if config.add_cross_attention:
        raise ValueError(f"pat does not prune a '{config.model_type}' with add_cross_attention=true: set it to false.")
    stack = f"{base_prefix(model)}encoder.layer"
    heads = config.num_attention_heads
    layers = []
    for i in range(config.num_hidden_layers):
        name = f"{stack}.{i}"
        inputs = tuple(projection(model, f"{name}.attention.self.{x}") for x in ("query", "key", "value"))
        output = projection(model, f"{name}.attention.output.dense")
        attention = Attention(
            f"{name}.attention.self", inputs, output, heads, heads, output.num_inputs // heads,
            cached=config.is_decoder,
        )  # fmt: skip
        up, down = (projection(model, f"{name}.{x}.dense") for x in ("intermediate", "output"))
        mlp = Mlp(f"{name}.intermediate", (up,), down)
        layers.append(Layer(stack, i, (attention, mlp)))
    whole = type(model).__name__.endswith(ONCE)

    def once(name: str) -> bool:
        of_each_token = name.endswith("embeddings_project")  # ELECTRA's narrow embeddings
        return (whole and not of_each_token) or ".pooler." in f".{name}" or "seq_relationship" in name

    return describe(model, False, layers, once)


def drop_layers(config: Any, kept: Sequence[int]) -> None:
    """Set num_hidden_layers to how many are kept, in place; a BERT layer has no setting of its own."""
    config.num_hidden_layers = len(kept)


def narrow(config: Any, kv_heads: int, neurons: int) -> None:
    """The width of the MLP. ValueError for fewer heads: the stock class divides the hidden size by their number."""
    keep_all_heads(config, "hidden_size / num_attention_heads", kv_heads, config.num_attention_heads)
    config.intermediate_size = neurons


def resize(model: Any, attention: Attention, kv_heads: int) -> None:
    """The number of heads, for code that reads it: the forward takes it from the projections."""
    module = model.get_submodule(attention.name)
    module.num_attention_heads = kv_heads
    module.all_head_size = kv_heads * attention.head_dim
