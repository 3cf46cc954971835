from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

import pat
from pat.launch.environment import free_port
from pat.models import build, limits, tokenizers
from pat.schema import ModelConfig
from pat.tasks import base

LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
BERT = {
    "model_type": "bert", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
LM = base.build({"name": "causal_lm"})
CLASSES = base.build({"name": "classification"})


def random_model(fields: dict[str, Any], task: base.Task = LM, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    cfg = ModelConfig(init="random", config=fields, tokenizer="byte")
    return build.build_model(
        cfg, task, options.pop("dtype", torch.float32), tokenizer=tokenizers.byte_tokenizer(), **options
    )


@pytest.mark.parametrize("text", ["plain", "Hé wörld 😀\n\t  two  spaces . ,", "spelt <eos> and <pad>", "\x00\x7f", ""])
def test_the_byte_tokenizer_maps_bytes_to_their_numbers_and_back(text: str) -> None:
    tokenizer = tokenizers.byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (256, 257, 258)


def test_a_saved_byte_tokenizer_is_the_same_tokenizer(tmp_path: Path) -> None:
    tokenizer = tokenizers.byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("Hé <eos>")["input_ids"] == list("Hé <eos>".encode())
    assert len(again) == len(tokenizer) == 259


def test_a_tokenizer_is_hashed_by_what_it_does_and_not_by_what_it_did_last() -> None:
    used, fresh = tokenizers.byte_tokenizer(), tokenizers.byte_tokenizer()
    used(["some text", "x"], truncation=True, padding=True, max_length=4)
    assert tokenizers.tokenizer_digest(used) == tokenizers.tokenizer_digest(fresh)
    fresh.add_tokens(["word"])
    assert tokenizers.tokenizer_digest(used) != tokenizers.tokenizer_digest(fresh)
    digests = []
    for template in ("{{ messages[0].content }}", "{{ messages[1].content }}"):  # of equal samples, otherwise
        used.chat_template = template
        digests.append(tokenizers.tokenizer_digest(used))
    assert len({*digests, tokenizers.tokenizer_digest(tokenizers.byte_tokenizer())}) == 3


def test_without_a_pad_token_the_end_of_text_pads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tokenizers.byte_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "eos")
    with caplog.at_level("INFO"):
        built = tokenizers.build_tokenizer(ModelConfig(path=str(tmp_path / "eos")))
    assert built.pad_token == "<eos>"
    assert "no pad token" in caplog.text
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match="neither a pad nor an end-of-text token"):
        tokenizers.build_tokenizer(ModelConfig(path=str(tmp_path / "none")))


