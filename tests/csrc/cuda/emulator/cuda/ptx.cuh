// In place of csrc/cuda/ptx.cuh: the same functions on the host. Fragment layouts follow the PTX manual's figures for
// ldmatrix and mma.m16n8k16, written here a second time and from the manual, not from the kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "cuda/element.h"

namespace specfast::cuda::ptx {

using emulator::Block;
using emulator::kWarp;
using emulator::Lane;

inline unsigned char* dynamic_shared() { return Block::now().shared(); }

template <typename V>
V load_shared(const void* shared) {
  Block::now().check_read(shared, sizeof(V));
  return *static_cast<const V*>(shared);
}

template <typename V>
void store_shared(void* shared, V value) {
  Block::now().check_write(shared, sizeof(V));
  *static_cast<V*>(shared) = value;
}

inline void cp_async16(void* shared, const void* global, bool copy) { Block::now().copy_later(shared, global, copy); }
inline void cp_async_commit() { Block::now().commit(); }

template <int kPending>
void cp_async_wait() {
  Block::now().wait(kPending);
}

inline void load_matrices(uint32_t (&matrices)[4], const void* row, const char* name, bool transposed) {
  Lane mine = {};
  mine.row = row;
  Block::now().check_read(row, 16);
  const Lane result = Block::now().together(name, mine, [transposed](Lane* lanes) {
    for (int m = 0; m < 4; ++m) {
      uint16_t matrix[8][8];
      for (int i = 0; i < 8; ++i) std::memcpy(matrix[i], lanes[8 * m + i].row, 16);
      for (int lane = 0; lane < kWarp; ++lane) {
        const int r = lane / 4, c = lane % 4 * 2;
        const uint32_t low = transposed ? matrix[c][r] : matrix[r][c];
        const uint32_t high = transposed ? matrix[c + 1][r] : matrix[r][c + 1];
        lanes[lane].matrices[m] = low | high << 16;
      }
    }
  });
  std::memcpy(matrices, result.matrices, sizeof matrices);
}

inline void ldmatrix(uint32_t (&matrices)[4], const void* row) { load_matrices(matrices, row, "ldmatrix", false); }

inline void ldmatrix_transposed(uint32_t (&matrices)[4], const void* row) {
  load_matrices(matrices, row, "ldmatrix.trans", true);
}

inline void store16(float* to, const float (&values)[4]) {
  if (reinterpret_cast<uintptr_t>(to) % 16) Block::now().fail("stores 16 bytes to an address that is not aligned");
  std::memcpy(to, values, 16);
}

inline uint32_t warp_max(uint32_t value) {
  Lane mine = {};
  mine.ballot = value;
  return Block::now()
      .together("redux.max", mine,
                [](Lane* lanes) {
                  uint32_t largest = 0;
                  for (int i = 0; i < kWarp; ++i) largest = largest < lanes[i].ballot ? lanes[i].ballot : largest;
                  for (int i = 0; i < kWarp; ++i) lanes[i].ballot = largest;
                })
      .ballot;
}

inline float max_or_nan(float one, float other) {
  return one != one || other != other ? NAN : one > other ? one : other;
}

inline float widen(float value) { return value; }
inline float widen(BFloat16 value) { return to_float(value); }
inline float widen(Float16 value) {
  _Float16 half;
  std::memcpy(&half, &value, 2);
  return static_cast<float>(half);
}

template <typename T>
T narrow(float value) {
  return from_float<T>(value);
}
template <>
inline Float16 narrow<Float16>(float value) {
  const auto half = static_cast<_Float16>(value);
  Float16 result;
  std::memcpy(&result, &half, 2);
  return result;
}

template <typename T>
uint32_t narrow_pair(float first, float second) {
  return narrow<T>(first).bits | static_cast<uint32_t>(narrow<T>(second).bits) << 16;
}

template <typename T>
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Lane mine = {};
  std::memcpy(mine.a, a, sizeof a);
  std::memcpy(mine.d, d, sizeof d);
  mine.b[0] = b0, mine.b[1] = b1;
  const Lane result = Block::now().together("mma", mine, [](Lane* lanes) {
    double a[16][16], b[16][8];
    const auto half = [](uint32_t pair, int which) {
      return static_cast<double>(widen(T{static_cast<uint16_t>(pair >> 16 * which)}));
    };
    for (int lane = 0; lane < kWarp; ++lane) {
      const int group = lane >> 2, in_group = lane & 3;
      for (int i = 0; i < 8; ++i) {  // a0 .. a7 of the manual
        const int row = (i < 2 || (i >= 4 && i < 6)) ? group : group + 8;
        const int column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
        a[row][column] = half(lanes[lane].a[i / 2], i % 2);
      }
      for (int i = 0; i < 4; ++i) {  // b0 .. b3
        b[in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0)][group] = half(lanes[lane].b[i / 2], i % 2);
      }
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      for (int i = 0; i < 4; ++i) {  // c0 .. c3
        const int row = (lane >> 2) + (i < 2 ? 0 : 8), column = (lane & 3) * 2 + (i & 1);
        double sum = lanes[lane].d[i];
        for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
        lanes[lane].d[i] = static_cast<float>(sum);
      }
    }
  });
  std::memcpy(d, result.d, sizeof d);
}

}  // namespace specfast::cuda::ptx
