"""The encoder: a batch becomes tokens and multi-level feature maps."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from specfast.batch import SpectralBatch
from specfast.models.condition import MatrixGenerator
from specfast.models.config import SpecAwareConfig
from specfast.models.embedding import HyperEmbedding
from specfast.models.pretrained import PretrainedMixin
from specfast.models.vit import BLOCK_NORM_EPS, Block, scaled_positions


@dataclass
class SpecAwareFeatures:
    """Features of a batch.

    Attributes:
        tokens: [B, N, E], raster order; 0 where a patch holds no valid pixel.
        cls: [B, E].
        levels: four maps [B, E, H/p, W/p], after a quarter, half, three quarters and all of the blocks; the last one is
            normalized and equals ``tokens``.
    """

    tokens: Tensor
    cls: Tensor
    levels: list[Tensor]


class SpecAwareBackbone(nn.Module):
    """What pre-training model and encoder share: embedding, cls token, blocks, norm."""

    def __init__(self, config: SpecAwareConfig):
        super().__init__()
        self.config = config
        self.patch_embed = HyperEmbedding(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=BLOCK_NORM_EPS)

    def initialize(self) -> None:
        """Draw fresh weights: as published, with the generators as ``config.generator_init`` says."""
        self._initialize_as_published()
        if self.config.generator_init == "fan_in":
            for module in self.modules():
                if isinstance(module, MatrixGenerator):
                    module.initialize_by_fan_in()

    def _initialize_as_published(self) -> None:
        """The band transformer's in_proj keeps torch's default."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if ".bias_generator.3." in name:
                nn.init.zeros_(parameter)
            elif name in ("cls_token", "mask_token"):
                nn.init.trunc_normal_(parameter, std=0.02)

    def patch_grid(self, batch: SpectralBatch) -> tuple[int, int]:
        """Rows and columns of patches; ValueError unless p divides the image's sides."""
        p = self.config.patch_size
        height, width = batch.image.shape[-2:]
        if height % p or width % p or not height or not width:
            raise ValueError(
                f"batch.image: height and width must be multiples of patch_size={p}; got {height} x {width} "
                f"(SpectralBatch.from_samples(samples, patch_size={p}) pads)"
            )
        return height // p, width // p

    def positions(self, batch: SpectralBatch, width: int) -> Tensor:
        """Positions of all patches of the grid: [B, N, width].

        In the parameters' precision: under autocast the residual stream must not be rounded to 16 bits, in which the
        content of patches is lost beside their positions.
        """
        positions = scaled_positions(*self.patch_grid(batch), batch.gsd * self.config.gsd_scale, width)
        return positions.to(self.cls_token.dtype)

    def valid_pixels(self, batch: SpectralBatch) -> Tensor | None:
        """Validity of every patch's pixels, bool [B, N, P], or None when all are valid."""
        if batch.valid is None:
            return None
        p = self.config.patch_size
        tiles = batch.valid.unflatten(2, (-1, p)).unflatten(1, (-1, p))  # [B, rows, p, columns, p]
        return tiles.transpose(2, 3).flatten(3).flatten(1, 2)

    def with_cls(self, tokens: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Put the cls token in front of [B, K, E], and of the mask of tokens that may be attended to."""
        tokens = torch.cat([self.cls_token.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], dim=1)
        if key_mask is not None:
            key_mask = torch.cat([key_mask.new_ones(len(key_mask), 1), key_mask], dim=1)
        return tokens, key_mask

    def run_blocks(
        self, blocks: nn.ModuleList, x: Tensor, key_mask: Tensor | None, wanted: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return the tokens after the last block, and after each ``wanted`` one (counted from 1)."""
        kept = {}
        for number, block in enumerate(blocks, start=1):
            if self.config.gradient_checkpointing and self.training:
                x = checkpoint(block, x, key_mask, use_reentrant=False)
            else:
                x = block(x, key_mask)
            if number in wanted:
                kept[number] = x
        return x, kept


class SpecAwareEncoder(SpecAwareBackbone, PretrainedMixin):
    """SpecAware without its decoder: ``encoder(batch)`` -> :class:`SpecAwareFeatures`.

    Source: Ji et al. 2026. Accepts any image whose sides are multiples of the patch size.
    """

    def __init__(self, config: SpecAwareConfig):
        super().__init__(config)
        self.initialize()

    def forward(self, batch: SpectralBatch) -> SpecAwareFeatures:
        """Encode all patches of a batch.

        Raises:
            ValueError: the patch size does not divide the image.
        """
        rows, columns = self.patch_grid(batch)
        patches = rows * columns
        valid = self.valid_pixels(batch)
        present = None if valid is None else valid.any(dim=-1)
        index = torch.arange(patches, device=batch.image.device).expand(len(batch), -1)
        embedded = self.patch_embed(batch, index, patches).tokens
        x, key_mask = self.with_cls(embedded + self.positions(batch, self.config.embed_dim), present)
        depth = len(self.blocks)
        wanted = [-(-depth * quarter // 4) for quarter in range(1, 5)]
        x, after = self.run_blocks(self.blocks, x, key_mask, wanted)
        final = self.norm(x)
        if present is not None:
            final = torch.cat([final[:, :1], final[:, 1:] * present[..., None]], dim=1)
        levels = [(final if number == depth else after[number])[:, 1:] for number in wanted]
        return SpecAwareFeatures(
            tokens=final[:, 1:],
            cls=final[:, 0],
            levels=[level.mT.unflatten(-1, (rows, columns)) for level in levels],
        )
