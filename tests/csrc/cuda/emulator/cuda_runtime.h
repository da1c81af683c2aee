// In place of CUDA's header of this name: the language's keywords and the few runtime functions the launchers call.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>

#include "block.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_size = 1) : x(x_size) {}
};

// Names that read as the variables they stand for.
struct EmulatedThread {
  struct X {
    operator unsigned() const { return static_cast<unsigned>(emulator::Block::now().thread); }
  } x;
};
struct EmulatedBlock {
  struct X {
    operator unsigned() const { return static_cast<unsigned>(emulator::Block::now().index); }
  } x;
};
inline const EmulatedThread threadIdx;
inline const EmulatedBlock blockIdx;

using std::max;
using std::min;

inline void __syncthreads() { emulator::Block::now().sync_block(); }
inline void __syncwarp() { emulator::Block::now().sync_warp(); }
inline int __popc(uint32_t bits) { return __builtin_popcount(bits); }

inline uint32_t __ballot_sync(uint32_t mask, bool vote) {
  if (mask != 0xFFFFFFFFu) emulator::Block::now().fail("a ballot of less than the warp");
  emulator::Lane mine = {};
  mine.vote = vote;
  return emulator::Block::now()
      .together("ballot", mine,
                [](emulator::Lane* lanes) {
                  uint32_t ballot = 0;
                  for (int i = 0; i < emulator::kWarp; ++i) ballot |= static_cast<uint32_t>(lanes[i].vote) << i;
                  for (int i = 0; i < emulator::kWarp; ++i) lanes[i].ballot = ballot;
                })
      .ballot;
}

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

namespace emulator {
inline int shared_limit = 227 * 1024;  // of a block, as Hopper's
inline std::map<const void*, int> allowed;
}  // namespace emulator

inline const char* cudaGetErrorName(cudaError_t error) { return error ? "cudaErrorInvalidValue" : "cudaSuccess"; }
inline const char* cudaGetErrorString(cudaError_t error) { return error ? "invalid argument" : "no error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = emulator::shared_limit, cudaSuccess;
}

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  if (bytes > emulator::shared_limit) return cudaErrorInvalidValue;
  emulator::allowed[kernel] = bytes;
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const auto allowed = emulator::allowed.find(reinterpret_cast<const void*>(kernel));
  const size_t limit = allowed == emulator::allowed.end() ? 48 * 1024 : allowed->second;
  const unsigned blocks = config->gridDim.x, threads = config->blockDim.x;
  if (config->dynamicSmemBytes > limit || blocks == 0 || threads == 0 || threads > 1024) return cudaErrorInvalidValue;
  emulator::Block& block = emulator::Block::now();
  for (unsigned i = 0; i < blocks; ++i) {
    block.run(block.order == 1 ? blocks - 1 - i : i, static_cast<int>(threads), config->dynamicSmemBytes,
              [&] { kernel(arguments...); });
  }
  return cudaSuccess;
}
