"""The main job: its stages, its parts, and a quick run from raw data to report."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

import specfast
from specfast.cli.demo.stages import MARKER, Stages
from specfast.errors import DataError


class Work:
    """A stage that counts how often it runs and says what it finds."""

    def __init__(self):
        self.found = []

    def __call__(self, folder):
        self.found.append(sorted(path.name for path in folder.iterdir()))
        (folder / "result").write_text("x")


def run_stages(out, work, *, config=1, later=1, **kwargs):
    stages = Stages(out, **kwargs)
    first = stages.run("first", {"value": config}, work)
    return first, stages.run("second", {"value": later}, work, after=(first,))


def test_finished_stages_are_reused(tmp_path):
    work = Work()
    first, second = run_stages(tmp_path, work)
    again = run_stages(tmp_path, work)
    assert len(work.found) == 2
    assert not first.reused
    assert all(stage.reused for stage in again)
    assert [stage.seconds for stage in again] == [first.seconds, second.seconds]


@pytest.mark.parametrize(("change", "runs"), [({"config": 2}, 2), ({"later": 2}, 1), ({"fresh": True}, 2)])
def test_a_changed_stage_and_those_after_it_start_with_an_empty_folder(tmp_path, change, runs):
    run_stages(tmp_path, Work())
    work = Work()
    run_stages(tmp_path, work, **change)
    assert work.found == [[MARKER]] * runs


def test_an_interrupted_stage_finds_what_it_left(tmp_path):
    def interrupted(folder):
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stages(tmp_path, interrupted)
    work = Work()
    run_stages(tmp_path, work)
    assert work.found == [["half", MARKER], [MARKER]]


def test_files_of_others_are_not_touched(tmp_path):
    (tmp_path / "first").mkdir()
    precious = tmp_path / "first" / "thesis.txt"
    precious.write_text("x")
    with pytest.raises(DataError, match=r"first.*not ours to replace"):
        run_stages(tmp_path, Work(), fresh=True)
    assert precious.read_text() == "x"


@pytest.fixture(scope="module")
def scene():
    pytest.importorskip("tensorly")
    from specfast.cli.demo.scene import load_scene

    return load_scene()


def test_scene_is_radiance_in_two_sets_of_bands(scene):
    images, labels = scene
    aviris, enmap = images.values()
    assert aviris.shape == (200, 145, 145)
    assert labels.shape == (145, 145)
    assert np.bincount(labels.ravel())[1:].sum() == 10249
    assert aviris.read((0, 0, 1, 1), [0])[0, 0, 0] == pytest.approx((3172 - 1000) / 500)
    table = specfast.data.sensors()["enmap"].wavelength
    assert 200 < len(enmap.wavelength) < len(table)
    assert set(enmap.wavelength) < set(table)
    # Both show the same ground: at equal wavelengths they agree wherever the spectrum is smooth.
    a, e = (int(np.abs(image.wavelength - 2200).argmin()) for image in (aviris, enmap))
    assert np.corrcoef(aviris.read()[a].ravel(), enmap.read()[e].ravel())[0, 1] > 0.98


class Copies(torch.nn.Module):
    """Stands for a model that predicts every patch perfectly, or off by a constant."""

    def __init__(self, offset: float):
        super().__init__()
        self.config = specfast.SpecAwareConfig(image_size=16, patch_size=4)
        self.offset = offset

    def forward(self, batch, mask_ratio, mask_noise, return_prediction):
        p, patches = 4, batch.image[None].unflatten(-1, (-1, 4)).unflatten(2, (-1, 4))  # [1, C, r, p, c, p]
        prediction = patches.permute(0, 2, 4, 3, 5, 1).reshape(1, 16, -1) + self.offset
        keep = mask_noise.argsort(dim=1)[:, : int(16 * (1 - mask_ratio))]
        mask = torch.ones(1, 16).scatter(1, keep, 0)
        assert p * p * batch.band_counts[0] == prediction.shape[-1]
        return type("Output", (), {"prediction": prediction, "mask": mask})()


def small_image(height=37, width=20, bands=5):
    rng = np.random.default_rng(0)
    return specfast.data.SpectralImage.from_array(
        rng.random((bands, height, width), dtype=np.float32) + 1,
        wavelength=np.linspace(450, 900, bands),
        fwhm=np.full(bands, 10.0),
        gsd=20.0,
        sensor="others",
        level="L1",
    )


def test_reconstruction_puts_every_patch_in_its_place():
    from specfast.report.reconstruction import MEAN, MODEL, NEAREST, fill

    image = small_image()
    filled = fill(Copies(0.0), image.sample(), mask_ratio=0.75, seed=0)
    assert filled.original.shape == (5, 32, 16), "cut to whole windows"
    assert filled.removed.shape == (8, 4)
    assert filled.removed.mean() == 0.75
    np.testing.assert_array_equal(filled.ways[MODEL], image.read((0, 0, 32, 16)))
    assert filled.relative_error(MODEL) == 0
    assert filled.relative_error(NEAREST) > filled.relative_error(MEAN) > 0.1, "noise is best filled with its mean"


def test_reconstruction_errors_are_those_of_the_removed_pixels():
    from specfast.report.reconstruction import MEAN, MODEL, NEAREST, fill

    filled = fill(Copies(0.5), small_image().sample(), mask_ratio=0.75, seed=0)
    kept = ~filled.pixels
    for way in (MODEL, MEAN, NEAREST):
        np.testing.assert_array_equal(filled.ways[way][:, kept], filled.original[:, kept])
    np.testing.assert_allclose(filled.band_error(MODEL), np.full(5, 0.5), rtol=1e-5)
    expected = 0.5 / np.sqrt(np.square(filled.original[:, filled.pixels]).mean())
    assert filled.relative_error(MODEL) == pytest.approx(expected, rel=1e-5)
    assert 0 < filled.spectral_angle(MODEL) < 30
    same = fill(Copies(0.5), small_image(bands=3).sample(), mask_ratio=0.75, seed=0)
    np.testing.assert_array_equal(same.removed, filled.removed)
    other = fill(Copies(0.5), small_image().sample(), mask_ratio=0.75, seed=1)
    assert (other.removed != filled.removed).any()


class Links(HTMLParser):
    """Collects what a page links to, and its text."""

    def __init__(self):
        super().__init__()
        self.links, self.images, self.text = [], 0, ""

    def handle_starttag(self, tag, attrs):
        self.images += tag == "img"
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_quick_demo_runs_from_raw_data_to_report(tmp_path, capsys):
    for package in ("tensorly", "matplotlib", "sklearn"):
        pytest.importorskip(package)
    from specfast.cli import main

    out = tmp_path / "demo"
    call = ["demo", "--quick", "--quiet", "--out", str(out)]
    assert main(call) == 0
    printed = capsys.readouterr().out
    assert str(out / "report.html") in printed

    page = Links()
    text = (out / "report.html").read_text(encoding="utf-8")
    page.feed(text)
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert page.images >= 7
    for part in (
        "--quick run",
        "Pre-training",
        "Reconstruction",
        "Class map",
        "Probe",
        "random encoder",
        "raw spectrum",
    ):
        assert part in page.text
    probe = json.loads((out / "probe.json").read_text(encoding="utf-8"))
    assert {row["kind"] for row in probe["rows"]} == {"features", "control", "baseline"}
    assert {row["split"] for row in probe["rows"]} == {"random pixels", "field-disjoint"}
    for line in probe["verdict"].splitlines():
        assert line in page.text
    with (out / "loss.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 6
    assert np.isfinite(losses).all()
    overview = (out / "overview.png").read_bytes()
    assert int.from_bytes(overview[16:20], "big") == 1600
    assert not (out / "pretrain" / "checkpoints").exists()
    specfast.SpecAwareEncoder.from_pretrained(out / "pretrain" / "model")

    # Again: nothing is done anew, and the results are the same.
    weights = (out / "pretrain" / "model" / "model.safetensors").stat().st_mtime_ns
    assert main(call) == 0
    assert capsys.readouterr().out.count("reused") == 5
    assert (out / "pretrain" / "model" / "model.safetensors").stat().st_mtime_ns == weights
    assert json.loads((out / "probe.json").read_text(encoding="utf-8")) == probe


def test_wrong_number_of_steps_is_one_line(tmp_path, capsys):
    from specfast.cli import main

    assert main(["demo", "--steps", "0", "--out", str(tmp_path)]) == 2
    assert "steps: expected at least 1, got 0" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
