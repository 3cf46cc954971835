"""An exported folder is what stock code loads, and equals the checkpoint's effective weights."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from pat import cli
from pat.checkpoint.reader import CheckpointReader
from pat.common.hashing import MaskHash, WeightsHash
from pat.config import frozen
from pat.export import export, masks, verify, writer
from pat.export.card import model_card
from pat.export.export import export_run
from pat.export.report import format_report
from pat.export.writer import Spec, split, write_safetensors
from pat.models import config_files
from pat.models.tokenizers import byte_tokenizer
from pat.run.directory import ExitCode
from pat.schema import Config, DataConfig, ModelConfig, RunConfig
from pat.zero.checkpoint_files import CheckpointError
from tests.fake_run import write_run

LLAMA = LlamaConfig(
    vocab_size=320, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True, pad_token_id=256,
)  # fmt: skip


def llama(tmp_path, **kwargs):
    torch.manual_seed(1)
    model = LlamaForCausalLM(LLAMA)
    return tmp_path / "run", write_run(tmp_path / "run", model, byte_tokenizer(), "causal_lm", **kwargs)


def as_dtype(saved, shapes, dtype):
    return {name: value.to(dtype).view(shapes[name]) for name, value in (saved.weight | saved.frozen).items()}


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "zero12", "ranks": 3, "cut": 5},
        {"layout": "zero3", "ranks": 2, "frozen": "model.layers.0.*"},
        {"layout": "zero12", "ranks": 1, "dtype": "fp32"},
    ],
)
def test_folder_holds_the_effective_weights(tmp_path, options):
    run, saved = llama(tmp_path, **options)
    result = export_run(run, tmp_path / "out", checkpoint="last")
    last, out = saved[-1], tmp_path / "out"
    dtype = torch.float32 if options.get("dtype") == "fp32" else torch.bfloat16

    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert type(model).__name__ == "LlamaForCausalLM" and model.dtype == dtype
    shapes = {name: p.shape for name, p in model.named_parameters()}
    expected = as_dtype(last, shapes, dtype)
    assert shapes.keys() == expected.keys()
    for name, param in model.named_parameters():
        assert torch.equal(param.view(torch.uint8), expected[name].view(torch.uint8)), name
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    tokens = AutoTokenizer.from_pretrained(out)("pruned")["input_ids"]
    assert bytes(tokens[-6:]) == b"pruned" or b"pruned" in bytes(t for t in tokens if t < 256)

    mask, weights = MaskHash(), WeightsHash()
    for name in sorted(expected):
        weights.update(name, (last.weight | last.frozen)[name])
        if name in last.keep:
            mask.update(name, last.keep[name])
    assert result["mask_sha256"] == mask.hexdigest() and result["weights_sha256"] == weights.hexdigest()
    flags = dict(masks.read_masks(out))
    assert flags.keys() == last.keep.keys()
    for name, keep in flags.items():
        assert torch.equal(keep.view(-1), last.keep[name])
        assert not model.get_parameter(name)[keep == 0].any()
    removed = sum(int((keep == 0).sum()) for keep in last.keep.values())
    assert result["sparsity"] == removed / sum(len(keep) for keep in last.keep.values())
    assert result["after"]["nonzero_parameters"] == sum(int(value.count_nonzero()) for value in expected.values())
    assert result["after"]["bytes"] == sum(value.nbytes for value in expected.values())
    assert result["max_abs_logit_diff"] == 0.0
    assert json.loads((out / "export.json").read_text()) == result
    assert not list(tmp_path.glob(".out*"))


def test_classifier_with_names_and_half_precision(tmp_path):
    config = BertConfig(
        vocab_size=320, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1},
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    write_run(
        tmp_path / "run", model, byte_tokenizer(), "classification", prune="*.dense.weight", frozen="*embeddings*"
    )
    result = export_run(tmp_path / "run", tmp_path / "out", dtype="fp16")
    assert result["max_abs_logit_diff"] == 0.0 and result["lineage"]["step"] == 10
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.dtype == torch.float16 and loaded.config.id2label == {0: "bad", 1: "good"}


def test_what_a_model_generates_with_is_in_its_export(tmp_path):
    """Would catch: a chat model without its second end token, or with other sampling. The hub has invalid files."""
    model = LlamaForCausalLM(LLAMA)
    theirs = {"eos_token_id": [257, 258], "do_sample": False, "temperature": 0.6, "top_p": 0.9}
    model.generation_config = GenerationConfig(**theirs)
    write_run(tmp_path / "run", model, byte_tokenizer(), "causal_lm")
    export_run(tmp_path / "run", tmp_path / "out", verify="weights")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config.to_dict()
    assert {name: found[name] for name in theirs} == theirs


def test_several_files_and_an_index(tmp_path, monkeypatch):
    run, saved = llama(tmp_path)
    whole = export_run(run, tmp_path / "whole")
    monkeypatch.setattr(writer, "SHARD_BYTES", 10_000)
    monkeypatch.setattr(masks, "CHUNK", 64)
    monkeypatch.setattr("pat.export.source.CHUNK", 56)
    parts = export_run(run, tmp_path / "parts")
    names = sorted(path.name for path in (tmp_path / "parts").glob("model*"))
    assert len(names) > 3 and "model.safetensors.index.json" in names
    for key in ("mask_sha256", "weights_sha256", "after", "sparsity"):
        assert parts[key] == whole[key]
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "parts").state_dict()
    for name, value in AutoModelForCausalLM.from_pretrained(tmp_path / "whole").state_dict().items():
        assert torch.equal(ours[name], value)


def test_what_the_writer_writes(tmp_path):
    tensors = {
        "b": torch.randn(3, 5).bfloat16(),
        "a": torch.randn(7),
        "n": torch.tensor(3),
        "f": torch.tensor([True, False, True]),
        "e": torch.empty(0, 4),
    }
    specs = [Spec(name, tuple(value.shape), value.dtype) for name, value in tensors.items()]
    write_safetensors(tmp_path / "x.safetensors", specs, {"format": "pt"}, lambda spec: [tensors[spec.name]])
    for name, value in load_file(tmp_path / "x.safetensors").items():
        assert value.dtype == tensors[name].dtype and torch.equal(value, tensors[name])
    assert [[s.name for s in part] for part in split(specs, 40)] == [["a"], ["b", "e", "f"], ["n"]]


def test_best_last_and_steps(tmp_path):
    run, _ = llama(tmp_path)
    steps = {
        c: export_run(run, tmp_path / f"out-{c}", checkpoint=c, verify="weights") for c in ("best", "last", 10, "20")
    }
    assert [result["lineage"]["step"] for result in steps.values()] == [10, 20, 10, 20]
    assert steps["best"]["max_abs_logit_diff"] is None
    assert "not asked" in steps["best"]["max_abs_logit_diff_reason"]


def test_large_models_are_streamed(tmp_path, monkeypatch):
    run, _ = llama(tmp_path)
    monkeypatch.setattr(export, "LOGIT_LIMIT", 1 << 10)
    streamed, whole = export_run(run, tmp_path / "a"), export_run(run, tmp_path / "b", verify="logits")
    assert streamed["max_abs_logit_diff"] == whole["max_abs_logit_diff"] == streamed["max_layer_diff"] == 0.0
    assert whole["max_layer_diff"] is None


def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path):
    run, saved = llama(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    cases = {
        "not empty": lambda: export_run(run, tmp_path / "full"),
        "10, 20": lambda: export_run(run, tmp_path / "out", checkpoint=15),
        "best, last": lambda: export_run(run, tmp_path / "out", checkpoint="newest"),
        "fp32": lambda: export_run(run, tmp_path / "out", dtype="int8"),
        "allowed: auto": lambda: export_run(run, tmp_path / "out", verify="no"),
        "not a run directory": lambda: export_run(tmp_path / "full", tmp_path / "out"),
    }
    for words, call in cases.items():
        with pytest.raises(ValueError, match=words) as error:
            call()
        assert "\n" not in str(error.value) and not isinstance(error.value, CheckpointError)
    (run / "checkpoints" / "best").unlink()
    with pytest.raises(ValueError, match="no best checkpoint yet"):
        export_run(run, tmp_path / "out")
    for path in list((run / "checkpoints").rglob("manifest.json")):
        path.parent.rename(tmp_path / path.parent.name)
    with pytest.raises(ValueError, match="has no checkpoint: either none has been saved yet"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("what", ["folder", "link", "working directory"])
def test_an_empty_folder_is_filled_and_not_replaced(tmp_path, monkeypatch, what):
    """Would catch: a mount point or a link, which no folder can replace, found after all work; a shell's working
    directory that is deleted."""
    run, _ = llama(tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    before = folder.stat().st_ino
    out = {"folder": folder, "link": tmp_path / "link", "working directory": "."}[what]
    export_run(run, out, verify="weights")
    assert folder.stat().st_ino == before and not list(folder.glob(".*"))
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "llama"


def test_a_folder_that_is_being_filled_is_no_model_before_the_end(tmp_path, monkeypatch):
    run, _ = llama(tmp_path)
    (tmp_path / "out").mkdir()
    plain, moved = export.os.replace, []

    def replace(source, target):
        if target.parent == tmp_path / "out":
            assert target.name not in moved
            moved.append(target.name)
            if target.name == "config.json":
                raise OSError("the disk is gone")
        plain(source, target)

    monkeypatch.setattr(export.os, "replace", replace)
    with pytest.raises(OSError, match="the disk is gone"):
        export_run(run, tmp_path / "out", verify="weights")
    assert moved[-2:] == ["export.json", "config.json"] and "model.safetensors" in moved
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("there", [True, False], ids=["inside", "beside"])
def test_what_a_killed_export_has_left_is_not_in_the_way(tmp_path, monkeypatch, there):
    run, _ = llama(tmp_path)
    out = tmp_path / "out"
    if there:
        out.mkdir()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(export, "write_json", killed)
        context.setattr(shutil, "rmtree", lambda *_, **__: None)  # nobody is there to tidy up
        context.setattr(export.files, "remove_empty", lambda _: None)
        with pytest.raises(KeyboardInterrupt):
            export_run(run, out, verify="weights")
    assert list((out if there else tmp_path).glob(".*.partial"))
    export_run(run, out, verify="weights")
    assert (out / "config.json").exists() and not [*out.glob(".*"), *tmp_path.glob(".*")]


def test_an_export_of_another_container_is_left_alone(tmp_path):
    """Its process has the same number, and lives."""
    run, _ = llama(tmp_path)
    other = tmp_path / f".out.{os.getpid()}.partial"
    other.mkdir()
    held = os.open(other, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        export_run(run, tmp_path / "out", verify="weights")
        assert other.is_dir() and (tmp_path / "out" / "config.json").exists()
    finally:
        os.close(held)


def test_an_export_names_no_code_that_is_not_beside_it(tmp_path):
    """Fails if a stock export of a model that was once published with its own code needs that code."""
    run, _ = llama(tmp_path)
    names = {"AutoConfig": "configuration_x.X", "AutoTokenizer": ["tokenization_x.X", None]}
    for path in (run / "model" / "config.json", run / "tokenizer" / "tokenizer_config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": names}))
    export_run(run, tmp_path / "out", verify="weights")
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((tmp_path / "out" / name).read_text())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True).config.hidden_size == 24
    assert AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)("pruned")["input_ids"]


def test_a_checkpoint_that_breaks_its_promise_is_not_exported(tmp_path, monkeypatch, capsys):
    run, saved = llama(tmp_path)
    last = saved[-1].dir
    (run / "summary.json").write_text(json.dumps({"step": 20, "mask_sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match="mask_sha256"):
        export_run(run, tmp_path / "out", checkpoint="last")
    (run / "summary.json").unlink()

    (run / "model" / "config.json").write_text((run / "model" / "config.json").read_text().replace("40", "48"))
    with pytest.raises(CheckpointError, match="another model"):
        export_run(run, tmp_path / "out", checkpoint="last")
    (run / "model" / "config.json").write_text((run / "model" / "config.json").read_text().replace("48", "40"))

    file = next(last.glob("deepspeed/*optim*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="sha256"):
        export_run(run, tmp_path / "out", checkpoint="last")
    with pytest.raises(SystemExit) as stop:  # 2, bad input, would blame who asked
        cli.main(["export", str(run), "--out", str(tmp_path / "out"), "--checkpoint", "last"])
    assert stop.value.code == ExitCode.BROKEN_PROMISE and "sha256" in capsys.readouterr().err

    read = CheckpointReader.read
    monkeypatch.setattr(CheckpointReader, "read", lambda *args, **kwargs: read(*args, **kwargs) + 1)
    with pytest.raises(CheckpointError, match="not zero"):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("what", ["weight", "mask"])
def test_a_flipped_bit_in_the_written_folder_is_found(tmp_path, monkeypatch, what):
    run, _ = llama(tmp_path)
    plain = verify.check_tensors

    def flip_then_check(reader, folder, *args):
        path = folder / ("model.safetensors" if what == "weight" else masks.FILE)
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
        plain(reader, folder, *args)

    monkeypatch.setattr(export, "check_tensors", flip_then_check)
    with pytest.raises(verify.ExportError):
        export_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_card_and_report(tmp_path):
    run, _ = llama(tmp_path)
    result = export_run(run, tmp_path / "out", verify="weights")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers")
    config_hash = hashlib.sha256((run / "config.yaml").read_bytes()).hexdigest()
    for words in (
        config_hash,
        result["mask_sha256"],
        "| loss |  | 1.5 |",
        "Before pruning began, after 5 of 20 steps: loss 1.25.",
        "name: movement",
        "step 10, phase hard",
    ):
        assert words in card, words
    console = Console(width=100, record=True, file=open(tmp_path / "report", "w"))
    console.print(format_report(result))
    text = console.export_text()
    for words in ("1.25", "1.5", f"{result['sparsity']:.2%}", "not compared", "equal"):
        assert words in text
    result["lineage"]["num_steps"] = 0  # as of pat prune
    console.print(format_report(result))
    for text, row in (
        (model_card(frozen.load(run / "config.yaml"), result), "| loss | 1.25 | 1.5 |"),
        (console.export_text(), "1.25 │"),
    ):
        assert row in text and "Before it was pruned" not in text and "what pruning costs" in text


@pytest.mark.parametrize(("dtype", "named"), [("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")])
def test_config_json_names_the_dtype_that_was_written(tmp_path, dtype, named):
    """The run's own is bf16; what stock code loads by default is what config.json says."""
    run, _ = llama(tmp_path)
    export_run(run, tmp_path / "out", checkpoint="last", dtype=dtype, verify="weights")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == named


