"""Which form of the factor matmuls is cheaper, from shapes alone.

Counting multiply-adds of the parts in which the two forms differ, for S bands in B samples, n tokens a sample, width E
(or D), rank R and hidden width k:

    direct         generate S k R E (with its bias S (k + 1) R E), apply n S R E
    re-associated  contract n S R (k + 1), one GEMM B n R (k + 1) E

Both operators, hyper_embed and hyper_linear, have these costs. The re-associated form wins from about 50 to 70 bands.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

FORMS = ("direct", "reassociated")
_forced: str | None = None


def multiply_adds(form: str, *, samples: int, bands: int, tokens: int, width: int, rank: int, hidden: int) -> int:
    """Multiply-adds of one form; ``bands`` is the sum over samples, ``tokens`` the number in each sample."""
    if form == "direct":
        return bands * rank * width * (hidden + 1 + tokens)
    return tokens * rank * (hidden + 1) * (bands + samples * width)


def choose_form(
    op: str, form: str | None, *, samples: int, bands: int, tokens: int, width: int, rank: int, hidden: int
) -> str:
    """Return ``form`` if given, else the one forced by :func:`use_form`, else the cheaper one.

    Raises:
        ValueError: the form is unknown.
    """
    form = form or _forced
    if form is not None:
        if form not in FORMS:
            raise ValueError(f"{op}: form must be one of {', '.join(FORMS)} or None; got {form!r}")
        return form
    return cheaper_form(samples=samples, bands=bands, tokens=tokens, width=width, rank=rank, hidden=hidden)


def cheaper_form(**shapes: int) -> str:
    """Return the form with fewer :func:`multiply_adds`."""
    return "direct" if multiply_adds("direct", **shapes) < multiply_adds("reassociated", **shapes) else "reassociated"


@contextlib.contextmanager
def use_form(form: str | None) -> Iterator[None]:
    """Force one form (``"direct"`` or ``"reassociated"``) on every operator called inside, in all threads."""
    if form is not None and form not in FORMS:
        raise ValueError(f"use_form: form must be one of {', '.join(FORMS)} or None; got {form!r}")
    global _forced
    before, _forced = _forced, form
    try:
        yield
    finally:
        _forced = before
