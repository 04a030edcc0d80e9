#include "matmul_thirds.h"

#include <atomic>

namespace blip_fast {
namespace {

constexpr int64_t kRows = 32;               // of a panel
constexpr int64_t kHeldRows = 2560;         // rows of A whose panels are held, in the last-level cache
constexpr int64_t kSlice = 800;             // of the depth, at most; what is 3,072 deep is taken 768 at a time
constexpr int64_t kHeldBytes = 1200 << 10;  // of B's panels in the second-level cache

enum class Held { kLeft, kRight };

// Memory for panels that a thread keeps: the page faults of fresh memory would take a third of a small product's time.
template <Held>
Thirds* scratch(int64_t count) {
  static thread_local Buffer<Thirds> held;
  static thread_local int64_t size = 0;
  if (size < count) {
    held = buffer<Thirds>(count);
    size = count;
  }
  return held.get();
}

void store_tile(const float* tile, int64_t rows, int64_t columns, float* out, int64_t stride) {
  for (int64_t i = 0; i < rows; ++i) memcpy(out + i * stride, tile + i * kPanelColumns, columns * sizeof *tile);
}

// Panels of 32 rows of A over a slice of the depth.
struct Left {
  const Thirds* panels;
  int64_t row, rows, depth;  // first row and number of rows; padded depth

  int64_t groups() const { return ceil_div(rows, kRows); }
  int64_t rows_of(int64_t group) const { return std::min(kRows, rows - group * kRows); }
  const Thirds* panel(int64_t group) const { return panels + group * kRows * depth; }
};

class Matmul {
 public:
  Matmul(Side a, Side b, int64_t rows, int64_t depth, int64_t columns, float* out, const Finish& finish)
      : a_(a), b_(b), rows_(rows), depth_(depth), columns_(columns), out_(out), finish_(finish) {}

  bool run() {
    const int64_t blocks = ceil_div(rows_, kHeldRows), groups = ceil_div(rows_, kRows);
    const int64_t slices = ceil_div(depth_, kSlice), units = ceil_div(depth_, 32);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t row = groups * block / blocks * kRows, end = groups * (block + 1) / blocks * kRows;
      for (int64_t i = 0; i < slices; ++i) {
        const int64_t first = units * i / slices * 32, last = units * (i + 1) / slices * 32;
        multiply_slice(row, std::min(end, rows_) - row, first, std::min(last, depth_));
      }
    }
    return finite_;
  }

 private:
  // Rows [row, row + rows) over the depth [begin, end).
  void multiply_slice(int64_t row, int64_t rows, int64_t begin, int64_t end) {
    const int64_t depth = Packing<Thirds>::padded(end - begin), panels = panel_count(columns_);
    Thirds* const packed = scratch<Held::kLeft>(ceil_div(rows, kRows) * kRows * depth);
    const Left left{packed, row, rows, depth};
    parallel(left.groups(), [&](int64_t g) {
      pack_left(a_.from(row + g * kRows, begin), left.rows_of(g), end - begin, packed + g * kRows * depth);
    });
    const int64_t held = std::max<int64_t>(kHeldBytes / (kPanelColumns * depth * sizeof(Thirds)), 1);
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t across = std::min(ceil_div(ceil_div(panels, held), threads) * threads, panels);
    const int64_t down = std::clamp<int64_t>(threads / std::max<int64_t>(across, 1), 1, left.groups());
    parallel(across * down, [&](int64_t task) {
      const int64_t i = task / down, j = task % down;
      multiply_area(left, left.groups() * j / down, left.groups() * (j + 1) / down, panels * i / across,
                    panels * (i + 1) / across, begin, end);
    });
  }

  // Groups of rows [group, last_group) times panels [panel, last_panel).
  void multiply_area(const Left& left, int64_t group, int64_t last_group, int64_t panel, int64_t last_panel,
                     int64_t begin, int64_t end) {
    const int64_t size = kPanelColumns * left.depth;
    Thirds* const right = scratch<Held::kRight>((last_panel - panel) * size);
    for (int64_t p = panel; p < last_panel; ++p) {
      pack_right(b_.from(p * kPanelColumns, begin), columns_of(p), end - begin, right + (p - panel) * size);
    }
    const Buffer<float> tiles = buffer<float>((last_panel - panel) * kRows * kPanelColumns);
    for (; group < last_group; ++group) {
      const Area area{left.row + group * kRows, left.rows_of(group), panel * kPanelColumns,
                      std::min(last_panel * kPanelColumns, columns_) - panel * kPanelColumns};
      multiply_group(left.panel(group), left.depth, right, area, begin > 0, tiles.get());
      if (end < depth_) continue;
      float* const out = out_ + area.row * columns_ + area.column;
      if (!all_finite(out, area.rows, area.columns, columns_)) finite_ = false;
      if (finish_) finish_(area);
    }
  }

  // One group of rows times some panels. Results go to their place directly where nothing is there to be added to and
  // no other's columns are written; else through tiles, and only after all of them: reading a tile that has just been
  // stored waits for it.
  void multiply_group(const Thirds* left, int64_t depth, const Thirds* right, const Area& area, bool add,
                      float* tiles) {
    const int64_t count = panel_count(area.columns);
    float* const out = out_ + area.row * columns_ + area.column;
    const auto direct = [&](int64_t i) { return !add && (i + 1) * kPanelColumns <= area.columns; };
    const Tiles held(area.rows);
    for (int64_t i = 0; i < count; ++i) {
      float* const c = direct(i) ? out + i * kPanelColumns : tiles + i * kRows * kPanelColumns;
      multiply_panels(left, area.rows, depth, right + i * kPanelColumns * depth, c,
                      direct(i) ? columns_ : kPanelColumns);
    }
    for (int64_t i = 0; i < count; ++i) {
      if (direct(i)) continue;
      const int64_t columns = std::min(kPanelColumns, area.columns - i * kPanelColumns);
      (add ? add_tile : store_tile)(tiles + i * kRows * kPanelColumns, area.rows, columns, out + i * kPanelColumns,
                                    columns_);
    }
  }

  int64_t columns_of(int64_t panel) const { return std::min(kPanelColumns, columns_ - panel * kPanelColumns); }

  const Side a_, b_;
  const int64_t rows_, depth_, columns_;
  float* const out_;
  const Finish& finish_;
  std::atomic<bool> finite_{true};
};

}  // namespace

bool multiply_by_thirds(Side a, Side b, int64_t rows, int64_t depth, int64_t columns, float* out,
                        const Finish& finish) {
  return Matmul(a, b, rows, depth, columns, out, finish).run();
}

}  // namespace blip_fast
