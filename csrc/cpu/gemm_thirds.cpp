#include "gemm_thirds.h"

#include "amx_tiles.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 suspects its own intrinsics (its bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace blip_fast {

#if defined(BLIP_FAST_HAVE_AMX)
namespace {

constexpr int64_t kTile = kTileRows * kUnit;  // elements of bfloat16
constexpr int64_t kThird = 2 * kTile;         // of a unit of the depth: two tiles
constexpr int64_t kPanelUnit = 3 * kThird;

// One third of sixteen pairs of elements, as 32-bit words.
using Words = __m512i;

BLIP_FAST_TARGET_AMX inline __m512 widened(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// 32 elements of the depth of one row: its pairs in order.
BLIP_FAST_TARGET_AMX inline void split_along(__m512 low, __m512 high, Words (&thirds)[3]) {
  for (Words& third : thirds) {
    third = reinterpret_cast<Words>(_mm512_cvtne2ps_pbh(high, low));
    low = _mm512_sub_ps(low, widened(_mm512_castsi512_si256(third)));
    high = _mm512_sub_ps(high, widened(_mm512_extracti64x4_epi64(third, 1)));
  }
}

// Two elements of the depth of sixteen rows: a pair of each.
BLIP_FAST_TARGET_AMX inline void split_across(__m512 even, __m512 odd, Words (&thirds)[3]) {
  for (Words& third : thirds) {
    const __m512 low = widened(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(even)));
    const __m512 high = widened(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(odd)));
    third = _mm512_or_si512(_mm512_castps_si512(high), _mm512_srli_epi32(_mm512_castps_si512(low), 16));
    even = _mm512_sub_ps(even, low);
    odd = _mm512_sub_ps(odd, high);
  }
}

