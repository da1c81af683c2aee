// Element types that cross the binding, and the dispatch from their torch names.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "common/checks.h"

namespace specfast {

struct BFloat16 {
  uint16_t bits;
};

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float to_float(float value) { return value; }

inline float to_float(BFloat16 value) { return from_bits(static_cast<uint32_t>(value.bits) << 16); }

template <typename T>
T from_float(float value);

template <>
inline float from_float<float>(float value) {
  return value;
}

// Rounds to nearest, ties to even; a NaN stays one (rounding alone could carry its bits into infinity).
template <>
inline BFloat16 from_float<BFloat16>(float value) {
  const uint32_t bits = to_bits(value);
  if (value != value) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)};
}

// Calls function with a value of the element type that `name` ("float32", "bfloat16") of an argument stands for.
template <typename Function>
void dispatch_dtype(const char* op, const char* argument, const std::string& name, Function function) {
  if (name == "float32") {
    function(float{});
  } else if (name == "bfloat16") {
    function(BFloat16{});
  } else {
    check(false, op, ": ", argument, " must be float32 or bfloat16 here; got ", name, ".");
  }
}

}  // namespace specfast
