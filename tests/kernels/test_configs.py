"""The checked-in launch parameters, and how they are looked up."""

from __future__ import annotations

import re

import pytest
import torch

from specfast.kernels import configs


@pytest.mark.parametrize("architecture", configs.ARCHITECTURES)
def test_files_are_whole(architecture):
    entries, first = configs.all_configs(architecture), configs.all_configs("sm_80")
    assert entries.keys() == first.keys()
    for kernel, by_bits in entries.items():
        assert by_bits.keys() == first[kernel].keys() <= {"16", "32"}, kernel
        for entry in by_bits.values():
            plain = {name: value for name, value in entry.items() if not isinstance(value, dict)}
            assert {"num_warps", "num_stages"} < plain.keys(), kernel
            for name, change in entry.items():
                if isinstance(change, dict):
                    size = re.fullmatch(r"[A-Za-z]+?(\d+)", name)
                    assert size, f"{kernel}: {name}"
                    assert configs.bucket(int(size[1])) == int(size[1]), f"{kernel}: {name} is no power of two"
                    assert change.keys() <= plain.keys(), f"{kernel}: {name}"
            for values in (plain, *(value for value in entry.values() if isinstance(value, dict))):
                assert all(type(value) is int and value > 0 for value in values.values()), kernel
                tiles = [value for name, value in values.items() if name.startswith("BLOCK_") or name == "num_warps"]
                assert all(configs.bucket(tile) == tile for tile in tiles), f"{kernel}: tiles are powers of two"


def test_sizes_change_what_their_bucket_says(monkeypatch):
    entry = {"BLOCK_C": 16, "num_warps": 8, "num_stages": 2, "P128": {"num_stages": 1}, "P512": {"BLOCK_C": 4}}
    monkeypatch.setattr(configs, "all_configs", lambda architecture: {"some": {"16": entry}})
    configs._resolved.cache_clear()
    try:
        plain = {"BLOCK_C": 16, "num_warps": 8, "num_stages": 2}
        expected = {64: plain, 65: plain | {"num_stages": 1}, 256: plain | {"num_stages": 1}}
        expected[257] = expected[256] | {"BLOCK_C": 4}
        for size, values in expected.items():
            assert configs.config("some", torch.bfloat16, "sm_90", P=size, R=64) == values
        assert configs.config("some", torch.float16, "sm_90") == plain
    finally:
        configs._resolved.cache_clear()


def test_override_is_undone_and_nests():
    before = configs.config("hyper_embed_fwd", torch.float16, "sm_90")
    with configs.override("hyper_embed_fwd", num_warps=2):
        with configs.override("hyper_embed_fwd", num_stages=1):
            inner = configs.config("hyper_embed_fwd", torch.float16, "sm_90")
        outer = configs.config("hyper_embed_fwd", torch.float16, "sm_90")
    assert inner == before | {"num_warps": 2, "num_stages": 1}
    assert outer == before | {"num_warps": 2}
    assert configs.config("hyper_embed_fwd", torch.float16, "sm_90") == before
