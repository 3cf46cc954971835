"""Cuts of a real run in one process: which weights go, what the survivors become, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pat.pruning.calibration.probe import Probe
from pat.pruning.calibration.statistics import Gram
from pat.pruning.calibration.walk import NotCalibrated, Walk
from pat.pruning.criteria.alps import Alps
from pat.pruning.pruner import Pruner
from pat.schema import Config, MaskedGradConfig, PrunerConfig
from tests import models, one_rank
from tests.unit.pruning.calibration.test_back import naive as backward
from tests.unit.pruning.calibration.test_walk import batches, matrices, naive

STEPS = 6
AT = 2  # the step of the cut
WANDA = {"name": "movement", "prior_score": "wanda"}


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank.alone():
        yield


def config(criterion: Any, scope: str = "row", schedule: Any = None, **fields: Any) -> Config:
    weights: dict[str, Any] = {
        "params": ["model.layers.*.weight"], "granularity": "weight", "criterion": criterion, "scope": scope,
        "budget": {"name": "sparsity", "sparsity": 0.5}, "schedule": schedule or {"name": "one_shot", "start": AT},
    }  # fmt: skip
    return Config().changed(
        train__num_steps=STEPS, engine__zero_stage=0, engine__dtype="fp32", engine__kernels="eager", optim__lr=1e-3,
        optim__implementation="loop", pruners__weights=PrunerConfig(**(weights | fields)),
    )  # fmt: skip


def trained(made: Config, steps: int = STEPS, family: str = "llama") -> tuple[Any, Pruner, list[dict[str, Tensor]]]:
    """(model, pruner, the weights after every step)."""
    model, after = models.model(family), []
    engine, pruner = one_rank.build(made, model)
    one_rank.surround(pruner, samples=lambda number: batches())
    for t in range(steps):
        engine.backward(engine(**batches()[t % 3]).loss)
        pruner.step(t)
        after.append({name: p.detach().clone() for name, p in model.named_parameters()})
    return model, pruner, after


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_wanda_removes_what_the_paper_removes_layer_by_layer(family: str) -> None:
    """|W| times the norm of the input, within each row, each layer's inputs from the pruned layers below."""
    _, _, after = trained(config("wanda", params=["all-linear"]), family=family)
    expected = models.model(family)
    for name, weight in after[AT - 1].items():
        expected.get_parameter(name).data.copy_(weight)
    for layer in range(models.LAYERS):
        grams = naive(expected, batches())
        for name in matrices(expected):
            if f".{layer}." in name:
                weight = expected.get_parameter(name).data
                weight = weight.T if family == "gpt2" else weight  # outputs first
                score = weight.abs() * grams[name].diagonal().sqrt().float()
                half = score.shape[1] // 2
                weight[torch.zeros_like(weight, dtype=torch.bool).scatter_(1, score.argsort(1)[:, :half], True)] = 0
    for name in matrices(expected):
        gone = expected.get_parameter(name) == 0
        assert torch.equal(after[AT][name] == 0, gone), name
        assert torch.equal(after[-1][name] == 0, gone), "what is cut stays cut"


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_matrices_and_outputs_that_the_loss_feels_least_give_up_most(family: str) -> None:
    """scope=global: how many weights of each matrix against LeCun's saliencies of the dense model in fp64, and which by
    Wanda's score times the root of the output's mean squared gradient, a layer's inputs from the pruned ones below."""
    criterion = {"name": "wanda", "gradient_samples": 6}
    made = config(criterion, "global", {"name": "one_shot", "start": 0}, params=["all-linear"]).changed(
        train__num_steps=0
    )
    model, dense = models.model(family), models.model(family).eval()
    _, pruner = one_rank.build(made, model)
    one_rank.surround(pruner, samples=lambda number: batches())
    pruner.prune()
    pruner.check_finished()
    names, turned = matrices(dense), family == "gpt2"
    weights = {
        name: dense.get_parameter(name).detach().T if turned else dense.get_parameter(name).detach() for name in names
    }
    felt = backward(dense, batches(), names)
    saliency = {n: w.double() ** 2 * felt[n].inputs * felt[n].gradients[:, None] for n, w in weights.items()}
    gone = {name: model.get_parameter(name).detach() == 0 for name in names}
    gone = {name: each.T if turned else each for name, each in gone.items()}
    shares = {name: float(each.double().mean()) for name, each in gone.items()}
    assert sum(int(each.sum()) for each in gone.values()) == sum(w.numel() for w in weights.values()) // 2
    assert len(set(shares.values())) > 3, "not every matrix has the same share"
    low, high = 0.0, max(float(each.max()) for each in saliency.values())
    for _ in range(60):  # the threshold with which shares within reach meet the target
        theta = (low + high) / 2
        expected = {n: min(max(float((a < theta).double().mean()), 0.35), 0.65) for n, a in saliency.items()}
        total = sum(share * weights[n].numel() for n, share in expected.items()) / sum(
            w.numel() for w in weights.values()
        )
        low, high = (theta, high) if total < 0.5 else (low, theta)
    assert shares == pytest.approx(expected, abs=0.02)
    for layer in range(models.LAYERS):
        grams = naive(dense, batches())
        for name in names:
            if f".{layer}." in name:
                g = felt[name].gradients
                score = (
                    weights[name].abs()
                    * grams[name].diagonal().sqrt().float()
                    * (g / g.mean() + 0.05).sqrt()[:, None].float()
                )
                order = score.flatten().argsort()[: int(gone[name].sum())]
                wanted = torch.zeros(score.numel(), dtype=torch.bool).index_fill_(0, order, True).view_as(score)
                assert torch.equal(gone[name], wanted), name
                weights[name][wanted] = 0.0  # in the dense model, too
                after = model.get_parameter(name).detach()
                assert torch.equal(after.T if turned else after, weights[name]), "Wanda changes no weight that stays"


