"""Fine-tuning: a trainer for task models, and the tasks with their metrics, baselines and tables."""

from __future__ import annotations

import importlib

# fetched on demand: what a task needs is imported with it
_PUBLIC = {
    "FitOptions": "specfast.tasks.options",
    "FitResult": "specfast.tasks.training",
    "fit": "specfast.tasks.training",
    "SegmentationOptions": "specfast.tasks.options",
    "finetune_segmentation": "specfast.tasks.segmentation_table",
    "train_segmenter": "specfast.tasks.segmentation",
    "segment_scenes": "specfast.tasks.segmentation",
    "class_map": "specfast.tasks.segmentation",
    "ClassificationOptions": "specfast.tasks.options",
    "finetune_classification": "specfast.tasks.classification",
    "train_classifier": "specfast.tasks.classification",
    "RegressionOptions": "specfast.tasks.options",
    "finetune_regression": "specfast.tasks.regression_table",
    "train_regressor": "specfast.tasks.regression",
    "predict_scenes": "specfast.tasks.regression",
    "embeddings": "specfast.tasks.scene_inputs",
    "ChangeOptions": "specfast.tasks.change_options",
    "ScenePair": "specfast.tasks.change_data",
    "change_labels": "specfast.tasks.change_data",
    "usable_labels": "specfast.tasks.change_data",
    "build_detector": "specfast.tasks.change",
    "train_change": "specfast.tasks.change",
    "predict_change": "specfast.tasks.change",
    "finetune_change": "specfast.tasks.change_table",
    "anomaly_scorer": "specfast.tasks.anomaly",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'specfast.tasks' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
