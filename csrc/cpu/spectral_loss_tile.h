// The loops over a tile, included once for every instruction set (no include guard), inside a namespace of its own that
// holds a vector_*.h. Legend: spectral_loss.h.

// Bands whose rows are read together: enough for the sums to be worth loading, few enough for the prefetchers.
constexpr int64_t kBandGroup = 8;

// Tokens whose coefficients stay in the first-level cache while the bands pass.
constexpr int64_t kTokenGroup = 16;

// Calls function(vectors, partial, first, count) on blocks of kVectors vectors, then of one, then on what is left:
// count pixels, fewer than kLanes.
template <int kVectors, typename Function>
inline void for_blocks(int64_t pixels, Function function) {
  int64_t p = 0;
  for (; p + kVectors * kLanes <= pixels; p += kVectors * kLanes) {
    function(std::integral_constant<int, kVectors>{}, std::false_type{}, p, int64_t{kLanes});
  }
  for (; p + kLanes <= pixels; p += kLanes) {
    function(std::integral_constant<int, 1>{}, std::false_type{}, p, int64_t{kLanes});
  }
  if (p < pixels) function(std::integral_constant<int, 1>{}, std::true_type{}, p, pixels - p);
}

template <bool kPartial, typename T>
inline Vec load_lanes(const T* from, int64_t count) {
  return kPartial ? load(from, count) : load(from);
}

template <bool kPartial, typename T>
inline void store_lanes(T* to, Vec a, int64_t count) {
  if (kPartial) {
    store(to, a, count);
  } else {
    store(to, a);
  }
}

template <typename T, typename U>
void sum_tokens(const PixelTile<T, U>& tile, int64_t first, int64_t last, float* sums, int64_t plane,
                float* charbonnier) {
  float* const rows[4] = {sums, sums + plane, sums + 2 * plane, charbonnier};
  for (int64_t group = 0; group < tile.bands; group += kBandGroup) {
    const int64_t end = group + kBandGroup < tile.bands ? group + kBandGroup : tile.bands;
    for (int64_t m = first; m < last; ++m) {
      for_blocks<kLanes == 16 ? 4 : 2>(tile.pixels, [&](auto vectors, auto partial, int64_t column, int64_t count) {
        constexpr int kVectors = decltype(vectors)::value;
        constexpr bool kPartial = decltype(partial)::value;
        const int64_t pixel = m * tile.pixels + column;
        Vec sum[4][kVectors];
        for (int row = 0; row < 4; ++row) {
          for (int v = 0; v < kVectors; ++v) {
            sum[row][v] = load_lanes<kPartial>(rows[row] + pixel + v * kLanes, count);
          }
        }
        for (int64_t c = group; c < end; ++c) {
          const T* prediction = tile.prediction + c * tile.prediction_stride + pixel;
          const U* target = tile.target + c * tile.target_stride + pixel;
          const T* bias = tile.bias ? tile.bias + c * tile.bias_stride + column : nullptr;
          for (int v = 0; v < kVectors; ++v) {
            Vec p = load_lanes<kPartial>(prediction + v * kLanes, count);
            if (bias) p = p + load_lanes<kPartial>(bias + v * kLanes, count);
            const Vec t = load_lanes<kPartial>(target + v * kLanes, count);
            const Vec d = p - t, squared = d * d, one = splat(1.0f);
            sum[0][v] = multiply_add(p, p, sum[0][v]);
            sum[1][v] = multiply_add(p, t, sum[1][v]);
            sum[2][v] = multiply_add(t, t, sum[2][v]);
            // equals sqrt(1 + d^2) - 1 without its cancellation
            sum[3][v] = sum[3][v] + squared / (one + square_root(one + squared));
          }
        }
        for (int row = 0; row < 4; ++row) {
          for (int v = 0; v < kVectors; ++v) {
            store_lanes<kPartial>(rows[row] + pixel + v * kLanes, sum[row][v], count);
          }
        }
      });
    }
  }
}

