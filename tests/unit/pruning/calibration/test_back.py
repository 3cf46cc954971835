"""What the way back measures against one backward of the whole model."""

from __future__ import annotations

import itertools
import re
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from pat.common.comm import Comm
from pat.pruning.calibration.back import UNSUPERVISED, Squares, own_loss, squares
from pat.pruning.calibration.skeleton import stack_of
from pat.pruning.calibration.walk import NotCalibrated, Walk
from pat.schema import Config, PrunerConfig
from tests import models, one_rank
from tests.sets import thinned
from tests.thread_ranks import run_ranks
from tests.unit.pruning.calibration.test_walk import batches, close, matrices, of_rank, weight_of


def naive(model: Any, given: list[dict[str, Tensor]], names: list[str]) -> dict[str, Squares]:
    """Hooks on the model itself, and one backward for each batch."""
    sums: dict[str, list[Any]] = {name: [0, 0] for name in names}
    tokens = 0
    for batch in given:
        real = batch["attention_mask"].bool().reshape(-1)
        tokens += int(real.sum())

        def see(name: str, real: Tensor = real) -> Any:
            def forward(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                if args[0].shape[:-1].numel() != len(real):
                    return  # of no token: DeBERTa's relative positions

                def back(gradient: Tensor) -> None:
                    sums[name][1] += gradient.reshape(-1, gradient.shape[-1])[real].double().square().sum(0)

                sums[name][0] += args[0].detach().reshape(-1, args[0].shape[-1])[real].double().square().sum(0)
                output.register_hook(back)

            return forward

        handles = [model.get_submodule(n.removesuffix(".weight")).register_forward_hook(see(n)) for n in names]
        own_loss(model, batch).backward()
        for handle in handles:
            handle.remove()
    return {name: Squares(x / tokens, g / tokens) for name, (x, g) in sums.items()}


@pytest.mark.parametrize("family, variant", thinned(models.cases(), 3))
def test_it_measures_what_one_backward_of_the_whole_model_gives(family: str, variant: str) -> None:
    model, given, told = models.model(family, variant).eval(), batches(), list[tuple[int, int]]()
    names = matrices(model)
    on_layer: Any = lambda *at: told.append(at)  # noqa: E731
    walk = Walk(model, weight_of(model), stack_of(model, names), given, torch.float32, on_layer=on_layer)
    found = dict(squares(walk, given, own_loss, names))
    both_ways = 2 * len(walk.layers)
    assert told == [(place, both_ways) for place in range(both_ways + 1)], "each layer is a sign of life"
    expected = naive(model, given, names)
    assert found.keys() == expected.keys()
    for name, measured in found.items():
        for key in ("inputs", "gradients"):
            wanted = getattr(expected[name], key)
            near: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-5 * float(wanted.max())}
            torch.testing.assert_close(getattr(measured, key), wanted, msg=lambda m, n=name: f"{n}: {m}", **near)
    meta = [n for n, p in walk.skeleton.named_parameters() if not p.is_meta]
    assert not meta, "weights are held after the last layer"


def on_ranks(change: Any = lambda walk: None) -> list[Any]:
    """What each of two ranks, with half of the batches, measures or raises; `change` a rank's walk before."""
    model = models.model("llama").eval()
    names = matrices(model)

    def work(comm: Comm) -> dict[str, Squares]:
        given = of_rank(comm.rank)
        walk = Walk(model, weight_of(model), stack_of(model, names), given, torch.float32, comm)
        change(walk)
        return dict(squares(walk, given, own_loss, names))

    return run_ranks(2, work)[0]


def test_means_are_over_the_tokens_of_all_ranks() -> None:
    """Would catch: sums of one rank only. Ranks have different numbers of tokens, so a mean of their means is wrong."""
    model, given = models.model("llama").eval(), batches()
    names = matrices(model)
    walk = Walk(model, weight_of(model), stack_of(model, names), given, torch.float32)
    alone = dict(squares(walk, given, own_loss, names))
    for found in on_ranks():
        assert found.keys() == alone.keys()
        for name, measured in found.items():
            close(measured.inputs, alone[name].inputs)
            close(measured.gradients, alone[name].gradients)


@pytest.mark.parametrize("calls", [1, 4, 7], ids=["forward", "loss", "back"])
def test_no_memory_on_one_rank_is_told_by_both(calls: int) -> None:
    """Would catch: torch's own error, and a rank that waits for one that has left."""

    def change(walk: Walk) -> None:
        count = itertools.count(1)

        def full(*_: Any) -> None:
            if next(count) == calls:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has 3 MiB free.")

        if walk.comm.rank == 1:
            walk.layers[1].register_forward_hook(full)  # three micro-batches, each called three times

    first, second = on_ranks(change)
    assert isinstance(first, NotCalibrated) and isinstance(second, NotCalibrated), (first, second)
    assert str(first) == str(second)
    said = r"no memory to take the loss's gradients .* takes \d.* KiB .*gradient_samples: 0, with scope: matrix"
    assert re.search(said, str(first)) and "micro_batch_size" in str(first)
    assert str(first).endswith("(it asked for 2.50 GiB)")


