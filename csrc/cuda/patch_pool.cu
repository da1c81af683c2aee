#include <algorithm>
#include <cstdint>

#include "common/checks.h"
#include "cuda/element.h"
#include "cuda/patch_pool.h"
#include "cuda/ptx.cuh"
#include "cuda/ragged.cuh"
#include "cuda/runtime.h"

// A block owns a strip: some rows of windows of one band, and the image rows from its first window to the next strip's.
// The strip's pixels go to shared memory once; windows are summed and kept patches copied from there. At 224 x 224, p 8
// in bf16 a strip is 14 kB and the registers let 8 blocks or more share a Hopper multiprocessor, so about 100 kB are in
// flight on each where 26 kB cover the memory's latency. Expected time: the image's and outputs' bytes at the memory's
// bandwidth (B 64, C 202 on an H200: 1.7 GB, 0.39 ms).
namespace specfast::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int64_t kStripBytes = 16 * 1024;  // aimed at
constexpr int64_t kStageBytes = 32 * 1024;  // at most, but for a single row

// What the host decides, and the layout of shared memory in bytes.
struct Plan {
  int height, width, patch_size, grid_rows, grid_columns;
  int strips, window_rows;  // of a band; of a strip, at most
  int stage_rows;           // image rows in shared memory at a time
  int pitch, mask_pitch;    // bytes between rows in shared memory
  int units;                // partial results a window row, at most
  int valid_at, sums_at, maxima_at, counts_at, lists_at, bytes;
  bool wide_loads, wide_valid, wide_copies;  // 16 bytes each
};

template <typename T>
constexpr int kLanes = 16 / static_cast<int>(sizeof(T));  // elements of a 16-byte vector

template <typename T>
struct alignas(16) Vector {
  T lanes[kLanes<T>];
};

template <typename T>
struct alignas(kLanes<T>) Mask {
  uint8_t lanes[kLanes<T>];
};

// No product overflows: sides are at most kWidest.
__device__ inline int window_first(int i, int count, int pixels) { return i * pixels / count; }

__device__ inline int window_last(int i, int count, int pixels) { return ((i + 1) * pixels + count - 1) / count; }

// Columns a partial result stands for: a whole vector where no window's edge cuts one, else one column.
template <typename T>
__host__ __device__ inline int columns_of_unit(int columns, int windows) {
  return columns % windows == 0 && columns / windows % kLanes<T> == 0 ? kLanes<T> : 1;
}

// This thread's places in a table that the block walks row by row: a division at the start, none on the way.
class Walk {
 public:
  __device__ explicit Walk(int columns)
      : row(threadIdx.x / columns),
        column(threadIdx.x % columns),
        columns_(columns),
        rows_on_(kThreads / columns),
        columns_on_(kThreads % columns) {}

  __device__ void advance() {
    row += rows_on_;
    column += columns_on_;
    if (column >= columns_) ++row, column -= columns_;
  }

  int row, column;

 private:
  int columns_, rows_on_, columns_on_;
};

// Image rows [first, first + count) of the band to shared memory, pixels beyond the width as 0.
template <typename T>
__device__ void stage_image(const PatchPool<T>& args, const Plan& plan, int64_t band, int first, int count,
                            unsigned char* stage) {
  const T* image = args.image + band * args.stride_band + first * args.stride_row;
  if (plan.wide_loads) {
    for (Walk at(plan.width / kLanes<T>); at.row < count; at.advance()) {
      ptx::cp_async16(stage + at.row * plan.pitch + at.column * 16,
                      image + at.row * args.stride_row + at.column * kLanes<T>, true);
    }
    return;
  }
  for (Walk at(plan.pitch / static_cast<int>(sizeof(T))); at.row < count; at.advance()) {
    const bool inside = at.column < plan.width;
    const T value = inside ? image[at.row * args.stride_row + at.column * args.stride_column] : T{};
    ptx::store_shared(stage + at.row * plan.pitch + at.column * static_cast<int>(sizeof(T)), value);
  }
}

