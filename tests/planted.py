"""A tiny Llama in which it is known which units matter, and the data that they explain.

The right units have weights of the usual size; those of the others are so small that what they add is next to nothing.
What is to be learned are the answers of a model without them in which the right ones count twice: each right unit is
needed, and more of it.

Movement does not ask how much a unit adds but whether the loss wants more of it. There all units are of the usual size,
and which ones are right is found by closing and opening each of them a little.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pat.schema import Config, PrunerConfig
from tests import gate_forward, gate_oracle
from tests.gate_choice import Shape, Units, cost
from tests.gate_lagrangian import LEARNED, Options
from tests.gate_oracle import Settings

STEPS, ROWS, TOKENS, MICRO = 10, 4, 12, 2  # steps, sequences a step, tokens of each, micro-batches a step
KEPT = {"ffn": 4, "kv_groups": 2, "heads": 2, "layers": 2, "attention_layers": 2, "mlp_layers": 2}
WEAK = 0.03
INITIAL = 0.3  # of what learned gates close in the end, at the start: all of them open is a limit that is not reached
SHAPE = Shape(vocab=61, hidden=24, layers=4, groups=4, heads_per_group=2, head_dim=6, neurons=10)
LR, WEIGHT_DECAY, MAX_NORM = 1e-3, 0.1, 0.3
EPS = 1e-5  # of Adam: weights with next to no gradient do not turn its rounding into steps
SMOOTHED = {"initial": 1.0, "temperature": 0.3}  # of learned gates: near 0 and 1 a multiplier is hardly determined


@dataclass(frozen=True)
class Tolerance:
    """Of pat against the naive run, in which all that differs is rounding, or where a projection stops.

    Newton's method stops where a constraint is met within 1e-4. Where most gates are decided, sparsity rises by as
    little as 0.01 with the logits of a site: they are only known to 0.01, and gates and folded weights with them. A
    step against the loss moves logits by 0.03. Tied sites are evened again after each of Newton's steps, and not once;
    gates that differ by 0.003 move weights by up to a tenth of Adam's step of LR apart.
    """

    gates: float = 1e-6
    scores: float = 1e-6  # of the largest one
    loss: float = 1e-5
    norm: float = 1e-4  # of itself
    weights: float = 2e-5
    folded: float = 2e-5  # weights after the fold


LEARNED_TOLERANCE = Tolerance(gates=5e-3, scores=4e-3, loss=5e-4, norm=5e-3, folded=5e-3)
TIED_TOLERANCE = Tolerance(gates=4e-2, scores=2e-2, loss=2e-3, norm=2e-2, weights=1e-4, folded=4e-2)


@dataclass(frozen=True)
class Case:
    """One method on some structures under one budget."""

    method: str
    structures: tuple[str, ...]
    budget: str = "shape"  # or parameters | flops | memory
    options: Mapping[str, Any] = field(default_factory=dict)  # of the method
    per_layer: bool = False  # a width for every layer, under a budget of costs

    def __str__(self) -> str:
        return f"{self.method} of {'+'.join(self.structures)} to {self.budget}{' per layer' if self.per_layer else ''}"

    @property
    def shape(self) -> Shape:
        """Heads are units only where each has its own KV head."""
        if "heads" in self.structures:
            return Shape(SHAPE.vocab, SHAPE.hidden, SHAPE.layers, SHAPE.groups, 1, SHAPE.head_dim, SHAPE.neurons)
        return SHAPE

    @property
    def lr(self) -> float:
        """Low where importance was found with the weights of the start."""
        return LR / 1000 if self.method == "movement" else LR

    @property
    def budget_settings(self) -> dict[str, Any]:
        """As a config has it: just what the planted units need."""
        if self.budget == "shape":
            return {"name": "shape", "keep": {name: KEPT[name] for name in self.structures}, "hf_compatible": False}
        sizes = {"flops": {"seq_len": TOKENS}, "memory": {"context": 50, "batch": 3}}.get(self.budget, {})
        given = {"name": self.budget, "hf_compatible": False, "per_layer": self.per_layer, **sizes}
        right = planted(self.shape, self.structures)
        dense = {name: torch.ones_like(flags) for name, flags in right.items()}
        full, left = (cost(self.shape, given, flags) for flags in (dense, right))
        sparsity = int((1 - left / full) * 10_000) / 10_000  # a little less, so that they fit
        return given | {"sparsity": sparsity, "multiple_of": 1}

    @property
    def schedule(self) -> dict[str, Any]:
        """A ramp to the shape; a cost budget at once, as on the way many choices are about as good."""
        if self.method == "movement":
            return {"name": "one_shot", "start": 7, "hard_from": 8}  # the scores are those of open gates
        if self.method in LEARNED:
            return {"name": "cubic", "start": 2, "end": 6, "hard_from": 8, "initial": INITIAL * self.final_sparsity}
        if self.budget == "shape":
            return {"name": "cubic", "start": 3, "end": 7, "hard_from": 8, "select_every": 2}
        return {"name": "one_shot", "start": 4, "hard_from": 8, "select_every": 2}

    @property
    def final_sparsity(self) -> float:
        """What the budget counts: its own sparsity, or of a shape the share of the parameters that could go."""
        if self.budget != "shape":
            return self.budget_settings["sparsity"]
        right = planted(self.shape, self.structures)
        levels = (torch.ones_like, torch.clone, torch.zeros_like)
        full, left, none = (
            cost(self.shape, {"name": "parameters"}, {name: level(flags) for name, flags in right.items()})
            for level in levels
        )
        return (full - left) / (full - none)

    @property
    def tolerance(self) -> Tolerance:
        """What pat and the naive run may differ by."""
        if self.method not in LEARNED:
            return Tolerance()
        tied = self.budget != "shape" and not self.per_layer and len(self.structures) > 1
        return TIED_TOLERANCE if tied else LEARNED_TOLERANCE

    def oracle(self) -> Settings:
        """For the naive implementation."""
        line = self.schedule
        options = {"learned": Options(**self.options)} if self.method in LEARNED else self.options
        return Settings(
            shape=self.shape, structures=self.structures, method=self.method, budget=self.budget_settings,
            start=line["start"], end=line.get("end", line["start"]), hard=line["hard_from"],
            every=line.get("select_every", 1),
            initial=INITIAL if "initial" in line else 0.0, ramp=line["name"], lr=self.lr, weight_decay=WEIGHT_DECAY,
            max_norm=MAX_NORM, eps=EPS, **options,
        )  # fmt: skip

    def pruner(self) -> PrunerConfig:
        """For pat."""
        gate = {"name": self.method, **self.options}
        return PrunerConfig(
            structures=list(self.structures), gate=gate, budget=self.budget_settings, schedule=self.schedule
        )

    def config(self) -> Config:
        """For pat in one process."""
        return Config().changed(
            train__num_steps=STEPS, train__global_batch_size=ROWS, train__micro_batch_size=ROWS // MICRO,
            engine__world_size=1, engine__zero_stage=0, engine__dtype="fp32",
            engine__kernels="eager", engine__gradient_clipping=MAX_NORM,
            optim__lr=self.lr, optim__weight_decay=WEIGHT_DECAY, optim__implementation="loop", optim__eps=EPS,
            pruners__gates=self.pruner(),
        )  # fmt: skip


def planted(shape: Shape, structures: tuple[str, ...]) -> Units:
    """By structure (L, n) bool: the units that matter; never the first ones, which win a tie. Of whole layers the last
    ones, side by side, as pairs of layers tell nothing of one that stands alone."""
    found = {}
    for number, structure in enumerate(structures):
        generator = torch.Generator().manual_seed(number)
        pooled = shape.units(structure) == 1
        rows, width = (1, shape.layers) if pooled else (shape.layers, shape.units(structure))
        flags = torch.zeros(rows, width, dtype=torch.bool)
        if structure == "layers":
            flags[:, -KEPT[structure] :] = True
        for row in () if structure == "layers" else flags:
            row[1 + torch.randperm(width - 1, generator=generator)[: KEPT[structure]]] = True
        found[structure] = flags.T.contiguous() if pooled else flags
    return found


def llama_config(shape: Shape) -> LlamaConfig:
    """Of the shape."""
    return LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.neurons,
        num_hidden_layers=shape.layers, num_attention_heads=shape.groups * shape.heads_per_group,
        num_key_value_heads=shape.groups, head_dim=shape.head_dim, max_position_embeddings=32, pad_token_id=0,
        tie_word_embeddings=True, use_cache=False, initializer_range=0.3, attn_implementation="eager",  # type: ignore[call-arg]
    )  # fmt: skip


def model(shape: Shape, structures: tuple[str, ...], weak: float = WEAK, strong: float = 1.0) -> Any:
    """The Llama with planted units. `weak`: the size of the other ones' weights; `strong`: of what all add."""
    torch.manual_seed(0)
    built = LlamaForCausalLM(llama_config(shape))
    with torch.no_grad():
        for structure, flags in planted(shape, structures).items():
            for i, unit in (~flags).nonzero().tolist():
                for name, dim, start, stop in shape.owned(structure, i, unit):
                    p = built.get_parameter(name)
                    if p.dim() > 1:
                        p.narrow(dim, start, min(stop, p.shape[dim]) - start).mul_(weak)
        for name, p in built.named_parameters():
            if name.endswith(("down_proj.weight", "o_proj.weight")):
                p.mul_(strong)
    return built


