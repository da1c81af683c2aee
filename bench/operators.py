"""The operators: same inputs for the published form, re-associated plain PyTorch, and specfast.ops.

``reference`` works as the published code does: it embeds all patches and drops three quarters of the tokens, predicts
all tokens and ignores the kept ones, and stores what it generates. ``reassociated`` is bench/plain.py. What must come
out is computed in float64 by ``specfast.kernels.reference``, which is never timed.

Legend: B samples, C bands, S = B C, N patches, K kept, M removed, P pixels a patch, R rank, k hidden, E and D widths.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import plain, published
from bench.cases import Case
from bench.shapes import Shape
from specfast import ops
from specfast.kernels import reference


class Random:
    """Random numbers of one case, rounded to its dtype."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator(device).manual_seed(0)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(*shape, generator=self.generator, device=self.device)
        return values.mul_(scale).to(self.dtype)

    def masking(self, shape: Shape) -> tuple[Tensor, Tensor]:
        """Numbers of kept [B, K] and removed [B, M] patches."""
        noise = torch.rand(shape.samples, shape.patches, generator=self.generator, device=self.device)
        order = noise.argsort(dim=1)
        return order[:, : shape.kept].contiguous(), order[:, shape.kept :].contiguous()


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` [B, K] of [B, N, X]."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def take_by_band(patches: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` [B, K] of [S, N, P] for every band."""
    samples = index.shape[0]
    by_sample = patches.unflatten(0, (samples, -1))
    index = index[:, None, :, None].expand(-1, by_sample.shape[1], -1, patches.shape[-1])
    return by_sample.gather(2, index).flatten(0, 1)


def cost_of(op: str, shape: Shape, dtype: torch.dtype, **changes: int) -> Callable[[str], ops.Cost]:
    """``ops.cost`` of an operator at this shape, by mode."""
    sizes = shape.sizes
    arguments = {
        "samples": shape.samples,
        "bands": shape.all_bands,
        "rank": sizes.rank,
        "hidden": sizes.hidden,
        "pixels": sizes.pixels,
        "patches": shape.patches,
        "itemsize": dtype.itemsize,
        **changes,
    }
    return functools.partial(lambda mode: ops.cost(op, mode, **arguments))


def patch_pool(shape: Shape, dtype: torch.dtype, device: torch.device) -> Case:
    rand, p = Random(device, dtype), shape.sizes.patch
    kept, _ = rand.masking(shape)
    constants = {
        "image": rand.normal(shape.all_bands, shape.side, shape.side),
        "kept": kept,
        "cu_bands": shape.cu_bands(device),
    }

    def as_published(_, c, __):
        image = c["image"].unflatten(0, (shape.samples, shape.bands))
        average, maximum = published.pooled(image, p)
        patches = published.unfolded(image, p).transpose(1, 2).flatten(0, 1)
        return take_by_band(patches, c["kept"]), average.flatten(0, 1), maximum.flatten(0, 1)

    def ours(_, c, __):
        return ops.patch_pool(c["image"], c["kept"], c["cu_bands"], p)

    return Case(
        {},
        constants,
        {"reference": as_published, "specfast": ours},
        exact=as_published,
        cost=cost_of("patch_pool", shape, dtype, tokens=shape.kept),
    )


def hyper_embed(shape: Shape, dtype: torch.dtype, device: torch.device) -> Case:
    rand, sizes = Random(device, dtype), shape.sizes
    kept, _ = rand.masking(shape)
    patches = rand.normal(shape.all_bands, shape.patches, sizes.pixels)
    inputs = {
        "factors_v": rand.normal(shape.all_bands, sizes.rank, sizes.pixels, scale=0.1),
        "hidden": rand.normal(shape.all_bands, sizes.hidden),
        "weight": rand.normal(sizes.width, sizes.rank, sizes.hidden, scale=0.1),
        "bias": rand.normal(sizes.width, sizes.rank, scale=0.1),
    }
    constants = {
        "patches": patches.unflatten(0, (shape.samples, shape.bands)).transpose(1, 2).contiguous(),  # as unfolded
        "kept_patches": take_by_band(patches, kept),
        "kept": kept,
        "cu_bands": shape.cu_bands(device),
    }

    def as_published(x, c, _):
        factors_u = F.linear(x["hidden"], x["weight"].flatten(0, 1), x["bias"].flatten())
        factors_u = factors_u.view(shape.samples, shape.bands, sizes.width, sizes.rank)
        factors_v = x["factors_v"].unflatten(0, (shape.samples, shape.bands))
        return (take(published.embed(c["patches"], factors_u, factors_v), c["kept"]),)

    def reassociated(x, c, _):
        dense = {name: x[name].unflatten(0, (shape.samples, -1)) for name in ("factors_v", "hidden")}
        patches = c["kept_patches"].unflatten(0, (shape.samples, -1))
        return (plain.hyper_embed(patches, **dense, weight=x["weight"], bias=x["bias"]),)

    def exact(x, c, _):
        return (reference.hyper_embed_reassociated(c["kept_patches"], **x, cu_bands=c["cu_bands"]),)

    def ours(x, c, _):
        return (ops.hyper_embed(c["kept_patches"], **x, cu_bands=c["cu_bands"]),)

    return Case(
        inputs,
        constants,
        {"reference": as_published, "reassociated": reassociated, "specfast": ours},
        exact=exact,
        cost=cost_of("hyper_embed", shape, dtype, tokens=shape.kept, width=sizes.width),
    )


def _linear_inputs(rand: Random, shape: Shape) -> dict[str, Tensor]:
    sizes = shape.sizes
    return {
        "tokens": rand.normal(shape.samples, shape.patches, sizes.decoder_width),
        "hidden": rand.normal(shape.all_bands, sizes.hidden),
        "weight": rand.normal(sizes.rank, sizes.decoder_width, sizes.hidden, scale=0.05),
        "bias": rand.normal(sizes.rank, sizes.decoder_width, scale=0.05),
        "factors_u": rand.normal(shape.all_bands, sizes.pixels, sizes.rank, scale=0.1),
        "pixel_bias": rand.normal(shape.all_bands, sizes.pixels),
    }


def predict_plain(x: dict[str, Tensor], samples: int) -> Tensor:
    """[B, C, M, P] by the best plain PyTorch."""
    dense = {name: x[name].unflatten(0, (samples, -1)) for name in ("hidden", "factors_u", "pixel_bias")}
    return plain.hyper_linear(x["tokens"], weight=x["weight"], bias=x["bias"], **dense)


def _predict_as_published(x: dict[str, Tensor], shape: Shape) -> Tensor:
    """[B, N, P * C]."""
    sizes, by_sample = shape.sizes, (shape.samples, shape.bands)
    factors_v = F.linear(x["hidden"], x["weight"].flatten(0, 1), x["bias"].flatten())
    return published.predict(
        x["tokens"],
        x["factors_u"].unflatten(0, by_sample),
        factors_v.view(*by_sample, sizes.rank, sizes.decoder_width),
        x["pixel_bias"].unflatten(0, by_sample),
    )


def hyper_linear(shape: Shape, dtype: torch.dtype, device: torch.device) -> Case:
    """All tokens are predicted, as when an image is reconstructed; compared as [B, C, N, P]."""
    rand, by_sample = Random(device, dtype), (shape.samples, shape.bands)

    def as_published(x, _, __):
        return (_predict_as_published(x, shape).unflatten(2, (-1, shape.bands)).permute(0, 3, 1, 2),)

    def reassociated(x, _, __):
        return (predict_plain(x, shape.samples),)

    def exact(x, c, _):
        return (reference.hyper_linear_reassociated(**x, cu_bands=c["cu_bands"]).unflatten(0, by_sample),)

    def ours(x, c, _):
        return (ops.hyper_linear(**x, cu_bands=c["cu_bands"]).unflatten(0, by_sample),)

    return Case(
        _linear_inputs(rand, shape),
        {"cu_bands": shape.cu_bands(device)},
        {"reference": as_published, "reassociated": reassociated, "specfast": ours},
        exact=exact,
        cost=cost_of("hyper_linear", shape, dtype, tokens=shape.patches, width=shape.sizes.decoder_width),
    )


def loss_constants(rand: Random, shape: Shape, device: torch.device) -> dict[str, Tensor]:
    """The target in the layout each form needs: the whole image and its mask, or the removed patches."""
    p = shape.sizes.patch
    kept, removed = rand.masking(shape)
    image = rand.normal(shape.samples, shape.bands, shape.side, shape.side)
    mask = torch.ones(shape.samples, shape.patches, device=device).scatter(1, kept, 0.0)
    patches = published.unfolded(image, p).transpose(1, 2).flatten(0, 1)
    # a slice of all the patches, as the model has it
    ordered = take_by_band(patches, torch.cat([kept, removed], dim=1))
    return {
        "image": image,
        "counted": published.pixels_of(mask, p).to(image.dtype),
        "target": ordered[:, shape.kept :],
        "valid": torch.ones(shape.samples, shape.removed, p * p, dtype=torch.bool, device=device),
        "removed": removed,
        "cu_bands": shape.cu_bands(device),
    }


def plain_losses(prediction: Tensor, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The two losses of a prediction [B, C, M, P] in plain PyTorch."""
    target = given["target"].unflatten(0, prediction.shape[:2])
    return published.pixel_losses(prediction, target, given["valid"].to(prediction.dtype))[:2]


