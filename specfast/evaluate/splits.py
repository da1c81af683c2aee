"""Train and test pixels of labelled scenes: pure functions of (labels, labels per class, seed).

Labels are integers, 0 is unlabelled. Pixels are flat indices into the raveled labels; several scenes are raveled one
after the other. Neighboring pixels of one field are nearly copies of each other, so random pixels measure mostly
how well a method remembers a field; the field-disjoint and by-tile splits measure how well it knows a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

# Class numbers 1..16 of two published maps of Indian Pines, in terms of the ground truth's classes.
INDIAN_PINES_TR_TE_ORDER = (2, 3, 4, 5, 6, 8, 10, 11, 12, 13, 14, 15, 16, 1, 7, 9)  # danfenghong/IEEE_TGRS_GCN
INDIAN_PINES_DISJOINT_ORDER = (2, 3, 5, 6, 8, 10, 11, 12, 14, 1, 4, 7, 9, 13, 15, 16)  # mhaut/HSI-datasets

TILE_DRAWS = 200  # after so many, the division with most classes on both sides is taken


@dataclass(frozen=True)
class Split:
    """Pixels to train on and pixels to test on.

    Attributes:
        name: how the split was made ("random pixels", "field-disjoint", ...).
        train: int64 [T], sorted flat indices.
        test: int64 [U], sorted flat indices, none of them in ``train``.
        shortfall: class -> labels taken, for each class that has fewer than were asked for.
        untested: classes that cannot be divided (one pixel, one tile, a field smaller than the buffer); their pixels
            are in neither set.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    shortfall: dict[int, int] = field(default_factory=dict)
    untested: tuple[int, ...] = ()


def check_labels(labels: np.ndarray, ndim: int | None = None) -> np.ndarray:
    """Return labels as int64; ValueError unless they are whole numbers, not negative, and some pixel has a class."""
    labels = np.asarray(labels)
    if ndim is not None and labels.ndim != ndim:
        raise ValueError(f"labels: expected {ndim} dimensions, got shape {list(labels.shape)}")
    if labels.dtype == bool or not np.issubdtype(labels.dtype, np.number) or np.iscomplexobj(labels):
        raise ValueError(f"labels: expected integers (0 = unlabelled), got {labels.dtype}")
    if not (np.isfinite(labels) & (labels == np.round(labels))).all():
        raise ValueError(f"labels: expected whole numbers (0 = unlabelled), got fractions or NaN in {labels.dtype}")
    labels = labels.astype(np.int64)
    if labels.size and labels.min() < 0:
        raise ValueError(f"labels: expected 0 (unlabelled) and positive classes, got {labels.min()}")
    if not (labels > 0).any():
        raise ValueError("labels: no pixel has a class (all are 0, which means unlabelled)")
    return labels


def _check_count(labels_per_class: int) -> None:
    if labels_per_class < 1:
        raise ValueError(f"labels_per_class: expected at least 1, got {labels_per_class}")


def _assemble(name: str, wanted: int, train: dict[int, np.ndarray], test: dict[int, np.ndarray]) -> Split:
    kept = [c for c in train if len(train[c]) and len(test[c])]
    if not kept:
        raise ValueError(f"labels: no class can be divided into train and test pixels ({name})")
    return Split(
        name,
        np.sort(np.concatenate([train[c] for c in kept])),
        np.sort(np.concatenate([test[c] for c in kept])),
        {c: len(train[c]) for c in kept if len(train[c]) < wanted},
        tuple(c for c in train if c not in kept),
    )


