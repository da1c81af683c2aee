"""The demo's data: the Indian Pines scene as two sensors saw it, and what its classes are called."""

from __future__ import annotations

import numpy as np

CLASSES = (
    "Alfalfa",
    "Corn-notill",
    "Corn-mintill",
    "Corn",
    "Grass-pasture",
    "Grass-trees",
    "Grass-pasture-mowed",
    "Hay-windrowed",
    "Oats",
    "Soybean-notill",
    "Soybean-mintill",
    "Soybean-clean",
    "Wheat",
    "Woods",
    "Buildings-Grass-Trees-Drives",
    "Stone-Steel-Towers",
)
SOURCE = (
    "Indian Pines, AVIRIS, 12 June 1992: Baumgardner, Biehl and Landgrebe (2015), doi:10.4231/R7RX991C, CC BY 3.0, "
    "as the PyPI package tensorly carries it"
)
GSD = 20.0  # m
DN_SCALE, DN_OFFSET = 500.0, 1000.0  # DN = 500 L + 1000, L in uW / (cm^2 nm sr)


def load_scene() -> tuple[dict, np.ndarray]:
    """Return the scene in two sets of bands, and its labels.

    Returns:
        images: sensor's name -> SpectralImage of radiance; "AVIRIS" as recorded (200 bands), "EnMAP (simulated)"
            resampled to those EnMAP bands that the recorded ones cover.
        labels: uint8 [145, 145], 0 is unlabeled.

    Raises:
        ImportError: tensorly is not installed; the message names the extra.
    """
    try:
        from tensorly.datasets import load_indian_pines
    except ImportError:
        raise ImportError('the demo needs a scene and classifiers: pip install "specfast[demo]"') from None
    from specfast.data import SpectralImage, covered_bands, resample, sensors

    scene = load_indian_pines()
    labels = np.asarray(scene.ticks[0], dtype=np.uint8)
    counts = np.moveaxis(np.asarray(scene.tensor, dtype=np.float32), -1, 0)
    radiance = np.ascontiguousarray((counts - DN_OFFSET) / DN_SCALE)
    # tensorly's own wavelength list has two wrong numbers and is shifted by a band.
    recorded, enmap = sensors()["indian_pines"], sensors()["enmap"]
    covered = covered_bands(recorded.wavelength, recorded.fwhm, enmap.wavelength, enmap.fwhm)
    wavelength, fwhm = enmap.wavelength[covered], enmap.fwhm[covered]
    simulated = resample(radiance, recorded.wavelength, recorded.fwhm, wavelength, fwhm)
    images = {
        "AVIRIS": SpectralImage.from_array(
            radiance,
            wavelength=recorded.wavelength,
            fwhm=recorded.fwhm,
            gsd=GSD,
            sensor=recorded.key,
            level="L1",
            name="indian_pines_aviris",
        ),
        "EnMAP (simulated)": SpectralImage.from_array(
            np.asarray(simulated, dtype=np.float32),
            wavelength=wavelength,
            fwhm=fwhm,
            gsd=GSD,
            sensor="others",  # the published model has no description of EnMAP
            level="L1",
            name="indian_pines_enmap",
        ),
    }
    return images, labels
