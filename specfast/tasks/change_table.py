"""Fine-tuned change detectors beside controls and baselines: random and spatially disjoint pixels, several seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from torch import nn
from tqdm import tqdm

from specfast.evaluate.baselines import plain_svm, principal_components, require_sklearn
from specfast.evaluate.detection import auc, otsu_threshold, score_detection
from specfast.evaluate.probing import random_weights
from specfast.evaluate.splits import Split
from specfast.models.encoder import SpecAwareEncoder
from specfast.tasks.change import PairFeatures, build_detector, predict_change, train_change
from specfast.tasks.change_baselines import aligned_cubes, change_vector_analysis, mad, stacked_components
from specfast.tasks.change_data import CHANGED, ScenePair, divide, usable_labels
from specfast.tasks.change_options import CHANGE_BASELINES, CHANGE_SPLITS, ChangeOptions
from specfast.tasks.score_table import ScoreRow, ScoreTable

METRICS = {"f1": "F1", "iou": "IoU", "kappa": "kappa", "auc": "AUC", "error_auc": "AUC of uncertainty for errors"}
THRESHOLD = 0.5
IR_MAD_COMPONENTS = 30  # with all bands, the pixels that keep their weight are too few to estimate covariances from


@dataclass
class ChangeResult:
    """The table, and maps of the fine-tuned detector.

    Attributes:
        table: metrics of :data:`METRICS`, on the test pixels of each division.
        maps: split -> probability of change and uncertainty, float32 [H, W] each, NaN where a date is invalid; trained
            with the most labels and seed 0.
    """

    table: ScoreTable
    maps: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


def finetune_change(
    encoder: SpecAwareEncoder,
    before,
    after,
    labels: np.ndarray,
    *,
    splits: Sequence[str] = CHANGE_SPLITS,
    labels_per_class: Sequence[int] = (10, 50),
    seeds: int = 5,
    baselines: Sequence[str] = CHANGE_BASELINES,
    control: bool = True,
    options: ChangeOptions | None = None,
    progress: bool = False,
) -> ChangeResult:
    """Fine-tune a detector for every division of the labelled pixels, and measure it beside what needs no model.

    All methods are measured on the same test pixels. Change vector analysis and MAD use no labels: their threshold is
    Otsu's over the whole scene. The SVM is trained on the same pixels as the detector. Nothing is chosen on test
    pixels.

    Args:
        encoder: a pre-trained SpecAwareEncoder; it is copied for every run.
        before, after: two SpectralImages or SpectralSamples of one size, read whole.
        labels: int [H, W], 0 unlabelled, 1 unchanged, 2 changed; see :func:`change_labels`.
        splits: ``"random"`` pixels, ``"block"``: whole blocks of the scene are trained on or tested.
        labels_per_class: training pixels of each class, a part of the table each.
        seeds: divisions, 0 to ``seeds - 1``.
        baselines: some of ``"cva"``, ``"mad"``, ``"ir-mad"``, ``"pca_svm"``.
        control: also the same detector on an encoder with random weights.
        options: see :class:`ChangeOptions`.
        progress: show a bar.

    Raises:
        ValueError: labels do not fit the scenes, or an option is unknown.
        ImportError: scikit-learn is missing.
    """
    require_sklearn()
    _check_options(splits, labels_per_class, seeds, baselines)
    options = options or ChangeOptions()
    pair = ScenePair.of(before, after)
    notes: list[str] = []
    labels = usable_labels(labels, pair, notes)
    truth = (labels == CHANGED).ravel()
    divisions = {
        (split, count): [divide(labels, split, count, seed) for seed in range(seeds)]
        for split in splits
        for count in labels_per_class
    }
    table = ScoreTable([], METRICS, notes, _settings(splits, labels_per_class, seeds, options, labels))
    for (_, count), parts in divisions.items():
        if short := sorted({c for part in parts for c in part.shortfall}):
            notes.append(f"{_setting(parts[0], count)}: fewer pixels than asked for of classes {short} (2: changed)")
        if any(part.untested for part in parts):
            raise ValueError(f"labels: {parts[0].name} pixels leave changed or unchanged pixels on one side only")

    detectors = [("fine-tuned", "fine-tuned detector", encoder)]
    if control:
        detectors.append(("control", "fine-tuned detector, random encoder", random_weights(encoder)))
    plan = [
        (kind, title, _Detector(pair, labels, network, options).predict) for kind, title, network in detectors
    ] + list(_baseline_plan(pair, labels, baselines, notes))
    maps = {}
    with tqdm(total=len(plan) * len(divisions) * seeds, desc="change", unit="fit", disable=not progress) as bar:
        for kind, title, predict in plan:
            for (split, count), parts in divisions.items():
                start = time.perf_counter()
                scores: dict[str, list[float]] = {metric: [] for metric in METRICS}
                for seed, part in enumerate(parts):
                    found = predict(part, seed)
                    for metric, value in found.measured(truth, part.test).items():
                        scores[metric].append(value)
                    if kind == "fine-tuned" and seed == 0 and count == max(labels_per_class):
                        maps[split] = (found.score, found.uncertainty)
                    bar.update()
                seconds = time.perf_counter() - start
                fixed = {metric: tuple(values) for metric, values in scores.items()}
                table.rows.append(ScoreRow(title, kind, _setting(parts[0], count), fixed, seconds))
    order = {_setting(parts[0], count): number for number, ((_, count), parts) in enumerate(divisions.items())}
    table.rows.sort(key=lambda row: order[row.setting])
    return ChangeResult(table, maps)


@dataclass
class _Found:
    """A method's answer: score and binary map [H, W]; the uncertainty [H, W] of methods that give one."""

    score: np.ndarray
    changed: np.ndarray
    uncertainty: np.ndarray | None = None

    def measured(self, truth: np.ndarray, test: np.ndarray) -> dict[str, float]:
        truth, changed = truth[test], self.changed.ravel()[test]
        scores = score_detection(truth, changed)
        wrong, error_auc = truth != changed, float("nan")
        if self.uncertainty is not None and wrong.any() and not wrong.all():
            error_auc = auc(wrong, self.uncertainty.ravel()[test])
        return {
            "f1": scores.f1,
            "iou": scores.iou,
            "kappa": scores.kappa,
            "auc": auc(truth, self.score.ravel()[test]),
            "error_auc": error_auc,
        }


