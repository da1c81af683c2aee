// Element types of the CUDA kernels, and the dispatch from their torch names.
#pragma once

#include <cstdint>
#include <string>

#include "common/checks.h"
#include "common/dtype.h"

namespace specfast::cuda {

struct Float16 {
  uint16_t bits;
};

// Calls function with a value of the element type that `name` stands for; 32-bit floats only if the operator has them.
template <bool kWithFloat32, typename Function>
void dispatch_dtype(const char* op, const std::string& name, Function function) {
  if (name == "bfloat16") {
    function(BFloat16{});
  } else if (name == "float16") {
    function(Float16{});
  } else if constexpr (kWithFloat32) {
    check(name == "float32", op, ": expected float32, bfloat16 or float16; got ", name, ".");
    function(float{});
  } else {
    check(false, op, ": expected bfloat16 or float16; got ", name, ".");
  }
}

}  // namespace specfast::cuda
