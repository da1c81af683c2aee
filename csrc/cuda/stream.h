// CUDA's stream without CUDA's headers, which the C++ compiler need not find: only nvcc reads those.
#pragma once

struct CUstream_st;

namespace specfast::cuda {

using Stream = CUstream_st*;

}  // namespace specfast::cuda
