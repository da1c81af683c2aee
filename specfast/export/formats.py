"""Writing a folded encoder: torch.export's program, an AOTInductor package, ONNX; each loaded again and compared."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from specfast.errors import SpecfastError
from specfast.export.encoder import FoldedEncoder
from specfast.files import atomic_file, write_atomic
from specfast.testing import relative_rms

TOLERANCE = 1e-4  # relative RMS; float32 in another order of operations makes some 1e-6
_INPUT = "image"


class ExportError(SpecfastError, RuntimeError):
    """A written file does not compute what the folded encoder does."""


@dataclass(frozen=True)
class Exported:
    """What :func:`export` wrote.

    Attributes:
        path: the file; ``<path>.json`` beside it holds the bands, their order and units, and these facts.
        format: a key of ``FORMATS``.
        exact: whether the folded encoder is exact, see :func:`specfast.export.fold`.
        difference: largest relative RMS difference of the file's outputs from the folded encoder's, on random images of
            another batch size than it was traced with; None where nothing is installed that runs the file.
    """

    path: Path
    format: str
    exact: bool
    difference: float | None


def export(
    folded: FoldedEncoder,
    path: str | os.PathLike,
    format: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    notes: dict | None = None,
) -> Exported:
    """Write a folded encoder to a file that runs without specfast, load it again, and compare.

    The number of images is free at run time, and for a plain convolution their size as well: multiples of the patch
    size, from two patches a side (with AOTInductor and ONNX nobody checks that; a rest is cut off).

    Args:
        folded: what :func:`specfast.export.fold` returned.
        path: the file; a complete one replaces it. AOTInductor's must end in ``.pt2``.
        format: ``"torch"``, a program of torch.export (``torch.export.load(path).module()``); ``"aoti"``, a compiled
            package for this kind of processor (``torch._inductor.aoti_load_package(path)``), which needs a C++
            compiler; ``"onnx"``, which needs ``pip install "specfast[export]"``.
        image_size: pixels that the network is traced with; by default what it was folded for, or 224. Other sizes run.
        notes: further facts for the JSON file.

    Raises:
        ValueError: an unknown format, an unfit path or size. ImportError: the format's packages are not installed.
        ExportError: the file computes something else; it is not written.
    """
    path = Path(path)
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}; got {format!r}")
    writer, endings = FORMATS[format]
    if path.suffix not in endings:
        raise ValueError(f"path: expected a name that ends in {' or '.join(endings)} for {format}; got {path.name}")
    size = image_size or folded.image_size or -(-224 // folded.patch_size) * folded.patch_size
    height, width = (size, size) if isinstance(size, int) else size
    least = 2 * folded.patch_size
    if folded.image_size is None and min(height, width) < least:
        raise ValueError(f"image_size: expected at least two patches a side, {least} pixels; got {height} x {width}")
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, len(folded.bands), height, width, generator=generator).to(folded.cls_token)
    with torch.no_grad():
        expected = folded(images)
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        file = Path(folder, path.name)
        with _quiet():
            run = writer(folded, traced(folded, images[:2]), file)
        difference = None
        if run is not None:
            difference = max(relative_rms(*pair) for pair in zip(run(images), expected, strict=True))
            if not difference <= TOLERANCE:
                raise ExportError(
                    f"{path}: the {format} file differs from the folded encoder by {difference:.1e} (relative RMS, "
                    f"allowed {TOLERANCE:.0e}); it was not written"
                )
        with atomic_file(path) as target, file.open("rb") as source:
            shutil.copyfileobj(source, target)
    _describe(folded, path, format, difference, notes or {})
    return Exported(path, format, folded.exact, difference)


def traced(folded: FoldedEncoder, images: Tensor) -> ExportedProgram:
    """Trace with torch.export: any number of images, and any size where the folded encoder takes any."""
    dimensions = {0: Dim("batch", min=1, max=65535)}
    if folded.image_size is None:
        # a single row or column of patches would be traced as a case of its own
        rows, columns = (Dim(name, min=2, max=folded.MAX_SIDE) for name in ("rows", "columns"))
        dimensions |= {2: folded.patch_size * rows, 3: folded.patch_size * columns}
    return torch.export.export(folded, (images,), dynamic_shapes={_INPUT: dimensions}, strict=False)


def _write_torch(folded: FoldedEncoder, program: ExportedProgram, file: Path) -> Callable:
    torch.export.save(program, file)
    return torch.export.load(file).module()


def _write_aoti(folded: FoldedEncoder, program: ExportedProgram, file: Path) -> Callable:
    torch._inductor.aoti_compile_and_package(program, package_path=str(file))
    return torch._inductor.aoti_load_package(str(file))


def _write_onnx(folded: FoldedEncoder, program: ExportedProgram, file: Path) -> Callable | None:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'{" and ".join(missing)}: not installed; pip install "specfast[export]"')
    written = torch.onnx.export(
        program, input_names=[_INPUT], output_names=list(folded.outputs), dynamo=True, verbose=False
    )
    written.model.metadata_props.update({f"specfast.{key}": json.dumps(value) for key, value in _facts(folded).items()})
    written.save(str(file), external_data=False)
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        outputs: list[np.ndarray] = session.run(list(folded.outputs), {_INPUT: images.cpu().numpy()})
        return [torch.from_numpy(output).to(images.device) for output in outputs]

    return run


#: what writes each format (folded, program, file) -> a function that runs the file, or None; and its names' endings
FORMATS = {
    "torch": (_write_torch, (".pt2",)),
    "aoti": (_write_aoti, (".pt2",)),
    "onnx": (_write_onnx, (".onnx",)),
}


def _facts(folded: FoldedEncoder) -> dict:
    """What a user of the file must know."""
    size = None if folded.image_size is None else list(folded.image_size)
    quantity = {"L1": "radiance, uW / (cm^2 nm sr)", "L2": "reflectance, 0 to 1"}[folded.bands.level]
    return {
        "input": {
            "name": _INPUT,
            "shape": ["batch", len(folded.bands), *(size or ["height", "width"])],
            "quantity": quantity,
            "bands": folded.bands.to_dict(),
        },
        "patch_size": folded.patch_size,
        "outputs": list(folded.outputs),
        "exact": folded.exact,
    }


def _describe(folded: FoldedEncoder, path: Path, format: str, difference: float | None, notes: dict) -> None:
    facts = {"format": format, **_facts(folded), "difference_from_folded_encoder": difference, **notes}
    write_atomic(path.with_name(path.name + ".json"), (json.dumps(facts, indent=2) + "\n").encode())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporters say about their own insides off the screen."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