def teacher(case: Case) -> Any:
    """The right model, whose answers are to be learned."""
    return model(case.shape, case.structures, weak=0.0, strong=2.0).eval()


def micro_batches(case: Case, number: int = MICRO) -> list[list[dict[str, Tensor]]]:
    """For each step its micro-batches: random tokens, and the right model's probabilities of the next ones."""
    steps = []
    for ids, answers in _data(case.shape, case.structures):
        parts = zip(ids.chunk(number), answers.chunk(number), strict=True)
        steps.append([{"input_ids": i, "answers": p} for i, p in parts])
    return steps


@cache
def _data(shape: Shape, structures: tuple[str, ...]) -> list[tuple[Tensor, Tensor]]:
    """Of each step. Not to be changed: all cases of these structures share it."""
    right, steps = model(shape, structures, weak=0.0, strong=2.0).eval(), []
    for t in range(STEPS):
        generator = torch.Generator().manual_seed(2100 + t)
        ids = torch.randint(1, shape.vocab, (ROWS, TOKENS), generator=generator)
        with torch.no_grad():
            steps.append((ids, right(ids).logits.softmax(-1)))
    return steps


def loss(forward: Any, batch: dict[str, Tensor], t: int) -> Tensor:
    """Cross entropy with the answers, mean over all tokens."""
    logits = forward(input_ids=batch["input_ids"]).logits
    return -(batch["answers"] * logits.log_softmax(-1)).sum(-1).mean()


