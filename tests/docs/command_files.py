"""The files that the commands shown in the documentation are given: small scenes, maps, runs and models, made up."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from specfast import cli
from specfast.data.sensors import sensors
from tests.docs.markdown import ROOT, blocks

SIDE, FIELD = 32, 8  # pixels
SENSOR = "indian_pines"
BANDS = len(sensors()[SENSOR].wavelength)
TINY = {"embed_dim": 16, "depth": 2, "num_heads": 2, "decoder_embed_dim": 16, "decoder_depth": 1}
TINY |= {"decoder_num_heads": 2, "rank": 4, "condition_dim": 16}
# Options of `specfast pretrain` for which two cores need a second in place of weeks.
BRIEF = ["--model", "specaware_tiny_patch8", "--crop", "16", "--steps", "2", "--batch-size", "2", "--workers", "0"]
BRIEF += ["--model-options", *(f"{name}={value}" for name, value in TINY.items())]


def make(folder: Path) -> None:
    """Write all files into the empty folder ``folder``, which must be the working directory.

    A field of 8 x 8 pixels has one of three classes and its spectrum; at the second date the first two are another's.
    """
    before = fields()
    after = before.copy()
    after[:FIELD, : 2 * FIELD] = after[:FIELD, : 2 * FIELD] % 3 + 1
    dates = {"before": spectra(before, 1), "after": spectra(after, 2)}
    for name, cube in dates.items():
        np.save(folder / f"{name}.npy", as_radiance(cube))
        write_tiff(folder / f"{name}.tif", np.moveaxis(cube, -1, 0), bands=True)
        write_envi(folder / name, cube)
    shutil.copy("before.npy", "scene.npy")
    for name, source in {"may": "before", "august": "after"}.items():
        shutil.copy(f"{source}.tif", f"{name}.tif")
    write_envi(folder / "scene", dates["before"])
    write_envi(folder / "flightline", np.concatenate([*dates.values()]))
    np.save("labels.npy", before)
    np.save("changes.npy", (before != after).astype(np.int64))
    np.save("shares.npy", np.stack([before == 1, before == 2]).astype(np.float32))
    targets = np.zeros(before.shape, np.uint8)
    targets[5, 7] = targets[20, 12] = 1
    write_tiff(folder / "targets.tif", targets[None])
    write_tiles(folder)
    write_large(folder)
    (network,) = blocks(ROOT / "docs" / "dssync.md", "json")
    (folder / "network.json").write_text(network.text)
    for name in ("before.json", "after.json"):
        shutil.copy(ROOT / "bench" / "results" / "cpu-operators.json", name)
    train()


def train() -> None:
    """Make the runs and models, and maps of numbers, as a user would."""
    told = ["--sensor", SENSOR]
    few = ["--all-labels", "--steps", "2", "--quiet"]
    run("prepare", "scene.npy", "store", *told, "--tile", "16", "--quiet")
    run("pretrain", "--data", "store", "--out", "run", "--quiet", *BRIEF)
    shutil.copytree("run/model", "runs/pretrain/model")
    model = ["--model", "run/model"]
    run("finetune", "segment", "may.tif", "--labels", "labels.npy", *model, "--out", "runs/fields", *few)
    run("finetune", "change", "may.tif", "august.tif", "--labels", "changes.npy", *model, "--out", "runs/change", *few)
    shutil.copytree("runs/change/model", "detector/model")
    run("change", "before.tif", "after.tif", "--model", "detector/model", "--out", "change.tif", "--quiet")
    run("detect", "before.tif", "--out", "scores.tif", "--quiet")
    run("embed", "before.tif", *model, "--out", "embedding.tif", "--quiet")


def run(*words: str) -> None:
    assert cli.main(list(words)) == 0, " ".join(words)


def fields() -> np.ndarray:
    """Return classes 1 to 3, int64 [32, 32]."""
    side = SIDE // FIELD
    drawn = np.random.default_rng(0).permutation(np.arange(side * side) % 3) + 1
    return drawn.reshape(side, side).repeat(FIELD, axis=0).repeat(FIELD, axis=1)


def spectra(classes: np.ndarray, seed: int, bands: int = BANDS) -> np.ndarray:
    """Return reflectances times 10 000, int16 [H, W, bands], a spectrum for each class."""
    waves = np.linspace(0, 3, bands) + np.arange(classes.max() + 1)[:, None]
    noise = np.random.default_rng(seed).normal(scale=0.02, size=(*classes.shape, bands))
    return (10_000 * ((0.4 + 0.2 * np.sin(waves))[classes] + noise)).astype(np.int16)


def as_radiance(cube: np.ndarray) -> np.ndarray:
    """Return reflectances as numbers of the size that AVIRIS stored of Indian Pines."""
    return (1000 + cube // 2).astype(np.int16)


def write_envi(path: Path, cube: np.ndarray, wavelength=None) -> None:
    """Write ``path``.hdr and ``path``.img from [H, W, bands]; the wavelengths are Indian Pines' unless given."""
    wavelength = sensors()[SENSOR].wavelength if wavelength is None else wavelength
    keys = {"samples": cube.shape[1], "lines": cube.shape[0], "bands": cube.shape[2], "header offset": 0}
    keys |= {"data type": {"uint8": 1, "int16": 2}[cube.dtype.name], "interleave": "bip", "byte order": 0}
    keys |= {"wavelength units": "Nanometers", "wavelength": f"{{{', '.join(f'{one:.2f}' for one in wavelength)}}}"}
    keys |= {"reflectance scale factor": 10_000 if cube.dtype == np.int16 else 255}
    keys |= {"map info": "{UTM, 1, 1, 500000, 4480000, 20, 20, 16, North, WGS-84, units=Meters}"}
    path.with_suffix(".hdr").write_text("\n".join(["ENVI", *(f"{key} = {value}" for key, value in keys.items())]))
    cube.tofile(path.with_suffix(".img"))