template <typename T, typename U>
void gradient_of_bands(const PixelTile<T, U>& tile, int64_t first, int64_t last, const float* coefficients,
                       int64_t plane, float slope, float* dbias) {
  for (int64_t group = 0; group < tile.tokens; group += kTokenGroup) {
    const int64_t end = group + kTokenGroup < tile.tokens ? group + kTokenGroup : tile.tokens;
    for (int64_t c = first; c < last; ++c) {
      for_blocks<kLanes == 16 ? 4 : 2>(tile.pixels, [&](auto vectors, auto partial, int64_t column, int64_t count) {
        constexpr int kVectors = decltype(vectors)::value;
        constexpr bool kPartial = decltype(partial)::value;
        Vec bias[kVectors], sum[kVectors];
        for (int v = 0; v < kVectors; ++v) {
          sum[v] = splat(0.0f);
          bias[v] = tile.bias ? load_lanes<kPartial>(tile.bias + c * tile.bias_stride + column + v * kLanes, count)
                              : splat(0.0f);
        }
        for (int64_t m = group; m < end; ++m) {
          const int64_t pixel = m * tile.pixels + column;
          T* prediction = tile.prediction + c * tile.prediction_stride + pixel;
          const U* target = tile.target + c * tile.target_stride + pixel;
          for (int v = 0; v < kVectors; ++v) {
            const float* of_pixel = coefficients + pixel + v * kLanes;
            const Vec p = load_lanes<kPartial>(prediction + v * kLanes, count) + bias[v];
            const Vec t = load_lanes<kPartial>(target + v * kLanes, count);
            const Vec d = p - t;
            const Vec of_charbonnier = splat(slope) * d / square_root(multiply_add(d, d, splat(1.0f)));
            const Vec of_cosine = multiply_add(load_lanes<kPartial>(of_pixel, count), p,
                                               load_lanes<kPartial>(of_pixel + plane, count) * t);
            const Vec keep = load_lanes<kPartial>(of_pixel + 2 * plane, count);
            const Vec gradient = bitwise_and(of_charbonnier + of_cosine, keep);
            store_lanes<kPartial>(prediction + v * kLanes, gradient, count);
            sum[v] = sum[v] + gradient;
          }
        }
        if (dbias == nullptr) return;
        float* out = dbias + c * tile.pixels + column;
        for (int v = 0; v < kVectors; ++v) {
          store_lanes<kPartial>(out + v * kLanes, sum[v] + load_lanes<kPartial>(out + v * kLanes, count), count);
        }
      });
    }
  }
}

struct Cosine {
  Vec of_norm_p, norm_p, norm_t, value;
};

template <bool kPartial>
inline Cosine cosine_of(const float* sums, int64_t plane, int64_t count) {
  Cosine cosine;
  cosine.of_norm_p = square_root(load_lanes<kPartial>(sums, count));
  cosine.norm_p = at_least(cosine.of_norm_p, kCosineEps);
  cosine.norm_t = at_least(square_root(load_lanes<kPartial>(sums + 2 * plane, count)), kCosineEps);
  cosine.value = load_lanes<kPartial>(sums + plane, count) / (cosine.norm_p * cosine.norm_t);
  return cosine;
}

// The bits of `keep` of the pixels that valid says count.
inline Vec valid_bits(const bool* valid, int64_t count) {
  float keep[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) keep[i] = from_bits(valid[i] ? ~0u : 0u);
  return load(keep);
}

inline void loss_of_sums(const PixelLoss& sample, float* loss) {
  const int64_t plane = sample.tokens * sample.pixels;
  const float per_band = 1.0f / static_cast<float>(sample.bands > 1 ? sample.bands : 1);
  double spectral = 0, charbonnier = 0;
  int64_t counted = 0;
  for (int64_t m = 0; m < sample.tokens; ++m) {
    Vec row_spectral = splat(0.0f), row_charbonnier = splat(0.0f);
    for_blocks<1>(sample.pixels, [&](auto, auto partial, int64_t column, int64_t count) {
      constexpr bool kPartial = decltype(partial)::value;
      const int64_t pixel = m * sample.pixels + column;
      const Vec keep = valid_bits(sample.valid + pixel, count);
      const Vec cosine = cosine_of<kPartial>(sample.sums + pixel, plane, count).value;
      row_spectral = row_spectral + bitwise_and(splat(1.0f) - cosine, keep);
      row_charbonnier = row_charbonnier + bitwise_and(load_lanes<kPartial>(sample.charbonnier + pixel, count), keep);
      for (int64_t i = 0; i < count; ++i) counted += sample.valid[pixel + i];
    });
    spectral += sum_of_lanes(row_spectral);
    charbonnier += sum_of_lanes(row_charbonnier);
  }
  loss[0] = static_cast<float>(spectral);
  loss[1] = static_cast<float>(charbonnier * per_band);
  loss[2] = static_cast<float>(counted);
}

inline void loss_coefficients(const PixelLoss& sample, float dspectral, float* coefficients) {
  const int64_t plane = sample.tokens * sample.pixels;
  for_blocks<1>(plane, [&](auto, auto partial, int64_t pixel, int64_t count) {
    constexpr bool kPartial = decltype(partial)::value;
    const Cosine cosine = cosine_of<kPartial>(sample.sums + pixel, plane, count);
    // below kCosineEps the norm is a constant, so its own derivative vanishes
    const Vec of_prediction =
        where_above(cosine.of_norm_p, kCosineEps, splat(dspectral) * cosine.value / (cosine.norm_p * cosine.norm_p));
    store_lanes<kPartial>(coefficients + pixel, of_prediction, count);
    store_lanes<kPartial>(coefficients + plane + pixel, splat(-dspectral) / (cosine.norm_p * cosine.norm_t), count);
    store_lanes<kPartial>(coefficients + 2 * plane + pixel, valid_bits(sample.valid + pixel, count), count);
  });
}
