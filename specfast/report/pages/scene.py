"""A scene: its composite, and the spectra of some pixels with bad bands shaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from specfast.data.image import SpectralImage
from specfast.data.inspection import ranges
from specfast.data.sensors import find_sensor
from specfast.errors import DataError
from specfast.report.composites import RGB_WAVELENGTHS, display_bands, rgb_composite, shared_limits
from specfast.report.pages.exhibit import Exhibit, Picture, Section, percentiles
from specfast.report.plots import SpectrumPanel
from specfast.report.scenes import MOST_PIXELS, SceneView, distinct_pixels, is_sliver, scene_overview
from specfast.report.sources import Source, Step, check_same_size, step_for, thinned, thinning_note

QUANTITIES = {"L1": "radiance (µW cm$^{-2}$ nm$^{-1}$ sr$^{-1}$)", "L2": "reflectance", None: "value as stored"}


def colors_of(image: SpectralImage, bands: Sequence[int] | None = None) -> tuple[tuple[int, int, int], str]:
    """Return the bands shown as red, green and blue, and what they are in words.

    Raises:
        DataError: a band does not exist, or none is good.
    """
    count, good = image.shape[0], image.good_bands
    if bands is not None:
        if wrong := [band for band in bands if not 0 <= band < count]:
            raise DataError(f"{image.path}: has no band {wrong[0]}; expected 0 to {count - 1}")
        return tuple(bands), f"bands {', '.join(map(str, bands))}"
    known = image.wavelength is not None
    try:
        chosen, name = display_bands(image.wavelength if known else np.arange(count), good)
    except ValueError:
        raise DataError(f"{image.path}: none of its {count} bands is good; name three bands") from None
    return chosen, name if known else f"bands {', '.join(map(str, chosen))}"


def composite(
    image: SpectralImage, *, bands=None, stretch=(2.0, 98.0), window=None, limits=None
) -> tuple[np.ndarray, Step, np.ndarray, str]:
    """Return the picture [h, w, 3], its step, the limits used [3, 2], and what its colors are."""
    chosen, colors = colors_of(image, bands)
    step = step_for(image.shape[1:] if window is None else window[2:])
    values = thinned(image, bands=list(chosen), window=window, step=step)
    if not np.isfinite(values).all(axis=0).any():
        raise DataError(f"{image.path}: no pixel has data in all of bands {', '.join(map(str, chosen))}")
    limits = shared_limits(values, (0, 1, 2), stretch) if limits is None else limits
    return rgb_composite(values, RGB_WAVELENGTHS, limits=limits), step, limits, colors


def exhibit(
    source: Source,
    *,
    bands: Sequence[int] | None = None,
    stretch: Sequence[float] = (2.0, 98.0),
    pixels: Sequence[tuple[int, int]] | None = None,
    window: tuple[int, int, int, int] | None = None,
    others: Sequence[Source] = (),
) -> Exhibit:
    """Show a scene, and others of the same size below it with the same pixels.

    Args:
        source: the scene.
        bands: shown as red, green, blue, counted from 0; None chooses by wavelength.
        stretch: percentiles that become black and white.
        pixels: (row, column) whose spectra are shown, at most six; None chooses four of unlike color.
        window: (row, column, height, width) to show; None for all.
        others: other scenes; with the same level they share the stretch.

    Raises:
        DataError: a band or pixel does not exist, sizes differ, or there is nothing to see.
    """
    images = [source.image, *(other.image for other in others)]
    for image in images[1:]:
        check_same_size(images[0], image)
    corner = (0, 0) if window is None else window[:2]
    picture, step, limits, colors = composite(images[0], bands=bands, stretch=stretch, window=window)
    if pixels is None:
        pixels = [(corner[0] + row * step[0], corner[1] + column * step[1]) for row, column in distinct_pixels(picture)]
    _check_pixels(pixels, images[0], window)
    views = []
    for image in images:
        if image is not images[0]:
            shared = limits if same_values(image, images[0]) else None
            picture, step, _, colors = composite(image, bands=bands, stretch=stretch, window=window, limits=shared)
        values = [image.read((row, column, 1, 1))[:, 0, 0] for row, column in pixels]
        views.append(_view(image, picture, step, corner, pixels, values))
    gray = "Gray ranges hold no good band. " if any(not image.good_bands.all() for image in images) else ""
    caption = (
        f"Composite: {colors}, stretched over {percentiles(stretch)} of each color; gray pixels hold no data. "
        f"{gray}Numbers mark the pixels whose spectra are shown.{thinning_note(step)}"
    )
    if is_sliver(picture.shape):
        caption += " It is stretched across: rows and columns are not to one scale."
    alt = f"Color composite of {images[0].name} with {len(pixels)} numbered pixels, beside the spectra of these pixels."
    summary = describe(images[0]) | {
        "composite": colors,
        "stretch": list(stretch),
        "spectra": [[row, column] for row, column in pixels],
    }
    sections = [Section("Scene", pictures=[Picture(scene_overview(views, pixels), caption, alt)])]
    sections += [_about(image, "Metadata" if image is images[0] else f"Metadata of {image.name}") for image in images]
    return Exhibit("scene", images[0].name, _subtitle(images[0]), sections, summary)


def same_values(first: SpectralImage, second: SpectralImage) -> bool:
    """Whether two scenes can share a stretch: numbers of the same level and sensor."""
    return first.level == second.level and first.sensor == second.sensor


def describe(image: SpectralImage) -> dict:
    """Return what scripts want to know of an image."""
    return {
        "shape": list(image.shape),
        "sensor": image.sensor,
        "level": image.level,
        "gsd": image.gsd,
        "crs": image.crs,
        "good_bands": int(image.good_bands.sum()),
    }


def sensor_name(image: SpectralImage) -> str:
    """Return the sensor's name in prose."""
    known = None if image.sensor is None else find_sensor(image.sensor, image.shape[0])
    return known.name if known is not None else image.sensor or "unknown sensor"