class _Detector:
    """Trains a fresh detector for every division; what the frozen encoder sees is shared between them."""

    def __init__(self, pair: ScenePair, labels: np.ndarray, encoder: nn.Module, options: ChangeOptions):
        self.pair, self.labels, self.encoder, self.options = pair, labels, encoder, options
        self.features = PairFeatures(pair) if options.fit.tuned_blocks == 0 else None

    def predict(self, part: Split, seed: int) -> _Found:
        detector = build_detector(self.options, self.encoder, self.pair, seed)
        train_change(detector, self.pair, self.labels, part.train, self.options, seed=seed, features=self.features)
        score, uncertainty = predict_change(detector, self.pair, features=self.features)
        return _Found(score, score >= THRESHOLD, uncertainty)


def _baseline_plan(
    pair: ScenePair, labels: np.ndarray, names: Sequence[str], notes: list[str]
) -> Iterator[tuple[str, str, Callable[[Split, int], _Found]]]:
    if not names:
        return
    before, after = aligned_cubes(pair.before, pair.after)

    def reduced():
        return [principal_components([cube], IR_MAD_COMPONENTS)[0] for cube in (before, after)]

    without_labels = {
        "cva": ("change vector analysis + Otsu", lambda: change_vector_analysis(before, after)),
        "mad": ("MAD + Otsu", lambda: mad(before, after, iterations=1)),
        "ir-mad": (f"IR-MAD on {IR_MAD_COMPONENTS} principal components + Otsu", lambda: mad(*reduced())),
    }
    for name in names:
        if name in without_labels:
            title, compute = without_labels[name]
            try:
                score = compute()
            except ValueError as error:  # a scene smaller than its number of bands
                notes.append(f"{title} is left out: {error}")
                continue
            found = _Found(score, score > otsu_threshold(score))
            yield "baseline", title, lambda part, seed, found=found: found
        else:
            inputs = stacked_components(before, after)
            yield (
                "baseline",
                "PCA + SVM, stacked dates and difference",
                lambda part, seed, inputs=inputs: _classified(inputs, labels, part, seed),
            )


def _classified(inputs: np.ndarray, labels: np.ndarray, part: Split, seed: int) -> _Found:
    rows = inputs.reshape(-1, inputs.shape[2])
    model = plain_svm(seed).fit(rows[part.train], labels.ravel()[part.train] == CHANGED)
    valid = np.isfinite(rows).all(axis=1)
    score = np.full(len(rows), np.nan, dtype=np.float32)
    score[valid] = model.decision_function(rows[valid])
    score = score.reshape(labels.shape)
    return _Found(score, score > 0)


def _setting(part: Split, count: int) -> str:
    name = part.name if part.name.endswith("pixels") else f"{part.name} pixels"
    return f"{name[0].upper()}{name[1:]}, {count} labels a class"


def _settings(splits, labels_per_class, seeds, options: ChangeOptions, labels: np.ndarray) -> dict:
    return {
        "splits": list(splits),
        "labels_per_class": [int(count) for count in labels_per_class],
        "seeds": int(seeds),
        "options": asdict(options),
        "threshold": THRESHOLD,
        "pixels": {"unchanged": int((labels == 1).sum()), "changed": int((labels == 2).sum())},
    }


def _check_options(splits, labels_per_class, seeds, baselines) -> None:
    for name, given, known in (("splits", splits, CHANGE_SPLITS), ("baselines", baselines, CHANGE_BASELINES)):
        if isinstance(given, str) or (unknown := [one for one in given if one not in known]):
            raise ValueError(
                f"{name}: expected a list out of {', '.join(known)}; got {given if isinstance(given, str) else unknown}"
            )
    if not splits or not labels_per_class or min(labels_per_class) < 1 or seeds < 1:
        raise ValueError(
            f"splits, labels_per_class, seeds: expected at least one of each, and at least one label; got "
            f"{list(splits)}, {list(labels_per_class)}, {seeds}"
        )