template <typename T>
__device__ void stage_valid(const PatchPool<T>& args, const Plan& plan, int64_t sample, int first, int count,
                            unsigned char* stage) {
  const auto* valid = reinterpret_cast<const uint8_t*>(args.valid) + (sample * args.height + first) * args.width;
  if (plan.wide_valid) {
    for (Walk at(plan.width / 16); at.row < count; at.advance()) {
      ptx::cp_async16(stage + at.row * plan.mask_pitch + at.column * 16, valid + at.row * plan.width + at.column * 16,
                      true);
    }
    return;
  }
  for (Walk at(plan.mask_pitch); at.row < count; at.advance()) {
    const uint8_t value = at.column < plan.width ? valid[at.row * plan.width + at.column] : uint8_t{0};
    ptx::store_shared(stage + at.row * plan.mask_pitch + at.column, value);
  }
}

// The strip of one sample: its window rows, the image rows it stages, and those whose patches it copies.
struct Strip {
  int rows, columns;            // extent of the sample
  int first_window, windows;    // rows of windows
  int first, last, owned_last;  // image rows: staged [first, last), owned [first, owned_last)
  int unit;                     // columns of a partial result
};

template <typename T>
__device__ Strip strip_of(const Plan& plan, int number, const int64_t* extent) {
  Strip strip;
  strip.rows = extent ? static_cast<int>(min(max(extent[0], int64_t{1}), int64_t{plan.height})) : plan.height;
  strip.columns = extent ? static_cast<int>(min(max(extent[1], int64_t{1}), int64_t{plan.width})) : plan.width;
  strip.first_window = number * plan.window_rows;
  strip.windows = min(plan.window_rows, plan.grid_rows - strip.first_window);
  const int next = strip.first_window + strip.windows;
  strip.first = window_first(strip.first_window, plan.grid_rows, strip.rows);
  strip.owned_last = next == plan.grid_rows ? plan.height : window_first(next, plan.grid_rows, strip.rows);
  strip.last = max(strip.owned_last, window_last(next - 1, plan.grid_rows, strip.rows));
  strip.unit = columns_of_unit<T>(strip.columns, plan.grid_columns);
  return strip;
}

// Adds the staged rows [first, last) to the partial results of every window row they meet. A thread always has the same
// partial results, so no other sees them before the barrier that ends the strip.
template <typename T, bool kMasked>
__device__ void pool_rows(const Plan& plan, const Strip& strip, int first, int last, unsigned char* shared) {
  constexpr int kCount = kLanes<T>;
  for (Walk at((strip.columns + kCount - 1) / kCount); at.row < strip.windows; at.advance()) {
    const int row = at.row, vector = at.column, window = strip.first_window + row;
    const int start = window_first(window, plan.grid_rows, strip.rows);
    const int from = max(start, first) - first;
    const int to = min(window_last(window, plan.grid_rows, strip.rows), last) - first;
    if (from >= to) continue;
    float sums[kCount], maxima[kCount];
    int counts[kCount];
#pragma unroll
    for (int e = 0; e < kCount; ++e) sums[e] = 0.0f, maxima[e] = -INFINITY, counts[e] = 0;
    for (int r = from; r < to; ++r) {
      const auto pixels = ptx::load_shared<Vector<T>>(shared + r * plan.pitch + vector * 16);
      Mask<T> mask;
      if (kMasked) {
        mask = ptx::load_shared<Mask<T>>(shared + plan.valid_at + r * plan.mask_pitch + vector * kCount);
      }
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        const float value = ptx::widen(pixels.lanes[e]);
        const bool keep = !kMasked || mask.lanes[e] != 0;
        sums[e] += keep ? value : 0.0f;
        maxima[e] = ptx::max_or_nan(maxima[e], keep ? value : -INFINITY);
        counts[e] += keep;
      }
    }
    const bool begun = start < first;  // by the rows staged before these
    const auto add = [&](int at, float sum, float maximum, int count) {
      const int offset = (row * plan.units + at) * 4;
      unsigned char *sum_at = shared + plan.sums_at + offset, *maximum_at = shared + plan.maxima_at + offset;
      unsigned char* count_at = shared + plan.counts_at + offset;
      if (begun) {
        sum += ptx::load_shared<float>(sum_at);
        maximum = ptx::max_or_nan(maximum, ptx::load_shared<float>(maximum_at));
        if (kMasked) count += ptx::load_shared<int>(count_at);
      }
      ptx::store_shared(sum_at, sum);
      ptx::store_shared(maximum_at, maximum);
      if (kMasked) ptx::store_shared(count_at, count);
    };
    if (strip.unit == kCount) {
#pragma unroll
      for (int e = 1; e < kCount; ++e) {
        sums[0] += sums[e], maxima[0] = ptx::max_or_nan(maxima[0], maxima[e]), counts[0] += counts[e];
      }
      add(vector, sums[0], maxima[0], counts[0]);
    } else {
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        if (vector * kCount + e < strip.columns) add(vector * kCount + e, sums[e], maxima[e], counts[e]);
      }
    }
  }
}

