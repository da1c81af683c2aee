"""finetune_regression: trained regressors beside ridge regression of frozen features and baselines, in one table."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from specfast.batch import SpectralSample
from specfast.evaluate.baselines import require_sklearn
from specfast.evaluate.features import dense_features, whiten
from specfast.evaluate.probing import random_weights, read_cubes
from specfast.evaluate.splits import Split, by_tile, random_pixels
from specfast.tasks.change_data import block_disjoint
from specfast.tasks.options import RegressionOptions
from specfast.tasks.regression import flat_targets, predict_scenes, train_regressor
from specfast.tasks.score_table import ScoreRow, ScoreTable
from specfast.tasks.views import SceneViews, scene_size

if TYPE_CHECKING:
    from specfast.data import SpectralImage

SPLITS = ("random", "block")
FEATURE_COMPONENTS = 100  # as in the probe of classes
RIDGE_PENALTIES = tuple(10.0**power for power in range(-4, 5))  # chosen by leave-one-out on the training pixels
PLS_COMPONENTS = 10
TREES = 200


def finetune_regression(
    encoder,
    images: SpectralImage | SpectralSample | Sequence,
    targets: np.ndarray | Sequence[np.ndarray],
    outputs: Sequence[str],
    *,
    splits: Sequence[str] = SPLITS,
    training_pixels: Sequence[int] = (50, 200),
    seeds: int = 5,
    options: RegressionOptions | None = None,
    recipe: dict | None = None,
    control: bool = True,
    progress: bool = False,
) -> ScoreTable:
    """Train regressors of pixels on few targets, and measure them beside controls and baselines.

    Rows: the trained head on the pre-trained encoder and on one with random weights; ridge regression of whitened
    frozen features of both; ridge, partial least squares and a random forest on the spectrum. All get the same pixels;
    nothing is chosen by looking at test pixels.

    Args:
        encoder: a SpecAwareEncoder, pre-trained.
        images: one scene, or several with equal bands.
        targets: float [K, H, W] of each scene, in their own units; NaN if unknown.
        outputs: names of the K targets, with units.
        splits: ``"random"`` pixels, or ``"block"``: training pixels in half of a scene's blocks, test pixels in the
            others; of several scenes, half of the scenes.
        training_pixels: how many pixels to train on, one table part each.
        seeds: divisions, 0 to ``seeds - 1``.
        options: how regressors are trained.
        recipe: options of :func:`specfast.evaluate.dense_features`.
        control: with the rows of an encoder with random weights.
        progress: show a bar.

    Returns:
        a table of R² and RMSE (in the targets' units), each the mean over targets, and the RMSE of each target.

    Raises:
        ValueError: targets do not fit the scenes, or an option is wrong. ImportError: scikit-learn is missing.
    """
    require_sklearn()
    options = options or RegressionOptions()
    if options.head == "scene":
        raise ValueError("options: finetune_regression compares pixels; got the head 'scene'")
    if unknown := [split for split in splits if split not in SPLITS]:
        raise ValueError(f"splits: expected some of {', '.join(SPLITS)}; got {', '.join(unknown)}")
    if seeds < 1 or not training_pixels or min(training_pixels) < 2:
        raise ValueError(f"seeds, training_pixels: expected at least 1 and 2; got {seeds} and {list(training_pixels)}")
    images = list(images) if isinstance(images, (list, tuple)) else [images]
    targets = list(targets) if isinstance(targets, (list, tuple)) else [np.asarray(targets)]
    sizes = [scene_size(image) for image in images]
    spectra = np.concatenate([cube.reshape(-1, cube.shape[2]) for cube in read_cubes(images)])
    flat = flat_targets(targets, sizes, len(outputs))
    usable = np.isfinite(flat).all(axis=1) & np.isfinite(spectra).all(axis=1)
    if not usable.any():
        raise ValueError(f"targets: no pixel holds all {len(outputs)} targets and a measurement")
    divisions = {
        (split, count): [_divide(usable, sizes, split, count, seed) for seed in range(seeds)]
        for split in splits
        for count in training_pixels
    }
    methods = _methods(encoder, images, spectra, targets, flat, outputs, options, recipe or {}, control)
    metrics = {"r2": "R²", "rmse": "RMSE"} | {f"rmse {name}": f"RMSE {name}" for name in outputs}
    rows = []
    with _bar(len(methods) * len(divisions) * seeds, progress) as bar:
        for (_, count), parts in divisions.items():
            for method, kind, predict in methods:
                start, scores = time.perf_counter(), []
                for seed, part in enumerate(parts):
                    scores.append(score_targets(flat[part.test], predict(part, seed), outputs))
                    bar.update()
                setting = f"{parts[0].name}, {count} pixels"
                values = {metric: tuple(one[metric] for one in scores) for metric in metrics}
                rows.append(ScoreRow(method, kind, setting, values, time.perf_counter() - start))
    settings = {
        "splits": list(splits),
        "training_pixels": [int(count) for count in training_pixels],
        "seeds": int(seeds),
        "outputs": list(outputs),
        "training": {**vars(options), "head_options": options.settings, "fit": dict(vars(options.fit))},
    }
    notes = [] if usable.all() else [f"{int((~usable).sum())} pixels without measurement or target are left out"]
    for (_, count), parts in divisions.items():  # rows are named by what was asked for
        if (fewest := min(len(part.train) for part in parts)) < count:
            notes.append(f"{parts[0].name}, {count} pixels: only {fewest} were available to train on")
    return ScoreTable(rows, metrics, notes, settings, percent=False)


def score_targets(targets: np.ndarray, predicted: np.ndarray, outputs: Sequence[str]) -> dict[str, float]:
    """Return R² and RMSE of [n, K], means over the targets, and ``"rmse <name>"`` of each."""
    from sklearn.metrics import r2_score, root_mean_squared_error

    each = root_mean_squared_error(targets, predicted, multioutput="raw_values")
    found = {"r2": float(r2_score(targets, predicted)), "rmse": float(each.mean())}
    return found | {f"rmse {name}": float(value) for name, value in zip(outputs, each, strict=True)}


def _divide(usable: np.ndarray, sizes, split: str, count: int, seed: int) -> Split:
    """Divide the usable pixels: one class, to the functions that divide labels."""
    labels = usable.astype(np.int64)
    if split == "random":
        return random_pixels(labels, count, seed)
    if len(sizes) == 1:
        return block_disjoint(labels.reshape(sizes[0]), count, seed)
    scenes = np.concatenate([np.full(height * width, number) for number, (height, width) in enumerate(sizes)])
    return replace(by_tile(labels, scenes, count, seed), name="by scene")


def _methods(encoder, images, spectra, targets, flat, outputs, options, recipe, control) -> list[tuple]:
    """List (method, kind, function of a division and a seed that predicts its test pixels)."""
    networks = [("pre-trained encoder", "fine-tuned", "features", encoder)]
    if control:
        networks.append(("random encoder", "control", "control", random_weights(encoder)))
    trained, probed = [], []
    for title, kind, probe_kind, network in networks:
        views = SceneViews(images, options.view)
        predict = _trained(network, views, targets, outputs, options)
        trained.append((f"{options.head} head on {title}", kind, predict))
        made = [dense_features(network, image, **recipe) for image in images]
        features = whiten(np.concatenate([one.reshape(-1, one.shape[2]) for one in made]), FEATURE_COMPONENTS)
        probed.append((f"ridge, features of {title}", probe_kind, _fitted(_ridge, features, flat)))
    plain = [
        (name, "baseline", _fitted(build, spectra, flat))
        for name, build in (
            ("ridge, raw spectrum", _ridge),
            ("partial least squares, raw spectrum", _partial_least_squares),
            ("random forest, raw spectrum", _forest),
        )
    ]
    return [*trained, *probed, *plain]


def _trained(network, views: SceneViews, targets, outputs, options: RegressionOptions) -> Callable:
    frozen = options.fit.tuned_blocks == 0

    def predict(part: Split, seed: int) -> np.ndarray:
        model, _ = train_regressor(network, views, targets, outputs, options, members=part.train, seed=seed)
        maps = predict_scenes(model, views, orientations=options.orientations, frozen=frozen)
        return np.concatenate([one.reshape(len(outputs), -1).T for one in maps])[part.test]

    return predict


def _fitted(build, inputs: np.ndarray, flat: np.ndarray) -> Callable:
    def predict(part: Split, seed: int) -> np.ndarray:
        predicted = build(seed, len(part.train)).fit(inputs[part.train], flat[part.train]).predict(inputs[part.test])
        return np.asarray(predicted).reshape(len(part.test), -1)

    return predict


def _ridge(seed: int, count: int):
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeCV(RIDGE_PENALTIES))


def _partial_least_squares(seed: int, count: int):
    from sklearn.cross_decomposition import PLSRegression

    return PLSRegression(min(PLS_COMPONENTS, count - 1))


def _forest(seed: int, count: int):
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(TREES, random_state=seed)


def _bar(total: int, progress: bool):
    from tqdm import tqdm

    return tqdm(total=total, desc="regressors", unit="fit", disable=not progress)
