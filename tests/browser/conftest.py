"""Debian's Chromium without a screen, and axe-core, which finds what people with disabilities would stumble over.

Installed where they are missing: chromium and chromium-driver by apt-get (as root, about 600 MB of disk with what they
need), and the file axe.min.js out of a wheel of 0.2 MB that pip downloads without what it depends on.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.install import problem_of

AXE = "axe-playwright-python==0.1.8"  # the newest of pip's packages that bundle axe-core: 4.12
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")


@pytest.fixture(scope="session")
def chromium() -> tuple[str, str]:
    """(the browser, its driver)."""
    if importlib.util.find_spec("selenium") is None:
        pytest.skip("selenium is not installed: pip install '.[dev]'")
    if not all(_found()):
        if problem := problem_of("chromium", "chromium-driver"):
            pytest.skip(f"there is no Chromium, and {problem}")
    binary, driver = _found()
    if not (binary and driver):
        pytest.skip("this system has no packages chromium and chromium-driver")
    return binary, driver


def _found() -> tuple[str | None, str | None]:
    """(browser, driver); on GitHub's machines it is Chrome."""
    return shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core."""
    folder = tmp_path_factory.mktemp("axe")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, AXE]
    loaded = subprocess.run(pip, capture_output=True, text=True)
    if loaded.returncode:
        pytest.skip(f"axe-core cannot be downloaded: {loaded.stderr.strip()[-300:]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        return opened.read("axe_playwright_python/axe.min.js").decode()


@pytest.fixture(scope="module")
def browser(chromium: tuple[str, str]) -> Iterator[Any]:
    """A driver of the browser."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium[0]
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(chromium[1]))
    driver.set_script_timeout(300)
    try:
        yield driver
    finally:
        driver.quit()


def look(browser: Any, width: int, scheme: str = "light") -> None:
    """Make the window so wide, in this colour scheme."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def screenshot(browser: Any, path: Path) -> bytes:
    """Of the whole page."""
    import base64

    width, height = browser.execute_script(
        "return [document.documentElement.clientWidth, document.documentElement.scrollHeight]"
    )
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    path.write_bytes(base64.b64decode(shot["data"]))
    return path.read_bytes()
