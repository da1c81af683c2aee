"""docs/scenes.md: every command and every line of Python on it runs as written, on small files of those names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from specfast import cli
from specfast.models import create_model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scenes.md"
TEXT = PAGE.read_text(encoding="utf-8")
BANDS, SIDE = 12, 32
SIZES = {
    "image_size": 16, "embed_dim": 32, "num_heads": 2, "depth": 2, "rank": 8, "condition_dim": 16,
    "decoder_embed_dim": 16, "decoder_num_heads": 2, "decoder_depth": 1,
}  # fmt: skip


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def write_envi(path: Path, seed: int) -> None:
    cube = 0.1 + 0.3 * np.random.default_rng(seed).random((BANDS, SIDE, SIDE), dtype=np.float32)
    listed = ", ".join(f"{value:.0f}" for value in np.linspace(450, 2300, BANDS))
    path.with_suffix(".img").write_bytes(cube.tobytes())
    path.write_text(
        f"ENVI\ndescription = {{reflectance}}\nsamples = {SIDE}\nlines = {SIDE}\nbands = {BANDS}\nheader offset = 0\n"
        "data type = 4\ninterleave = bsq\nbyte order = 0\nsensor type = AVIRIS-NG\n"
        "map info = {UTM, 1, 1, 400000, 5800000, 5, 5, 33, North, WGS-84, units=Meters}\n"
        f"wavelength units = Nanometers\nwavelength = {{{listed}}}\nfwhm = {{{', '.join(['10'] * BANDS)}}}\n"
    )


def write_geotiff(rasterio, path: Path, seed: int) -> None:
    cube = 0.1 + 0.3 * np.random.default_rng(seed).random((BANDS, SIDE, SIDE), dtype=np.float32)
    profile = {"driver": "GTiff", "count": BANDS, "height": SIDE, "width": SIDE, "dtype": "float32"}
    place = rasterio.Affine(5, 0, 400000, 0, -5, 5800000)
    with rasterio.open(path, "w", crs="EPSG:32633", transform=place, **profile) as file:
        file.write(cube)
        file.update_tags(sensor="AVIRIS-NG", description="reflectance")
        for band, wavelength in enumerate(np.linspace(450, 2300, BANDS), start=1):
            file.update_tags(band, wavelength=f"{wavelength:.0f}", fwhm="10", wavelength_units="Nanometers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rasterio = pytest.importorskip("rasterio")
    for package in ("zarr", "matplotlib", "sklearn"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("page")
    for seed, name in enumerate(("flightline.hdr", "scene.hdr")):
        write_envi(folder / name, seed)
    for seed, name in enumerate(("may.tif", "august.tif"), start=2):
        write_geotiff(rasterio, folder / name, seed)
    targets = np.zeros((1, SIDE, SIDE), dtype=np.uint8)
    targets[0, 4:7, 4:7] = 1
    with rasterio.open(
        folder / "targets.tif", "w", driver="GTiff", count=1, height=SIDE, width=SIDE, dtype="uint8",
        crs="EPSG:32633", transform=rasterio.Affine(5, 0, 400000, 0, -5, 5800000),
    ) as file:  # fmt: skip
        file.write(targets)
    torch.manual_seed(0)
    for name, task in (("fields", "segmentation"), ("change", "change"), ("pretrain", "pretrain")):
        outputs = {"segmentation": {"outputs": ("wheat", "maize")}, "change": {"outputs": ("change",)}}.get(task, {})
        model = create_model("specaware_tiny_patch4", task=task, **outputs, **SIZES)
        model.save_pretrained(folder / "runs" / name / "model")
    return folder


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines()])
def test_command(folder, monkeypatch, line):
    monkeypatch.chdir(folder)
    program, *arguments = shlex.split(line)
    assert program == "specfast"
    assert cli.main(arguments) == 0
    if "--out" in arguments:
        assert Path(arguments[arguments.index("--out") + 1]).exists()


def test_python(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    names: dict = {}
    for block in blocks("python"):
        exec(compile(block, str(PAGE), "exec"), names)
    assert "fields.tif" in capsys.readouterr().out
    import rasterio

    with rasterio.open("ndvi.tif") as file:
        found = file.read(1)
    cube = np.fromfile("flightline.img", dtype="<f4").reshape(BANDS, SIDE, SIDE)
    nm = np.linspace(450, 2300, BANDS).round()
    red, infrared = cube[np.abs(nm - 660).argmin()], cube[np.abs(nm - 850).argmin()]
    np.testing.assert_allclose(found, (infrared - red) / (infrared + red), rtol=1e-4, atol=1e-6)