// Adds up the partial results of every window of the strip.
template <typename T, bool kMasked>
__device__ void finish_windows(const PatchPool<T>& args, const Plan& plan, const Strip& strip, int64_t band,
                               const unsigned char* shared) {
  const int across = plan.grid_columns;
  const int64_t out = (band * plan.grid_rows + strip.first_window) * across;
  for (Walk at(across); at.row < strip.windows; at.advance()) {
    const int row = at.row, window = strip.first_window + row;
    const int first = window_first(at.column, across, strip.columns);
    const int last = window_last(at.column, across, strip.columns);
    float sum = 0.0f, maximum = -INFINITY;
    int count = 0;
    for (int unit = first / strip.unit; unit < last / strip.unit; ++unit) {
      const int offset = (row * plan.units + unit) * 4;
      sum += ptx::load_shared<float>(shared + plan.sums_at + offset);
      maximum = ptx::max_or_nan(maximum, ptx::load_shared<float>(shared + plan.maxima_at + offset));
      if (kMasked) count += ptx::load_shared<int>(shared + plan.counts_at + offset);
    }
    if (!kMasked) {
      const int high = window_last(window, plan.grid_rows, strip.rows);
      count = (high - window_first(window, plan.grid_rows, strip.rows)) * (last - first);
    }
    args.average[out + row * across + at.column] = ptx::narrow<T>(count ? sum / static_cast<float>(count) : 0.0f);
    args.maximum[out + row * across + at.column] = ptx::narrow<T>(count ? maximum : 0.0f);
  }
}

