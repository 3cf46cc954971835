"""What is asked, in which order, and what comes of the times: against numpy and models of known speed."""

from __future__ import annotations

import io
import itertools
import json
import multiprocessing
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, Qwen3MoeConfig

from pat.models import families
from pat.models import operations as counting
from pat.profiling import backends, operations, plan, report, table, vllm
from pat.profiling.backends.eager import _Torch
from pat.profiling.figures import Facts, Profile, profile
from pat.profiling.measure import Samples, calls, measure
from pat.profiling.plan import Plan, Work
from pat.profiling.worker import Worker
from pat.prompts.mix import Head, Mix, Prompt
from pat.pruning import registry
from pat.pruning.structures.costs import dense_widths, flops
from tests import models

FACTS = Facts("model", "eager", "a device", bytes_on_disk=1, weights_sha256="w", flops=2, flops_tokens=3)


def of_speed(seconds: float, log: list[int] | None = None, number: int = 0) -> Any:
    """A model that takes `seconds` a token, on a machine that gets slower with each call."""
    count = itertools.count()

    def run(work: Work) -> list[float]:
        if log is not None:
            log.append(number)
        each = seconds * (1.0 + 0.01 * next(count))
        return [each * (i + 1) for i in range(work.output_tokens + 1)]

    return run


def profiled(made: Plan, speeds: list[float], price: float | None = None) -> list[Profile]:
    samples = measure(made, [of_speed(each) for each in speeds], seed=0, warm_up=1)
    return [profile(FACTS, made, one, samples[0] if i else None, price, 0.95, seed=0) for i, one in enumerate(samples)]


def test_models_take_turns() -> None:
    """A fault in the order would give one model the better places."""
    made = plan.of_lengths([(8, 4)], [1, 2], 400)
    blocks = made.blocks(3, seed=1)
    assert len(blocks) == 400 + 100, "batch size 1 is a request anyway"
    assert all(block.rounds[1] == block.rounds[0][::-1] for block in blocks)
    assert all(sorted(block.order) == [0, 1, 2] for block in blocks)
    counts = Counter(block.order for block in blocks)
    assert len(counts) == 6 and min(counts.values()) > 50, "every order as often"
    log: list[int] = []
    runs = [of_speed(1.0, log, i) for i in range(3)]
    advanced: list[int] = []
    measure(made, runs, seed=1, warm_up=2, advance=advanced.append)
    assert len(log) == sum(advanced) == calls(made, 3, warm_up=2)
    assert log[2 * 2 * 3 :][:6] == [*blocks[0].order, *reversed(blocks[0].order)]
    grid = [k for k, block in enumerate(blocks) if block.work.batch_size == 2]
    assert min(grid) < 100 and max(grid) > 400, "no kind of work has a stretch of time to itself"


def test_percentiles_are_numpys() -> None:
    samples, rng = Samples(), np.random.default_rng(0)
    made = plan.of_lengths([(8, 3)], [1], 30)
    laps = np.cumsum(rng.exponential(1.0, (30, 2, 4)), axis=2)
    for work, block in zip(made.requests, laps, strict=True):
        samples.add(work, block.tolist())
    found = profile(FACTS, made, samples, None, 3.6, 0.95, 0)
    for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        for figure, values in (
            ("latency", laps[:, :, 3]),
            ("prefill", laps[:, :, 0]),
            ("time_to_first_token", laps[:, :, 1]),
            ("decode", np.diff(laps[:, :, 1:], axis=2)),
        ):
            assert getattr(found, f"{figure}_{name}") == pytest.approx(np.quantile(values, q))
    assert found.tokens_per_s == pytest.approx(3 / np.median(laps[:, :, 3]))
    assert found.cost_per_million_tokens == pytest.approx(3.6 / 3600 / found.tokens_per_s * 1e6)
    plain = json.loads(json.dumps(found.plain()))
    assert (plain["folder"], plain["weights_sha256"]) == ("model", "w")


def test_ratios_are_of_pairs() -> None:
    made = plan.of_lengths([(8, 4), (16, 2)], [1, 4], 12)
    same, half = profiled(made, [1.0, 1.0, 0.5], price=2.0)[1:]
    for name in ("latency", "prefill", "time_to_first_token", "decode", "latency_p95"):
        for found, true in ((same, 1.0), (half, 0.5)):
            value, low, high = (found.ratio[name][key] or 0.0 for key in ("value", "low", "high"))
            assert low <= value <= high and value == pytest.approx(true, rel=0.02), name
    assert half.ratio["tokens_per_s"]["value"] == pytest.approx(2.0, rel=0.02)
    rates, costs = (half.ratio[name] for name in ("tokens_per_s", "cost_per_million_tokens"))
    for cost, rate in (("value", "value"), ("low", "high"), ("high", "low")):
        assert (costs[cost] or 0.0) * (rates[rate] or 0.0) == pytest.approx(1.0)
    assert [p.batch_size for p in half.throughput] == [1, 1, 4, 4]
    assert max(p.tokens_per_s for p in half.throughput) == half.tokens_per_s


