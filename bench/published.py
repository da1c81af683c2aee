"""The model computed the way the published code computes it: the baseline of every benchmark.

Same weights, same mathematics, same order of operations as the code of Ji et al. 2026 in the environment its authors
name (torch 2.5, timm 1.0.15): the factors of all samples and bands are generated and stored, all N patches are
embedded through einsums with a stored [B, N, C, E], masking comes after that, the decoder predicts all patches and the
cls token, the prediction is stored and brought into image layout, and the loss is plain torch on whole images.
Attention of the blocks goes through scaled_dot_product_attention, as that timm does by default: writing
softmax(q k^T) v out would make the baseline slower than it is. Only batches of equal band counts without invalid
pixels, as published.

Nothing here calls specfast.ops, so the baseline stays where it is when the operators change.

Legend: B samples, C bands, N patches, L tokens with cls, P pixels a patch, R rank, E and D widths, w condition width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specfast.batch import SpectralBatch
from specfast.models import SpecAwareEncoder, SpecAwareFeatures, SpecAwareMAE, SpecAwareOutput
from specfast.models.condition import MatrixGenerator
from specfast.models.decoder import POOL_DIM, HyperLinearHead
from specfast.models.embedding import HyperEmbedding
from specfast.models.mae import CHARBONNIER_WEIGHT
from specfast.models.vit import Block, scaled_positions


def pooled(image: Tensor, patch_size: int) -> tuple[Tensor, Tensor]:
    """Average and maximum of each band's patches: [B, C, H, W] -> two [B, C, N]."""
    return F.avg_pool2d(image, patch_size).flatten(2), F.max_pool2d(image, patch_size).flatten(2)


def unfolded(image: Tensor, patch_size: int) -> Tensor:
    """All patches: [B, C, H, W] -> [B, N, C, P]."""
    columns = F.unfold(image, patch_size, stride=patch_size).transpose(1, 2)
    return columns.unflatten(2, (image.shape[1], -1))