def hyper_linear_loss(shape: Shape, dtype: torch.dtype, device: torch.device) -> Case:
    rand, p = Random(device, dtype), shape.sizes.patch

    def as_published(x, c, _):
        prediction = published.image_from_patches(_predict_as_published(x, shape), shape.bands, p)
        return published.pixel_losses(prediction, c["image"], c["counted"])[:2]

    def of_removed(x, c):
        x = {**x, "tokens": take(x["tokens"], c["removed"])}
        return x, {name: c[name] for name in ("target", "valid", "cu_bands")}

    def reassociated(x, c, _):
        x, given = of_removed(x, c)
        return plain_losses(predict_plain(x, shape.samples), given)

    def exact(x, c, _):
        x, given = of_removed(x, c)
        prediction = reference.hyper_linear_reassociated(**x, cu_bands=given["cu_bands"])
        return reference.spectral_loss(prediction, **given)[:2]

    def ours(x, c, _):
        x, given = of_removed(x, c)
        return ops.hyper_linear_loss(**x, **given)[:2]

    return Case(
        _linear_inputs(rand, shape),
        loss_constants(rand, shape, device),
        {"reference": as_published, "reassociated": reassociated, "specfast": ours},
        exact=exact,
        cost=cost_of("hyper_linear_loss", shape, dtype, tokens=shape.removed, width=shape.sizes.decoder_width),
    )


