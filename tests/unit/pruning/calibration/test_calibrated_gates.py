"""Gates that cut by the inputs of consuming matrices: against every subset, normal equations and the paper's formula,
and which units go in a real run."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from pat.models import adapters
from pat.pruning import registry
from pat.pruning.calibration.gap import Gap
from pat.pruning.calibration.hidden import HiddenStates
from pat.pruning.calibration.needs import Needs
from pat.pruning.calibration.statistics import Gram, Mean, SquaredNorm
from pat.pruning.calibration.walk import NotCalibrated
from pat.pruning.gates import obs
from pat.pruning.gates.obs import Obs, removals_
from pat.pruning.pruner import Pruner
from pat.pruning.structures import calibrated
from pat.pruning.structures.sites import Site
from pat.schema import Config, PeftConfig, PrunerConfig
from tests import models, one_rank
from tests.unit.pruning.calibration.test_walk import batches

STEPS, AT = 5, 2
TINY = 1e-12


def problem(seed: int, inputs: int = 8, outputs: int = 5, tokens: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """fp64 (weights, bias, inputs): that depend on each other, of different sizes, with a mean."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = normal(tokens, inputs) @ normal(inputs, inputs) * torch.logspace(-0.5, 0.5, inputs) + normal(inputs)
    return normal(outputs, inputs), normal(outputs), x


def measured(x: Tensor) -> dict[Any, Tensor]:
    return {Gram: x.T @ x / len(x), Mean: x.mean(0)}