// Copies what the staged rows [first, last) hold of the kept patches. A warp looks at 32 kept patches at a time, lists
// those that these rows cross, and copies them with neighboring lanes at neighboring addresses.
template <typename T, bool kMasked>
__device__ void copy_patches(const PatchPool<T>& args, const Plan& plan, int64_t sample, int64_t band, int first,
                             int last, unsigned char* shared) {
  constexpr int kCount = kLanes<T>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int p = plan.patch_size, across = plan.width / p, patches = plan.height / p * across;
  const int step = plan.wide_copies ? kCount : 1, steps = p / step;  // elements of a copy; copies a patch row
  unsigned char* list = shared + plan.lists_at + warp * 32 * 8;
  for (int64_t start = warp * 32; start < args.kept; start += kThreads) {
    const bool there = start + lane < args.kept;
    const int64_t given = there ? args.index[sample * args.kept + start + lane] : -1;
    const int patch = given >= 0 && given < patches ? static_cast<int>(given) : patches;
    const int patch_row = patch / across * p;
    if (there && patch == patches && first == 0) {  // no patch: whoever stages the first row writes it
      T* to = args.patches + (band * args.kept + start + lane) * p * p;
      for (int i = 0; i < p * p; ++i) to[i] = ptx::narrow<T>(NAN);
    }
    const bool crossed = patch != patches && patch_row < last && patch_row + p > first;
    const uint32_t ballot = __ballot_sync(0xFFFFFFFFu, crossed);
    if (crossed) {
      const int place = __popc(ballot & ((1u << lane) - 1));
      ptx::store_shared(list + place * 8, lane);
      ptx::store_shared(list + place * 8 + 4, patch);
    }
    __syncwarp();
    for (int i = lane; i < __popc(ballot) * p * steps; i += 32) {
      const int place = i / (p * steps), within = i % (p * steps);
      const int r = within / steps, c = within % steps * step;
      const int slot = ptx::load_shared<int>(list + place * 8), chosen = ptx::load_shared<int>(list + place * 8 + 4);
      const int image_row = chosen / across * p + r;
      if (image_row < first || image_row >= last) continue;
      const int staged_row = image_row - first, column = chosen % across * p + c;
      const unsigned char* from = shared + staged_row * plan.pitch + column * static_cast<int>(sizeof(T));
      const unsigned char* mask_from = shared + plan.valid_at + staged_row * plan.mask_pitch + column;
      T* to = args.patches + ((band * args.kept + start + slot) * p + r) * p + c;
      if (plan.wide_copies) {
        auto pixels = ptx::load_shared<Vector<T>>(from);
        if (kMasked) {
          const auto mask = ptx::load_shared<Mask<T>>(mask_from);
#pragma unroll
          for (int e = 0; e < kCount; ++e) pixels.lanes[e] = mask.lanes[e] ? pixels.lanes[e] : T{};
        }
        *reinterpret_cast<Vector<T>*>(to) = pixels;
      } else {
        *to = !kMasked || ptx::load_shared<uint8_t>(mask_from) ? ptx::load_shared<T>(from) : T{};
      }
    }
    __syncwarp();  // the list is written again
  }
}

template <typename T, bool kMasked>
__global__ void __launch_bounds__(kThreads, kMasked ? 6 : 8) patch_pool_kernel(PatchPool<T> args, Plan plan) {
  unsigned char* shared = ptx::dynamic_shared();
  const int64_t band = static_cast<int>(blockIdx.x) / plan.strips;
  const int number = static_cast<int>(blockIdx.x) % plan.strips;
  int64_t sample = 0;
  Strip strip;
  if (args.extent) {
    sample = sample_of_band(args.cu_bands, args.samples, band);
    strip = strip_of<T>(plan, number, args.extent + 2 * sample);
  } else {
    strip = strip_of<T>(plan, number, nullptr);
  }
  for (int first = strip.first; first < strip.last; first += plan.stage_rows) {
    const int last = min(first + plan.stage_rows, strip.last), count = last - first;
    if (first > strip.first) __syncthreads();  // everybody is done with the rows before
    stage_image(args, plan, band, first, count, shared);
    // Where the strip does not depend on the sample, the search for it hides behind the pixels' arrival.
    if (first == strip.first && !args.extent) sample = sample_of_band(args.cu_bands, args.samples, band);
    if (kMasked) stage_valid(args, plan, sample, first, count, shared + plan.valid_at);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    pool_rows<T, kMasked>(plan, strip, first, last, shared);
    copy_patches<T, kMasked>(args, plan, sample, band, first, min(last, strip.owned_last), shared);
  }
  __syncthreads();
  finish_windows<T, kMasked>(args, plan, strip, band, shared);
}

