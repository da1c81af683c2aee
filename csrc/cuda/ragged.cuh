// Ragged batches on the device: which sample a band belongs to.
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"

namespace specfast::cuda {

// The sample b with cu_bands[b] <= band < cu_bands[b + 1], found by the whole warp: each round of independent loads
// narrows the range 32 times, so a batch of 64 takes two round trips to memory where a binary search takes six.
__device__ inline int64_t sample_of_band(const int32_t* cu_bands, int64_t samples, int64_t band) {
  const int lane = threadIdx.x % 32;
  int64_t first = 0, count = samples;  // the answer lies in [first, first + count)
  while (count > 1) {
    const int64_t step = (count + 31) / 32;
    const int64_t end = first + (lane + 1) * step;  // of this lane's part
    const bool before = end < first + count && cu_bands[end] <= band;
    const int skipped = __popc(__ballot_sync(0xFFFFFFFFu, before));
    const int64_t last = first + count;
    first += skipped * step;
    count = last - first < step ? last - first : step;
  }
  return first;
}

}  // namespace specfast::cuda
