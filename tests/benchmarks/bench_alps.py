"""What ALPS's arithmetic costs besides the forwards: by inverses and factors, and by eigenvectors, as it was once.

    python launch/assets.py sotu
    python tests/benchmarks/bench_alps.py

Layers of the Llama on the addresses, half of the weights of each matrix, one thread. For each matrix, in turn: the
processor seconds of preparing and cutting it, the iterations until the mask settles, and the squared error of its
outputs; as shares of the first way's in the summary.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pat.common.files import write_json
from pat.pruning import registry, scopes
from pat.pruning.calibration.statistics import Gram
from pat.pruning.criteria.alps import Alps
from pat.pruning.weights.whole import chooser
from tests.benchmarks.commands import ROOT
from tests.benchmarks.other_data import assets

LAYERS = (3, 15, 27)
MATRICES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
SAMPLES, LENGTH, BATCH = 48, 256, 8
Solve = Callable[[Tensor, float], Tensor]


def by_eigenvectors(gram: Tensor) -> Solve:
    """(R, rho) -> R (H + rho I)^-1: one decomposition serves all rho, and each solve is two products."""
    values, vectors = torch.linalg.eigh(gram)
    return lambda right, rho: (right @ vectors).div_(values + rho) @ vectors.T


WAYS: dict[str, tuple[Alps, Callable[[Tensor], Solve] | None]] = {  # None: as it solves by itself
    "as it is": (Alps(), None),
    "ten refinements": (Alps(refinements=10), None),
    "eigenvectors, ten refinements": (Alps(refinements=10), by_eigenvectors),
}


@dataclass
class Cut:
    """One matrix, cut in one way."""

    seconds: float
    iterations: int
    error: float


def problems() -> dict[str, tuple[Tensor, Tensor]]:
    """Of each matrix its weights (o, i) and the mean of x x^T (i, i) over the tokens."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(assets() / "smollm2", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(assets() / "smollm2")
    ids = list[int]()
    with (assets() / "sotu" / "train.jsonl").open() as rows:
        while len(ids) < SAMPLES * LENGTH:
            ids += tokenizer(json.loads(next(rows))["text"], verbose=False)["input_ids"]
    maps = {f"{n}.{name}": model.model.layers[n].get_submodule(name) for n in LAYERS for name in MATRICES}
    grams = dict[str, Tensor]()

    def add(name: str, module: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        x = inputs[0].flatten(0, 1)
        grams[name] = grams.get(name, 0.0) + x.T @ x / (SAMPLES * LENGTH)

    for name, module in maps.items():
        module.register_forward_hook(partial(add, name))
    with torch.no_grad():
        for batch in torch.tensor(ids[: SAMPLES * LENGTH]).view(-1, BATCH, LENGTH):
            model.model(batch)
    return {name: (module.weight.detach(), grams[name]) for name, module in maps.items()}


def cut(weights: Tensor, gram: Tensor, criterion: Alps, solving: Callable[[Tensor], Solve] | None) -> Cut:
    """Prepare and cut it."""
    choose = chooser("matrix", registry.build("granularity", "weight"), 0.5, scopes.build("matrix"))
    number, began = 0, time.process_time()
    problem = criterion.prepare({Gram: gram.clone()})
    solve: Solve = problem.solve if solving is None else solving(problem.gram)

    def counted(right: Tensor, rho: float) -> Tensor:
        nonlocal number
        number += 1
        return solve(right, rho)

    _, found = criterion.cut(weights.clone(), replace(problem, solve=counted), choose)
    seconds, gap = time.process_time() - began, (weights - found).double()
    return Cut(seconds, number, float(((gap @ gram.double()) * gap).sum()))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "alps.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cuts = dict[str, dict[str, Cut]]()
    for name, (weights, gram) in problems().items():
        cuts[name] = {way: cut(weights, gram, *how) for way, how in WAYS.items()}
    first, summary = next(iter(WAYS)), dict[str, Any]()
    for way in WAYS:
        errors = [each[way].error / each[first].error for each in cuts.values()]
        iterations = [each[way].iterations for each in cuts.values()]
        summary[way] = {
            "seconds": sum(each[way].seconds for each in cuts.values()) / sum(c[first].seconds for c in cuts.values()),
            "error": (min(errors), max(errors)),
            "iterations": (min(iterations), max(iterations)),
        }
        print(
            f"{way}: {summary[way]['seconds']:.3f} of the time, {min(errors):.4f} to {max(errors):.4f} of the error, "
            f"{min(iterations)} to {max(iterations)} iterations"
        )
    matrices = {name: {way: vars(one) for way, one in ways.items()} for name, ways in cuts.items()}
    write_json(options.out, {"command": "python tests/benchmarks/bench_alps.py", "of": summary, "matrices": matrices})


if __name__ == "__main__":
    main()
