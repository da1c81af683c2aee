#include <cuda_runtime.h>

#include "cuda/device.h"

namespace specfast::cuda {
namespace {

// Compiled for the same architectures as all kernels: what holds for it holds for them.
__global__ void probe_kernel() {}

}  // namespace

std::string problem_of_device() {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(probe_kernel));
  if (error == cudaSuccess) return "";
  cudaGetLastError();  // not to be found by the next launch
  return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
}

}  // namespace specfast::cuda
