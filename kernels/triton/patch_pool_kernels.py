"""The kernels of patch_pool: patches and windows of every band, and the gather of kept patches.

Legend: S bands, B samples, H x W pixels, P side of a patch, N patches of an image, K kept patches; rows and columns
count patches. Tiles of whole patches are [P, T, P]: rows of pixels, patches side by side, columns of pixels, so that
neighbors in memory are neighbors in a warp. Strides come in units of UNIT elements, P wherever they are multiples of
it: then the compiler knows how they align.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["patches", "kept"])
def patch_links_kernel(ordered_ptr, order_ptr, links_ptr, patches, kept, BLOCK_Q: tl.constexpr):
    """Where each patch goes, from a sample's index in order and the positions its entries had, both [B, K].

    links[b, q] is the first position k with index[b, k] == q, or -1 if there is none, as links is filled beforehand;
    q = N stands for every entry that is no patch. links[b, N + 1 + k] is the next position with the same q as k, or -1.
    """
    tiles = tl.cdiv(kept, BLOCK_Q)
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    place = tl.program_id(0) % tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    inside = place < kept
    ordered_ptr += sample * kept
    order_ptr += sample * kept
    links_ptr += sample * (patches + 1 + kept)
    q = tl.load(ordered_ptr + place, mask=inside, other=0)
    before = tl.load(ordered_ptr + place - 1, mask=inside & (place > 0), other=-1)
    after = tl.load(ordered_ptr + place + 1, mask=place + 1 < kept, other=-1)
    position = tl.load(order_ptr + place, mask=inside, other=0)
    following = tl.load(order_ptr + place + 1, mask=place + 1 < kept, other=-1)
    tl.store(links_ptr + q, position.to(tl.int32), mask=inside & (q != before))
    tl.store(links_ptr + patches + 1 + position, tl.where(q == after, following, -1).to(tl.int32), mask=inside)


@triton.jit
def patch_tile(rows, columns, P: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_T: tl.constexpr):
    """band, patch [T] and pixel coordinates y [BLOCK_P], x [T, BLOCK_P] of this program, with their masks."""
    strips = tl.cdiv(columns, BLOCK_T)
    program = tl.program_id(0)
    row = program // strips % rows
    band = program // (strips * rows)
    t = program % strips * BLOCK_T + tl.arange(0, BLOCK_T)
    p = tl.arange(0, BLOCK_P)
    x = t[:, None] * P + p[None, :]
    mask = (p < P)[:, None, None] & ((t < columns)[:, None] & (p < P)[None, :])[None, :, :]
    return band, row * columns + t, t < columns, row * P + p, x, mask


@triton.jit
def load_tile(pointer, y, x, stride_h, stride_w, mask, UNIT: tl.constexpr):
    rows = y.to(tl.int64) * stride_h * UNIT
    return tl.load(pointer + rows[:, None, None] + (x.to(tl.int64) * stride_w)[None, :, :], mask=mask, other=0)


@triton.jit
def patch_offsets(P: tl.constexpr, BLOCK_P: tl.constexpr):
    """[BLOCK_P, 1, BLOCK_P]: the place of a pixel in its patch."""
    p = tl.arange(0, BLOCK_P)
    return (p[:, None] * P + p[None, :])[:, None, :]


@triton.jit(do_not_specialize=["stride_s", "stride_h", "rows", "columns", "kept"])
def patch_pool_fwd_kernel(
    image_ptr,
    valid_ptr,
    sample_ptr,
    links_ptr,
    patches_ptr,
    average_ptr,
    maximum_ptr,
    stride_s,
    stride_h,
    stride_w,
    rows,
    columns,
    kept,
    P: tl.constexpr,
    UNIT: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Pool the patches of a strip and write those that are kept, from one read of the image."""
    band, patch, inside, y, x, mask = patch_tile(rows, columns, P, BLOCK_P, BLOCK_T)
    band = band.to(tl.int64)
    sample = tl.load(sample_ptr + band).to(tl.int64)
    dtype = image_ptr.dtype.element_ty
    values = load_tile(image_ptr + band * stride_s * UNIT, y, x, stride_h, stride_w, mask, UNIT)
    count = tl.full([BLOCK_T], P * P, dtype=tl.float32)
    if HAS_VALID:
        mask &= load_tile(valid_ptr + sample * (rows * P) * (columns * P), y, x, columns, 1, mask, P) != 0
        values = tl.where(mask, values, 0)
        count = tl.sum(tl.sum(mask.to(tl.float32), axis=2), axis=0)

    wide = values.to(tl.float32)
    average = tl.sum(tl.sum(wide, axis=2), axis=0) / tl.maximum(count, 1)
    counted = tl.where(mask, wide, -float("inf"))
    maximum = tl.max(tl.max(tl.where(counted == counted, counted, -float("inf")), axis=2), axis=0)
    spoiled = tl.max(tl.max((counted != counted).to(tl.int32), axis=2), axis=0) > 0
    maximum = tl.where(spoiled, float("nan"), tl.where(count > 0, maximum, 0))
    patches = rows * columns
    tl.store(average_ptr + band * patches + patch, average.to(dtype), mask=inside)
    tl.store(maximum_ptr + band * patches + patch, maximum.to(dtype), mask=inside)

    links_ptr += sample * (patches + 1 + kept)
    p = tl.arange(0, BLOCK_P)
    whole = (p < P)[:, None, None] & (p < P)[None, None, :]
    place = patch_offsets(P, BLOCK_P)
    position = tl.load(links_ptr + patch, mask=inside, other=-1)
    while tl.max(position) >= 0:  # a patch may be kept more than once
        row = (band * kept + position) * (P * P)
        tl.store(patches_ptr + row[None, :, None] + place, values, mask=whole & (position >= 0)[None, :, None])
        position = tl.load(links_ptr + patches + 1 + position, mask=position >= 0, other=-1)
    # what is no patch: the program of the band's first strip makes it NaN, one position after the other
    position = tl.load(links_ptr + tl.where(patch == 0, patches, 0), mask=patch == 0, other=-1)
    while tl.max(position) >= 0:
        row = (band * kept + position) * (P * P)
        blank = tl.full([BLOCK_P, BLOCK_T, BLOCK_P], float("nan"), dtype=dtype)
        tl.store(patches_ptr + row[None, :, None] + place, blank, mask=whole & (position >= 0)[None, :, None])
        position = tl.load(links_ptr + patches + 1 + position, mask=position >= 0, other=-1)


