"""Small random models of every family that pat describes; the conformance tests find a new family by themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from pat.models import families
from pat.models.anatomy import Anatomy
from pat.models.tokenizers import byte_tokenizer
from pat.pruning import registry
from pat.pruning.criteria import Calibrated
from pat.pruning.structures.sites import Site, find_sites

HIDDEN, LAYERS, HEADS, NEURONS, VOCAB = 48, 3, 8, 128, 64
SIZES = {
    "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": 4,
    "intermediate_size": NEURONS, "n_inner": NEURONS, "hidden_dim": NEURONS, "vocab_size": VOCAB,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {  # what a model type needs to be small, or as its published models are
    "deberta-v2": {
        "relative_attention": True, "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4,
        "norm_rel_ebd": "layer_norm",
    },
    **dict.fromkeys(("ernie4_5", "gemma", "ministral", "ministral3", "nemotron"), {"head_dim": 6}),
    "seed_oss": {"head_dim": 6, "residual_dropout": 0.0, "attention_dropout": 0.0},
}  # fmt: skip
FIRST_STAYS = ("modernbert",)  # whose first layer has a form of its own
VARIANTS: dict[str, dict[str, Any]] = {
    "GQA, head_dim, untied": {"head_dim": 8, "tie_word_embeddings": False},
    "MHA, biased, tied": {
        "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "num_key_value_heads": HEADS,
    },
}  # fmt: skip


def config(model_type: str, **fields: Any) -> PretrainedConfig:
    """A small config with those of the fields that the model type has."""
    default = AutoConfig.for_model(model_type)
    own = OWN.get(model_type, {})
    wanted = {**SIZES, **own, **fields}
    return AutoConfig.for_model(model_type, **{k: v for k, v in wanted.items() if hasattr(default, k) or k in own})


def cases() -> Iterator[tuple[str, str]]:
    """(model type, variant), each different config once."""
    for model_type in families.families():
        seen = []
        for variant, fields in VARIANTS.items():
            found = config(model_type, **fields).to_dict()
            if found not in seen:
                seen.append(found)
                yield model_type, variant


def model(model_type: str, variant: str | None = None, auto: Any = None, **fields: Any) -> Any:
    """A random fp32 model in evaluation mode, whose every parameter matters to the logits."""
    key = (model_type, variant, auto, repr(sorted(fields.items())))
    if key not in _MADE:
        with torch.random.fork_rng(devices=[]):  # that it is made here must not change what comes later
            _MADE[key] = _make(model_type, variant, auto, **fields)
    return copy.deepcopy(_MADE[key])


def with_convolution() -> Any:
    """DeBERTa v2 as its largest checkpoints are: with a convolution behind the first layer."""
    made: Any = config("deberta-v2")
    made.conv_kernel_size = 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForMaskedLM.from_config(made, attn_implementation="eager").eval()


_MADE: dict[Any, Any] = {}  # a copy takes a third of the time, and hundreds of tests want the same


def _make(model_type: str, variant: str | None, auto: Any, **fields: Any) -> Any:
    small = config(model_type, **{**(VARIANTS[variant] if variant else {}), **fields})
    auto = auto or (AutoModelForCausalLM if is_causal(small) else AutoModelForMaskedLM)
    built = auto.from_config(small, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in built.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.25)
            if p.dim() == 1 and name.endswith("weight"):
                p.add_(1.0)
    return built


def is_causal(small: PretrainedConfig) -> bool:
    """Whether text is generated with it."""
    return type(small) in transformers.AutoModelForCausalLM._model_mapping and not hasattr(
        transformers, f"{type(small).__name__.removesuffix('Config')}ForMaskedLM"
    )


def tokens(batch: int = 2, length: int = 7) -> Tensor:
    """(batch, length) ids without special tokens."""
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(3))


def sites(anatomy: Anatomy, *structures: str) -> list[Site]:
    """The sites of structures by name."""
    return find_sites(anatomy, [registry.build("structure", name) for name in structures])


def random_keep(found: Sequence[Site], seed: int, uniform: bool, first_stays: bool = False) -> dict[str, Tensor]:
    """Keep flags: as many in every layer, or not; of a structure that is ranked over the layers, some layers."""
    generator = torch.Generator().manual_seed(seed)
    keep: dict[str, Tensor] = {}
    pooled: dict[str, list[Site]] = {}
    for number, site in enumerate(found):
        if not site.features:
            pooled.setdefault(site.structure, []).append(site)
            continue
        count = site.num_units // 2 if uniform else max(1, site.num_units // 2 + (-1) ** number)
        flags = torch.zeros(site.num_units, dtype=torch.bool)
        flags[torch.randperm(site.num_units, generator=generator)[:count]] = True
        keep[site.name] = flags
    for own in pooled.values():
        gone = int(torch.randint(int(first_stays), len(own), (1,), generator=generator))
        keep |= {site.name: torch.tensor([i != gone]) for i, site in enumerate(own)}
    return keep


def random_gates(found: Sequence[Site], keep: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Gate values in [0.5, 1] of what stays (1 for a whole layer), 0 of what goes."""
    generator = torch.Generator().manual_seed(seed)
    values = {site.name: torch.rand(site.num_units, generator=generator) / 2 + 0.5 for site in found}
    return {s.name: torch.where(keep[s.name], values[s.name] if s.gated else torch.ones(1), 0.0) for s in found}


