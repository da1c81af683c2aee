"""Reports in a real browser, on a desktop's and on a phone's width: nothing cut off, nothing on the console."""

from __future__ import annotations

import base64
import json
import os
import re

import pytest

pytest.importorskip("matplotlib")

from specfast.report import pages
from tests.report.browser import CHROMIUM, open_tab, running_chromium

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on PATH (apt-get install chromium)"),
    pytest.mark.xdist_group("browser"),
]

# What a reader could not see: boxes beyond the right edge of the page that no ancestor lets one scroll to, text cut by
# a box that hides it, and images that did not load.
LAYOUT = """
(() => {
  const cut = [], page = document.documentElement, width = page.clientWidth;
  const scrolls = element => {
    for (let box = element; box && box !== document.body; box = box.parentElement)
      if (['auto', 'scroll'].includes(getComputedStyle(box).overflowX)) return true;
    return false;
  };
  for (const element of document.body.querySelectorAll('*')) {
    const box = element.getBoundingClientRect(), name = element.outerHTML.slice(0, 80);
    const beyond = box.right > width + 0.5 || box.left < -0.5;
    if (beyond && !scrolls(element.parentElement)) cut.push('beyond the page: ' + name);
    const hides = getComputedStyle(element).overflowX === 'hidden';
    if (hides && element.scrollWidth > element.clientWidth) cut.push('hidden: ' + name);
  }
  const image = one => [one.complete, one.naturalWidth, one.getBoundingClientRect().width];
  const leads = link => document.getElementById(link.getAttribute('href').slice(1)) !== null;
  const body = getComputedStyle(document.body);
  return JSON.stringify({
    scroll: page.scrollWidth, width, cut, ink: body.color, page: body.backgroundColor,
    images: [...document.images].map(image), links: [...document.querySelectorAll('nav a')].map(leads),
    headings: document.querySelectorAll('h2').length,
  });
})()
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with running_chromium(tmp_path_factory.mktemp("chromium")) as address:
        yield address


def look_at(address: str, page, width: int, dark: bool = False) -> dict:
    """Load a page and return its layout, and what was wrong while it loaded."""
    tab = open_tab(address, width, dark)
    try:
        tab.call("Page.navigate", url=page.as_uri())
        tab.wait_for("Page.loadEventFired")
        found = json.loads(tab.value(LAYOUT))
        if folder := os.environ.get("SCREENSHOTS"):  # for people who want to see them
            shot = tab.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
            name = f"{page.parent.name}-{page.stem}-{width}{'-dark' if dark else ''}.png"
            with open(os.path.join(folder, name), "wb") as file:
                file.write(base64.b64decode(shot["data"]))
        found["console"] = [
            message["params"]
            for message in tab.events
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        ]
        found["requests"] = [
            message["params"]["request"]["url"]
            for message in tab.events
            if message.get("method") == "Network.requestWillBeSent"
        ]
        return found
    finally:
        tab.close()


@pytest.fixture
def report(request, tmp_path):
    """The page of each kind, named by the test."""
    if request.param in ("pretrain_run", "finetune_run"):
        return pages.page(request.getfixturevalue(request.param))
    shown = pages.show(request.getfixturevalue(request.param))
    return shown.save(tmp_path / f"{request.param}.html")


@pytest.mark.parametrize("report", ["pretrain_run", "finetune_run", "scene", "class_map"], indirect=True)
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_off_and_nothing_complains(chromium, report, width):
    found = look_at(chromium, report, width)
    assert found["width"] == width
    assert found["scroll"] <= width
    assert found["cut"] == []
    assert found["console"] == []
    assert found["images"], "a report without a picture"
    assert all(complete and natural > 0 and shown > 0 for complete, natural, shown in found["images"])
    assert all(found["links"])
    assert len(found["links"]) == found["headings"]
    assert [url[:5] for url in found["requests"] if not url.startswith("data:")] == ["file:"], "only the page itself"


@pytest.mark.parametrize("report", ["finetune_run"], indirect=True)
def test_dark_mode_has_light_ink_on_a_dark_page(chromium, report):
    def luminance(color):
        return sum(map(int, re.findall(r"\d+", color)[:3])) / 3

    light, dark = look_at(chromium, report, 1280), look_at(chromium, report, 1280, dark=True)
    assert luminance(light["page"]) - luminance(light["ink"]) > 150
    assert luminance(dark["ink"]) - luminance(dark["page"]) > 150


def test_a_page_that_is_cut_off_is_noticed(chromium, tmp_path):
    page = tmp_path / "wide.html"
    page.write_text(
        "<!DOCTYPE html><link rel=icon href='data:,'><meta name=viewport content='width=device-width'>"
        "<div style='width:900px'>wide</div><script>missing()</script>"
    )
    found = look_at(chromium, page, 390)
    assert found["cut"]
    assert found["console"]
