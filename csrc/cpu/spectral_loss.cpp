#include "cpu/spectral_loss.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "common/checks.h"
#include "common/dtype.h"
#include "common/target.h"

#if defined(__GNUC__) && !defined(__clang__)
// GCC's own intrinsics start from undefined vectors on purpose, and GCC 12 warns of them.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#if SPECFAST_X86_TARGETS
#include <immintrin.h>
#endif

namespace specfast {
namespace {

constexpr float kCosineEps = 1e-8f;  // torch.nn.functional.cosine_similarity's own default

namespace baseline {
#include "cpu/vector_baseline.h"
// after the vectors it is written in
#include "cpu/spectral_loss_tile.h"
}  // namespace baseline

#if SPECFAST_X86_TARGETS
SPECFAST_BEGIN_TARGET("avx2,fma")
namespace avx2 {
#include "cpu/vector_avx2.h"
// after the vectors it is written in
#include "cpu/spectral_loss_tile.h"
}  // namespace avx2
SPECFAST_END_TARGET
SPECFAST_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl")
namespace avx512 {
#include "cpu/vector_avx512.h"
// after the vectors it is written in
#include "cpu/spectral_loss_tile.h"
}  // namespace avx512
SPECFAST_END_TARGET
#endif

#if SPECFAST_X86_TARGETS
#define SPECFAST_CHOOSE(capability, ...)                  \
  (capability == Capability::avx512 ? avx512::__VA_ARGS__ \
   : capability == Capability::avx2 ? avx2::__VA_ARGS__   \
                                    : baseline::__VA_ARGS__)
#else
#define SPECFAST_CHOOSE(capability, ...) (static_cast<void>(capability), baseline::__VA_ARGS__)
#endif

template <typename T, typename U>
void check_tile(const char* op, const PixelTile<T, U>& tile, int64_t plane, int threads) {
  check(tile.bands >= 0 && tile.tokens >= 0 && tile.pixels >= 0, op, ": shape must not be negative; got [", tile.bands,
        ", ", tile.tokens, ", ", tile.pixels, "].");
  check(plane >= tile.tokens * tile.pixels, op, ": plane must be at least the ", tile.tokens * tile.pixels,
        " pixels of the tile; got ", plane, ".");
  check(threads > 0, op, ": threads must be positive; got ", threads, ".");
}

void check_sample(const char* op, const PixelLoss& sample) {
  check(sample.bands >= 0 && sample.tokens >= 0 && sample.pixels >= 0, op, ": shape must not be negative; got ",
        sample.bands, " bands of [", sample.tokens, ", ", sample.pixels, "].");
}

}  // namespace

template <typename T, typename U>
void pixel_sums(const PixelTile<T, U>& tile, float* sums, int64_t plane, float* charbonnier, int threads,
                Capability capability) {
  check_tile("pixel_sums", tile, plane, threads);
  const auto sum_tokens = SPECFAST_CHOOSE(capability, sum_tokens<T, U>);
  threads = static_cast<int>(std::min<int64_t>(threads, tile.tokens));
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int worker = 0; worker < threads; ++worker) {
    sum_tokens(tile, tile.tokens * worker / threads, tile.tokens * (worker + 1) / threads, sums, plane, charbonnier);
  }
}

template <typename T, typename U>
void pixel_gradient(const PixelTile<T, U>& tile, const float* coefficients, int64_t plane, float slope, float* dbias,
                    int threads, Capability capability) {
  check_tile("pixel_gradient", tile, plane, threads);
  const auto gradient_of_bands = SPECFAST_CHOOSE(capability, gradient_of_bands<T, U>);
  threads = static_cast<int>(std::min<int64_t>(threads, tile.bands));
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int worker = 0; worker < threads; ++worker) {
    gradient_of_bands(tile, tile.bands * worker / threads, tile.bands * (worker + 1) / threads, coefficients, plane,
                      slope, dbias);
  }
}

void loss_of_sums(const PixelLoss& sample, float* loss, Capability capability) {
  check_sample("loss_of_sums", sample);
  SPECFAST_CHOOSE(capability, loss_of_sums)(sample, loss);
}

void loss_coefficients(const PixelLoss& sample, float dspectral, float* coefficients, Capability capability) {
  check_sample("loss_coefficients", sample);
  SPECFAST_CHOOSE(capability, loss_coefficients)(sample, dspectral, coefficients);
}

#define SPECFAST_INSTANTIATE(T, U)                                                            \
  template void pixel_sums(const PixelTile<T, U>&, float*, int64_t, float*, int, Capability); \
  template void pixel_gradient(const PixelTile<T, U>&, const float*, int64_t, float, float*, int, Capability);
SPECFAST_INSTANTIATE(float, float)
SPECFAST_INSTANTIATE(float, BFloat16)
SPECFAST_INSTANTIATE(BFloat16, float)
SPECFAST_INSTANTIATE(BFloat16, BFloat16)

}  // namespace specfast
