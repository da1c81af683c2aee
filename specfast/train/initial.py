"""The model a run starts from."""

from __future__ import annotations

from pathlib import Path

from specfast.models import SpecAwareMAE, create_model, list_models, load_published
from specfast.models.published import initialize_from_vit
from specfast.train.config import PretrainConfig

_CHECKPOINT_SUFFIXES = (".pth", ".pt", ".safetensors")


def initial_model(config: PretrainConfig) -> SpecAwareMAE:
    """Build the model that ``config.model`` names, with fresh, saved or published weights, and ``config.vit`` in it.

    A fresh model is made for images of ``config.crop`` unless ``model_options`` gives an image_size.

    Raises:
        ValueError: an unknown model or option. FileNotFoundError: a file or folder is not there.
        CheckpointError: weights do not fit; every offending key is named.
    """
    options = dict(config.model_options)
    path = Path(config.model)
    if config.model in list_models():
        model = create_model(config.model, **{"image_size": config.crop, **options})
    elif path.suffix in _CHECKPOINT_SUFFIXES:
        model = load_published(path, task="pretrain", **options)
    elif path.is_dir() or "/" in config.model:
        model = SpecAwareMAE.from_pretrained(config.model, **options)
    else:
        model = create_model(config.model)  # says what it knows
    if config.vit is not None:
        initialize_from_vit(model, config.vit)
    return model
