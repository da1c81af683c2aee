#include "cpu/patch_pool.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/dtype.h"
#include "common/target.h"

namespace specfast {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Window {
  int64_t first, last;
};

std::vector<Window> windows(int64_t count, int64_t pixels) {
  std::vector<Window> result(count);
  for (int64_t i = 0; i < count; ++i) result[i] = {i * pixels / count, ((i + 1) * pixels + count - 1) / count};
  return result;
}

// A kept patch: its first pixel, and its place among the kept patches of the sample.
struct Kept {
  int64_t row, column, slot;
};

// What all bands of a sample share.
struct Sample {
  int64_t columns;  // of the extent
  const bool* valid;
  std::vector<Window> window_rows, window_columns;
  std::vector<int64_t> counts;  // valid pixels of each window
  std::vector<Kept> kept;       // in raster order, so that they can be copied while the image passes
};

namespace baseline {
#include "cpu/patch_pool_band.h"
}

#if SPECFAST_X86_TARGETS
SPECFAST_BEGIN_TARGET("avx2,fma")
namespace avx2 {
#include "cpu/patch_pool_band.h"
}
SPECFAST_END_TARGET
SPECFAST_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl")
namespace avx512 {
#include "cpu/patch_pool_band.h"
}
SPECFAST_END_TARGET
#endif

template <typename T>
using PoolBand = void (*)(const PatchPool<T>&, const Sample&, int64_t, const T*, int64_t, float*, float*);

template <bool kMasked, typename T>
PoolBand<T> pool_band_for(Capability capability) {
  switch (capability) {
#if SPECFAST_X86_TARGETS
    case Capability::avx512:
      return avx512::pool_band<kMasked, T>;
    case Capability::avx2:
      return avx2::pool_band<kMasked, T>;
#endif
    default:
      return baseline::pool_band<kMasked, T>;
  }
}

template <typename T>
void check_arguments(const PatchPool<T>& args) {
  const int64_t p = args.patch_size;
  check(p > 0 && args.height % p == 0 && args.width % p == 0, "patch_pool: patch_size must divide the image; got ", p,
        " for an image of ", args.height, " x ", args.width, " pixels.");
  check(args.grid_rows > 0 && args.grid_columns > 0, "patch_pool: grid must be positive; got (", args.grid_rows, ", ",
        args.grid_columns, ").");
  check(args.height > 0 && args.width > 0, "patch_pool: image must have pixels; got ", args.height, " x ", args.width,
        ".");
  check(args.cu_bands[0] == 0 && args.cu_bands[args.samples] == args.bands,
        "patch_pool: cu_bands must run from 0 to the ", args.bands, " bands of image; it runs from ", args.cu_bands[0],
        " to ", args.cu_bands[args.samples], ".");
  const int64_t patches = (args.height / p) * (args.width / p);
  for (int64_t b = 0; b < args.samples; ++b) {
    check(args.cu_bands[b] <= args.cu_bands[b + 1], "patch_pool: cu_bands must not decrease; it does at sample ", b,
          ".");
    for (int64_t k = 0; k < args.kept; ++k) {
      const int64_t patch = args.index[b * args.kept + k];
      check(patch >= 0 && patch < patches, "patch_pool: index must lie in [0, ", patches, "); got ", patch,
            " at sample ", b, ", position ", k, ".");
    }
    if (args.extent == nullptr) continue;
    const int64_t rows = args.extent[2 * b], columns = args.extent[2 * b + 1];
    check(rows > 0 && rows <= args.height && columns > 0 && columns <= args.width,
          "patch_pool: extent must lie within the image of ", args.height, " x ", args.width, "; got ", rows, " x ",
          columns, " at sample ", b, ".");
  }
}

template <typename T>
Sample prepare_sample(const PatchPool<T>& args, int64_t b) {
  Sample sample;
  const int64_t rows = args.extent ? args.extent[2 * b] : args.height;
  sample.columns = args.extent ? args.extent[2 * b + 1] : args.width;
  sample.valid = args.valid ? args.valid + b * args.height * args.width : nullptr;
  sample.window_rows = windows(args.grid_rows, rows);
  sample.window_columns = windows(args.grid_columns, sample.columns);
  for (const Window& high : sample.window_rows) {
    for (const Window& wide : sample.window_columns) {
      int64_t count = sample.valid ? 0 : (high.last - high.first) * (wide.last - wide.first);
      for (int64_t r = high.first; sample.valid && r < high.last; ++r) {
        const auto* row = reinterpret_cast<const uint8_t*>(sample.valid + r * args.width);
        count += wide.last - wide.first - std::count(row + wide.first, row + wide.last, uint8_t{0});
      }
      sample.counts.push_back(count);
    }
  }
  const int64_t p = args.patch_size, across = args.width / p;
  for (int64_t k = 0; k < args.kept; ++k) {
    const int64_t patch = args.index[b * args.kept + k];
    sample.kept.push_back({patch / across * p, patch % across * p, k});
  }
  std::sort(sample.kept.begin(), sample.kept.end(), [](const Kept& one, const Kept& other) {
    return std::tie(one.row, one.column, one.slot) < std::tie(other.row, other.column, other.slot);
  });
  return sample;
}

// A band whose pixels are not adjacent in memory, made so.
template <typename T>
void pack_band(const PatchPool<T>& args, int64_t band, T* out) {
  const T* image = args.image + band * args.stride_band;
  for (int64_t r = 0; r < args.height; ++r) {
    for (int64_t c = 0; c < args.width; ++c) {
      *out++ = image[r * args.stride_row + c * args.stride_column];
    }
  }
}

}  // namespace

template <typename T>
void patch_pool(const PatchPool<T>& args, int threads, Capability capability) {
  if (args.samples == 0 || args.bands == 0) return;
  check_arguments(args);
  check(threads > 0, "patch_pool: threads must be positive; got ", threads, ".");
  threads = static_cast<int>(std::min<int64_t>(threads, args.bands));

  // Everything that can fail or allocate happens before the threads start.
  std::vector<Sample> samples(args.samples);
  std::vector<int64_t> owner(args.bands);
  const bool adjacent = args.stride_column == 1;
  std::vector<T> packed(adjacent ? 0 : threads * args.height * args.width);
  std::vector<float> scratch(2 * threads * args.width);
  for (int64_t b = 0; b < args.samples; ++b) samples[b] = prepare_sample(args, b);
  for (int64_t b = 0; b < args.samples; ++b) {
    std::fill(owner.begin() + args.cu_bands[b], owner.begin() + args.cu_bands[b + 1], b);
  }
  const PoolBand<T> pool_band = args.valid ? pool_band_for<true, T>(capability) : pool_band_for<false, T>(capability);

#pragma omp parallel for num_threads(threads) schedule(static)
  for (int worker = 0; worker < threads; ++worker) {
    float* sums = scratch.data() + 2 * worker * args.width;
    T* copy = adjacent ? nullptr : packed.data() + worker * args.height * args.width;
    const int64_t first = args.bands * worker / threads, last = args.bands * (worker + 1) / threads;
    for (int64_t s = first; s < last; ++s) {
      const T* image = args.image + s * args.stride_band;
      if (!adjacent) {
        pack_band(args, s, copy);
        image = copy;
      }
      pool_band(args, samples[owner[s]], s, image, adjacent ? args.stride_row : args.width, sums, sums + args.width);
    }
  }
}

template void patch_pool(const PatchPool<float>&, int, Capability);
template void patch_pool(const PatchPool<BFloat16>&, int, Capability);

}  // namespace specfast
