#include "cpu/flat_buffer.h"

#include <algorithm>

#include "common/checks.h"
#include "common/target.h"

namespace specfast {
namespace {

constexpr int64_t kBlocksOfThread = 64;  // fewer are not worth waking one

namespace baseline {
#include "cpu/flat_buffer_blocks.h"
}

#if SPECFAST_X86_TARGETS
SPECFAST_BEGIN_TARGET("avx2,fma")
namespace avx2 {
#include "cpu/flat_buffer_blocks.h"
}
SPECFAST_END_TARGET
SPECFAST_BEGIN_TARGET("avx512f,avx512bw,avx512dq,avx512vl")
namespace avx512 {
#include "cpu/flat_buffer_blocks.h"
}
SPECFAST_END_TARGET
#define SPECFAST_CHOOSE(capability, ...)                  \
  (capability == Capability::avx512 ? avx512::__VA_ARGS__ \
   : capability == Capability::avx2 ? avx2::__VA_ARGS__   \
                                    : baseline::__VA_ARGS__)
#else
#define SPECFAST_CHOOSE(capability, ...) (static_cast<void>(capability), baseline::__VA_ARGS__)
#endif

// Calls function(args, first block, last block) in every thread.
template <typename Args>
void in_threads(const char* op, const Args& args, int threads, void (*function)(const Args&, int64_t, int64_t)) {
  check(args.count >= 0, op, ": count must not be negative; got ", args.count, ".");
  check(threads > 0, op, ": threads must be positive; got ", threads, ".");
  const int64_t blocks = (args.count + float8::kBlock - 1) / float8::kBlock;
  threads = static_cast<int>(std::clamp<int64_t>(blocks / kBlocksOfThread, 1, threads));
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int worker = 0; worker < threads; ++worker) {
    function(args, blocks * worker / threads, blocks * (worker + 1) / threads);
  }
}

}  // namespace

template <typename W>
void delta_pack(const DeltaPack<W>& args, int threads, Capability capability) {
  in_threads("delta_pack", args, threads, SPECFAST_CHOOSE(capability, pack_blocks<W>));
}

template <typename W>
void delta_average(const DeltaAverage<W>& args, int threads, Capability capability) {
  check(args.members > 0, "delta_average: members must be positive; got ", args.members, ".");
  in_threads("delta_average", args, threads, SPECFAST_CHOOSE(capability, average_blocks<W>));
}

template void delta_pack(const DeltaPack<BFloat16>&, int, Capability);
template void delta_pack(const DeltaPack<Float8>&, int, Capability);
template void delta_average(const DeltaAverage<BFloat16>&, int, Capability);
template void delta_average(const DeltaAverage<Float8>&, int, Capability);

}  // namespace specfast
