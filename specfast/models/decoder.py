"""HyperLinear: the prediction head whose factors are generated from metadata and the decoded tokens.

Source: Ji et al. 2026, section 3.4. Parameter names are those of the published checkpoint.
"""

from __future__ import annotations

from torch import Tensor, nn

from specfast import ops
from specfast.batch import SpectralBatch
from specfast.models.condition import Fusion, MatrixGenerator, hidden_and_last, over_bands
from specfast.models.config import SpecAwareConfig

POOL_DIM = 64


class AttentionPool(nn.Module):
    """One-head attention whose query is the mean token: z [B, L, D] -> [B, D]."""

    def __init__(self, width: int):
        super().__init__()
        self.query_proj = nn.Linear(width, POOL_DIM, bias=False)
        self.key_proj = nn.Linear(width, POOL_DIM, bias=False)
        self.value_proj = nn.Linear(width, width, bias=False)

    def forward(self, z: Tensor, key_mask: Tensor | None) -> Tensor:
        if key_mask is None:
            mean = z.mean(dim=1, keepdim=True)
        else:
            share = key_mask[..., None].to(z.dtype)
            mean = (z * share).sum(dim=1, keepdim=True) / share.sum(dim=1, keepdim=True)
        pooled = nn.functional.scaled_dot_product_attention(
            self.query_proj(mean),
            self.key_proj(z),
            self.value_proj(z),
            attn_mask=None if key_mask is None else key_mask[:, None],
            scale=POOL_DIM**-0.5,
        )
        return pooled[:, 0]


class HyperLinearHead(nn.Module):
    def __init__(self, config: SpecAwareConfig):
        super().__init__()
        width = config.condition_dim
        self.rank = config.rank
        self.x_attention_pool = AttentionPool(config.decoder_embed_dim)
        self.x_feature_extractor = nn.Sequential(
            nn.Linear(config.decoder_embed_dim, width), nn.GELU(), nn.Linear(width, width)
        )
        self.feature_fusion = Fusion(width)
        self.matrix_generator = MatrixGenerator(width, config.patch_size**2, config.rank, config.decoder_embed_dim)

    def factors(self, z: Tensor, meta: Tensor, batch: SpectralBatch, key_mask: Tensor | None) -> dict[str, Tensor]:
        """Generate what :func:`specfast.ops.hyper_linear` takes besides tokens.

        z [B, L, D] decoded tokens with cls; meta [S, w]; key_mask bool [B, L] or None.
        """
        content = over_bands(self.x_feature_extractor(self.x_attention_pool(z, key_mask)), batch)
        condition = self.feature_fusion(meta, content) + content
        generators = self.matrix_generator
        hidden, weight, bias = hidden_and_last(generators.v_generator, condition)
        return {
            "hidden": hidden,
            "weight": weight.unflatten(0, (self.rank, -1)),
            "bias": bias.unflatten(0, (self.rank, -1)),
            "factors_u": generators.u_generator(condition).unflatten(-1, (-1, self.rank)),
            "pixel_bias": generators.bias_generator(condition),
        }

    def predict(self, tokens: Tensor, factors: dict[str, Tensor], batch: SpectralBatch) -> list[Tensor]:
        """Predict pixels of tokens [B, M, D]; one [M, p * p * C] a sample, index = pixel * C + band."""
        prediction = ops.hyper_linear(tokens, **factors, cu_bands=batch.cu_bands)
        return [bands.permute(1, 2, 0).flatten(1) for bands in prediction.split(list(batch.band_counts))]
