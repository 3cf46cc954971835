"""No command runs the Python files that somebody else's model folder brings along, whatever a terminal would answer."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path

import pytest

from pat import cli
from pat.run.directory import ExitCode
from tests import models

COMMANDS = {
    "evaluate": ["evaluate", "MODEL", "--mix", "mix.jsonl"],
    "compare": ["compare", "good", "MODEL", "--mix", "mix.jsonl"],
    "gate": ["gate", "MODEL", "--against", "good", "envelope.passed.drop=0.9", "--mix", "mix.jsonl"],
    "profile": ["profile", "MODEL", "--mix", "mix.jsonl"],
    "monitor": ["monitor", "prod.jsonl", "--against", "MODEL", "--mix", "mix.jsonl"],
    "train": [
        "train", "recipe=decoder", "run.name=r", "model.path=MODEL", "data=json", "data.train=texts.jsonl",
        "data.max_length=8", "train.num_steps=10", "engine.world_size=1", "logger=none", "--dry-run",
    ],
    "prune": ["prune", "MODEL", "--data", "texts.jsonl", "--sparsity", "0.5", "--out", "out"],
    "registry": ["registry", "add", "demo", "MODEL", "--dir", "registry"],
}  # fmt: skip
# What names the code, in config.json or tokenizer_config.json: of a type that transformers does not know by itself.
MODEL = {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Theirs", "AutoModelForCausalLM": "theirs.Theirs"}}
TOKENIZER = {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.Theirs", None]}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`good`, the same with code for its model, and with code for its tokenizer; and data."""
    made = tmp_path_factory.mktemp("folders")
    models.write_llama(made / "good")
    for name, file, said in (
        ("model", "config.json", MODEL),
        ("tokenizer", "tokenizer_config.json", TOKENIZER),
    ):
        shutil.copytree(made / "good", made / name)
        known = json.loads((made / name / file).read_text())
        (made / name / file).write_text(json.dumps(known | said))
        (made / name / "theirs.py").write_text(f"open({str(made / 'ran')!r}, 'w')\nclass Theirs: pass\n")
    (made / "mix.jsonl").write_text(
        '{"prompt": "ab", "output_tokens": 2, "checks": [{"name": "exact", "text": "c"}]}\n'
    )
    (made / "texts.jsonl").write_text("".join(json.dumps({"text": f"text {i} of many"}) + "\n" for i in range(40)))
    (made / "prod.jsonl").write_text("".join(json.dumps({"prompt": f"text {i}"}) + "\n" for i in range(12)))
    return made


def test_no_place_leaves_it_to_transformers_whether_to_ask(repository: Path) -> None:
    """Would catch: a call that reads a folder some other way than the commands below."""
    left = [
        f"{path.name}:{call.lineno}"
        for path in (repository / "pat").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and re.fullmatch(r".*\b(Auto|auto_)\w+\.from_pretrained", ast.unparse(call.func))
        if "trust_remote_code=False" not in ast.unparse(call)
    ]
    assert not left


@pytest.mark.parametrize("of", ["model", "tokenizer"])
@pytest.mark.parametrize("command", COMMANDS)
def test_none_is_run(
    folder: Path, command: str, of: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch: the question of transformers, whether to run it, that one key at a terminal answers with yes."""
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as stop:
        cli.main([of if word == "MODEL" else word.replace("MODEL", of) for word in COMMANDS[command]])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert not (folder / "ran").exists() and not asked
    assert stop.value.code == ExitCode.BAD_INPUT and "code" in said, said
    assert not (folder / "out").exists() and not (folder / "runs").exists()