def test_a_models_own_loss_is_summed_over_the_labels_that_it_counts() -> None:
    """Fails if short rows weigh more: of a causal model the first token of a row is no label."""
    model = models.model("llama", auto=AutoModelForCausalLM).eval()
    ids = torch.arange(12).reshape(3, 4)
    labels = ids.clone()
    labels[0, 2:] = UNSUPERVISED
    logits = model(ids).logits[:, :-1]
    by_hand = nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(own_loss(model, {"input_ids": ids, "labels": labels}), by_hand)
    nothing = own_loss(model, {"input_ids": ids, "labels": torch.full_like(ids, UNSUPERVISED)})
    nothing.backward()
    assert float(nothing.detach()) == 0.0
    assert all(bool((p.grad == 0).all()) for p in model.parameters() if p.grad is not None)


def test_a_loss_that_does_not_depend_on_the_layers_is_refused() -> None:
    model, given = models.model("llama"), batches()
    names = matrices(model)
    walk = Walk(model, weight_of(model), stack_of(model, names), given, torch.float32)
    with pytest.raises(NotCalibrated, match="does not depend on what .* gives"):
        list(squares(walk, given, lambda model, batch: own_loss(model, batch) * 0.0, names))


def test_gradients_that_are_not_finite_name_the_matrix() -> None:
    model, given = models.model("llama"), batches()
    names = matrices(model)
    model.get_parameter("model.layers.2.mlp.down_proj.weight").data[0, 0] = torch.inf
    walk = Walk(model, weight_of(model), stack_of(model, names), given, torch.float32)
    with pytest.raises(NotCalibrated, match=r"layers\.2\..* is not finite .*: the model has diverged"):
        list(squares(walk, given, own_loss, names))


def test_samples_without_labels_are_refused() -> None:
    model, given = models.model("llama"), [{k: v for k, v in b.items() if k != "labels"} for b in batches()]
    names = matrices(model)
    walk = Walk(model, weight_of(model), stack_of(model, names), given, torch.float32)
    with pytest.raises(ValueError, match="have no labels"):
        list(squares(walk, given, own_loss, names))


@pytest.mark.parametrize("gradient_samples", [0, 8])
def test_they_are_refused_before_the_first_step(gradient_samples: int) -> None:
    """Fails if a run of hours ends at its first cut; only where labels are needed."""
    criterion = {"name": "alps", "gradient_samples": gradient_samples}
    pruner = PrunerConfig(
        params=["*.mlp.*.weight"], granularity="weight", criterion=criterion,
        scope="global" if gradient_samples else "matrix",
        budget={"name": "sparsity", "sparsity": 0.5}, schedule={"name": "one_shot", "start": 3},
    )  # fmt: skip
    made = Config().changed(pruners__weights=pruner, train__num_steps=6, optim__lr=1e-3)
    with one_rank.alone():
        _, built = one_rank.build(made, models.model("llama"))
        one_rank.surround(
            built, samples=lambda number: [{k: v for k, v in b.items() if k != "labels"} for b in batches()]
        )
        with pytest.raises(ValueError, match="have no labels") if gradient_samples else nullcontext():
            built.check_calibration()


@pytest.mark.parametrize(("labels", "batches_taken"), [(0, 1), (7, 1), (9, 2), (11, 3), (1000, 3)])
def test_where_samples_have_few_labels_more_of_them_are_taken(labels: int, batches_taken: int) -> None:
    """Fails if the outputs of a model of chats are weighed by the few words of 16 answers. Of two rows each, batches
    have 7, 2 and 3 labels."""
    given = batches()
    for batch, count in zip(given, (7, 2, 3), strict=True):
        batch["labels"] = torch.full_like(batch["input_ids"], UNSUPERVISED)
        batch["labels"].view(-1)[1 : 1 + count] = 5
    criterion = {"name": "alps", "num_samples": 6, "gradient_samples": 2, "gradient_labels": labels}
    pruner = PrunerConfig(
        params=["*.mlp.*.weight"], granularity="weight", criterion=criterion, scope="global",
        budget={"name": "sparsity", "sparsity": 0.5}, schedule={"name": "one_shot", "start": 3},
    )  # fmt: skip
    with one_rank.alone():
        made = Config().changed(pruners__weights=pruner, train__num_steps=6, optim__lr=1e-3)
        _, built = one_rank.build(made, models.model("llama"))
        one_rank.surround(built, samples=lambda number: given[: -(-number // 2)])
        (needs,) = built.calibrations
        _, taken, _ = built.calibrator.back(needs)
    assert len(taken) == batches_taken
