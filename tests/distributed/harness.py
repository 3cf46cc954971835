"""A tiny Llama under real DeepSpeed, without data set, CLI or run directory: for checks of the core on many layouts."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from pat.checkpoint import store
from pat.common.parameters import DTYPES
from pat.models import trainable
from pat.pruning.calibration.calibrator import Surroundings
from pat.pruning.pruner import Pruner
from pat.schema import Config, PrunerConfig
from pat.training import learning_rate
from pat.zero import engine as ds
from pat.zero.layouts import Piece

STEPS = 12
SEQUENCE = 16
LLAMA = LlamaConfig(
    vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True, use_cache=False,
)  # fmt: skip
_TINY: dict[str, Any] = {"vocab_size": 61, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
_BERT: dict[str, Any] = _TINY | {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 32,
}  # fmt: skip
FAMILIES: dict[str, tuple[Any, Any]] = {  # with biases, residuals after the norm, transposed matrices
    "bert": (BertForMaskedLM, BertConfig(**_BERT, hidden_dropout_prob=0, attention_probs_dropout_prob=0)),
    "distilbert": (
        DistilBertForMaskedLM,
        DistilBertConfig(**_TINY, dim=24, hidden_dim=40, n_layers=2, n_heads=4, dropout=0, attention_dropout=0),
    ),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(**_TINY, n_embd=24, n_layer=2, n_head=4, n_positions=32, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
    ),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**_BERT, num_key_value_heads=2, head_dim=6, use_cache=False)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**_BERT, num_key_value_heads=2, use_cache=False)),
    "mixtral": (
        MixtralForCausalLM,
        MixtralConfig(**_BERT, num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2, use_cache=False),
    ),
}
MATRICES = ["*.q_proj.weight", "*.k_proj.weight", "*.v_proj.weight", "*.o_proj.weight", "*.mlp.*.weight"]

PRUNERS: dict[str, dict[str, Any]] = {
    "movement": {"criterion": {"name": "movement", "prior": 0.0}, "granularity": "weight", "sparsity": 0.8},
    "magnitude": {"criterion": "magnitude", "granularity": "weight", "sparsity": 0.7},
    "n_of_m": {  # sizes at which shard boundaries cut groups of 4, at ZeRO 1 and 2 as at ZeRO 3
        "criterion": "movement",
        "granularity": {"name": "n_of_m", "n": 2, "m": 4},
        "sparsity": 0.5,
        "exclude": ["*.down_proj.weight", "model.layers.1.mlp.up_proj.weight"],
        "shape": {
            "hidden_size": 28,
            "head_dim": 14,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 41,
        },
    },
    "block": {
        "criterion": {"name": "movement", "prior_score": "wanda"},
        "granularity": {"name": "block", "rows": 4, "cols": 8},
        "sparsity": 0.5,
    },
    "taylor": {"criterion": "taylor", "granularity": "weight", "sparsity": 0.6},
    "matrix": {"criterion": "movement", "granularity": "weight", "sparsity": 0.6, "scope": "matrix"},
    "rows": {"criterion": "taylor", "granularity": "weight", "sparsity": 0.6, "scope": "row"},
    "wanda": {"criterion": "wanda", "granularity": "weight", "sparsity": 0.5, "scope": "row"},
    "alps": {
        "criterion": {"name": "alps", "reconstruct": 1, "gradient_samples": 8},
        "granularity": "weight",
        "sparsity": 0.5,
    },
    "experts": {
        "criterion": {"name": "alps", "reconstruct": 1, "gradient_samples": 8},
        "granularity": "weight",
        "sparsity": 0.5,
        "params": ["all-linear"],
        "shape": {"model_type": "mixtral"},
    },
    "soft_movement": {
        "criterion": {"name": "soft_movement", "final_lambda": 4.0},
        "granularity": "weight",
        "sparsity": 0.75,
    },
} | {
    family: {
        "criterion": "movement",
        "granularity": "weight",
        "sparsity": 0.8,
        "params": params,
        "shape": {"model_type": family},
    }
    for family, params in {
        "bert": ["*.encoder.*.query.weight", "*.encoder.*.dense.weight"],
        "distilbert": ["*.q_lin.weight", "*.ffn.*.weight"],
        "gpt2": ["*.attn.*.weight", "*.mlp.*.weight"],
        "qwen2": MATRICES,
    }.items()
}


HALF: dict[str, Any] = {"name": "shape", "keep": {"ffn": 20, "kv_groups": 1}}
GATES: dict[str, dict[str, Any]] = {
    "l0": {"gate": {"name": "l0", "initial": 1.0}},
    "smooth": {"gate": "smooth"},
    "structured_movement": {"gate": {"name": "movement", "fade": 3}},
    "structured_taylor": {"gate": "taylor"},
    "structured_fisher": {"gate": "fisher"},
    "structured_magnitude": {"gate": "magnitude"},
    "activation": {"gate": "activation"},
    "obs": {"gate": {"name": "obs", "damping": 0.1}, "schedule": {"name": "one_shot", "start": 6}},
    "similarity": {
        "gate": "similarity",
        "structures": ["layers"],
        "budget": {"name": "shape", "keep": {"layers": 1}},
    },
    "ffn": {
        "gate": {"name": "l0", "initial": 1.0},
        "structures": ["ffn"],
        "budget": {"name": "shape", "keep": {"ffn": 20}},
    },
    "sublayers": {
        "gate": "taylor",
        "structures": ["attention_layers", "mlp_layers"],
        "budget": {"name": "shape", "keep": {"attention_layers": 1, "mlp_layers": 1}, "hf_compatible": False},
    },
    "sandwich": {  # gates after norms that multiply by 1 + weight
        "gate": {"name": "l0", "initial": 1.0},
        "structures": ["attention_layers", "mlp_layers"],
        "budget": {"name": "shape", "keep": {"attention_layers": 1, "mlp_layers": 1}, "hf_compatible": False},
        "shape": {"model_type": "gemma2"},
    },
}


def pruner_config(kind: str, **schedule: Any) -> PrunerConfig:
    """One of PRUNERS or GATES, soft from step 2 and hard at step 8."""
    ramp = {"name": "cubic", "start": 2, "end": 8, "select_every": 2} | schedule
    if kind in GATES:
        spec = GATES[kind]
        structures, ramp = spec.get("structures", ["ffn", "kv_groups"]), spec.get("schedule", ramp)
        return PrunerConfig(structures=structures, gate=spec["gate"], budget=spec.get("budget", HALF), schedule=ramp)
    spec = PRUNERS[kind]
    return PrunerConfig(
        params=spec.get("params", MATRICES),
        exclude=spec.get("exclude", []),
        granularity=spec["granularity"],
        criterion=spec["criterion"],
        scope=spec.get("scope", "global"),
        allow_empty_matrices=True,  # they are tiny
        budget={"name": "sparsity", "sparsity": spec["sparsity"]},
        schedule=ramp,
    )


def make_config(pruner: str | None = "movement", **overrides: Any) -> Config:
    """Global batch 8 without accumulation, foreach AdamW (independent of shard cuts), clipping that clips."""
    values: dict[str, Any] = {
        "train__num_steps": STEPS,
        "train__global_batch_size": 8,
        "train__micro_batch_size": 8 // dist.get_world_size(),
        "engine__world_size": dist.get_world_size(),
        "engine__gradient_clipping": 0.2,
        "engine__kernels": "eager",
        "optim__lr": 5e-3,
        "optim__weight_decay": 0.1,
        "optim__implementation": "foreach",
    }
    if pruner:
        values["pruners__weights"] = pruner_config(pruner)
        values["model__config"] = (PRUNERS | GATES).get(pruner, {}).get("shape", {})
    return Config().changed(**values | overrides)


def settings(config: Any) -> dict[str, Any]:
    """The pruner's settings of a config as a user of another trainer writes them."""
    pruner = config.pruners["weights"]
    keys = (
        "params",
        "exclude",
        "granularity",
        "criterion",
        "scope",
        "allow_empty_matrices",
        "structures",
        "gate",
        "budget",
        "schedule",
    )
    content = {key: getattr(pruner, key) for key in keys if getattr(pruner, key)}
    if pruner.structures:
        content.pop("scope")
    return {"pruners": {"weights": content}, "seed": config.seed, "kernels": "eager"}


