"""``specfast export MODEL``: the encoder for one sensor as a file for ONNX Runtime, AOTInductor or torch.export."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

from specfast.cli.scenes import add_told, open_scenes
from specfast.errors import DataError

HELP = (
    "Write a model's encoder for one sensor, its metadata folded in, as a file that runs without specfast; load it "
    "again and compare."
)

_MOST_WINDOWS = 16  # of the scenes: half of them for the reference, half to measure on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of a saved model")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".onnx, or .pt2 for aoti and torch")
    parser.add_argument(
        "--format",
        choices=("onnx", "aoti", "torch"),
        required=True,
        help="onnx; aoti: compiled by AOTInductor for this kind of processor; torch: a program of torch.export",
    )
    parser.add_argument("--size", type=int, metavar="PIXELS", help="side of the images to come (default: the model's)")
    parser.add_argument(
        "--scenes", nargs="+", type=Path, metavar="SCENE", help="scenes whose good bands are meant; else give --sensor"
    )
    parser.add_argument(
        "--fold-content",
        action="store_true",
        help="fold the scenes' mean content in, too: the embedding is one convolution for images of any size, but "
        "approximate; the error is measured on windows that were not used",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    add_told(parser)


def run(args: argparse.Namespace) -> int:
    from specfast.export import export, fold, fold_error
    from specfast.export.formats import ExportError
    from specfast.models import SpecAwareEncoder

    if args.fold_content and not args.scenes:
        raise DataError("--fold-content: expected --scenes whose content is folded in")
    if not args.scenes and (args.sensor is None or args.level is None):
        raise DataError("--sensor: expected a sensor and --level, or --scenes")
    encoder = SpecAwareEncoder.from_pretrained(args.model)
    size = args.size or encoder.config.image_size
    notes, errors = {"model": str(args.model)}, None
    if args.fold_content:
        reference, unseen = scene_windows(args, size, encoder.config.patch_size)
        folded = fold(encoder, content=reference)
        if unseen is not None and not folded.exact:
            errors = fold_error(folded, encoder, unseen)
        notes |= {"reference_windows": len(reference), "difference_from_encoder": errors}
    else:
        folded = fold(encoder, bands_of(args), image_size=size)
    try:
        written = export(folded, args.out, args.format, image_size=size, notes=notes)
    except ExportError as error:
        print(f"specfast export: {error}", file=sys.stderr)
        return 1
    facts = {
        "path": str(written.path),
        "format": written.format,
        "bands": len(folded.bands),
        "outputs": list(folded.outputs),
        "exact": written.exact,
        "difference_from_folded_encoder": written.difference,
        "difference_from_encoder": errors,
    }
    print(json.dumps(facts, indent=2) if args.json else as_text(facts))
    return 0


def bands_of(args: argparse.Namespace):
    """Return the band table of the sensor or of the first scene."""
    from specfast.data import BandTable, band_table

    if not args.scenes:
        return band_table(args.sensor, args.level, gsd=args.gsd)
    (image,) = open_scenes(args, args.scenes[:1])
    return BandTable.of(image.sample(window=(0, 0, 1, 1)))


def scene_windows(args: argparse.Namespace, size: int, patch_size: int):
    """Cut windows of valid pixels from all scenes; return every second as the reference, and the others (or None).

    Windows are ``size`` wide, or as wide as a small scene allows.
    """
    from specfast.batch import SpectralBatch

    images, samples = open_scenes(args, args.scenes), []
    side = min(size, *(min(image.shape[1:]) for image in images)) // patch_size * patch_size
    if not side:
        raise DataError(f"--scenes: expected at least {patch_size} x {patch_size} pixels, one patch of the model")
    for image in images:
        rows, columns = (range(0, pixels - side + 1, side) for pixels in image.shape[1:])
        places = list(itertools.product(rows, columns))
        for row, column in places[:: max(1, len(places) * len(images) // _MOST_WINDOWS)]:
            sample = image.sample(window=(row, column, side, side))
            if bool(sample.valid.all()):
                samples.append(sample)
    if not samples:
        raise DataError(f"--scenes: no window of {side} x {side} pixels without invalid ones; give a smaller --size")
    reference = SpectralBatch.from_samples(samples[::2], patch_size)
    return reference, SpectralBatch.from_samples(samples[1::2], patch_size) if len(samples) > 1 else None


def as_text(facts: dict) -> str:
    """Lay out what was written, and how exact it is."""
    difference, errors = facts["difference_from_folded_encoder"], facts["difference_from_encoder"]
    file = "not run: onnxruntime is not installed" if difference is None else f"relative RMS {difference:.1e}"
    if facts["exact"]:
        folded = "exact"
    elif errors is None:
        folded = "approximate; no window was left to measure on"
    else:
        listed = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
        folded = f"approximate, relative RMS on unseen windows: {listed}"
    return "\n".join(
        [
            f"{facts['path']}: {facts['format']}, {facts['bands']} bands in, {', '.join(facts['outputs'])} out",
            f"  file against the folded encoder     {file}",
            f"  folded against the model's encoder  {folded}",
            f"  the bands and their order           {facts['path']}.json",
        ]
    )
