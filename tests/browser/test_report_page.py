"""Reports in a real browser: nothing overlaps or overflows, the keyboard gets everywhere, it prints, axe is content.

Screenshots are kept in $PAT_SCREENSHOTS, if that is set.
"""

from __future__ import annotations

import base64
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pat.report import build, pictures, reading
from pat.report.render import html
from tests import monitor_samples
from tests import report_samples as samples
from tests.browser.conftest import look, screenshot

pytestmark = pytest.mark.slow

WIDTHS = (360, 820, 1280)
LONG = "x" * 300
# Elements that reach out of the window, but for what scrolls inside its own box; words that reach out of a picture.
OVERFLOWING = """
const width = document.documentElement.clientWidth;
return [...document.body.querySelectorAll('*')].filter(e => {
  if (e.closest('.scroll, pre, .skip') && !e.matches('.scroll, pre')) return false;
  if (e.closest('svg') && e.tagName !== 'svg' && e.tagName !== 'text') return false;
  const box = e.getBoundingClientRect();
  const around = e.tagName === 'text' ? e.closest('svg').getBoundingClientRect() : {left: 0, right: width};
  return box.width && (box.right > around.right + 1 || box.left < around.left - 1);
}).map(e => e.outerHTML.slice(0, 120));
"""
# Neighbours, and words within a picture, that lie on each other.
OVERLAPPING = """
const found = [];
const check = (elements, slack) => {
  const boxes = elements.map(e => [e, e.getBoundingClientRect()]).filter(([, b]) => b.width && b.height);
  boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
    const x = Math.min(p.right, q.right) - Math.max(p.left, q.left);
    const y = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
    if (x > slack && y > slack) found.push(a.outerHTML.slice(0, 90) + ' | ' + b.outerHTML.slice(0, 90));
  }));
};
const parents = 'body, main, section, .cards, .cards > div, .pictures, figure, .both, dl, article, nav ul, td, tr';
for (const parent of document.querySelectorAll(parents))
  check([...parent.children].filter(e => !e.matches('.skip, style')), 1);
for (const svg of document.querySelectorAll('svg')) check([...svg.querySelectorAll('text')], 2);
return found;
"""
# The scripts of the page itself would have set these.
OWNED = "return [document.title, window.owned, document.scripts.length]"


