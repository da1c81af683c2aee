// One read of every band: adaptive average and maximum over a grid, and the gather of the kept patches.
//
// Legend: B samples, S all bands, H x W pixels, p patch size, K kept patches a sample, (gh, gw) pooling grid.
#pragma once

#include <cstdint>

#include "cuda/stream.h"

namespace specfast::cuda {

// All pointers are to device memory, and none of it is read on the host.
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

// Window i of g over n pixels spans floor(i n / g) to ceil((i + 1) n / g), with n the sample's extent. Only valid
// pixels count, in float32; a window without any gives 0; invalid pixels of a patch are 0 whatever they hold. A valid
// NaN reaches the average and the maximum of its windows. Sizes are checked (std::invalid_argument). Values on the
// device are not: an index outside the grid leaves its patch unwritten, an extent outside the image is cut to it.
// Images wider than kWidest, or grids finer than that, are refused.
template <typename T>
void patch_pool(const PatchPool<T>& args, Stream stream);

constexpr int64_t kWidest = 4096;

}  // namespace specfast::cuda
