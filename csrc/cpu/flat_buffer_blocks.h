// The loops over blocks, included once for every instruction set (no include guard), inside a namespace of its own:
// plain arithmetic without a branch, which the compiler turns into vectors. Legend: common/flat_buffer.h.

inline void pack_block(const float* values, const float* reference, float* __restrict residual, int64_t count,
                       BFloat16* __restrict packed, float*) {
  for (int64_t i = 0; i < count; ++i) {
    const float total = (values[i] - reference[i]) + residual[i];
    const uint32_t bits = to_bits(total), nearest = bits + 0x7FFF + ((bits >> 16) & 1);
    const uint32_t sent = total != total ? bits | 0x400000 : nearest;  // a NaN that stays one
    packed[i].bits = static_cast<uint16_t>(sent >> 16);
    residual[i] = float8::finite_or_zero(total - from_bits(sent & 0xFFFF0000));
  }
}

inline void pack_block(const float* values, const float* reference, float* __restrict residual, int64_t count,
                       Float8* __restrict packed, float* scale) {
  float totals[float8::kBlock];
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float total = (values[i] - reference[i]) + residual[i];
    const uint32_t magnitude = float8::sendable_magnitude(total);
    totals[i] = total;
    largest = std::max(largest, magnitude);
  }
  const uint32_t exponent = float8::scale_exponent(largest);
  const float by = float8::power(exponent), inverse = float8::inverse_power(exponent);
  *scale = by;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t code = float8::encode(totals[i] * inverse);
    packed[i].bits = static_cast<uint8_t>(code);
    residual[i] = float8::finite_or_zero(totals[i] - float8::decode(code) * by);
  }
}

template <typename W>
void pack_blocks(const DeltaPack<W>& args, int64_t first, int64_t last) {
  for (int64_t block = first; block < last; ++block) {
    const int64_t at = block * float8::kBlock, left = args.count - at;
    pack_block(args.values + at, args.reference + at, args.residual + at, left < float8::kBlock ? left : float8::kBlock,
               args.packed + at, args.scales ? args.scales + block : nullptr);
  }
}

inline float delta_of(BFloat16 sent, float) { return to_float(sent); }
inline float delta_of(Float8 sent, float scale) { return float8::decode(sent.bits) * scale; }

template <typename W>
void average_blocks(const DeltaAverage<W>& args, int64_t first, int64_t last) {
  const int64_t blocks = (args.count + float8::kBlock - 1) / float8::kBlock;
  const auto members = static_cast<float>(args.members);
  float sums[float8::kBlock];
  for (int64_t block = first; block < last; ++block) {
    const int64_t at = block * float8::kBlock, left = args.count - at;
    const int64_t count = left < float8::kBlock ? left : float8::kBlock;
    for (int64_t m = 0; m < args.members; ++m) {
      const float scale = args.scales ? args.scales[m * blocks + block] : 1.0f;
      const W* packed = args.packed + m * args.count + at;
      if (m == 0) {
        for (int64_t i = 0; i < count; ++i) sums[i] = delta_of(packed[i], scale);
      } else {
        for (int64_t i = 0; i < count; ++i) sums[i] += delta_of(packed[i], scale);
      }
    }
    float* values = args.values + at;
    const float* reference = args.reference + at;
#pragma omp simd  // where values are the reference, each element still meets only itself
    for (int64_t i = 0; i < count; ++i) values[i] = reference[i] + sums[i] / members;
  }
}
