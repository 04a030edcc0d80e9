// The product of a few rows with one panel, in AMX's tiles where there are any.
#include "gemm_bf16.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <initializer_list>
#include <string>

#include "amx_tiles.h"
#include "gemm_bf16_dots.h"

#if defined(BLIP_FAST_HAVE_AMX)
#include <cpuid.h>
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

// The limit that keeps torch's own products from instructions, as oneDNN reads it: either name, upper or lower case.
std::string onednn_limit() {
  const char* limit = std::getenv("ONEDNN_MAX_CPU_ISA");
  if (limit == nullptr || *limit == '\0') limit = std::getenv("DNNL_MAX_CPU_ISA");
  std::string upper = limit == nullptr ? "" : limit;
  std::transform(upper.begin(), upper.end(), upper.begin(), [](unsigned char c) { return std::toupper(c); });
  return upper;
}

// Whether the limit names one of these or none.
bool onednn_may_use(std::initializer_list<const char*> names) {
  const std::string limit = onednn_limit();
  if (limit.empty() || limit == "ALL" || limit == "DEFAULT") return true;
  return std::any_of(names.begin(), names.end(), [&](const char* name) { return limit.find(name) != limit.npos; });
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

#if defined(BLIP_FAST_HAVE_AMX)
namespace {

constexpr int64_t kSlice = 512;  // of the depth: this much of a panel and of 32 rows is read from the first cache

// Up to 16 rows, or up to 32.
template <bool kBottom>
BLIP_FAST_TARGET_AMX inline void multiply_tiles(Operand<BFloat16> a, int64_t depth, const BFloat16* panel, float* c,
                                                int64_t c_stride, bool accumulate) {
  const int64_t a_bytes = a.row_stride * static_cast<int64_t>(sizeof(BFloat16)), b_bytes = 2 * 64;
  start_block<kBottom>(c, c_stride, accumulate);
  for (int64_t k = 0; k < depth; k += kUnit) {
    const BFloat16* const b = panel + k * kPanelColumns;
    _tile_loadd(6, b, b_bytes);
    _tile_loadd(7, b + 32, b_bytes);
    _tile_loadd(4, a.data + k, a_bytes);
    if (kBottom) _tile_loadd(5, a.data + k + kTileRows * a.row_stride, a_bytes);
    multiply_block<kBottom>();
  }
  store_block<kBottom>(c, c_stride);
}

BLIP_FAST_TARGET_AMX void multiply_slice(Operand<BFloat16> a, int64_t rows, int64_t depth, const BFloat16* panel,
                                         float* c, int64_t c_stride, bool accumulate) {
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

// The operating system saves the tiles only for a process that has asked for them.
bool may_use_amx() {
  constexpr unsigned kTile = 1u << 24, kBf16 = 1u << 22;      // of EDX
  constexpr unsigned kConvert = 1u << 5;                      // of EAX of the second page: AVX512-BF16
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!has_avx512() || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kTile) == 0 || (d & kBf16) == 0)
    return false;
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) == 0 || (a & kConvert) == 0) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

void multiply_panel_in_tiles(Operand<BFloat16> a, int64_t rows, int64_t depth, const BFloat16* panel, float* c,
                             int64_t c_stride, bool accumulate) {
  for (int64_t k = 0; k < depth; k += kSlice) {
    multiply_slice({a.data + k, a.row_stride}, rows, std::min(kSlice, depth - k), panel + k * kPanelColumns, c,
                   c_stride, accumulate || k > 0);
  }
}

}  // namespace
#else
namespace {

bool may_use_amx() { return false; }

void multiply_panel_in_tiles(Operand<BFloat16>, int64_t, int64_t, const BFloat16*, float*, int64_t, bool) {
  STD_TORCH_CHECK(false, "this processor has no AMX");
}

}  // namespace
#endif

bool has_amx() {
  static const bool has = onednn_may_use({"AMX"}) && may_use_amx();
  return has;
}

bool has_bf16_products() {
  static const bool has = has_amx() || (onednn_may_use({"BF16", "FP16", "AVX10", "AMX"}) && has_fast_bf16_dots());
  return has;
}

void multiply_panel(Operand<BFloat16> a, int64_t rows, int64_t depth, const BFloat16* panel, float* c, int64_t c_stride,
                    bool accumulate) {
  if (has_amx()) {
    multiply_panel_in_tiles(a, rows, depth, panel, c, c_stride, accumulate);
  } else {
    multiply_panel_by_dots(a, rows, depth, panel, c, c_stride, accumulate);
  }
}

}  // namespace blip_fast
