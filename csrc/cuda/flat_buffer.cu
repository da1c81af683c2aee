#include <cstdint>
#include <type_traits>

#include "common/checks.h"
#include "cuda/flat_buffer.h"
#include "cuda/ptx.cuh"
#include "cuda/runtime.h"

// A warp owns a block of 256 elements, so that the largest of them is found without shared memory. Both kernels are
// bound by memory: expected time is their bytes at its bandwidth (float8, 100 M elements on an H200: 2.1 GB to pack,
// 0.44 ms; 1.2 GB to average four, 0.25 ms).
namespace specfast::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

template <typename V, int kCount>
struct alignas(sizeof(V) * kCount) Several {
  V lanes[kCount];
};

// Calls function(first, count) for runs of kCount neighbors that this lane has of a block of `left` elements.
template <int kCount, typename Function>
__device__ __forceinline__ void for_runs(int64_t left, Function function) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int run = 0; run < static_cast<int>(float8::kBlock) / 32 / kCount; ++run) {
    const int first = (run * 32 + lane) * kCount;
    const int64_t rest = left - first;
    function(run, first, static_cast<int>(rest < 0 ? 0 : rest < kCount ? rest : kCount));
  }
}

template <int kCount, typename V>
__device__ __forceinline__ Several<V, kCount> load(const V* from, int count, bool wide) {
  if (wide) return *reinterpret_cast<const Several<V, kCount>*>(from);
  Several<V, kCount> result;
#pragma unroll
  for (int i = 0; i < kCount; ++i) result.lanes[i] = i < count ? from[i] : V{};
  return result;
}

__device__ __forceinline__ void store(float* to, const Several<float, 4>& values, int count, bool wide) {
  if (wide) {
    ptx::store16(to, values.lanes);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count) to[i] = values.lanes[i];
  }
}

// Four narrow elements, the first in the lowest bits.
template <typename W>
__device__ __forceinline__ void store_packed(W* to, uint64_t bits, int count, bool wide) {
  using Word = std::conditional_t<sizeof(W) == 1, uint32_t, uint64_t>;
  if (wide) {
    *reinterpret_cast<Word*>(to) = static_cast<Word>(bits);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count) to[i].bits = static_cast<decltype(W::bits)>(bits >> (8 * sizeof(W) * i));
  }
}

__device__ __forceinline__ float delta_of(BFloat16 sent, float) { return ptx::widen(sent); }
__device__ __forceinline__ float delta_of(Float8 sent, float scale) { return float8::decode(sent.bits) * scale; }

template <typename W>
__global__ void __launch_bounds__(kThreads) delta_pack_kernel(DeltaPack<W> args, bool aligned) {
  constexpr int kCount = 4, kRuns = static_cast<int>(float8::kBlock) / 32 / kCount;
  const int64_t block = static_cast<int64_t>(static_cast<unsigned>(blockIdx.x)) * kWarps + threadIdx.x / 32;
  const int64_t at = block * float8::kBlock, left = args.count - at;
  if (left <= 0) return;
  const bool wide = aligned && left >= float8::kBlock;
  Several<float, kCount> totals[kRuns];
  uint32_t largest = 0;
  for_runs<kCount>(left, [&](int run, int first, int count) {
    const auto values = load<kCount>(args.values + at + first, count, wide);
    const auto reference = load<kCount>(args.reference + at + first, count, wide);
    const auto residual = load<kCount>(args.residual + at + first, count, wide);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float total = (values.lanes[i] - reference.lanes[i]) + residual.lanes[i];
      const uint32_t magnitude = float8::sendable_magnitude(total);
      totals[run].lanes[i] = total;
      largest = largest < magnitude ? magnitude : largest;
    }
  });
  uint32_t exponent = 0;
  if (std::is_same<W, Float8>::value) {
    exponent = float8::scale_exponent(ptx::warp_max(largest));
    if (threadIdx.x % 32 == 0) args.scales[block] = float8::power(exponent);
  }
  const float scale = float8::power(exponent), inverse = float8::inverse_power(exponent);
  for_runs<kCount>(left, [&](int run, int first, int count) {
    uint64_t bits = 0;
    Several<float, kCount> residual;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float total = totals[run].lanes[i];
      W sent;
      if constexpr (std::is_same<W, Float8>::value) {
        sent.bits = static_cast<uint8_t>(float8::encode(total * inverse));
      } else {
        sent = ptx::narrow<BFloat16>(total);
      }
      bits |= static_cast<uint64_t>(sent.bits) << (8 * sizeof(W) * i);
      residual.lanes[i] = float8::finite_or_zero(total - delta_of(sent, scale));
    }
    store_packed(args.packed + at + first, bits, count, wide);
    store(args.residual + at + first, residual, count, wide);
  });
}

