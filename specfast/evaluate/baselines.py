"""Classifiers that use no foundation model: what frozen features have to beat.

A method is a function of the cube without its labels (``prepare``) and a scikit-learn classifier (``build``). All
hyper-parameters are fixed; none is chosen by looking at test pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SVM_C = 100.0  # with the RBF width 1 / (bands x variance)
PCA_COMPONENTS = 30
TREES = 200
LOGISTIC_ITERATIONS = 200
MEAN_SIDES = (1, 3, 5)  # pixels; 1 is the pixel itself


@dataclass(frozen=True)
class Method:
    """A way to classify pixels.

    Attributes:
        name: as tables show it.
        prepare: scenes, each float32 [H, W, C] with NaN at invalid pixels -> inputs [H, W, F] of each.
        build: seed -> an unfitted classifier with ``fit(inputs [T, F], labels [T])`` and ``predict(inputs)``.
    """

    name: str
    prepare: Callable[[list[np.ndarray]], list[np.ndarray]]
    build: Callable[[int], object]


def spectra(cubes: list[np.ndarray]) -> list[np.ndarray]:
    """Return the cubes themselves: a pixel's input is its spectrum."""
    return cubes


def mean_filters(cube: np.ndarray, sides: tuple[int, ...] = MEAN_SIDES) -> np.ndarray:
    """Stack the means of each band over squares around a pixel; invalid pixels (NaN) are left out of the means.

    Args:
        cube: [H, W, C].
        sides: lengths of the squares in pixels, odd.

    Returns:
        float32 [H, W, C * len(sides)], NaN at invalid pixels.
    """
    from scipy.ndimage import uniform_filter

    if not sides or any(side < 1 or side % 2 == 0 for side in sides):
        raise ValueError(f"sides: expected odd numbers of pixels, at least one; got {sides}")
    valid = np.isfinite(cube).all(axis=2)
    filled = np.where(valid[..., None], cube, 0).astype(np.float32)
    parts = []
    for side in sides:
        share = uniform_filter(valid.astype(np.float32), side)
        mean = uniform_filter(filled, (side, side, 1))
        parts.append(mean / np.where(valid, share, np.nan)[..., None])
    return np.concatenate(parts, axis=2)


def principal_components(cubes: list[np.ndarray], count: int = PCA_COMPONENTS) -> list[np.ndarray]:
    """Project standardized spectra on the principal components of all valid pixels (labels play no part).

    Args:
        cubes: scenes [H, W, C] with the same bands, NaN at invalid pixels; all share one set of components.
        count: components to keep; fewer where there are fewer bands.

    Returns:
        float32 [H, W, min(count, C)] of each scene, NaN at invalid pixels.
    """
    known = np.concatenate([cube[np.isfinite(cube).all(axis=2)] for cube in cubes]).astype(np.float64)
    mean, spread = known.mean(axis=0), known.std(axis=0)
    spread[spread == 0] = 1
    known = (known - mean) / spread
    axes = np.linalg.eigh(known.T @ known)[1][:, ::-1][:, :count]
    return [((cube - mean) / spread @ axes).astype(np.float32) for cube in cubes]


def require_sklearn() -> None:
    """Raise ImportError, naming the extra, unless scikit-learn is installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise ImportError('classifiers need scikit-learn: pip install "specfast[probe]"') from None


def svm_rbf(seed: int = 0):
    """Standardize, then a support vector machine with a Gaussian kernel (C 100)."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    return make_pipeline(StandardScaler(), SVC(C=SVM_C, gamma="scale", random_state=seed))


def plain_svm(seed: int = 0):
    """The same on inputs as they are, for principal components: their variances say how much each matters."""
    from sklearn.svm import SVC

    return SVC(C=SVM_C, gamma="scale", random_state=seed)


def random_forest(seed: int = 0):
    """A random forest of 200 trees."""
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(TREES, random_state=seed, n_jobs=-1)


def lda(seed: int = 0):
    """Linear discriminant analysis with the Ledoit-Wolf shrinkage, on standardized inputs."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"))


def logistic_regression(seed: int = 0):
    """Standardize, then multinomial logistic regression with the L2 penalty of C 1."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(
        StandardScaler(), LogisticRegression(C=1.0, max_iter=LOGISTIC_ITERATIONS, tol=1e-3, random_state=seed)
    )


def convolutional(seed: int = 0):
    """A small 3-D convolutional network on patches of principal components."""
    from specfast.evaluate.cnn import PatchCNN

    return PatchCNN(seed)


def cnn_patches(cubes: list[np.ndarray]) -> list[np.ndarray]:
    """The network's input, see :func:`specfast.evaluate.cnn.patches`."""
    from specfast.evaluate.cnn import COMPONENTS, patches

    return [patches(components) for components in principal_components(cubes, COMPONENTS)]


def neighborhoods(cubes: list[np.ndarray]) -> list[np.ndarray]:
    """Return :func:`mean_filters` of each scene."""
    return [mean_filters(cube) for cube in cubes]


BASELINES = {
    "lda": Method("LDA, raw spectrum", spectra, lda),
    "logistic": Method("logistic regression, raw spectrum", spectra, logistic_regression),
    "svm": Method("SVM-RBF, raw spectrum", spectra, svm_rbf),
    "pca_svm": Method("SVM-RBF, 30 principal components", principal_components, plain_svm),
    "random_forest": Method("random forest, raw spectrum", spectra, random_forest),
    "mean_svm": Method("SVM-RBF, mean filters", neighborhoods, svm_rbf),
    "cnn": Method("3-D CNN, 9 x 9 patches", cnn_patches, convolutional),
}
