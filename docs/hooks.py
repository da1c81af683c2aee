"""What MkDocs calls while it builds the site: the API reference is made from the packages' public names."""

from __future__ import annotations

import importlib
import re
import types


def on_page_markdown(markdown: str, **_) -> str:
    """Put the public functions and classes of a package in the place of ``<!-- api: PACKAGE -->``."""
    return re.sub(r"<!-- api: ([\w.]+) -->", lambda match: _listing(match[1]), markdown)


def on_page_content(html: str, **_) -> str:
    """Show Sphinx's roles, which the docstrings use for other tools, as plain code."""
    return re.sub(
        r":(?:class|func|meth|mod|attr|data|exc):<code>(~?)(.*?)</code>",
        lambda match: f"<code>{match[2].rpartition('.')[2] if match[1] else match[2]}</code>",
        html,
    )


def _listing(package: str) -> str:
    module = importlib.import_module(package)
    things = [getattr(module, name) for name in getattr(module, "__all__", None) or _own(module)]
    shown = [thing for thing in things if isinstance(thing, (type, types.FunctionType))]
    return "\n".join(f"::: {thing.__module__}.{thing.__qualname__}\n" for thing in shown)


def _own(module: types.ModuleType) -> list[str]:
    """The public names of a module without ``__all__``: what it defines itself."""
    things = vars(module).items()
    return [n for n, thing in things if not n.startswith("_") and getattr(thing, "__module__", "") == module.__name__]
