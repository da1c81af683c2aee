// Compressed deltas on CPUs. Legend: common/flat_buffer.h.
#pragma once

#include "common/cpu.h"
#include "common/flat_buffer.h"

namespace specfast {

template <typename W>
void delta_pack(const DeltaPack<W>& args, int threads, Capability capability);

template <typename W>
void delta_average(const DeltaAverage<W>& args, int threads, Capability capability);

}  // namespace specfast
