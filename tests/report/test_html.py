"""The HTML report: well-formed, self-contained, escaped, written in one step."""

from __future__ import annotations

import base64
import os
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from specfast.files import write_atomic
from specfast.report.html import Report

VOID = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """Checks nesting and collects elements and text."""

    def __init__(self, text: str):
        super().__init__()
        self.stack, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.stack, f"not closed: {self.stack}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if not self.stack or self.stack[-1] not in ("style", "script"):
            self.texts.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture
def figures():
    matplotlib_figure = pytest.importorskip("matplotlib.figure")

    def chart():
        fig = matplotlib_figure.Figure(figsize=(5, 3))
        fig.subplots().plot([1, 2, 3])
        return fig

    def picture():
        fig = matplotlib_figure.Figure(figsize=(4, 2))
        ax = fig.subplots()
        ax.imshow([[0, 1], [1, 0]])
        ax.set_axis_off()
        return fig

    return chart, picture


def full_report(figures) -> Report:
    chart, picture = figures
    return (
        Report("A title", "its subtitle")
        .callout("What won.\n\nAnd what did not.")
        .section("First section")
        .text("One paragraph.\n\nAnother.")
        .figure(chart(), "a chart", "a rising line")
        .section("Second")
        .figures([(picture(), "one", "a checkerboard"), (chart(), "two", "a line")])
        .table(["method", "OA"], [["raw", "61.2 ± 0.4"], ["features", "59.0 ± 0.2"]], "Results", marked=[0])
        .facts({"python": "3.11", "cores": 2})
    )


def test_page_is_well_formed_and_complete(figures):
    page = Page(full_report(figures).html())
    text = " ".join(page.texts)
    for part in ("A title", "its subtitle", "What won.", "Another.", "First section", "61.2 ± 0.4", "cores"):
        assert part in text
    assert page.all("html") == [{"lang": "en"}]
    assert any(meta.get("charset") == "utf-8" for meta in page.all("meta"))
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert len(page.all("figure")) == 3
    assert len(page.all("tr")) == 3


def test_page_asks_for_nothing_from_outside(figures):
    text = full_report(figures).html()
    page = Page(text)
    for tag, attrs in page.elements:
        for name in ("src", "href", "srcset", "action", "poster"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:", "#")), f"<{tag} {name}={value[:60]}>"
    assert not page.all("script")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_images_have_alt_and_hold_what_they_say(figures):
    images = Page(full_report(figures).html()).all("img")
    assert [image["alt"] for image in images] == ["a rising line", "a checkerboard", "a line"]
    kinds = []
    for image in images:
        head, data = image["src"].split(",", 1)
        kinds.append(head)
        content = base64.b64decode(data, validate=True)
        if "svg" in head:
            root = ElementTree.fromstring(content)
            assert root.tag.endswith("svg")
            links = [v for e in root.iter() for k, v in e.attrib.items() if k.endswith("href")]
            assert all(link.startswith("#") for link in links)
        else:
            assert content.startswith(b"\x89PNG")
    assert kinds == ["data:image/svg+xml;base64", "data:image/png;base64", "data:image/svg+xml;base64"]


def test_every_text_is_escaped(figures):
    evil = "<script>alert('x')</script> & \"quoted\""
    chart, _ = figures
    report = Report(evil, evil).section(evil).text(evil).callout(evil).facts({evil: evil})
    report.table([evil], [[evil]], evil).figure(chart(), evil, evil)
    page = Page(report.html())
    assert not page.all("script")
    assert "".join(page.texts).count(evil) >= 9
    assert page.all("img")[0]["alt"] == evil


def test_contents_link_to_sections_even_of_the_same_name():
    page = Page(Report("t").section("Same").section("Same").section("?!").section("Same").html())
    links = [link["href"] for link in page.all("a")]
    anchors = [heading["id"] for heading in page.all("h2")]
    assert links == [f"#{anchor}" for anchor in anchors]
    assert len(set(anchors)) == 4


def test_numbers_are_right_aligned_and_words_are_not():
    rows = [["raw", "61.2 ± 0.4", "1e-3", "12 s"], ["features", "\u2013", "-2", "3 min"]]
    page = Page(Report("t").table(["method", "OA", "x", "time"], rows).html())
    assert [cell.get("class") for cell in page.all("td")] == [None, "number", "number", "number"] * 2
    assert [cell.get("class") for cell in page.all("th")] == [None, "number", "number", "number"]


def test_table_scrolls_inside_its_box():
    page = Page(Report("t").table(["a"], [["b"]], "caption").html())
    box = next(attrs for tag, attrs in page.elements if attrs.get("class") == "scroll")
    assert box["tabindex"] == "0"
    assert box["aria-label"] == "caption"


def test_wrong_row_length_is_named():
    with pytest.raises(ValueError, match=r"rows\[1\]: expected 2 cells .* got 1"):
        Report("t").table(["a", "b"], [["1", "2"], ["3"]])


def test_empty_alt_is_refused(figures):
    with pytest.raises(ValueError, match="alt"):
        Report("t").figure(figures[0](), "caption", " ")


def test_the_same_report_is_the_same_file(figures):
    assert full_report(figures).html() == full_report(figures).html()


def test_save_makes_folders_and_leaves_only_the_report(tmp_path):
    path = Report("t").save(tmp_path / "new" / "report.html")
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert os.listdir(path.parent) == ["report.html"]


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*_):
        raise OSError("disk")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk"):
        write_atomic(path, b"new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]
