"""Experts that are one parameter: what each is calibrated on, against transformers' own loop over experts, and what a
cut makes of each."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM

from pat.common.comm import LOCAL, Comm
from pat.models import experts
from pat.pruning.calibration.back import Squares, own_loss, squares
from pat.pruning.calibration.journal import Journals
from pat.pruning.calibration.probe import Probe
from pat.pruning.calibration.reconstruction import BETAS, EPSILON, reconstruct
from pat.pruning.calibration.skeleton import stack_of
from pat.pruning.calibration.statistics import Gram, SquaredNorm
from pat.pruning.calibration.walk import NotCalibrated, Walk
from pat.pruning.pruner import Pruner
from pat.pruning.scopes.matrix import Matrix
from pat.pruning.weights import allocation
from pat.pruning.weights.matrices import Matrices
from pat.pruning.weights.prior import Prior
from pat.schema import Config
from pat.sensitivity.cells import grid
from tests import models, one_rank
from tests.benchmarks.upcycle import upcycled
from tests.thread_ranks import run_ranks
from tests.unit.pruning.calibration.test_cuts import config
from tests.unit.pruning.calibration.test_reconstruction import INDEX, LR, gives, halved, whole
from tests.unit.pruning.calibration.test_walk import batches, close, of_rank, weight_of

EXPERTS = 4
KINDS = ("mixtral", "gpt_oss", "nemotron_h")  # plain; inputs first, with biases and its own gate; without a gate
PRODUCTS = (nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__)
AT_ONCE = {"name": "one_shot", "start": 0}


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank.alone():
        yield


def of_experts(kind: str) -> Any:
    """A small model whose weights are large enough that tokens differ."""
    sizes: dict[str, Any] = {
        "hidden_size": 24, "intermediate_size": 40, "moe_intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": models.VOCAB,
        "num_local_experts": EXPERTS, "n_routed_experts": EXPERTS, "num_experts_per_tok": 2, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    if kind == "nemotron_h":
        sizes |= {"layers_block_type": ["moe", "attention", "moe"], "moe_shared_expert_intermediate_size": 24}
        del sizes["num_hidden_layers"]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).eval()
    with torch.no_grad():
        for name, param in model.named_parameters():
            if param.dim() > 1 or "bias" in name:
                param.normal_(0, 0.2)
    return model


def taken(model: Any) -> dict[str, tuple[int, ...]]:
    """All linear maps that `all-linear` takes, outputs first."""
    found = Matrices.of(model)
    return experts.apart({name: found.as_map(name) for name in found.take(["all-linear"])})


class Products(TorchFunctionMode):
    """What transformers' own forward multiplies with each map, by where its weights lie in memory."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.seen: dict[str, list[Tensor]] = {}
        self.gradients: dict[str, list[Tensor]] = {}
        self.at: dict[int, str] = {}
        for name in taken(model):
            param, expert = model.get_parameter(experts.parameter_of(name)), experts.expert_of(name)
            self.at[(param if expert is None else param[expert]).data_ptr()] = name

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in PRODUCTS and (name := self.at.get(args[1].data_ptr())):
            self.seen.setdefault(name, []).append(args[0].detach().double().flatten(0, -2))
            if output.requires_grad:
                gradients = self.gradients.setdefault(name, [])
                output.register_hook(lambda g: gradients.append(g.double().flatten(0, -2)))
        return output


def given() -> list[dict[str, Tensor]]:
    """Padded batches whose padding is no label."""
    made = batches()
    return [batch | {"labels": batch["labels"].masked_fill(batch["attention_mask"] == 0, -100)} for batch in made]


def unpadded() -> list[dict[str, Tensor]]:
    """The same real tokens, one sequence at a time."""
    rows = [{k: v[row : row + 1] for k, v in batch.items()} for batch in given() for row in range(2)]
    return [{k: v[:, : int(row["attention_mask"].sum())] for k, v in row.items()} for row in rows]


def multiplied(model: Any, names: Sequence[str], backward: bool = False) -> Products:
    """By the loop of transformers over its experts."""
    model.set_experts_implementation("eager")
    with torch.set_grad_enabled(backward), Products(model) as products:
        for batch in unpadded():
            loss = own_loss(model, batch)
            if backward:
                loss.backward()
    assert products.seen.keys() <= set(names)
    return products


