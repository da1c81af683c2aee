"""A self-contained HTML report: text, figures and tables in one file that needs no network and no script."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from specfast.files import write_atomic
from specfast.report.style import to_png, to_svg

# A figure shrinks to this share of its drawn width on a narrow page; below, its box scrolls. Type must stay readable.
_SMALLEST_CHART = 0.72
_SMALLEST_PICTURE = 0.5

_CSS = """
:root { color-scheme: light dark; --ink: #1f2933; --muted: #5b6773; --line: #d9dee3; --page: #fff; --box: #f4f6f8;
  --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --muted: #a3adb8; --line: #3a434c; --page: #15191e;
  --box: #1e242b; --accent: #6cbdf0; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 68rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
p { max-width: 46rem; margin: .6rem 0; }
.subtitle, footer { color: var(--muted); }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .35rem 1.25rem; padding: 0; margin: 1.25rem 0 0; }
a { color: var(--accent); }
.callout { border-left: 4px solid var(--accent); background: var(--box); padding: .35rem 1rem; margin: 1.25rem 0;
  border-radius: 0 6px 6px 0; }
.callout p { font-size: 1.06rem; }
.gallery { display: flex; flex-wrap: wrap; gap: 1.25rem; align-items: flex-start; }
figure { margin: 1rem 0; max-width: 100%; }
.gallery figure { margin: 0; flex: 0 1 auto; min-width: 0; }
.scroll { overflow-x: auto; max-width: 100%; border: 1px solid var(--line); border-radius: 6px; }
.picture { background: #fff; padding: .4rem; }
.picture img { display: block; width: 100%; height: auto; }
figcaption, caption { color: var(--muted); font-size: .9rem; text-align: left; padding: .4rem 0; max-width: 46rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; min-width: 50%; }
caption { padding: .5rem .7rem; position: sticky; left: 0; max-width: min(46rem, calc(100vw - 3rem)); }
th, td { padding: .35rem .7rem; text-align: left; border-top: 1px solid var(--line); vertical-align: top; }
thead th { border-top: 0; background: var(--box); white-space: nowrap; }
td:not(.number) { min-width: 6.5rem; }
.number { text-align: right; white-space: nowrap; }
tr.marked { background: var(--box); font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; } }
@media print { .scroll { overflow: visible; } nav { display: none; } }
""".strip()


class Report:
    """Builds one page, top to bottom; every method returns the report, so calls can be chained.

    All text is escaped: it is shown as given. A blank line in a text starts a new paragraph.

    Args:
        title: heading of the page.
        subtitle: one line below it.
    """

    def __init__(self, title: str, subtitle: str = ""):
        self.title = title
        self.subtitle = subtitle
        self._body: list[str] = []
        self._contents: list[tuple[str, str]] = []

    def section(self, title: str) -> Report:
        """Start a section; it is listed in the table of contents."""
        stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        taken = {anchor for anchor, _ in self._contents}
        anchor = next(name for name in (stem, *(f"{stem}-{n}" for n in range(2, 1000))) if name not in taken)
        self._contents.append((anchor, title))
        return self._add(f'<h2 id="{anchor}">{_escape(title)}</h2>')

    def text(self, text: str) -> Report:
        """Add paragraphs."""
        return self._add(_paragraphs(text))

    def callout(self, text: str) -> Report:
        """Add paragraphs that stand out."""
        return self._add(f'<div class="callout">{_paragraphs(text)}</div>')

    def facts(self, facts: Mapping[str, object]) -> Report:
        """Add a list of names and values."""
        items = "".join(f"<dt>{_escape(name)}</dt><dd>{_escape(value)}</dd>" for name, value in facts.items())
        return self._add(f"<dl>{items}</dl>")

    def figure(self, figure, caption: str, alt: str) -> Report:
        """Add a matplotlib Figure: SVG, or PNG when it shows images.

        Args:
            figure: the Figure.
            caption: shown below; says what there is to see.
            alt: what the figure shows, for those who cannot see it. Must not be empty.
        """
        return self._add(_figure(figure, caption, alt))

    def figures(self, figures: Sequence[tuple[object, str, str]]) -> Report:
        """Add several (figure, caption, alt) side by side where the page is wide enough."""
        return self._add(f'<div class="gallery">{"".join(_figure(*each) for each in figures)}</div>')

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "", marked: Sequence[int] = ()
    ) -> Report:
        """Add a table; numbers are aligned to the right, and the table scrolls inside its own box.

        Args:
            columns: headings.
            rows: cells; floats are shown as given by ``str``, so round or format them first.
            caption: shown above the table.
            marked: numbers of the rows that stand out.

        Raises:
            ValueError: a row has another length than ``columns``.
        """
        for number, row in enumerate(rows):
            if len(row) != len(columns):
                raise ValueError(f"rows[{number}]: expected {len(columns)} cells to match columns; got {len(row)}")
        numeric = [bool(rows) and all(_is_number(row[j]) for row in rows) for j in range(len(columns))]

        def cells(values, tag, scope=""):
            classes = (' class="number"' if right else "" for right in numeric)
            return "".join(f"<{tag}{scope}{c}>{_escape(v)}</{tag}>" for v, c in zip(values, classes, strict=True))

        classes = (' class="marked"' if number in marked else "" for number in range(len(rows)))
        body = "".join(f"<tr{c}>{cells(row, 'td')}</tr>" for row, c in zip(rows, classes, strict=True))
        scope = ' scope="col"'
        head = f"<thead><tr>{cells(columns, 'th', scope)}</tr></thead>"
        title = f"<caption>{_escape(caption)}</caption>" if caption else ""
        label = _escape(caption or "table")
        return self._add(
            f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">'
            f"<table>{title}{head}<tbody>{body}</tbody></table></div>"
        )

    def html(self) -> str:
        """Return the whole page."""
        links = "".join(f'<li><a href="#{anchor}">{_escape(title)}</a></li>' for anchor, title in self._contents)
        contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if links else ""
        subtitle = f'<p class="subtitle">{_escape(self.subtitle)}</p>' if self.subtitle else ""
        # The empty icon keeps browsers from asking a server for one.
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<title>{_escape(self.title)}</title>\n<link rel="icon" href="data:,">\n'
            f"<style>\n{_CSS}\n</style>\n</head>\n<body>\n"
            f"<header><h1>{_escape(self.title)}</h1>{subtitle}{contents}</header>\n<main>\n"
            + "\n".join(self._body)
            + "\n</main>\n</body>\n</html>\n"
        )

    def save(self, path) -> Path:
        """Write the page to ``path`` (folders are made); a reader sees the old file or the new one, never a part."""
        return write_atomic(path, self.html().encode("utf-8"))

    def _add(self, markup: str) -> Report:
        self._body.append(markup)
        return self


def _escape(value) -> str:
    return html.escape(str(value), quote=True)


def _paragraphs(text: str) -> str:
    parts = [part.strip() for part in re.split(r"\n\s*\n", str(text).strip())]
    return "".join(f"<p>{_escape(part)}</p>" for part in parts if part)


def _is_number(value) -> bool:
    number = r"[-+\u2212]?[\d,]*\.?\d+(e[-+]?\d+)?( ?(%|s|min|±.*))?"
    return bool(re.fullmatch(rf"{number}|[-\u2013\u2014]?", str(value).strip()))


def _figure(figure, caption: str, alt: str) -> str:
    if not alt.strip():
        raise ValueError("alt: expected a text that says what the figure shows, got an empty one")
    if any(ax.images for ax in figure.axes):
        kind, content = "png", to_png(figure)
    else:
        kind, content = "svg+xml", to_svg(figure)
    width = round(96 * figure.get_size_inches()[0])
    has_small_type = bool(figure.legends) or any(ax.axison for ax in figure.axes)
    smallest = round(width * (_SMALLEST_CHART if has_small_type else _SMALLEST_PICTURE))
    data = base64.b64encode(content).decode("ascii")
    return (
        f'<figure><div class="scroll picture" tabindex="0" style="width:{width}px">'
        f'<img style="min-width:{smallest}px" alt="{_escape(alt)}" '
        f'src="data:image/{kind};base64,{data}"></div><figcaption>{_escape(caption)}</figcaption></figure>'
    )
