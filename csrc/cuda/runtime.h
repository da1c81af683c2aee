// Launches with every error checked: Python sees a RuntimeError that names the operator and what CUDA says.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace specfast::cuda {

inline void check_cuda(const char* op, const char* step, cudaError_t error) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(op) + ": " + step + " failed: " + cudaGetErrorName(error) + " (" +
                           cudaGetErrorString(error) + ")");
}

// Bytes of shared memory that one block may ask for on the current device.
inline size_t shared_memory_limit(const char* op) {
  int device = 0, bytes = 0;
  check_cuda(op, "cudaGetDevice", cudaGetDevice(&device));
  check_cuda(op, "cudaDeviceGetAttribute",
             cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return static_cast<size_t>(bytes);
}

// Launches a one-dimensional grid on the stream; does not wait for it.
template <typename... Parameters, typename... Arguments>
void launch(const char* op, void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes,
            cudaStream_t stream, Arguments... arguments) {
  constexpr int64_t kMostBlocks = 0x7FFFFFFF;
  if (blocks > kMostBlocks) throw std::runtime_error(std::string(op) + ": more work than one launch can hold");
  if (shared_bytes > 48 * 1024) {
    check_cuda(op, "cudaFuncSetAttribute",
               cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)));
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  check_cuda(op, "launch", cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
  check_cuda(op, "launch", cudaGetLastError());
}

}  // namespace specfast::cuda