@pytest.mark.parametrize("kind", KINDS)
def test_every_expert_is_calibrated_on_the_tokens_that_pass_it(kind: str) -> None:
    """Would catch: inputs of the whole module for those of an expert, padding that counts, experts mixed up, and a
    mean over other tokens than all."""
    model = of_experts(kind)
    names, tokens = taken(model), sum(int(batch["attention_mask"].sum()) for batch in batches())
    seen = multiplied(model, list(names)).seen
    walk = Walk(model, weight_of(model), stack_of(model, list(names)), batches(), torch.float32)
    for layer in walk:
        own = [name for name in names if name.startswith(f"{layer.name}.")]
        found = layer.collect(dict.fromkeys(own, (SquaredNorm, Gram)))
        assert not any("forward" in vars(module) for module in layer.module.modules()), "all are taken off again"
        for name in own:
            x = torch.cat(seen[name])
            close(found[name][Gram].double(), x.T @ x / tokens)
            close(found[name][SquaredNorm], (x * x).sum(0) / tokens)
    assert len({len(torch.cat(seen[name])) for name in seen}) > EXPERTS, "each expert has tokens of its own"


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_loss_feels_of_every_expert(kind: str) -> None:
    """Mean squares of inputs over an expert's own tokens, of gradients over all: their product is then what the loss
    feels of a weight. One backward by transformers' own loop."""
    model = of_experts(kind)
    names, tokens = list(taken(model)), sum(int(batch["attention_mask"].sum()) for batch in batches())
    walk = Walk(model, weight_of(model), stack_of(model, names), given(), torch.float32)
    found = dict(squares(walk, given(), own_loss, names))
    products = multiplied(model, names, backward=True)
    for name in names:
        close(found[name].inputs, torch.cat(products.seen[name]).square().mean(0))
        close(found[name].gradients, torch.cat(products.gradients[name]).square().sum(0) / tokens)


def barred(model: Any, expert: int, layer: int | None = None) -> Any:
    """The same model of GPT-OSS, whose router sends no token to this expert."""
    for index, each in enumerate(model.model.layers):
        if layer in (None, index):
            each.mlp.router.bias.data[expert] = -1e4
    return model


def test_ranks_add_up_what_each_sees_of_an_expert() -> None:
    """Only one token passes an expert, so one of two ranks has none: would catch ranks that wait for each other's
    sums, and means over a rank's own tokens."""
    model = of_experts("gpt_oss")
    inputs: list[Tensor] = []
    hook = model.model.layers[1].mlp.router.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        model(**of_rank(1)[0])
    hook.remove()
    wanted = inputs[0].flatten(0, -2)[4]  # of the second rank
    router = barred(model, 0, layer=1).model.layers[1].mlp.router
    router.weight.data[0] = 1e4 * wanted / wanted.square().sum()
    router.bias.data[0] = -1e4 * (1 - 1e-4)
    names = list(taken(model))
    rare = "model.layers.1.mlp.experts.down_proj[0]"

    def work(comm: Comm) -> dict[str, Any]:
        given = of_rank(comm.rank)
        walk = Walk(model, weight_of(model), stack_of(model, names), given, torch.float32, comm)
        return dict(squares(walk, given, own_loss, names))

    both, (alone,) = run_ranks(2, work)[0], run_ranks(1, lambda comm: _alone(model, names))[0]
    assert 0 < len(torch.cat(multiplied(model, names).seen[rare])) < 3
    for name in names:
        for rank in both:
            close(rank[name].inputs, alone[name].inputs)
            close(rank[name].gradients, alone[name].gradients)


def _alone(model: Any, names: list[str]) -> dict[str, Any]:
    walk = Walk(model, weight_of(model), stack_of(model, names), batches(), torch.float32, LOCAL)
    return dict(squares(walk, batches(), own_loss, names))