@contextmanager
def gated(built: Any, found: Sequence[Site], gates: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with gates in its forward, as the site says where they are."""
    handles = []
    for site in found:
        module = built.get_submodule(site.consumer)
        gate = gates[site.name]
        if site.features:
            handles.append(module.register_forward_pre_hook(_scale_input(gate.repeat_interleave(site.features))))
        elif site.sublayer is not None:
            handles.append(module.register_forward_hook(_scale_output(gate)))
        else:
            handles.append(module.register_forward_hook(_interpolate(gate), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _scale_input(gate: Tensor) -> Callable[..., Any]:
    return lambda module, args: (args[0] * gate, *args[1:])


def _scale_output(gate: Tensor) -> Callable[..., Any]:
    return lambda module, args, output: output * gate


def _interpolate(gate: Tensor) -> Callable[..., Any]:
    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        before = args[0] if args else kwargs["hidden_states"]
        if isinstance(output, tuple):
            return before + gate * (output[0] - before), *output[1:]
        return before + gate * (output - before)

    return hook


def write_llama(path: Path, seed: int = 0, layers: int = 2) -> Path:
    """A folder with a small Llama over bytes, whose answers are far from uniform."""
    torch.manual_seed(seed)
    small = LlamaConfig(
        vocab_size=320, hidden_size=24, intermediate_size=40, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=256, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(small).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def write_uniform(folder: Path) -> list[Path]:
    """Two folders with Llamas that know nothing, over words and over bytes: equal, and yet of other losses a token."""
    words = ["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(197))]
    of_words = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    of_words.pre_tokenizer = Whitespace()  # pyright: ignore
    named = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    made = []
    for name, tokenizer in {
        "words": PreTrainedTokenizerFast(tokenizer_object=of_words, **named),
        "bytes": byte_tokenizer(),
    }.items():
        small: Any = config("llama", vocab_size=len(tokenizer), tie_word_embeddings=False, pad_token_id=None)
        built = LlamaForCausalLM(small)
        with torch.no_grad():
            built.lm_head.weight.zero_()
        built.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        made.append(folder / name)
    return made


def write_classifiers(folder: Path, names: Sequence[str]) -> list[Path]:
    """Two folders with classifiers over bytes that have the same labels; the second's head is turned round."""
    made = []
    for name, sign in zip(names, (1.0, -1.0), strict=True):
        small = model("bert", auto=AutoModelForSequenceClassification, vocab_size=320)
        with torch.no_grad():
            small.classifier.weight.mul_(sign)
            small.classifier.bias.mul_(sign)
        small.config.id2label, small.config.label2id = {0: "bad", 1: "good"}, {"bad": 0, "good": 1}
        small.save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
        made.append(folder / name)
    return made


def elementwise_criteria() -> list[str]:
    """The names of the criteria that score each weight by itself; the others cut whole matrices by their inputs."""
    return [name for name, cls in registry.classes("criterion").items() if not issubclass(cls, Calibrated)]
