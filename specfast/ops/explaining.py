"""explain: what the planner would do with an operator of given shapes, and what that should take."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from specfast.ops.backends import choose_backend, preferred_backend
from specfast.ops.cost import OPERATORS, Cost, cost
from specfast.ops.planner import FORMS, choose_form, multiply_adds


@dataclass(frozen=True)
class Explanation:
    """The planner's decisions for one call; ``str()`` says them in words.

    Attributes:
        op, backend: the operator, and the backend that would run it.
        form: of the factor matmul, or None where there is only one.
        multiply_adds: of each form's own parts.
        costs: :class:`Cost` by mode (``"forward"``, ``"backward"``).
        seconds: predicted floor by mode, or empty when no peaks were given.
        reason: why this form.
    """

    op: str
    backend: str
    form: str | None
    multiply_adds: dict[str, int]
    costs: dict[str, Cost]
    seconds: dict[str, float]
    bound: dict[str, str]
    reason: str

    def __str__(self) -> str:
        lines = [f"{self.op}: backend {self.backend}" + (f", form {self.form} ({self.reason})" if self.form else "")]
        for form, count in self.multiply_adds.items():
            lines.append(f"  {form:12} {2 * count / 1e9:9.3f} GFLOP in the parts that differ")
        for mode, one in self.costs.items():
            line = f"  {mode:12} {one.flop / 1e9:9.3f} GFLOP  {one.bytes / 1e6:9.2f} MB"
            if self.seconds:
                line += f"  at least {1e3 * self.seconds[mode]:.3f} ms ({self.bound[mode]})"
            lines.append(line)
        return "\n".join(lines)


def explain(
    op: str,
    *,
    samples: int,
    bands: int,
    tokens: int,
    width: int = 768,
    rank: int = 64,
    hidden: int = 64,
    pixels: int = 64,
    patches: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    form: str | None = None,
    flops: float | None = None,
    bandwidth: float | None = None,
) -> Explanation:
    """Say what an operator of these shapes would do here; ``print(explain("hyper_embed", ...))``.

    Args:
        op: an operator's name.
        samples, bands, tokens, width, rank, hidden, pixels, patches: sizes as for :func:`specfast.ops.cost`.
        dtype, device: of the inputs; the device need not exist here.
        form: as passed to the operator.
        flops, bandwidth: peaks of the machine in FLOP/s and bytes/s; with both, times are predicted.

    Raises:
        ValueError: unknown operator or form, or one peak without the other.
    """
    if (flops is None) != (bandwidth is None):
        raise ValueError(f"explain: flops and bandwidth go together; got flops={flops}, bandwidth={bandwidth}")
    if op not in OPERATORS:
        raise ValueError(f"explain: op must be one of {', '.join(OPERATORS)}; got {op!r}")
    sizes = {"samples": samples, "bands": bands, "tokens": tokens, "width": width, "rank": rank, "hidden": hidden}
    factored = op.startswith("hyper_")
    chosen = choose_form(op, form, **sizes) if factored else None
    counts = {name: multiply_adds(name, **sizes) for name in FORMS} if factored else {}
    modes = ("forward", "backward")
    itemsize = torch.empty(0, dtype=dtype).element_size()
    costs = {mode: cost(op, mode, chosen, **sizes, pixels=pixels, patches=patches, itemsize=itemsize) for mode in modes}
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        backend = f"{preferred_backend('cuda')} (where there is a CUDA device)"
    else:
        backend, _ = choose_backend(f"{op}_fwd", *_examples(op, sizes, pixels, patches, dtype, device, chosen))
    if not factored or chosen != min(counts, key=counts.get):
        reason = "asked for"
    else:
        other = next(name for name in FORMS if name != chosen)
        reason = f"{counts[other] / max(counts[chosen], 1):.1f} times less arithmetic than {other}"
    given = flops is not None
    return Explanation(
        op=op,
        backend=backend,
        form=chosen,
        multiply_adds=counts,
        costs=costs,
        seconds={mode: one.floor(flops, bandwidth) for mode, one in costs.items()} if given else {},
        bound={
            mode: "bound by arithmetic" if one.flop / flops > one.bytes / bandwidth else "bound by memory"
            for mode, one in costs.items()
        }
        if given
        else {},
        reason=reason,
    )


def _examples(
    op: str, sizes: dict[str, int], pixels: int, patches: int, dtype: torch.dtype, device: str, form: str | None
) -> list:
    """All arguments of the registered operator, its tensors of the right shapes but without memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # heavy, and seldom wanted

    samples, bands, tokens, width, rank, hidden = sizes.values()
    side = math.isqrt(pixels)

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    with FakeTensorMode():
        cu_bands = empty(samples + 1, dtype=torch.int32)
        if op == "patch_pool":
            index = empty(samples, tokens, dtype=torch.int64)
            return [empty(bands, side, patches * side), index, cu_bands, side, (1, patches), None, None]
        if op == "hyper_embed":
            factors = empty(bands, hidden), empty(width, rank, hidden), empty(width, rank)
            return [empty(bands, tokens, pixels), empty(bands, rank, pixels), *factors, cu_bands, form]
        of_loss = [empty(bands, tokens, pixels), empty(samples, tokens, pixels, dtype=torch.bool), cu_bands]
        if op == "spectral_loss":
            return [empty(bands, tokens, pixels), *of_loss]
        factors = empty(bands, hidden), empty(rank, width, hidden), empty(rank, width)
        linear = [empty(samples, tokens, width), *factors, empty(bands, pixels, rank), empty(bands, pixels)]
        return [*linear, *(of_loss if op == "hyper_linear_loss" else [cu_bands]), form]