@pytest.fixture(scope="module", params=["everything", "nasty", "run", "sweep", "no data", "monitor"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(what it is of, the file)."""
    if not pictures.available():
        pytest.skip(pictures.MISSING)
    folder = tmp_path_factory.mktemp("page")
    evil = f"{samples.NASTY}{LONG}"
    (folder / "empty").mkdir()
    (folder / "empty" / "config.yaml").write_text("run: {name: empty}\n")
    path = folder / "report.html"
    if request.param == "monitor":
        path.write_text(html(monitor_samples.rolling(evil)))
        return request.param, path
    given = {
        "everything": lambda: samples.everything(folder),
        "nasty": lambda: samples.everything(folder, evil),
        "run": lambda: [samples.run(folder / "run")],
        "sweep": lambda: [samples.sweep(folder / "sweep")],
        "no data": lambda: [folder / "empty"],
    }[request.param]()
    path.write_text(html(build.page(reading.read(given), worst=3)))
    return request.param, path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overlaps_or_overflows(
    browser: Any, page: tuple[str, Path], width: int, scheme: str, tmp_path: Path
) -> None:
    name, path = page
    look(browser, width, scheme)
    browser.get(path.as_uri())
    inner, outer = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert outer == width and inner <= outer
    assert browser.execute_script(OVERFLOWING) == []
    assert browser.execute_script(OVERLAPPING) == []
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    dark = sum(map(int, ground.strip("rgb()").split(","))) < 384
    assert dark == (scheme == "dark")
    shots = Path(os.environ.get("PAT_SCREENSHOTS") or tmp_path)
    shots.mkdir(parents=True, exist_ok=True)
    assert screenshot(browser, shots / f"{name.replace(' ', '-')}-{width}-{scheme}.png").startswith(b"\x89PNG")


def test_no_script_of_a_prompt_runs_and_nothing_is_loaded(browser: Any, page: tuple[str, Path]) -> None:
    browser.get_log("browser")
    browser.get(page[1].as_uri())
    title, owned, scripts = browser.execute_script(OWNED)
    assert title != "owned" and owned is None and scripts == 0
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert asked == []
    assert [line["message"] for line in browser.get_log("browser")] == []


def test_the_keyboard_gets_everywhere_and_its_place_is_seen(browser: Any, page: tuple[str, Path]) -> None:
    """The skip link first; Enter opens the numbers of a picture; what has the focus has an outline."""
    from selenium.webdriver.common.keys import Keys

    look(browser, 820)
    browser.get(page[1].as_uri())
    body, here = browser.find_element("tag name", "body"), "return document.activeElement"
    body.send_keys(Keys.TAB)
    first = browser.execute_script(here)
    assert first.get_attribute("class") == "skip" and first.rect["x"] >= 0
    first.send_keys(Keys.ENTER)
    assert browser.execute_script("return document.activeElement.id") == "main"
    browser.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
    expected = browser.execute_script("return document.querySelectorAll('a, summary, [tabindex=\"0\"]').length")
    closed = browser.execute_script("return document.querySelectorAll('details [tabindex=\"0\"]').length")
    opened, reached = 0, 0
    browser.get(page[1].as_uri())
    for _ in range(expected):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        at = browser.switch_to.active_element
        if at.tag_name == "body":
            break
        reached += 1
        outline = browser.execute_script("return getComputedStyle(arguments[0]).outlineStyle", at)
        assert outline == "solid", at.get_attribute("outerHTML")[:100]
        if at.tag_name == "summary" and not opened:
            at.send_keys(Keys.ENTER)
            assert browser.execute_script("return arguments[0].parentElement.open", at)
            opened = 1
    assert reached >= expected - closed
    assert opened == (1 if closed else 0)


@pytest.mark.parametrize("width", [WIDTHS[0], WIDTHS[-1]])
def test_every_link_and_fold_can_be_clicked(browser: Any, page: tuple[str, Path], width: int) -> None:
    """With a mouse or a finger: a click that something else would get is an error of the driver's."""
    look(browser, width)
    browser.get(page[1].as_uri())
    links = browser.find_elements("css selector", "nav a")
    for link in links:
        link.click()
        shown = browser.execute_script(
            "const e = document.querySelector(':target'), b = e.getBoundingClientRect();"
            "return e.id && b.top >= -1 && b.top < innerHeight ? e.id : null"
        )
        assert shown and link.get_attribute("href").endswith(f"#{shown}")
    folds = browser.find_elements("tag name", "summary")
    for fold in folds:
        fold.click()
        box = "return arguments[0].parentElement.open && arguments[0].nextElementSibling.getBoundingClientRect().height"
        assert browser.execute_script(box, fold) > 0
    assert browser.execute_script(OVERFLOWING) == [], "unfolded, too"
    assert len(links) > 1 and (len(folds) > 3 or page[0] != "everything")


def test_it_prints(browser: Any, page: tuple[str, Path], tmp_path: Path) -> None:
    """All of it, also what is wide, and light whatever the screen is."""
    look(browser, 1280, "dark")
    browser.get(page[1].as_uri())
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    made = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True, "paperWidth": 8.27})
    pdf = base64.b64decode(made["data"])
    assert pdf.startswith(b"%PDF") and len(pdf) > 10_000
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    wide = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')]"
        ".filter(e => getComputedStyle(e).overflowX !== 'visible').length"
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert ground == "rgb(255, 255, 255)" and wide == 0
    (tmp_path / "report.pdf").write_bytes(pdf)
    if subprocess.run(["which", "pdftotext"], capture_output=True).returncode == 0:
        text = subprocess.run(["pdftotext", tmp_path / "report.pdf", "-"], capture_output=True, text=True).stdout
        expected = ("Replayed prompts",) if page[0] == "monitor" else ("Quality", "Reproduce")
        assert all(title in text for title in expected)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(browser: Any, axe: str, page: tuple[str, Path], scheme: str) -> None:
    """All its rules, best practices too; with the numbers of pictures unfolded. Words in SVG it cannot judge."""
    look(browser, 360, scheme)
    browser.get(page[1].as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(e => e.open = true)")
    browser.execute_script(axe)
    found = browser.execute_async_script("axe.run().then(arguments[0])")
    told = [(one["id"], one["help"], [node["html"][:150] for node in one["nodes"][:3]]) for one in found["violations"]]
    assert told == [] and len(found["passes"]) > 20


def test_colours_have_the_contrast_of_wcag_aa(browser: Any, page: tuple[str, Path]) -> None:
    """4.5 to 1 of words, 3 to 1 of lines, on their grounds; and so on the deepest cell of a picture."""
    for scheme in ("light", "dark"):
        look(browser, 820, scheme)
        browser.get(page[1].as_uri())
        value = browser.execute_script(
            "const s = getComputedStyle(document.documentElement), o = {};"
            "for (const n of arguments[0]) o[n] = s.getPropertyValue('--' + n).trim(); return o",
            ["ground", "surface", "ink", "muted", "one", "two", "good", "bad", "open", "good-soft", "bad-soft",
             "open-soft", "code"],
        )  # fmt: skip
        for ground in ("ground", "surface", "code"):
            for word in ("ink", "muted", "one", "good", "bad", "open"):
                assert contrast(rgb(value[word]), rgb(value[ground])) >= 4.5, (scheme, word, ground)
            assert contrast(rgb(value["two"]), rgb(value[ground])) >= 3.0
        for tone in ("good", "bad", "open"):
            for word in (tone, "ink"):
                assert contrast(rgb(value[word]), rgb(value[f"{tone}-soft"])) >= 4.5
        deepest = mixed(rgb(value["one"]), rgb(value["surface"]), pictures.DEEPEST)
        assert contrast(rgb(value["ink"]), deepest) >= 4.5
        shaded = mixed(rgb(value["one"]), rgb(value["surface"]), max(pictures.SHADES.values()))
        assert contrast(rgb(value["muted"]), shaded) >= 4.5


def rgb(colour: str) -> tuple[float, ...]:
    """Of #rrggbb."""
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def mixed(over: tuple[float, ...], under: tuple[float, ...], opacity: float) -> tuple[float, ...]:
    """A colour that lets the ground through."""
    return tuple(opacity * a + (1 - opacity) * b for a, b in zip(over, under, strict=True))


def contrast(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Of WCAG 2: (L1 + 0.05) / (L2 + 0.05) of relative luminances."""

    def luminance(colour: tuple[float, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)
