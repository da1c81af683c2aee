"""The operators with what the model needs around them: the unit in which forms can be compared fairly.

``hyper_embed``: from the condition F [S, w] and the image to tokens: pooling, unfolding or gathering, the factor
generators, the embedding, the choice of kept tokens. ``hyper_linear_loss``: from the condition, the decoded tokens and
the target to the two losses, generators included. The target is there in the layout each form needs (the image, or the
removed patches). Generators are the model's own modules, without dropout; 16-bit rows run under autocast, as training.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import plain, published
from bench.cases import Case
from bench.operators import Random, cost_of, loss_constants, plain_losses, predict_plain, take, take_by_band
from bench.shapes import Shape
from specfast import ops
from specfast.kernels import reference
from specfast.models.condition import MatrixGenerator, hidden_and_last


def generators(width: int, rows: int, rank: int, columns: int, device: torch.device) -> MatrixGenerator:
    """The model's factor generators with fan-in weights and no dropout."""
    torch.manual_seed(0)
    module = MatrixGenerator(width, rows, rank, columns)
    module.initialize_by_fan_in()
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return module.to(device)


def generation_cost(module: MatrixGenerator, shape: Shape, large: nn.Module, mode: str, itemsize: int) -> ops.Cost:
    """The generators' dense layers, without the last one of the large factor, which the operator's cost holds."""
    layers = [
        layer
        for part in (module.u_generator, module.v_generator)
        for layer in part
        if isinstance(layer, nn.Linear) and layer is not large
    ]
    numbers = sum(layer.weight.numel() for layer in layers)
    forward = ops.Cost(2 * shape.all_bands * numbers, numbers * itemsize)
    backward = ops.Cost(2 * forward.flop, 2 * forward.bytes)
    return {"forward": forward, "backward": backward, "full": forward + backward}[mode]


def hyper_embed(shape: Shape, dtype: torch.dtype, device: torch.device) -> Case:
    rand, sizes, p = Random(device, torch.float32), shape.sizes, shape.sizes.patch
    module = generators(sizes.condition, sizes.width, sizes.rank, sizes.pixels, device)
    module.bias_generator.requires_grad_(False)  # of the sample, and the same in every form
    kept, _ = rand.masking(shape)
    constants = {
        "image": rand.normal(shape.all_bands, shape.side, shape.side),
        "kept": kept,
        "cu_bands": shape.cu_bands(device),
    }
    by_sample = (shape.samples, shape.bands)

    def as_published(x, c, module):
        image = c["image"].unflatten(0, by_sample)
        average, maximum = published.pooled(image, p)
        condition = x["condition"].unflatten(0, by_sample)
        factors = published.factors(module, condition, sizes.width)
        tokens = published.embed(published.unfolded(image, p), *factors)
        return take(tokens, c["kept"]), average.flatten(0, 1), maximum.flatten(0, 1)

    def operands(x: dict[str, Tensor], module: MatrixGenerator) -> tuple[Tensor, ...]:
        hidden, weight, bias = hidden_and_last(module.u_generator, x["condition"])
        factors_v = module.v_generator(x["condition"]).unflatten(-1, (sizes.rank, -1))
        return factors_v, hidden, weight.unflatten(0, (-1, sizes.rank)), bias.unflatten(0, (-1, sizes.rank))

    def reassociated(x, c, module):
        image = c["image"].unflatten(0, by_sample)
        average, maximum = published.pooled(image, p)
        factors_v, hidden, *shared = operands(x, module)
        dense = (value.unflatten(0, by_sample) for value in (factors_v, hidden))
        tokens = plain.hyper_embed(plain.kept_patches(image, c["kept"], p), *dense, *shared)
        return tokens, average.flatten(0, 1), maximum.flatten(0, 1)

    def exact(x, c, module):
        average, maximum = published.pooled(c["image"].unflatten(0, by_sample), p)
        patches = take_by_band(published.unfolded(c["image"][:, None], p).squeeze(2), c["kept"])
        tokens = reference.hyper_embed_reassociated(patches, *operands(x, module), c["cu_bands"])
        return tokens, average.flatten(0, 1), maximum.flatten(0, 1)

    def ours(x, c, module):
        patches, average, maximum = ops.patch_pool(c["image"], c["kept"], c["cu_bands"], p)
        return ops.hyper_embed(patches, *operands(x, module), c["cu_bands"]), average, maximum

    def fixed_bands(_, c, convolution):
        return (convolution(c["image"].unflatten(0, by_sample)),)

    operator = cost_of("hyper_embed", shape, dtype, tokens=shape.kept, width=sizes.width)
    pool = cost_of("patch_pool", shape, dtype, tokens=shape.kept)

    def cost(mode: str) -> ops.Cost:
        # the image gets no gradient
        total = operator(mode) + generation_cost(module, shape, module.u_generator[-1], mode, dtype.itemsize)
        if mode == "backward":
            return total
        # the kept patches come and go within the module: not written by the one and read by the other
        between = 2 * shape.all_bands * shape.kept * sizes.pixels * dtype.itemsize
        return total + pool("forward") + ops.Cost(0, -between)

    return Case(
        {"condition": rand.normal(shape.all_bands, sizes.condition)},
        constants,
        {"reference": as_published, "reassociated": reassociated, "specfast": ours},
        exact=exact,
        cost=cost,
        unchecked={"conv2d": (fixed_bands, nn.Conv2d(shape.bands, sizes.width, p, p).to(device))},
        module=module,
    )