def _check_pixels(pixels: Sequence[tuple[int, int]], image: SpectralImage, window) -> None:
    top, left, height, width = (0, 0, *image.shape[1:]) if window is None else window
    if len(pixels) > MOST_PIXELS:
        raise DataError(f"spectra: expected at most {MOST_PIXELS} pixels, got {len(pixels)}")
    for row, column in pixels:
        if not (top <= row < top + height and left <= column < left + width):
            raise DataError(
                f"{image.path}: shows no pixel {row},{column}; expected row {top} to {top + height - 1} and column "
                f"{left} to {left + width - 1}"
            )


def _view(image: SpectralImage, picture, step: Step, corner, pixels, values) -> SceneView:
    known = image.wavelength is not None
    good = image.good_bands
    if known:
        good = good & np.isfinite(image.wavelength)
    panel = SpectrumPanel(
        sensor_name(image),
        "",
        np.where(good, image.wavelength, np.nan_to_num(image.wavelength)) if known else np.arange(image.shape[0]),
        {f"{n}: {row}, {column}": one for n, ((row, column), one) in enumerate(zip(pixels, values, strict=True), 1)},
        good,
    )
    axis = "wavelength (nm)" if known else "band (counted from 0; wavelengths unknown)"
    return SceneView(image.name, picture, panel, QUANTITIES[image.level], axis, step, tuple(corner))


def _subtitle(image: SpectralImage) -> str:
    bands, height, width = image.shape
    return f"{sensor_name(image)}, {bands} bands, {height} x {width} pixels"


def _about(image: SpectralImage, title: str) -> Section:
    bands, height, width = image.shape
    good = image.good_bands
    facts: dict[str, object] = {
        "file": Path(image.path).name,
        "size": f"{bands} bands, {height} x {width} pixels, stored as {image.dtype.name}",
        "sensor": sensor_name(image),
        "level": {"L1": "L1, radiance", "L2": "L2, reflectance", None: "unknown"}[image.level],
        "wavelengths": "unknown"
        if image.wavelength is None
        else f"{np.nanmin(image.wavelength):.1f} to {np.nanmax(image.wavelength):.1f} nm",
        "bad bands": ranges(~good) or "none",
        "ground sampling distance": "unknown" if image.gsd is None else f"{image.gsd:g} m",
        "reference system": image.crs or "unknown",
    }
    notes = [f"{note[0].upper()}{note[1:]}." for note in image.assumptions]
    text = "What the file did not say and was assumed:\n\n" + "\n\n".join(notes) if notes else ""
    return Section(title, text, facts=facts)
