"""What precision auto means on each device."""

from __future__ import annotations

import pytest
import torch

from specfast.train.precision import use_bf16

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"avx512_bf16": False}, False),
        ({}, False),
    ],
)
def test_auto_on_a_cpu_follows_its_instructions(monkeypatch, features, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    assert use_bf16("auto", CPU) is expected


def test_auto_on_a_cpu_that_torch_knows_nothing_of(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert use_bf16("auto", CPU) is False


@pytest.mark.parametrize("native", [True, False])
def test_auto_on_a_gpu_does_not_take_emulation(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert use_bf16("auto", CUDA) is native


def test_what_is_asked_for_is_done(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert use_bf16("bf16", CPU) is True
    assert use_bf16("float32", CUDA) is False