int round_up(int64_t value, int64_t multiple) { return static_cast<int>((value + multiple - 1) / multiple * multiple); }

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <typename T>
Plan plan_for(const PatchPool<T>& args) {
  const int64_t size = sizeof(T), gh = args.grid_rows, lanes = kLanes<T>;
  Plan plan;
  plan.height = static_cast<int>(args.height), plan.width = static_cast<int>(args.width);
  plan.patch_size = static_cast<int>(args.patch_size);
  plan.grid_rows = static_cast<int>(gh), plan.grid_columns = static_cast<int>(args.grid_columns);
  plan.pitch = round_up(args.width * size, 16);
  plan.mask_pitch = round_up(args.width, 16);
  const int64_t rows_of_window = (args.height + gh - 1) / gh;
  const int64_t wanted = std::clamp<int64_t>(kStripBytes / (rows_of_window * plan.pitch), 1, gh);
  plan.strips = static_cast<int>((gh + wanted - 1) / wanted);
  plan.window_rows = static_cast<int>((gh + plan.strips - 1) / plan.strips);
  plan.strips = static_cast<int>((gh + plan.window_rows - 1) / plan.window_rows);  // none is empty
  const int64_t rows_of_strip = (plan.window_rows * args.height + gh - 1) / gh + (args.height % gh || args.extent);
  plan.stage_rows =
      static_cast<int>(std::min({rows_of_strip, args.height, std::max<int64_t>(1, kStageBytes / plan.pitch)}));
  const bool cut = args.extent != nullptr || columns_of_unit<T>(plan.width, plan.grid_columns) == 1;
  plan.units = static_cast<int>(cut ? args.width : args.width / lanes);

  const int partials = plan.window_rows * plan.units * 4;
  plan.valid_at = plan.stage_rows * plan.pitch;
  plan.sums_at = plan.valid_at + (args.valid ? plan.stage_rows * plan.mask_pitch : 0);
  plan.maxima_at = plan.sums_at + partials;
  plan.counts_at = plan.maxima_at + partials;
  plan.lists_at = round_up(plan.counts_at + (args.valid ? partials : 0), 8);
  plan.bytes = plan.lists_at + kWarps * 32 * 8;

  plan.wide_loads = args.stride_column == 1 && aligned(args.image) && args.width % lanes == 0 &&
                    args.stride_row % lanes == 0 && args.stride_band % lanes == 0;
  plan.wide_valid = aligned(args.valid) && args.width % 16 == 0;
  plan.wide_copies = args.patch_size % lanes == 0 && aligned(args.patches);
  return plan;
}

template <typename T>
void check_arguments(const PatchPool<T>& args) {
  const int64_t p = args.patch_size;
  check(args.height > 0 && args.width > 0, "patch_pool: image must have pixels; got ", args.height, " x ", args.width,
        ".");
  check(p > 0 && args.height % p == 0 && args.width % p == 0, "patch_pool: patch_size must divide the image; got ", p,
        " for an image of ", args.height, " x ", args.width, " pixels.");
  check(args.grid_rows > 0 && args.grid_columns > 0, "patch_pool: grid must be positive; got (", args.grid_rows, ", ",
        args.grid_columns, ").");
  const int64_t largest = std::max({args.height, args.width, args.grid_rows, args.grid_columns});
  check(largest <= kWidest, "patch_pool: image and grid may have up to ", kWidest, " rows and columns here; got ",
        largest, ".");
}

}  // namespace

template <typename T>
void patch_pool(const PatchPool<T>& args, Stream stream) {
  if (args.samples == 0 || args.bands == 0) return;
  check_arguments(args);
  const Plan plan = plan_for(args);
  const auto kernel = args.valid ? patch_pool_kernel<T, true> : patch_pool_kernel<T, false>;
  launch("patch_pool", kernel, args.bands * plan.strips, kThreads, plan.bytes, stream, args, plan);
}

template void patch_pool(const PatchPool<float>&, Stream);
template void patch_pool(const PatchPool<BFloat16>&, Stream);
template void patch_pool(const PatchPool<Float16>&, Stream);

}  // namespace specfast::cuda
