"""The proof of logits where two models do not fit into memory: both run with one module's weights at a time.

The trained model has its full shape and the gates in its forward, as in training; the exported one is what its
config.json describes. Nothing here knows what was narrowed. The input of each exported layer is compared with what the
trained model had there and then replaced by it, so that a fault shows in its own layer, against that layer's rounding
only. All is computed in fp64.

# L layers of the trained model, T tokens, d hidden channels
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig
from transformers.initialization import no_init_weights

from pat.checkpoint.reader import CheckpointReader
from pat.export.loader import narrowed
from pat.export.merged import MergedReader
from pat.export.recorded import recorded
from pat.export.stored import Stored, persistent
from pat.export.structures import Structures
from pat.export.verify import ExportError, probe, scaled, tolerated
from pat.models import adapters, families, limits
from pat.models.anatomy import Layer
from pat.schema import PeftConfig
from pat.zero.checkpoint_files import CheckpointError

DTYPE = torch.float64
# The norm of a difference over that of what the layer changes: at the worst position; where weights are rounded anew,
# at the median one, as some positions are much worse than the others. For the figures see verify.py.
LAYER_TOLERANCE = 1e-5
ROUNDED_LAYER_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
MAX_HELD = 1 << 15  # rows of an embedding table that is held: of positions, not of tokens
FLOOR = 1e-3  # of the state itself: the least change that rounding is compared with

Read = Callable[[str], Tensor]  # a parameter or persistent buffer, whole


def streamed_logit_diff(
    reader: CheckpointReader,
    folder: Path,
    auto_model: Any,
    config: PretrainedConfig,  # of the full shape
    dtype: torch.dtype,  # that was written
    structures: Structures,
    peft: PeftConfig,
) -> tuple[float, float, dict[str, Any]]:
    """(largest difference of the logits, that of a layer as a share of what it changes, record of the folder's logits).

    Both differences are measured from the trained model's states before the layer. ExportError, which names the layer,
    where either is too large.
    """
    ids = probe(folder, config).reshape(1, -1)
    ids = ids[:, : limits.positions(config) or ids.numel()]
    trained_reader = reader.trained if isinstance(reader, MergedReader) else reader
    model = _empty(lambda: auto_model.from_config(config, dtype=DTYPE))
    known = config.model_type in families.families()
    layers = families.anatomy(model).layers if known else ()  # of other families the logits only
    names = [layer.name for layer in layers]
    if peft.r is not None:
        with torch.device("meta"):
            adapters.inject(model, peft, seed=0)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(DTYPE)  # adapters are fp32 at first, and cast their inputs
    structures.gate_forward(model)
    trained = _Trained(model, names)
    states = trained.states
    expected = _run(model, ids, lambda name: _trained(trained_reader, name, dtype), trained_reader.buffers())
    del model, trained

    exported = _exported(folder)
    rounded, kept = scaled(reader, structures), _kept(structures, len(names))
    check = _Exported(exported, _numbered(layers, kept), kept, names, states, dtype if rounded else None)
    stored = Stored(folder, exported)
    found = _run_written(exported, ids, stored)
    difference = tolerated(found, expected, dtype, rounded)
    # Each layer began from the trained model's state: a folder that is rounded anew computes other logits by itself
    return difference, check.worst, recorded(ids, _run_written(_exported(folder), ids, stored) if rounded else found)


class _Trained:
    """Notes the hidden states before each layer and behind the last: L + 1 of (1, T, d)."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.states: list[Tensor] = []
        for name in names:
            model.get_submodule(name).register_forward_pre_hook(self._before, with_kwargs=True)
        if names:
            model.get_submodule(names[-1]).register_forward_hook(self._behind)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.states.append(_hidden(args, kwargs))

    def _behind(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.states.append(output[0] if isinstance(output, tuple) else output)


class _Exported:
    """Compares the hidden states of the layers that are left with the trained model's, and goes on from these."""

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],  # of the exported model
        kept: Sequence[int],  # which of the trained model each is
        names: Sequence[str],  # of all layers of the trained model
        states: Sequence[Tensor],
        rounded: torch.dtype | None,  # the dtype that some weights were rounded to; None: none was
    ) -> None:
        self.names, self.states, self.rounded = names, states, rounded
        self.limit = LAYER_TOLERANCE if rounded is None else ROUNDED_LAYER_TOLERANCE[rounded]
        self.worst = 0.0
        before: int | None = None  # the layer that made the states
        for path, index in zip(layers, kept, strict=True):
            hook = self._enters(index, before)
            model.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True)
            before = index
        if layers:
            model.get_submodule(layers[-1]).register_forward_hook(self._leaves(kept[-1]))

    def _enters(self, index: int, before: int | None) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            self._compare(_hidden(args, kwargs), index, before)
            if args:
                return (self.states[index], *args[1:]), kwargs
            return args, kwargs | {"hidden_states": self.states[index]}

        return hook

    def _leaves(self, last: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._compare(output[0] if isinstance(output, tuple) else output, len(self.names), last)

        return hook

    def _compare(self, found: Tensor, index: int, before: int | None) -> None:
        expected = self.states[index]
        change = expected if before is None else expected - self.states[before]
        scale = torch.maximum(change.norm(dim=-1), FLOOR * expected.norm(dim=-1)).clamp(min=torch.finfo(DTYPE).tiny)
        shares = (found - expected).norm(dim=-1) / scale  # (1, T)
        share = float(shares.max() if self.rounded is None or not shares.isfinite().all() else shares.median())
        self.worst = max(self.worst, share)
        if not share <= self.limit:  # NaN, too
            where = "the embedding" if before is None else self.names[before]
            raise ExportError(
                f"{where} of the exported model differs by {share:.1e} of what it changes in the trained one; "
                f"{self.limit:g} is allowed."
            )


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _kept(structures: Structures, layers: int) -> list[int]:
    """Layers that the export claims to keep; a wrong claim shows in the states."""
    if structures.cut is None:
        return list(range(layers))
    return [i for i, there in enumerate(structures.cut.widths.layers) if there]


def _numbered(layers: Sequence[Layer], kept: Sequence[int]) -> list[str]:
    """The modules of these layers in the exported model, which counts anew in each stack."""
    paths: list[str] = []
    count: dict[str, int] = {}
    for index in kept:
        stack = layers[index].stack
        paths.append(f"{stack}.{count.get(stack, 0)}")
        count[stack] = count.get(stack, 0) + 1
    return paths


def _empty(build: Callable[[], Any]) -> Any:
    """A model without weights, whose buffers are computed."""
    with init_empty_weights(include_buffers=False), no_init_weights():
        model = build()
    model.tie_weights()
    model.set_experts_implementation("eager")  # the default one computes nothing in fp64
    return model


def _exported(folder: Path) -> Any:
    """The model that config.json describes, without weights."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    stock: Any = getattr(transformers, (config.architectures or [""])[0])
    made: Any = stock if getattr(config, "pat_widths", None) is None else narrowed(stock)
    return _empty(lambda: made._from_config(config, dtype=DTYPE))


def _trained(reader: CheckpointReader, name: str, dtype: torch.dtype) -> Tensor:
    """A parameter, rounded as it is written; a buffer as it is."""
    return reader.weight(name).to(dtype) if name in reader.parameters else reader.frozen(name)


@torch.no_grad()
def _run(model: Any, ids: Tensor, read: Read, buffers: Sequence[str]) -> Tensor:
    """The logits; every module has its weights only while its own forward runs."""
    names: dict[int, str] = {id(p): name for name, p in model.named_parameters()}  # tied ones under one name
    tokens = model.get_input_embeddings()
    for module in model.modules():
        own = {leaf: names[id(p)] for leaf, p in module.named_parameters(recurse=False)}
        if own:
            if isinstance(module, nn.Embedding) and module.num_embeddings <= MAX_HELD and module is not tokens:
                _give(module, own, read)  # a parent may read it, as DeBERTa's encoder does for relative positions
            else:
                _stream(module, own, read)
    for name in buffers:
        model.get_buffer(name).copy_(read(name))
    model.eval()
    try:
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.double()
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # such as a module that reads its children's weights
        raise ValueError(
            f"{type(model).__name__} does not run with one module in memory at a time ({_line(error)}): export with "
            "--verify logits, which holds two whole models in memory, or with --verify weights"
        ) from error


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _run_written(model: Any, ids: Tensor, stored: Stored) -> Tensor:
    """The logits, with the weights in the folder's files."""
    return _run(model, ids, stored, [name for name, _ in persistent(model)])


def _give(module: nn.Module, own: dict[str, str], read: Read) -> None:
    """Fill a module's empty parameters."""
    for leaf, name in own.items():
        value, shape = read(name), getattr(module, leaf).shape
        if value.shape != shape:
            raise ExportError(f"{name} has the shape {tuple(value.shape)}, not {tuple(shape)}.")
        setattr(module, leaf, nn.Parameter(value.to(DTYPE), requires_grad=False))


def _stream(module: nn.Module, own: dict[str, str], read: Read) -> None:
    """Give a module its parameters before its forward, and take them afterwards."""
    empty = {leaf: getattr(module, leaf) for leaf in own}

    def fill(module: nn.Module, args: Any) -> None:
        _give(module, own, read)

    def drop(module: nn.Module, args: Any, output: Any) -> None:
        for leaf, parameter in empty.items():
            setattr(module, leaf, parameter)

    module.register_forward_pre_hook(fill)
    module.register_forward_hook(drop)
