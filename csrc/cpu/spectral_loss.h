// The elementwise side of the reconstruction loss, a tile of predicted pixels at a time: the sums over bands that make
// cosine and Charbonnier, the loss of these sums, and the gradient of the prediction.
//
// Legend: C bands, M tokens, P pixels a token; T element type of predictions, U of targets.
#pragma once

#include <cstdint>

#include "common/cpu.h"

namespace specfast {

template <typename T, typename U>
struct PixelTile {
  T* prediction;    // [C, M, P], the last two adjacent; pixel_sums only reads it
  const U* target;  // [C, M, P], the same
  const T* bias;    // [C, P], added to prediction; or null
  int64_t bands, tokens, pixels;
  int64_t prediction_stride, target_stride, bias_stride;  // elements from one band to the next
};

// Adds the sums over the bands of the tile, in float32: prediction^2, prediction * target and target^2 to three planes
// [M, P], `plane` elements apart, and sqrt(1 + (prediction - target)^2) - 1 to charbonnier [M, P].
template <typename T, typename U>
void pixel_sums(const PixelTile<T, U>& tile, float* sums, int64_t plane, float* charbonnier, int threads,
                Capability capability);

struct PixelLoss {
  const float* sums;         // [3, M, P] of one sample
  const float* charbonnier;  // [M, P]; loss_coefficients needs none
  const bool* valid;         // [M, P]
  int64_t bands, tokens, pixels;
};

// loss: sum over valid pixels of 1 - cosine, of Charbonnier / bands, and their number.
void loss_of_sums(const PixelLoss& sample, float* loss, Capability capability);

// What pixel_gradient needs of a sample: three planes [M, P]. The first two weigh prediction and target in the gradient
// of the cosine; the last keeps all bits of a valid pixel and none of another.
void loss_coefficients(const PixelLoss& sample, float dspectral, float* coefficients, Capability capability);

// Replaces the predictions of the tile by the gradient of the loss with respect to them; exactly 0 where a pixel is
// invalid, whatever target holds there. coefficients points to the tile's first token in the first plane; planes are
// `plane` elements apart. slope: dcharbonnier / bands of the sample. dbias [C, P], or null, gets the sum over tokens
// added.
template <typename T, typename U>
void pixel_gradient(const PixelTile<T, U>& tile, const float* coefficients, int64_t plane, float slope, float* dbias,
                    int threads, Capability capability);

}  // namespace specfast
