"""What pruning adds to a training step and to a checkpoint: DeepSpeed alone against soft and hard, interleaved.

    python tests/benchmarks/bench_step.py [--rounds 8] [--layers 30] [--tokens 512] [--gates] [--json FILE]

SmolLM2-135M's shape with random weights, 2 ranks of one thread, ZeRO 2, bf16, fused AdamW, one process per rank that
holds all engines and steps them in turn. Figures are ratios of medians in one run; absolute times say little here.
Kinds: soft and hard are movement masks on all matrices in those phases; with --gates instead l0 (neurons and KV groups,
soft phase) and harvest (structured movement in its dense phase, all gates 1).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from pat.checkpoint import store
from pat.pruning.pruner import Pruner
from pat.schema import Config, PrunerConfig
from pat.zero import engine as ds
from tests.distributed.harness import Trained, main
from tests.distributed.ranks import run_ranks

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


SAVES = 5  # of each kind that count
EVERY = 10  # steps between selections, as in the recipes
MASKS, GATES = ("soft", "hard"), ("l0", "harvest")


def make(kind: str, layers: int, tokens: int) -> Trained:
    """An engine of one kind; `hard` is so from step 1 on."""
    ranks = dist.get_world_size()
    pruners = {}
    if kind in GATES:
        pruners["narrow"] = PrunerConfig(
            structures=["ffn", "kv_groups"],
            gate="l0" if kind == "l0" else "movement",
            budget={"name": "shape", "keep": {"ffn": 768, "kv_groups": 2}},
            schedule={"name": "linear", "start": 0 if kind == "l0" else 9_998, "end": 9_999, "select_every": EVERY},
        )
    if kind in MASKS:
        start, end = (0, 9_999) if kind == "soft" else (0, 1)
        pruners["weights"] = PrunerConfig(
            params=["*_proj.weight"],
            granularity="weight",
            criterion="movement",
            budget={"name": "sparsity", "sparsity": 0.9},
            schedule={"name": "cubic", "start": start, "end": end, "select_every": EVERY if kind == "soft" else 1},
        )
    config = Config().changed(
        train__num_steps=10_000, train__global_batch_size=ranks, engine__world_size=ranks,
        optim__lr=1e-4, optim__weight_decay=0.01, pruners=pruners,
    )  # fmt: skip
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=tokens, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM._from_config(shape, dtype=torch.bfloat16)
    pruner = Pruner(config)
    pruner.attach(model)
    engine = ds.build_engine(config, model, pruner.owner, ds.deepspeed_config(config))
    pruner.bind(engine)
    trained = Trained(config, engine, pruner)
    pruner.begin(0)
    return trained


def step(trained: Trained, t: int, tokens: int) -> dict[str, float]:
    """One step; seconds of the whole, and of the part from gradients to weights."""
    ids = torch.randint(0, 49_152, (1, tokens), generator=torch.Generator().manual_seed(t))
    dist.barrier()
    start = time.perf_counter()
    ds.set_lr(trained.engine, 1.0)
    loss = trained.engine(input_ids=ids, labels=ids).loss
    trained.engine.backward(loss)
    middle = time.perf_counter()
    trained.pruner.step(t)
    end = time.perf_counter()
    return {"step": end - start, "update": end - middle}


def checks(args: list[str]) -> dict[str, Any]:
    """Rank side."""
    (rounds, layers, tokens), kinds = map(int, args[:3]), args[3:]
    engines = {kind: make(kind, layers, tokens) for kind in ("dense", *kinds)}
    seconds: dict[str, list[dict[str, float]]] = {kind: [] for kind in engines}
    selections = []
    for t in range(3):  # warm up: compile, first selection, optimizer state; `hard` hardens at step 1
        for trained in engines.values():
            step(trained, t, tokens)
    for r in range(rounds):
        order = list(engines)[r % 3 :] + list(engines)[: r % 3]
        for kind in order:
            seconds[kind].append(step(engines[kind], 3 + r % (EVERY - 3), tokens))  # never a selection step
    for k in range(3 * ("soft" in engines)):
        weight_pruner = engines["soft"].pruner.weight_pruners[0]
        dist.barrier()
        start = time.perf_counter()
        with torch.no_grad():
            weight_pruner._select(EVERY * (k + 1))
        selections.append(time.perf_counter() - start)
    said: dict[str, Any] = {"rounds": rounds, "layers": layers, "tokens_per_rank": tokens, "every": EVERY}
    median = {k: {p: statistics.median(x[p] for x in v) for p in ("step", "update")} for k, v in seconds.items()}
    said["dense_step_seconds"] = median["dense"]["step"]
    for kind in kinds:
        pairs = [x["step"] / y["step"] for x, y in zip(seconds[kind], seconds["dense"], strict=True)]
        said[kind] = {
            "step_ratio": median[kind]["step"] / median["dense"]["step"],
            "step_ratio_paired": statistics.median(pairs),
            "update_ratio": median[kind]["update"] / median["dense"]["update"],
            "added_over_step": (median[kind]["update"] - median["dense"]["update"]) / median["dense"]["step"],
            "state_bytes_per_weight_and_rank": engines[kind].pruner.state_bytes() / engines[kind].pruner.totals.numel,
        }
    if selections:
        said["selection_over_step"] = statistics.median(selections) / median["dense"]["step"]
        said["soft"]["added_with_selection"] = said["soft"]["added_over_step"] + said["selection_over_step"] / EVERY
    with tempfile.TemporaryDirectory() as folder:
        root = [folder]
        dist.broadcast_object_list(root, src=0)
        times: dict[str, list[float]] = {kind: [] for kind in ("deepspeed", *engines)}
        for round_ in range(SAVES + 1):  # in turn; the first save of each, which makes files and caches, does not count
            for kind in times:
                trained, folder_of = engines.get(kind, engines["dense"]), Path(root[0]) / kind
                dist.barrier()
                start = time.perf_counter()
                if kind == "deepspeed":
                    trained.engine.save_checkpoint(str(folder_of), tag=f"{round_}", save_latest=False)
                    seconds_, size = time.perf_counter() - start, _size(folder_of / f"{round_}")
                else:
                    saved = (trained.engine, trained.pruner, folder_of, round_, {}, {})
                    _, seconds_, size = store.timed(lambda saved=saved: store.save(*saved))
                dist.barrier()
                if dist.get_rank() == 0:
                    shutil.rmtree(folder_of)  # each writes into an empty folder
                times[kind] += [seconds_] if round_ else []
                said.setdefault(kind, {})["save_bytes"] = size
        for kind, values in times.items():
            said[kind] |= {"save_seconds": statistics.median(values), "saves": len(values)}
        dist.barrier()
    return said


def _size(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def table(r: dict[str, Any]) -> str:
    """The figures as text."""
    tokens, rounds = r["tokens_per_rank"], r["rounds"]
    lines = [f"135 M Llama shape ({r['layers']} layers), 2 ranks, ZeRO 2, {tokens} tokens/rank, {rounds} rounds"]
    lines.append(f"{'':8} {'step / dense':>13} {'paired':>8} {'added / step':>13} {'bytes/weight/rank':>18}")
    for kind in (kind for kind in MASKS + GATES if kind in r):
        x = r[kind]
        lines.append(
            f"{kind:8} {x['step_ratio']:13.3f} {x['step_ratio_paired']:8.3f} {x['added_over_step']:13.4f} "
            f"{x['state_bytes_per_weight_and_rank']:18.2f}"
        )
    if "soft" in r:
        lines.append(
            f"selection / step {r['selection_over_step']:.4f}, every {r['every']} steps; "
            f"soft with it {r['soft']['added_with_selection']:.4f}"
        )
    plain = r["deepspeed"]["save_bytes"]
    for kind in (kind for kind in ("dense", *MASKS, *GATES) if kind in r):
        x = r[kind]
        lines.append(
            f"save {kind:7} {x['save_bytes'] / plain:6.3f} of DeepSpeed's bytes, "
            f"{x['save_seconds'] / r['deepspeed']['save_seconds']:6.2f} of its seconds (fsync and sha256 included)"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) > 4 and sys.argv[1].endswith("out.json"):
        main(checks)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--gates", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    kinds = GATES if options.gates else MASKS
    arguments = [*map(str, (options.rounds, options.layers, options.tokens)), *kinds]
    result = run_ranks("tests.benchmarks.bench_step", 2, *arguments, timeout_s=3600)
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