def write_tiff(path: Path, cube: np.ndarray, *, bands: bool = False) -> None:
    """Write [bands, H, W] as GeoTIFF; with ``bands``, a scene with the wavelengths of Indian Pines."""
    import rasterio

    shape = dict(zip(("count", "height", "width"), cube.shape, strict=True))
    place = {"crs": "EPSG:32616", "transform": rasterio.Affine(20, 0, 500_000, 0, -20, 4_480_000)}
    with rasterio.open(path, "w", driver="GTiff", dtype=cube.dtype, **shape, **place) as raster:
        raster.write(cube)
        if bands:
            raster.update_tags(reflectance_scale_factor="10000", wavelength_units="Nanometers")
            raster.update_tags(wavelength=", ".join(f"{one:.2f}" for one in sensors()[SENSOR].wavelength))


def write_tiles(folder: Path) -> None:
    """Write 24 tiles of 8 x 8 pixels, of two classes, and tiles.csv that lists them."""
    lines = ["scene,label"]
    for number in range(24):
        write_envi(folder / f"tile{number}", spectra(np.full((8, 8), number % 2), number))
        lines.append(f"tile{number}.hdr,{('wood', 'field')[number % 2]}")
    (folder / "tiles.csv").write_text("\n".join(lines) + "\n")


def write_large(folder: Path) -> None:
    """Write large/scene.hdr, a scene of 1200 x 300 pixels and 56 bands, and two class maps of it."""
    (folder / "large").mkdir()
    classes = np.kron(np.random.default_rng(0).integers(1, 4, size=(24, 6)), np.ones((50, 50), np.int64))
    table = np.random.default_rng(1).integers(20, 200, size=(4, 56), dtype=np.uint8)
    dimmed = np.random.default_rng(2).integers(0, 20, size=(*classes.shape, 1), dtype=np.uint8)
    write_envi(folder / "large" / "scene", table[classes] + dimmed, np.linspace(420, 2400, 56))
    write_tiff(folder / "large" / "map.tif", classes[None].astype(np.uint8))
    write_tiff(folder / "large" / "truth.tif", np.roll(classes, 10, axis=0)[None].astype(np.uint8))


def give(source: Path, names: list[str], folder: Path) -> None:
    """Copy files and folders of those that :func:`make` wrote into ``folder``; large/x becomes x."""
    for name in names:
        for path in [source / name, *([(source / name).with_suffix(".img")] if name.endswith(".hdr") else [])]:
            target = folder / str(path.relative_to(source)).removeprefix("large/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)
