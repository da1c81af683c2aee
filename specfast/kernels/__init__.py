"""Compute kernels by backend: reference and eager (PyTorch), triton with its configs. Only specfast.ops imports them.

Their sources lie in the top-level folder kernels/. An installed package holds them here; a checkout finds them through
the line below. The bare name "kernels" is never imported: another distribution owns it.
"""

from pathlib import Path

_HERE = Path(__file__).resolve().parent
_CHECKOUT = _HERE.parents[1] / "kernels"

# Only when the kernels are not here, so that an unrelated site-packages/kernels is never picked up.
if not (_HERE / "reference").is_dir() and (_CHECKOUT / "reference").is_dir():
    __path__.append(str(_CHECKOUT))
