"""Flat buffers: what is averaged lies side by side in memory, so that a round sends it as it is, without packing."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

ALIGNMENT = 64  # bytes: a cache line, and the widest vector load
BUCKET_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Slot:
    """Where one tensor lies: elements ``start`` to ``start + length`` of flat buffer ``flat``."""

    flat: int
    start: int
    length: int


class FlatBuffers:
    """One flat buffer per dtype and device, whose slices the given tensors become.

    Each tensor's memory is replaced once, here, by a slice of 64-byte-aligned elements of a flat buffer; its values,
    shape and (where it is dense) strides stay, and so do its gradient and an optimizer's state for it. Afterwards
    nothing is ever moved again: the tensors can be captured in CUDA graphs, and averaging a flat buffer in place
    averages them. Tensors that share their memory go on sharing it. Complex ones lie in a buffer of their real type.

    Args:
        tensors: by name, in the order in which they are to lie; the same on all ranks.
        places: who holds the tensors: a name, a dictionary and the key in it, for each. See :meth:`reclaim`.
        bucket_bytes: a flat buffer is exchanged in buckets of this size, so that sending one and averaging another
            overlap.

    Attributes:
        flats: the flat buffers, one-dimensional.
        buckets: slices of them, in order.
        slots: where each tensor lies, by its name.
        tensors: as given.

    Raises:
        ValueError: a tensor is sparse, quantized, without memory, overlaps itself, or overlaps another in part.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        *,
        places: Sequence[tuple[str, dict[str, Tensor | None], str]] = (),
        bucket_bytes: int = BUCKET_BYTES,
    ):
        if bucket_bytes < ALIGNMENT or bucket_bytes % ALIGNMENT:
            raise ValueError(f"bucket_bytes: expected a multiple of {ALIGNMENT}; got {bucket_bytes}")
        self.slots: dict[str, Slot] = {}
        self.tensors = dict(tensors)
        strides = {name: _dense_strides(name, tensor) for name, tensor in tensors.items()}
        _refuse_partial_overlap(tensors)
        layout = _Layout()
        seen: dict[tuple, str] = {}  # memory already laid out
        for name, tensor in tensors.items():
            twin = seen.setdefault(_memory(tensor), name) if tensor.numel() else name
            self.slots[name] = self.slots[twin] if twin != name else layout.add(tensor, tensor.dtype)
        self.flats = layout.flats()
        self.buckets = _buckets(self.flats, bucket_bytes)
        descriptions = [
            (name, list(tensor.shape), strides[name], str(tensor.dtype), tensor.device.type)
            for name, tensor in tensors.items()
        ]
        self.descriptions: list[str] = [json.dumps(entry) for entry in descriptions]
        with torch.no_grad():
            for name, tensor in tensors.items():
                view = _view(self.flats, self.slots[name], tensor.dtype, tensor.shape, strides[name])
                view.copy_(tensor)
                tensor.data = view
        held = places or [(name, self.tensors, name) for name in self.tensors]
        self._places = [(name, holder, key, holder[key], holder[key].data_ptr()) for name, holder, key in held]

    @property
    def nbytes(self) -> int:
        return sum(flat.nbytes for flat in self.flats)

    def digest(self) -> str:
        """Return a hash of names, shapes, strides and dtypes: ranks with equal ones can average."""
        return hashlib.sha256("\n".join(self.descriptions).encode()).hexdigest()

    @torch.no_grad()
    def reclaim(self) -> str | None:
        """Return the name of a tensor that no longer lies here, because something replaced it or its memory, or None.

        A buffer that was assigned anew (``self.average = 0.9 * self.average + 0.1 * x``) is no such thing: its values
        are copied here, and the module gets the tensor back whose place this is.
        """
        for name, holder, key, tensor, address in self._places:
            found = holder.get(key)
            if found is not None and found.data_ptr() == address:
                continue
            alike = found is not None and (found.shape, found.dtype, found.device) == _kind(tensor)
            if found is tensor or not alike or isinstance(tensor, Parameter):
                return name
            tensor.copy_(found)
            holder[key] = tensor
        return None

    def parts(self, names: Sequence[str]) -> list[Tensor]:
        """Return the slices of the given tensors, flat, neighbors in one piece with the zeros between them."""
        pieces: list[list[int]] = []
        for slot in sorted({self.slots[name] for name in names}, key=lambda slot: (slot.flat, slot.start)):
            step = ALIGNMENT // self.flats[slot.flat].element_size()
            begin, end = slot.start, slot.start + slot.length
            if pieces and pieces[-1][0] == slot.flat and begin == -(-pieces[-1][2] // step) * step:
                pieces[-1][2] = end
            elif slot.length:
                pieces.append([slot.flat, begin, end])
        return [self.flats[flat][begin:end] for flat, begin, end in pieces]


class PackedTensors:
    """A flat copy of tensors that must stay where they are, such as an optimizer's state: packed, and unpacked again.

    Args:
        likes: tensors of the shapes, strides and devices of those to be packed.
        dtypes: of those to be packed.

    Attributes:
        flats: one flat buffer per dtype and device.
        buckets: slices of them.
    """

    def __init__(self, likes: Sequence[Tensor], dtypes: Sequence[torch.dtype], *, bucket_bytes: int = BUCKET_BYTES):
        layout = _Layout()
        slots = [layout.add(like, dtype) for like, dtype in zip(likes, dtypes, strict=True)]
        self.flats = layout.flats()
        self.buckets = _buckets(self.flats, bucket_bytes)
        self._views = [
            _view(self.flats, slot, dtype, like.shape, _dense_strides("tensor", like))
            for slot, like, dtype in zip(slots, likes, dtypes, strict=True)
        ]

    @property
    def nbytes(self) -> int:
        return sum(flat.nbytes for flat in self.flats)

    @torch.no_grad()
    def pack(self, tensors: Sequence[Tensor | None]) -> None:
        """Copy the tensors here; zeros for those that are not there."""
        absent = [view for view, tensor in zip(self._views, tensors, strict=True) if tensor is None]
        if absent:
            torch._foreach_zero_(absent)
        self._copy([(view, tensor) for view, tensor in zip(self._views, tensors, strict=True) if tensor is not None])

    @torch.no_grad()
    def unpack(self, tensors: Sequence[Tensor | None]) -> None:
        """Copy what lies here to the tensors that are there."""
        self._copy([(tensor, view) for view, tensor in zip(self._views, tensors, strict=True) if tensor is not None])

    @staticmethod
    def _copy(pairs: list[tuple[Tensor, Tensor]]) -> None:
        if pairs:
            targets, sources = zip(*pairs, strict=True)
            torch._foreach_copy_(targets, sources)


class _Layout:
    """Lengths of flat buffers, as tensors are given places in them."""

    def __init__(self):
        self._lengths: dict[tuple[torch.dtype, torch.device], int] = {}

    def add(self, tensor: Tensor, dtype: torch.dtype) -> Slot:
        """Return the place of a tensor that is kept in a dtype."""
        key = (_stored_dtype(dtype), tensor.device)
        start = self._lengths.setdefault(key, 0)
        length = tensor.numel() * (2 if dtype.is_complex else 1)
        step = ALIGNMENT // key[0].itemsize
        self._lengths[key] = start + -(-length // step) * step
        return Slot(list(self._lengths).index(key), start, length)

    def flats(self) -> list[Tensor]:
        return [torch.zeros(length, dtype=dtype, device=device) for (dtype, device), length in self._lengths.items()]


def _buckets(flats: Sequence[Tensor], bucket_bytes: int) -> list[Tensor]:
    return [bucket for flat in flats if flat.numel() for bucket in flat.split(bucket_bytes // flat.element_size())]


def _view(
    flats: Sequence[Tensor], slot: Slot, dtype: torch.dtype, shape: Sequence[int], strides: Sequence[int]
) -> Tensor:
    flat = flats[slot.flat][slot.start : slot.start + slot.length]
    if dtype.is_complex:
        flat = torch.view_as_complex(flat.view(-1, 2))
    return flat.as_strided(shape, strides)


def _stored_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


def _kind(tensor: Tensor) -> tuple:
    return tensor.shape, tensor.dtype, tensor.device


def _memory(tensor: Tensor) -> tuple:
    """Return what tells whether two tensors are the same numbers in memory, arranged alike."""
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _dense_strides(name: str, tensor: Tensor) -> list[int]:
    """Return the tensor's strides, or where it has gaps those without them."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise ValueError(f"{name}: expected a dense tensor; got layout {tensor.layout}, dtype {tensor.dtype}")
    if tensor.is_meta:
        raise ValueError(f"{name}: expected a tensor with memory; got one on the meta device")
    if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        raise ValueError(
            f"{name}: expected elements with memory of their own; got an expanded tensor of shape "
            f"{list(tensor.shape)} and strides {list(tensor.stride())}: make it contiguous first"
        )
    return list(torch.empty_like(tensor, device="meta", memory_format=torch.preserve_format).stride())


def _refuse_partial_overlap(tensors: Mapping[str, Tensor]) -> None:
    """Raise where two tensors share some memory, but are not the same numbers: a copy would part them silently."""
    dense = [(name, tensor) for name, tensor in tensors.items() if tensor.numel() and _is_dense(tensor)]
    dense.sort(key=lambda item: (str(item[1].device), item[1].data_ptr(), item[1].nbytes))
    for (name, tensor), (other, following) in itertools.pairwise(dense):
        overlap = tensor.device == following.device and following.data_ptr() < tensor.data_ptr() + tensor.nbytes
        if overlap and _memory(tensor) != _memory(following):
            raise ValueError(
                f"{other}: shares its memory with {name} in part or in another arrangement; expected tensors that are "
                "the same numbers, or have none in common"
            )


def _is_dense(tensor: Tensor) -> bool:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return last + 1 == tensor.numel()
