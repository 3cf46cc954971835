"""Distillation from drawn answers: no bias, the loss of a teacher that runs, files that fit the samples, refusals."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from torch import Tensor

from pat import cli
from pat.commands import distill as distill_command
from pat.common import files
from pat.common.comm import LOCAL
from pat.common.seeds import mixed
from pat.data.sampler import BatchLoader
from pat.models import build, tokenizers
from pat.pruning.schedules import Ramp
from pat.schema import Config, DistillConfig, ModelConfig
from pat.tasks import base
from pat.tasks.base import DRAWN_IDS, DRAWN_WEIGHTS, ENTROPY
from pat.training import distill, logit_cache, logit_cache_run, preflight, teacher
from pat.training.distill import Distiller, row_kl
from pat.training.logit_cache import LogitCache
from pat.training.prepared import prepared_data
from pat.training.sampled_kl import CachedDistiller, counted, draw, sampled_kl
from tests.sets import slow
from tests.unit.tasks.test_chunked import batch_of, graded, model_of, same, task_of

TOKENIZER = tokenizers.byte_tokenizer()
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "max_position_embeddings": 64}
LENGTH, DRAWS, PER_SHARD = 12, 7, 5


# -- the estimate ------------------------------------------------------------------------------------------------------


def weights_of(ids: Tensor, v: int) -> Tensor:
    """p^ of drawn tokens (n, K), counted naively: (n, v)."""
    return torch.stack([torch.bincount(row, minlength=v) for row in ids]) / ids.shape[1]


def test_the_estimate_and_its_gradient_are_those_of_the_full_kl_on_average() -> None:
    """Within five standard errors of 20,000 caches. The largest probabilities, which are biased, are far outside."""
    v, draws, caches, temperature = 30, 6, 20_000, 1.7
    generator = torch.Generator().manual_seed(0)
    student, taught = (2.0 * torch.randn(v, generator=generator) for _ in range(2))
    p, q = (torch.softmax(logits.double() / temperature, 0) for logits in (taught, student))
    uniform = torch.rand(caches, draws, dtype=torch.float64, generator=generator)
    ids, entropy = draw(taught.expand(caches, v), temperature, uniform)

    def estimate(ids: Tensor, weights: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
        """(caches,) KL^ and (caches, v) gradients."""
        leaf = student.expand(len(ids), v).clone().requires_grad_()
        kl = sampled_kl(leaf, ids, weights, entropy, temperature)
        kl.sum().backward()
        assert leaf.grad is not None
        return kl.detach().double(), leaf.grad.double()

    kl, grad = estimate(ids, torch.full(ids.shape, 1.0 / draws), entropy)
    leaf = student[None].clone().requires_grad_()
    full = row_kl(leaf, taught[None], temperature)
    full.sum().backward()
    assert leaf.grad is not None
    log_q = q.log()
    error = ((p * log_q**2).sum() - (p * log_q).sum() ** 2).div(draws * caches).sqrt()  # of the mean of -log q_i
    assert abs(float(kl.mean() - full.detach())) < 5 * float(error)
    errors = (p * (1 - p) / (draws * caches)).sqrt() / temperature  # of each p^_i: binomial
    distance = (grad.mean(0) - leaf.grad[0].double()).abs() / errors
    assert float(distance.max()) < 5
    top = p.topk(draws).indices[None]
    _, biased = estimate(top, (p[top] / p[top].sum()).float(), entropy[:1])
    assert float(((biased[0] - leaf.grad[0]).abs() / errors).max()) > 50


def test_draws_are_those_of_an_inverted_distribution_and_never_impossible() -> None:
    logits = torch.tensor([[-torch.inf, 1.0, 2.0, -torch.inf, 0.0, -torch.inf]] * 2)
    uniform = torch.tensor([[0.0, 1.0 - 2.0**-53, 0.5], [0.25, 0.24, 0.99]], dtype=torch.float64)
    ids, entropy = draw(logits, 1.0, uniform)
    p = torch.softmax(logits[0].double(), 0)
    assert ids.tolist() == [[1, 2, 4], [1, 2, 4]]  # cumulated: 0.245 of token 1, 0.910 with token 2
    torch.testing.assert_close(entropy, -(p[p > 0] * p[p > 0].log()).sum().float().expand(2))
    lengths, tokens, counts = counted(torch.tensor([[3, 3, 5], [5, 5, 5], [0, 1, 2]]))
    assert (lengths.tolist(), tokens.tolist()) == ([2, 1, 3], [3, 5, 5, 0, 1, 2])
    assert counts.tolist() == [2, 1, 3, 1, 1, 1]


def test_a_large_vocabulary_keeps_its_tail() -> None:
    """200,000 tokens of 5e-9 each behind one of 0.999: near 1 the numbers of fp32 are 6e-8 apart."""
    logits = torch.zeros(1, 200_001)
    logits[0, 0] = float(np.log(999 * 200_000))
    p = distill.log_probabilities(logits, 1.0).exp()[0].double().numpy()
    wanted = [1, 1000, 150_000, 199_999]
    middle = [(p[:token].sum() + p[token] / 2) / p.sum() for token in wanted]
    assert draw(logits, 1.0, torch.tensor([middle], dtype=torch.float64))[0][0].tolist() == wanted


@pytest.mark.parametrize("chunk", [1 << 24, 2 * 11])
def test_rows_and_gradients_are_those_of_torch(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Also where a row has no weights, and where a token that only fills up is one that was drawn."""
    monkeypatch.setattr(distill, "CHUNK_ELEMENTS", chunk)
    generator = torch.Generator().manual_seed(0)
    student = 3.0 * torch.randn(5, 11, generator=generator)
    ids = torch.tensor([[0, 3, 4], [2, 0, 0], [7, 8, 10], [0, 0, 0], [1, 5, 0]], dtype=torch.int32)
    weights = torch.tensor([[0.5, 0.25, 0.25], [1, 0, 0], [0.1, 0.2, 0.7], [0, 0, 0], [0.5, 0.5, 0]])
    entropy, outer = torch.rand(5, generator=generator), torch.rand(5, generator=generator)
    ours, theirs = (student.clone().requires_grad_() for _ in range(2))
    found = sampled_kl(ours, ids, weights, entropy, 2.0)
    (found * outer).sum().backward()
    p = torch.zeros(5, 11).scatter_add_(1, ids.long(), weights)
    expected = -(p * torch.log_softmax(theirs / 2.0, -1)).sum(-1) - entropy
    (expected * outer).sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


