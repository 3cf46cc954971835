"""What the walk measures against hooks on the whole model, and that a cut below changes what is measured above."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from pat.common.comm import LOCAL, Comm
from pat.common.parameters import is_conv1d
from pat.pruning.calibration import calls
from pat.pruning.calibration import walk as walks
from pat.pruning.calibration.hidden import HiddenStates
from pat.pruning.calibration.skeleton import stack_of
from pat.pruning.calibration.statistics import Gram, SquaredNorm
from pat.pruning.calibration.walk import NotCalibrated, Walk
from tests import models
from tests.sets import thinned
from tests.thread_ranks import run_ranks

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


def of_rank(rank: int) -> list[dict[str, Tensor]]:
    """Half of the batches: rank 0 has the padded rows."""
    return [{key: value[rank : rank + 1] for key, value in batch.items()} for batch in batches()]


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
    """The mean of x x^T over real tokens, of every linear map inside the layers, fp64; plus that over rows of no token,
    such as those of DeBERTa's relative positions."""
    sums: dict[str, Tensor] = {}
    rows: dict[str, Tensor] = {}
    tokens, real = 0, torch.empty(0)

    def hook(name: str) -> Any:
        def see(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].reshape(-1, args[0].shape[-1]).double()
            if len(x) != real.numel():
                rows[name] = x.T @ x / len(x)  # the same in every batch
                return
            x = x[real.reshape(-1)]
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
    return {name: value / tokens + rows.get(name, 0) for name, value in sums.items()}


@pytest.mark.parametrize("family, variant", thinned(models.cases(), 3))
def test_it_measures_what_hooks_on_the_whole_model_see(family: str, variant: str) -> None:
    check_measured(models.model(family, variant))


def check_measured(model: Any) -> None:
    given = batches()
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


OTHERS: dict[str, dict[str, Any]] = {  # the first ones have layers that return more than hidden states
    "bloom": {"hidden_size": 48, "n_layer": 3, "n_head": 4},
    "mpt": {"d_model": 48, "n_heads": 4, "n_layers": 3, "max_seq_len": 64},
    "gpt_neo": {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "deberta-v2": models.SIZES | models.OWN["deberta-v2"] | {"num_attention_heads": 4},
    "deberta": models.SIZES | {"num_attention_heads": 4, "pos_att_type": []},  # its forward looks at numbers
    "openai-gpt": {"n_embd": 48, "n_layer": 3, "n_head": 4},  # lists
    "mpnet": models.SIZES,
    "eurobert": models.SIZES,
    "nomic_bert": models.SIZES,
}
MASKED = ("deberta", "mpnet", "eurobert", "nomic_bert")


def other(family: str, **more: Any) -> Any:
    made = AutoConfig.for_model(family, **{"vocab_size": models.VOCAB, **OTHERS[family], **more})
    torch.manual_seed(0)
    auto = AutoModelForMaskedLM if family.startswith(MASKED) else AutoModelForCausalLM
    return auto.from_config(made, attn_implementation="eager").eval()


@pytest.mark.parametrize("family", OTHERS)
def test_it_measures_what_hooks_see_in_families_without_a_file(family: str) -> None:
    check_measured(other(family))


@pytest.mark.parametrize("family", ["bloom", "deberta", "deberta-v2"])
def test_layers_are_called_in_the_dtype_of_the_run(family: str) -> None:
    """Would catch: weights of another dtype where it is found out what a layer returns, so that it seems to be less."""
    model = other(family).bfloat16()
    names = matrices(model)
    layers = iter(Walk(model, weight_of(model), stack_of(model, names), batches(), torch.bfloat16))
    assert next(layers).collect({names[0]: BOTH})


def test_layers_that_take_tokens_in_another_order_are_refused() -> None:
    """As XLNet's, whose hidden states are (T, B, H): padding would be taken for tokens."""
    tall: dict[str, Any] = {"d_model": 48, "n_layer": 2, "n_head": 4, "d_inner": 96, "vocab_size": models.VOCAB}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("xlnet", **tall)).eval()
    with pytest.raises(NotCalibrated, match=r"hidden states of shape \(9, 2, 48\) for \(2, 9\) tokens"):
        Walk(model, weight_of(model), "transformer.layer", batches(), torch.float32)


