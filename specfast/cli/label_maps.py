"""Label maps on the command line: the scenes they belong to, how they are divided, what is compared, class maps."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from specfast.errors import DataError


def add_scenes(parser: argparse.ArgumentParser) -> None:
    """Add SCENE... with --labels and --labels-variable."""
    parser.add_argument("scenes", nargs="+", type=Path, metavar="SCENE", help="scene file, or several with equal bands")
    parser.add_argument(
        "--labels",
        nargs="+",
        type=Path,
        required=True,
        metavar="FILE",
        help="label map of each scene in the same order (.npy, .mat or .tif; 0 is unlabelled)",
    )
    parser.add_argument("--labels-variable", metavar="NAME", help="the label map's name in a .mat file")


def add_divisions(protocol: argparse._ArgumentGroup) -> None:
    """Add --splits and --labels-per-class."""
    protocol.add_argument(
        "--splits",
        nargs="+",
        choices=("random", "field", "tile"),
        help="how train and test pixels are divided (default: random and field; random and tile for several scenes)",
    )
    protocol.add_argument(
        "--labels-per-class", nargs="+", type=int, default=[10, 50], metavar="N", help="default: 10 and 50"
    )


def default_splits(scenes: Sequence) -> tuple[str, str]:
    return ("random", "tile") if len(scenes) > 1 else ("random", "field")


def chosen_baselines(names: list[str], everything: Sequence[str]) -> list[str]:
    """Resolve ``all``, which stands for ``everything``, and ``none``; DataError for a name that is not known."""
    from specfast.evaluate import BASELINES

    if names == ["all"]:
        return list(everything)
    if names == ["none"]:
        return []
    if unknown := [name for name in names if name not in BASELINES]:
        raise DataError(
            f"--baselines: expected all, none or names out of {', '.join(BASELINES)}; got {', '.join(unknown)}"
        )
    return names


def read_maps(paths: Sequence[Path], scenes: Sequence[Path], images, variable: str | None, flag: str) -> list:
    """Read a label map for each scene; DataError if one has not the size of its scene."""
    from specfast.evaluate import read_labels

    if len(paths) != len(scenes):
        raise DataError(f"{flag}: expected one file for each of the {len(scenes)} scenes, got {len(paths)}")
    # of several scenes one may have no label, or only test pixels: what follows refuses maps that are all empty
    maps = [read_labels(path, variable, allow_empty=len(paths) > 1) for path in paths]
    for path, one, scene, image in zip(paths, maps, scenes, images, strict=True):
        check_size(path, one.shape, scene, image)
    return maps


def check_size(path: Path, shape: tuple[int, int], scene: Path, image) -> None:
    """Raise DataError unless a map has the size of its scene."""
    if tuple(shape) != tuple(image.shape[1:]):
        raise DataError(
            f"{path}: the map has {shape[0]} x {shape[1]} pixels; expected {image.shape[1]} x {image.shape[2]}, "
            f"the size of {scene}"
        )


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array as .npy in one step."""
    from specfast.files import write_atomic

    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomic(path, buffer.getvalue())


def save_class_maps(table, scenes: Sequence[Path], folder: Path) -> None:
    """Write each split's class maps as class_map_<split>[_<scene>].npy, int16 [H, W]."""
    for split, maps in table.class_maps.items():
        for number, (scene, classes) in enumerate(zip(scenes, maps, strict=True)):
            suffix = "" if len(maps) == 1 else f"_{number}_{scene.stem}"
            save_array(folder / f"class_map_{split}{suffix}.npy", classes)
