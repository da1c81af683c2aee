"""Files from others never run code, and damaged ones are one clear error."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import warnings
import zipfile

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specfast.data import open as open_image
from specfast.errors import CheckpointError, DataError
from specfast.evaluate import read_labels
from specfast.models import SpecAwareMAE, create_model, load_published
from specfast.train.checkpoint import load_checkpoint
from specfast.train.config import read_yaml

SMALL = {
    "image_size": 8,
    "embed_dim": 8,
    "depth": 1,
    "num_heads": 1,
    "decoder_embed_dim": 8,
    "decoder_depth": 1,
    "decoder_num_heads": 1,
    "condition_dim": 8,
    "rank": 2,
}


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """The folder that a file's code would make."""
    mark = tmp_path / "code-was-run"
    yield mark
    assert not mark.exists()


def test_the_bomb_goes_off_where_it_may(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "made")))
    assert (tmp_path / "made").is_dir()


def torch_file(path, value, *, zipped=True):
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("load", [load_published, load_checkpoint], ids=["published", "checkpoint"])
def test_a_checkpoint_runs_no_code(tmp_path, mark, load, zipped):
    path = torch_file(
        tmp_path / "x.pt", {"model": {"cls_token": torch.zeros(1, 1, 8)}, "args": Bomb(mark)}, zipped=zipped
    )
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        load(path)


def test_a_plain_pickle_is_no_checkpoint(tmp_path, mark):
    (tmp_path / "x.pt").write_bytes(pickle.dumps(Bomb(mark)))
    for load in (load_published, load_checkpoint):
        with pytest.raises(CheckpointError, match=r"x\.pt"):
            load(tmp_path / "x.pt")


def test_a_model_folder_with_a_pickle_runs_no_code(tmp_path, mark):
    create_model("specaware_tiny_patch4", **SMALL).save_pretrained(tmp_path)
    for name in ("model.safetensors", "config.json"):
        kept = (tmp_path / name).read_bytes()
        torch_file(tmp_path / name, {"x": Bomb(mark)})
        with pytest.raises(CheckpointError, match=name):
            SpecAwareMAE.from_pretrained(tmp_path)
        (tmp_path / name).write_bytes(kept)


def test_arrays_of_objects_run_no_code(tmp_path, mark):
    np.save(tmp_path / "x.npy", np.array([[Bomb(mark)]], dtype=object))
    for read in (open_image, read_labels):
        with pytest.raises(DataError, match=r"x\.npy"):
            read(tmp_path / "x.npy")
    scipy.io.savemat(tmp_path / "x.mat", {"x": np.array([["code"]], dtype=object)})
    for read in (open_image, read_labels):
        with pytest.raises(DataError, match=r"x\.mat"):
            read(tmp_path / "x.mat")


def test_a_configuration_runs_no_code(tmp_path, mark):
    (tmp_path / "x.yaml").write_text(f"steps: !!python/object/apply:os.mkdir ['{mark}']\n")
    with pytest.raises(ValueError, match=r"x\.yaml"):
        read_yaml(tmp_path / "x.yaml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    create_model("specaware_tiny_patch4", **SMALL).save_pretrained(folder)
    return folder


def changed(content: bytes, data) -> bytes:
    """A file's content cut off, or with some wrong bytes."""
    if data.draw(st.booleans(), label="cut"):
        return content[: data.draw(st.integers(0, len(content) - 1), label="length")]
    wrong = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4), label="bytes")):
        wrong[data.draw(st.integers(0, len(content) - 1), label="place")] = data.draw(
            st.integers(0, 255), label="value"
        )
    return bytes(wrong)


def loaded(load, path):
    """What was loaded, or None and why not."""
    try:
        return load(path), ""
    except CheckpointError as error:
        return None, str(error)


common = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@common
@given(data=st.data(), name=st.sampled_from(["config.json", "model.safetensors"]))
def test_a_damaged_model_folder_is_a_clear_error_or_a_model(folder, tmp_path, data, name):
    other = tmp_path / "damaged"
    shutil.copytree(folder, other, dirs_exist_ok=True)
    (other / name).write_bytes(changed((folder / name).read_bytes(), data))
    model, refusal = loaded(SpecAwareMAE.from_pretrained, other)
    assert isinstance(model, SpecAwareMAE) or str(other) in refusal


@common
@given(data=st.data())
def test_a_damaged_published_file_is_a_clear_error(folder, tmp_path, data):
    file = io.BytesIO()
    torch.save({"model": create_model("specaware_tiny_patch4", **SMALL).state_dict()}, file)
    path = tmp_path / "x.pth"
    path.write_bytes(changed(file.getvalue(), data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, refusal = loaded(load_published, path)
    assert isinstance(model, SpecAwareMAE) or str(path) in refusal


def test_a_zip_of_something_else_is_no_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("hello.txt", "hello")
    for load in (load_published, load_checkpoint):
        with pytest.raises(CheckpointError, match=r"x\.pt"):
            load(tmp_path / "x.pt")