// The words of a tile, in place.
BLIP_FAST_TARGET_AMX inline void transpose(BFloat16* tile) {
  Words row[16];
  for (int i = 0; i < 16; ++i) row[i] = _mm512_load_si512(tile + i * kUnit);
  Words t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    row[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    row[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    row[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    row[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(row[i], row[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(row[i], row[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(row[i + 8], row[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(row[i + 8], row[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    row[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    row[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    row[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    row[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
  for (int i = 0; i < 16; ++i) _mm512_store_si512(tile + i * kUnit, row[i]);
}

// The first `count` of sixteen, and zeros; all sixteen if kWhole.
template <bool kWhole>
BLIP_FAST_TARGET_AMX inline __m512 load_first(const float* x, int64_t count) {
  if (kWhole) return _mm512_loadu_ps(x);
  const int64_t lanes = std::clamp<int64_t>(count, 0, 16);
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << lanes) - 1), x);
}

// Three tiles, kThird apart, of up to 16 rows and 32 of the depth: row by row if `along`, else pair by pair.
template <bool kWhole>
BLIP_FAST_TARGET_AMX inline void split_tile(Side side, int64_t rows, int64_t depth, BFloat16* tiles) {
  for (int i = 0; i < 16; ++i) {
    Words thirds[3];
    if (side.along) {
      const float* const x = side.data + i * side.stride;
      const int64_t count = i < rows ? depth : 0;
      split_along(load_first<kWhole>(x, count), load_first<kWhole>(x + 16, count - 16), thirds);
    } else {
      const float* const x = side.data + 2 * i * side.stride;
      split_across(load_first<kWhole>(x, 2 * i < depth ? rows : 0),
                   load_first<kWhole>(x + side.stride, 2 * i + 1 < depth ? rows : 0), thirds);
    }
    for (int third = 0; third < 3; ++third) _mm512_store_si512(tiles + third * kThird + i * kUnit, thirds[third]);
  }
}

// Row by row for A, pair by pair for B.
BLIP_FAST_TARGET_AMX inline void pack_tile(Side side, int64_t rows, int64_t depth, bool by_rows, BFloat16* tiles) {
  if (rows >= kTileRows && depth >= kUnit) {
    split_tile<true>(side, rows, depth, tiles);
  } else {
    split_tile<false>(side, rows, depth, tiles);
  }
  for (int third = 0; third < 3 && side.along != by_rows; ++third) transpose(tiles + third * kThird);
}

BLIP_FAST_TARGET_AMX void pack(Side side, int64_t rows, int64_t depth, bool by_rows, Thirds* panel) {
  auto* tiles = reinterpret_cast<BFloat16*>(panel);
  for (int64_t k = 0; k < depth; k += kUnit, tiles += kPanelUnit) {
    const int64_t left = std::min(kUnit, depth - k);
    pack_tile(side.from(0, k), rows, left, by_rows, tiles);
    pack_tile(side.from(kTileRows, k), rows - kTileRows, left, by_rows, tiles + kTile);
  }
}

template <bool kBottom>
BLIP_FAST_TARGET_AMX inline void load_left(const BFloat16* unit, int third) {
  _tile_loadd(4, unit + third * kThird, 64);
  if (kBottom) _tile_loadd(5, unit + third * kThird + kTile, 64);
}

BLIP_FAST_TARGET_AMX inline void load_right(const BFloat16* unit, int third) {
  _tile_loadd(6, unit + third * kThird, 64);
  _tile_loadd(7, unit + third * kThird + kTile, 64);
}

// The six products, in an order in which one operand stays where it is.
template <bool kBottom>
BLIP_FAST_TARGET_AMX inline void multiply_units(const BFloat16* a, const BFloat16* b, int64_t depth, float* c,
                                                int64_t c_stride) {
  start_block<kBottom>(c, c_stride, false);
  for (int64_t k = 0; k < depth; k += kUnit, a += kPanelUnit, b += kPanelUnit) {
    load_left<kBottom>(a, 0);
    load_right(b, 2);
    multiply_block<kBottom>();
    load_right(b, 0);
    multiply_block<kBottom>();
    load_right(b, 1);
    multiply_block<kBottom>();
    load_left<kBottom>(a, 1);
    multiply_block<kBottom>();
    load_right(b, 0);
    multiply_block<kBottom>();
    load_left<kBottom>(a, 2);
    multiply_block<kBottom>();
  }
  store_block<kBottom>(c, c_stride);
}

BLIP_FAST_TARGET_AMX void configure(int64_t rows) { _tile_loadconfig(&kShapes[rows]); }
BLIP_FAST_TARGET_AMX void release() { _tile_release(); }

}  // namespace

void pack_left(Side a, int64_t rows, int64_t depth, Thirds* panel) { pack(a, rows, depth, true, panel); }
void pack_right(Side b, int64_t columns, int64_t depth, Thirds* panel) { pack(b, columns, depth, false, panel); }

Tiles::Tiles(int64_t rows) { configure(rows); }
Tiles::~Tiles() { release(); }

BLIP_FAST_TARGET_AMX void multiply_panels(const Thirds* left, int64_t rows, int64_t depth, const Thirds* right,
                                          float* c, int64_t c_stride) {
  if (rows > kTileRows) {
    multiply_units<true>(left->part, right->part, depth, c, c_stride);
  } else {
    multiply_units<false>(left->part, right->part, depth, c, c_stride);
  }
}

#else
namespace {

void refuse() { STD_TORCH_CHECK(false, "this processor has no products of bfloat16"); }

}  // namespace

Tiles::Tiles(int64_t) { refuse(); }
Tiles::~Tiles() = default;
void pack_left(Side, int64_t, int64_t, Thirds*) { refuse(); }
void pack_right(Side, int64_t, int64_t, Thirds*) { refuse(); }
void multiply_panels(const Thirds*, int64_t, int64_t, const Thirds*, float*, int64_t) { refuse(); }
#endif

namespace {

void multiply_rows(Operand<Thirds> a, int64_t rows, int64_t depth, const Thirds* panel, float* c, int64_t c_stride) {
  const int64_t whole = rows / kPanelColumns * kPanelColumns;
  if (whole > 0) {
    const Tiles tiles(kPanelColumns);
    for (int64_t i = 0; i < whole; i += kPanelColumns) {
      multiply_panels(a.data + i * a.row_stride, kPanelColumns, depth, panel, c + i * c_stride, c_stride);
    }
  }
  if (whole == rows) return;
  const Tiles tiles(rows - whole);
  multiply_panels(a.data + whole * a.row_stride, rows - whole, depth, panel, c + whole * c_stride, c_stride);
}

}  // namespace

void multiply_panel(Operand<Thirds> a, int64_t rows, int64_t depth, const Thirds* panel, float* c, int64_t c_stride,
                    bool accumulate) {
  alignas(64) float sums[kBlock * kPanelColumns];  // added only when all are there: what was just stored lets wait
  for (int64_t k = 0; k < depth; k += kLongestSum, accumulate = true) {
    const int64_t part = std::min(kLongestSum, depth - k);
    const Thirds* const right = panel + k * kPanelColumns;
    for (int64_t row = 0; row < rows; row += kBlock) {
      const Operand<Thirds> left{a.data + row * a.row_stride + k * kPanelColumns, a.row_stride};
      const int64_t count = std::min(kBlock, rows - row);
      float* const out = c + row * c_stride;
      if (accumulate) {
        multiply_rows(left, count, part, right, sums, kPanelColumns);
        add_tile(sums, count, kPanelColumns, out, c_stride);
      } else {
        multiply_rows(left, count, part, right, out, c_stride);
      }
    }
  }
}

BLIP_FAST_MULTIVERSION void add_tile(const float* tile, int64_t rows, int64_t columns, float* matrix, int64_t stride) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) matrix[i * stride + j] += tile[i * kPanelColumns + j];
  }
}

BLIP_FAST_MULTIVERSION bool all_finite(const float* matrix, int64_t rows, int64_t columns, int64_t stride) {
  uint32_t largest = 0;  // of the magnitudes' bits
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      uint32_t bits;
      memcpy(&bits, matrix + i * stride + j, sizeof bits);
      largest = std::max(largest, bits & 0x7fffffff);
    }
  }
  return largest < 0x7f800000;
}

}  // namespace blip_fast