def text(seed: int, rows: int) -> torch.Tensor:
    """(rows, S) tokens that can be learned: each is its predecessor plus a step that the row keeps."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(0, LLAMA.vocab_size, (rows, 1), generator=generator)
    stride = torch.randint(1, 4, (rows, 1), generator=generator)
    return (first + stride * torch.arange(SEQUENCE)) % LLAMA.vocab_size


def batch(t: int, micro: int, config: Config) -> torch.Tensor:
    """(micro batch, S) tokens of this rank: the global batch depends on the seed and the step only."""
    tokens = text(1000 * (config.seed + 1) + t, config.train.global_batch_size)
    size = ds.micro_batch_size(config)
    start = micro * size * dist.get_world_size() + dist.get_rank() * size
    return tokens[start : start + size]


def inputs(tokens: torch.Tensor, config: Config) -> dict[str, torch.Tensor]:
    """What the model gets of (micro batch, S) tokens. Where gates count tokens, the first token says how many of a row
    are no padding: the ranks have different numbers."""
    found = {"input_ids": tokens, "labels": tokens}
    if any(pruner.gate in ("activation", {"name": "activation"}) for pruner in config.pruners.values()):
        found["attention_mask"] = (torch.arange(SEQUENCE) < 3 + tokens[..., :1] % (SEQUENCE - 2)).long()
    return found


@dataclass
class Trained:
    """An engine and its pruner."""

    config: Config
    engine: Any
    pruner: Pruner

    def run(self, start: int, stop: int, poison: int | None = None) -> None:
        """Steps start to stop; the loss of step `poison` is infinite on the last rank."""
        accumulation = self.engine.gradient_accumulation_steps()
        for t in range(start, stop):
            ds.set_lr(self.engine, learning_rate.lr_factor(t, STEPS, self.config.optim))
            for micro in range(accumulation):
                tokens = batch(t, micro, self.config)
                loss = self.loss(tokens, t)
                if t == poison and dist.get_rank() == dist.get_world_size() - 1:
                    loss = loss * float("inf")
                self.engine.backward(loss)
                if micro + 1 < accumulation:
                    self.engine.step()
            self.stats = self.pruner.step(t)

    def loss(self, tokens: torch.Tensor, t: int) -> torch.Tensor:
        """Of step t."""
        return self.engine(**inputs(tokens, self.config)).loss

    def held_out_loss(self) -> float:
        """Mean loss on tokens that no step sees, the same on every rank. Collective at ZeRO 3."""
        tokens = text(7, 64)
        self.engine.eval()
        with torch.no_grad():
            loss = float(self.engine(input_ids=tokens, labels=tokens).loss)
        self.engine.train()
        return loss

    def result(self) -> dict[str, Any]:
        """Hashes and counted sparsity."""
        masks, weights = self.pruner.hashes()
        return {"masks": masks, "weights": weights, "sparsity": self.pruner.totals.sparsity}


def build_model(config: Config, reference: Any = None) -> Any:
    """The tiny model, or one like `reference`; the same initial weights whatever the layout."""
    torch.manual_seed(0)
    dtype = DTYPES[config.engine.dtype]
    if reference is not None:
        family, shape = type(reference), reference.config
    elif config.model.config.get("model_type") in FAMILIES:
        family, shape = FAMILIES[config.model.config["model_type"]]
    else:
        family, shape = LlamaForCausalLM, LlamaConfig(**LLAMA.to_dict() | config.model.config)
    reference = reference or family(copy.deepcopy(shape))
    state = {n: p.detach().to(dtype) for n, p in reference.named_parameters()}
    ds_config = ds.deepspeed_config(config)
    with ds.model_construction(config, ds_config):
        model = family._from_config(copy.deepcopy(shape), dtype=dtype)
    if config.engine.zero_stage == 3:
        import deepspeed

        for name, param in model.named_parameters():
            with deepspeed.zero.GatheredParameters([param], modifier_rank=0):
                if dist.get_rank() == 0:
                    param.data.copy_(state[name])
    else:
        model.load_state_dict(state, strict=False)
    trainable.choose_trainable(model, config)
    return model


def build(config: Config, reference: Any = None) -> Trained:
    """The tiny model, or one like `reference`, with engine and pruner."""
    model = build_model(config, reference)
    pruner = Pruner(config)
    pruner.attach(model)
    engine = ds.build_engine(config, model, pruner.owner, ds.deepspeed_config(config))
    pruner.bind(engine)
    pruner.calibrator.surroundings = Surroundings(
        samples=lambda number: [inputs(batch(-1 - i, 0, config), config) for i in range(max(1, number // 64))]
    )
    trained = Trained(config, engine, pruner)
    pruner.begin(0)
    return trained


def discard(trained: Trained) -> None:
    """Free an engine, so that one start can build many."""
    trained.engine.destroy()
    del trained.engine, trained.pruner
    gc.collect()


def from_rank_0(item: Any) -> Any:
    """Rank 0's item."""
    items = [item]
    dist.broadcast_object_list(items, src=0)
    return items[0]


