// The arguments of patch_pool, in host memory for csrc/cpu and in device memory for csrc/cuda.
//
// Legend: B samples, S all bands, H x W pixels, p patch size, K kept patches a sample, (gh, gw) pooling grid.
#pragma once

#include <cstdint>

namespace specfast {

template <typename T>
struct PatchPool {
  const T* image;  // [S, H, W]
  int64_t bands, height, width;
  int64_t stride_band, stride_row, stride_column;  // in elements

  const int64_t* index;     // [B, K], patches in raster order of the H/p x W/p grid
  const int32_t* cu_bands;  // [B + 1]
  const bool* valid;        // [B, H, W], or null: every pixel is
  const int64_t* extent;    // [B, 2] rows and columns before padding, or null: H x W
  int64_t samples, kept;
  int64_t patch_size, grid_rows, grid_columns;

  T* patches;  // [S, K, p * p]
  T* average;  // [S, gh * gw]
  T* maximum;  // [S, gh * gw]
};

}  // namespace specfast
