"""The Python of docs/interoperability.md runs as written, where it needs no other package or model."""

from __future__ import annotations

import pytest

from tests.docs.markdown import ROOT, blocks

ELSEWHERE = ("mae_vit_base_patch8_hsi", "terratorch", "lightning", "push_to_hub")
RUNNABLE = [
    pytest.param(block, id=block.where)
    for block in blocks(ROOT / "docs" / "interoperability.md", "python")
    if not any(name in block.text for name in ELSEWHERE)
]


@pytest.mark.parametrize("block", RUNNABLE)
def test_example_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, block.where, "exec"), {})


def test_export_torchgeo_and_operators_have_examples():
    assert len(RUNNABLE) == 3
