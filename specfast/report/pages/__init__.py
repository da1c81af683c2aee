"""Pages: what a file or a run's folder holds, as one self-contained HTML page.

``show(path)`` recognizes anything; ``pretrain(folder)``, ``finetune(folder)``, ``probe(folder)`` and ``maps(folder)``
write FOLDER/report.html from what a run left there, and return its path.
"""

from __future__ import annotations

import functools

from specfast.report.pages.exhibit import Exhibit
from specfast.report.pages.recognition import recognize
from specfast.report.pages.showing import page, show

__all__ = ["Exhibit", "finetune", "maps", "page", "pretrain", "probe", "recognize", "show"]

pretrain, finetune, probe, maps = (
    functools.partial(page, kind=kind) for kind in ("pretrain", "finetune", "probe", "maps")
)
