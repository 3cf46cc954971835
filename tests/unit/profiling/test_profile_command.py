"""`pat profile`: the mistakes one can make, and on tiny models in processes of their own what it measures."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification

from pat import cli
from pat.evaluation.folders import weights_sha256
from pat.models.tokenizers import byte_tokenizer
from pat.profiling import plan
from pat.profiling.backends import Settings
from pat.profiling.backends.eager import open_runner
from pat.profiling.measure import measure
from pat.profiling.worker import Worker
from pat.statistics import ratio
from tests import models


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_llama(tmp_path_factory.mktemp("profile") / "a [bold]model")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "classifier"
    small: Any = models.config("bert", vocab_size=320)
    BertForSequenceClassification(small).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["profile", *map(str, arguments)])
    return int(str(stop.value.code))


def figures(tmp_path: Path, *arguments: Any) -> list[dict[str, Any]]:
    out = tmp_path / "profile.json"
    assert run(*arguments, "--json", out, "--device", "cpu", "--threads", 1, "--requests", 6) == 0
    return json.loads(out.read_text())["models"]


@pytest.mark.parametrize(
    "given, said",
    [
        (["--lengths", "8:2", "--mix", "chats"], "--mix and --lengths"),
        (["--requests", "3"], "--requests 3: give 6 or more"),
        (["--threads", "0"], "--threads 0"),
        (["--confidence", "1.2"], "--confidence 1.2"),
        (["--price-per-hour", "nan"], "--price-per-hour"),
        (["--seed", "-1"], "--seed -1: give 0 or more"),
        (["--backend", "tensorrt"], "--backend tensorrt: allowed are"),
        (["--lengths", "60:10"], "60 + 10 tokens are beyond the 64 positions"),
        (["--lengths", "8"], "give 8:32"),
        (["--batch-sizes", "0"], "--batch-sizes 0"),
        (["--mix", "chat"], "there is no file chat, and no mix of that name"),
        (["--mix", "chats"], "has no chat template"),
        (["--json", "/nowhere/x.json"], "there is no folder /nowhere"),
        (["x=1"], "x=1 is not"),
        (["/nowhere"], "there is no folder /nowhere"),
    ],
)
def test_mistakes_are_one_sentence(
    llama: Path, given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(llama, *given, "--device", "cpu") == 2
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in printed and printed.startswith("pat: ")


def test_prompts_have_as_many_tokens_as_the_mix_says(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch: tokens of the text as it is, 80 and 1; both are measured as they would be in production."""
    prompts = [{"prompt": "a" * 80, "prompt_tokens": 30}, {"prompt": "b", "prompt_tokens": 70}]
    (tmp_path / "mix.jsonl").write_text("".join(json.dumps(each | {"output_tokens": 2}) + "\n" for each in prompts))
    assert run(llama, "--mix", tmp_path / "mix.jsonl", "--device", "cpu") == 2
    assert "pat: 70 + 2 tokens are beyond the 64 positions" in capsys.readouterr().err


