// 8 float32 lanes: see vector_avx512.h.

constexpr int kLanes = 8;

struct Vec {
  __m256 lanes;
};

inline Vec splat(float value) { return {_mm256_set1_ps(value)}; }
inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.lanes, b.lanes)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.lanes, b.lanes)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.lanes, b.lanes)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.lanes, b.lanes)}; }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.lanes, b.lanes, c.lanes)}; }
inline Vec square_root(Vec a) { return {_mm256_sqrt_ps(a.lanes)}; }
inline Vec at_least(Vec a, float low) { return {_mm256_max_ps(_mm256_set1_ps(low), a.lanes)}; }
inline Vec bitwise_and(Vec a, Vec b) { return {_mm256_and_ps(a.lanes, b.lanes)}; }
inline Vec where_above(Vec test, float low, Vec a) {
  return {_mm256_and_ps(_mm256_cmp_ps(test.lanes, _mm256_set1_ps(low), _CMP_GT_OQ), a.lanes)};
}
inline float sum_of_lanes(Vec a) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.lanes), _mm256_extractf128_ps(a.lanes, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline __m256 widen(__m128i halves) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

inline __m128i narrow(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a), high = _mm256_srli_epi32(bits, 16);
  const __m256i even = _mm256_add_epi32(_mm256_set1_epi32(0x7FFF), _mm256_and_si256(high, _mm256_set1_epi32(1)));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, even), 16);
  const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  const __m256i words = _mm256_blendv_epi8(rounded, quiet, nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

inline Vec load(const float* from) { return {_mm256_loadu_ps(from)}; }
inline Vec load(const BFloat16* from) { return {widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))}; }
inline void store(float* to, Vec a) { _mm256_storeu_ps(to, a.lanes); }
inline void store(BFloat16* to, Vec a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrow(a.lanes)); }

template <typename T>
inline Vec load(const T* from, int64_t count) {
  T padded[kLanes] = {};
  std::memcpy(padded, from, count * sizeof(T));
  return load(padded);
}

template <typename T>
inline void store(T* to, Vec a, int64_t count) {
  T padded[kLanes];
  store(padded, a);
  std::memcpy(to, padded, count * sizeof(T));
}
