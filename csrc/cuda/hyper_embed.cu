#include <cstdint>

#include "common/checks.h"
#include "cuda/element.h"
#include "cuda/hyper_embed.h"
#include "cuda/ptx.cuh"
#include "cuda/runtime.h"

// A block owns 16 tokens of a sample and a slice of kRanks ranks; its moments stay in registers (2 tokens a warp) while
// the sample's bands stream by, 8 at a time, in a ring of shared memory that cp.async fills ahead:
//   project   warp w: h[16 tokens, kRanks] = x V^T of band w of the eight, rounded into shared memory
//   contract  after two eights, for each of the warp's tokens: moments[kRanks, k] += h^T[kRanks, 16 bands] hidden
// Bands, tokens and ranks beyond the end are zeros in shared memory, so no loop has a ragged tail.
//
// Expected on an H200 (mma.sync at 0.62 x 790 TFLOP/s, memory at 4.3 TB/s) at B 64, N 196, C 202, P = R = k = 64, bf16:
// 41.5 GFLOP of products take 0.085 ms, 0.54 GB of device memory 0.13 ms. But x is read R / kRanks = 2 times and V
// N / 16 = 13 times, 2.0 GB, mostly from L2: 0.36 ms at 5.5 TB/s, which is what this kernel should take. The product
// with the weight (80 GFLOP) adds 0.10 ms, against a floor of 0.15 ms for both. Sharing V among the blocks of a cluster
// is what would bring it down.
namespace specfast::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kTokens = 16;      // of a block
constexpr int kBands = kWarps;   // of a step; two steps make the 16 that one mma contracts
constexpr int kPixels = 64;      // of a step
constexpr int kHiddenSlots = 4;  // steps whose hidden vectors are held: two to contract, two on their way
constexpr int kPad = 16;         // bytes that make a row an odd number of 16-byte columns: no bank conflicts
constexpr int kTokensOfWarp = kTokens / kWarps;

// Shared memory of a block, in bytes.
template <int kRanks, int kWidth>
struct Layout {
  static constexpr int kPixelPitch = kPixels * 2 + kPad;
  static constexpr int kFactors = kBands * kTokens * kPixelPitch;  // after the patches of a step
  static constexpr int kStep = kFactors + kBands * kRanks * kPixelPitch;
  static constexpr int kBandPitch = kRanks * 2 + kPad;                // of h
  static constexpr int kTokenPitch = 2 * kBands * kBandPitch + kPad;  // of h
  static constexpr int kProjected = kTokens * kTokenPitch;
  static constexpr int kHiddenPitch = kWidth * 2 + kPad;
  static constexpr int kHidden = kHiddenSlots * kBands * kHiddenPitch;
  // At the end, in place of the steps:
  static constexpr int kSums = kWarps * kTokens * kRanks * 4;
  static constexpr int kMoments = kWarps * kRanks * kHiddenPitch;  // of a token of each warp, after the sums

  static_assert(kPixelPitch / 16 % 2 == 1 && kBandPitch / 16 % 2 == 1 && kHiddenPitch / 16 % 2 == 1);
  static_assert(kTokenPitch / 16 % 2 == 1 && kSums + kMoments <= 2 * kStep);

  static constexpr size_t bytes(int steps) { return kProjected + kHidden + static_cast<size_t>(steps) * kStep; }
};

// Where a block works, and how far.
struct Range {
  int64_t sample, first_band;
  int bands, first_token, tokens, first_rank, ranks;
  int chunks, steps;  // of pixels; of eight bands and a chunk of pixels each
};

template <typename T, int kRanks, int kWidth>
__device__ Range range_of(const HyperEmbedMoments<T>& args) {
  const int slices = (static_cast<int>(args.rank) + kRanks - 1) / kRanks;
  const int64_t tiles = (args.tokens + kTokens - 1) / kTokens;
  Range range;
  // Slices of one tile are neighbors, so that the tile's patches come from L2 all times but the first.
  range.first_rank = static_cast<int>(blockIdx.x) % slices * kRanks;
  const int64_t tile = static_cast<int>(blockIdx.x) / slices;
  range.sample = tile / tiles;
  range.first_token = static_cast<int>(tile % tiles) * kTokens;
  range.first_band = args.cu_bands[range.sample];
  range.bands = static_cast<int>(args.cu_bands[range.sample + 1] - range.first_band);
  range.tokens = static_cast<int>(min(args.tokens - range.first_token, int64_t{kTokens}));
  range.ranks = static_cast<int>(min(args.rank - range.first_rank, int64_t{kRanks}));
  range.chunks = (static_cast<int>(args.pixels) + kPixels - 1) / kPixels;
  range.steps = (range.bands + 2 * kBands - 1) / (2 * kBands) * 2 * range.chunks;
  return range;
}

