"""fold: from an encoder that is told its sensor with every image to a plain network for one sensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from specfast.batch import SpectralBatch
from specfast.data.bands import BandTable, band_table
from specfast.export.encoder import ContentEmbedding, ConvolutionEmbedding, FoldedEncoder
from specfast.models import SpecAwareEncoder, SpecAwareMAE
from specfast.models.modes import evaluating
from specfast.testing import relative_rms


def fold(
    model: nn.Module,
    sensor: str | BandTable | None = None,
    level: str | None = None,
    *,
    content: SpectralBatch | None = None,
    image_size: int | tuple[int, int] | None = None,
    **options,
) -> FoldedEncoder:
    """Fold a sensor's metadata into the encoder, so that it takes plain images [B, C, H, W] of that sensor.

    SpecAware generates the weights of its patch embedding from the bands' metadata and from the image's content. The
    metadata part is a constant of the sensor. What becomes of the content is the choice:

    - Without ``content`` the content branch stays in the network. It is exact, for images of one size.
    - With ``content``, reference images of that sensor, the weights generated for them are averaged, and the embedding
      is a plain convolution [E, C, p, p], for images of any size. This is exact only where an image's content equals
      the reference's: :func:`fold_error` measures how far it is off on other images.
    - If the encoder's content branch is without effect (its weights are zero), the embedding is a plain convolution and
      exact, with or without ``content``.

    Args:
        model: an encoder, or a model that has one (``SpecAwareMAE``, downstream models); it is copied, not changed.
        sensor: a sensor's name, or a band table; left out with ``content``, which brings its own metadata.
        level: ``"L1"`` or ``"L2"``; with a sensor's name only.
        content: images of one sensor, with equal bands; only valid pixels are looked at.
        image_size: side or (height, width) in pixels of the images to come; by default the model's own. Only used where
            the content branch stays.
        options: further arguments of :func:`specfast.data.band_table` (gsd, bands, wavelength, fwhm).

    Returns:
        A network in evaluation mode, without gradients; its ``exact`` says whether it computes what the encoder does.

    Raises:
        ValueError: arguments that do not go together or do not fit; samples of ``content`` that differ in their bands.
    """
    encoder = encoder_of(model)
    if content is not None:
        if sensor is not None or level is not None or options:
            raise ValueError("content: brings its own metadata; leave out sensor, level and the band table's options")
        bands = _shared_bands(content)
    elif isinstance(sensor, BandTable):
        if level is not None or options:
            raise ValueError("sensor: a band table brings its own metadata; leave out level and other options")
        bands = sensor
    elif sensor is None or level is None:
        raise ValueError("sensor: expected a sensor's name and a level, a band table, or images as content")
    else:
        bands = band_table(sensor, level, **options)
    with torch.no_grad(), evaluating(encoder):
        return _fold(encoder, bands, content, image_size)


def _fold(encoder: SpecAwareEncoder, bands: BandTable, content: SpectralBatch | None, image_size) -> FoldedEncoder:
    patch_size, device = encoder.config.patch_size, encoder.cls_token.device
    content_free = is_content_free(encoder)
    # without content, any image serves to learn what the metadata say
    reference = bands.batch(torch.zeros(1, len(bands), patch_size, patch_size)) if content is None else content
    samples = len(reference)
    first_patch = torch.zeros(samples, 1, dtype=torch.int64, device=device)
    embedded = encoder.patch_embed(reference.to(device), first_patch, 1)
    if content is not None or content_free:
        weight, bias = _mean_convolution(encoder, embedded.condition.unflatten(0, (samples, -1)))
        return FoldedEncoder(encoder, ConvolutionEmbedding(weight, bias), bands, None, content_free)
    size = _checked_size(image_size or encoder.config.image_size, patch_size)
    return FoldedEncoder(encoder, ContentEmbedding(encoder, embedded.meta, size), bands, size, True)


def _mean_convolution(encoder: SpecAwareEncoder, condition: Tensor) -> tuple[Tensor, Tensor]:
    """Average the convolutions that conditions [B, C, w] generate: weight [E, C, p, p], bias [E]."""
    embed, p = encoder.patch_embed, encoder.config.patch_size
    generators = embed.matrix_generator
    weight = 0.0
    for one in condition:  # a sample's factors are large
        factors_u = generators.u_generator(one).unflatten(-1, (-1, embed.rank))
        factors_v = generators.v_generator(one).unflatten(-1, (embed.rank, -1))
        weight = weight + factors_u @ factors_v / len(condition)  # [C, E, P]
    bias = generators.bias_generator(condition.mean(dim=1)).mean(dim=0)
    return embed.scaler * weight.transpose(0, 1).unflatten(-1, (p, p)), embed.scaler * bias


def is_content_free(encoder: SpecAwareEncoder) -> bool:
    """Return whether no content of an image can change the embedding's weights."""
    fusion = encoder.patch_embed.feature_fusion
    width = fusion.modal2_proj.out_features
    return not bool((fusion.fusion[0].weight[:, width:] @ fusion.modal2_proj.weight).any())