def spectral_loss(shape: Shape, dtype: torch.dtype, device: torch.device) -> Case:
    """Of a prediction that is already there, removed patches only; the reference is the loss in plain torch ops."""
    rand, by_sample = Random(device, dtype), (shape.samples, shape.bands)
    constants = {
        "target": rand.normal(shape.all_bands, shape.removed, shape.sizes.pixels),
        "counted": torch.ones(shape.samples, shape.removed, shape.sizes.pixels, device=device, dtype=dtype),
        "valid": torch.ones(shape.samples, shape.removed, shape.sizes.pixels, device=device, dtype=torch.bool),
        "cu_bands": shape.cu_bands(device),
    }

    def as_published(x, c, _):
        prediction, target = (t.unflatten(0, by_sample) for t in (x["prediction"], c["target"]))
        return published.pixel_losses(prediction, target, c["counted"])[:2]

    def ours(x, c, _):
        return ops.spectral_loss(x["prediction"], c["target"], c["valid"], c["cu_bands"])[:2]

    return Case(
        {"prediction": rand.normal(shape.all_bands, shape.removed, shape.sizes.pixels)},
        constants,
        {"reference": as_published, "specfast": ours},
        exact=as_published,
        cost=cost_of("spectral_loss", shape, dtype, tokens=shape.removed),
    )


OPERATORS = {
    "patch_pool": patch_pool,
    "hyper_embed": hyper_embed,
    "hyper_linear": hyper_linear,
    "hyper_linear_loss": hyper_linear_loss,
    "spectral_loss": spectral_loss,
}
