// float8_e4m3fn, on processors and GPUs alike: a sign, four bits of exponent (bias 7), three of mantissa; up to 448,
// one NaN of each sign and no infinity. Blocks of elements share a scale, a power of two, so that scaling rounds
// nothing.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define SPECFAST_EVERYWHERE __host__ __device__ __forceinline__
#elif defined(__GNUC__) || defined(__clang__)
#define SPECFAST_EVERYWHERE inline __attribute__((always_inline))
#else
#define SPECFAST_EVERYWHERE inline
#endif

namespace specfast {

struct Float8 {
  uint8_t bits;
};

namespace float8 {

constexpr int64_t kBlock = 256;  // elements that share a scale
constexpr uint32_t kNan = 0x7F;

// Bits of float32: all but the sign, infinity, 448, 2^-6, and 2^14, whose last bit is worth 2^-9.
constexpr uint32_t kMagnitude = 0x7FFFFFFF, kInfinity = 0x7F800000, kMost = 0x43E00000;
constexpr uint32_t kLeastNormal = 0x3C800000, kUnits = 0x46800000;
// 1.9375 * 2^127: from there on, rounding to float8 would carry a number beyond float32, so it is sent as NaN. What is
// smaller makes every product of a code and a scale exact, and a fused multiply-add no different from two operations.
constexpr uint32_t kTooLarge = 0x7F780000;

SPECFAST_EVERYWHERE uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

SPECFAST_EVERYWHERE float number_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// The bits of the magnitude of a number that can be sent; 0 of one that cannot.
SPECFAST_EVERYWHERE uint32_t sendable_magnitude(float value) {
  const uint32_t magnitude = bits_of(value) & kMagnitude;
  return magnitude & (0u - static_cast<uint32_t>(magnitude < kTooLarge));  // a select would become a branch
}

SPECFAST_EVERYWHERE float finite_or_zero(float value) {
  const uint32_t bits = bits_of(value);
  return number_of((bits & kMagnitude) < kInfinity ? bits : 0);
}

// The biased exponent of the least power of two, and at least 2^-126, that brings a block within 448 = 1.75 * 2^8,
// from the bits of its largest magnitude: a mantissa above 1.75 carries into the exponent.
SPECFAST_EVERYWHERE uint32_t scale_exponent(uint32_t largest) {
  const uint32_t exponent = (largest + 0x1FFFFF) >> 23;
  return exponent > 9 ? exponent - 8 : 1;
}

SPECFAST_EVERYWHERE float power(uint32_t exponent) { return number_of(exponent << 23); }
SPECFAST_EVERYWHERE float inverse_power(uint32_t exponent) { return number_of((254 - exponent) << 23); }

// To nearest, ties to even, of a number over its scale; what is over 448 then, or not finite, cannot be sent and
// becomes NaN. Below 2^-6 the adder rounds: there the codes count units of 2^-9.
SPECFAST_EVERYWHERE uint32_t encode(float scaled) {
  const uint32_t bits = bits_of(scaled), magnitude = bits & kMagnitude;
  const uint32_t normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3);
  const uint32_t small = bits_of(number_of(magnitude) + number_of(kUnits)) - kUnits;
  const uint32_t code = magnitude < kLeastNormal ? small : normal;
  return (magnitude <= kMost ? code : kNan) | (bits >> 31 << 7);
}

// Codes below 8 are mantissas without the leading one: decoded with it, and less its worth, so that no float32 number
// on the way is subnormal, which costs some processors a hundred cycles.
SPECFAST_EVERYWHERE float decode(uint32_t code) {
  const uint32_t magnitude = code & kNan, leading = magnitude < 8 ? 8 : 0;
  const float worth = number_of(magnitude < 8 ? kLeastNormal : 0);
  const float value = number_of(((magnitude | leading) << 20) + (120u << 23)) - worth;
  return number_of((magnitude == kNan ? kMagnitude : bits_of(value)) | (code >> 7 << 31));
}

}  // namespace float8
}  // namespace specfast