@pytest.mark.parametrize(
    "rope, old",
    [
        ({"rope_type": "default", "rope_theta": 500_000.0}, {"rope_theta": 500_000.0, "rope_scaling": None}),
        (
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6},
            {"rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
    ],
)
def test_transformers_4_finds_the_base_of_rotary_embeddings(tmp_path, rope, old):
    """Fails where it takes 10,000 in silence, as for keys that it does not know."""
    model = LlamaForCausalLM(LlamaConfig(**LLAMA.to_dict() | {"rope_parameters": rope}))
    write_run(tmp_path / "run", model, byte_tokenizer(), "causal_lm")
    export_run(tmp_path / "run", tmp_path / "out", verify="weights")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: written[key] for key in old} == old and written["rope_parameters"] == rope
    assert AutoConfig.from_pretrained(tmp_path / "out").rope_parameters == model.config.rope_parameters


@pytest.mark.parametrize(
    "model_type, rope, old",
    [
        (
            "gpt_neox",
            {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.25},
            {"rotary_emb_base": 2e4, "rotary_pct": 0.25, "rope_scaling": None},
        ),
        (
            "gemma3_text",
            {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        ),
        (
            "phi3",
            {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 48,
                "long_factor": [2.0] * 48,
                "original_max_position_embeddings": 4096,
            },
            {
                "rope_theta": 1e4,
                "partial_rotary_factor": 1.0,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
            },
        ),
        ("modernbert", None, {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0}),
        ("bert", None, {}),
    ],
)
def test_old_names_of_rotary_keys_are_the_families(tmp_path, model_type, rope, old):
    """As transformers 4.57 reads them."""
    config = AutoConfig.for_model(model_type, **({"rope_parameters": rope} if rope else {}))
    config.save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    config_files.write_old_rope_keys(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == before | old


def test_metrics_of_an_earlier_step_are_not_the_exports(tmp_path):
    """Fails if a checkpoint saved between two evaluations has the figures of the last one: dense, beside a cut."""
    for evaluated in (5, 10):
        run = tmp_path / f"{evaluated}"
        torch.manual_seed(1)
        write_run(run, LlamaForCausalLM(LLAMA), byte_tokenizer(), "causal_lm", steps=(10,))
        (file,) = run.glob("checkpoints/*10/manifest.json")
        manifest = json.loads(file.read_text())
        manifest["trainer"] = {**manifest.get("trainer", {}), "evaluated_step": evaluated}
        file.write_text(json.dumps(manifest))
        metrics = export_run(run, run / "out", verify="weights")["lineage"]["metrics"]
        assert (metrics is None) == (evaluated < 10)


def test_a_card_has_a_title_and_not_a_path():
    """Fails if where a file lay on somebody's disk is what a reader of the hub reads first."""
    config = Config(
        run=RunConfig(name="reviews,data.train=_home_me_rows.csv,model.path=_home_me_models_minilm", dir="x"),
        model=ModelConfig(path="/home/me/models/minilm"),
        data=DataConfig(source="csv", train=["/home/me/rows.csv", "/home/me/more.csv"], max_length=8),
    )
    lineage = {"recipe": None, "config_sha256": "c", "step": 9, "phase": "dense", "world_size": 1, "zero_stage": 2}
    lineage |= {"dtype": "bf16", "seed": 0, "versions": {}, "metrics": {"accuracy": 0.9}, "dense_metrics": None}
    lineage |= {"num_steps": 9, "dense_step": None}
    sizes = {"parameters": 8, "bytes": 16, "nonzero_parameters": 8}
    result = {"lineage": lineage, "before": sizes, "after": sizes, "prunable_parameters": 0, "sparsity": 0.0}
    result |= {"sparsity_all_parameters": 0.0, "weights_sha256": "w", "mask_sha256": None, "stock": True}
    result |= {"structures": [], "dtype": "bf16"}
    text, _, table = model_card(config, result).partition("## Lineage")
    assert "\n# minilm: dense, nothing pruned\n" in text
    assert "minilm, fine-tuned on local csv files (rows.csv, more.csv)" in text and "/home/me" not in text
    assert "/home/me/models/minilm" in table and "/home/me/rows.csv" in table, "the lineage keeps them"

    pruned = result | {"prunable_parameters": 8, "sparsity": 0.5, "mask_sha256": "m"}
    trained, at_once = (model_card(config, pruned | {"lineage": lineage | {"num_steps": n}}) for n in (9, 0))
    assert "minilm, fine-tuned on local csv files (rows.csv, more.csv) and pruned while it trained. Plain" in trained
    assert "minilm, pruned without training. Plain" in at_once
    assert "fine-tuned" not in at_once and "while it trained" not in at_once
    narrow = model_card(config, pruned | {"structures": ["ffn: 4 of 8"]})
    assert "- pruned\n- sparse\n- pat" in at_once and "- pruned\n- pat" in narrow
