"""SpecAwareConfig: everything that fixes a model's shape."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass
class SpecAwareConfig:
    """Sizes of a SpecAware model; the defaults are the published base model's (ViT-B, patch 8).

    Attributes:
        image_size: side in pixels of the training crops; other sizes are accepted at run time.
        patch_size: p, side of a patch in pixels.
        embed_dim, depth, num_heads: the encoder's width E, blocks and heads.
        decoder_embed_dim, decoder_depth, decoder_num_heads: the decoder's width D, blocks and heads.
        mlp_ratio: hidden over outer width of the ViT blocks' MLPs.
        condition_dim: w, width of the condition; the generators' hidden width is w / 2.
        rank: R, inner size of the generated factor pairs.
        content_grid: side g of the grid on which image content is pooled; 0 means image_size / patch_size.
        gsd_scale: factor on the ground sampling distance in the positions (patch size over the one trained with).
        generator_init: fresh weights of the factor generators: ``"published"`` (every linear weight 0.02) or
            ``"fan_in"`` (factors start with the spread of ordinary layers' weights: small models learn much sooner).
        gradient_checkpointing: recompute the ViT blocks' activations in backward.
    """

    image_size: int = 224
    patch_size: int = 8
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    decoder_embed_dim: int = 512
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    mlp_ratio: float = 4.0
    condition_dim: int = 128
    rank: int = 64
    content_grid: int = 0
    gsd_scale: float = 1.0
    generator_init: str = "published"
    gradient_checkpointing: bool = False

    def __post_init__(self):
        for name, value in self.to_dict().items():
            smallest = 0 if name in ("content_grid", "decoder_depth") else 1
            if isinstance(value, int) and not isinstance(value, bool) and value < smallest:
                raise ValueError(f"{name}: must be at least {smallest}; got {value}")
        if self.content_grid == 0:
            if self.image_size % self.patch_size:
                raise ValueError(
                    f"image_size: must be a multiple of patch_size={self.patch_size}, or content_grid be given; "
                    f"got {self.image_size}"
                )
            self.content_grid = self.image_size // self.patch_size
        for width, heads in (("embed_dim", "num_heads"), ("decoder_embed_dim", "decoder_num_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(f"{heads}: must divide {width}={getattr(self, width)}; got {getattr(self, heads)}")
            if getattr(self, width) % 4:
                raise ValueError(f"{width}: must be a multiple of 4 for the 2-D positions; got {getattr(self, width)}")
        if self.generator_init not in ("published", "fan_in"):
            raise ValueError(f"generator_init: must be 'published' or 'fan_in'; got {self.generator_init!r}")
        if self.condition_dim % 4:
            raise ValueError(
                f"condition_dim: must be a multiple of 4 (the band transformer's heads); got {self.condition_dim}"
            )

    def to_dict(self) -> dict:
        """Return the fields as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> SpecAwareConfig:
        """Build a configuration; an unknown key is an error that lists the known ones."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown model option {', '.join(unknown)}; expected one of {', '.join(sorted(known))}")
        return cls(**values)