@pytest.mark.parametrize("fields, task", [(LLAMA, LM), (LLAMA, CLASSES), (BERT, CLASSES)])
def test_random_weights_are_a_function_of_the_seed(fields: dict[str, Any], task: base.Task) -> None:
    one, two, other = (random_model(fields, task, seed, num_labels=3).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    matrices = [value for name, value in one.items() if value.ndim == 2]
    assert all(0.01 < value.std() < 0.03 for value in matrices)  # what transformers initialises to


ZERO_3 = """
import os, sys
import deepspeed, torch
from transformers.integrations.deepspeed import HfDeepSpeedConfig
from pat.models.build import build_model
from pat.models.tokenizers import byte_tokenizer
from pat.schema import ModelConfig
from pat.tasks import base as tasks

def build(cfg, name):
    torch.manual_seed(5)
    return build_model(cfg, tasks.build({"name": name}), torch.float32, 3, byte_tokenizer())

sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
cases = [
    (ModelConfig(init="random", config={"model_type": "llama", "tie_word_embeddings": True, **sizes}), "causal_lm"),
    (ModelConfig(init="random", config={"model_type": "bert", **sizes}), "classification"),
    (ModelConfig(path=sys.argv[1]), "classification"),
]
plain = [build(*case) for case in cases]
deepspeed.init_distributed("gloo")
alive = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
for case, expected in zip(cases, plain):
    model = build(*case)
    assert sum(p.numel() for p in model.parameters()) == 0, "not partitioned"
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        assert model.state_dict().keys() == expected.state_dict().keys()
        for name, value in expected.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), name
print("equal")
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_a_model_has_the_same_weights_under_zero_3(tmp_path: Path) -> None:
    random_model(LLAMA).save_pretrained(tmp_path)
    environment = {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(Path(pat.__file__).parents[1]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", ZERO_3, str(tmp_path)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.endswith("equal\n"), done.stderr[-2000:]


def test_a_new_model_takes_its_vocabulary_and_special_tokens_from_the_tokenizer() -> None:
    model = random_model(LLAMA, dtype=torch.bfloat16)
    assert model.config.vocab_size == 264  # 259, rounded up to a multiple of 8
    assert (model.config.pad_token_id, model.config.eos_token_id) == (256, 258)
    assert model.dtype == torch.bfloat16 and model.training
    assert random_model(LLAMA | {"vocab_size": 300}).config.vocab_size == 300


def test_tied_embeddings_stay_one_parameter() -> None:
    model = random_model(LLAMA | {"tie_word_embeddings": True})
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in dict(model.named_parameters())


def test_pretrained_weights_are_kept_and_a_new_head_is_a_function_of_the_seed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = random_model(LLAMA)
    saved.save_pretrained(tmp_path)
    cfg = ModelConfig(path=str(tmp_path), config={"attention_dropout": 0.1})
    heads = []
    for _ in range(2):
        torch.manual_seed(7)
        model: Any = build.build_model(
            cfg, CLASSES, torch.float32, tokenizer=tokenizers.byte_tokenizer(), label_names=["no", "yes"]
        )
        heads.append(model.score.weight)
    assert torch.equal(*heads)
    assert torch.equal(model.model.embed_tokens.weight, saved.model.embed_tokens.weight)
    assert model.config.attention_dropout == 0.1
    assert model.config.id2label == {0: "no", 1: "yes"} and model.config.num_labels == 2
    assert "newly initialised" in caplog.text and ": score.weight" in caplog.text


@pytest.mark.parametrize(
    "cfg, message",
    [
        (ModelConfig(), "model.path is not set"),
        (ModelConfig(path="./nowhere"), r"no folder model.path='./nowhere'"),
        (ModelConfig(init="random"), "needs an architecture"),
        (ModelConfig(init="random", config={"model_type": "lama"}), "no model.config.model_type='lama'"),
        (
            ModelConfig(init="random", config={"model_type": "bert", "hiden": 8}),
            "'bert' has no model.config.hiden: allowed",
        ),
        (ModelConfig(init="random", config=LLAMA | {"hidden_size": 33}), r"\(33\) is not a multiple of .* heads \(4\)"),
        (ModelConfig(init="random", config={"model_type": "vit"}), "'vit' cannot be built for task.name='causal_lm'"),
    ],
)
def test_a_model_that_cannot_be_built_is_one_sentence(cfg: ModelConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        build.build_model(cfg, LM, torch.float32)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_nearly_meant_is_named_before_the_hub_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch: half a minute of silence for a misspelt folder, or a name of the hub's that is refused for one, or
    for a link beside it that leads nowhere."""
    (tmp_path / "assets" / "minilm").mkdir(parents=True)
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"misspelt.* Did you mean the folder assets/minilm\?"):
        build.build_config(ModelConfig(path="asets/minilm"), LM)
    assert "there is no folder asets/minilm, but assets/minilm; looking for" in capsys.readouterr().err
    with pytest.raises(ValueError) as error:
        build.build_config(ModelConfig(path="owner/minilm"), LM)
    assert not capsys.readouterr().err and "mean" not in str(error.value)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"hidden_size": 16}, r"'lm_head.weight' is \(264, 32\) in .* but \(264, 16\) in the model"),
        ({"hiden_size": 16}, "no model.config.hiden_size: allowed are"),
        ({"model_type": "bert"}, "not both"),
        ({"hidden_size": "wide"}, "is refused"),
    ],
)
def test_a_model_config_that_does_not_go_with_the_weights_is_one_sentence(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    random_model(LLAMA).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        build.build_model(ModelConfig(path=str(tmp_path), config=fields), LM, torch.float32)


def test_a_folder_without_weights_or_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    random_model(LLAMA).config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="No weights could be loaded from"):
        build.build_model(ModelConfig(path=str(tmp_path)), LM, torch.float32)
    with pytest.raises(ValueError, match="No tokenizer could be loaded from"):
        tokenizers.build_tokenizer(ModelConfig(path=str(tmp_path)))
    with pytest.raises(ValueError, match="model.tokenizer is not set"):
        tokenizers.build_tokenizer(ModelConfig())


