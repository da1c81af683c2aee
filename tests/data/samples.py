"""Real samples of five sensors, of sizes that a patch of 8 pixels does not divide."""

from __future__ import annotations

from pathlib import Path

from specfast.batch import SpectralSample
from specfast.data import open as open_image

# Below the data folder: file, what the file does not say, window (row, column, height, width) or all.
SCENES = {
    "aviris": ("aviris_salton_sea/salton_sea_roi.mat", {"level": "L2"}, (3, 5, 21, 19)),
    "enmap": ("enmap_potsdam/images/enmap_potsdam_tile_128_0.tif", {}, (0, 0, 29, 31)),
    "casi": ("casi_muufl/an_hsi_image_sub_for_demo.mat", {"level": "L2"}, (10, 20, 17, 30)),
    "rosis": ("rosis_pavia_crop/reg_pavia_dataset.mat", {"level": "L2"}, (0, 0, 25, 22)),
    "emit": ("emit_unmix_10x10/emit20250324t221005_jpl_unmix_ex", {"level": "L2"}, None),
}


def mixed_samples(shared: Path) -> list[SpectralSample]:
    """Return one sample each of AVIRIS-Classic, EnMAP, CASI-1500, ROSIS and EMIT."""
    return [open_image(shared / "data" / file, **said).sample(window) for file, said, window in SCENES.values()]
