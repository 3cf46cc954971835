"""What mkdocs calls while it builds the pages: the command reference is made of every command's own `--help`."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any
from unittest import mock

from pat import commands

ROOT = Path(__file__).resolve().parents[2]
HELP = "<!-- help -->"  # where it goes
WIDTH = "100"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page's text, with the help in its place."""
    return markdown.replace(HELP, "\n".join(map(_section, commands.names()))) if HELP in markdown else markdown


def _section(name: str) -> str:
    return f"## pat {name}\n\n```text\n{_help(name).replace(str(ROOT), '.').strip()}\n```\n"


def _help(name: str) -> str:
    said = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS=WIDTH), contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        commands.load(name).main(["--help"])
    return said.getvalue()
