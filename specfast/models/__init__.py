"""SpecAware models: thin modules over specfast.ops, with the published checkpoint's parameter names."""

from specfast.models.change import SpecAwareChangeDetector
from specfast.models.classifier import SpecAwareClassifier
from specfast.models.config import SpecAwareConfig
from specfast.models.downstream import DownstreamConfig
from specfast.models.encoder import SpecAwareEncoder, SpecAwareFeatures
from specfast.models.mae import SpecAwareMAE, SpecAwareOutput
from specfast.models.published import initialize_from_vit, load_published
from specfast.models.registry import create_model, list_models, load_model
from specfast.models.regressor import SpecAwareRegressor
from specfast.models.segmenter import SpecAwareSegmenter

__all__ = [
    "DownstreamConfig",
    "SpecAwareChangeDetector",
    "SpecAwareClassifier",
    "SpecAwareConfig",
    "SpecAwareEncoder",
    "SpecAwareFeatures",
    "SpecAwareMAE",
    "SpecAwareOutput",
    "SpecAwareRegressor",
    "SpecAwareSegmenter",
    "create_model",
    "initialize_from_vit",
    "list_models",
    "load_model",
    "load_published",
]
