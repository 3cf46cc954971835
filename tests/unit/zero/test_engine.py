"""DeepSpeed's config, param groups and the learning rate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from pat.models import trainable
from pat.pruning.pruner import Pruner
from pat.schema import Config, OptimConfig, PrunerConfig
from pat.training import learning_rate
from pat.zero import engine
from pat.zero.config_keys import TESTED, leaves
from tests.distributed import layouts


def config(**ours: Any) -> Config:
    made = Config().changed(train__num_steps=100, train__global_batch_size=16, engine__world_size=2, optim__lr=1e-3)
    return made.changed(**{f"engine__{key}": value for key, value in ours.items()})


def test_batch_sizes_add_up() -> None:
    made = config().changed(train__micro_batch_size=2)
    ds = engine.deepspeed_config(made)
    assert (ds["train_batch_size"], ds["train_micro_batch_size_per_gpu"], ds["gradient_accumulation_steps"]) == (
        16,
        2,
        4,
    )
    made = made.changed(train__micro_batch_size=None)
    assert engine.deepspeed_config(made)["gradient_accumulation_steps"] == 1


def test_gradients_are_reduced_in_fp32_unless_told() -> None:
    assert engine.deepspeed_config(config())["communication_data_type"] == "fp32"
    assert "communication_data_type" not in engine.deepspeed_config(config(reduce_dtype="model"))


def test_the_users_keys_are_merged(tmp_path: Path) -> None:
    keys = {
        "zero_optimization": {"stage": 2, "overlap_comm": False},
        "wall_clock_breakdown": True,
        "train_batch_size": "auto",
    }
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(keys))
    for given in (keys, str(file)):
        ds = engine.deepspeed_config(config(deepspeed=given))
        assert ds["zero_optimization"] == {"stage": 2, "overlap_comm": False}
        assert ds["wall_clock_breakdown"] and ds["train_batch_size"] == 16


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage=3"),
        ({"train_batch_size": 8}, "train_batch_size=8"),
        ({"zero_optimization": {"round_robin_gradients": True}}, "round_robin_gradients"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, "NVMe"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu", "ratio": 0.5}}}, "outside pat's hooks"),
        ({"zero_optimization": {"zenflow": {"topk_ratio": 0.1}}}, "outside pat's hooks"),
        ({"zero_optimization": {"zero_hpz_partition_size": 2}}, "hpz"),
        ({"data_types": {"grad_accum_dtype": "fp32"}}, "grad_accum_dtype"),
        ({"optimizer": {"type": "AdamW"}}, "set optim"),
        ({"bf16": {"bf16_master_weights_and_grads": True}}, r"untested=\[bf16.bf16_master_weights_and_grads\]"),
        (
            {"zero_optimization": {"zero_quantized_weights": True}},
            "zero_quantized_weights=True, with which pruning was",
        ),
        ({"sequence_parallel_size": 2}, "sequence_parallel_size=2, with which"),
        ({"compile": {"deepcompile": True}}, r"untested=\[compile.deepcompile\]"),
        (
            {"compression_training": {"sparse_pruning": {"enabled": True}}},
            "compression_training.sparse_pruning.enabled",
        ),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "set engine.offload_optimizer instead"),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, "never tested"),
        ({"activation_checkpointing": {"profile": True}}, "set engine.activation_checkpointing instead"),
        (
            {"zero_optimization": {"reduce_bucketsize": 5}},
            "allowed: steps_per_print, .*did you mean zero_optimization.reduce_bucket_size",
        ),
        ("/nowhere/ds.json", "not a readable DeepSpeed JSON"),
    ],
)
def test_conflicts_and_unsafe_layouts_are_refused(keys: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        engine.deepspeed_config(config(deepspeed=keys))


def test_what_switches_a_thing_off_and_what_pat_sets_alike_are_no_untested_keys() -> None:
    keys = {
        "zero_optimization": {
            "round_robin_gradients": False, "zenflow": None, "mics_shard_size": -1, "zero_hpz_partition_size": 1,
            "offload_optimizer": {"device": "none", "ratio": 1.0}, "offload_param": {"device": "none"},
        },
        "train_micro_batch_size_per_gpu": 8,
        "bf16": {"enabled": "auto", "loss_scale": "auto"},
        "gradient_clipping": 1.0,
    }  # fmt: skip
    assert engine.deepspeed_config(config(deepspeed=keys))["zero_optimization"]["round_robin_gradients"] is False


def test_untested_keys_are_taken_when_the_user_insists() -> None:
    keys = {"compile": {"deepcompile": True}, "fp16": {"loss_scale": 8, "hysteresis": 3}, "wall_clock_breakdown": True}
    ds = engine.deepspeed_config(
        config(deepspeed=keys, deepspeed_untested=["compile", "fp16.loss_scale", "fp16.hysteresis"])
    )
    assert ds["compile"] == {"deepcompile": True} and ds["fp16"] == {"enabled": False, "loss_scale": 8, "hysteresis": 3}
    with pytest.raises(ValueError, match="untested=.fp16.hysteresis."):
        engine.deepspeed_config(config(deepspeed=keys, deepspeed_untested=["compile", "fp16.loss_scale"]))
    with pytest.raises(
        ValueError, match="names fp61, which engine.deepspeed does not set; it sets compile.deepcompile"
    ):
        engine.deepspeed_config(config(deepspeed=keys, deepspeed_untested=["fp61"]))
    broken = {"zero_optimization": {"round_robin_gradients": True}}
    with pytest.raises(ValueError, match="shuffled"):
        engine.deepspeed_config(
            config(deepspeed=broken, deepspeed_untested=["zero_optimization.round_robin_gradients"])
        )


def test_every_key_that_is_called_tested_is_in_a_layout_of_the_parity_test() -> None:
    given = [layouts.ALL[f"zero{stage} every key"]["engine__deepspeed"] for stage in (2, 3)]
    assert {key for keys in given for key, _ in leaves(keys)} == set(TESTED)


def test_learning_rate() -> None:
    optim = OptimConfig(lr=1.0, warmup=0.1, lr_schedule="linear", min_lr_ratio=0.2)
    factors = [learning_rate.lr_factor(t, 100, optim) for t in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == 1.0
    assert factors[100] == pytest.approx(0.2) and factors[55] == pytest.approx(0.6)
    optim = optim.changed(lr_schedule="cosine")
    found = [learning_rate.lr_factor(t, 100, optim) for t in (10, 40, 55, 70, 100)]  # cos 60 deg = 1/2 after a third
    assert found == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    optim = optim.changed(lr_schedule="constant", warmup=5)
    assert [learning_rate.lr_factor(t, 100, optim) for t in (0, 4, 5, 99)] == [0.2, 1.0, 1.0, 1.0]


def test_learning_rate_begins_again_at_every_cut() -> None:
    optim = OptimConfig(lr=1.0, warmup=4, lr_schedule="per_cut", min_lr_ratio=0.5)
    factors = [learning_rate.lr_factor(t, 40, optim, cuts=(2, 10, 20)) for t in range(40)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]  # a cut in the warm-up changes nothing
    assert factors[7] == 0.75 and factors[9] == pytest.approx(1 - 0.5 * 5 / 6)
    assert factors[10] == factors[20] == 1.0 and factors[15] == factors[30] == 0.75
    assert factors[19] == pytest.approx(0.55) and factors[39] == pytest.approx(0.525)


def bert() -> BertForSequenceClassification:
    shape = BertConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=30)
    return BertForSequenceClassification(shape)


def test_prunable_weights_have_groups_of_their_own() -> None:
    model = bert()
    query = "bert.encoder.layer.0.attention.self.query.weight"
    optim = OptimConfig(lr=1.0, weight_decay=0.1, head_lr=2.0, no_decay=["*embeddings*"])
    groups = engine.param_groups(model, optim, {query: "weights"})
    names = {id(p): n for n, p in model.named_parameters()}
    of = {names[id(p)]: g for g in groups for p in g["params"]}
    assert len(of) == len(names) == sum(len(g["params"]) for g in groups)
    assert [names[id(p)] for p in of[query]["params"]] == [query]
    assert of["classifier.weight"]["base_lr"] == 2.0 and of[query]["base_lr"] == 1.0
    assert of["bert.embeddings.word_embeddings.weight"]["weight_decay"] == 0.0
    assert of["classifier.bias"]["weight_decay"] == 0.0 and of[query]["weight_decay"] == 0.1


def test_a_wider_model_takes_a_lower_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    model, query = bert(), "bert.encoder.layer.0.attention.self.query.weight"  # hidden size 16
    rates = {}
    for width in (None, 4, 16, 32):
        optim = OptimConfig(lr=1.0, base_width=width, head_lr=2.0)
        of = {id(p): g["base_lr"] for g in engine.param_groups(model, optim, {}) for p in g["params"]}
        rates[width] = (of[id(model.get_parameter(query))], of[id(model.classifier.weight)])
    assert rates == {None: (1.0, 2.0), 4: (0.25, 2.0), 16: (1.0, 2.0), 32: (1.0, 2.0)}
    monkeypatch.delattr(BertConfig, "hidden_size")
    del model.config.hidden_size
    with pytest.raises(ValueError, match=r"has no hidden_size: give a rate of your own, optim.lr=1, which"):
        engine.param_groups(model, OptimConfig(lr=1.0, base_width=4), {})


@pytest.mark.parametrize("implementation", ["foreach", "loop"])
def test_the_optimizer_has_the_settings_of_the_config(implementation: Any) -> None:
    model = torch.nn.Linear(2, 2)
    optim = OptimConfig(lr=0.5, betas=[0.8, 0.95], eps=1e-4, weight_decay=0.1, implementation=implementation)
    built = engine.build_optimizer(engine.param_groups(model, optim, {}), optim)
    assert isinstance(built, torch.optim.AdamW)
    for group in built.param_groups:
        assert (group["betas"], group["eps"], group["foreach"]) == ((0.8, 0.95), 1e-4, implementation == "foreach")


def test_trainable_patterns() -> None:
    model = bert()
    trainable.freeze(model, ["classifier.*"])
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"classifier.weight", "classifier.bias"}
    with pytest.raises(ValueError, match="matches no parameter"):
        trainable.freeze(model, ["nothing.*"])


def pruner(granularity: Any, params: list[str], model: torch.nn.Module, **more: Any) -> Pruner:
    weights = PrunerConfig(
        params=params, granularity=granularity, criterion=more.pop("criterion", "movement"),
        budget={"name": "sparsity", "sparsity": 0.5}, schedule={"name": "cubic", "start": 1, "end": 5}, **more,
    )  # fmt: skip
    attached = Pruner(config().changed(pruners__weights=weights))
    attached.attach(model)
    return attached


def test_what_cannot_be_pruned_is_refused() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=30, n_positions=16))
    assert pruner("weight", ["*.c_fc.weight"], gpt2).totals.numel == 16 * 64
    with pytest.raises(ValueError, match="Conv1D"):
        pruner({"name": "n_of_m", "n": 2, "m": 4}, ["*.c_fc.weight"], gpt2)
    with pytest.raises(ValueError, match="matches no matrix"):
        pruner("weight", ["*.nothing.weight"], gpt2)
    with pytest.raises(ValueError, match="threshold"):
        pruner({"name": "n_of_m", "n": 2, "m": 4}, ["*.query.weight"], bert(), criterion="soft_movement")
    frozen = bert()
    trainable.freeze(frozen, ["classifier.*"])
    with pytest.raises(ValueError, match="leaves frozen"):
        pruner("weight", ["*.query.weight"], frozen)


def test_matrices_decay_and_vectors_do_not() -> None:
    """Group by group what torch's AdamW gets: lr 0 until the first step sets it from the base rate."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2, bias=False))
    optim = OptimConfig(lr=0.02, weight_decay=0.3, no_decay=["2.weight"])
    groups = engine.param_groups(model, optim, {"0.weight": "masks"})
    names = {id(p): n for n, p in model.named_parameters()}
    found = {names[id(p)]: group for group in groups for p in group["params"]}
    assert set(found) == {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight"}
    for name, group in found.items():
        decay = 0.3 if name == "0.weight" else 0.0
        assert (group["weight_decay"], group["base_weight_decay"]) == (decay, decay), name
        assert (group["lr"], group["base_lr"]) == (0.0, 0.02)
    assert found["0.weight"]["params"] != found["2.weight"]["params"], "a pruner's weights have groups of their own"


def test_a_value_that_deepspeed_refuses_is_one_sentence() -> None:
    """Would catch: a job that waits for a day in a queue and ends in its first second."""

    def made(size: Any) -> Config:
        return config(deepspeed={"zero_optimization": {"reduce_bucket_size": size}})

    with pytest.raises(ValueError, match="DeepSpeed refuses reduce_bucket_size='abc': Input should be a valid integer"):
        engine.check_values(made("abc"))
    engine.check_values(made(1_000_000))


@pytest.mark.parametrize("told, found", [(None, "cuda"), ("cuda", "cuda"), ("cpu", "cpu")])
def test_a_machine_with_gpus_may_be_told_to_use_none(
    told: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: a model on the card beside ranks that DeepSpeed has put on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    if told is not None:
        monkeypatch.setenv("DS_ACCELERATOR", told)
    assert engine.accelerator() == found
