"""What the operators hold: never [N, C, E] of a sample, a stored prediction, or (re-associated) a generated factor."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from specfast import ops
from specfast.kernels import eager, reference
from tests.ops.conftest import Case

# Bands, tokens and width such that what must not be held is far larger than what may be.
CASE = Case((160, 160), 128, pixels=16, rank=8, hidden=8, width=256)
FLOAT = 4


class PeakMemory(TorchDispatchMode):
    """Bytes of the storages made inside and alive at the same time, at most; and the largest of them."""

    def __init__(self):
        super().__init__()
        self.alive = self.peak = self.largest = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        existing = {a.untyped_storage().data_ptr() for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)}
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in existing and storage not in self.known:
                    size = storage.nbytes()
                    self.known.add(storage)
                    self.alive += size
                    self.peak, self.largest = max(self.peak, self.alive), max(self.largest, size)
                    weakref.finalize(storage, self._freed, size)
        return out

    def _freed(self, size):
        self.alive -= size


def peak_of(function, *args) -> PeakMemory:
    with PeakMemory() as memory, torch.no_grad():
        out = function(*args)
        del out
    return memory


def single(values):
    return [v.float() if v.is_floating_point() else v for v in values.values()]


def test_the_meter_sees_what_the_reference_holds():
    inputs = [*single(CASE.embed()), CASE.cu_bands]
    per_sample_factors = 160 * 8 * 256 * FLOAT
    assert peak_of(reference.hyper_embed, *inputs).largest >= per_sample_factors


def test_hyper_embed():
    inputs = [*single(CASE.embed()), CASE.cu_bands]
    per_band_tokens = 128 * 160 * 256 * FLOAT  # [N, C, E] of one sample
    factors = 160 * 256 * 8 * FLOAT  # U of one sample
    dtokens = torch.randn(2, 128, 256)
    for form in ("direct", "reassociated"):
        _, *saved = eager.hyper_embed_fwd(*inputs, form)
        forward = peak_of(eager.hyper_embed_fwd, *inputs, form)
        backward = peak_of(eager.hyper_embed_bwd, dtokens, *inputs, *saved, form, False)
        assert max(forward.peak, backward.peak) < per_band_tokens
        if form == "reassociated":
            assert max(forward.largest, backward.largest) < factors
        assert sum(t.numel() for t in saved) * FLOAT <= 2 * 128 * 8 * (8 + 1) * FLOAT  # T, nothing of size C


def test_hyper_linear_loss():
    few = Case((160, 160), 32, pixels=16, rank=8, hidden=8, width=256)  # V is what is large
    inputs = [*single(few.linear()), *single(few.target()), few.cu_bands]
    tokens, pixels = 128, 16
    big = Case((160 * 16,) * 2, tokens, pixels=pixels, rank=4, hidden=4, width=16)
    many = [*single(big.linear()), *single(big.target()), big.cu_bands]
    prediction = tokens * pixels * 160 * 16 * FLOAT  # of one sample
    factors = 160 * 8 * 256 * FLOAT  # V of one sample
    for form in ("direct", "reassociated"):
        spectral, charbonnier, _, *saved = eager.hyper_linear_loss_fwd(*many, form)
        assert saved[0].numel() == 2 * 3 * tokens * pixels
        backward_inputs = (torch.ones_like(spectral), torch.ones_like(charbonnier), *many, *saved, form)
        # tiles are bounded, so the largest temporary is too, however many bands there are
        assert peak_of(eager.hyper_linear_loss_fwd, *many, form).largest < prediction / 2
        assert peak_of(eager.hyper_linear_loss_bwd, *backward_inputs).largest < prediction / 2
    held = {}
    for form in ("direct", "reassociated"):
        _, _, _, *saved = eager.hyper_linear_loss_fwd(*inputs, form)
        arguments = (torch.ones(2), torch.ones(2), *inputs, *saved, form)
        held[form] = max(
            peak_of(eager.hyper_linear_loss_fwd, *inputs, form).largest,
            peak_of(eager.hyper_linear_loss_bwd, *arguments).largest,
        )
    assert held["reassociated"] < factors <= held["direct"]


def test_what_autograd_saves_of_the_loss():
    inputs, constants = CASE.linear(), CASE.target()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.hyper_linear_loss(**{k: v.requires_grad_() for k, v in inputs.items()}, **constants, cu_bands=CASE.cu_bands)
    given = {t.data_ptr() for t in [*inputs.values(), *constants.values(), CASE.cu_bands]}
    extra = sum(t.numel() for t in saved if t.data_ptr() not in given and t.is_floating_point())
    rank, inner = CASE.rank, CASE.hidden
    # three sums a pixel (the fourth is not needed again), and the tokens' moments with their offset
    assert extra == 2 * 128 * (3 * 16 + rank * (inner + 1))
