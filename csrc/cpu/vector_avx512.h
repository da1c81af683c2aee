// 16 float32 lanes for the kernels that spell out their vectors. Included inside a target region and a namespace.

constexpr int kLanes = 16;

struct Vec {
  __m512 lanes;
};

inline Vec splat(float value) { return {_mm512_set1_ps(value)}; }
inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.lanes, b.lanes)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.lanes, b.lanes)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.lanes, b.lanes)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.lanes, b.lanes)}; }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.lanes, b.lanes, c.lanes)}; }
inline Vec square_root(Vec a) { return {_mm512_sqrt_ps(a.lanes)}; }
// max(low, a); a NaN in a stays.
inline Vec at_least(Vec a, float low) { return {_mm512_max_ps(_mm512_set1_ps(low), a.lanes)}; }
// Lanes of a where `test` exceeds `low`, else 0.
inline Vec where_above(Vec test, float low, Vec a) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(test.lanes, _mm512_set1_ps(low), _CMP_GT_OQ), a.lanes)};
}
inline Vec bitwise_and(Vec a, Vec b) {
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a.lanes), _mm512_castps_si512(b.lanes)))};
}
inline float sum_of_lanes(Vec a) { return _mm512_reduce_add_ps(a.lanes); }

inline __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }

inline __m512 widen(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// To nearest, ties to even; a NaN stays one.
inline __m256i narrow(__m512 a) {
  const __m512i bits = _mm512_castps_si512(a), high = _mm512_srli_epi32(bits, 16);
  const __m512i even = _mm512_add_epi32(_mm512_set1_epi32(0x7FFF), _mm512_and_si512(high, _mm512_set1_epi32(1)));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, even), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40)));
}

inline Vec load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline Vec load(const BFloat16* from) { return {widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))}; }
inline void store(float* to, Vec a) { _mm512_storeu_ps(to, a.lanes); }
inline void store(BFloat16* to, Vec a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(a.lanes)); }

// The first `count` < kLanes lanes; the others are 0.
inline Vec load(const float* from, int64_t count) { return {_mm512_maskz_loadu_ps(first_lanes(count), from)}; }
inline Vec load(const BFloat16* from, int64_t count) {
  return {widen(_mm256_maskz_loadu_epi16(first_lanes(count), from))};
}
inline void store(float* to, Vec a, int64_t count) { _mm512_mask_storeu_ps(to, first_lanes(count), a.lanes); }
inline void store(BFloat16* to, Vec a, int64_t count) {
  _mm256_mask_storeu_epi16(to, first_lanes(count), narrow(a.lanes));
}
