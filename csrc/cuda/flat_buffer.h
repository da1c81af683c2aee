// Compressed deltas on GPUs. Legend: common/flat_buffer.h. All pointers are to device memory; none of it is read on the
// host.
#pragma once

#include "common/flat_buffer.h"
#include "cuda/stream.h"

namespace specfast::cuda {

template <typename W>
void delta_pack(const DeltaPack<W>& args, Stream stream);

template <typename W>
void delta_average(const DeltaAverage<W>& args, Stream stream);

}  // namespace specfast::cuda
