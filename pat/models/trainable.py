"""Which parameters train."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from pat.common import patterns
from pat.models import adapters
from pat.schema import ALL_BUT_EMBEDDINGS, Config


def choose_trainable(model: nn.Module, config: Config) -> None:
    """Freeze what does not train. With `peft` that is all but the adapters, which are inserted here. Raises
    ValueError."""
    if config.peft.r is None:
        freeze(model, config.optim.trainable)
    else:
        adapters.inject(model, config.peft, config.seed)
    patterns.check("optim.no_decay", config.optim.no_decay, [n for n, _ in model.named_parameters()])


def freeze(model: nn.Module, trainable: list[str]) -> None:
    """Leave only the parameters that a pattern names trainable. ValueError for a pattern that names none."""
    names = [n for n, _ in model.named_parameters()]
    patterns.check("optim.trainable", [each for each in trainable if each != ALL_BUT_EMBEDDINGS], names)
    embeddings = {id(param) for param in embedding_parameters(model)}
    others = ALL_BUT_EMBEDDINGS in trainable
    for name, param in model.named_parameters():
        param.requires_grad_(patterns.matches(name, trainable) or (others and id(param) not in embeddings))
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"optim.trainable={trainable} matches no parameter; it has {patterns.in_patterns(names)}")


def embedding_parameters(model: nn.Module) -> Iterator[Tensor]:
    """The tables of tokens, positions and segments, and the output matrix of a language model."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield module.weight
    output = getattr(model, "get_output_embeddings", lambda: None)()
    if isinstance(output, nn.Module):
        yield from output.parameters()