def test_the_ratio_of_throughputs_is_of_each_models_best() -> None:
    """Fails if a model that is fastest in batches seems to be ten times as fast as one that is so without them."""
    made = plan.of_lengths([(8, 4)], [1, 8], 12)

    def of(seconds: dict[int, float]) -> Any:  # by batch size
        return lambda work: [seconds[work.batch_size] * (i + 1) / 5 for i in range(5)]

    first, second = measure(made, [of({1: 0.04, 8: 3.0}), of({1: 0.4, 8: 0.3})], seed=0, warm_up=1)
    found = profile(FACTS, made, second, first, 2.0, 0.95, seed=0)
    true = (8 * 4 / 0.3) / (4 / 0.04)
    rate, cost = (found.ratio[name] for name in ("tokens_per_s", "cost_per_million_tokens"))
    assert rate == pytest.approx({"value": true, "low": 0.04 / 0.4, "high": 3.0 / 0.3})
    assert cost["value"] == pytest.approx(1.0 / true)


def test_slow_models_fit_into_the_tables() -> None:
    """Would catch: a column that is pushed out, markup of a name that is taken as such."""
    made = plan.of_lengths([(128, 4)], [1, 8], 6)
    found = [replace(one, folder="runs/[red]a model") for one in profiled(made, [1.6, 0.9], price=2.0)]
    console = Console(width=120, file=io.StringIO(), highlight=False, markup=False)
    for block in report.blocks(found, "a device", "fp32", 6, 0.95):
        console.print(block)
    shown = cast(io.StringIO, console.file).getvalue()
    assert shown.count("runs/[red]a model") >= 7 and "\u2026" not in shown and "e+0" not in shown
    assert "a device, in fp32;" in shown


def test_classifiers_have_one_forward() -> None:
    (found,) = profiled(plan.of_lengths([(8, 0)], [1, 4], 6), [0.25])
    assert found.decode_p50 is None and found.time_to_first_token_p50 is None
    assert found.tokens_per_s > 4 * 8 / 0.5


def test_requests_follow_the_weights_of_the_mix() -> None:
    prompts = tuple(
        Prompt(prompt="x", id=str(i), weight=w, output_tokens=i + 1) for i, w in enumerate((1.0, 0.0001, 3.0))
    )
    made = plan.of_mix(Mix(Head(), Path("m"), prompts), [5, 50, 9], True, [1, 2], 4000, seed=0)
    drawn = Counter(work.prompt for work in made.requests)
    assert drawn[2] / 4000 == pytest.approx(0.75, abs=0.03)
    assert {work.shape for work in made.requests} <= {(1, 5, 1), (1, 50, 2), (1, 9, 3)}
    assert {work.shape for work in made.grid} == {(1, 9, 3), (2, 9, 3)}, "the median and the 95 % length"
    assert plan.weighted_quantile([5, 50, 9], np.array([1.0, 1.0, 1.0]), 0.95) == 50


@pytest.mark.parametrize("given", ["", "0:4", "8:", "8:x", "8,", "a", "-8:2", "1:2:3", "9" * 9])
def test_lengths_that_are_none(given: str) -> None:
    if given == "8:":
        assert plan.parse_lengths(given) == [(8, 0)]
        return
    with pytest.raises(ValueError, match="--lengths"):
        plan.parse_lengths(given)


@pytest.mark.parametrize("given", ["", "0", "1,,2", "x", "-1", "1.5"])
def test_batch_sizes_that_are_none(given: str) -> None:
    with pytest.raises(ValueError, match="--batch-sizes"):
        plan.parse_batch_sizes(given)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_flops_are_those_that_budgets_count(family: str, tmp_path: Path) -> None:
    model = models.model(family)
    model.save_pretrained(tmp_path)
    anatomy = families.anatomy(model)
    assert operations.flops(tmp_path, 12) == flops(anatomy, 12).total(dense_widths(anatomy))


@pytest.mark.skipif(not counting.EXPERTS, reason="transformers below 5.23")
def test_flops_of_experts_are_those_that_a_token_takes(tmp_path: Path) -> None:
    """Would catch: a mixture of experts of which nothing is said, as its anatomy is not known."""
    experts, width, tokens = 2, 96, 12
    sizes: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": experts, "moe_intermediate_size": width}
    sizes |= {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 16,
    }
    Qwen3MoeConfig(**sizes, vocab_size=100, architectures=["Qwen3MoeForCausalLM"]).save_pretrained(tmp_path)
    weights = 4 * 64**2 + 64 * 8 + experts * 3 * 64 * width + 100 * 64
    assert operations.flops(tmp_path, tokens) == 2 * weights * tokens + 4 * 64 * tokens**2