def test_rows_of_no_token_count_as_much_as_tokens_whatever_the_batches() -> None:
    """Would catch: embeddings of positions that are taken for tokens, where there are as many, or that count once for
    each micro-batch; a value's inputs that have them, too."""
    model = other("deberta-v2")
    names = [f"deberta.encoder.layer.0.attention.self.{x}_proj.weight" for x in ("query", "key", "value")]
    found = []
    for length in (8, 9):  # there are 8 positions
        pairs = [{key: value[:, :length] for key, value in batch.items()} for batch in batches(padded=False)]
        singles = [{key: value[i : i + 1] for key, value in batch.items()} for batch in pairs for i in (0, 1)]
        for given in (pairs, singles):
            layer = next(iter(Walk(model, weight_of(model), stack_of(model, names), given, torch.float32)))
            found.append(layer.collect(dict.fromkeys(names, BOTH)))
    for whole, single in (found[:2], found[2:]):
        query, key, value = (whole[name] for name in names)
        assert query is key and query is not value
        positions = model.deberta.encoder.get_rel_embedding()[:8].detach().double()
        close(query[Gram].double() - value[Gram], (positions.T @ positions / 8).double())
        for name in names:
            close(single[name][Gram], whole[name][Gram])


def test_matrices_that_see_no_token_are_refused() -> None:
    model = other("deberta", relative_attention=True, pos_att_type=["c2p"])
    name = "deberta.encoder.layer.0.attention.self.pos_proj.weight"
    layer = next(iter(Walk(model, weight_of(model), stack_of(model, [name]), batches(), torch.float32)))
    with pytest.raises(NotCalibrated, match=r"pos_proj.weight is no linear map of each token .*: exclude it"):
        layer.collect({name: BOTH})


def test_a_model_that_changes_what_its_layers_give_is_refused() -> None:
    """A convolution behind DeBERTa's first layer, which a walk over the layers would leave out."""
    model = other("deberta-v2", conv_kernel_size=3, conv_act="gelu")
    with pytest.raises(NotCalibrated, match="Layer 1 gets more, or something else, than the hidden states"):
        Walk(model, weight_of(model), "deberta.encoder.layer", batches(), torch.float32)


def test_layers_that_tell_each_other_more_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in T5, whose first layer computes the bias of all."""
    layers = models.model("llama").model.layers
    kind: Any = type(layers[0])
    monkeypatch.setattr(kind, "forward", lambda layer, states, bias=None: (states, states.sum()))
    with (
        pytest.raises(NotCalibrated, match="Layer 1 gets more"),
        calls.recording(layers, [[], [], []], HiddenStates(), [torch.ones(1, 2)]),
    ):
        states, bias = layers[0](torch.ones(1, 2, models.HIDDEN))
        layers[1](states, bias=bias)


def test_a_forward_that_fails_without_its_layers_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.model("llama")
    monkeypatch.setattr(walks, "inputs_of", lambda batch, base: {"input_ids": None})
    with pytest.raises(
        NotCalibrated, match=r"this LlamaModel cannot be .*fails without them \(ValueError: You"
    ) as said:
        Walk(model, weight_of(model), "model.layers", batches(), torch.float32)
    assert "\n" not in str(said.value)


def test_embeddings_that_are_tied_to_a_head_in_front_of_them() -> None:
    """XLM-RoBERTa for masked tokens registers its head first, so its matrix has the head's name."""
    config = AutoConfig.for_model("xlm-roberta", **{**models.SIZES, "num_attention_heads": 4})
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config, attn_implementation="eager").eval()
    assert next(iter(dict(model.named_parameters()))).startswith("lm_head")
    check_measured(model)


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


