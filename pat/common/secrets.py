"""Removes keys, tokens and passwords from whatever is shown or passed on."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

HIDDEN = "[hidden]"
SHORTEST = 8  # characters from which an environment variable counts as a key, and not as a word of the text

_NAME = (
    r"(?:[\w.-]*[_.-])?(?:api[_-]?keys?|access[_-]?keys?|private[_-]?keys?|secret(?:[_-]?\w+)?|passw(?:or)?d|passphrase"
    r"|credentials?|authorization|token)"
)
_IS_SECRET = re.compile(_NAME, re.IGNORECASE)
# Keys that can be recognised by their form, wherever they stand.
_FORMS = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|\bsk-[A-Za-z0-9_-]{20,}"  # OpenAI and others
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{20,}"
    r"|\bwandb_v\d_\w{20,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[\w-]{35}"
    r"|\bxox[abeprs]-[\w-]{10,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}"  # JSON web tokens
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_IN_URL = re.compile(
    r"(?<=://)[^/?#\s@:\[]*:"  # the user
    r"(?!\d+[/?#])"  # a port, after which an @ is one of the path
    r"(?:[^/\s@]+|[^\s@\"<>]+)(?:@[^/?#\s@]+)*(?=@)"  # a password may have a raw / or @
)
_IN_QUERY = re.compile(rf"(?i)(?<=[?&])((?:{_NAME}|sslpassword|pwd|odbc_connect)=)[^&\s\"'<>]+")
_BEARER = re.compile(  # of a header whatever follows; elsewhere what is no word, as in "basic principles"
    r"(?P<before>(?i:authorization)[\"']?\s*[:=]\s*[\"']?(?i:bearer|basic)\s+)[\w.~+/=-]+"
    r"|(?P<bearer>\b(?i:bearer)\s+)(?=[\w.~+/=-]*[\d+=]|(?:[\w.~/-]*?[a-z][A-Z]){2})[\w.~+/=-]{8,}"
    r"|(?P<basic>\b(?i:basic)\s+)(?=[A-Za-z]*\d|(?:[A-Za-z]*?[a-z][A-Z]){2})[A-Za-z0-9+/=]{8,}(?![\w-])"
)
_GIVEN = re.compile(  # NAME=VALUE, --NAME VALUE, "NAME": "VALUE"
    rf"(?i)(?P<name>(?<![\w.-]){_NAME}|(?<=[?&])(?:sig|signature|x-amz-signature))"
    r"(?P<between>[\"']?\s*[=:]\s*[\"']?|(?<=-token)\s+|(?<=-key)\s+)(?P<value>[^\s\"'&;,]{8,})"
)


def is_secret(name: str) -> bool:
    """Whether what has this name is a key: `hub_token`, `WANDB_API_KEY`; not `tokens` or `tokenizer`."""
    return _IS_SECRET.fullmatch(name) is not None


def hide(text: str) -> str:
    """The text without what looks like a key, is named like one, or is the value of such an environment variable."""
    text = _FORMS.sub(HIDDEN, text)
    text = in_query(_IN_URL.sub(HIDDEN, text))
    text = _BEARER.sub(lambda found: f"{found['before'] or found['bearer'] or found['basic']}{HIDDEN}", text)
    text = _GIVEN.sub(lambda found: f"{found['name']}{found['between']}{HIDDEN}", text)
    for value in _of_the_environment(tuple(sorted(os.environ.items()))):
        text = text.replace(value, HIDDEN)
    return text


def in_query(text: str, instead: str = HIDDEN) -> str:
    """The text without passwords and keys in the query of a URL, however short they are."""
    return _IN_QUERY.sub(lambda found: f"{found[1]}{instead}", text)


def hidden(content: Any) -> Any:
    """The same of nested mappings and lists, by name and by look."""
    if isinstance(content, Mapping):
        return {
            hide(str(name)): HIDDEN if is_secret(str(name)) and isinstance(item, str) and item else hidden(item)
            for name, item in content.items()
        }
    if isinstance(content, list | tuple):
        return [hidden(item) for item in content]
    return hide(content) if isinstance(content, str) else content


@cache
def _of_the_environment(variables: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    return tuple(value for name, value in variables if is_secret(name) and len(value) >= SHORTEST)