// Starts the copies of a step; eight threads a row of up to 64 pixels, and zeros for what does not exist.
template <typename T, int kRanks, int kWidth>
__device__ void fetch(const HyperEmbedMoments<T>& args, const Range& range, int step, unsigned char* stage,
                      unsigned char* hidden) {
  using Shape = Layout<kRanks, kWidth>;
  const int pixels = static_cast<int>(args.pixels), width = static_cast<int>(args.width);
  const int eight = step / range.chunks, chunk = step % range.chunks;
  const int lane = threadIdx.x % 8, row_of_thread = threadIdx.x / 8;
  const int pixel = chunk * kPixels + lane * 8;
  constexpr int kRows = kThreads / 8;
  if (pixel < pixels) {
    unsigned char* to = stage + row_of_thread * Shape::kPixelPitch + lane * 16;
#pragma unroll
    for (int i = 0; i < kBands * kTokens / kRows; ++i) {
      const int row = i * kRows + row_of_thread;
      const int band = eight * kBands + row / kTokens, token = row % kTokens;
      const bool there = band < range.bands && token < range.tokens;
      const int64_t from = (range.first_band + band) * args.tokens + range.first_token + token;
      ptx::cp_async16(to + i * kRows * Shape::kPixelPitch, args.patches + (there ? from * pixels + pixel : 0), there);
    }
    to += Shape::kFactors;
#pragma unroll
    for (int i = 0; i < kBands * kRanks / kRows; ++i) {
      const int row = i * kRows + row_of_thread;
      const int band = eight * kBands + row / kRanks, rank = row % kRanks;
      const bool there = band < range.bands && rank < range.ranks;
      const int64_t from = (range.first_band + band) * args.rank + range.first_rank + rank;
      ptx::cp_async16(to + i * kRows * Shape::kPixelPitch, args.factors_v + (there ? from * pixels + pixel : 0), there);
    }
  }
  if (chunk == 0) {
    const int row = threadIdx.x / 32, column = threadIdx.x % 32 * 8, band = eight * kBands + row;
    const bool there = band < range.bands;
    unsigned char* to = hidden + (eight % kHiddenSlots * kBands + row) * Shape::kHiddenPitch + column * 2;
    if (column < width) {
      ptx::cp_async16(to, args.hidden + (there ? (range.first_band + band) * width + column : 0), there);
    }
  }
}

// h[16 tokens, kRanks] of this warp's band += a chunk of its pixels.
template <typename T, int kRanks, int kWidth>
__device__ void project(int pixels, const unsigned char* stage, float (&h)[kRanks / 8][4]) {
  using Shape = Layout<kRanks, kWidth>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane % 8, matrix = lane / 8;
  const unsigned char* x = stage + (warp * kTokens + matrix % 2 * 8 + row) * Shape::kPixelPitch + matrix / 2 * 16;
  const unsigned char* v =
      stage + Shape::kFactors + (warp * kRanks + matrix / 2 * 8 + row) * Shape::kPixelPitch + matrix % 2 * 16;
#pragma unroll
  for (int p = 0; p < kPixels; p += 16) {
    if (p >= pixels) break;
    uint32_t a[4];
    ptx::ldmatrix(a, x + p * 2);
#pragma unroll
    for (int r = 0; r < kRanks; r += 16) {
      uint32_t b[4];
      ptx::ldmatrix(b, v + r * Shape::kPixelPitch + p * 2);
      ptx::mma<T>(h[r / 8], a, b[0], b[1]);
      ptx::mma<T>(h[r / 8 + 1], a, b[2], b[3]);
    }
  }
}

// h, rounded, to its place [token, band of 16, rank]; and into the sums before it is rounded.
template <typename T, int kRanks, int kWidth>
__device__ void store_projected(const float (&h)[kRanks / 8][4], int band, unsigned char* projected,
                                float (&sums)[kRanks / 8][4]) {
  using Shape = Layout<kRanks, kWidth>;
  const int lane = threadIdx.x % 32, row = lane / 4, pair = lane % 4;
  unsigned char* to = projected + row * Shape::kTokenPitch + band * Shape::kBandPitch + pair * 4;
#pragma unroll
  for (int i = 0; i < kRanks / 8; ++i) {
    ptx::store_shared(to + i * 16, ptx::narrow_pair<T>(h[i][0], h[i][1]));
    ptx::store_shared(to + 8 * Shape::kTokenPitch + i * 16, ptx::narrow_pair<T>(h[i][2], h[i][3]));
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[i][j] += h[i][j];
  }
}

