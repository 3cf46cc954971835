"""What the walk measures against hooks on the whole model, and that a cut below changes what is measured above."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pat.common.parameters import is_conv1d
from pat.pruning.calibration.statistics import Gram, SquaredNorm
from pat.pruning.calibration.walk import NotCalibrated, Walk, stack_of
from tests import models
from tests.sets import thinned

BOTH = (SquaredNorm, Gram)


def batches(padded: bool = True) -> list[dict[str, Tensor]]:
    made = []
    for seed in range(3):
        ids = torch.randint(3, models.VOCAB, (2, 9), generator=torch.Generator().manual_seed(seed))
        mask = torch.ones_like(ids)
        if padded:
            mask[0, 6:] = 0
        made.append({"input_ids": ids, "attention_mask": mask, "labels": ids})
    return made


def matrices(model: Any) -> list[str]:
    layers = [f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or is_conv1d(module)) and any(name.startswith(one) for one in layers)
    ]


def weight_of(model: Any) -> Any:
    return lambda name: dict(model.named_parameters())[name].detach()


def naive(model: Any, given: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of x x^T over real tokens, of every linear map inside the layers, fp64."""
    sums: dict[str, Tensor] = {}
    tokens, real = 0, torch.empty(0)

    def hook(name: str) -> Any:
        def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].reshape(-1, args[0].shape[-1]).double()[real.reshape(-1)]
            sums[name] = sums.get(name, 0) + x.T @ x

        return see

    handles = [
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(hook(name))
        for name in matrices(model)
    ]
    with torch.no_grad():
        for batch in given:
            real = batch["attention_mask"].bool()
            tokens += int(real.sum())
            model.base_model(**{k: v for k, v in batch.items() if k != "labels"})
    for handle in handles:
        handle.remove()
    return {name: value / tokens for name, value in sums.items()}


@pytest.mark.parametrize("family, variant", thinned(models.cases(), 3))
def test_it_measures_what_hooks_on_the_whole_model_see(family: str, variant: str) -> None:
    model, given = models.model(family, variant), batches()
    expected, names = naive(model, given), matrices(model)
    walk = Walk(model, weight_of(model), stack_of(model, names), given, torch.float32)
    measured = {}
    for layer in walk:
        mine = [name for name in names if name.startswith(f"{layer.name}.")]
        measured |= layer.collect(dict.fromkeys(mine, BOTH))
    assert measured.keys() == expected.keys()
    for name, found in measured.items():
        near: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5 * float(expected[name].abs().max())}
        torch.testing.assert_close(found[Gram].double(), expected[name], **near)
        torch.testing.assert_close(found[SquaredNorm], expected[name].diagonal(), **near)


def test_a_layer_is_measured_on_what_the_pruned_layers_below_give() -> None:
    model, given = models.model("llama"), batches()
    names = matrices(model)
    dense = naive(model, given)
    walk, measured = Walk(model, weight_of(model), stack_of(model, names), given, torch.float32), {}
    for layer in walk:
        mine = [name for name in names if name.startswith(f"{layer.name}.")]
        measured |= {name: found[Gram] for name, found in layer.collect(dict.fromkeys(mine, (Gram,))).items()}
        with torch.no_grad():
            for name in mine:
                model.get_parameter(name).mul_(torch.rand(model.get_parameter(name).shape) > 0.5)
    pruned = naive(model, given)
    first, last = names[0], names[-1]
    torch.testing.assert_close(measured[first].double(), dense[first], rtol=1e-4, atol=1e-5)
    above = [name for name in names if ".2.self_attn.q_proj" in name][0]
    torch.testing.assert_close(measured[above].double(), pruned[above], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(measured[above].double(), dense[above], rtol=1e-2)
    assert last in measured


def test_packed_documents_do_not_see_each_other() -> None:
    """Two documents in a row are measured as in rows of their own; padding does not count."""
    model = models.model("llama")
    first, second = (torch.randint(3, models.VOCAB, (1, n), generator=torch.Generator().manual_seed(n)) for n in (4, 5))
    pad = torch.zeros(1, 2, dtype=torch.long)
    positions = torch.cat([torch.arange(n) for n in (4, 5, 2)])[None]
    packed: dict[str, Tensor] = {
        "input_ids": torch.cat([first, second, pad], 1), "position_ids": positions,
        "attention_mask": (torch.arange(11) < 9).long()[None], "cu_seq_lens": torch.tensor([0, 4, 9, 11]),
    }  # fmt: skip
    apart = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in (first, second)]
    down = "model.layers.2.mlp.down_proj.weight"
    for layer in Walk(model, weight_of(model), "model.layers", [packed], torch.float32):
        measured = layer.collect({down: (Gram,)} if layer.index == 2 else {})
    expected = naive(model, apart)[down]
    near: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5 * float(expected.abs().max())}
    torch.testing.assert_close(measured[down][Gram].double(), expected, **near)


def test_maps_with_one_input_share_what_is_measured() -> None:
    model, given = models.model("llama"), batches()
    names = [f"model.layers.0.self_attn.{kind}_proj.weight" for kind in "qkvo"]
    walk = Walk(model, weight_of(model), "model.layers", given, torch.float32)
    found = next(iter(walk)).collect(dict.fromkeys(names, (Gram,)))
    query, key, value, output = (found[name][Gram] for name in names)
    assert query is key and key is value and value is not output


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_tokens.weight"])
def test_matrices_outside_of_the_layers_are_refused(name: str) -> None:
    with pytest.raises(NotCalibrated, match="exclude it"):
        stack_of(models.model("llama", "GQA, head_dim, untied"), [name])


def test_inputs_that_are_not_finite_name_the_matrix() -> None:
    model = models.model("llama")
    model.get_parameter("model.layers.1.mlp.up_proj.weight").data[0, 0] = torch.inf
    walk = Walk(model, weight_of(model), "model.layers", batches(), torch.float32)
    down = "model.layers.{}.mlp.down_proj.weight".format
    with pytest.raises(NotCalibrated, match="layers.1.mlp.down_proj.weight is not finite"):
        for layer in walk:
            layer.collect({down(layer.index): (Gram,)})


def test_padding_alone_is_no_sample() -> None:
    given = batches()
    for batch in given:
        batch["attention_mask"].zero_()
    with pytest.raises(NotCalibrated, match="no token"):
        Walk(models.model("llama"), weight_of(models.model("llama")), "model.layers", given, torch.float32)