def student(case: Case) -> Any:
    """The model that is pruned."""
    return model(case.shape, case.structures, weak=1.0 if case.method == "movement" else WEAK)


def right(case: Case) -> Units:
    """The units that have to stay: the planted ones, or for movement those whose gates the loss wants most."""
    if case.method != "movement":
        return planted(case.shape, case.structures)
    built, (structure,) = student(case), case.structures
    data = [batch for step in micro_batches(case)[:8] for batch in step]
    whole = {key: torch.cat([batch[key] for batch in data]) for key in data[0]}
    ones = torch.ones(case.shape.layers, case.shape.units(structure))
    wanted = torch.empty_like(ones)
    for i, unit in itertools.product(*map(range, ones.shape)):
        losses = []
        for change in (-0.02, 0.02):
            z = ones.clone()
            z[i, unit] += change
            losses.append(float(loss(gate_forward.gated(built, case.shape, {structure: z}), whole, 0)))
        wanted[i, unit] = losses[0] - losses[1]
    best = wanted.T if wanted.shape[1] == 1 else wanted
    flags = best >= best.topk(KEPT[structure]).values[:, -1:]
    return {structure: flags.T if wanted.shape[1] == 1 else flags}


def expected(case: Case, loss_fn: Any = loss) -> list[gate_oracle.Record]:
    """The naive run of a case."""
    data = micro_batches(case)
    return gate_oracle.run(student(case), loss_fn, data, case.oracle())


def joined(case: Case, units: Units) -> Tensor:
    """(U,) as pat has it: site after site, the layers of a structure in order."""
    return torch.cat([units[name].flatten() for name in case.structures])
