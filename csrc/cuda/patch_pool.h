// One read of every band: adaptive average and maximum over a grid, and the gather of the kept patches.
// Legend: common/patch_pool.h. All pointers are to device memory, and none of it is read on the host.
#pragma once

#include <cstdint>

#include "common/patch_pool.h"
#include "cuda/stream.h"

namespace specfast::cuda {

// Window i of g over n pixels spans floor(i n / g) to ceil((i + 1) n / g), with n the sample's extent. Only valid
// pixels count, in float32; a window without any gives 0; invalid pixels of a patch are 0 whatever they hold. A valid
// NaN reaches the average and the maximum of its windows. Sizes are checked (std::invalid_argument). Values on the
// device are not: a patch whose index lies outside the grid becomes NaN, an extent outside the image is cut to it.
// Images wider than kWidest, or grids finer than that, are refused.
template <typename T>
void patch_pool(const PatchPool<T>& args, Stream stream);

constexpr int64_t kWidest = 4096;

}  // namespace specfast::cuda
