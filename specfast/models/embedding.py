"""HyperEmbedding: the kept patches of a batch become tokens, through factors generated from metadata and content.

Source: Ji et al. 2026, sections 3.2 and 3.3. Parameter names are those of the published checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from specfast import ops
from specfast.batch import SpectralBatch
from specfast.models.condition import (
    BandTransformer,
    ContentFeatureExtractor,
    Fusion,
    MatrixGenerator,
    SpectralEmbedding,
    hidden_and_last,
    mean_over_bands,
)
from specfast.models.config import SpecAwareConfig


@dataclass
class Embedded:
    """What HyperEmbedding hands on.

    Attributes:
        tokens: [B, K, E], scaled, without positions.
        patches: [S, L, P] pixels of all the patches asked for (the first K of them were embedded).
        meta: [S, w] what the metadata say of each band.
        condition: [S, w] the same with the image's content fused in.
        bias: [B, E] before scaling.
    """

    tokens: Tensor
    patches: Tensor
    meta: Tensor
    condition: Tensor
    bias: Tensor


class HyperEmbedding(nn.Module):
    def __init__(self, config: SpecAwareConfig):
        super().__init__()
        width, pixels = config.condition_dim, config.patch_size**2
        self.patch_size, self.content_grid, self.rank = config.patch_size, config.content_grid, config.rank
        self.spectral_embedding = SpectralEmbedding(width)
        self.spectral_aware_transformer = BandTransformer(width)
        self.content_feature_extractor = ContentFeatureExtractor(config.content_grid**2, width)
        self.feature_fusion = Fusion(width)
        self.matrix_generator = MatrixGenerator(width, config.embed_dim, config.rank, pixels)
        self.scaler = nn.Parameter(torch.tensor(0.02))

    def forward(self, batch: SpectralBatch, index: Tensor, embedded: int) -> Embedded:
        """Gather the patches ``index`` int64 [B, L] and embed the first ``embedded`` of them."""
        patches, average, maximum = ops.patch_pool(
            batch.image.to(self.scaler.dtype),
            index,
            batch.cu_bands,
            self.patch_size,
            grid=(self.content_grid, self.content_grid),
            valid=batch.valid,
            extent=batch.extent,
        )
        meta = self.spectral_aware_transformer(self.spectral_embedding(batch), batch)
        condition = self.feature_fusion(meta, self.content_feature_extractor(average, maximum)) + meta

        generators = self.matrix_generator
        hidden, weight, bias = hidden_and_last(generators.u_generator, condition)
        tokens = ops.hyper_embed(
            patches[:, :embedded],
            generators.v_generator(condition).unflatten(-1, (self.rank, -1)),
            hidden,
            weight.unflatten(0, (-1, self.rank)),
            bias.unflatten(0, (-1, self.rank)),
            batch.cu_bands,
        )
        sample_bias = generators.bias_generator(mean_over_bands(condition, batch))
        return Embedded(self.scaler * (tokens + sample_bias[:, None]), patches, meta, condition, sample_bias)
