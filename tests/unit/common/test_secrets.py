"""Keys are taken out of texts and settings, and nothing else is."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from pat.commands import _models
from pat.common.secrets import HIDDEN, hidden, hide, is_secret

LONG = "ThisIsNoRealTokenAtAll0123456789"


@pytest.mark.parametrize(
    "text",
    [
        f"hf_{LONG}",
        f"sk-{LONG}",
        f"ghp_{LONG}",
        f"WANDB_API_KEY={LONG}",
        f'"api_key": "{LONG}"',
        f"hub_token: {LONG}",
        f"pat train --token {LONG}",
        f"Authorization: Bearer {LONG}",
        f"https://me:{LONG}@example.org/x",
        f"https://me:pa/{LONG}@example.org/x",
        f"https://me:p@{LONG}@example.org/x",
        f"redis://:{LONG}@example.org",
        f"postgresql://localhost/db?user=bob&password={LONG}",
        f"https://x.blob/y?sv=1&sig={LONG}",
        f"eyJhbGciOiJ.{LONG}.{LONG}",
        f"-----BEGIN RSA PRIVATE KEY-----\n{LONG}\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_keys_go(text: str) -> None:
    found = hide(f"before {text} after")
    assert LONG not in found and HIDDEN in found and found.startswith("before ") and found.endswith(" after")


@pytest.mark.parametrize(
    "text",
    [
        "output_tokens: 32 of 4096",
        "tokens_per_s=236.778293",
        "tokenizer: ./assets/minilm/tokenizer",
        "weights sha256 e61747bcc5bfbf37239a2b1e8a848a0cc3c33cb9fb325a835fbf2f19d50f4421",
        "git 2818d1ef5ca059ae47b26aeeda20cac3762d0bad",
        "the token after it is a word; the basic idea",
        "basic JavaScript/TypeScript; Basic 3-dimensional arrays",
        "Explain the basic principles of physics.",
        "Basic instructions: stir",
        "https://example.org/a:b/c",
        "https://example.org:8080/a@b?c=d@e",
        "http://[::1]:8080/a@b",
        "https://example.org?to=a@b",
        "git@github.com:someone/repository.git",
        "ssh://git@github.com:22/someone/repository@v1",
        "git+https://github.com/someone/repository@v1",
    ],
)
def test_everything_else_stays(text: str) -> None:
    assert hide(text) == text


def test_short_keys_of_a_header_go() -> None:
    for scheme, key in (("Basic", "dXNlcjpwYXNz"), ("Bearer", "abc123def456"), ("basic", "dXNlcjpwYXNzd29yZA==")):
        assert hide(f"Authorization: {scheme} {key}") == f"Authorization: {scheme} {HIDDEN}"


def test_a_short_password_in_a_query_goes() -> None:
    for name in ("password", "sslpassword", "pwd"):
        assert hide(f"postgresql://h/db?user=bob&{name}=pw&x=1") == f"postgresql://h/db?user=bob&{name}={HIDDEN}&x=1"
    assert hide("postgresql://u:p/w@h/db@x") == f"postgresql://{HIDDEN}@h/db@x"


def test_by_name_in_mappings_and_by_this_processes_own_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SECRET", "correct horse battery")
    given = {
        "hub_token": "x",
        "max_tokens": 3,
        "inner": [{"password": "y"}, "say correct horse battery"],
        "token": None,
    }
    assert hidden(given) == {
        "hub_token": HIDDEN, "max_tokens": 3, "inner": [{"password": HIDDEN}, f"say {HIDDEN}"], "token": None,
    }  # fmt: skip
    assert is_secret("AWS_SECRET_ACCESS_KEY") and not is_secret("tokenizer") and not is_secret("keys")


def test_the_command_in_a_result_has_no_keys(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    typed = ["pat", "evaluate", "model", "data.hub_token=hf_" + "a" * 30, "--json", str(file)]
    _models.write_json(argparse.Namespace(json=file, typed=typed), {"models": []})
    assert "hf_a" not in file.read_text() and f"data.hub_token={HIDDEN}" in file.read_text()