template <typename W>
__global__ void __launch_bounds__(kThreads) delta_average_kernel(DeltaAverage<W> args, bool aligned) {
  constexpr int kCount = 8;
  const int64_t block = static_cast<int64_t>(static_cast<unsigned>(blockIdx.x)) * kWarps + threadIdx.x / 32;
  const int64_t at = block * float8::kBlock, left = args.count - at;
  if (left <= 0) return;
  const bool wide = aligned && left >= float8::kBlock;
  const int64_t blocks = (args.count + float8::kBlock - 1) / float8::kBlock;
  const float members = static_cast<float>(args.members);
  for_runs<kCount>(left, [&](int, int first, int count) {
    // 16 bytes at a time, on their way while the deltas are added
    auto low = load<4>(args.reference + at + first, count, wide);
    auto high = load<4>(args.reference + at + first + 4, count - 4, wide);
    Several<float, kCount> sums;
    const auto delta = [&](int64_t member, bool add) {
      const float scale = args.scales ? args.scales[member * blocks + block] : 1.0f;
      const auto packed = load<kCount>(args.packed + member * args.count + at + first, count, wide);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float value = delta_of(packed.lanes[i], scale);
        sums.lanes[i] = add ? sums.lanes[i] + value : value;
      }
    };
    delta(0, false);
#pragma unroll 4
    for (int64_t member = 1; member < args.members; ++member) delta(member, true);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      low.lanes[i] += sums.lanes[i] / members;
      high.lanes[i] += sums.lanes[i + 4] / members;
    }
    store(args.values + at + first, low, count, wide);
    store(args.values + at + first + 4, high, count - 4, wide);
  });
}

bool aligned_to(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

}  // namespace

template <typename W>
void delta_pack(const DeltaPack<W>& args, Stream stream) {
  check(args.count >= 0, "delta_pack: count must not be negative; got ", args.count, ".");
  if (args.count == 0) return;
  const bool aligned = aligned_to(args.values, 16) && aligned_to(args.reference, 16) && aligned_to(args.residual, 16) &&
                       aligned_to(args.packed, 4 * sizeof(W));
  const int64_t blocks = (args.count + float8::kBlock * kWarps - 1) / (float8::kBlock * kWarps);
  launch("delta_pack", delta_pack_kernel<W>, blocks, kThreads, 0, stream, args, aligned);
}

template <typename W>
void delta_average(const DeltaAverage<W>& args, Stream stream) {
  check(args.count >= 0, "delta_average: count must not be negative; got ", args.count, ".");
  check(args.members > 0, "delta_average: members must be positive; got ", args.members, ".");
  if (args.count == 0) return;
  const bool aligned = aligned_to(args.values, 16) && aligned_to(args.reference, 16) &&
                       aligned_to(args.packed, 8 * sizeof(W)) && (args.members == 1 || args.count % 8 == 0);
  const int64_t blocks = (args.count + float8::kBlock * kWarps - 1) / (float8::kBlock * kWarps);
  launch("delta_average", delta_average_kernel<W>, blocks, kThreads, 0, stream, args, aligned);
}

template void delta_pack(const DeltaPack<BFloat16>&, Stream);
template void delta_pack(const DeltaPack<Float8>&, Stream);
template void delta_average(const DeltaAverage<BFloat16>&, Stream);
template void delta_average(const DeltaAverage<Float8>&, Stream);

}  // namespace specfast::cuda