// moments[kRanks, k] of the warp's tokens += h^T[kRanks, 16 bands] hidden[16 bands, k].
template <typename T, int kRanks, int kWidth>
__device__ void contract(int width, int eight, const unsigned char* projected, const unsigned char* hidden,
                         float (&moments)[kTokensOfWarp][kRanks / 16][kWidth / 8][4]) {
  using Shape = Layout<kRanks, kWidth>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane % 8, matrix = lane / 8;
  const unsigned char* h = projected + warp * kTokensOfWarp * Shape::kTokenPitch +
                           (matrix / 2 * 8 + row) * Shape::kBandPitch + matrix % 2 * 16;
  const int slot = (eight + matrix % 2) % kHiddenSlots;
  const unsigned char* g = hidden + (slot * kBands + row) * Shape::kHiddenPitch + matrix / 2 * 16;
  uint32_t a[kTokensOfWarp][kRanks / 16][4];
#pragma unroll
  for (int n = 0; n < kTokensOfWarp; ++n) {
#pragma unroll
    for (int r = 0; r < kRanks / 16; ++r) {
      ptx::ldmatrix_transposed(a[n][r], h + n * Shape::kTokenPitch + r * 32);
    }
  }
#pragma unroll
  for (int k = 0; k < kWidth; k += 16) {
    if (k >= width) break;
    uint32_t b[4];
    ptx::ldmatrix_transposed(b, g + k * 2);
#pragma unroll
    for (int n = 0; n < kTokensOfWarp; ++n) {
#pragma unroll
      for (int r = 0; r < kRanks / 16; ++r) {
        ptx::mma<T>(moments[n][r][k / 8], a[n][r], b[0], b[1]);
        ptx::mma<T>(moments[n][r][k / 8 + 1], a[n][r], b[2], b[3]);
      }
    }
  }
}

struct alignas(16) SixteenBytes {
  uint32_t words[4];
};

// Through shared memory, so that neighboring lanes write 16 bytes each at neighboring addresses.
template <typename T, int kRanks, int kWidth>
__device__ void write_moments(const HyperEmbedMoments<T>& args, const Range& range,
                              const float (&moments)[kTokensOfWarp][kRanks / 16][kWidth / 8][4],
                              unsigned char* shared) {
  using Shape = Layout<kRanks, kWidth>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, pair = lane % 4;
  const int width = static_cast<int>(args.width), pieces = width / 8;
  unsigned char* mine = shared + warp * kRanks * Shape::kHiddenPitch;
#pragma unroll
  for (int n = 0; n < kTokensOfWarp; ++n) {
    const int token = warp * kTokensOfWarp + n;
    if (token >= range.tokens) break;
#pragma unroll
    for (int r = 0; r < kRanks; r += 16) {
#pragma unroll
      for (int k = 0; k < kWidth; k += 8) {
        if (k >= width) break;
        const float (&tile)[4] = moments[n][r / 16][k / 8];
        unsigned char* to = mine + (r + row) * Shape::kHiddenPitch + k * 2 + pair * 4;
        ptx::store_shared(to, ptx::narrow_pair<T>(tile[0], tile[1]));
        ptx::store_shared(to + 8 * Shape::kHiddenPitch, ptx::narrow_pair<T>(tile[2], tile[3]));
      }
    }
    __syncwarp();
    const int64_t token_at = range.sample * args.tokens + range.first_token + token;
    T* out = args.moments + (token_at * args.rank + range.first_rank) * width;
    for (int i = lane; i < range.ranks * pieces; i += 32) {
      const unsigned char* from = mine + i / pieces * Shape::kHiddenPitch + i % pieces * 16;
      *reinterpret_cast<SixteenBytes*>(out + i * 8) = ptx::load_shared<SixteenBytes>(from);
    }
    __syncwarp();  // the next token takes its place
  }
}

// Adds up what the warps have summed over their bands, always in the same order.
template <typename T, int kRanks>
__device__ void write_sums(const HyperEmbedMoments<T>& args, const Range& range, const float (&sums)[kRanks / 8][4],
                           unsigned char* shared) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int i = 0; i < kRanks / 8; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int token = lane / 4 + j / 2 * 8, rank = i * 8 + lane % 4 * 2 + j % 2;
      ptx::store_shared(shared + ((warp * kTokens + token) * kRanks + rank) * 4, sums[i][j]);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTokens * kRanks; i += kThreads) {
    const int token = i / kRanks, rank = i % kRanks;
    if (token >= range.tokens || rank >= range.ranks) continue;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += ptx::load_shared<float>(shared + (w * kTokens * kRanks + i) * 4);
    const int64_t row = range.sample * args.tokens + range.first_token + token;
    args.sums[row * args.rank + range.first_rank + rank] = ptx::narrow<T>(sum);
  }
}

