"""The search for tile sizes and what it writes, without a GPU."""

from __future__ import annotations

import copy
import json

import pytest
import torch

pytest.importorskip("triton")

from bench import tune
from bench.machine import ROOT
from specfast.kernels import configs


def test_the_search_finds_the_fastest_and_passes_over_what_cannot_run():
    tried = []

    def milliseconds(entry):
        tried.append(dict(entry))
        if entry["BLOCK_N"] * entry["num_stages"] > 512:
            return None  # does not fit
        return 1 + abs(entry["BLOCK_N"] - 128) / 100 + abs(entry["num_warps"] - 8) + 0.1 * entry["num_stages"]

    best = tune.search({"BLOCK_N": 16, "num_warps": 4, "num_stages": 3}, milliseconds, log=lambda _: None)
    assert best == {"BLOCK_N": 128, "num_warps": 8, "num_stages": 1}
    assert len(tried) == len({tuple(entry.items()) for entry in tried})  # nothing is timed twice
    assert all(1 <= entry["num_warps"] <= 16 and 1 <= entry["num_stages"] <= 6 for entry in tried)


def test_gains_within_the_noise_are_not_taken():
    start = {"BLOCK_N": 64}
    assert tune.search(start, lambda entry: 1.0 - 0.0001 * entry["BLOCK_N"], log=lambda _: None) == start


def test_a_start_that_does_not_run_is_an_error():
    with pytest.raises(RuntimeError, match="does not run"):
        tune.search({"BLOCK_N": 64}, lambda entry: None)


def test_values_are_written_where_they_came_from():
    known = {"kernel": {"16": {"BLOCK_N": 64, "num_warps": 4, "P64": {"BLOCK_N": 32}, "P256": {"BLOCK_N": 8}}}}
    found = tune.written(copy.deepcopy(known), "kernel", "16", {"P": 64}, {"BLOCK_N": 16, "num_warps": 8})
    assert found == {"kernel": {"16": {"BLOCK_N": 64, "num_warps": 8, "P64": {"BLOCK_N": 16}, "P256": {"BLOCK_N": 8}}}}


@pytest.mark.parametrize("architecture", configs.ARCHITECTURES)
def test_checked_in_files_are_in_the_form_that_is_written(architecture):
    text = (ROOT / "kernels" / "configs" / f"{architecture}.json").read_text()
    assert tune.text_of(json.loads(text)) == text


def test_launched_kernels_are_found_with_their_configuration():
    with tune.asked_for() as seen:
        configs.config("spectral_loss_fwd", torch.bfloat16, "sm_90")
    assert seen == {"spectral_loss_fwd": configs.config("spectral_loss_fwd", torch.bfloat16, "sm_90")}
    config = configs.config
    with tune.asked_for():
        assert configs.config is not config
    assert configs.config is config


def test_without_a_gpu_the_tuner_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        tune.main([])
    assert "needs the GPU" in capsys.readouterr().err
