"""What the commands that map whole scenes share: their options, the files they write, and what they say of them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from specfast.errors import DataError

TOLD = ("sensor", "level", "gsd", "scale", "offset", "nodata", "variable", "out_of_range")


def add_output(parser: argparse.ArgumentParser, *, scenes: bool = True, required: bool = True) -> None:
    """Add --out, --format, --cog and --preview; ``scenes``: there may be several."""
    several = "; a folder for several scenes" if scenes else ""
    parser.add_argument(
        "--out",
        type=Path,
        required=required,
        metavar="OUT",
        help=f"file to write: .tif (GeoTIFF), .img (ENVI), .zarr or .npy{several}",
    )
    if scenes:
        parser.add_argument(
            "--format", choices=("tif", "img", "zarr", "npy"), default="tif", help="in a folder (default: %(default)s)"
        )
    parser.add_argument("--cog", action="store_true", help="write GeoTIFF as Cloud Optimized GeoTIFF")
    parser.add_argument(
        "--preview", type=Path, metavar="PNG", help=f"write a small picture of the result, too{several}"
    )


def add_computing(parser: argparse.ArgumentParser) -> None:
    """Add how a model goes over a scene."""
    group = parser.add_argument_group("computing")
    group.add_argument(
        "--window", type=int, metavar="PIXELS", help="side of windows (default: as the model was trained)"
    )
    group.add_argument(
        "--overlap", type=float, metavar="SHARE", help="share of a window that its neighbor covers (default: 0.25)"
    )
    group.add_argument(
        "--batch-size", type=int, metavar="N", help="windows computed together (default: 1 on a CPU, 8 on a GPU)"
    )
    group.add_argument("--device", help="such as cuda (default: cuda if there is one)")
    group.add_argument(
        "--precision",
        choices=("auto", "float32", "bf16"),
        default="auto",
        help="auto: bf16 where the device computes it natively (default: %(default)s)",
    )
    group.add_argument(
        "--compile", action="store_true", help="compile the encoder first (minutes); for large scenes on a GPU"
    )


def add_reporting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def add_told(parser: argparse.ArgumentParser) -> None:
    """Add the options for what scene files do not say."""
    group = parser.add_argument_group("what the files do not say (applied to all scenes)")
    group.add_argument("--sensor", help="sensor, see specfast sensors")
    group.add_argument("--level", help="L1 (radiance) or L2 (reflectance)")
    group.add_argument("--gsd", type=float, metavar="METERS", help="ground sampling distance")
    group.add_argument("--scale", type=float, help="stored number of one physical unit, as 10000 for reflectance")
    group.add_argument("--offset", type=float, help="physical = stored / scale + offset")
    group.add_argument("--nodata", type=float, metavar="VALUE", help="value of pixels without data")
    group.add_argument("--variable", metavar="NAME", help="name of the cube in .mat, NetCDF or HDF5 files")
    group.add_argument(
        "--out-of-range", choices=("raise", "drop"), help="bands outside 350 to 2550 nm: an error, or left out"
    )


def told(args: argparse.Namespace) -> dict:
    """Return what was given of these options, for specfast.data.open."""
    return {name: getattr(args, name) for name in TOLD if getattr(args, name) is not None}


def open_scenes(args: argparse.Namespace, paths: Sequence[Path]) -> list:
    from specfast import data

    return [data.open(path, **told(args)) for path in paths]


def device_of(args: argparse.Namespace) -> str:
    import torch

    return args.device or ("cuda" if torch.cuda.is_available() else "cpu")


def model_options(args: argparse.Namespace) -> dict:
    """Return bf16 and compile for a predictor."""
    return {"bf16": precision_of(args) == "bf16", "compile": args.compile}


def precision_of(args: argparse.Namespace) -> str:
    """What --precision comes to on the device: ``"bf16"`` or ``"float32"``."""
    import torch

    from specfast.train.precision import use_bf16

    return "bf16" if use_bf16(args.precision, torch.device(device_of(args))) else "float32"


def map_one(args: argparse.Namespace, image, predictor, out: Path, tags: dict[str, str], **options):
    """Map a scene (or two dates) with a model, by the options of :func:`add_computing`; return the SceneMap."""
    from specfast.infer import map_scene

    return map_scene(
        image,
        predictor,
        out,
        window=args.window,
        overlap=args.overlap,
        batch_size=args.batch_size,
        cog=args.cog,
        with_preview=args.preview is not None,
        tags={"model": str(args.model), "precision": precision_of(args), **tags},
        progress=not args.quiet,
        **options,
    )


def targets(scenes: Sequence[Path], out: Path, ending: str, what: str) -> list[Path]:
    """Return the file of each scene: ``out`` itself for one scene, else OUT/<scene>_<what><ending>.

    Raises:
        DataError: ``out`` is a file and there are several scenes, or two scenes would get one file.
    """
    if len(scenes) == 1 and out.suffix and (out.suffix == ".zarr" or not out.is_dir()):
        return [out]
    if out.suffix and not out.is_dir():
        raise DataError(f"{out}: {len(scenes)} scenes need a folder for their results; got the name of a file")
    found = [out / f"{scene.stem}_{what}{ending}" for scene in scenes]
    if len(set(found)) < len(found):
        raise DataError(f"{out}: two scenes of one name would be written to one file; map them one by one")
    return found


def map_scenes(
    args: argparse.Namespace,
    scenes: Sequence[Path],
    what: str,
    mapped: Callable[[int, Path], object],
) -> list[dict]:
    """Map every scene, write previews, and say so; return what was written, as plain values.

    Args:
        args: with ``out``, ``preview``, ``json`` and, where there may be several scenes, ``format``.
        scenes: files.
        what: the name of the result in file names.
        mapped: given a scene's number and the file to write, returns a SceneMap.
    """
    files = targets(scenes, args.out, f".{getattr(args, 'format', 'tif')}", what)
    previews = None if args.preview is None else targets(scenes, args.preview, ".png", what)
    said = sys.stderr if args.json else sys.stdout
    results = []
    for number, (scene, file) in enumerate(zip(scenes, files, strict=True)):
        try:
            result = mapped(number, file)
        except KeyboardInterrupt:
            print(f"finished rows are kept in {file}.partial; the same command goes on from there", file=sys.stderr)
            raise
        found = {"scene": str(scene), **result.to_dict()}
        if hasattr(args, "precision"):
            found["precision"] = precision_of(args)
        if previews is not None:
            write_preview(result, previews[number])
            found["preview"] = str(previews[number])
        results.append(found)
        print(summary(str(scene), found), file=said, flush=True)
    return results


def print_json(args: argparse.Namespace, value) -> int:
    """End a command: print the one JSON value that --json asks for; return the exit code."""
    if args.json:
        print(json.dumps(value, indent=2))
    return 0


def summary(scene: str, found: dict) -> str:
    """What was made of one scene, as lines for people."""
    precision = f", {found['precision']}" if "precision" in found else ""
    share = found["cells_with_data"] / (found["height"] * found["width"])
    lines = [
        f"{scene}: {found['height']} x {found['width']} cells, {share:.1%} with data, in {found['seconds']:.1f} s "
        f"({found['megapixels_per_second']:.3g} megapixels/s{precision})",
        *(f"  {path}" for path in [*found["files"], found.get("preview")] if path),
        *(f"  note: {note}" for note in found["notes"]),
    ]
    if classes := found.get("class_cells"):
        width = max(map(len, classes))
        total = max(1, found["cells_with_data"])
        lines += [f"  {name:<{width}} {count:>10,} cells {count / total:>6.1%}" for name, count in classes.items()]
    return "\n".join(lines)


def class_rgb(count: int) -> list[tuple[int, int, int]]:
    """Colors of the classes, 0 to 255, as in all pictures of specfast.report."""
    from specfast.report.style import class_colors

    return [tuple(bytes.fromhex(color.removeprefix("#"))) for color in class_colors(count)]


def write_preview(result, path: Path) -> None:
    """Write the coarse map that a result kept as a PNG: classes in their colors, embeddings by principal components."""
    from specfast.files import write_atomic
    from specfast.report.continuous import continuous_picture, value_limits
    from specfast.report.embeddings import pca_rgb
    from specfast.report.maps import class_picture
    from specfast.report.style import picture_png

    values = result.preview
    if result.layer.kind == "classes":
        picture = class_picture(values[0], len(result.layer.classes))
    elif result.layer.kind == "embedding":
        picture = pca_rgb(values)
    else:
        picture = continuous_picture(values[0], value_limits(values[0]))
    write_atomic(path, picture_png(picture))


def load_encoder(args: argparse.Namespace):
    """Load the encoder of --model onto the device."""
    from specfast.models import SpecAwareEncoder

    if not args.model.is_dir():
        raise DataError(f"{args.model}: expected the folder of a saved model (config.json, model.safetensors)")
    return SpecAwareEncoder.from_pretrained(args.model).to(device_of(args))