def undisturbed_and_interrupted(make: Callable[[], Trained], stops: Sequence[int]) -> list[dict[str, Any]]:
    """Digests at the end of a run, and of one that is saved, thrown away and loaded after each of `stops` steps."""
    trained = make()
    trained.run(0, STEPS)
    found = [digest(trained)]
    discard(trained)
    with tempfile.TemporaryDirectory() as folder:
        root, at, trained = Path(from_rank_0(folder)), 0, make()
        for stop in stops:
            trained.run(at, stop)
            store.save(trained.engine, trained.pruner, root, stop, {}, {})
            discard(trained)
            trained, at = make(), stop
            reader = store.find(root, trained.pruner.layout.world, print)
            assert reader is not None
            store.load(trained.engine, trained.pruner, reader)
        trained.run(at, STEPS)
        found.append(digest(trained))
        discard(trained)
        dist.barrier()
    return found


def digest(trained: Trained) -> dict[str, Any]:
    """Everything that a resume must restore, independent of the layout."""
    layout, pruner = trained.pruner.layout, trained.pruner
    masks, weights = pruner.hashes()
    found: dict[str, Any] = {"masks": masks, "weights": weights, "steps": set(), "decay": {}}
    found["gates"] = [
        [structure_pruner.state.begun, structure_pruner.state.hardened]
        + [hashlib.sha256(value.numpy().tobytes()).hexdigest() for value in structure_pruner.tensors().values()]
        for structure_pruner in pruner.structure_pruners
    ]
    for kind in ("exp_avg", "exp_avg_sq", "score", "dense"):
        sha = hashlib.sha256()
        for name, param in sorted(layout.parameters.items()):
            if param.requires_grad:
                whole = layout.assemble(name, pieces_of(trained, kind, name), torch.float32)
                sha.update((whole + 0.0).numpy().tobytes())
        found[kind] = sha.hexdigest()
    for shard in layout.shards:
        state, group = layout.base.state[shard.flat], layout.group_of(shard)
        for s in shard.segments:
            found["steps"].add(float(state["step"]))
            found["decay"][s.name] = group["base_weight_decay"]
    decay = {k: v for part in layout.world.gather(found["decay"]) for k, v in part.items()}
    return found | {"steps": sorted(found["steps"]), "decay": decay, "sparsity": pruner.totals.sparsity}


def pieces_of(trained: Trained, kind: str, name: str) -> list[Piece]:
    """This rank's part of a parameter's moment, score or dense weight."""
    pruner, layout = trained.pruner, trained.pruner.layout
    if layout.replicated and layout.world.rank:
        return []
    states = {id(s.shard.flat): s for m in pruner.weight_pruners for s in m.states}
    pieces = []
    for shard in layout.shards:
        if kind in ("exp_avg", "exp_avg_sq"):
            value = layout.base.state[shard.flat][kind].view(-1)
        else:
            value = getattr(states.get(id(shard.flat)), kind, None)
        if value is not None:
            pieces += [Piece(s.start, value[s.part]) for s in shard.segments if s.name == name]
    return pieces


def main(checks: Any) -> None:
    """Rank entry: `checks(args) -> dict` on every rank, rank 0 writes the result."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    config = Config()
    ds.init_distributed(config)
    import tests.distributed.frozen  # noqa: F401  # else each engine that is collected would have the modules looked at

    result = checks(sys.argv[2:])
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(result))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)