def factors(generators: MatrixGenerator, condition: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Generate U [B, C, rows, R] and V [B, C, R, columns] from the condition [B, C, w]."""
    rank = generators.rank
    return (
        generators.u_generator(condition).unflatten(-1, (rows, rank)),
        generators.v_generator(condition).unflatten(-1, (rank, -1)),
    )


def embed(patches: Tensor, factors_u: Tensor, factors_v: Tensor) -> Tensor:
    """U V x of every band, then the sum over bands: patches [B, N, C, P] -> [B, N, E]; [B, N, C, E] is stored."""
    projected = torch.einsum("bncp,bcrp->bncr", patches, factors_v)
    per_band = torch.einsum("bncr,bcer->bnce", projected, factors_u)
    return per_band.sum(dim=2)


def predict(tokens: Tensor, factors_u: Tensor, factors_v: Tensor, pixel_bias: Tensor) -> Tensor:
    """U (V z) + bias of every band: tokens [B, L, D] -> [B, L, P * C], band last."""
    inner = torch.einsum("bld,bcrd->blcr", tokens, factors_v)
    prediction = torch.einsum("blcr,bcpr->blcp", inner, factors_u) + pixel_bias[:, None]
    return prediction.transpose(2, 3).contiguous().flatten(2)


def image_from_patches(patches: Tensor, bands: int, patch_size: int) -> Tensor:
    """[B, N, P * C] of a square grid -> [B, C, H, W]."""
    side = round(patches.shape[1] ** 0.5)
    tiles = patches.unflatten(2, (patch_size, patch_size, bands)).unflatten(1, (side, side))
    return tiles.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), bands, side * patch_size, side * patch_size)


def patches_from_image(image: Tensor, patch_size: int) -> Tensor:
    """[B, C, H, W] -> [B, N, P * C]."""
    tiles = image.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
    return tiles.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def pixel_losses(prediction: Tensor, target: Tensor, counted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine over bands and band-mean Charbonnier of [B, C, ...], summed a sample; and the pixels that count.

    ``counted`` is 1 or 0, [B, ...].
    """
    spectral = (1 - F.cosine_similarity(prediction, target, dim=1)) * counted
    charbonnier = ((prediction - target).square() + 1).sqrt() - 1
    charbonnier = charbonnier.mean(dim=1) * counted
    return tuple(value.flatten(1).sum(dim=1) for value in (spectral, charbonnier, counted))


def pixels_of(mask: Tensor, patch_size: int) -> Tensor:
    """A value a patch of a square grid, [B, N], for each of its pixels: [B, H, W]."""
    side = round(mask.shape[1] ** 0.5)
    return F.interpolate(mask.view(-1, 1, side, side), scale_factor=patch_size, mode="nearest")[:, 0]


def hyper_embedding(module: HyperEmbedding, image: Tensor, batch: SpectralBatch) -> tuple[Tensor, Tensor]:
    """Tokens [B, N, E] of all patches, scaled, and meta [B, C, w]."""
    samples, bands = image.shape[:2]
    meta = module.spectral_embedding(batch).unflatten(0, (samples, bands))
    meta = module.spectral_aware_transformer.transformer_encoder(meta) + meta
    content = module.content_feature_extractor(*pooled(image, module.patch_size))
    condition = module.feature_fusion(meta, content) + meta
    generators = module.matrix_generator
    factors_u, factors_v = factors(generators, condition, rows=module.matrix_generator.bias_generator[-1].out_features)
    tokens = embed(unfolded(image, module.patch_size), factors_u, factors_v)
    bias = generators.bias_generator(condition.mean(dim=1))
    return module.scaler * (tokens + bias[:, None]), meta


def hyper_linear(head: HyperLinearHead, z: Tensor, meta: Tensor) -> Tensor:
    """Prediction [B, L, P * C] of all tokens z [B, L, D], cls included."""
    pool = head.x_attention_pool
    query = pool.query_proj(z.mean(dim=1, keepdim=True))
    weights = (torch.bmm(query, pool.key_proj(z).mT) * POOL_DIM**-0.5).softmax(dim=-1)
    content = head.x_feature_extractor(torch.bmm(weights, pool.value_proj(z))[:, 0])
    content = content[:, None].expand(-1, meta.shape[1], -1)
    condition = head.feature_fusion(meta, content) + content
    generators = head.matrix_generator
    factors_u, factors_v = factors(generators, condition, rows=generators.bias_generator[-1].out_features)
    return predict(z, factors_u, factors_v, generators.bias_generator(condition))


def block(module: Block, x: Tensor) -> Tensor:
    """A timm-style pre-norm ViT block."""
    attention = module.attn
    qkv = attention.qkv(module.norm1(x)).unflatten(-1, (3, attention.num_heads, -1))
    mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
    x = x + attention.proj(mixed.transpose(1, 2).flatten(2))
    return x + module.mlp.fc2(F.gelu(module.mlp.fc1(module.norm2(x))))


def positions(model: nn.Module, batch: SpectralBatch, width: int) -> Tensor:
    return scaled_positions(*model.patch_grid(batch), batch.gsd * model.config.gsd_scale, width)


def dense_image(batch: SpectralBatch) -> Tensor:
    """The packed image as [B, C, H, W]; ValueError for what the published code cannot take."""
    if batch.valid is not None or len(set(batch.band_counts)) != 1:
        raise ValueError("batch: the published form takes equal band counts and no invalid pixels")
    return batch.image.unflatten(0, (len(batch), batch.max_bands))


class PublishedMAE(SpecAwareMAE):
    """SpecAwareMAE with the published order of computation; takes the same state_dict."""

    @classmethod
    def sharing(cls, model: SpecAwareMAE) -> PublishedMAE:
        """Return the published form of ``model``; both use the same parameters."""
        return _sharing(cls, model)

    def forward(
        self, batch: SpectralBatch, mask_ratio: float = 0.75, mask_noise: Tensor | None = None
    ) -> SpecAwareOutput:
        image, p = dense_image(batch), self.config.patch_size
        tokens, meta = hyper_embedding(self.patch_embed, image, batch)
        tokens = tokens + positions(self, batch, tokens.shape[-1])
        if mask_noise is None:
            mask_noise = torch.rand(tokens.shape[:2], device=tokens.device)
        count = tokens.shape[1]
        kept = int(count * (1 - mask_ratio))
        order = mask_noise.argsort(dim=1)
        place = order.argsort(dim=1)
        visible = tokens.gather(1, order[:, :kept, None].repeat(1, 1, tokens.shape[-1]))
        mask = torch.ones(mask_noise.shape, device=tokens.device)
        mask[:, :kept] = 0
        mask = mask.gather(1, place)

        x = torch.cat([self.cls_token.expand(len(batch), -1, -1), visible], dim=1)
        for layer in self.blocks:
            x = block(layer, x)
        latent = self.norm(x)

        x = self.decoder_embed(latent)
        filled = torch.cat([x[:, 1:], self.mask_token.repeat(len(batch), count - kept, 1).to(x.dtype)], dim=1)
        filled = filled.gather(1, place[..., None].repeat(1, 1, x.shape[-1]))
        filled = filled + positions(self, batch, x.shape[-1])
        x = torch.cat([x[:, :1].to(filled.dtype), filled], dim=1)
        for layer in self.decoder_blocks:
            x = block(layer, x)
        prediction = hyper_linear(self.decoder_pred, self.decoder_norm(x), meta)[:, 1:]

        bands = batch.max_bands
        spectral, charbonnier, pixels = pixel_losses(
            image_from_patches(prediction, bands, p),
            image_from_patches(patches_from_image(image, p), bands, p),
            pixels_of(mask, p),
        )
        pixels = pixels.sum() + 1e-6
        loss_spectral, loss_charbonnier = spectral.sum() / pixels, charbonnier.sum() / pixels
        return SpecAwareOutput(
            loss=loss_spectral + CHARBONNIER_WEIGHT * loss_charbonnier,
            loss_spectral=loss_spectral,
            loss_charbonnier=loss_charbonnier,
            mask=mask,
            latent=latent,
            prediction=prediction,
        )


class PublishedEncoder(SpecAwareEncoder):
    """SpecAwareEncoder with the published order of computation; takes the same state_dict."""

    @classmethod
    def sharing(cls, model: SpecAwareEncoder) -> PublishedEncoder:
        """Return the published form of ``model``; both use the same parameters."""
        return _sharing(cls, model)

    def forward(self, batch: SpectralBatch) -> SpecAwareFeatures:
        image = dense_image(batch)
        tokens, _ = hyper_embedding(self.patch_embed, image, batch)
        tokens = tokens + positions(self, batch, tokens.shape[-1])
        x = torch.cat([self.cls_token.expand(len(batch), -1, -1), tokens], dim=1)
        depth, after = len(self.blocks), {}
        for number, layer in enumerate(self.blocks, start=1):
            after[number] = x = block(layer, x)
        after[depth] = x = self.norm(x)
        wanted = [-(-depth * quarter // 4) for quarter in range(1, 5)]
        grid = self.patch_grid(batch)
        return SpecAwareFeatures(
            tokens=x[:, 1:], cls=x[:, 0], levels=[after[number][:, 1:].mT.unflatten(-1, grid) for number in wanted]
        )


def _sharing(cls, model):
    with torch.device("meta"):
        twin = cls(model.config)
    for name, child in model.named_children():
        setattr(twin, name, child)
    for name, parameter in model.named_parameters(recurse=False):
        setattr(twin, name, parameter)
    return twin.train(model.training)
