"""Fixtures shared by all tests; the only place in the tests that knows where shared data lie."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

# Read when Triton decorates a kernel, so it must be set before specfast's are imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with golden numbers and real scenes; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("SPECFAST_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip("the shared data folder is not here; set SPECFAST_SHARED to its path")
    return folder


class Golden:
    """One golden file: its configuration, and its arrays by section (``state``, ``in``, ``out``, ``grad``)."""

    def __init__(self, path: Path):
        with np.load(path) as arrays:
            self.config = json.loads(arrays["config"].tobytes())
            self._arrays = {key: torch.from_numpy(arrays[key]) for key in arrays.files if key != "config"}

    def section(self, name: str) -> dict[str, torch.Tensor]:
        prefix = f"{name}/"
        return {key[len(prefix) :]: value for key, value in self._arrays.items() if key.startswith(prefix)}


@pytest.fixture(scope="session", params=["mae_p8", "mae_p4"])
def golden_mae(request, shared) -> Golden:
    return Golden(shared / "golden" / f"{request.param}.npz")


@pytest.fixture(scope="session")
def golden_segmentation(shared) -> Golden:
    return Golden(shared / "golden" / "seg_p8.npz")