# -- the combined loss -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "size"), [("causal_lm", None), slow(("causal_lm", 5)), slow(("packed", None)), ("packed", 5)]
)
def test_with_all_of_the_distribution_it_is_the_loss_of_a_teacher_that_runs(kind: str, size: int | None) -> None:
    """Value, gradients, log and shares. Would catch: rows of other tokens, another normaliser, T or ramp left out."""
    model, batch, task = model_of("llama"), batch_of(kind), task_of(kind, size)
    torch.manual_seed(1)
    taught = copy.deepcopy(model).eval()
    for param in taught.parameters():
        param.data += 0.3 * torch.randn(param.shape)
    config = DistillConfig(teacher="x", weight=0.6, temperature=2.0)
    live = Distiller(taught, task, config, Ramp(0, 10), [])
    with torch.no_grad():
        logits = task.outputs(taught, batch).logits.float() / 2.0
    p, counts = torch.softmax(logits, -1), task.supervised(batch)
    drawn = {
        DRAWN_IDS: torch.arange(p.shape[-1], dtype=torch.int32).expand(p.shape),
        DRAWN_WEIGHTS: p * counts[..., None],
        ENTROPY: -(p * p.log()).sum(-1) * counts,
    }
    cached = CachedDistiller(task, config, Ramp(0, 10))
    for t, shares in ((5, (1.0, 1.0)), (12, (0.3, 1.7))):
        expected = graded(model, live.loss(model, batch, t, shares))
        same(graded(model, cached.loss(model, batch | drawn, t, shares)), expected, 1e-4)
        assert cached.logged(LOCAL) == pytest.approx(live.logged(LOCAL), rel=1e-4)
    assert torch.equal(cached.loss(model, batch, 0), task.loss(model, batch)), "before the ramp nothing is looked up"


# -- the files ---------------------------------------------------------------------------------------------------------


def saved_teacher(path: Path, seed: int = 1, **fields: Any) -> str:
    torch.manual_seed(seed)
    shape = {"model_type": "llama", "num_hidden_layers": 1, "initializer_range": 0.5, **SIZES} | fields
    task = base.build({"name": "causal_lm"})
    model = build.build_model(ModelConfig(init="random", config=shape), task, torch.float32, tokenizer=TOKENIZER)
    model.save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    return str(path)


