// 4 float32 lanes in portable C++: see vector_avx512.h.

constexpr int kLanes = 4;

struct Vec {
  float lanes[kLanes];
};

template <typename Function>
inline Vec each_lane(Function function) {
  Vec result;
  for (int i = 0; i < kLanes; ++i) result.lanes[i] = function(i);
  return result;
}

inline Vec splat(float value) {
  return each_lane([&](int) { return value; });
}
inline Vec operator+(Vec a, Vec b) {
  return each_lane([&](int i) { return a.lanes[i] + b.lanes[i]; });
}
inline Vec operator-(Vec a, Vec b) {
  return each_lane([&](int i) { return a.lanes[i] - b.lanes[i]; });
}
inline Vec operator*(Vec a, Vec b) {
  return each_lane([&](int i) { return a.lanes[i] * b.lanes[i]; });
}
inline Vec operator/(Vec a, Vec b) {
  return each_lane([&](int i) { return a.lanes[i] / b.lanes[i]; });
}
inline Vec multiply_add(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec square_root(Vec a) {
  return each_lane([&](int i) { return std::sqrt(a.lanes[i]); });
}
inline Vec at_least(Vec a, float low) {
  return each_lane([&](int i) { return a.lanes[i] < low ? low : a.lanes[i]; });
}
inline Vec where_above(Vec test, float low, Vec a) {
  return each_lane([&](int i) { return test.lanes[i] > low ? a.lanes[i] : 0.0f; });
}
inline Vec bitwise_and(Vec a, Vec b) {
  return each_lane([&](int i) { return from_bits(to_bits(a.lanes[i]) & to_bits(b.lanes[i])); });
}
inline float sum_of_lanes(Vec a) { return (a.lanes[0] + a.lanes[2]) + (a.lanes[1] + a.lanes[3]); }

template <typename T>
inline Vec load(const T* from) {
  return each_lane([&](int i) { return to_float(from[i]); });
}
template <typename T>
inline void store(T* to, Vec a) {
  for (int i = 0; i < kLanes; ++i) to[i] = from_float<T>(a.lanes[i]);
}
template <typename T>
inline Vec load(const T* from, int64_t count) {
  return each_lane([&](int i) { return i < count ? to_float(from[i]) : 0.0f; });
}
template <typename T>
inline void store(T* to, Vec a, int64_t count) {
  for (int i = 0; i < count; ++i) to[i] = from_float<T>(a.lanes[i]);
}