// `ring`: steps that shared memory holds, 2 or 3.
template <typename T, int kRanks, int kWidth>
__global__ void __launch_bounds__(kThreads, 1) hyper_embed_moments_kernel(HyperEmbedMoments<T> args, int ring) {
  using Shape = Layout<kRanks, kWidth>;
  unsigned char* projected = ptx::dynamic_shared();
  unsigned char* hidden = projected + Shape::kProjected;
  unsigned char* stages = hidden + Shape::kHidden;
  const Range range = range_of<T, kRanks, kWidth>(args);
  const int warp = threadIdx.x / 32;

  float moments[kTokensOfWarp][kRanks / 16][kWidth / 8][4] = {}, sums[kRanks / 8][4] = {};
  const auto fetch_step = [&](int step, int slot) {
    if (step < range.steps) fetch<T, kRanks, kWidth>(args, range, step, stages + slot * Shape::kStep, hidden);
    ptx::cp_async_commit();  // an empty group counts too, so that the number to wait for never changes
  };
  for (int step = 0; step < ring - 1; ++step) fetch_step(step, step);

  int step = 0, slot = 0, free_slot = ring - 1;
  for (int eight = 0; step < range.steps; ++eight) {
    float h[kRanks / 8][4] = {};
    for (int chunk = 0; chunk < range.chunks; ++chunk, ++step) {
      if (ring == 3) {
        ptx::cp_async_wait<1>();
      } else {
        ptx::cp_async_wait<0>();
      }
      __syncthreads();  // the step is there for all, and all are done with the one before
      fetch_step(step + ring - 1, free_slot);
      project<T, kRanks, kWidth>(static_cast<int>(args.pixels) - chunk * kPixels, stages + slot * Shape::kStep, h);
      free_slot = slot;
      slot = slot + 1 == ring ? 0 : slot + 1;
    }
    store_projected<T, kRanks, kWidth>(h, eight % 2 * kBands + warp, projected, sums);
    if (eight % 2 == 0) continue;
    __syncthreads();  // h of all warps is there
    contract<T, kRanks, kWidth>(static_cast<int>(args.width), eight - 1, projected, hidden, moments);
  }
  // No barrier: since the last one, nobody reads the steps, and no copy into them is under way.
  write_moments<T, kRanks, kWidth>(args, range, moments, stages + Shape::kSums);
  write_sums<T, kRanks>(args, range, sums, stages);
}

template <typename T>
void check_arguments(const HyperEmbedMoments<T>& args) {
  const auto check_size = [](const char* name, int64_t size, int64_t most) {
    check(size > 0 && size % 16 == 0 && size <= most, "hyper_embed: ", name, " must be a multiple of 16 up to ", most,
          " here; got ", size, ".");
  };
  check_size("P", args.pixels, kMostPixels);
  check_size("R", args.rank, kMostRank);
  check_size("k", args.width, kMostWidth);
  const auto check_aligned = [](const char* name, const T* pointer) {
    check(reinterpret_cast<uintptr_t>(pointer) % 16 == 0, "hyper_embed: ", name, " must be aligned to 16 bytes.");
  };
  check_aligned("patches", args.patches);
  check_aligned("factors_v", args.factors_v);
  check_aligned("hidden", args.hidden);
  check_aligned("moments", args.moments);
}

template <typename T, int kRanks, int kWidth>
void launch_moments(const HyperEmbedMoments<T>& args, size_t limit, Stream stream) {
  using Shape = Layout<kRanks, kWidth>;
  const int64_t slices = (args.rank + kRanks - 1) / kRanks, tiles = (args.tokens + kTokens - 1) / kTokens;
  const int ring = Shape::bytes(3) <= limit ? 3 : 2;
  launch("hyper_embed", hyper_embed_moments_kernel<T, kRanks, kWidth>, args.samples * tiles * slices, kThreads,
         Shape::bytes(ring), stream, args, ring);
}

}  // namespace

template <typename T>
void hyper_embed_moments(const HyperEmbedMoments<T>& args, Stream stream) {
  if (args.samples == 0 || args.tokens == 0) return;
  check_arguments(args);
  const size_t limit = shared_memory_limit("hyper_embed");
  // Wide slices read the patches half as often; narrow ones fit wide hidden vectors and small shared memories.
  if (args.rank > 16 && args.width <= 64 && Layout<32, 64>::bytes(2) <= limit) {
    launch_moments<T, 32, 64>(args, limit, stream);
  } else {
    launch_moments<T, 16, 128>(args, limit, stream);
  }
}

template void hyper_embed_moments(const HyperEmbedMoments<BFloat16>&, Stream);
template void hyper_embed_moments(const HyperEmbedMoments<Float16>&, Stream);

}  // namespace specfast::cuda
