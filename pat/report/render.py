"""A page as HTML: one file that loads nothing and runs no script. Content of models, logs and prompts is escaped."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from pat.common import secrets
from pat.common.text import plain
from pat.report.page import Page, Picture

HOW_TO_GET = "this needs jinja2: pip install jinja2"


def html(page: Page, refresh_s: int | None = None) -> str:
    """The file's content; with `refresh_s`, browsers reload it after that many seconds."""
    from markupsafe import Markup

    drawn = [
        block.svg for section in page.sections for block in section.blocks if isinstance(block, Picture) and block.svg
    ]
    svgs = {svg: Markup(secrets.hide(svg)) for svg in drawn}  # made by us; names in it are escaped by matplotlib
    style = Markup(_template("page.css"))
    return (
        _environment().get_template("page.html").render(page=page, svgs=svgs, style=style, refresh_s=refresh_s).lstrip()
    )


def safe(value: Any) -> Any:
    """Applied to every expression of a template: removes keys and control characters. Escaping comes after it."""
    from markupsafe import Markup

    return value if isinstance(value, Markup) or not isinstance(value, str) else plain(secrets.hide(value))


@cache
def _environment() -> Any:
    from jinja2 import DictLoader, Environment, StrictUndefined

    return Environment(
        loader=DictLoader({"page.html": _template("page.html")}),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=safe,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _template(name: str) -> str:
    return (files("pat.report") / "templates" / name).read_text(encoding="utf-8")