def least_squares(weights: Tensor, bias: Tensor | None, x: Tensor, on: list[int]) -> tuple[Tensor, Tensor, float]:
    """(weights, bias, mean square error) of the best map from the inputs `on` to what all of them give."""
    wanted = x @ weights.T + (0.0 if bias is None else bias)
    seen = x[:, on] if bias is None else torch.cat([x[:, on], torch.ones(len(x), 1, dtype=x.dtype)], 1)
    found = torch.linalg.lstsq(seen, wanted).solution
    error = float((seen @ found - wanted).square().sum(1).mean())
    return found[: len(on)].T, found[len(on) :].squeeze(0), error


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("features", "chunk"), [(1, 64), (1, 3), (2, 64)])
def test_survivors_and_bias_solve_the_normal_equations(
    features: int, chunk: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obs, "CHUNK", chunk)
    weights, bias, x = problem(0)
    given = bias if with_bias else None
    fit = Obs(damping=TINY).cut(weights, given, features, measured(x), None, 8 // features // 2)
    on = fit.keep.repeat_interleave(features).nonzero().squeeze(1).tolist()
    expected, shifted, _ = least_squares(weights, given, x, on)
    torch.testing.assert_close(fit.weights[:, on], expected, rtol=1e-6, atol=1e-8)
    assert not fit.weights[:, ~fit.keep.repeat_interleave(features)].any()
    if with_bias:
        torch.testing.assert_close(fit.bias, shifted, rtol=1e-6, atol=1e-8)
    else:
        assert fit.bias is None


@pytest.mark.parametrize("repair", [0.5, 1.0])
@pytest.mark.parametrize("with_bias", [False, True])
def test_what_is_missing_is_made_up_for(with_bias: bool, repair: float) -> None:
    """The fit of W x + repair e, by least squares on the tokens themselves."""
    weights, bias, x = problem(4)
    generator = torch.Generator().manual_seed(5)
    e = torch.randn(len(x), 5, generator=generator, dtype=torch.float64) + x[:, :5]
    given, gap = bias if with_bias else None, Gap(e.T @ x / len(x), e.mean(0))
    fit = Obs(damping=TINY, repair=repair).cut(weights, given, 1, measured(x), gap, 4)
    on = fit.keep.nonzero().squeeze(1).tolist()
    wanted = x @ weights.T + repair * e + (bias if with_bias else 0.0)
    seen = torch.cat([x[:, on], torch.ones(len(x), int(with_bias), dtype=x.dtype)], 1)
    expected = torch.linalg.lstsq(seen, wanted).solution
    torch.testing.assert_close(fit.weights[:, on], expected[:4].T, rtol=1e-6, atol=1e-8)
    if with_bias:
        torch.testing.assert_close(fit.bias, expected[4], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("features", [1, 2])
def test_what_stays_is_near_the_best_of_all_subsets(features: int, seed: int) -> None:
    """Would catch: the worst units, or those of an order that forgets what has gone already."""
    weights, _, x = problem(seed)
    units, stay = 8 // features, 4 // features

    def error(chosen: tuple[int, ...]) -> float:
        on = [u * features + f for u in chosen for f in range(features)]
        return least_squares(weights, None, x, on)[2]

    errors = {chosen: error(chosen) for chosen in combinations(range(units), stay)}
    fit = Obs(damping=TINY).cut(weights, None, features, measured(x), None, stay)
    mine = errors[tuple(fit.keep.nonzero().squeeze(1).tolist())]
    ranked = sorted(errors.values())
    assert mine <= 1.3 * ranked[0] or mine <= ranked[len(ranked) // 20], (mine, ranked[:4])


@pytest.mark.parametrize(("features", "chunk"), [(1, 64), (1, 3), (2, 64)])
def test_each_unit_that_goes_is_the_one_that_costs_least_then(
    features: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZipLM's greedy order, with every cost taken anew by least squares; the costs add up to the error. Units of one
    input are taken out by columns of a Cholesky factor, those of several as the formula says."""
    monkeypatch.setattr(obs, "CHUNK", chunk)
    weights, _, x = problem(1)
    order, costs = removals_(weights.clone(), torch.linalg.inv(measured(x)[Gram].double()), features, 8 // features)
    whole = float((x @ weights.T).square().sum(1).mean())
    left, before = list(range(8 // features)), 0.0
    for unit, cost in zip(order.tolist(), costs.tolist(), strict=True):
        after = {}
        for candidate in left:
            on = [u * features + f for u in left if u != candidate for f in range(features)]
            after[candidate] = least_squares(weights, None, x, on)[2] if on else whole
        assert unit == min(after, key=lambda u: after[u])
        assert cost == pytest.approx(after[unit] - before, rel=1e-6)
        before = after[unit]
        left.remove(unit)


def test_an_input_that_is_always_zero_goes_first_and_none_at_all_is_refused() -> None:
    weights, bias, x = problem(2)
    x[:, 3] = 0.0
    fit = Obs().cut(weights, None, 1, measured(x), None, 7)
    assert fit.keep.tolist() == [True] * 3 + [False] + [True] * 4
    x[:, 5] = 2.0
    constant = Obs().cut(weights, bias, 1, measured(x), None, 6)
    assert not constant.keep[[3, 5]].any(), "the bias takes over from an input that never changes"
    torch.testing.assert_close(constant.bias, bias + 2.0 * weights[:, 5], rtol=0.05, atol=0.05)
    still = measured(torch.ones_like(x))
    for own_bias, inputs, words in ((None, measured(0.0 * x), "are 0 on"), (bias, still, "are 0 or never change on")):
        with pytest.raises(ValueError, match=f"all inputs {words} .*; give other samples .*another gate"):
            Obs().cut(weights, own_bias, 1, inputs, None, 4)


@pytest.mark.parametrize("wrong", [{"damping": 0.0}, {"num_samples": 0}, {"repair": 2}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"gate.{next(iter(wrong))} is "):
        registry.build("gate", {"name": "obs", **wrong})


# -- a real run --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank.alone():
        yield


def config(structures: list[str], budget: dict[str, Any], schedule: Any = None, gate: Any = "obs") -> Config:
    narrow = PrunerConfig(
        structures=structures, gate=gate, budget={"multiple_of": 1, "hf_compatible": False} | budget,
        schedule=schedule or {"name": "one_shot", "start": AT},
    )  # fmt: skip
    return Config().changed(
        train__num_steps=STEPS, engine__zero_stage=0, engine__dtype="fp32", engine__kernels="eager", optim__lr=1e-3,
        optim__implementation="loop", pruners__narrow=narrow,
    )  # fmt: skip


def shape(**keep: int) -> dict[str, Any]:
    return {"name": "shape", "keep": keep}


def trained(made: Config, model: Any, steps: int = STEPS) -> tuple[Any, list[dict[str, Tensor]]]:
    """(pruner, the weights when the forward of each step begins)."""
    engine, pruner = one_rank.build(made, model)
    one_rank.surround(pruner, samples=lambda number: batches())
    seen = []
    for t in range(steps):
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        inputs = {key: value for key, value in batches()[t % 3].items() if key != "labels"}
        engine.backward(next(iter(engine(**inputs).values())).square().mean())
        pruner.step(t)
    seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
    return pruner, seen


def real_inputs(model: Any, module: str, outputs: bool = False) -> Tensor:
    """(N, i) fp64 what goes into a module, or what it gives, of the tokens that are no padding."""
    found: list[Tensor] = []

    def see(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], given: Any) -> None:
        given = given[0] if isinstance(given, tuple) else given
        found.append(given if outputs else args[0])

    handle = model.get_submodule(module).register_forward_hook(see, with_kwargs=True)
    with torch.no_grad():
        for batch in batches():
            model.base_model(**{k: v for k, v in batch.items() if k != "labels"})
    handle.remove()
    masks = [batch["attention_mask"].bool() for batch in batches()]
    return torch.cat([x[mask] for x, mask in zip(found, masks, strict=True)]).double()


def missing(dense: Any, now: Any, site: Site, module: str) -> Tensor:
    """(N, o) fp64 of the residual behind a site's sublayer in a Llama or GPT-2; else of what the module gives."""
    outputs, stack = True, {"llama": "model.layers", "gpt2": "transformer.h"}.get(dense.config.model_type)
    if stack is not None:
        layer = f"{stack}.{site.layer}"
        outputs = site.structure == "ffn"
        module = layer if outputs else f"{layer}.post_attention_layernorm"
    return real_inputs(dense, module, outputs) - real_inputs(now, module, outputs)


@pytest.mark.parametrize(
    ("family", "keep"),
    [
        ("llama", {"ffn": 40, "kv_groups": 2}),
        ("bert", {"ffn": 40, "heads": 3}),
        ("gemma2", {"ffn": 40}),
        ("gpt2", {"ffn": 40}),
    ],
)
def test_units_go_layer_by_layer_and_what_reads_them_is_fitted(family: str, keep: dict[str, int]) -> None:
    """Flags, weights and biases of every site against the method on what the cut model really gives there, attention
    before the MLP, and every other parameter as it was; then training goes on, and what is gone stays 0."""
    gate = {"name": "obs", "damping": 0.1}  # there are fewer tokens than neurons
    model = models.model(family)
    pruner, seen = trained(config(list(keep), shape(**keep), gate=gate), model)
    (narrow,) = pruner.structure_pruners
    expected, method = models.model(family), registry.build("gate", gate)
    later = config(list(keep), shape(**keep), {"name": "one_shot", "start": STEPS - 1})
    _, dense = trained(later, models.model(family), AT)  # the same steps without the cut that follows them
    for name, value in dense[-1].items():
        expected.get_parameter(name).data.copy_(value)
    base, flags = copy.deepcopy(expected), narrow.keep_flags()
    for site in sorted(narrow.sites, key=lambda site: (site.layer, site.sublayer)):
        made = calibrated.reader(narrow.anatomy, site)
        weight = expected.get_parameter(made.weight)
        bias = None if made.bias is None else expected.get_parameter(made.bias)
        x = measured(real_inputs(expected, made.module))
        e = missing(base, expected, site, made.module)
        gap = Gap(e.T @ real_inputs(expected, made.module) / len(e), e.mean(0))
        turned = weight.T if family == "gpt2" else weight  # outputs first
        given = turned.detach(), None if bias is None else bias.detach()
        fit = method.cut(*given, site.features, x, gap, keep[site.structure])
        assert torch.equal(flags[site.name].bool(), fit.keep), site.name
        fitted = fit.weights.T if family == "gpt2" else fit.weights
        torch.testing.assert_close(seen[AT][made.weight], fitted, rtol=1e-3, atol=1e-3)
        weight.data.copy_(fitted)
        if bias is not None:
            assert fit.bias is not None
            assert made.bias is not None
            torch.testing.assert_close(seen[AT][made.bias], fit.bias, rtol=1e-3, atol=1e-3)
            bias.data.copy_(fit.bias)
    readers = {calibrated.reader(narrow.anatomy, site) for site in narrow.sites}
    changed = {made.weight for made in readers} | {made.bias for made in readers}
    for name in set(seen[AT]) - changed:
        same = (seen[AT][name] == dense[-1][name]) | (seen[AT][name] == 0)
        assert bool(same.all()), name
    pruner.check()
    pruner.check_finished()
    assert pruner.totals.sparsity == pruner.totals.target


@pytest.mark.parametrize(("family", "keep"), [("llama", {"ffn": 40, "kv_groups": 2}), ("gpt2", {"ffn": 40})])
def test_reconstruction_brings_layers_nearer_and_leaves_what_is_gone(family: str, keep: dict[str, int]) -> None:
    """The same units go, in the first layer, and what the layer gives comes nearer to what it gave before."""
    dense, gaps, flags = models.model(family), dict[int, float](), dict[int, Any]()
    for passes in (0, 8):
        gate = {"name": "obs", "damping": 0.1, "reconstruct": passes} | ({"reconstruct_lr": 1e-3} if passes else {})
        made = config(list(keep), shape(**keep), {"name": "one_shot", "start": 1}, gate).changed(optim__lr=1e-12)
        model = models.model(family)
        pruner, _ = trained(made, model, 1)
        pruner.check()
        first = f"{'model.layers' if family == 'llama' else 'transformer.h'}.0"
        gaps[passes] = float((real_inputs(dense, first, True) - real_inputs(model, first, True)).square().mean())
        (narrow,) = pruner.structure_pruners
        first_sites = [site.name for site in narrow.sites if site.layer == 0]
        flags[passes] = [narrow.keep_flags()[name].tolist() for name in first_sites]
    assert flags[0] == flags[8]
    assert gaps[8] < 0.9 * gaps[0], gaps


@pytest.mark.parametrize("per_layer", [False, True])
def test_budgets_of_cost_take_counts_from_a_first_walk(per_layer: bool) -> None:
    """The target is met, layers of unlike worth get unlike widths, and no unit is chosen by its index."""
    budget = {"name": "parameters", "sparsity": 0.2, "per_layer": per_layer}
    model = models.model("llama")
    pruner, _ = trained(config(["ffn"], budget), model)
    (narrow,) = pruner.structure_pruners
    counts = narrow.counts()["ffn"]
    assert (len(set(counts)) > 1) == per_layer
    gone = narrow.units.removed(narrow.state.keep)
    unit = narrow.units.removed(torch.tensor([False] + [True] * (sum(narrow.units.sizes) - 1)))
    assert 0 <= gone - 0.2 * sum(p.numel() for p in model.parameters()) < 3 * unit
    pruner.check()


def test_it_is_nearer_to_the_dense_model_than_activation_norms_are() -> None:
    """Would catch: survivors that are not fitted."""
    near = {}
    for gate in ("obs", "plain"):
        model, dense = models.model("llama"), models.model("llama")
        made = config(["ffn"], shape(ffn=64), {"name": "one_shot", "start": 1}).changed(optim__lr=1e-12)
        pruner, seen = trained(made, model, 1)
        if gate == "plain":
            for site in pruner.structure_pruners[0].sites:
                down = calibrated.reader(pruner.structure_pruners[0].anatomy, site).weight
                weight = dense.get_parameter(down).detach()
                norms = real_inputs(dense, down.removesuffix(".weight")).square().mean(0).float() * weight.square().sum(
                    0
                )
                alive = torch.zeros_like(norms).scatter_(0, norms.topk(64).indices, 1.0)
                model.get_parameter(down).data.copy_(weight * alive)
        with torch.no_grad():
            gaps = [
                (dense(**b).logits - model(**b).logits)[b["attention_mask"].bool()].square().mean() for b in batches()
            ]
        near[gate] = float(sum(gaps))
    assert near["obs"] < 0.7 * near["plain"], near


LINEAR = {"name": "linear", "start": 1, "end": 3}


@pytest.mark.parametrize(
    ("family", "made", "said"),
    [
        ("llama", config(["layers"], shape(layers=2)), "none reads layers: take ffn, heads or kv_groups"),
        ("llama", config(["ffn"], shape(ffn=64), LINEAR), "soft from step 1 to step 3: take schedule.name=one_shot"),
        (
            "llama",
            config(["ffn"], shape(ffn=64)).changed(
                pruners__groups=PrunerConfig(
                    structures=["kv_groups"], gate="l0", budget=shape(kv_groups=2), schedule=LINEAR
                )
            ),
            "calibrated at step 2, when the gates of pruners.groups still move, until step 3",
        ),
    ],
    ids=["layers", "a soft phase", "other gates that move"],
)
def test_settings_that_are_refused(family: str, made: Config, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Pruner(made).attach(models.model(family))


def test_a_frozen_bias_is_refused() -> None:
    """Would catch: the mean of what is gone, lost without a word."""
    model = models.model("bert")
    model.get_parameter("bert.encoder.layer.1.output.dense.bias").requires_grad_(False)
    with pytest.raises(
        ValueError, match="fits bert.encoder.layer.1.output.dense.bias, which optim.trainable leaves frozen"
    ):
        Pruner(config(["ffn"], shape(ffn=64))).attach(model)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("gate", ["obs", {"name": "obs", "reconstruct": 2}])
def test_under_adapters_the_cut_is_that_of_the_merged_model(model_type: str, gate: Any) -> None:
    """The same units go, and the same weights are fitted, as in a plain model that peft's own merge has made. The
    fit is in the frozen weights: adapters stay as they are."""
    made = config(["ffn"], shape(ffn=64), {"name": "one_shot", "start": 1}, gate)
    adapted, merged = with_adapters(model_type), merged_by_peft(with_adapters(model_type))
    lora = made.changed(peft__r=3, peft__alpha=6.0)
    _, by_adapters = one_rank.build(lora, adapted)
    _, plain = one_rank.build(made, merged)
    names = calibrated.readers(plain.structure_pruners[0].anatomy, plain.structure_pruners[0].sites)
    own = {name: p.detach().clone() for name, p in adapted.named_parameters() if p.requires_grad}
    for pruner in (by_adapters, plain):
        one_rank.surround(pruner, samples=lambda number: batches())
        pruner.begin(1)
        pruner.check()
    flags = plain.structure_pruners[0].keep_flags()
    assert flags.keys() == by_adapters.structure_pruners[0].keep_flags().keys()
    for site, keep in flags.items():
        assert torch.equal(keep, by_adapters.structure_pruners[0].keep_flags()[site]) and 0 < keep.sum() < len(keep)
    for name in names:
        fitted = merged.get_parameter(name).detach()
        assert (by_adapters.calibrator.weights.whole(name) - fitted).norm() < 2e-3 * fitted.norm(), (
            name
        )  # of few tokens: 1e-3
    assert own and all(torch.equal(adapted.get_parameter(name), value) for name, value in own.items())
    inputs = {key: value for key, value in batches()[0].items() if key != "labels"}
    with torch.no_grad():
        found, expected = (next(iter(model.eval()(**inputs).values())) for model in (adapted, merged))
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_under_adapters_what_is_removed_is_not_fitted(stored: torch.dtype) -> None:
    """Frozen weights are rounded, so less what the adapters add they are not quite 0. Fails if Adam, whose steps are of
    the rate whatever the gradient, turns removed neurons on again, which the gates then close."""
    adapted = with_adapters("llama")
    for name, param in adapted.named_parameters():
        param.data = param.data * 0.3 if "lora_" in name else param.data.to(stored)
    fitted = {"name": "obs", "reconstruct": 4, "reconstruct_lr": 3e-3}
    made = config(["ffn"], shape(ffn=64), {"name": "one_shot", "start": 1}, fitted).changed(peft__r=3, peft__alpha=6.0)
    _, pruner = one_rank.build(made, adapted)
    one_rank.surround(pruner, samples=lambda number: batches(), warn=lambda title, text: None)
    pruner.begin(1)
    structures = pruner.structure_pruners[0]
    for site in structures.sites:
        name = calibrated.reader(structures.anatomy, site).weight
        weights, keep = pruner.calibrator.weights.whole(name), structures.keep_flags()[site.name].bool()
        assert weights[:, ~keep].abs().max() < 1e-2 * weights[:, keep].abs().max(), "no more than rounding"
        assert weights[:, ~keep].square().mean().sqrt() < 1e-3 * weights[:, keep].square().mean().sqrt()


def with_adapters(model_type: str) -> Any:
    """A model whose adapters give something."""
    model = models.model(model_type)
    adapt(model)
    return model


def adapt(model: Any) -> None:
    """Give it adapters as after some training."""
    adapters.inject(model, PeftConfig(r=3, alpha=6.0), seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "lora_" in name:
                param.copy_(torch.randn(param.shape, generator=generator) * 0.2)


def merged_by_peft(model: Any) -> Any:
    """The model without adapters, from peft's own merge."""
    from peft.tuners.lora.layer import LoraLayer

    plain = type(model)(copy.deepcopy(model.config))
    for module in model.modules():
        if isinstance(module, LoraLayer):
            layer: Any = module
            layer.merge()
    saved = {adapters.stock_name(name): p for name, p in model.named_parameters()}
    plain.load_state_dict({name: p for name, p in saved.items() if name is not None}, strict=False)
    return plain


@pytest.mark.parametrize(
    ("family", "structure", "adapted"),
    [("bert", "layers", False), ("llama", "layers", True), ("llama", "kv_groups", True), ("bert", "heads", True)],
)
def test_a_walk_computes_with_final_gates_that_are_in_no_weight(family: str, structure: str, adapted: bool) -> None:
    """A layer that is dropped gives its input, also behind a norm, and under adapters no gate is folded. So does the
    model as it was, which a walk may follow."""
    made = config([structure], shape(**{structure: 2}), {"name": "one_shot", "start": 3}, "taylor")
    model = with_adapters(family) if adapted else models.model(family)
    _, pruner = one_rank.build(made.changed(peft__r=3, peft__alpha=6.0) if adapted else made, model)
    (gates,) = pruner.structure_pruners
    gates.state.score = torch.rand(gates.state.score.shape, generator=torch.Generator().manual_seed(0))
    pruner.begin(3)
    one_rank.surround(pruner, samples=lambda number: batches())
    stack, matrix = ("bert.encoder.layer", "output.dense") if family == "bert" else ("model.layers", "mlp.down_proj")
    names = [f"{stack}.{layer}.{matrix}.weight" for layer in range(models.LAYERS)]
    needs = Needs("", 6, {name: gates.anatomy.shapes[name] for name in names}, (SquaredNorm,), lambda o, i: 0)
    behind = HiddenStates()
    for layer, name in zip(pruner.calibrator.walk(needs, follow=True), names, strict=True):
        layer.twin()
        found = layer.collect({name: (SquaredNorm,)})[name][SquaredNorm]
        expected = real_inputs(model.eval(), f"{layer.name}.{matrix}").square().mean(0)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        behind = layer.behind()
    given = torch.cat([x[batch["attention_mask"].bool()] for x, batch in zip(behind, batches(), strict=True)]).double()
    last = real_inputs(model, f"{stack}.{models.LAYERS - 1}", outputs=True)
    torch.testing.assert_close(given, last, rtol=1e-3, atol=1e-4)


def test_a_cut_sees_what_other_gates_choose_at_the_same_step() -> None:
    """In whatever order they are named."""
    found: list[dict[str, Tensor]] = []
    schedule = {"name": "one_shot", "start": 3}
    for names in (("a", "b"), ("b", "a")):
        by_name = {
            "a": config(["kv_groups"], shape(kv_groups=1), schedule, "taylor").pruners["narrow"],
            "b": config(["ffn"], shape(ffn=64), schedule).pruners["narrow"],
        }
        made = config(["ffn"], shape(ffn=64)).changed(pruners={name: by_name[name] for name in names})
        model = models.model("llama")
        _, pruner = one_rank.build(made, model)
        gates = next(each for each in pruner.structure_pruners if each.name == "a")
        gates.state.score = torch.rand(gates.state.score.shape, generator=torch.Generator().manual_seed(0))
        one_rank.surround(pruner, samples=lambda number: batches())
        pruner.begin(3)
        found.append({name: p.detach() for name, p in model.named_parameters()})
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_inputs_that_are_not_finite_and_fits_that_fail_name_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.model("llama")
    _, pruner = one_rank.build(config(["ffn"], shape(ffn=64), {"name": "one_shot", "start": 1}), model)
    one_rank.surround(pruner, samples=lambda number: batches())
    monkeypatch.setattr(torch.linalg, "cholesky_ex", _not_positive)
    with pytest.raises(ValueError, match="layers.0.mlp.down_proj.weight cannot be cut by obs: .*not positive-definite"):
        pruner.begin(1)
    monkeypatch.undo()
    model.get_parameter("model.layers.1.mlp.up_proj.weight").data[0, 0] = torch.inf
    with pytest.raises(NotCalibrated, match="layers.1.mlp.down_proj.weight is not finite"):
        pruner.begin(1)


def test_a_matrix_that_does_not_fit_says_how_much_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Obs, "cut", full)
    _, pruner = one_rank.build(config(["ffn"], shape(ffn=64), {"name": "one_shot", "start": 1}), models.model("llama"))
    one_rank.surround(pruner, samples=lambda number: batches())
    with pytest.raises(
        ValueError, match=r"layers.0.mlp.down_proj.* about .* [KM]iB .*engine.offload_optimizer"
    ) as said:
        pruner.begin(1)
    assert "\n" not in str(said.value)


def _not_positive(_: Tensor, **__: Any) -> Tensor:
    raise RuntimeError("the input is not positive-definite")