def test_pickles_and_mixed_kinds_are_refused(
    llama: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(llama, classifier, "--lengths", "8:2") == 2
    assert (
        "model is a language model and " in (said := capsys.readouterr().err)
        and "classifier a classifier: profile" in said
    )
    (tmp_path / "config.json").write_bytes((llama / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 9'\ntR.")
    assert run(tmp_path, "--lengths", "8:2") == 2
    assert "pickles are not read" in capsys.readouterr().err


def test_a_decoder_that_classifies_takes_batches_without_a_pad_token(tmp_path: Path) -> None:
    auto = models.transformers.AutoModelForSequenceClassification
    models.model("llama", auto=auto, pad_token_id=None).save_pretrained(tmp_path)
    runner = open_runner("eager", Settings(str(tmp_path), "model", False, "cpu", "fp32", 1))
    assert len(runner(torch.arange(10).reshape(2, 5), 0)) == 1


@pytest.mark.slow
@pytest.mark.real_processes
def test_a_model_is_as_fast_as_itself_in_19_of_20_runs(llama: Path) -> None:
    """In two processes: 19 of 20 intervals of 99 % hold the truth with 98.3 % probability, in one of two tries 99.97 %.

    The truth is 1 but for where the two have their memory: means of 20 runs, in eight pairs of processes, were 0.983
    to 1.013. No interval contains that (docs/profile.md), so each has a margin of 2 %.
    """
    settings = Settings(str(llama), "model", True, "cpu", "fp32", 1)
    made, held = plan.of_lengths([(8, 4)], [1], 12), 0
    with Worker("eager", settings, []) as a, Worker("eager", settings, []) as b:
        assert a.ready()["load_seconds"] > 0 and b.ready()["memory_bytes"] > 0
        for seed in range(20):
            first, second = measure(made, [a, b], seed, warm_up=2)
            asked = first.requests(made.requests)
            found = ratio.paired(first.whole(asked), second.whole(asked), 0.99)
            held += found.low <= 1.02 and found.high >= 0.98
        assert a.close()["peak_memory_bytes"] > 0
    assert held >= 19


@pytest.mark.slow
@pytest.mark.real_processes
def test_fewer_layers_are_faster(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mix = tmp_path / "mix.jsonl"
    mix.write_text(
        json.dumps({"mix": {"output_tokens": 6}})
        + "\n"
        + json.dumps({"prompt": "a short one"})
        + "\n"
        + json.dumps({"prompt": "another", "prompt_tokens": 30})
        + "\n"
    )
    table = tmp_path / "table.json"
    options = ("--mix", mix, "--price-per-hour", 2, "--table", table)
    deep, flat = figures(tmp_path, models.write_llama(tmp_path / "deep", layers=12), llama, *options)
    measured = json.loads(table.read_text())
    assert measured["device"] == deep["device"] and measured["base_seconds"] > 0
    assert [point["units"] for point in measured["kv_groups"]] == [0, 1, 2]
    assert deep["ratio"] == {} and flat["ratio"]["latency"]["high"] < 1.0 < flat["ratio"]["tokens_per_s"]["low"]
    assert flat["latency_p50"] < deep["latency_p50"] and flat["flops"] < deep["flops"]
    assert flat["bytes_on_disk"] < deep["bytes_on_disk"] and flat["memory_bytes"] < deep["memory_bytes"]
    assert flat["cost_per_million_tokens"] == pytest.approx(2 / 3600 / flat["tokens_per_s"] * 1e6)
    assert all(one["device"].count(" 1 thread,") and one["peak_memory_bytes"] > 0 for one in (deep, flat))
    assert "a [bold]model" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["compile", "onnxruntime", "openvino"])
def test_backends_decode_the_same_tokens(llama: Path, classifier: Path, tmp_path: Path, backend: str) -> None:
    if backend != "compile":
        pytest.importorskip(backend)
    both = figures(tmp_path, llama, "--backend", f"eager,{backend}", "--lengths", "8:4", "--batch-sizes", "2")
    assert [one["backend"] for one in both] == ["eager", backend]
    assert {one["weights_sha256"] for one in both} == {weights_sha256(llama)}
    assert all(len(one["throughput"]) == 1 and one["decode_p50"] > 0 for one in both)
    settings = Settings(str(llama), "model", True, "cpu", "fp32", 1, {2: 20})
    ids = torch.arange(10).reshape(2, 5) + 3
    want = tokens_of(open_runner("eager", settings), ids)
    if backend == "compile":
        assert tokens_of(open_runner("compile", settings), ids) == want
        return
    (one,) = figures(tmp_path, classifier, "--backend", backend, "--lengths", "8", "--batch-sizes", "2")
    assert one["latency_p50"] > 0 and one["decode_p50"] is None
    from pat.profiling.backends import exported

    out = tmp_path / backend
    exported.write(backend, settings, out)
    runner = exported.open_runner(backend, Settings(str(out), "model", True, "cpu", "fp32", 1))
    assert tokens_of(runner, ids) == tokens_of(runner, ids) == want, "the cache is empty again for a second request"


def tokens_of(runner: Any, ids: torch.Tensor) -> list[list[int]]:
    """What a runner decodes, seen where the next token is picked."""
    seen: list[list[int]] = []
    pick: Any = torch.Tensor.argmax

    def watched(logits: torch.Tensor, *dims: int) -> torch.Tensor:
        chosen = pick(logits, *dims)
        seen.append(chosen.flatten().tolist())
        return chosen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "argmax", watched)
        runner(ids, 5)
    return seen


PROGRAM = """#!{python}
import http.server, json, os, sys, time
def value(name):
    return sys.argv[sys.argv.index(name) + 1]
if sys.argv[1] == "serve":
    assert int(value("--max-model-len")) >= 8 + 4 and os.environ["OMP_NUM_THREADS"] == "1"
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert value("--generation-config") == "vllm"
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200); self.end_headers()
    http.server.HTTPServer(("127.0.0.1", int(value("--port"))), Handler).serve_forever()
n, tokens = int(value("--num-prompts")), int(value("--random-output-len"))
assert "127.0.0.1" in os.environ["no_proxy"]
assert sys.argv[1:3] == ["bench", "serve"] and "--ignore-eos" in sys.argv and "--save-detailed" in sys.argv
result = {{"ttfts": [0.01] * n, "itls": [[0.002] * (tokens - 1)] * n, "errors": [""] * n}}
json.dump(result, open(value("--result-dir") + "/" + value("--result-filename"), "w"))
"""


@pytest.mark.slow
def test_vllm_by_a_stand_in(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of both commands are vLLM's; the program here only answers like it."""
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # which nobody serves: a server here is asked directly
    a, b = figures(
        tmp_path, llama, llama, "--backend", "vllm", "--lengths", "8:4", "--batch-sizes", "1,3", "--warm-up", 0
    )
    assert a["latency_p50"] == pytest.approx(0.016) and a["decode_p95"] == pytest.approx(0.002)
    assert b["ratio"]["latency"]["value"] == pytest.approx(1.0)
    assert b["tokens_per_s"] == pytest.approx(3 * 4 / 0.016)