@triton.jit(do_not_specialize=["stride_s", "stride_h", "stride_ib", "stride_ik", "rows", "columns", "kept"])
def patch_gather_kernel(
    image_ptr,
    valid_ptr,
    sample_ptr,
    index_ptr,
    patches_ptr,
    stride_s,
    stride_h,
    stride_w,
    stride_ib,
    stride_ik,
    rows,
    columns,
    kept,
    P: tl.constexpr,
    UNIT: tl.constexpr,
    HAS_VALID: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Write T kept patches, where the windows are not the patches; NaN for what is no patch."""
    tiles = tl.cdiv(kept, BLOCK_T)
    band = (tl.program_id(0) // tiles).to(tl.int64)
    k = tl.program_id(0) % tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    sample = tl.load(sample_ptr + band).to(tl.int64)
    patch = tl.load(index_ptr + sample * stride_ib + k.to(tl.int64) * stride_ik, mask=k < kept, other=-1)
    known = (patch >= 0) & (patch < rows * columns)
    p = tl.arange(0, BLOCK_P)
    whole = (p < P)[:, None, None] & (p < P)[None, None, :]
    mask = whole & known[None, :, None]
    y = (patch // columns * P)[None, :, None] + p[:, None, None]
    x = (patch % columns * P)[None, :, None] + p[None, None, :]
    offsets = y * stride_h * UNIT + x * stride_w
    values = tl.load(image_ptr + band * stride_s * UNIT + offsets, mask=mask, other=0)
    if HAS_VALID:
        measured = tl.load(valid_ptr + (sample * (rows * P) + y) * columns * P + x, mask=mask, other=0) != 0
        values = tl.where(measured, values, 0)
    values = tl.where(known[None, :, None], values, float("nan"))
    row = (band * kept + k) * (P * P)
    offsets = row[None, :, None] + patch_offsets(P, BLOCK_P)
    tl.store(patches_ptr + offsets, values, mask=whole & (k < kept)[None, :, None])


@triton.jit(do_not_specialize=["stride_s", "stride_h", "height", "width", "grid_h", "grid_w"])
def patch_windows_kernel(
    image_ptr,
    valid_ptr,
    extent_ptr,
    sample_ptr,
    daverage_ptr,
    average_ptr,
    maximum_ptr,
    argmax_ptr,
    stride_s,
    stride_h,
    stride_w,
    height,
    width,
    grid_h,
    grid_w,
    HAS_VALID: tl.constexpr,
    HAS_EXTENT: tl.constexpr,
    BACKWARD: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """Average and maximum of any windows. Backward: the share of the average's gradient that each pixel of the window
    gets (in average_ptr, float32), and the pixel that gets the maximum's.
    """
    windows = grid_h * grid_w
    tiles = tl.cdiv(windows, BLOCK_W)
    band = (tl.program_id(0) // tiles).to(tl.int64)
    window = tl.program_id(0) % tiles * BLOCK_W + tl.arange(0, BLOCK_W)
    inside = window < windows
    sample = tl.load(sample_ptr + band).to(tl.int64)
    rows, columns = height, width
    if HAS_EXTENT:
        rows = tl.load(extent_ptr + sample * 2).to(tl.int32)
        columns = tl.load(extent_ptr + sample * 2 + 1).to(tl.int32)
    i, j = window // grid_w, window % grid_w
    top, left = i * rows // grid_h, j * columns // grid_w
    bottom, right = tl.cdiv((i + 1) * rows, grid_h), tl.cdiv((j + 1) * columns, grid_w)
    image_ptr += band * stride_s
    if HAS_VALID:
        valid_ptr += sample * height * width

    total = tl.zeros([BLOCK_W], dtype=tl.float32)
    count = tl.zeros([BLOCK_W], dtype=tl.float32)
    maximum = tl.full([BLOCK_W], -float("inf"), dtype=tl.float32)
    argmax = top * width + left  # as torch's: the first pixel where all are -inf, the last NaN where there is one
    spoiled = tl.zeros([BLOCK_W], dtype=tl.int32)
    for dy in range(tl.max(tl.where(inside, bottom - top, 0))):
        y = top + dy
        for dx in range(0, tl.max(tl.where(inside, right - left, 0)), BLOCK_X):
            x = left[:, None] + dx + tl.arange(0, BLOCK_X)[None, :]
            mask = (inside & (y < bottom))[:, None] & (x < right[:, None])
            offsets = y.to(tl.int64)[:, None] * stride_h + x.to(tl.int64) * stride_w
            values = tl.load(image_ptr + offsets, mask=mask, other=0).to(tl.float32)
            pixel = y[:, None] * width + x
            if HAS_VALID:
                mask &= tl.load(valid_ptr + pixel, mask=mask, other=0) != 0
            total += tl.sum(tl.where(mask, values, 0), axis=1)
            count += tl.sum(mask.to(tl.float32), axis=1)
            nan = mask & (values != values)
            counted = tl.where(mask & (values == values), values, -float("inf"))
            largest = tl.max(counted, axis=1)
            if BACKWARD:
                first = tl.min(tl.where(mask & (counted == largest[:, None]), pixel, 2147483647), axis=1)
                last_nan = tl.max(tl.where(nan, pixel, -1), axis=1)
                argmax = tl.where((largest > maximum) & (spoiled == 0), first, argmax)
                argmax = tl.where(last_nan >= 0, last_nan, argmax)
            spoiled = tl.maximum(spoiled, tl.max(nan.to(tl.int32), axis=1))
            maximum = tl.maximum(maximum, largest)

    offsets = band * windows + window
    if BACKWARD:
        daverage = tl.load(daverage_ptr + offsets, mask=inside, other=0).to(tl.float32)
        tl.store(average_ptr + offsets, tl.where(count > 0, daverage / tl.maximum(count, 1), 0), mask=inside)
        tl.store(argmax_ptr + offsets, argmax, mask=inside)
    else:
        maximum = tl.where(spoiled > 0, float("nan"), tl.where(count > 0, maximum, 0))
        dtype = image_ptr.dtype.element_ty
        tl.store(average_ptr + offsets, (total / tl.maximum(count, 1)).to(dtype), mask=inside)
        tl.store(maximum_ptr + offsets, maximum.to(dtype), mask=inside)


@triton.jit(do_not_specialize=["rows", "columns", "grid_h", "grid_w", "kept"])
def patch_pool_bwd_kernel(
    dpatches_ptr,
    share_ptr,
    dmaximum_ptr,
    argmax_ptr,
    valid_ptr,
    extent_ptr,
    sample_ptr,
    links_ptr,
    dimage_ptr,
    rows,
    columns,
    grid_h,
    grid_w,
    kept,
    P: tl.constexpr,
    HAS_VALID: tl.constexpr,
    HAS_EXTENT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Gather every pixel's gradient from the patches and windows that hold it, in a fixed order."""
    band, patch, inside, y, x, mask = patch_tile(rows, columns, P, BLOCK_P, BLOCK_T)
    band = band.to(tl.int64)
    sample = tl.load(sample_ptr + band).to(tl.int64)
    height, width = rows * P, columns * P  # of what is pooled
    if HAS_EXTENT:
        height = tl.load(extent_ptr + sample * 2).to(tl.int32)
        width = tl.load(extent_ptr + sample * 2 + 1).to(tl.int32)
    y, x = y[:, None, None], x[None, :, :]
    pixel = y * columns * P + x

    gradient = tl.zeros([BLOCK_P, BLOCK_T, BLOCK_P], dtype=tl.float32)
    patches = rows * columns
    links_ptr += sample * (patches + 1 + kept)
    place = patch_offsets(P, BLOCK_P)
    position = tl.load(links_ptr + patch, mask=inside, other=-1)
    while tl.max(position) >= 0:
        row = (band * kept + position) * (P * P)
        kept_here = mask & (position >= 0)[None, :, None]
        gradient += tl.load(dpatches_ptr + row[None, :, None] + place, mask=kept_here, other=0).to(tl.float32)
        position = tl.load(links_ptr + patches + 1 + position, mask=position >= 0, other=-1)

    # window i holds row y where floor(i height / grid_h) <= y < ceil((i + 1) height / grid_h)
    top, left = y * grid_h // height, x * grid_w // width
    bottom, right = ((y + 1) * grid_h - 1) // height + 1, ((x + 1) * grid_w - 1) // width + 1
    pooled = mask & (y < height) & (x < width)
    share_ptr += band * grid_h * grid_w
    dmaximum_ptr += band * grid_h * grid_w
    argmax_ptr += band * grid_h * grid_w
    for di in range(tl.max(tl.where(pooled, bottom - top, 0))):
        for dj in range(tl.max(tl.where(pooled, right - left, 0))):
            holds = pooled & (top + di < bottom) & (left + dj < right)
            window = (top + di) * grid_w + left + dj
            gradient += tl.load(share_ptr + window, mask=holds, other=0)
            chosen = holds & (tl.load(argmax_ptr + window, mask=holds, other=-1) == pixel)
            gradient += tl.load(dmaximum_ptr + window, mask=chosen, other=0).to(tl.float32)
    if HAS_VALID:
        measured = tl.load(valid_ptr + sample * (rows * P) * (columns * P) + pixel, mask=mask, other=0) != 0
        gradient = tl.where(measured, gradient, 0)
    dimage_ptr += band * (rows * P) * (columns * P)
    tl.store(dimage_ptr + pixel, gradient.to(dimage_ptr.dtype.element_ty), mask=mask)
