"""The errors in docs/faq.md: each is provoked, and says what the page shows."""

from __future__ import annotations

import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io

import specfast
from specfast.cli import main
from specfast.data import SpectralImage, prepare
from specfast.data import open as open_image
from specfast.errors import DataError
from specfast.evaluate import read_labels
from specfast.infer import predictor_of
from specfast.infer.reading import check_pair
from tests.docs.markdown import FENCE, ROOT

PAGE = ROOT / "docs" / "faq.md"


def shown() -> dict[str, str]:
    """The message of each section that shows one, by heading."""
    found = {}
    for section in re.split(r"^### ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        texts = [match[3].rstrip("\n") for match in FENCE.finditer(section) if match[1] == "text"]
        assert len(texts) == 1, f"expected one message below {section.splitlines()[0]!r}"
        found[section.splitlines()[0].strip()] = texts[0]
    return found


def header(**changes) -> None:
    """Write scene.hdr, of 5 bands of 3 x 4 pixels of int16."""
    keys = {"samples": 4, "lines": 3, "bands": 5, "data_type": 2, "interleave": "bsq", "byte_order": 0, **changes}
    lines = [f"{key.replace('_', ' ')} = {value}" for key, value in keys.items()]
    Path("scene.hdr").write_text("\n".join(["ENVI", *lines]) + "\n")


def pixels(size: int = 120) -> None:
    Path("scene.img").write_bytes(bytes(size))


def no_data_file():
    header()
    open_image("scene.hdr")


def cut_off():
    header()
    pixels(90)
    open_image("scene.hdr")


def unknown_format():
    Path("scene.bin").write_bytes(b"some bytes")
    open_image("scene.bin")


def rivals():
    scipy.io.savemat("scene.mat", {"a": np.ones((5, 6, 7)), "b": np.ones((5, 6, 7))})
    open_image("scene.mat")


def no_rasterio(monkeypatch):
    tifffile = b"II*\0\x08\0\0\0" + bytes(64)
    Path("scene.tif").write_bytes(tifffile)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    open_image("scene.tif")


def out_of_range():
    header(wavelength="{300, 340, 400, 450, 500}", wavelength_units="Nanometers")
    pixels()
    open_image("scene.hdr")


def micrometers():
    specfast.SpectralBatch.from_arrays(
        np.ones((1, 2, 8, 8), np.float32), wavelength=[0.45, 0.55], fwhm=[10, 10], gsd=1, sensor="others", level="L2"
    )


def bare_array():
    np.save("scene.npy", np.arange(8 * 9 * 5.0).reshape(8, 9, 5))
    open_image("scene.npy").sample()


def band_without_data():
    cube = np.ones((3, 8, 8), np.float32)
    cube[2] = np.nan
    tables = {"wavelength": [400, 500, 600], "fwhm": [10, 10, 10]}
    SpectralImage.from_array(cube, **tables, gsd=1, sensor="others", level="L2").sample()


def incomplete_scene(capsys):
    np.save("scene.npy", np.arange(8 * 9 * 5.0).reshape(8, 9, 5))
    refuse(capsys, "prepare", "scene.npy", "store", "--quiet")


def image() -> SpectralImage:
    cube = np.random.default_rng(0).random((4, 16, 16), dtype=np.float32)
    tables = {"wavelength": [400, 500, 600, 700], "fwhm": [10] * 4}
    return SpectralImage.from_array(cube, **tables, gsd=1, sensor="others", level="L2", name="scene")


def other_options():
    prepare([image()], "store", tile=8)
    prepare([image()], "store", tile=4)


TINY = {"embed_dim": 16, "depth": 1, "num_heads": 2, "decoder_embed_dim": 16, "decoder_depth": 1, "rank": 4}


def other_run(capsys):
    prepare([image()], "store", tile=16)
    options = ["--data", "store", "--out", "run", "--model", "specaware_tiny_patch8", "--crop", "16", "--steps", "1"]
    options += ["--batch-size", "1", "--bands", "all", "--workers", "0", "--quiet"]
    options += ["--model-options", *(f"{name}={value}" for name, value in TINY.items()), "decoder_num_heads=2"]
    assert main(["pretrain", *options, "--lr", "0.001"]) == 0
    refuse(capsys, "pretrain", *options, "--lr", "0.002")


def misspelt(capsys):
    Path("run.yaml").write_text("batchsize: 4\n")
    refuse(capsys, "pretrain", "--config", "run.yaml")


def nothing_to_train_on(capsys):
    refuse(capsys, "pretrain")


def no_model():
    Path("run").mkdir()
    specfast.SpecAwareMAE.from_pretrained("run")


def pickled():
    Path("weights.pth").write_bytes(pickle.dumps({"model": print}, protocol=2))
    specfast.load_published("weights.pth")


def other_size(capsys):
    np.save("scene.npy", np.ones((8, 9, 200), np.int16))
    np.save("labels.npy", np.ones((5, 6), int))
    words = ["model", "scene.npy", "--sensor", "indian_pines", "--labels", "labels.npy"]
    refuse(capsys, "probe", *words)


def no_class():
    np.save("labels.npy", np.zeros((5, 6), int))
    read_labels("labels.npy")


def tiny_model(**options):
    return specfast.create_model("specaware_tiny_patch8", image_size=16, decoder_num_heads=2, **TINY, **options)


def no_map():
    tiny_model().save_pretrained("model")
    predictor_of("model")


def other_bands():
    sample = image().sample()
    model = specfast.SpecAwareSegmenter.from_encoder(tiny_model(), ("a", "b"), "mlp", spectral_skip=4)
    model.skip.fit([sample])
    model(model.batch_of([image().sample(bands=[0, 1, 2])]))


def other_grid():
    cube = np.ones((4, 16, 16), np.float32)
    pair = [SpectralImage.from_array(cube, name="before"), SpectralImage.from_array(cube[:, :8], name="after")]
    check_pair(*pair)


def refuse(capsys, *argv: str):
    """Run a command that must refuse; raise its message without the command's name and the folder."""
    capsys.readouterr()
    assert main(list(argv)) == 2
    message = capsys.readouterr().err.removeprefix(f"specfast {argv[0]}: ").rstrip("\n")
    raise DataError(message.replace(f"{Path.cwd()}/", ""))


PROVOKED = {
    "The data file is not beside its header": no_data_file,
    "The data file has another size": cut_off,
    "The format is not recognized": unknown_format,
    "Several arrays could be the scene": rivals,
    "A format's library is missing": no_rasterio,
    "A wavelength is out of range": out_of_range,
    "Micrometers given as nanometers": micrometers,
    "Wavelength, sensor or level is unknown": bare_array,
    "The sensor is not known": lambda capsys: refuse(capsys, "sensors", "sentinel"),
    "A band holds no data": band_without_data,
    "Scene metadata are missing in prepare": incomplete_scene,
    "The store was prepared with other options": other_options,
    "A run does not go on": other_run,
    "An option is misspelt": misspelt,
    "Nothing to train on": nothing_to_train_on,
    "The folder is no model": no_model,
    "The checkpoint is not a file of tensors alone": pickled,
    "The label map has another size": other_size,
    "No pixel has a class": no_class,
    "The model gives no map": no_map,
    "The model was fine-tuned for other bands": other_bands,
    "Two dates do not lie on one grid": other_grid,
}


@pytest.mark.parametrize(("heading", "message"), shown().items(), ids=lambda value: value[:40])
def test_error_says_what_the_page_shows(heading, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPECFAST_DEBUG", raising=False)
    provoke = PROVOKED[heading]
    wanted = provoke.__code__.co_varnames[: provoke.__code__.co_argcount]
    fixtures = {"monkeypatch": monkeypatch, "capsys": capsys}
    with pytest.raises((ValueError, OSError, ImportError)) as caught:
        provoke(**{name: fixtures[name] for name in wanted})
    pattern = ".*".join(re.escape(part) for part in message.split("..."))
    assert re.fullmatch(pattern, str(caught.value), re.DOTALL), f"the page shows\n{message}\nbut it is\n{caught.value}"


def test_no_provoked_error_is_left_out():
    assert set(PROVOKED) == set(shown())
