// The arguments of delta_pack and delta_average, in host memory for csrc/cpu and in device memory for csrc/cuda: flat
// buffers of parameters compressed to what differs from a common reference, and the mean of such deltas. One pass over
// memory each, of any alignment; always the same bits, everywhere, which are those of kernels/reference/flat_buffer.py.
//
// Legend: n elements, g workers, blocks of float8::kBlock elements, W the type that is sent (BFloat16, Float8).
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/float8.h"

namespace specfast {

// packed = values - reference + residual, in Float8 over the scale of its block; residual = what rounding lost, 0 where
// that is not finite. NaN stays NaN; what float8.h calls too large, and infinity, become NaN in Float8.
template <typename W>
struct DeltaPack {
  const float* values;     // [n]
  const float* reference;  // [n]
  float* residual;         // [n], in and out
  int64_t count;           // n
  W* packed;               // [n]
  float* scales;           // [blocks]; BFloat16 has none
};

// values = reference + mean of the deltas, added in the order of the rows.
template <typename W>
struct DeltaAverage {
  float* values;           // [n], out; may be reference
  const float* reference;  // [n]
  const W* packed;         // [g, n]
  const float* scales;     // [g, blocks]; BFloat16 has none
  int64_t count, members;  // n, g
};

}  // namespace specfast