def test_decoding_is_greedy_and_every_token_is_timed() -> None:
    model = models.model("llama")
    settings = backends.Settings("", "", True, "cpu", "fp32", 1, {2: 12})
    runner, ids = _Torch(model, settings, compiled=False), torch.randint(3, 60, (2, 5))
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda *given: seen.append(given[2]["input_ids"]), with_kwargs=True)
    laps = runner(ids, 6)
    assert len(laps) == 7 and laps == sorted(laps) and laps[0] > 0
    want = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, eos_token_id=None)[:, 5:]
    assert torch.equal(torch.cat(seen[1:6], 1), want[:, :5]), "each step reads the token before"
    assert runner.memory_bytes == sum(p.numel() for p in model.parameters()) * 4 + sum(
        b.nbytes for b in model.buffers()
    )
    assert isinstance(runner._cache(2), DynamicCache)


def test_a_backend_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pat-deepspeed\[openvino\]"):
        backends.check_installed("openvino")
    with pytest.raises(ValueError, match="allowed are eager, compile"):
        backends.check_installed("onnx")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="needs the program vllm"):
        vllm.check_installed()


def test_the_result_of_vllms_client() -> None:
    one = vllm.laps({"ttfts": [0.2], "itls": [[0.1, 0.3]], "errors": [""]}, Work(1, 8, 3))
    assert one == pytest.approx([0.2, 0.2, 0.3, 0.6])
    two = vllm.laps({"ttfts": [0.2, 0.4], "itls": [[0.1, 0.1], [0.4]]}, Work(2, 8, 3))
    assert two == pytest.approx([0.3, 0.3, 0.45, 0.6]), "means; a chunk may hold more than a token"
    with pytest.raises(ValueError, match="refused"):
        vllm.laps({"ttfts": [0.0], "itls": [[]], "errors": ["refused"]}, Work(1, 8, 3))


def test_of_many_errors_of_vllms_processes_the_first_that_names_a_cause_is_said() -> None:
    log = """(Worker pid=5) ERROR 11-27 17:24:02 [x.py:953] ValueError: There is no module or parameter named 'ffn'
(EngineCore pid=4) ERROR [core.py:1510] Exception: WorkerProc initialization failed due to an exception
RuntimeError: Engine core initialization failed. See root cause above.
nanobind: this is likely caused by a reference counting issue"""
    assert vllm.why(log) == "ValueError: There is no module or parameter named 'ffn'"
    assert vllm.why("\n".join(log.splitlines()[1:3])).startswith("RuntimeError: Engine core")
    assert vllm.why("a\nb\n") == "b" and vllm.why("")


def test_the_head_of_a_timed_model_sees_the_last_token_only() -> None:
    """As in a request that `pat profile` measures, or a budget of the table would count time that no prompt takes."""
    model, seen = models.model("llama"), list[int]()
    model.lm_head.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    assert len(table._forward(model, "cpu")(Work(1, 12, 0))) == 1 and seen == [1]


def test_the_table_is_of_models_that_are_really_narrower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With FLOPs for a clock: what the budget reads out of the table is what `costs.flops` counts."""
    model = models.model("llama", num_hidden_layers=4)
    model.save_pretrained(tmp_path)
    anatomy = families.anatomy(model)

    def counted(made: Any, device: str) -> Any:
        made.config._attn_implementation = "eager"  # the counter does not know the fused one of the CPU

        def run(work: Work) -> list[float]:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                made(input_ids=torch.zeros(1, work.prompt_tokens, dtype=torch.long))
            return [counter.get_total_flops() * 1e-12]

        return run

    monkeypatch.setattr(table, "_forward", counted)
    monkeypatch.setattr(table, "LAYERS", 2)
    monkeypatch.setattr(table, "POINTS", 4)
    full = table.check(tmp_path, "model")
    content = table.table(tmp_path, Work(1, 12, 0), "cpu", "a device", "fp32", 1, 0)
    assert full == (4, 128) and (content["device"], content["tokens"]) == ("a device", 12)
    assert [point["units"] for point in content["kv_groups"]] == [0, 1, 2, 3, 4]
    assert [point["units"] for point in content["ffn"]] == [0, 32, 64, 96, 128]
    (tmp_path / "table.json").write_text(json.dumps(content))
    budget: Any = registry.build("budget", {"name": "latency", "sparsity": 0.5, "table": str(tmp_path / "table.json")})
    assert budget.cost(anatomy) == flops(anatomy, 12)
    other = families.anatomy(models.model("llama", num_hidden_layers=4, hidden_size=96))
    with pytest.raises(ValueError, match="hidden_size=48, and this one has 96: make a table of this one"):
        budget.cost(other)
    assert table.widths((8, 11008))[-1][1] % 64 == 0


def test_a_worker_that_was_killed_between_two_calls_is_said() -> None:
    """Would catch a broken pipe, of which the command says nothing, as if its reader had gone."""
    theirs, ours = multiprocessing.Pipe()
    worker = Worker.__new__(Worker)
    worker.what, worker.connection = "pruned (eager)", ours
    worker.process = SimpleNamespace(join=lambda _: None, exitcode=-9)  # type: ignore[assignment]
    theirs.close()
    for call in (lambda: worker(Work(1, 8, 4)), worker.close):
        with pytest.raises(
            ValueError, match=r"pruned \(eager\) cannot be measured: it was killed, perhaps for lack of"
        ):
            call()
