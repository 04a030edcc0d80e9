// The eight tiles of AMX as this library's products use them: 0 to 3 hold a block of C of up to 32 rows and 32 columns,
// 4 and 5 its rows of A, 6 and 7 its columns of B.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "simd.h"

#if defined(BLIP_FAST_X86) && defined(__linux__)
#define BLIP_FAST_HAVE_AMX  // of the compiler; the processor is asked by has_amx()
#define BLIP_FAST_TARGET_AMX __attribute__((target("arch=x86-64-v4,avx512bf16,amx-tile,amx-bf16")))
#include <immintrin.h>
#endif

namespace blip_fast {

constexpr int64_t kTileRows = 16;
constexpr int64_t kUnit = 32;  // elements of a row of one tile

// What ldtilecfg reads: rows and bytes per row of the eight tiles.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};

  constexpr TileShapes() = default;
  constexpr explicit TileShapes(int64_t row_count) {
    const auto top = static_cast<uint8_t>(std::min(row_count, kTileRows));
    const auto bottom = static_cast<uint8_t>(row_count - top);
    const uint8_t of_tile[8] = {top, top, bottom, bottom, top, bottom, kTileRows, kTileRows};
    for (int i = 0; i < 8; ++i) {
      rows[i] = of_tile[i];
      bytes[i] = of_tile[i] == 0 ? 0 : 64;
    }
  }
};

constexpr std::array<TileShapes, 2 * kTileRows + 1> all_shapes() {
  std::array<TileShapes, 2 * kTileRows + 1> shapes;
  for (int64_t rows = 1; rows <= 2 * kTileRows; ++rows) shapes[rows] = TileShapes(rows);
  return shapes;
}

constexpr auto kShapes = all_shapes();  // by the number of rows of C, 1 to 32

#if defined(BLIP_FAST_HAVE_AMX)
template <bool kBottom>
BLIP_FAST_TARGET_AMX inline void start_block(const float* c, int64_t c_stride, bool accumulate) {
  const int64_t bytes = c_stride * static_cast<int64_t>(sizeof(float));
  const float* const bottom = c + kTileRows * c_stride;
  if (accumulate) {
    _tile_loadd(0, c, bytes);
    _tile_loadd(1, c + 16, bytes);
    if (kBottom) _tile_loadd(2, bottom, bytes);
    if (kBottom) _tile_loadd(3, bottom + 16, bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if (kBottom) _tile_zero(2);
    if (kBottom) _tile_zero(3);
  }
}

template <bool kBottom>
BLIP_FAST_TARGET_AMX inline void store_block(float* c, int64_t c_stride) {
  const int64_t bytes = c_stride * static_cast<int64_t>(sizeof(float));
  float* const bottom = c + kTileRows * c_stride;
  _tile_stored(0, c, bytes);
  _tile_stored(1, c + 16, bytes);
  if (kBottom) _tile_stored(2, bottom, bytes);
  if (kBottom) _tile_stored(3, bottom + 16, bytes);
}

// The four products of the tiles of A and of B.
template <bool kBottom>
BLIP_FAST_TARGET_AMX inline void multiply_block() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if (kBottom) _tile_dpbf16ps(2, 5, 6);
  if (kBottom) _tile_dpbf16ps(3, 5, 7);
}
#endif

}  // namespace blip_fast
