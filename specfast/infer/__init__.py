"""Whole scenes: windows read lazily, blended without seams, written with their georeference, in bounded memory."""

from specfast.infer.fitting import fit_scorer
from specfast.infer.mapping import SceneMap, map_scene
from specfast.infer.predictors import (
    ChangePredictor,
    EmbedPredictor,
    Predictor,
    RegressPredictor,
    ScorePredictor,
    SegmentPredictor,
    predictor_of,
)

__all__ = [
    "ChangePredictor",
    "EmbedPredictor",
    "Predictor",
    "RegressPredictor",
    "SceneMap",
    "ScorePredictor",
    "SegmentPredictor",
    "fit_scorer",
    "map_scene",
    "predictor_of",
]