def fold_error(folded: FoldedEncoder, model: nn.Module, batch: SpectralBatch) -> dict[str, float]:
    """Compare with the encoder on images of the folded bands, without invalid pixels.

    Returns:
        Relative RMS difference of each of ``folded.outputs``, and of the ``"embedding"``: the tokens before positions
        are added, which is where the content acts. In an encoder whose tokens are small beside their positions, the
        outputs' differences are small whatever the content does.

    Raises:
        ValueError: the batch holds invalid pixels or other bands.
    """
    encoder = encoder_of(model)
    if batch.valid is not None:
        raise ValueError("batch: expected images whose pixels are all valid; a folded encoder knows no mask")
    given, expected = _shared_bands(batch), folded.bands
    if len(given) != len(expected) or not torch.allclose(given.wavelength, expected.wavelength.to(given.wavelength)):
        raise ValueError(f"batch: expected the {len(expected)} bands that were folded in; got {len(given)} others")
    batch = batch.to(encoder.cls_token.device)
    with torch.no_grad(), evaluating(encoder):
        features, image = encoder(batch), batch.image.unflatten(0, (len(batch), -1)).to(folded.cls_token)
        everything = torch.arange(features.tokens.shape[1], device=image.device).expand(len(batch), -1)
        tokens = encoder.patch_embed(batch, everything, everything.shape[1]).tokens
        outputs = zip(folded.outputs, folded(image), (features.cls, *features.levels), strict=True)
        errors = {name: relative_rms(one, other) for name, one, other in outputs}
        return {"embedding": relative_rms(folded.embedding(image), tokens), **errors}


def encoder_of(model: nn.Module) -> SpecAwareEncoder:
    """Return the encoder that a model is or has; ValueError if it has none."""
    if isinstance(model, SpecAwareEncoder):
        return model
    if isinstance(model, SpecAwareMAE):
        return model.encoder()
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, SpecAwareEncoder):
        raise ValueError(f"model: expected a SpecAwareEncoder or a model that has one; got {type(model).__name__}")
    return encoder


def _shared_bands(batch: SpectralBatch) -> BandTable:
    """Return the one band table of a batch; ValueError if its samples differ."""
    tables = [table.cpu().split(list(batch.band_counts)) for table in (batch.wavelength, batch.fwhm)]
    samples = zip(*tables, batch.gsd.tolist(), batch.sensor, batch.level, strict=True)
    first, *others = [BandTable(*sample) for sample in samples]
    if any(other.to_dict() != first.to_dict() for other in others):
        raise ValueError("batch: expected samples with the same bands, sensor, level and gsd")
    return first


def _checked_size(size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1 or height % patch_size or width % patch_size:
        raise ValueError(f"image_size: expected multiples of the patch size {patch_size}; got {height} x {width}")
    return height, width
