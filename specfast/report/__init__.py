"""Pictures and reports: one look, figures from plain arrays, and a self-contained HTML page to hold them.

Nothing here imports matplotlib before a figure is drawn; without it, the call says which extra brings it.
"""

from __future__ import annotations

import importlib

_PUBLIC = {
    "Report": "specfast.report.html",
    "rgb_composite": "specfast.report.composites",
    "rgb_bands": "specfast.report.composites",
    "shared_limits": "specfast.report.composites",
    "SpectrumPanel": "specfast.report.plots",
    "loss_curves": "specfast.report.plots",
    "reconstructions": "specfast.report.maps",
    "spectra": "specfast.report.plots",
    "class_maps": "specfast.report.maps",
    "probe_chart": "specfast.report.plots",
    "confusion": "specfast.report.maps",
    "band_error": "specfast.report.plots",
    "overview": "specfast.report.montage",
    "class_picture": "specfast.report.maps",
    "picture_row": "specfast.report.maps",
    "NumberPanel": "specfast.report.continuous",
    "continuous_picture": "specfast.report.continuous",
    "continuous_map": "specfast.report.continuous",
    "continuous_maps": "specfast.report.continuous",
    "uncertainty_map": "specfast.report.continuous",
    "anomaly_map": "specfast.report.continuous",
    "change_overview": "specfast.report.change",
    "PcaColors": "specfast.report.embeddings",
    "pca_rgb": "specfast.report.embeddings",
    "SceneView": "specfast.report.scenes",
    "scene_overview": "specfast.report.scenes",
    "picture_png": "specfast.report.style",
    "show": "specfast.report.pages",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'specfast.report' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
