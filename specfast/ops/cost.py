"""Arithmetic and memory traffic of every operator, from shapes alone: what floors and explanations are made of.

FLOP are two a multiply-add and count the contractions (and the generation of the large factor), without what a backend
may compute again. Bytes count every input read once and every output written once. Image and constants get no gradient,
and patches of hyper_embed get none either, as in training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from specfast.ops.planner import FORMS, cheaper_form, multiply_adds

MODES = ("forward", "backward", "full")
_ELEMENTWISE = 12  # operations a predicted number, in one direction of the loss


@dataclass(frozen=True)
class Cost:
    """FLOP and bytes of one call.

    Attributes:
        flop: floating-point operations, two a multiply-add.
        bytes: each input read once, each output written once.
    """

    flop: int
    bytes: int

    def floor(self, flops: float, bandwidth: float) -> float:
        """Return the least time in seconds on a machine of ``flops`` FLOP/s and ``bandwidth`` bytes/s."""
        return max(self.flop / flops, self.bytes / bandwidth)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flop + other.flop, self.bytes + other.bytes)


def cost(
    op: str,
    mode: str = "full",
    form: str | None = None,
    *,
    samples: int,
    bands: int,
    tokens: int,
    width: int = 0,
    rank: int = 0,
    hidden: int = 0,
    pixels: int = 64,
    patches: int = 0,
    itemsize: int = 4,
) -> Cost:
    """Return what an operator costs.

    Args:
        op: ``"patch_pool"``, ``"hyper_embed"``, ``"hyper_linear"``, ``"hyper_linear_loss"`` or ``"spectral_loss"``.
        mode: ``"forward"``, ``"backward"``, or ``"full"`` for both.
        form: of the factor matmul; None takes the cheaper one.
        samples, bands: B, and S of all samples.
        tokens: K kept (patch_pool, hyper_embed) or M predicted tokens a sample.
        width, rank, hidden, pixels: E or D, R, k, P.
        patches: N, all patches of the image (patch_pool).
        itemsize: bytes a number.

    Raises:
        ValueError: unknown operator, mode or form.
    """
    if op not in _COSTS:
        raise ValueError(f"cost: op must be one of {', '.join(_COSTS)}; got {op!r}")
    if mode not in MODES:
        raise ValueError(f"cost: mode must be one of {', '.join(MODES)}; got {mode!r}")
    if form is not None and form not in FORMS:
        raise ValueError(f"cost: form must be one of {', '.join(FORMS)} or None; got {form!r}")
    sizes = {"samples": samples, "bands": bands, "tokens": tokens, "width": width, "rank": rank, "hidden": hidden}
    form = form or cheaper_form(**sizes)
    forward, backward = _COSTS[op](form, itemsize, pixels=pixels, patches=patches, **sizes)
    return {"forward": forward, "backward": backward, "full": forward + backward}[mode]


def _patch_pool(_, itemsize, *, bands, tokens, pixels, patches, **__):
    image, outputs = bands * patches * pixels, bands * (tokens * pixels + 2 * patches)
    return Cost(2 * image, (image + outputs) * itemsize), Cost(3 * image, (2 * image + outputs) * itemsize)


def _hyper_embed(form, itemsize, *, samples, bands, tokens, width, rank, hidden, pixels, **_):
    shapes = {"samples": samples, "bands": bands, "tokens": tokens, "width": width, "rank": rank, "hidden": hidden}
    project, apply = 2 * bands * tokens * rank * pixels, 2 * multiply_adds(form, **shapes)
    generated = bands * (rank * pixels + hidden) + width * rank * (hidden + 1)
    patches, out = bands * tokens * pixels, samples * tokens * width
    return (
        Cost(project + apply, (patches + generated + out) * itemsize),
        Cost(project + 2 * apply, (patches + 2 * generated + out) * itemsize),
    )


def _linear_inputs(*, samples, bands, tokens, width, rank, hidden, pixels):
    return samples * tokens * width + bands * (hidden + pixels * (rank + 1)) + width * rank * (hidden + 1)


def _linear_flop(form, *, samples, bands, tokens, width, rank, hidden, pixels):
    shapes = {"samples": samples, "bands": bands, "tokens": tokens, "width": width, "rank": rank, "hidden": hidden}
    return 2 * multiply_adds(form, **shapes) + 2 * bands * tokens * rank * pixels


def _hyper_linear(form, itemsize, *, patches, **sizes):
    inputs, flop = _linear_inputs(**sizes), _linear_flop(form, **sizes)
    out = sizes["bands"] * sizes["tokens"] * sizes["pixels"]
    return Cost(flop, (inputs + out) * itemsize), Cost(2 * flop, (2 * inputs + out) * itemsize)


def _hyper_linear_loss(form, itemsize, *, patches, **sizes):
    inputs, flop = _linear_inputs(**sizes), _linear_flop(form, **sizes)
    pixels = sizes["tokens"] * sizes["pixels"]
    target, valid = sizes["bands"] * pixels, sizes["samples"] * pixels
    return (
        Cost(flop + _ELEMENTWISE * target, (inputs + target) * itemsize + valid),
        Cost(2 * flop + _ELEMENTWISE * target, (2 * inputs + target) * itemsize + valid),
    )


def _spectral_loss(_, itemsize, *, samples, bands, tokens, pixels, **__):
    numbers, valid = bands * tokens * pixels, samples * tokens * pixels
    return (
        Cost(_ELEMENTWISE * numbers, 2 * numbers * itemsize + valid),
        Cost(_ELEMENTWISE * numbers, 3 * numbers * itemsize + valid),
    )


def flat_buffer_cost(op: str, *, elements: int, wire: torch.dtype, members: int = 1) -> Cost:
    """Return what ``"delta_pack"`` or ``"delta_average_"`` costs: they are bound by memory, whatever the machine.

    Args:
        op: the operator.
        elements: n.
        wire: type of the packed deltas.
        members: g, whose deltas are averaged.

    Raises:
        ValueError: unknown operator.
    """
    sent = elements * wire.itemsize + (4 * -(-elements // 256) if wire != torch.bfloat16 else 0)
    costs = {
        "delta_pack": Cost(4 * elements, 16 * elements + sent),
        "delta_average_": Cost((members + 2) * elements, 8 * elements + members * sent),
    }
    if op not in costs:
        raise ValueError(f"flat_buffer_cost: op must be one of {', '.join(costs)}; got {op!r}")
    return costs[op]


_COSTS = {
    "patch_pool": _patch_pool,
    "hyper_embed": _hyper_embed,
    "hyper_linear": _hyper_linear,
    "hyper_linear_loss": _hyper_linear_loss,
    "spectral_loss": _spectral_loss,
}
OPERATORS = tuple(_COSTS)
