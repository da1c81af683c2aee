"""What there is to show of a file or a run, before it becomes a page or a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from specfast.errors import DataError
from specfast.files import write_atomic
from specfast.report.html import Report
from specfast.report.style import to_png, to_svg

ENDINGS = (".png", ".svg", ".html")


@dataclass
class Picture:
    """A figure with its caption, and what it shows in words for those who cannot see it."""

    figure: object
    caption: str
    alt: str


@dataclass
class Table:
    """As :meth:`specfast.report.Report.table` takes it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    marked: Sequence[int] = ()


@dataclass
class Section:
    """A part of a page: text, then pictures, tables and facts."""

    title: str
    text: str = ""
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)


@dataclass
class Exhibit:
    """Everything that is shown of one file or run.

    Attributes:
        kind: what it was recognized as.
        title, subtitle: of the page.
        sections: top to bottom; the first picture stands for the whole where there is room for one.
        summary: what a script would want to know, as plain values.
        callout: what matters most, in words.
        told_by: how the kind was recognized.
    """

    kind: str
    title: str
    subtitle: str = ""
    sections: list[Section] = field(default_factory=list)
    summary: dict[str, object] = field(default_factory=dict)
    callout: str = ""
    told_by: str = ""

    def report(self) -> Report:
        """Return the page."""
        page = Report(self.title, self.subtitle)
        if self.callout:
            page.callout(self.callout)
        for section in self.sections:
            page.section(section.title)
            if section.text:
                page.text(section.text)
            for picture in section.pictures:
                page.figure(picture.figure, picture.caption, picture.alt)
            for table in section.tables:
                page.table(table.columns, table.rows, table.caption, table.marked)
            if section.facts:
                page.facts(section.facts)
        return page

    def save(self, path: Path) -> Path:
        """Write a page (.html), or the first picture (.png, .svg).

        Raises:
            DataError: another ending, or a picture is asked for of something that has none.
        """
        ending = path.suffix.lower()
        if ending not in ENDINGS:
            raise DataError(f"{path}: expected a file that ends in {', '.join(ENDINGS)}")
        if ending == ".html":
            return self.report().save(path)
        pictures = [picture for section in self.sections for picture in section.pictures]
        if not pictures:
            raise DataError(f"{path}: there is no picture to write, only text; give a file that ends in .html")
        return write_atomic(path, to_png(pictures[0].figure) if ending == ".png" else to_svg(pictures[0].figure))


def plain(value: object) -> str:
    """Return a setting as people write it: no brackets, yes and no."""
    if isinstance(value, dict):
        return ", ".join(f"{words(name)}: {plain(one)}" for name, one in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(plain(one) for one in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not given" if value is None else str(value)


def words(name: object) -> str:
    """Return an option's name as words."""
    return str(name).replace("_", " ")


def percentiles(stretch: Sequence[float]) -> str:
    """Return "percentiles 2 to 98"."""
    return f"percentiles {stretch[0]:g} to {stretch[1]:g}"