def test_no_memory_for_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, on every rank: those that have memory would wait for the one that has none."""
    model = models.model("llama")
    names = matrices(model)

    class Another(Comm):
        def gather(self, item: Any) -> list[Any]:
            return [["the sentence of another rank"], item]

    def full(cls: Any, total: Any, inputs: Tensor) -> Tensor:
        return torch.empty(1 << 60)  # torch's own error

    layer = next(iter(Walk(model, weight_of(model), stack_of(model, names), batches(), torch.float32, Another())))
    with pytest.raises(NotCalibrated, match="the sentence of another rank"):
        layer.collect({names[0]: BOTH})
    monkeypatch.setattr(Gram, "add", classmethod(full))
    layer = next(iter(Walk(model, weight_of(model), stack_of(model, names), batches(), torch.float32)))
    with pytest.raises(NotCalibrated, match=r"no memory to measure .* of model.layers.0: .*exclude.*num_samples"):
        layer.collect({names[0]: BOTH})


@pytest.mark.parametrize("family", ["llama", "deberta-v2"])
def test_means_are_over_the_tokens_of_all_ranks(family: str) -> None:
    """Would catch: sums of one rank only. Ranks have different numbers of tokens, so a mean of their means is wrong."""
    dense = models.model(family)
    names = matrices(dense)
    stack = stack_of(dense, names)

    def work(comm: Comm, given: list[dict[str, Tensor]]) -> Any:
        now = copy.deepcopy(dense)
        weight = weight_of(now)
        walk = Walk(now, lambda name: weight(name).clone(), stack, given, torch.float32, comm, follow=True)
        means: dict[str, Any] = {}
        gaps: dict[str, Any] = {}
        for layer in walk:
            own = [name for name in names if name.startswith(f"{layer.name}.")]
            positions = [name for name in own if name.endswith(("query_proj.weight", "key_proj.weight"))]
            found = layer.collect_with_gaps({name: BOTH for name in own if name not in positions}, {})
            means, gaps = means | found[0] | layer.collect(dict.fromkeys(positions, BOTH)), gaps | found[1]
            with torch.no_grad():
                for name in own:
                    now.get_parameter(name)[:, ::2] = 0.0
        return means, gaps

    alone, (ranks, _) = work(LOCAL, batches()), run_ranks(2, lambda comm: work(comm, of_rank(comm.rank)))
    for means, gaps in ranks:
        for name in names:
            for found, expected in [
                *((means[name][kind], alone[0][name][kind]) for kind in BOTH),
                *((getattr(gaps[name], x), getattr(alone[1][name], x)) for x in ("cross", "mean") if name in gaps),
            ]:
                close(found, expected)


def close(found: Tensor, expected: Tensor) -> None:
    """As near as fp32 forwards of other batches come."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("scale", [1.0, 0.22])
def test_what_is_missing_counts_by_how_outputs_are_added(scale: float) -> None:
    """Granite's h + m f(h): m times what a map is asked to add has to make up for what its layer lacks. Against hooks
    on both whole models."""
    dense = models.model("granite", residual_multiplier=scale)
    now = copy.deepcopy(dense)
    maps = [f"model.layers.1.{name}.weight" for name in ("self_attn.o_proj", "mlp.down_proj")]
    walk = Walk(now, lambda name: weight_of(now)(name).clone(), "model.layers", batches(), torch.float32, follow=True)
    gaps: dict[str, Any] = {}
    for layer in walk:
        if layer.index == 0:
            with torch.no_grad():
                now.get_parameter("model.layers.0.mlp.down_proj.weight")[:, ::2] = 0.0
        if layer.index == 1:
            for at, name in enumerate(maps):
                gaps |= layer.collect_with_gaps({name: (SquaredNorm,)}, {name: maps[: at + 1]})[1]
    for name, place in zip(
        maps, ("model.layers.1.post_attention_layernorm", "model.layers.2.input_layernorm"), strict=True
    ):
        before, after = (inputs_of_module(model, place) for model in (dense, now))
        e, x = (before - after) / scale, inputs_of_module(now, name.removesuffix(".weight"))
        torch.testing.assert_close(gaps[name].cross, e.T @ x / len(e), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gaps[name].mean, e.mean(0), rtol=1e-4, atol=1e-5)


def inputs_of_module(model: Any, name: str) -> Tensor:
    """(N, d) fp64 of the real tokens."""
    found: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: found.append(args[0]))
    with torch.no_grad():
        for batch in batches():
            model(**{key: value for key, value in batch.items() if key != "labels"})
    handle.remove()
    masks = [batch["attention_mask"].bool() for batch in batches()]
    return torch.cat([x[mask] for x, mask in zip(found, masks, strict=True)]).double()
