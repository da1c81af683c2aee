"""SpecAware models: thin modules over specfast.ops, with the published checkpoint's parameter names."""

from specfast.models.config import SpecAwareConfig
from specfast.models.encoder import SpecAwareEncoder, SpecAwareFeatures
from specfast.models.mae import SpecAwareMAE, SpecAwareOutput
from specfast.models.published import initialize_from_vit, load_published
from specfast.models.registry import create_model, list_models

__all__ = [
    "SpecAwareConfig",
    "SpecAwareEncoder",
    "SpecAwareFeatures",
    "SpecAwareMAE",
    "SpecAwareOutput",
    "create_model",
    "initialize_from_vit",
    "list_models",
    "load_published",
]
