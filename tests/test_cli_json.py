"""With ``--json`` a command prints one JSON value on stdout, and all that it says besides on stderr."""

from __future__ import annotations

import json

import numpy as np
import pytest

from specfast import cli

TINY = ("embed_dim=16", "depth=1", "num_heads=2", "decoder_embed_dim=16", "decoder_depth=1", "decoder_num_heads=2")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """``run(*argv)`` runs a command in a folder with scene.npy, and returns its JSON value and what stderr says."""
    monkeypatch.chdir(tmp_path)
    np.save("scene.npy", np.random.default_rng(0).integers(1000, 3000, (16, 16, 200), dtype=np.int16))

    def call(*argv: str):
        assert cli.main([*argv, "--json"]) == 0
        out, err = capsys.readouterr()
        return json.loads(out), err

    return call


def test_info(run):
    (described,), err = run("info", "scene.npy", "--sensor", "indian_pines")
    assert described["shape"] == [200, 16, 16]
    assert err == ""


def test_prepare_then_pretrain(run):
    store, err = run("prepare", "scene.npy", "store", "--sensor", "indian_pines", "--tile", "8", "--quiet")
    assert (store["store"], store["tiles"]) == ("store", 4)
    assert [(scene["name"], scene["bands"], scene["tiles"]) for scene in store["scenes"]] == [("scene", 200, 4)]
    assert "scene: prepared; 4 tiles" in err

    options = ["--data", "store", "--out", "run", "--model", "specaware_tiny_patch8", "--crop", "8", "--steps", "2"]
    options += ["--batch-size", "1", "--bands", "8", "--workers", "0", "--quiet", "--model-options", *TINY, "rank=4"]
    made, _ = run("pretrain", *options)
    assert (made["model"], made["steps"]) == ("run/model", 2)
    assert np.isfinite(made["loss"])


def test_plan_of_dssync(run):
    plan, err = run("dssync", "plan", "--world", "6", "--group", "3")
    assert sorted(plan["schedule"]["rounds"][0][0])[0] == 0
    assert err == ""
