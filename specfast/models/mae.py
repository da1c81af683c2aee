"""SpecAwareMAE: masked-autoencoder pre-training of SpecAware."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from specfast import ops
from specfast.batch import SpectralBatch
from specfast.models.config import SpecAwareConfig
from specfast.models.decoder import HyperLinearHead
from specfast.models.encoder import SpecAwareBackbone, SpecAwareEncoder
from specfast.models.masking import Masking, random_masking
from specfast.models.pretrained import PretrainedMixin
from specfast.models.vit import BLOCK_NORM_EPS, Block

CHARBONNIER_WEIGHT = 2.0


@dataclass
class SpecAwareOutput:
    """What one pre-training step computes.

    Attributes:
        loss: loss_spectral + 2 * loss_charbonnier, a scalar.
        loss_spectral: mean over removed valid pixels of 1 - cosine over bands.
        loss_charbonnier: mean over the same pixels of the band mean of sqrt(1 + d^2) - 1.
        mask: [B, N], 1 where a patch was removed.
        latent: [B, K + 1, E] after the encoder's norm, cls first, kept patches in order of ascending noise.
        prediction: [B, N, p * p * C] of all patches (index = pixel * C + band), a list of [N, p * p * C] when band
            counts differ, or None when not asked for.
    """

    loss: Tensor
    loss_spectral: Tensor
    loss_charbonnier: Tensor
    mask: Tensor
    latent: Tensor
    prediction: Tensor | list[Tensor] | None = None


class SpecAwareMAE(SpecAwareBackbone, PretrainedMixin):
    """SpecAware with its masked-autoencoder decoder (Ji et al. 2026)."""

    def __init__(self, config: SpecAwareConfig):
        super().__init__(config)
        width = config.decoder_embed_dim
        self.decoder_embed = nn.Linear(config.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_blocks = nn.ModuleList(
            Block(width, config.decoder_num_heads, config.mlp_ratio) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=BLOCK_NORM_EPS)
        self.decoder_pred = HyperLinearHead(config)
        self.initialize()

    def encoder(self) -> SpecAwareEncoder:
        """Return the encoder; it shares this model's modules, so training and evaluation mode apply to both."""
        with torch.device("meta"):
            encoder = SpecAwareEncoder(self.config)
        for name in ("patch_embed", "cls_token", "blocks", "norm"):
            setattr(encoder, name, getattr(self, name))
        return encoder.train(self.training)

    def forward(
        self,
        batch: SpectralBatch,
        mask_ratio: float = 0.75,
        mask_noise: Tensor | None = None,
        return_prediction: bool = False,
    ) -> SpecAwareOutput:
        """Mask, encode, decode, and compare with the removed pixels.

        Args:
            batch: image sides must be multiples of the patch size.
            mask_ratio: share of patches removed, in [0, 1); at least one is kept.
            mask_noise: [B, N]; the patches with the smallest noise are kept. None draws it from torch's generator.
            return_prediction: also predict every patch.

        Raises:
            ValueError: an argument does not fit, named with what is expected.
        """
        rows, columns = self.patch_grid(batch)
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"mask_ratio: must lie in [0, 1); got {mask_ratio}")
        if mask_noise is None:
            mask_noise = torch.rand(len(batch), rows * columns, device=batch.image.device)
        elif tuple(mask_noise.shape) != (len(batch), rows * columns):
            raise ValueError(
                f"mask_noise: must be [B, N] = [{len(batch)}, {rows * columns}]; got {list(mask_noise.shape)}"
            )
        valid = self.valid_pixels(batch)
        masking = random_masking(mask_noise, mask_ratio, None if valid is None else valid.any(dim=-1))
        kept = masking.keep.shape[1]
        embedded = self.patch_embed(batch, torch.cat([masking.keep, masking.removed], dim=1), kept)

        latent = self._encode(embedded.tokens, batch, masking)
        z, key_mask = self._decode(latent, batch, masking)
        factors = self.decoder_pred.factors(z, embedded.meta, batch, key_mask)
        tokens = z[:, 1:]
        loss_spectral, loss_charbonnier = self._losses(
            _gather(tokens, masking.removed), factors, embedded.patches[:, kept:], valid, batch, masking
        )
        prediction = None
        if return_prediction:
            prediction = self.decoder_pred.predict(tokens, factors, batch)
            if len(batch) * batch.max_bands == batch.wavelength.shape[0]:
                prediction = torch.stack(prediction)
        return SpecAwareOutput(
            loss=loss_spectral + CHARBONNIER_WEIGHT * loss_charbonnier,
            loss_spectral=loss_spectral,
            loss_charbonnier=loss_charbonnier,
            mask=masking.mask,
            latent=latent,
            prediction=prediction,
        )

    def _encode(self, tokens: Tensor, batch: SpectralBatch, masking: Masking) -> Tensor:
        positions = self.positions(batch, self.config.embed_dim)
        x, key_mask = self.with_cls(tokens + _gather(positions, masking.keep), masking.keep_used)
        x, _ = self.run_blocks(self.blocks, x, key_mask)
        latent = self.norm(x)
        return latent if key_mask is None else latent * key_mask[..., None]

    def _decode(self, latent: Tensor, batch: SpectralBatch, masking: Masking) -> tuple[Tensor, Tensor | None]:
        x = self.decoder_embed(latent)
        visible, mask_token = x[:, 1:], self.mask_token.to(x.dtype)
        if masking.keep_used is not None:
            visible = torch.where(masking.keep_used[..., None], visible, mask_token)
        everywhere = mask_token.expand(len(batch), masking.mask.shape[1], -1)
        tokens = everywhere.scatter(1, masking.keep[..., None].expand_as(visible), visible)
        tokens = tokens + self.positions(batch, x.shape[-1])
        x = torch.cat([x[:, :1].to(tokens.dtype), tokens], dim=1)
        key_mask = masking.present
        if key_mask is not None:
            key_mask = torch.cat([key_mask.new_ones(len(batch), 1), key_mask], dim=1)
        x, _ = self.run_blocks(self.decoder_blocks, x, key_mask)
        return self.decoder_norm(x), key_mask

    def _losses(self, tokens, factors, target, valid, batch, masking) -> tuple[Tensor, Tensor]:
        if valid is None:
            counted = torch.ones(*tokens.shape[:2], target.shape[-1], dtype=torch.bool, device=target.device)
        else:
            counted = _gather(valid, masking.removed) & masking.removed_used[..., None]
        spectral, charbonnier, count = ops.hyper_linear_loss(
            tokens, **factors, target=target.detach(), valid=counted, cu_bands=batch.cu_bands
        )
        pixels = count.sum() + 1e-6
        return spectral.sum() / pixels, charbonnier.sum() / pixels


def _gather(tokens: Tensor, index: Tensor) -> Tensor:
    """Pick tokens [B, N, X] by number [B, K]: [B, K, X]."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
