// The work on one band, included once for every instruction set (no include guard), inside a namespace of its own.
// Legend: patch_pool.h.

// Columns whose running sums and maxima stay in registers while the rows of a window pass.
constexpr int kBlock = 32;

// Sums and maxima of kCount adjacent columns over `rows` rows. A mask is read as bytes, of which any but 0 is true: a
// bool made from other bytes need not hold a 1.
template <bool kMasked, int kCount, typename T>
inline void reduce_block(const T* image, int64_t stride, const bool* valid, int64_t valid_stride, int64_t rows,
                         float* __restrict sums, float* __restrict maxima) {
  float sum[kCount], maximum[kCount];
  for (int c = 0; c < kCount; ++c) {
    sum[c] = 0.0f;
    maximum[c] = -kInfinity;
  }
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = image + r * stride;
    const auto* mask = reinterpret_cast<const uint8_t*>(kMasked ? valid + r * valid_stride : nullptr);
    // The same columns of the next window row: a fifth faster on images beyond the cache than the hardware's guess.
    for (int c = 0; c < kCount; c += 64 / static_cast<int>(sizeof(T))) SPECFAST_PREFETCH(row + rows * stride + c);
    for (int c = 0; c < kCount; ++c) {
      const float value = to_float(row[c]);
      const uint32_t keep = kMasked ? 0u - static_cast<uint32_t>(mask[c] != 0) : ~0u;
      const float addend = from_bits(to_bits(value) & keep);
      const float rival = from_bits((to_bits(value) & keep) | (to_bits(-kInfinity) & ~keep));
      sum[c] += addend;
      maximum[c] = rival > maximum[c] ? rival : maximum[c];
    }
  }
  for (int c = 0; c < kCount; ++c) {
    sums[c] = sum[c];
    maxima[c] = maximum[c];
  }
}

template <bool kMasked, typename T>
void reduce_columns(const T* image, int64_t stride, const bool* valid, int64_t valid_stride, int64_t rows,
                    int64_t columns, float* sums, float* maxima) {
  int64_t c = 0;
  for (; c + kBlock <= columns; c += kBlock) {
    reduce_block<kMasked, kBlock>(image + c, stride, kMasked ? valid + c : nullptr, valid_stride, rows, sums + c,
                                  maxima + c);
  }
  for (; c + 8 <= columns; c += 8) {
    reduce_block<kMasked, 8>(image + c, stride, kMasked ? valid + c : nullptr, valid_stride, rows, sums + c,
                             maxima + c);
  }
  for (; c < columns; ++c) {
    reduce_block<kMasked, 1>(image + c, stride, kMasked ? valid + c : nullptr, valid_stride, rows, sums + c,
                             maxima + c);
  }
}

template <bool kMasked, typename T>
bool holds_nan(const T* image, int64_t stride, const bool* valid, int64_t valid_stride, Window rows, Window columns) {
  const auto* mask = reinterpret_cast<const uint8_t*>(valid);
  for (int64_t r = rows.first; r < rows.last; ++r) {
    for (int64_t c = columns.first; c < columns.last; ++c) {
      const float value = to_float(image[r * stride + c]);
      if (value != value && (!kMasked || mask[r * valid_stride + c] != 0)) return true;
    }
  }
  return false;
}

// kSize is the patch size when it is known at compile time, or 0.
template <bool kMasked, int kSize, typename T>
inline void copy_patch(const T* image, int64_t stride, const bool* valid, int64_t valid_stride, int64_t patch_size,
                       T* out) {
  const int64_t size = kSize ? kSize : patch_size;
  const auto* mask = reinterpret_cast<const uint8_t*>(valid);
  for (int64_t r = 0; r < size; ++r) {
    if (!kMasked) {
      std::memcpy(out + r * size, image + r * stride, size * sizeof(T));
      continue;
    }
    for (int64_t c = 0; c < size; ++c) {
      const T value = image[r * stride + c];  // read in any case, so that the loop needs no branch
      out[r * size + c] = mask[r * valid_stride + c] != 0 ? value : T{};
    }
  }
}

// Pools one band, a row of windows after the other, and copies the kept patches of each strip while it is in cache.
template <bool kMasked, int kSize, typename T>
void pool_band_of_size(const PatchPool<T>& args, const Sample& sample, int64_t band, const T* image, int64_t stride,
                       float* sums, float* maxima) {
  const int64_t p = kSize ? kSize : args.patch_size, windows = args.grid_rows * args.grid_columns;
  const bool* valid = kMasked ? sample.valid : nullptr;
  T* average = args.average + band * windows;
  T* maximum = args.maximum + band * windows;
  T* patches = args.patches + band * args.kept * p * p;
  const int64_t* counts = sample.counts.data();
  auto next = sample.kept.begin();
  const auto copy_until = [&](int64_t last_row) {
    for (; next != sample.kept.end() && next->row + p <= last_row; ++next) {
      copy_patch<kMasked, kSize>(image + next->row * stride + next->column, stride,
                                 kMasked ? valid + next->row * args.width + next->column : nullptr, args.width, p,
                                 patches + next->slot * p * p);
    }
  };
  for (const Window rows : sample.window_rows) {
    reduce_columns<kMasked>(image + rows.first * stride, stride, kMasked ? valid + rows.first * args.width : nullptr,
                            args.width, rows.last - rows.first, sample.columns, sums, maxima);
    for (const Window columns : sample.window_columns) {
      float sum = 0.0f, largest = -kInfinity;
      for (int64_t c = columns.first; c < columns.last; ++c) {
        sum += sums[c];
        largest = maxima[c] > largest ? maxima[c] : largest;
      }
      // The comparisons above pass over a NaN, but the sum does not: where it is one, see whether a pixel is.
      if (sum != sum && holds_nan<kMasked>(image, stride, valid, args.width, rows, columns)) largest = sum;
      const int64_t pixels = *counts++;
      *average++ = from_float<T>(pixels ? sum / static_cast<float>(pixels) : 0.0f);
      *maximum++ = from_float<T>(pixels ? largest : 0.0f);
    }
    copy_until(rows.last);
  }
  copy_until(args.height);
}

template <bool kMasked, typename T>
void pool_band(const PatchPool<T>& args, const Sample& sample, int64_t band, const T* image, int64_t stride,
               float* sums, float* maxima) {
  const auto pool = args.patch_size == 8    ? pool_band_of_size<kMasked, 8, T>
                    : args.patch_size == 16 ? pool_band_of_size<kMasked, 16, T>
                                            : pool_band_of_size<kMasked, 0, T>;
  pool(args, sample, band, image, stride, sums, maxima);
}
