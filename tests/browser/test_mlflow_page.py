"""The registry in MLflow's own web page, in a real browser: versions, what is recorded of them, and the champion.

mlflow-skinny has no page, so the files of the whole package of the same version stand before it, without what it
depends on.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pat.launch.environment import free_port
from tests.browser.conftest import look, screenshot
from tests.unit.registry.test_mlflow import run
from tests.unit.registry.test_mlflow_server import Server
from tests.unit.registry.test_registry import small

pytestmark = [pytest.mark.slow, pytest.mark.real_processes]
PATIENCE_S = 400


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """With the page."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", tmp_path / "wheel"]
    version = importlib.metadata.version("mlflow-skinny")
    loaded = subprocess.run([*pip, f"mlflow=={version}"], capture_output=True, text=True)
    if loaded.returncode:
        pytest.skip(f"mlflow {version} cannot be downloaded: {loaded.stderr.strip()[-300:]}")
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(tmp_path / "whole")
    path = os.pathsep.join(filter(None, [str(tmp_path / "whole"), os.environ.get("PYTHONPATH")]))
    made = Server(tmp_path, free_port(), {"PYTHONPATH": path})
    try:
        made.start()
        yield made
    finally:
        made.kill()


def shows(browser: Any, wanted: tuple[str, ...]) -> bool:
    """Whether the page's text has every word."""
    text = browser.execute_script("return document.body.innerText")
    return all(word in text for word in wanted)


def test_the_page_shows_versions_and_the_champion(server: Server, browser: Any, tmp_path: Path) -> None:
    """Would catch: names, descriptions and tags that the page cannot show, and aliases that only we can read."""
    from selenium.webdriver.support.ui import WebDriverWait

    there = ("--dir", tmp_path / "registry", "--uri", server.uri)
    for number in (1, 2):
        assert run("add", "demo", small(tmp_path / str(number), number), *there) == 0
    assert run("promote", "demo", 2, "--as", "champion", "--reason", "better", *there) == 0
    look(browser, 1280)
    for place, wanted in (("models", ("demo", "Version 2")), ("models/demo", ("Version 1", "Version 2", "champion"))):
        browser.get(f"{server.uri}/#/{place}")
        WebDriverWait(browser, PATIENCE_S).until(lambda driver, wanted=wanted: shows(driver, wanted))
        kept = Path(os.environ.get("PAT_SCREENSHOTS") or tmp_path)
        assert screenshot(browser, kept / f"mlflow-{place.replace('/', '-')}.png")
