"""Sensor and level names, and their sentence vectors."""

from __future__ import annotations

import os
import sys
import types
import warnings

import numpy as np
import pytest
import torch

from specfast import attributes


@pytest.fixture(autouse=True)
def forget():
    for function in (attributes._sensor_vector, attributes._text_encoder):
        function.cache_clear()
    yield
    attributes._sensor_vector.cache_clear()


def test_vectors_are_the_published_ones(shared):
    with np.load(shared / "golden" / "sensor_attributes.npz") as table:
        for key, sentence, vector in zip(table["keys"], table["sentences"], table["embeddings"], strict=True):
            for name in (str(key), str(sentence), str(sentence).upper()):
                arguments = (["avc"], [name]) if key in ("L1", "L2") else ([name], ["L1"])
                row = 1 if key in ("L1", "L2") else 0
                assert torch.equal(attributes.attribute_vectors(*arguments)[0, row], torch.from_numpy(vector))


@pytest.mark.parametrize(
    ("name", "key"),
    [("AVIRIS-Classic", "avc"), ("aviris classic", "avc"), ("AvNg", "avng"), ("aviris_3", "av3"), ("OTHERS", "others")],
)
def test_sensor_names(name, key):
    assert attributes.canonical_sensor(name) == key


@pytest.mark.parametrize(("name", "key"), [("l1", "L1"), ("Radiance", "L1"), ("L2 surface reflectance", "L2")])
def test_level_names(name, key):
    assert attributes.canonical_level(name) == key


def test_an_unknown_sensor_is_others_with_one_warning(monkeypatch):
    monkeypatch.setattr(attributes.importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"'EnMAP' .* known sensors: avc \(AVIRIS-Classic\).*specfast\[text\]"):
        vectors = attributes.attribute_vectors(["EnMAP", "others"], ["L2", "L2"])
    assert torch.equal(vectors[0], vectors[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attributes.attribute_vectors(["EnMAP"], ["L2"])


def test_the_text_extra_embeds_other_names(monkeypatch):
    class SentenceTransformer:
        def __init__(self, name, device):
            assert name == "sentence-transformers/all-MiniLM-L6-v2"

        def encode(self, sentence):
            return np.full(384, float(len(sentence)), np.float64)

    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = SentenceTransformer
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    monkeypatch.setattr(attributes.importlib.util, "find_spec", lambda name: object())
    vectors = attributes.attribute_vectors(["EnMAP", "avc"], ["L2", "L2"])
    assert vectors.dtype == torch.float32
    assert (vectors[0, 0] == 5).all()
    assert not (vectors[1, 0] == vectors[0, 0]).any()  # a published name never asks the language model


def test_text_weights_that_cannot_be_loaded_are_named(monkeypatch):
    monkeypatch.setattr(attributes.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(attributes, "_text_encoder", _raise_offline)
    _raise_offline.cache_clear = lambda: None
    with pytest.warns(UserWarning, match="could not be loaded .no network"):
        attributes.attribute_vectors(["EnMAP"], ["L2"])


def _raise_offline():
    raise OSError("no network")


def test_the_real_text_model_gives_the_published_vectors():
    pytest.importorskip("sentence_transformers", reason="the extra [text] is not installed")
    if "SPECFAST_TEXT_MODEL" not in os.environ:
        pytest.skip("set SPECFAST_TEXT_MODEL to a folder with all-MiniLM-L6-v2")
    sentences = attributes.SENSOR_SENTENCES | attributes.LEVEL_SENTENCES
    encoded = attributes._text_encoder().encode(list(sentences.values()))
    for key, vector in zip(sentences, encoded, strict=True):
        np.testing.assert_allclose(vector, attributes._published_vectors()[key], atol=1e-6)
