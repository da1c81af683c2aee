"""What ``specfast.infer`` writes, in every format, is shown as what it is: kind, names, colors, place, every number."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

from specfast.data import open as open_image
from specfast.infer import Predictor, map_scene
from specfast.report import pages
from specfast.report.pages.recognition import recognize
from tests.report.conftest import HEIGHT, WIDTH

NEEDS = {".tif": "rasterio", ".zarr": "zarr"}
FORMATS = [
    pytest.param(
        ending,
        marks=pytest.mark.skipif(
            ending in NEEDS and importlib.util.find_spec(NEEDS.get(ending, "")) is None,
            reason=f"{NEEDS.get(ending)} is not installed",
        ),
    )
    for ending in (".tif", ".img", ".npy", ".zarr")
]


class Brightness(Predictor):
    """Two outputs, each a function of the pixel alone: its mean over bands, and one minus it."""

    outputs, quantity, window, identity = ("bright", "dark"), "share of light", 8, "test"

    def __init__(self, kind: str):
        self.kind = kind

    def __call__(self, samples):
        mean = torch.stack([sample.image.mean(dim=0) for sample in samples])
        return torch.stack([mean, 0.5 - mean], dim=1)


class Bands(Brightness):
    """Eight numbers of both signs a pixel."""

    outputs = tuple(f"f{n}" for n in range(8))

    def __call__(self, samples):
        return torch.stack([sample.image[:8] - sample.image[8:16] for sample in samples])


@pytest.fixture
def image(scene):
    return open_image(scene, sensor="others", level="L2", gsd=5)


@pytest.mark.parametrize("ending", FORMATS)
def test_class_maps(image, tmp_path, ending):
    out = tmp_path / f"map{ending}"
    made = map_scene(image, Brightness("classes"), out, colors=[(255, 200, 0), (0, 0, 128)])
    found = recognize(out)
    assert found.kind == "classes"
    assert {n: name for n, name in found.source.classes.items() if n} == {1: "bright", 2: "dark"}
    pixels = pages.show(out).summary["pixels"]
    assert pixels == {str(n): made.class_cells[name] for n, name in ((1, "bright"), (2, "dark"))}
    assert sum(pixels.values()) == HEIGHT * WIDTH - 1, "one pixel of the scene holds no data"
    if ending in (".tif", ".img"):
        np.testing.assert_allclose(found.source.colors[2], (0, 0, 128 / 255))


@pytest.mark.parametrize("ending", FORMATS)
def test_maps_of_numbers(image, tmp_path, ending):
    out = tmp_path / f"map{ending}"
    map_scene(image, Brightness("continuous"), out)
    shown = pages.show(out)
    assert (shown.kind, shown.summary["quantity"]) == ("continuous", "share of light")
    assert list(shown.summary["maps"]) == ["bright", "dark"]
    expected = image.sample().image.mean(dim=0).numpy()[image.sample().valid.numpy()]
    assert shown.summary["maps"]["bright"]["median"] == pytest.approx(np.median(expected), rel=1e-5)
    assert shown.summary["maps"]["dark"]["valid"] == pytest.approx(1 - 1 / (HEIGHT * WIDTH))


@pytest.mark.parametrize("ending", FORMATS)
def test_embeddings(image, tmp_path, ending):
    out = tmp_path / f"map{ending}"
    map_scene(image, Bands("embedding"), out)
    shown = pages.show(out)
    assert (shown.kind, shown.summary["shape"]) == ("embedding", [8, HEIGHT, WIDTH])
    assert shown.save(tmp_path / "map.html").is_file()