def test_rows_lose_their_smallest_weights_by_any_criterion() -> None:
    """Would catch: a ranking over the matrix, or along the inputs' dimension."""
    model, pruner, after = trained(config("magnitude"))
    dense, (weight_pruner,) = after[AT - 1], pruner.weight_pruners
    for name in matrices(model):
        smallest = dense[name].abs().argsort(1)[:, : dense[name].shape[1] // 2]
        gone = torch.zeros_like(dense[name], dtype=torch.bool).scatter_(1, smallest, True)
        assert torch.equal(after[AT][name] == 0, gone), name
    assert weight_pruner.num_pruned == weight_pruner.target_weights == weight_pruner.numel // 2


@pytest.mark.parametrize("criterion, scope", [("wanda", "matrix"), ("alps", "row"), ("alps", "matrix")])
def test_targets_are_met_exactly_within_each_row_or_matrix(criterion: str, scope: str) -> None:
    model, pruner, after = trained(config(criterion, scope))
    for name in matrices(model):
        zeros = (after[-1][name] == 0).sum(1)
        assert int(zeros.sum()) == after[-1][name].numel() // 2
        assert scope == "matrix" or (zeros == zeros[0]).all()
    pruner.check()
    pruner.check_finished()
    assert pruner.totals.sparsity == 0.5


@pytest.mark.parametrize("criterion", ["alps", "wanda"])
def test_blocks_of_all_matrices_meet_their_target_together(criterion: str) -> None:
    """The target in whole blocks over all matrices; no block is cut in part."""
    blocks = {"name": "block", "rows": 4, "cols": 4}
    weighed = {"name": criterion, "gradient_samples": 6}
    _, pruner, after = trained(config(weighed, "global", granularity=blocks))
    pruner.check_finished()
    shares = set[float]()
    for name in pruner.weight_pruners[0].shapes:
        zeros = (after[-1][name] == 0).unflatten(0, (-1, 4)).unflatten(2, (-1, 4)).sum((1, 3))
        assert set(zeros.flatten().tolist()) <= {0, 16}, name
        shares.add(float((zeros == 16).double().mean()))
    assert len(shares) > 3


def test_survivors_of_alps_take_over_from_what_goes() -> None:
    """Of the same model, the outputs after ALPS are nearer to the dense model's than after Wanda."""
    dense, _, _ = trained(config("wanda"), AT)
    near: dict[str, float] = {}
    for criterion in ("wanda", "alps"):
        model, made = copy.deepcopy(dense), config(criterion, schedule={"name": "one_shot", "start": 0})
        engine, pruner = one_rank.build(made, model)
        one_rank.surround(pruner, samples=lambda number: batches())
        for group in engine.basic_optimizer.param_groups:
            group["lr"] = 0.0
        engine.backward(engine(**batches()[0]).loss)
        pruner.step(0)
        with torch.no_grad():
            gaps = [
                (dense(**batch).logits - model(**batch).logits)[batch["attention_mask"].bool()] for batch in batches()
            ]
        near[criterion] = float(torch.cat(gaps).square().mean())
    assert near["alps"] < 0.7 * near["wanda"], near


def test_moments_of_what_a_cut_removes_are_cleared() -> None:
    """Would catch: momentum that revives a weight in the step of the cut or after it."""
    made = config("alps", schedule={"name": "linear", "start": 1, "end": 4, "hard_from": 5, "initial": 0.2})
    _, pruner, after = trained(made)
    (weight_pruner,) = pruner.weight_pruners
    for state in weight_pruner.states:
        assert state.keep is not None
        moments = weight_pruner.layout.base.state[state.shard.flat]
        for key in ("exp_avg", "exp_avg_sq"):
            assert not moments[key].view(-1)[state.keep == 0].any()
    for before, later in zip(after[1:], after[2:], strict=False):
        for name in weight_pruner.shapes:
            assert not (later[name][before[name] == 0]).any(), "an earlier cut's zeros stay"


@pytest.mark.parametrize(
    "made, said",
    [
        (config("wanda", "global"), "gradient_samples: 16 .*scope: global; or scope: matrix, or row"),
        (config("magnitude", "row", granularity={"name": "block", "rows": 2, "cols": 2}), "scope: matrix"),
        (config("alps", masked_grad=MaskedGradConfig(name="straight_through")), "masked_grad.name: zero"),
        (config("alps", params=["lm_head.weight"]), "exclude it"),
    ],
    ids=[
        "a ranking over all matrices",
        "rows of blocks",
        "zeros that come back",
        "outside of the layers",
    ],
)
def test_settings_that_are_refused(made: Config, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Pruner(made).attach(models.model("llama", "GQA, head_dim, untied"))


def test_gates_that_still_move_are_refused() -> None:
    schedule = {"name": "linear", "start": 1, "end": 3, "hard_from": 4}
    narrow = PrunerConfig(
        structures=["ffn"], gate="l0", budget={"name": "shape", "keep": {"ffn": 64}}, schedule=schedule
    )  # fmt: skip
    made = config("wanda", params=["*.q_proj.weight"]).changed(pruners__narrow=narrow)
    with pytest.raises(ValueError, match="pruners.weights is calibrated from step 2 on.*until step 4"):
        Pruner(made).attach(models.model("llama"))


@pytest.mark.parametrize(
    ("criterion", "family"),
    [("wanda", "gpt2"), ("alps", "llama"), ("alps", "gpt2"), ({"name": "alps", "reconstruct": 1}, "llama"),
     (WANDA, "llama")],
)  # fmt: skip
def test_matrices_of_a_dropped_layer_need_no_inputs(criterion: Any, family: str) -> None:
    """All that goes into them is 0, which in a layer that is there is an error."""
    narrow = PrunerConfig(
        structures=["layers"], gate={"name": "taylor", "fade": 1}, schedule={"name": "one_shot", "start": AT},
        budget={"name": "shape", "keep": {"layers": 2}},
    )  # fmt: skip
    two_four = {"name": "n_of_m", "n": 2, "m": 4}
    once = {"name": "one_shot", "start": AT + 1}
    made = config(criterion, "matrix", once, granularity=two_four, params=["all-linear"])
    made = made.changed(pruners__narrow=narrow)
    model, pruner, _ = trained(made, family=family)
    pruner.check()
    pruner.check_finished()
    gone = pruner.weight_pruners[0].emptied_before()
    assert gone and all(not bool(model.get_parameter(name).any()) for name in gone)
    assert pruner.weight_pruners[0].num_pruned == pruner.weight_pruners[0].numel // 2


@pytest.mark.parametrize("criterion", ["alps", "wanda", WANDA])
def test_a_matrix_that_is_there_and_whose_inputs_are_all_zero_is_named(criterion: Any) -> None:
    model = models.model("llama")
    engine, pruner = one_rank.build(config(criterion, "matrix", {"name": "one_shot", "start": 0}), model)
    one_rank.surround(pruner, samples=lambda number: batches())
    engine.backward(engine(**batches()[0]).loss)
    model.get_parameter("model.layers.1.mlp.up_proj.weight").data.zero_()
    with pytest.raises(ValueError, match=r"layers.1.mlp.down_proj.weight cannot be .* all .*are 0 on the calibration"):
        pruner.step(0)


@pytest.mark.parametrize("first", ["masks", "weights"])
@pytest.mark.parametrize("hard_from", [AT, AT + 2])
def test_a_cut_sees_the_masks_that_another_pruner_chooses_in_its_step(
    first: str, hard_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever order they are named, and in the soft phase, when these reach the weights after the step."""
    pruners = {
        "masks": config(
            "magnitude", "matrix", {"name": "one_shot", "start": AT, "hard_from": hard_from}, params=["*.q_proj.weight"]
        ).pruners["weights"],
        "weights": config("wanda", params=["*.mlp.*.weight"]).pruners["weights"],
    }
    made = config("wanda").changed(pruners={name: pruners[name] for name in sorted(pruners, key=lambda n: n != first)})
    seen: dict[str, Tensor] = {}
    fill = Walk.fill

    def watched(walk: Walk, names: list[str]) -> None:
        fill(walk, names)
        seen.update({n: walk.skeleton.get_parameter(n) == 0 for n in names if "q_proj" in n and n not in seen})

    monkeypatch.setattr(Walk, "fill", watched)
    _, pruner, after = trained(made)
    pruner.check()
    assert len(seen) == models.LAYERS
    for name, gone in seen.items():
        assert int(gone.sum()) == gone.numel() // 2
        assert torch.equal(gone, after[AT][name] == 0), name


def test_a_trainer_without_samples_is_told_so() -> None:
    engine, pruner = one_rank.build(config("alps", schedule={"name": "one_shot", "start": 0}), models.model("llama"))
    engine.backward(engine(**batches()[0]).loss)
    with pytest.raises(ValueError, match="needs calibration samples"):
        pruner.step(0)


def test_gradients_are_taken_where_it_is_told_and_before_the_walk() -> None:
    criterion = {"name": "alps", "gradient_samples": 8}
    engine, pruner = one_rank.build(
        config(criterion, "global", {"name": "one_shot", "start": 0}), models.model("llama")
    )
    seen = list[str]()
    one_rank.surround(
        pruner,
        samples=lambda number: batches(),
        on_gradients=lambda index, number: seen.append(f"gradients {index} of {number}"),
        on_layer=lambda index, number: seen.append(f"{index} of {number}"),
    )
    engine.backward(engine(**batches()[0]).loss)
    pruner.step(0)
    assert seen[:8] == [*(f"gradients {place} of 6" for place in range(7)), "0 of 3"]


def test_a_layer_that_gives_infinities_is_named() -> None:
    model = models.model("llama")
    engine, pruner = one_rank.build(config("alps", schedule={"name": "one_shot", "start": 0}), model)
    one_rank.surround(pruner, samples=lambda number: batches())
    engine.backward(engine(**batches()[0]).loss)
    model.get_parameter("model.layers.1.mlp.up_proj.weight").data[0, 0] = torch.inf
    with pytest.raises(NotCalibrated, match="layers.1.mlp.down_proj.weight is not finite"):
        pruner.step(0)


@pytest.mark.parametrize("gpu", [True, False])
def test_a_matrix_that_does_not_fit_says_how_much_it_needs_and_what_to_change(
    gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on CPUs, where torch's error is a RuntimeError."""

    def full(*_: Any) -> Any:
        if gpu:
            raise torch.OutOfMemoryError
        torch.empty(1 << 60)

    monkeypatch.setattr(Alps, "cut", full)
    with pytest.raises(ValueError, match=r"layers.0.*q_proj.* about 9\d.\d KiB .*engine.offload_optimizer") as said:
        trained(config("alps", "matrix"))
    assert "\n" not in str(said.value)


def test_a_gram_matrix_that_is_not_positive_names_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the second layer: the sums of the first are as they should be."""
    measured, sums = Probe.means, list[Any]()

    def spoilt(self: Probe, *of: Any) -> Any:
        means = measured(self, *of)
        sums.append(means)
        for kinds in means.values() if len(sums) == 2 else ():
            kinds[Gram][0, 1] = kinds[Gram][1, 0] = 9.0 * kinds[Gram].diagonal().max()
        return means

    monkeypatch.setattr(Probe, "means", spoilt)
    with pytest.raises(
        ValueError, match="layers.1.*cannot be pruned by alps: .*positive-definite .* raise damping, or"
    ):
        trained(config("alps", "matrix"))


def test_fewer_tokens_than_inputs_are_said_once_a_cut_where_a_gram_matrix_is_measured() -> None:
    """The model's widest input has more channels than one micro-batch has tokens."""
    for criterion, expected in (("alps", 1), ("wanda", 0)):
        engine, pruner = one_rank.build(
            config(criterion, schedule={"name": "one_shot", "start": 0}), models.model("llama")
        )
        said: list[str] = []
        one_rank.surround(
            pruner, samples=lambda number: batches()[:1], warn=lambda _, text, said=said: said.append(text)
        )
        engine.backward(engine(**batches()[0]).loss)
        pruner.step(0)
        assert len(said) == expected
    assert pruner.weight_pruners[0].calibration is not None
    assert pruner.weight_pruners[0].calibration.too_few(10**6) is None


def test_what_only_prunes_removes_what_a_step_would_have_removed_and_moves_nothing_else() -> None:
    """`Pruner.prune` against the cut of step 0: the same flags; the weights that stay as the cut has left them."""
    at_once = config("wanda", schedule={"name": "one_shot", "start": 0})
    _, stepped, _ = trained(at_once, 1)
    model = models.model("llama")
    _, pruner = one_rank.build(at_once.changed(train__num_steps=0), model)
    one_rank.surround(pruner, samples=lambda number: batches())
    pruner.prune()
    pruner.check_finished()
    assert pruner.hashes()[0] == stepped.hashes()[0]
    dense = models.model("llama").state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, dense[name] * (weight != 0)), name
    pruner.prune()  # as of a start that was stopped after it: nothing happens twice
    assert pruner.hashes()[0] == stepped.hashes()[0]