def config_of(root: Path, kind: str = "causal_lm") -> Config:
    """A random student, 23 samples or so of json rows, and a teacher's folder."""
    rows = [{"prompt": "ab"[: i % 2], "completion": f"{i} is {i * i}", "text": f"{i} is {i * i}; "} for i in range(27)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if not (root / "teacher").exists():
        saved_teacher(root / "teacher")
    shape = {"model_type": "llama", "num_hidden_layers": 1, **SIZES}
    data = {"source": "json", "train": str(root / "rows.jsonl"), "eval_fraction": 0.15, "max_length": LENGTH}
    given = {
        "model": ModelConfig(init="random", config=shape, tokenizer="byte"),
        "distill": DistillConfig(teacher=str(root / "teacher"), cache=str(root / kind), weight=0.5, temperature=1.5),
        "task__name": "causal_lm" if kind == "causal_lm" else "chat",
        "train__num_steps": 9,
        "train__global_batch_size": 4,
        "train__micro_batch_size": 2,
        "engine__dtype": "fp32",
    }
    config = Config().changed(**given, **{f"data__{key}": value for key, value in data.items()})
    config = config.changed(data__cache_dir=str(root / "prepared"))
    if kind == "causal_lm":
        return config
    return config.changed(task__packing="best_fit" if kind == "packed" else None, task__loss_chunk_tokens=8)


def made(config: Config, draws: int = DRAWS) -> LogitCache:
    return logit_cache_run.make(config, draws, shard_tokens=PER_SHARD * LENGTH)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a cache in `causal_lm`."""
    root = tmp_path_factory.mktemp("distill")
    made(config_of(root))
    return root


def fitted(config: Config) -> LogitCache:
    """The cache that this run would read."""
    task, tokenizer, prepared = prepared_data(config)
    return logit_cache.fitting(
        config, task, tokenizer, prepared, build.build_config(config.model, task, None, tokenizer)
    )


@pytest.mark.parametrize("kind", ["causal_lm", "chat", slow("packed")])
def test_every_rank_finds_the_draws_of_its_samples_in_any_order(root: Path, kind: str) -> None:
    """Each sample's row by itself through the teacher, inverted in numpy; by its tokens in shuffled batches of one and
    of two ranks, over two epochs. Would catch: rows of a neighbour, of another shard, of a batch in another order."""
    config = config_of(root, kind)
    if kind != "causal_lm":
        made(config)
    cache = fitted(config)
    task, tokenizer, prepared = prepared_data(config)
    model = teacher.load(config, task, tokenizer, None)
    known: dict[str, Tensor] = {}
    for number, sample in enumerate(prepared.train):
        batch = task.collate(prepared.train[[number]], tokenizer)
        with torch.no_grad():
            logits = task.outputs(model, batch).logits[0]
        places = task.supervised(batch)[0].nonzero()[:, 0]
        uniform = torch.rand(
            len(places), DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(mixed(0, number))
        )
        cumulated = torch.softmax(logits.double() / 1.5, -1).cumsum(-1)
        p = torch.zeros_like(logits)
        for place, own in zip(places, uniform, strict=True):
            for token in np.searchsorted(cumulated[place].numpy(), own.numpy(), side="right"):
                p[place, token] += 1 / DRAWS
        known[str(sample["input_ids"])] = p  # type: ignore[index]
    assert len(known) > 2 * PER_SHARD and len(cache.manifest["shards"]) > 2
    seen = set()
    for world in (1, 2):
        for rank in range(world):
            options = (task, tokenizer, config, rank, world)
            loader = BatchLoader(prepared.train, *options, prefetch=False, more=partial(cache.more, task))
            for batch in (one for t in range(2 * len(known) // 4) for one in loader.batches(t)):
                ids, found = batch[DRAWN_IDS], torch.zeros(*batch["labels"].shape, cache.manifest["vocab_size"])
                found.scatter_add_(2, ids.long(), batch[DRAWN_WEIGHTS])
                lengths = batch.get("attention_mask", torch.ones_like(batch["labels"])).sum(1).tolist()
                for tokens, length, p in zip(batch["input_ids"], lengths, found, strict=True):
                    expected = known[str(tokens[:length].tolist())]
                    torch.testing.assert_close(p[: len(expected)], expected[: len(p)])
                    seen.add(str(tokens[:length].tolist()))
    assert seen == set(known)


def test_ids_beyond_two_bytes_come_back(tmp_path: Path) -> None:
    ids = np.array([0, 65_535, 65_536, 151_999], np.int32)
    rows = logit_cache.Rows(np.array([3, 1]), np.array([1.0, 2.0]), ids, np.array([1, 1, 5, 7]))
    tensors = logit_cache.packed([rows], 152_000)
    assert "ids_high" not in logit_cache.packed([rows], 65_536)
    content = save(tensors)
    (tmp_path / "one").write_bytes(content)
    shard = {"file": "one", "bytes": len(content)}
    told = {"complete": True, "samples_per_shard": 1, "vocab_size": 152_000, "shards": [shard]}
    files.write_json(tmp_path / "manifest.json", told)
    assert LogitCache(tmp_path).rows([0, 0]).ids.tolist() == 2 * ids.tolist()
    assert {name: str(each.dtype) for name, each in tensors.items() if name != "pair_starts"} == {
        "row_starts": "int64", "ids_high": "uint8", "lengths": "uint8", "entropy": "float16", "ids": "uint16",
        "counts": "uint8",
    }  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


class Killed(BaseException):
    """Nothing catches it."""


@pytest.mark.parametrize("at", ["shard-00001", slow("shard-00003"), "manifest 3", "torn"])
def test_a_cache_that_was_stopped_goes_on_to_the_same_bytes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Stopped before a shard, between a shard and its manifest, or with a shard that the disk has damaged since."""
    config = config_of(root).changed(distill__cache=str(tmp_path / "cache"))
    plain, seen = files.write_atomic, []

    def dying(path: Path, content: Any) -> None:
        seen.append(Path(path).stem)
        if at in (seen[-1], f"{seen[-1]} {seen.count('manifest') - 1}"):
            raise Killed
        plain(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomic", dying)
        if at == "torn":
            made(config)
            (tmp_path / "cache" / "shard-00001.safetensors").write_bytes(b"torn")
        else:
            with pytest.raises(Killed):
                made(config)
            with pytest.raises(ValueError, match="is not finished: the same `pat distill cache` goes on"):
                fitted(config)
    drawn: list[range] = []
    whole = logit_cache_run.drawn
    monkeypatch.setattr(logit_cache_run, "drawn", lambda *given: (drawn.append(given[1]), whole(*given))[1])
    made(config)
    assert contents(tmp_path / "cache") == contents(root / "causal_lm")
    first = {"shard-00003": 3, "manifest 3": 2}.get(at, 1)
    assert drawn[0].start == first * PER_SHARD, "what is there is not drawn again"
    drawn.clear()
    assert made(config).sha256 == fitted(config_of(root)).sha256 and not drawn


# -- what is refused ---------------------------------------------------------------------------------------------------

OTHER: dict[str, tuple[Callable[[Config, Path], Config], str]] = {
    "max_length": (lambda c, _: c.changed(data__max_length=10), "made with data.max_length=12, and this run has 10"),
    "temperature": (lambda c, _: c.changed(distill__temperature=1.0), "made with distill.temperature=1.5, and this"),
    "data": (lambda c, tmp: c.changed(data__train=str(other_rows(tmp))), "was made for other data than this run"),
    "part": (lambda c, _: c.changed(data__max_train_samples=9), "was made for other data than this run"),
    "held out": (lambda c, _: c.changed(data__eval_fraction=0.5), "was made for other data than this run"),
    "task": (lambda c, _: c.changed(task__name="chat"), "was made for CausalLM(name='causal_lm'), and this run's task"),
    "vocabulary": (
        lambda c, _: c.changed(model__config=c.model.config | {"vocab_size": 320}),
        "holds answers among 264 tokens, and this run's model has logits for 320",
    ),
    "tokenizer": (
        lambda c, tmp: c.changed(model__tokenizer=str(other_tokenizer(tmp))),
        "was made with another tokenizer than this run's",
    ),
    "nothing": (lambda c, tmp: c.changed(distill__cache=str(tmp)), "holds no manifest.json: make it"),
}


def other_rows(tmp: Path) -> Path:
    (tmp / "rows.jsonl").write_text('{"text": "something else that is long enough"}\n{"text": "and more of it"}\n' * 9)
    return tmp / "rows.jsonl"


def other_tokenizer(tmp: Path) -> Path:
    tokenizer = tokenizers.byte_tokenizer()
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(tmp)
    return tmp


@pytest.mark.parametrize("what", OTHER)
def test_a_cache_of_something_else_is_refused_before_ranks_start(root: Path, tmp_path: Path, what: str) -> None:
    change, words = OTHER[what]
    config = config_of(root).changed(distill__teacher=None)
    preflight.fitting_data(config)
    preflight.fitting_data(config.changed(seed=3, task__loss_chunk_tokens=5, engine__zero_stage=3))
    with pytest.raises(ValueError, match=f"^distill.cache=.*{re.escape(words)}"):
        preflight.fitting_data(change(config, tmp_path))


def test_a_damaged_cache_and_another_teacher_are_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "causal_lm", tmp_path / "copy")
    cache = LogitCache(tmp_path / "copy")
    cache.check_hashes(LOCAL)
    cache.check_teacher(teacher.identity(config_of(root), LOCAL))
    other = config_of(root).changed(distill__teacher=saved_teacher(tmp_path / "other", seed=2))
    with pytest.raises(ValueError, match="holds answers of the teacher .* is another .*: leave one out"):
        cache.check_teacher(teacher.identity(other, LOCAL))
    file = tmp_path / "copy" / "shard-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: shard-00001.safetensors has another sha256"):
        LogitCache(tmp_path / "copy").check_hashes(LOCAL)
    file.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="is damaged: shard-00001.safetensors has .* bytes, and not"):
        LogitCache(tmp_path / "copy")


