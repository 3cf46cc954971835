"""Layers fitted to what they gave before the cut: the steps against plain autograd on the whole model, and the end."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from pat.common.comm import Comm
from pat.pruning.calibration import reconstruction
from pat.pruning.calibration.hidden import HiddenStates
from pat.pruning.calibration.reconstruction import BETAS, EPSILON, reconstruct
from pat.pruning.calibration.walk import Layer, NotCalibrated, Walk
from tests import models
from tests.thread_ranks import run_ranks
from tests.unit.pruning.calibration.test_walk import batches, matrices, of_rank

LR, INDEX = 1e-3, 1


def halved(model: Any, name: str) -> None:
    weight = model.get_parameter(name).data
    weight[weight.abs() < weight.abs().median()] = 0.0


def whole(model: Any) -> Any:
    return lambda name: model.get_parameter(name).detach().clone()


def gives(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """(B, T, H) what the layer gives, with a graph."""
    found: list[Tensor] = []
    layer = model.model.layers[INDEX]
    handle = layer.register_forward_hook(lambda _, args, out: found.append(out[0] if isinstance(out, tuple) else out))
    model.model(**{k: v for k, v in batch.items() if k != "labels"})
    handle.remove()
    return found[0]


def walked(
    model: Any,
    passes: int,
    given: list[dict[str, Tensor]],
    seed: int = 0,
    lr: float = LR,
    warned: Any = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """The fit of the layer after the matrices of all layers up to it have been halved, each in its turn."""
    walk = Walk(model, whole(model), "model.layers", given, dtype, follow=True)
    walk.warn = lambda title, text: warned.append(text)
    for layer in walk:
        names = [name for name in matrices(model) if name.startswith(f"{layer.name}.")]
        for name in names:
            halved(model, name)
        layer.refresh(names)
        if layer.index == INDEX:
            fitted = dict(reconstruct(layer, names, passes, lr, seed))
            assert fitted or all(torch.equal(layer.walk.skeleton.get_parameter(n), whole(model)(n)) for n in names)
            return fitted
    raise AssertionError


def test_steps_are_those_of_adam_on_the_gradients_of_the_whole_model() -> None:
    """One micro-batch, three passes: rates 1, 2/3, 1/3 of lr; padding does not count, and zeros stay zeros."""
    dense, given = models.model("llama"), batches()[:1]
    fitted = walked(copy.deepcopy(dense), 3, given)
    expected, real = copy.deepcopy(dense), given[0]["attention_mask"].bool()
    for name in matrices(expected):
        if ".0." in name or f".{INDEX}." in name:
            halved(expected, name)
    target = gives(dense, given[0]).detach()[real]
    first = {name: torch.zeros_like(value) for name, value in fitted.items()}
    second = copy.deepcopy(first)
    for t in range(3):
        expected.zero_grad()
        (gives(expected, given[0])[real] - target).square().mean().backward()
        for name in fitted:
            weight = expected.get_parameter(name)
            grad = weight.grad * (weight != 0)
            first[name] = BETAS[0] * first[name] + (1 - BETAS[0]) * grad
            second[name] = BETAS[1] * second[name] + (1 - BETAS[1]) * grad.square()
            mean, size = first[name] / (1 - BETAS[0] ** (t + 1)), second[name] / (1 - BETAS[1] ** (t + 1))
            weight.data -= LR * (1 - t / 3) * mean / (size.sqrt() + EPSILON)
    for name, value in fitted.items():
        torch.testing.assert_close(value, expected.get_parameter(name).data, rtol=1e-4, atol=2e-6)
        assert torch.equal(value == 0, expected.get_parameter(name) == 0), name


def test_a_layer_that_the_cut_did_not_change_is_not_fitted() -> None:
    """Would catch: a fit at three rates, and advice to lower them, where a model is pruned again to the same target."""
    model, warned = models.model("llama"), list[str]()
    walk = Walk(model, whole(model), "model.layers", batches(), torch.float32, follow=True)
    walk.warn = lambda title, text: warned.append(text)
    for layer in walk:
        names = [name for name in matrices(model) if name.startswith(f"{layer.name}.")]
        layer.refresh(names)
        assert not dict(reconstruct(layer, names, 1, LR, 0))
    assert not warned


def test_the_layer_comes_nearer_to_what_it_gave_before() -> None:
    dense, given = models.model("llama"), batches()
    cut = copy.deepcopy(dense)
    fitted = walked(cut, 20, given)

    def error() -> float:
        with torch.no_grad():
            gaps = [gives(cut, b)[b["attention_mask"].bool()] for b in given]
            wanted = [gives(dense, b)[b["attention_mask"].bool()] for b in given]
        return float((torch.cat(gaps) - torch.cat(wanted)).square().mean())

    before = error()
    for name, value in fitted.items():
        cut.get_parameter(name).data.copy_(value)
    after = error()
    assert after < 0.75 * before


def test_a_rate_that_is_too_high_is_lowered_until_the_layer_comes_nearer() -> None:
    """A quarter of it twice, to the same bits as if that had been given; then the layer stays as it was cut."""
    dense, given, warned = models.model("llama"), batches(), list[str]()
    fitted = walked(copy.deepcopy(dense), 5, given, lr=4**2 * 0.1, warned=warned)
    expected = walked(copy.deepcopy(dense), 5, given, lr=0.1)
    assert not warned and all(torch.equal(fitted[name], value) for name, value in expected.items())
    assert walked(copy.deepcopy(dense), 5, given, lr=1e8, warned=warned) == {}
    assert len(warned) == 1 and f"model.layers.{INDEX} stays as it was cut" in warned[0]
    assert "reconstruct_lr=1e+08 and down to 6.25e+06" in warned[0]


def test_gradients_that_fp16_does_not_hold_are_scaled() -> None:
    """With large outputs the sums over tokens pass 65,504; a step on infinities would fit nothing."""
    model, given, warned = models.model("llama"), batches(), list[str]()
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data *= 100
    exact = walked(copy.deepcopy(model), 5, given, lr=1e-2)
    fitted = walked(copy.deepcopy(model), 5, given, lr=1e-2, warned=warned, dtype=torch.float16)
    assert not warned and all(bool(value.isfinite().all()) for value in fitted.values())
    gate = f"model.layers.{INDEX}.mlp.gate_proj.weight"
    cut = copy.deepcopy(model)
    halved(cut, gate)
    moved, wanted = (what[gate] - cut.get_parameter(gate).detach() for what in (fitted, exact))
    assert float(torch.cosine_similarity(moved.flatten(), wanted.flatten(), dim=0)) > 0.9


def test_outputs_that_are_not_finite_are_refused() -> None:
    model = models.model("llama")
    walk = Walk(model, whole(model), "model.layers", batches(), torch.float32, follow=True)
    layer: Layer = next(iter(walk))
    walk.hidden[0] = walk.hidden[0] * torch.inf
    with pytest.raises(NotCalibrated, match="model.layers.0 cannot be reconstructed"):
        dict(reconstruct(layer, [name for name in matrices(model) if ".0." in name], 1, LR, 0))


@pytest.mark.parametrize("when", ["looking", "beginning", "target", "backward", "step"])
def test_no_memory_on_one_rank_is_told_by_both(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: torch's own error, and a rank that waits for one that has left."""
    dense, difference, step = models.model("llama"), reconstruction._difference, reconstruction._Fit.step
    begin = reconstruction._Fit.__init__

    def looked(layer: Layer, *given: Any) -> Tensor:
        if layer.walk.comm.rank == 1 and when == ("backward" if torch.is_grad_enabled() else "looking"):
            raise torch.OutOfMemoryError
        return difference(layer, *given)

    def stepped(fit: Any, *given: Any) -> None:
        if when == "step" and fit.value is not None and fit.shape == (models.HIDDEN, models.NEURONS):
            raise torch.OutOfMemoryError
        step(fit, *given)

    def begun(fit: Any, shape: Any, value: Any, *given: Any) -> None:
        if when == "beginning" and value is not None and shape == (models.HIDDEN, models.NEURONS):
            raise torch.OutOfMemoryError
        begin(fit, shape, value, *given)

    targets: list[HiddenStates] = []  # of rank 1, once for each time that they are read; the first is looking

    def read(states: HiddenStates, place: int) -> Tensor:
        if when == "target" and targets and states is targets[0]:
            targets.append(states)
            if len(targets) == 3:
                raise torch.OutOfMemoryError
        return item(states, place)

    item = HiddenStates.__getitem__
    monkeypatch.setattr(HiddenStates, "__getitem__", read)
    monkeypatch.setattr(reconstruction._Fit, "__init__", begun)
    monkeypatch.setattr(reconstruction, "_difference", looked)
    monkeypatch.setattr(reconstruction._Fit, "step", stepped)

    def work(comm: Comm) -> dict[str, Tensor]:
        model = copy.deepcopy(dense)
        walk = Walk(model, whole(model), "model.layers", of_rank(comm.rank)[:1], torch.float32, comm, follow=True)
        layer = next(iter(walk))
        if comm.rank == 1:
            targets.append(layer.behind())
        names = [name for name in matrices(model) if ".0." in name]
        for name in names:
            halved(model, name)
        layer.refresh(names)
        return dict(reconstruct(layer, names, 1, LR, 0))

    first, second = run_ranks(2, work)[0]
    assert isinstance(first, NotCalibrated) and isinstance(second, NotCalibrated), (first, second)
    assert str(first) == str(second)
    assert re.search(r"no memory to fit model.layers.0 .* about \d.* KiB .*criterion.reconstruct: 0", str(first))
