"""LoRA adapters through the `peft` library: which parameters train, and what the model is called without them.

    y = W x + (alpha / r) B A x        W (out, in) frozen, A (r, in), B (out, r)

The names of an adapted linear map `X` are X.base_layer.weight (and .bias), X.lora_A.default.weight and
X.lora_B.default.weight; its stock names are X.weight and X.bias.

Source: Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from pat.common import patterns
from pat.common.parameters import is_conv1d
from pat.common.typed import named_modules
from pat.models import heads
from pat.schema import PeftConfig

_NAME = "default"  # of the adapter
BASE, _A, _B = "base_layer", f"lora_A.{_NAME}", f"lora_B.{_NAME}"


def inject(
    model: Any,  # of transformers, before DeepSpeed
    cfg: PeftConfig,  # with a rank
    seed: int,  # of A; B begins at 0, so that the adapted model is the model
) -> None:
    """Freeze the model, put adapters into its linear maps, and let these and `modules_to_save` train. ValueError."""
    from peft import LoraConfig, inject_adapter_in_model

    whole = saved_modules(cfg, model)
    names = "|".join(re.escape(name) for name in whole)
    targets = [patterns.plain(name) for name in cfg.target_modules or ()]
    modules = [name for name, _ in model.named_modules()]
    patterns.check("peft.target_modules", cfg.target_modules or (), modules, "module", patterns.ends)
    lora = LoraConfig(
        r=cfg.r or 0,
        lora_alpha=cfg.alpha,  # pyright: ignore[reportArgumentType]  (peft computes alpha / r, whatever the type)
        lora_dropout=cfg.dropout,
        target_modules=targets or "all-linear",
        exclude_modules=rf"(?:{names})(?:\..*)?" if whole else None,
    )
    torch.manual_seed(seed)
    try:
        with warnings.catch_warnings():  # on Conv1D, which peft detects, and ties, refused below
            warnings.simplefilter("ignore", UserWarning)
            inject_adapter_in_model(lora, model, adapter_name=_NAME)
    except ValueError as error:
        linear = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise ValueError(
            f"peft.target_modules={cfg.target_modules} cannot be adapted in a {type(model).__name__}: give names of "
            f"its linear maps ({', '.join(linear)}), or null for all but the output's"
        ) from error
    _check_linear(model, cfg)
    # By identity: a tied output matrix is a parameter of the table of tokens only.
    saved = {id(param) for name in whole for param in model.get_submodule(name).parameters()}
    for name, param in model.named_parameters():
        param.requires_grad_("lora_" in name or id(param) in saved)


def saved_modules(cfg: PeftConfig, model: nn.Module) -> list[str]:
    """The modules that train whole: those that `modules_to_save` names by the end of their path; null: a new head."""
    wanted = cfg.modules_to_save
    if wanted is None:
        with_weights = [name for name, module in model.named_children() if any(True for _ in module.parameters())]
        return [name for name in with_weights if heads.is_of_head(type(model), name)]
    names = [name for name, _ in model.named_modules()]
    patterns.check("peft.modules_to_save", wanted, names, "module", patterns.ends)
    return [module for module in names if any(patterns.ends(module, patterns.plain(name)) for name in wanted)]


def _check_linear(model: nn.Module, cfg: PeftConfig) -> None:
    """ValueError for adapters that cannot be merged into one weight of a linear map."""
    from peft.tuners.lora.layer import Linear, LoraLayer

    owners: dict[int, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(param), []).append(name)
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        if not isinstance(module, Linear):
            raise ValueError(f"peft.target_modules={cfg.target_modules} takes {name}, which is not a linear map")
        shared = owners[id(module.get_base_layer().weight)]
        if len(shared) > 1:
            raise ValueError(
                f"peft.target_modules={cfg.target_modules} takes {name}, whose weight is also "
                f"{next(other for other in shared if not other.startswith(f'{name}.'))}: an adapter could not be "
                "merged into one of them only; leave it out"
            )


def present(model: nn.Module) -> bool:
    """Whether the model has adapters."""
    return any(f".{_A}." in name for name, _ in model.named_parameters())


def stock(model: Any) -> Any:
    """The model without adapters, on the meta device: names and shapes. A model that has none is returned as it is.

    ValueError for a model in peft's wrapper, whose class is not the model's.
    """
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        raise ValueError(
            f"the model is a {type(model).__name__} of the peft library, in which no structures can be pruned: give "
            "the trainer no peft_config and the model itself, or train its adapters with `pat train peft=lora`"
        )
    if not present(model):
        return model
    with torch.device("meta"), no_init_weights():
        plain = type(model)(model.config)
        plain.tie_weights()
    return plain


@dataclass(frozen=True)
class Merge:
    """What is added to a frozen weight, as it is stored, so that the model without adapters computes the same."""

    scale: float  # alpha / r
    inputs_first: frozenset[str]  # weights that are stored as (in, out)

    @classmethod
    def of(cls, cfg: PeftConfig, stock: nn.Module) -> Merge:
        """`cfg`: with a rank; `stock`: the model without adapters."""
        maps = (f"{name}.weight" for name, module in named_modules(stock) if is_conv1d(module))
        return cls(cfg.alpha / (cfg.r or 1), frozenset(maps))

    def delta(self, stock_weight: str, a: Tensor, b: Tensor) -> Tensor:
        """(alpha / r) B A."""
        delta = self.scale * (b @ a)  # (out, in)
        return delta.T if stock_weight in self.inputs_first else delta


def stock_name(name: str) -> str | None:
    """The parameter in the model without adapters; None for an adapter's own."""
    if f".{_A}." in name or f".{_B}." in name:
        return None
    return name.replace(f".{BASE}.", ".")


def adapted_name(stock: str) -> str:
    """The parameter in the model with an adapter on its module: X.base_layer.weight of X.weight."""
    module, _, leaf = stock.rpartition(".")
    return f"{module}.{BASE}.{leaf}"


def factors(stock_weight: str) -> tuple[str, str, str]:
    """The names of W, A and B of an adapted weight."""
    module = stock_weight.removesuffix(".weight")
    return adapted_name(stock_weight), f"{module}.{_A}.weight", f"{module}.{_B}.weight"