@pytest.mark.parametrize("model_type, pads", [("llama", 256), ("gpt2", 256), ("roberta", 1)])
def test_a_decoder_that_classifies_knows_the_token_that_pads(model_type: str, pads: int, tmp_path: Path) -> None:
    """Would catch: logits that are read at a padding position. RoBERTa's id says where its positions begin."""
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "max_position_embeddings": 64}
    fields = {"model_type": model_type, "vocab_size": 264, "pad_token_id": 1, **sizes}
    tokenizer = tokenizers.byte_tokenizer()
    for cfg in (ModelConfig(init="random", config=fields), ModelConfig(path=str(tmp_path))):
        model: Any = build.build_model(cfg, CLASSES, torch.float32, 2, tokenizer).eval()
        assert model.config.pad_token_id == pads
        samples = {"input_ids": [[5, 6], [7] * 9], "label": [0, 1]}
        alone = {name: values[:1] for name, values in samples.items()}
        two, one = (CLASSES.outputs(model, CLASSES.collate(each, tokenizer)).logits for each in (samples, alone))
        assert pads == 1 or torch.allclose(one[0], two[0], atol=1e-5)
        assert pads == 1 or torch.allclose(one[0], model(input_ids=torch.tensor([[5, 6]])).logits[0], atol=1e-5)
        model.config.pad_token_id = 1  # as on the hub
        model.save_pretrained(tmp_path)


def test_what_the_model_has_no_room_for_is_an_error() -> None:
    config = build.build_config(ModelConfig(init="random", config=LLAMA | {"vocab_size": 100}), LM)
    with pytest.raises(ValueError, match="259 tokens and the model embeds 100"):
        limits.check(config, tokenizers.byte_tokenizer(), 16)
    config.vocab_size = 259
    limits.check(config, tokenizers.byte_tokenizer(), 64)
    with pytest.raises(ValueError, match="data.max_length=65 is more than the 64 positions"):
        limits.check(config, tokenizers.byte_tokenizer(), 65)


def test_a_token_that_was_added_needs_no_row_of_the_model_while_no_sample_has_it() -> None:
    """Text models of Gemma 3 have none for the tokenizer's image. Fails where one that is used would be looked up."""
    config = build.build_config(ModelConfig(init="random", config=LLAMA | {"vocab_size": 259}), LM)
    tokenizer = tokenizers.byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    plain, used = (Dataset.from_dict({"input_ids": [[1, 2], [3, last]]}) for last in (258, 259))
    limits.check(config, tokenizer, 16, [plain])
    with pytest.raises(ValueError, match="260 tokens and the model embeds 259"):
        limits.check(config, tokenizer, 16, [plain, used])
    tokenizer.pad_token = "<image>"
    with pytest.raises(ValueError, match="260 tokens and the model embeds 259"):
        limits.check(config, tokenizer, 16, [plain])


@pytest.mark.parametrize("model_type, positions", [("bert", 60), ("gpt2", 60), ("roberta", 58)])
def test_the_longest_text_is_padded_to_no_more_than_the_models_positions(model_type: str, positions: int) -> None:
    """60 is no multiple of 8, and RoBERTa's begin after its pad token. Would catch: an IndexError in a batch."""
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "max_position_embeddings": 60}
    cfg = ModelConfig(init="random", tokenizer="byte", config={"model_type": model_type, "pad_token_id": 1, **sizes})
    tokenizer = tokenizers.build_tokenizer(cfg)
    model = build.build_model(cfg, CLASSES, torch.float32, 2, tokenizer)
    samples = {"input_ids": [[5] * positions, [6]], "label": [0, 1]}
    assert torch.isfinite(CLASSES.loss(model, CLASSES.collate(samples, tokenizer)))
    limits.check(model.config, tokenizer, positions)
    with pytest.raises(ValueError, match=f"more than the {positions} positions of the model.*: lower it"):
        limits.check(model.config, tokenizer, positions + 1)