def pruned(model: Any, made: Config, journals: Journals | None = None, warned: list[str] | None = None) -> Pruner:
    """The model cut before any step."""
    _, pruner = one_rank.build(made.changed(train__num_steps=0), model)
    said = warned if warned is not None else []
    one_rank.surround(pruner, samples=lambda number: batches(), warn=lambda title, text: said.append(text))
    if journals:
        one_rank.surround(pruner, journals=journals)
    pruner.prune()
    pruner.check_finished()
    return pruner


def as_maps(model: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """Every map's weights, outputs first."""
    transposed = Matrices.of(model).transposed
    found: dict[str, Tensor] = {}
    for name in names:
        owner, expert = experts.parameter_of(name), experts.expert_of(name)
        param = model.get_parameter(owner).detach()
        matrix = param if expert is None else param[expert]
        found[name] = matrix.T if owner in transposed else matrix
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_wanda_removes_of_each_expert_what_the_paper_removes(kind: str) -> None:
    """|W| times the norm of what the expert itself sees, within each of its outputs, on the pruned layers below."""
    model, expected = of_experts(kind), of_experts(kind)
    pruned(model, config("wanda", schedule=AT_ONCE, params=["all-linear"]))
    names = list(taken(expected))
    for layer in range(3 if kind == "nemotron_h" else 2):
        seen = multiplied(expected, names).seen
        for name, weight in as_maps(expected, names).items():
            if f".{layer}." in name:
                x = torch.cat(seen[name])
                score = weight.abs() * x.square().sum(0).sqrt().float()
                lowest = score.argsort(1)[:, : score.shape[1] // 2]
                weight[torch.zeros_like(weight, dtype=torch.bool).scatter_(1, lowest, True)] = 0
    after, wanted = as_maps(model, names), as_maps(expected, names)
    for name in names:
        assert torch.equal(after[name], wanted[name]), name


@pytest.mark.parametrize("criterion", ["alps", {"name": "alps", "reconstruct": 1}])
def test_survivors_of_each_expert_take_over(criterion: Any) -> None:
    """ALPS leaves exactly half of each expert, nearer to the dense outputs than Wanda, and what a journal holds of it
    gives the same again."""
    dense, near = of_experts("mixtral"), dict[str, float]()
    names = list(taken(dense))
    for each in ("wanda", criterion):
        model = of_experts("mixtral")
        pruned(model, config(each, "matrix", AT_ONCE, params=["all-linear"]))
        for name, weight in as_maps(model, names).items():
            assert int((weight == 0).sum()) == weight.numel() // 2, name
        with torch.no_grad():
            gaps = [
                (dense(**batch).logits - model(**batch).logits)[batch["attention_mask"].bool()] for batch in batches()
            ]
        near[str(each)] = float(torch.cat(gaps).square().mean())
    assert near[str(criterion)] < 0.7 * near["wanda"], near


@pytest.mark.parametrize("kind", KINDS[:2])
def test_experts_are_fitted_by_steps_of_adam_on_the_whole_parameter(kind: str) -> None:
    """Would catch: an expert that is fitted by another's gradient, or written in another's place."""
    dense, batch = of_experts(kind), batches()[:1]
    cut, real = copy.deepcopy(dense), batch[0]["attention_mask"].bool()
    names = list(taken(cut))
    walk = Walk(cut, whole(cut), "model.layers", batch, torch.float32, follow=True)
    fitted = dict[str, Tensor]()
    for layer in walk:
        own = [name for name in names if name.startswith(f"{layer.name}.")]
        for name in {experts.parameter_of(name) for name in own}:
            halved(cut, name)
        layer.refresh(layer.parameters)
        if layer.index == INDEX:
            fitted = dict(reconstruct(layer, own, 2, LR, 0))
    assert list(fitted) == own
    expected, target = copy.deepcopy(cut), gives(dense, batch[0]).detach()[real]
    params = {each: expected.get_parameter(each) for each in {experts.parameter_of(name) for name in fitted}}
    alive = {each: param != 0 for each, param in params.items()}
    adam = torch.optim.Adam(params.values(), betas=BETAS, eps=EPSILON)
    for rate in (LR, LR / 2):
        adam.zero_grad()
        (gives(expected, batch[0])[real] - target).square().mean().backward()
        for each, param in params.items():
            assert param.grad is not None
            param.grad *= alive[each]
        adam.param_groups[0]["lr"] = rate
        adam.step()
    for name, value in fitted.items():
        param, expert = params[experts.parameter_of(name)].detach(), experts.expert_of(name)
        torch.testing.assert_close(value, param if expert is None else param[expert], rtol=1e-4, atol=2e-6)


def test_experts_of_other_tokens_than_the_layers_are_refused() -> None:
    model = of_experts("mixtral")
    block: Any = model.model.layers[0].mlp
    names = [f"model.layers.0.mlp.experts.down_proj[{expert}]" for expert in range(EXPERTS)]
    probe = Probe({name: (Gram,) for name in names}, to_the_end=False)
    path = "model.layers.0.mlp.experts"
    probe.watch(path, block.experts, names)
    probe.next(torch.ones(2, 9, dtype=torch.bool))
    with torch.no_grad(), pytest.raises(NotCalibrated, match="experts.down_proj is no linear map of each token"):
        block(torch.randn(1, 9, 24))
    probe.remove()


def test_what_a_journal_holds_of_experts_is_taken_over(tmp_path: Any) -> None:
    """Flags and fitted weights of every expert, after a fit of whole layers, too."""
    made = config({"name": "alps", "reconstruct": 1}, "matrix", AT_ONCE, params=["all-linear"])
    found: list[Any] = []
    said: list[str] = []
    for _ in range(2):
        found.append(of_experts("gpt_oss"))
        pruned(found[-1], made, Journals(tmp_path, say=said.append))
    assert said == ["2 of 2 layers of an earlier start's cut are taken over"]
    for name, param in found[0].named_parameters():
        assert torch.equal(param, found[1].get_parameter(name)), name


def test_an_expert_that_no_token_passes_loses_its_smallest_weights_and_is_named() -> None:
    """With the loss's gradients and a target over all matrices: it gives up most, and nothing is NaN."""
    model = barred(of_experts("gpt_oss"), 3)
    dense, warned = as_maps(model, list(taken(model))), list[str]()
    dense = {name: weight.clone() for name, weight in dense.items()}
    criterion = {"name": "alps", "gradient_samples": 6}
    pruned(model, config(criterion, "global", AT_ONCE, params=["all-linear"]), warned=warned)
    after, zeros, total = as_maps(model, list(dense)), 0, 0
    for name, weight in after.items():
        gone = weight == 0
        zeros, total = zeros + int(gone.sum()), total + gone.numel()
        assert weight.isfinite().all()
        if experts.expert_of(name) == 3:
            assert float(gone.double().mean()) == pytest.approx(0.65, abs=0.01), "half, and as much more as is allowed"
            assert dense[name].abs()[gone].max() <= dense[name].abs()[~gone].min()
            assert torch.equal(weight[~gone], dense[name][~gone])
    assert zeros == total // 2
    told = [each for each in warned if "nothing goes into expert" in each]
    assert len(told) == 2 and "nothing goes into expert 3 of model.layers.0.mlp.experts," in told[0]


@pytest.mark.parametrize("scope", ["global", "matrix"])
@pytest.mark.parametrize("criterion", ["alps", "wanda"])
def test_an_expert_may_be_missing_from_the_samples_of_the_gradients(
    criterion: str, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of few samples go gradients back: of an expert that only others pass, all outputs count alike."""
    model, seen = of_experts("gpt_oss"), list[bool]()

    def measured(walk: Walk, *args: Any) -> Iterator[tuple[str, Squares]]:
        for name, each in squares(walk, *args):
            barred = experts.expert_of(name) == 3
            seen.append(barred)
            yield name, Squares(each.inputs * 0, each.gradients * 0) if barred else each

    monkeypatch.setattr(allocation, "squares", measured)
    pruned(model, config({"name": criterion, "gradient_samples": 2}, scope, AT_ONCE, params=["all-linear"]))
    assert any(seen) and all(param.isfinite().all() for param in model.parameters())


def test_the_prior_of_an_expert_that_no_token_passes_is_the_size_of_its_weights() -> None:
    """Would catch: an expert that is emptied, or pruned by index, because nothing is known of its inputs."""
    model, warned = barred(of_experts("gpt_oss"), 3), list[str]()
    criterion = {"name": "movement", "prior_score": "wanda"}
    engine, pruner = one_rank.build(config(criterion, "matrix", AT_ONCE, params=["all-linear"]), model)
    one_rank.surround(pruner, samples=lambda number: batches(), warn=lambda title, text: warned.append(text))
    dense = {name: weight.clone() for name, weight in as_maps(model, list(taken(model))).items()}
    engine.backward(engine(**batches()[0]).loss)
    pruner.step(0)
    for name, weight in as_maps(model, list(dense)).items():
        if experts.expert_of(name) == 3:
            gone = weight == 0
            assert 0.2 < float(gone.double().mean()) < 0.8
            assert dense[name].abs()[gone].max() <= dense[name].abs()[~gone].min()
    assert len([each for each in warned if "nothing goes into expert 3" in each]) == 2, "each layer"
    (weights,) = pruner.weight_pruners
    for name, m in weights.prior.inputs.items():
        assert float((m[:3] if m.dim() > 1 else m).mean()) == pytest.approx(1.0), name


@pytest.mark.parametrize("leaf", ["gate_up_proj_bias", "down_proj_bias"])
def test_biases_of_experts_are_no_maps(leaf: str) -> None:
    with pytest.raises(NotCalibrated, match=f"{leaf} is not a weight of a linear map"):
        stack_of(of_experts("gpt_oss"), [f"model.layers.0.mlp.experts.{leaf}"])


@pytest.mark.parametrize(
    "kind, share", [("mixtral", 2 / 8), ("gpt_oss", 4 / 128), ("ernie4_5_moe", 6 / 64), ("aria_text", 2 / 8)]
)
def test_the_share_of_tokens_is_what_configs_say(kind: str, share: float) -> None:
    assert experts.share_of_tokens(AutoConfig.for_model(kind).to_dict()) == pytest.approx(share)


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_movements_prior_counts_what_each_expert_sees(kind: str) -> None:
    """W^2 times the mean square of an expert's own inputs, over the mean of all of the parameter; would catch one
    expert's inputs for another's where a shard begins inside of it."""
    model = of_experts(kind)
    found, shapes = Matrices.of(model), dict[str, tuple[int, ...]]()
    for name in found.take(["all-linear"]):
        shapes[name] = found.shapes[name]
    names = list(taken(model))
    seen = multiplied(model, names).seen
    prior = Prior(shapes, found.transposed, Matrix())
    walk = Walk(model, weight_of(model), stack_of(model, names), batches(), torch.float32)
    prior.measure(walk, Journals().open("w", 0, ()))
    for name, shape in shapes.items():
        m = torch.stack([torch.cat(seen[each]).square().sum(0) for each in experts.maps(name, shape)])
        m = (m / m.mean()).float()
        full = m[:, :, None] if name in found.transposed else m[:, None, :]
        dense = model.get_parameter(name).detach()
        wanted = (dense.square() * (full if len(shape) == 3 else full[0])).flatten()
        for start, end in ((0, dense.numel()), (7, 7 + dense.numel() // 2), (dense.numel() - 5, dense.numel())):
            close(prior.squares(name, start, dense.flatten()[start:end]), wanted[start:end])


@pytest.mark.parametrize("tied", [True, False])
def test_a_mixture_made_of_a_llama_is_the_same_function(tied: bool) -> None:
    """tests/benchmarks/upcycle.py, whose router picks two of three copies of each MLP."""
    llama = models.model("llama", "GQA, head_dim, untied")
    llama.config.tie_word_embeddings = tied
    llama.tie_weights()
    mixture = upcycled(llama, 3, 2).eval()
    with torch.no_grad():
        for batch in batches():
            close(mixture(**batch).logits, llama.eval()(**batch).logits)
    with pytest.raises(SystemExit, match="bias"):
        upcycled(models.model("llama", "MHA, biased, tied"), 3, 2)


def test_sensitivity_has_experts_as_the_matrices_that_they_are() -> None:
    cells = grid(of_experts("mixtral"), [0.5], ["*experts*"]).cells
    assert {cell.kind for cell in cells} == {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"} and len(cells) == 4
    assert {cell.removed for cell in cells} == {EXPERTS * 24 * 40, EXPERTS * 24 * 40 // 2}