def hyper_linear_loss(shape: Shape, dtype: torch.dtype, device: torch.device) -> Case:
    rand, sizes, p = Random(device, torch.float32), shape.sizes, shape.sizes.patch
    module = generators(sizes.condition, sizes.pixels, sizes.rank, sizes.decoder_width, device)
    by_sample = (shape.samples, shape.bands)

    def as_published(x, c, module):
        condition = x["condition"].unflatten(0, by_sample)
        factors = published.factors(module, condition, sizes.pixels)
        prediction = published.predict(x["tokens"], *factors, module.bias_generator(condition))
        return published.pixel_losses(
            published.image_from_patches(prediction, shape.bands, p), c["image"], c["counted"]
        )[:2]

    def operands(x: dict[str, Tensor], c: dict[str, Tensor], module: MatrixGenerator) -> dict[str, Tensor]:
        condition = x["condition"]
        hidden, weight, bias = hidden_and_last(module.v_generator, condition)
        return {
            "tokens": take(x["tokens"], c["removed"]),
            "hidden": hidden,
            "weight": weight.unflatten(0, (sizes.rank, -1)),
            "bias": bias.unflatten(0, (sizes.rank, -1)),
            "factors_u": module.u_generator(condition).unflatten(-1, (-1, sizes.rank)),
            "pixel_bias": module.bias_generator(condition),
            "cu_bands": c["cu_bands"],
        }

    def reassociated(x, c, module):
        given = operands(x, c, module)
        del given["cu_bands"]
        return plain_losses(predict_plain(given, shape.samples), c)

    def exact(x, c, module):
        prediction = reference.hyper_linear_reassociated(**operands(x, c, module))
        return reference.spectral_loss(prediction, c["target"], c["valid"], c["cu_bands"])[:2]

    def ours(x, c, module):
        return ops.hyper_linear_loss(**operands(x, c, module), target=c["target"], valid=c["valid"])[:2]

    operator = cost_of("hyper_linear_loss", shape, dtype, tokens=shape.removed, width=sizes.decoder_width)
    large = module.v_generator[-1]
    return Case(
        {
            "condition": rand.normal(shape.all_bands, sizes.condition),
            "tokens": F.layer_norm(
                rand.normal(shape.samples, shape.patches, sizes.decoder_width), (sizes.decoder_width,)
            ),
        },
        loss_constants(rand, shape, device),
        {"reference": as_published, "reassociated": reassociated, "specfast": ours},
        exact=exact,
        cost=lambda mode: operator(mode) + generation_cost(module, shape, large, mode, dtype.itemsize),
        module=module,
    )


MODULES = {"hyper_embed": hyper_embed, "hyper_linear_loss": hyper_linear_loss}