def random_pixels(labels: np.ndarray, labels_per_class: int, seed: int) -> Split:
    """Draw ``labels_per_class`` pixels of each class, wherever they lie; all others are tested.

    A class with fewer than twice as many pixels gives half of them to each side, and is noted in ``shortfall``.
    """
    _check_count(labels_per_class)
    flat = check_labels(labels).ravel()
    rng = np.random.default_rng(seed)
    train, test = {}, {}
    for c in np.unique(flat[flat > 0]).tolist():
        pixels = rng.permutation(np.flatnonzero(flat == c))
        taken = min(labels_per_class, len(pixels) // 2)
        train[c], test[c] = pixels[:taken], pixels[taken:]
    return _assemble("random pixels", labels_per_class, train, test)


def field_disjoint(
    labels: np.ndarray | Sequence[np.ndarray],
    labels_per_class: int,
    seed: int,
    *,
    connectivity: int = 8,
    buffer: int = 2,
) -> Split:
    """Draw training pixels from some fields and test on the others.

    A field is a connected region of one class. Half of a class's fields, drawn at random, are trained on (rounded down,
    at least one); a class with one field is cut in half across its longer side. Training pixels closer than ``buffer``
    pixels between (in rows and columns) to a test pixel of the same class are left out.

    Args:
        labels: [H, W] of one scene, or a list of them; a field ends with its scene.
        connectivity: 8 or 4 neighbors.
        buffer: pixels that lie between train and test pixels of a class, at least. In a field too small for it, the
            half that is tested gives up pixels instead of the one that is trained on.
    """
    from scipy import ndimage

    _check_count(labels_per_class)
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity: expected 4 or 8, got {connectivity}")
    if buffer < 0:
        raise ValueError(f"buffer: expected 0 or more pixels, got {buffer}")
    labels, place = _mosaic([labels] if isinstance(labels, np.ndarray) else list(labels), gap=buffer + 1)
    rng = np.random.default_rng(seed)
    structure = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)
    reach = np.ones((2 * buffer + 1, 2 * buffer + 1), dtype=bool)
    train, test = {}, {}
    for c in np.unique(labels[labels > 0]).tolist():
        region = labels == c
        fields, count = ndimage.label(region, structure)
        if count > 1:
            first = np.isin(fields, 1 + rng.permutation(count)[: max(1, count // 2)])
        else:
            first = _half(region)
            if rng.random() < 0.5:
                first = region & ~first
        second = region & ~first
        pool = first & ~ndimage.binary_dilation(second, reach)
        if pool.sum() * 2 < first.sum():
            pool, second = first, second & ~ndimage.binary_dilation(first, reach)
        train[c] = rng.permutation(place[pool])[:labels_per_class]
        test[c] = place[second]
    return _assemble("field-disjoint", labels_per_class, train, test)


def _mosaic(scenes: list[np.ndarray], gap: int) -> tuple[np.ndarray, np.ndarray]:
    """Put scenes below each other, ``gap`` unlabelled rows apart; return labels and each pixel's flat index."""
    rows = sum(len(scene) + gap for scene in scenes) - gap
    labels = np.zeros((rows, max((scene.shape[1] for scene in scenes if scene.ndim == 2), default=0)), dtype=np.int64)
    place = np.full(labels.shape, -1, dtype=np.int64)
    top = first = 0
    for scene in scenes:
        if scene.ndim != 2:
            raise ValueError(f"labels: expected 2 dimensions, got shape {list(scene.shape)}")
        height, width = scene.shape
        labels[top : top + height, :width] = scene
        place[top : top + height, :width] = np.arange(first, first + scene.size).reshape(height, width)
        top, first = top + height + gap, first + scene.size
    return check_labels(labels), place


def _half(region: np.ndarray) -> np.ndarray:
    """Mark the pixels of a region before the median of its longer side."""
    where = np.argwhere(region)
    axis = int(np.ptp(where[:, 1]) > np.ptp(where[:, 0]))
    middle = np.median(where[:, axis])
    return region & (np.indices(region.shape)[axis] < middle)


def by_tile(labels: np.ndarray, tiles: np.ndarray, labels_per_class: int, seed: int) -> Split:
    """Draw training pixels from half of the tiles and test on the other tiles.

    The division is drawn at random, again and again until every class that lies in more than one tile is on both sides.

    Args:
        labels: any shape.
        tiles: the tile each pixel belongs to, same shape.
    """
    _check_count(labels_per_class)
    flat, tiles = check_labels(labels).ravel(), np.asarray(tiles).ravel()
    if tiles.shape != flat.shape:
        raise ValueError(f"tiles: expected one for each of the {flat.size} labels, got {tiles.size}")
    names = np.unique(tiles[flat > 0])
    if len(names) < 2:
        raise ValueError(f"tiles: labelled pixels must lie in at least two tiles, got {len(names)}")
    rng = np.random.default_rng(seed)
    classes, column = np.unique(flat[flat > 0], return_inverse=True)
    counts = np.zeros((len(names), len(classes)), dtype=np.int64)
    np.add.at(counts, (np.searchsorted(names, tiles[flat > 0]), column), 1)
    divisible = int(((counts > 0).sum(axis=0) > 1).sum())
    most, trained = -1, None
    for _ in range(TILE_DRAWS):
        chosen = np.zeros(len(names), dtype=bool)
        chosen[rng.permutation(len(names))[: max(1, len(names) // 2)]] = True
        divided = int(((counts[chosen].sum(axis=0) > 0) & (counts[~chosen].sum(axis=0) > 0)).sum())
        if divided > most:
            most, trained = divided, names[chosen]
        if most == divisible:
            break
    in_train = np.isin(tiles, trained)
    train, test = {}, {}
    for c in classes.tolist():
        train[c] = rng.permutation(np.flatnonzero((flat == c) & in_train))[:labels_per_class]
        test[c] = np.flatnonzero((flat == c) & ~in_train)
    return _assemble("by tile", labels_per_class, train, test)


def published_maps(
    train_map: np.ndarray, other: np.ndarray, order: tuple[int, ...] | None = None, other_order: tuple | None = None
) -> tuple[np.ndarray, Split]:
    """Use fixed, published maps of train and test pixels.

    Args:
        train_map: the classes of the training pixels, 0 elsewhere.
        other: the classes of the test pixels, or of all pixels; those that ``train_map`` does not train on are tested.
        order: what the numbers 1, 2, ... of ``train_map`` stand for (:data:`INDIAN_PINES_TR_TE_ORDER`,
            :data:`INDIAN_PINES_DISJOINT_ORDER`); None if they are the classes.
        other_order: the same for ``other``.

    Returns:
        The labels that belong to the split, int64 in the shape of the maps, and the split. Published maps were made
        from editions of a ground truth that differ at the edges of fields, so a training pixel has the class its own
        map gives it.

    Raises:
        ValueError: shapes differ, or a map holds a class that its order does not name.
    """
    train_map, other = _renumbered(train_map, order, "order"), _renumbered(other, other_order, "other_order")
    if train_map.shape != other.shape:
        raise ValueError(f"other: expected the shape of train_map, {list(train_map.shape)}; got {list(other.shape)}")
    labels = np.where(train_map > 0, train_map, other)
    train, test = train_map.ravel() > 0, (other.ravel() > 0) & (train_map.ravel() == 0)
    if not test.any():
        raise ValueError("other: every labelled pixel is trained on, none is left to test")
    return labels, Split("published maps", np.flatnonzero(train), np.flatnonzero(test))


def _renumbered(labels: np.ndarray, order: tuple[int, ...] | None, name: str) -> np.ndarray:
    labels = check_labels(labels)
    if order is None:
        return labels
    if labels.max() > len(order):
        raise ValueError(f"{name}: names {len(order)} classes, but the map holds class {labels.max()}")
    return np.array([0, *order])[labels]
