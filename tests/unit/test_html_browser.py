"""The HTML report in a real browser: it works by a click, fits a phone, and asks for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Tab, browsing
from report_kit import BAD, BASELINE, BENCHMARK, GATED, spoilt

from optkit.reports.html import render

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browsing(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    data = spoilt(BAD | {"steps": [*BAD["steps"], GATED], "benchmark": BENCHMARK, "baseline": BASELINE})
    path.write_text(render(data | {"name": "net"}), encoding="utf-8")
    return path


@pytest.fixture
def opened(tab: Tab, page: Path) -> Tab:
    tab.asked.clear()
    tab.wrong.clear()
    tab.call("Emulation.clearDeviceMetricsOverride")
    tab.open(page)
    return tab


def test_a_click_on_a_box_of_the_graph_leads_to_its_step(opened: Tab, page: Path) -> None:
    assert opened.run("document.querySelector('section.step:target')") is None
    opened.click("#graph ~ figure svg a[href='#step-int8']")
    assert opened.run("location.hash") == "#step-int8"
    assert opened.run("document.querySelector('section.step:target').id") == "step-int8"
    assert opened.wrong == []
    assert opened.asked == [page.as_uri()]


def test_a_command_gets_a_button_that_copies_it(opened: Tab) -> None:
    assert opened.run("isSecureContext && document.querySelectorAll('.command button').length") > 0
    assert opened.wrong == []


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_no_part_is_wider_than_the_screen(opened: Tab, page: Path, width: int) -> None:
    opened.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=2, mobile=width == 390)
    opened.open(page)
    assert opened.run("document.documentElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('main > *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
    assert opened.run(f"{wide}.map(e => e.id || e.className)") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(opened: Tab, page: Path, scheme: str) -> None:
    """Contrast of at least 4.5, as WCAG 2.1 asks for (1.4.3), of every piece of text outside the charts."""
    opened.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    opened.open(page)
    dark = opened.run("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    low = opened.run("""(() => {
      const light = (rgb) => rgb.match(/[\\d.]+/g).slice(0, 3).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 :
        ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
      const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
        if (!c.endsWith(', 0)')) return c; } return 'rgb(255, 255, 255)'; };
      return [...document.querySelectorAll('body *')].filter((e) => !e.closest('svg') && e.innerText &&
        [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())).filter((e) => {
          const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
          return (a + 0.05) / (b + 0.05) < 4.5; }).map((e) => e.outerHTML.slice(0, 80));
    })()""")
    assert low == []


def test_paper_shows_what_is_folded(opened: Tab) -> None:
    pdf = opened.call("Page.printToPDF", printBackground=True)["data"]
    assert len(pdf) > 10_000
    assert opened.run("[...document.querySelectorAll('details.told')].every((e) => e.open)")
