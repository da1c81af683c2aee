"""What the tests of the documentation read from Markdown: fenced blocks, headings, links."""

from __future__ import annotations

import re
import shlex
import unicodedata
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(ROOT.glob("docs/**/*.md"))
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```\s*$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its title ("" for none), its text, and where it begins, as ``docs/page.md:12``."""

    language: str
    title: str
    text: str
    where: str


def blocks(path: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page in order, of some languages or of all."""
    text, found = path.read_text(encoding="utf-8"), []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(match[1], _title(match[2]), match[3], f"{path.relative_to(ROOT)}:{line}"))
    return [block for block in found if not languages or block.language in languages]


def _title(options: str) -> str:
    given = re.search(r'title="([^"]*)"', options)
    return given[1] if given else ""


def commands(block: Block) -> list[list[str]]:
    """The command lines of a block of sh as words; comments are left out, lines that end in a backslash joined."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def prose(path: Path) -> str:
    """A page's text without its fenced blocks and inline code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", path.read_text(encoding="utf-8")))


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as the site makes them."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    return {slug(match[1]) for match in re.finditer(r"^#{1,6}\s+(.*)$", text, re.MULTILINE)}


def slug(heading: str) -> str:
    """A heading's anchor, by the rule of Python-Markdown's table of contents."""
    shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    ascii_text = unicodedata.normalize("NFKD", shown).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_text).strip().lower())


def links(path: Path) -> list[str]:
    """The targets of a page's links and images."""
    return re.findall(r"\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)", prose(path))
