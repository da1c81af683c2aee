"""SpecAware as a backbone of TerraTorch.

    import specfast.integrations.terratorch as specfast_terratorch
    specfast_terratorch.register()
    model = EncoderDecoderFactory().build_model(
        "segmentation", backbone="specaware_base_patch8", backbone_sensor="enmap", backbone_level="L2",
        backbone_checkpoint="runs/pretrain/model", decoder="UperNetDecoder", num_classes=12)

TerraTorch hands a backbone images without metadata, so the sensor is an argument of the backbone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn

from specfast.data.bands import BandTable, band_table
from specfast.models import SpecAwareEncoder, create_model, list_models, load_published


def register() -> list[str]:
    """Register every name of :func:`specfast.list_models` as a backbone; return the names.

    Raises:
        ImportError: terratorch is not installed.
    """
    try:
        from terratorch.registry import TERRATORCH_BACKBONE_REGISTRY
    except ImportError as error:
        raise ImportError(f'terratorch: cannot be imported ({error}); pip install "specfast[terratorch]"') from None
    for name in list_models():
        TERRATORCH_BACKBONE_REGISTRY.register(backbone_factory(name))
    return list_models()


def backbone_factory(name: str) -> Callable[..., TerraTorchBackbone]:
    """Make the function of that name that builds a backbone; its arguments are those of :func:`build_backbone`."""

    def factory(**options) -> TerraTorchBackbone:
        return build_backbone(name, **options)

    factory.__name__ = factory.__qualname__ = name
    factory.__doc__ = f"SpecAware backbone {name}; see specfast.integrations.terratorch.build_backbone."
    return factory


def build_backbone(
    name: str,
    *,
    sensor: str,
    level: str,
    checkpoint: str | os.PathLike | None = None,
    pretrained: bool = False,
    gsd: float | None = None,
    bands: Sequence[int] | None = None,
    wavelength: Sequence[float] | None = None,
    fwhm: Sequence[float] | None = None,
    out_indices: Sequence[int] | None = None,
    **overrides,
) -> TerraTorchBackbone:
    """Build an encoder for one sensor.

    Args:
        name: one of :func:`specfast.list_models`; with ``checkpoint``, the sizes are the checkpoint's.
        sensor, level, gsd, bands, wavelength, fwhm: see :func:`specfast.data.band_table`.
        checkpoint: folder or hub name for ``from_pretrained``, or a published ``.pth`` file.
        pretrained: as other backbones have it; True asks for a checkpoint.
        out_indices: which of the four levels are returned; all by default.
        overrides: fields of :class:`specfast.SpecAwareConfig`.

    Raises:
        ValueError: an argument does not fit.
    """
    table = band_table(sensor, level, gsd=gsd, bands=bands, wavelength=wavelength, fwhm=fwhm)
    if checkpoint is None:
        if pretrained:
            raise ValueError("pretrained: specfast brings no weights; pass checkpoint, a folder, hub name or .pth file")
        encoder = create_model(name, task="encoder", **overrides)
    elif Path(checkpoint).suffix in (".pth", ".pt", ".safetensors"):
        encoder = load_published(checkpoint, task="encoder", **overrides)
    else:
        encoder = SpecAwareEncoder.from_pretrained(checkpoint, **overrides)
    return TerraTorchBackbone(encoder, table, out_indices)


class TerraTorchBackbone(nn.Module):
    """An encoder for one sensor with the interface that TerraTorch's factories expect.

    Attributes:
        out_channels: channels of each map that is returned.
        patch_size: p; TerraTorch pads images to twice that.
    """

    def __init__(self, encoder: SpecAwareEncoder, table: BandTable, out_indices: Sequence[int] | None = None):
        super().__init__()
        self.encoder, self.table = encoder, table
        self.out_indices = list(range(4)) if out_indices is None else list(out_indices)
        if not self.out_indices or not all(-4 <= index < 4 for index in self.out_indices):
            raise ValueError(f"out_indices: expected levels from 0 to 3; got {out_indices}")
        self.out_channels = [encoder.config.embed_dim] * len(self.out_indices)
        self.patch_size = encoder.config.patch_size

    def forward(self, image: Tensor, **_) -> list[Tensor]:
        """Encode images [B, C, H, W] in physical units; NaN pixels are masked, TerraTorch's other keywords unused.

        Returns:
            Maps [B, E, H/p, W/p], one for each of ``out_indices``.
        """
        levels = self.encoder(self.table.batch(image)).levels
        return [levels[index] for index in self.out_indices]
