// Whether the kernels can run at all: driver, device and the architectures they were compiled for.
#pragma once

#include <string>

namespace specfast::cuda {

// What keeps the kernels from running on the current device, in CUDA's words; empty if nothing does.
std::string problem_of_device();

}  // namespace specfast::cuda
