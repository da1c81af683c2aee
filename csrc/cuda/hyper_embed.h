// The contraction over bands of hyper_embed's re-associated form, h = V x never leaving the chip:
//   moments[b, n, r, k] = sum_c h[c, n, r] hidden[c, k],  sums[b, n, r] = sum_c h[c, n, r],
// over the bands c of sample b. The dense product with the generator's weight that follows is the library's.
//
// Legend: B samples, S all bands, N tokens, P pixels a patch, R rank, k hidden width.
#pragma once

#include <cstdint>

#include "cuda/stream.h"

namespace specfast::cuda {

// All pointers are to device memory, aligned to 16 bytes and contiguous; none of it is read on the host.
template <typename T>
struct HyperEmbedMoments {
  const T* patches;         // [S, N, P]
  const T* factors_v;       // [S, R, P]
  const T* hidden;          // [S, k]
  const int32_t* cu_bands;  // [B + 1]
  int64_t samples, tokens, pixels, rank, width;

  T* moments;  // [B, N, R, k]
  T* sums;     // [B, N, R]
};

// Products of T (BFloat16, Float16) with float32 accumulation; h is rounded to T between the two contractions, not for
// sums. Always the same bits. P, R and k are multiples of 16 up to kMostPixels, kMostRank and kMostWidth
// (std::invalid_argument otherwise, or for a misaligned pointer). A sample without bands gives zeros.
template <typename T>
void hyper_embed_moments(const HyperEmbedMoments<T>& args, Stream stream);

constexpr int64_t kMostPixels = 256, kMostRank = 256, kMostWidth = 128;

}  // namespace specfast::cuda
