// The product of a few rows with one panel, in AMX's tiles.
#include "gemm_bf16.h"

#include <array>
#include <cstring>

#if defined(BLIP_FAST_X86) && defined(__linux__)
#define BLIP_FAST_HAVE_BF16_PRODUCTS
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace blip_fast {
namespace {

BLIP_FAST_INLINE uint32_t bf16_bits(BFloat16 x) { return x.x; }

BLIP_FAST_INLINE uint32_t bf16_bits(float x) {
  BFloat16 rounded;
  from_float(x, &rounded);
  return rounded.x;
}

// Two rows of B side by side; `second` may be null, for a row of zeros.
template <class T>
BLIP_FAST_MULTIVERSION void interleave(const T* first, const T* second, int64_t columns, BFloat16* out) {
  uint32_t pairs[kPanelColumns] = {};
  for (int64_t j = 0; j < columns; ++j) pairs[j] = bf16_bits(first[j]);
  for (int64_t j = 0; second != nullptr && j < columns; ++j) pairs[j] |= bf16_bits(second[j]) << 16;
  memcpy(out, pairs, sizeof pairs);
}

}  // namespace

template <class T>
void pack_panel(const T* b, int64_t stride, int64_t depth, int64_t columns, BFloat16* panel) {
  constexpr int64_t kPairs = 2 * kPanelColumns;  // elements of a panel for two of the depth
  const int64_t padded = Packing<BFloat16>::padded(depth);
  for (int64_t k = 0; k < depth; k += 2, b += 2 * stride, panel += kPairs) {
    interleave(b, k + 1 < depth ? b + stride : nullptr, columns, panel);
  }
  std::fill_n(panel, (padded - ceil_div(depth, 2) * 2) * kPanelColumns, BFloat16(0.0f));
}

template void pack_panel(const float*, int64_t, int64_t, int64_t, BFloat16*);
template void pack_panel(const BFloat16*, int64_t, int64_t, int64_t, BFloat16*);

// Pairs of rows side by side, as in a panel: a row of the transpose is then 16 such pairs.
BLIP_FAST_MULTIVERSION void transpose_block(const BFloat16* block, int64_t stride, int64_t rows, int64_t columns,
                                            BFloat16* out, int64_t out_stride) {
  BFloat16 panel[32 * kPanelColumns];
  pack_panel(block, stride, rows, columns, panel);
  for (int64_t j = 0; j < columns; ++j, out += out_stride) {
    uint32_t pairs[16];
    for (int64_t i = 0; i < 16; ++i) memcpy(pairs + i, panel + (i * kPanelColumns + j) * 2, sizeof *pairs);
    memcpy(out, pairs, sizeof pairs);
  }
}

#if defined(BLIP_FAST_HAVE_BF16_PRODUCTS)
namespace {

constexpr int64_t kUnit = 32;      // elements of a row of one tile
constexpr int64_t kTileRows = 16;  // and its rows
constexpr int64_t kSlice = 512;    // of the depth: this much of a panel and of 32 rows is read from the first cache

// What ldtilecfg reads: rows and bytes per row of the eight tiles. 0 to 3 hold C, 4 and 5 A, 6 and 7 B.
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

constexpr auto kShapes = all_shapes();  // by the number of rows, 1 to 32

// Up to 16 rows, or up to 32.
template <bool kBottom>
__attribute__((target("amx-tile,amx-bf16"))) inline void multiply_tiles(Operand<BFloat16> a, int64_t depth,
                                                                        const BFloat16* panel, float* c,
                                                                        int64_t c_stride, bool accumulate) {
  const int64_t a_bytes = a.row_stride * static_cast<int64_t>(sizeof(BFloat16));
  const int64_t c_bytes = c_stride * static_cast<int64_t>(sizeof(float)), b_bytes = 2 * 64;
  float* const c_bottom = c + kTileRows * c_stride;
  if (accumulate) {
    _tile_loadd(0, c, c_bytes);
    _tile_loadd(1, c + 16, c_bytes);
    if (kBottom) _tile_loadd(2, c_bottom, c_bytes);
    if (kBottom) _tile_loadd(3, c_bottom + 16, c_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if (kBottom) _tile_zero(2);
    if (kBottom) _tile_zero(3);
  }
  for (int64_t k = 0; k < depth; k += kUnit) {
    const BFloat16* const b = panel + k * kPanelColumns;
    const BFloat16* const top = a.data + k;
    _tile_loadd(6, b, b_bytes);
    _tile_loadd(4, top, a_bytes);
    _tile_loadd(7, b + 32, b_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (!kBottom) continue;
    _tile_loadd(5, top + kTileRows * a.row_stride, a_bytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + 16, c_bytes);
  if (kBottom) _tile_stored(2, c_bottom, c_bytes);
  if (kBottom) _tile_stored(3, c_bottom + 16, c_bytes);
}

__attribute__((target("amx-tile,amx-bf16"))) void multiply_slice(Operand<BFloat16> a, int64_t rows, int64_t depth,
                                                                 const BFloat16* panel, float* c, int64_t c_stride,
                                                                 bool accumulate) {
  for (int64_t row = 0; row < rows; row += 2 * kTileRows) {
    const int64_t count = std::min(2 * kTileRows, rows - row);
    if (row == 0 || count < 2 * kTileRows) _tile_loadconfig(&kShapes[count]);
    const Operand<BFloat16> part{a.data + row * a.row_stride, a.row_stride};
    if (count > kTileRows) {
      multiply_tiles<true>(part, depth, panel, c + row * c_stride, c_stride, accumulate);
    } else {
      multiply_tiles<false>(part, depth, panel, c + row * c_stride, c_stride, accumulate);
    }
  }
  _tile_release();
}

// ONEDNN_MAX_CPU_ISA is what keeps torch's own products from AMX.
bool allowed() {
  const char* const limit = std::getenv("ONEDNN_MAX_CPU_ISA");
  if (limit == nullptr || *limit == '\0') return true;
  return strcmp(limit, "ALL") == 0 || strcmp(limit, "DEFAULT") == 0 || strstr(limit, "AMX") != nullptr;
}

// The operating system saves the tiles only for a process that has asked for them.
bool may_use_amx() {
  constexpr unsigned kTile = 1u << 24, kBf16 = 1u << 22;      // of EDX
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!has_avx512() || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kTile) == 0 || (d & kBf16) == 0)
    return false;
  return allowed() && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool has_bf16_products() {
  static const bool has = may_use_amx();
  return has;
}

void multiply_panel(Operand<BFloat16> a, int64_t rows, int64_t depth, const BFloat16* panel, float* c, int64_t c_stride,
                    bool accumulate) {
  for (int64_t k = 0; k < depth; k += kSlice) {
    multiply_slice({a.data + k, a.row_stride}, rows, std::min(kSlice, depth - k), panel + k * kPanelColumns, c,
                   c_stride, accumulate || k > 0);
  }
}

#else

bool has_bf16_products() { return false; }

void multiply_panel(Operand<BFloat16>, int64_t, int64_t, const BFloat16*, float*, int64_t, bool) {
  STD_TORCH_CHECK(false, "this processor has no products of bfloat16");
}

#endif

}  // namespace blip_fast
