"""The kernels of delta_pack and delta_average_: one pass over flat buffers, the same bits as every other backend.

Legend: n elements, g workers; elements of float8 share a scale, a power of two, in blocks of 256. Codes are made and
read by integer arithmetic, so that GPUs without the conversion, and the interpreter, round as the others do. Offsets
are in units of UNIT elements, 16 wherever rows are multiples of it: then the compiler knows how they align.
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK = tl.constexpr(256)
MAGNITUDE = tl.constexpr(0x7FFFFFFF)  # float32's bits but the sign
INFINITY = tl.constexpr(0x7F800000)
TOO_LARGE = tl.constexpr(0x7F780000)  # 1.9375 * 2^127: rounding to float8 would carry it beyond float32
MOST = tl.constexpr(0x43E00000)  # 448
LEAST_NORMAL = tl.constexpr(0x3C800000)  # 2^-6
UNITS = tl.constexpr(0x46800000)  # 2^14, whose last bit is worth 2^-9
NAN = tl.constexpr(0x7F)


@triton.jit
def bits_of(value):
    return value.to(tl.int32, bitcast=True)


@triton.jit
def number_of(bits):
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def sign_of(bits):
    """The topmost bit as 0 or 1."""
    return (bits >> 31) & 1


@triton.jit
def float8_encode(scaled):
    """int32 codes, to nearest, ties to even; NaN for what is not within 448. Below 2^-6 the adder rounds."""
    bits = bits_of(scaled)
    magnitude = bits & MAGNITUDE
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    small = bits_of(number_of(magnitude) + 16384.0) - UNITS
    code = tl.where(magnitude < LEAST_NORMAL, small, normal)
    return tl.where(magnitude <= MOST, code, NAN) | (sign_of(bits) << 7)


@triton.jit
def float8_decode(code):
    """float32 numbers. Codes below 8 have no leading one: decoded with it, and less its worth."""
    magnitude = code & NAN
    below = magnitude < 8
    bits = ((magnitude | tl.where(below, 8, 0)) << 20) + (120 << 23)
    value = bits_of(number_of(bits) - tl.where(below, 0.015625, 0.0))
    return number_of(tl.where(magnitude == NAN, MAGNITUDE, value) | ((code >> 7) << 31))


@triton.jit
def bfloat16_encode(value):
    """int32 codes, to nearest, ties to even; a NaN stays one."""
    bits = bits_of(value)
    nearest = bits + 0x7FFF + ((bits >> 16) & 1)
    return (tl.where((bits & MAGNITUDE) > INFINITY, bits | 0x400000, nearest) >> 16) & 0xFFFF


@triton.jit
def bfloat16_decode(code):
    return number_of((code & 0xFFFF) << 16)


@triton.jit
def load(pointer, offsets, n, FULL: tl.constexpr):
    if FULL:
        return tl.load(pointer + offsets)
    else:
        return tl.load(pointer + offsets, mask=offsets < n, other=0)


@triton.jit
def store(pointer, offsets, values, n, FULL: tl.constexpr):
    if FULL:
        tl.store(pointer + offsets, values)
    else:
        tl.store(pointer + offsets, values, mask=offsets < n)


@triton.jit
def pack_tile(
    values_ptr,
    reference_ptr,
    residual_ptr,
    packed_ptr,
    scales_ptr,
    n,
    first,
    FLOAT8: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    blocks = first + tl.arange(0, BLOCK_B)
    offsets = blocks[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    total = load(values_ptr, offsets, n, FULL) - load(reference_ptr, offsets, n, FULL)
    total += load(residual_ptr, offsets, n, FULL)
    if FLOAT8:
        magnitude = bits_of(total) & MAGNITUDE
        largest = tl.max(tl.where(magnitude < TOO_LARGE, magnitude, 0), axis=1)
        # a mantissa above that of 448 = 1.75 * 2^8 carries into the exponent
        exponent = tl.maximum(((largest + 0x1FFFFF) >> 23) - 8, 1)
        scale = number_of(exponent << 23)
        store(scales_ptr, blocks, scale, tl.cdiv(n, BLOCK), FULL)
        code = float8_encode(total * number_of((254 - exponent) << 23)[:, None])
        lost = total - float8_decode(code) * scale[:, None]
    else:
        code = bfloat16_encode(total)
        lost = total - bfloat16_decode(code)
    store(packed_ptr, offsets, code.to(packed_ptr.dtype.element_ty), n, FULL)
    left = bits_of(lost)
    store(residual_ptr, offsets, number_of(tl.where((left & MAGNITUDE) < INFINITY, left, 0)), n, FULL)


@triton.jit(do_not_specialize=["n"])
def delta_pack_kernel(
    values_ptr,
    reference_ptr,
    residual_ptr,
    packed_ptr,
    scales_ptr,
    n,
    FLOAT8: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_B
    # without masks, loads and stores are 16 bytes wide
    if (first + BLOCK_B) * BLOCK <= n:
        pack_tile(values_ptr, reference_ptr, residual_ptr, packed_ptr, scales_ptr, n, first, FLOAT8, True, BLOCK_B)
    else:
        pack_tile(values_ptr, reference_ptr, residual_ptr, packed_ptr, scales_ptr, n, first, FLOAT8, False, BLOCK_B)


@triton.jit
def delta_tile(packed_ptr, scales_ptr, blocks, offsets, n, FLOAT8: tl.constexpr, FULL: tl.constexpr):
    code = load(packed_ptr, offsets, n, FULL).to(tl.int32)
    if FLOAT8:
        scale = load(scales_ptr, blocks, tl.cdiv(n, BLOCK), FULL)
        return float8_decode(code) * scale[:, None]
    else:
        return bfloat16_decode(code)


@triton.jit
def average_tile(
    values_ptr,
    reference_ptr,
    packed_ptr,
    scales_ptr,
    n,
    stride,
    members,
    first,
    FLOAT8: tl.constexpr,
    FULL: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    blocks = first + tl.arange(0, BLOCK_B)
    offsets = blocks[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    sums = delta_tile(packed_ptr, scales_ptr, blocks, offsets, n, FLOAT8, FULL)
    for member in range(1, members):
        row = tl.cast(member, tl.int64)
        packed = packed_ptr + row * stride * UNIT
        sums += delta_tile(packed, scales_ptr + row * tl.cdiv(n, BLOCK), blocks, offsets, n, FLOAT8, FULL)
    mean = tl.div_rn(sums, tl.zeros_like(sums) + members)
    store(values_ptr, offsets, load(reference_ptr, offsets, n, FULL) + mean, n, FULL)


@triton.jit(do_not_specialize=["n", "stride", "members"])
def delta_average_kernel(
    values_ptr,
    reference_ptr,
    packed_ptr,
    scales_ptr,
    n,
    stride,
    members,
    FLOAT8: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK_B
    if (first + BLOCK_B) * BLOCK <= n:
        average_tile(
            values_ptr, reference_ptr, packed_ptr, scales_ptr, n, stride, members, first, FLOAT8, True, UNIT, BLOCK_B
        )
    else:
        average_tile(
            values_ptr, reference_ptr, packed_ptr, scales_ptr, n, stride, members, first, FLOAT8, False, UNIT, BLOCK_B
        )