def test_a_run_goes_on_only_with_the_draws_it_began_with(root: Path) -> None:
    ours = LogitCache(root / "causal_lm").identity()
    running = {key: ours[key] for key in ("path", "sha256")}
    teacher.check_same(ours, ours)
    for saved, now in ((running, ours), (ours, running), (ours, ours | {"cache_sha256": "0" * 64}), (ours, None)):
        with pytest.raises(ValueError, match="the checkpoint was made with .*drawn in|would go on with .*drawn in"):
            teacher.check_same(saved, now)


def test_what_no_cache_can_be_made_for(root: Path, tmp_path: Path) -> None:
    config = config_of(root)
    for given, draws, words in (
        (config, 0, "--draws 0: give 1 to 255"),
        (config, 256, "--draws 256: give 1 to 255"),
        (config.changed(distill__teacher=None), 9, "distill.teacher is not set"),
        (config.changed(distill__cache=None), 9, "distill.cache is not set"),
        (config.changed(task__name="classification"), 9, "not for task.name='classification'"),
        (config, DRAWS + 1, f"holds a cache with draws={DRAWS}, and this one would have {DRAWS + 1}"),
        (config.changed(seed=1), DRAWS, "holds a cache with seed=0, and this one would have 1"),
        (
            config.changed(distill__teacher=saved_teacher(tmp_path / "wide", vocab_size=320)),
            DRAWS,
            "has logits for 320 tokens, the model for 264",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            made(given, draws)


def pat(*arguments: str) -> int:
    with pytest.raises(SystemExit) as leaving:
        cli.main(list(arguments))
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


@pytest.mark.slow
def test_the_command(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["recipe=parity", "logger=none", f"data.cache_dir={tmp_path}", f"run.dir={tmp_path / 'run'}"]
    run += [f"distill.teacher={saved_teacher(tmp_path / 'teacher', vocab_size=320)}", "data.max_train_samples=6"]
    assert pat("distill", "cache", *run, f"distill.cache={tmp_path / 'cache'}", "--draws", "3") == 0
    said = capsys.readouterr().out
    cache = LogitCache(tmp_path / "cache")
    assert f"holds 3 draws from {tmp_path / 'teacher'} for each of {6 * 63:,} tokens" in said and cache.sha256 in said
    assert cache.manifest["dtype"] == "bf16" and not (tmp_path / "run").exists()
    assert pat("distill", "cache", *run) == 2
    assert "distill.cache is not set: give the folder to write" in capsys.readouterr().err


def test_it_is_made_without_a_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the command asks for what only training needs."""
    made: list[Config] = []
    monkeypatch.setattr(distill_command, "_cache", lambda config, options: made.append(config) or 0)
    keys = ["model.path=m", "data.source=json", "data.train=t", "distill.teacher=d", "distill.cache=c"]
    assert distill_command.main(["cache", "recipe=decoder", *keys]) == 0
    assert made and made[0].distill.cache == "c"
