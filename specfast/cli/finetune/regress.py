"""``specfast finetune regress SCENE... --targets FILE... --model DIR --out FOLDER``: numbers for every pixel."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np

from specfast.cli import label_maps, scenes
from specfast.cli.finetune import common
from specfast.errors import DataError

HELP = (
    "Train a regressor of pixels (abundances, biochemistry) on few targets, several times, and show R² and RMSE beside "
    "ridge regression of frozen features, controls and baselines on the same pixels. With --all-targets, train one "
    "model on all targets instead, and save it for specfast segment."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from specfast.tasks.options import RegressionOptions

    defaults = RegressionOptions()
    parser.add_argument("scenes", nargs="+", type=Path, metavar="SCENE", help="scene file, or several with equal bands")
    parser.add_argument(
        "--targets",
        nargs="+",
        type=Path,
        required=True,
        metavar="FILE",
        help="targets of each scene in the same order, [targets, height, width] (.npy or .tif; NaN or nodata: unknown)",
    )
    parser.add_argument("--target-names", nargs="+", metavar="NAME", help="names of the targets, with units")
    common.add_model(parser, ("linear", "mlp", "conv"), defaults.head)
    parser.add_argument(
        "--abundance", action="store_true", help="the targets are shares: predictions are not negative, and 1 in sum"
    )
    common.add_reporting(parser)
    parser.add_argument(
        "--all-targets", action="store_true", help="no table: train on every target and save the model in FOLDER/model"
    )
    protocol = parser.add_argument_group("protocol of the table")
    protocol.add_argument(
        "--splits",
        nargs="+",
        choices=("random", "block"),
        default=["random", "block"],
        help="how train and test pixels are divided (default: both)",
    )
    protocol.add_argument(
        "--training-pixels", nargs="+", type=int, default=[50, 200], metavar="N", help="default: 50 and 200"
    )
    common.add_protocol(protocol)
    training = parser.add_argument_group("the scene in training")
    training.add_argument(
        "--targets-per-step",
        type=int,
        default=defaults.targets_per_step,
        metavar="N",
        help="pixels drawn in a step (default: %(default)s)",
    )
    common.add_views(training, defaults)
    common.add_training(parser, defaults.fit)
    scenes.add_told(parser)


def run(args: argparse.Namespace) -> int:
    from specfast.evaluate.baselines import require_sklearn
    from specfast.tasks import RegressionOptions, finetune_regression, train_regressor

    require_sklearn()
    images = scenes.open_scenes(args, args.scenes)
    if len(args.targets) != len(args.scenes):
        raise DataError(f"--targets: expected one file for each of {len(args.scenes)} scenes, got {len(args.targets)}")
    targets = [read_targets(path) for path in args.targets]
    for path, one, scene, image in zip(args.targets, targets, args.scenes, images, strict=True):
        label_maps.check_size(path, one.shape[1:], scene, image)
    counts = {len(one) for one in targets}
    if len(counts) > 1:
        raise DataError(f"--targets: expected equally many targets in each file, got {sorted(counts)}")
    names = args.target_names or [f"target {number}" for number in range(1, counts.pop() + 1)]
    if len(names) != len(targets[0]):
        raise DataError(f"--target-names: expected {len(targets[0])} names, got {len(names)}")
    encoder = scenes.load_encoder(args)
    constraint = {"constraint": "abundance"} if args.abundance else {}
    options = RegressionOptions(
        head=args.head,
        head_options={**constraint, **dict(args.head_options)},
        spectral_skip=not args.no_spectral_skip,
        targets_per_step=args.targets_per_step,
        augment=not args.no_augment,
        view=args.view,
        fit=common.fit_options(args),
    )
    if args.all_targets:
        targets, notes = usable_targets(targets, images)
        train = partial(train_regressor, encoder, images, targets, names, options)
        return common.train_and_save(args, train, {"pixels_with_targets": _known(targets)}, notes)
    table = finetune_regression(
        encoder,
        images,
        targets,
        names,
        splits=args.splits,
        training_pixels=args.training_pixels,
        seeds=args.seeds,
        options=options,
        control=not args.no_control,
        progress=not args.quiet,
    )
    table.settings |= {"model": str(args.model), "scenes": [str(path) for path in args.scenes]}
    return common.report(args, table, "regress")


def usable_targets(targets: list[np.ndarray], images) -> tuple[list[np.ndarray], list[str]]:
    """Take targets [K, H, W] away where a scene holds no measurement; return them, and notes of what was lost."""
    from specfast.evaluate.probing import read_cubes

    kept = [
        np.where(np.isfinite(cube).all(axis=2), one, np.float32(np.nan))
        for one, cube in zip(targets, read_cubes(images), strict=True)
    ]
    lost = _known(targets) - _known(kept)
    return kept, [f"{lost} pixels with targets hold no measurement and are left out"] if lost else []


def _known(targets: list[np.ndarray]) -> int:
    return int(sum(np.isfinite(one).any(axis=0).sum() for one in targets))


def read_targets(path: Path) -> np.ndarray:
    """Read targets, float32 [K, H, W], from .npy ([H, W] is one target) or GeoTIFF (a band each; nodata becomes NaN).

    Raises:
        DataError: the file cannot be read, or holds no numbers of that shape.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of targets")
    if path.suffix.lower() == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DataError(f"{path}: not a readable .npy file ({error})") from None
    elif path.suffix.lower() in (".tif", ".tiff"):
        values = _read_tiff(path)
    else:
        raise DataError(f"{path}: unknown kind of file; expected .npy, .tif or .tiff")
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or values.dtype.kind not in "iuf":
        raise DataError(f"{path}: expected numbers [targets, height, width], got {values.dtype} {list(values.shape)}")
    return values.astype(np.float32)


def _read_tiff(path: Path) -> np.ndarray:
    try:
        import rasterio
    except ImportError:
        raise ImportError(f'{path}: GeoTIFF needs rasterio: pip install "specfast[geo]"') from None
    try:
        with rasterio.open(path) as file:
            return file.read(masked=True).astype(np.float32).filled(np.nan)
    except rasterio.errors.RasterioError as error:
        raise DataError(f"{path}: not a readable GeoTIFF ({error})") from None
