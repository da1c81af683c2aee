// One pass over every band: adaptive average and maximum over a grid, and the gather of the kept patches.
// Legend: common/patch_pool.h.
#pragma once

#include "common/cpu.h"
#include "common/patch_pool.h"

namespace specfast {

// Window i of g over n pixels spans floor(i n / g) to ceil((i + 1) n / g), as torch's adaptive pooling, with n the
// sample's extent. Only valid pixels count, in float32; a window without any gives 0; invalid pixels of a patch are 0
// whatever they hold. A valid NaN reaches the average and the maximum of its windows. The result does not depend on the
// number of threads. Throws std::invalid_argument for sizes, offsets or indices that would leave the arrays.
template <typename T>
void patch_pool(const PatchPool<T>& args, int threads, Capability capability);

}  // namespace specfast
