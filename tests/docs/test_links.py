"""Every link, anchor and picture of the documentation leads somewhere, and every page is in the site's navigation."""

from __future__ import annotations

import pytest
import yaml

from tests.docs.markdown import PAGES, ROOT, anchors, links

CHECKED = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, whose Python objects are of no interest here."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def navigation() -> list[str]:
    """The pages that mkdocs.yml names, as paths below docs/."""
    found = []

    def walk(entry):
        if isinstance(entry, str):
            found.append(entry)
        else:
            for child in entry.values() if isinstance(entry, dict) else entry:
                walk(child)

    walk(yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Loader)["nav"])
    return found


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    broken = []
    for link in links(path):
        target, _, anchor = link.partition("#")
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file = path if not target else (path.parent / target).resolve()
        if not file.exists():
            broken.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(file):
            broken.append(f"{link}: no such heading; there are {', '.join(sorted(anchors(file)))}")
        elif path in PAGES and ROOT / "docs" not in file.parents:
            broken.append(f"{link}: leads out of docs/, which the site does not hold")
    assert not broken, f"{path.relative_to(ROOT)}: " + "; ".join(broken)


def test_every_page_is_in_the_navigation_once():
    pages = [str(path.relative_to(ROOT / "docs")) for path in PAGES]
    assert sorted(navigation()) == sorted(pages)


def test_pictures_in_the_docs_are_shown():
    shown = {(path.parent / link).resolve() for path in CHECKED for link in links(path) if not link.startswith("http")}
    pictures = {path for path in ROOT.glob("docs/images/**/*") if path.suffix in (".png", ".svg", ".jpg")}
    assert not {str(path.relative_to(ROOT)) for path in pictures - shown}
