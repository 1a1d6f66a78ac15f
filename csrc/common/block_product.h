// Matrix products on rows of channels as images in channels-last memory have them; once per instruction set (target.h).
//
// Vectors run along the channels written, the other factor is broadcast: an activation of a pixel against packed
// weights in a forward, an element of a gradient against activations in a sum over pixels. Nothing is transposed.

constexpr int kAccumulators = kLanes == 16 ? 24 : 12;
constexpr int kPanelVectors = 3;  // at most, of the channels written at a time

// c[r][v] (+)= sum over lines and steps of a[r a_row + step a_step + line a_line] b[step b_step + line b_line + v]
struct BlockProduct {
  const float* a;
  int64_t a_row, a_step, a_line;
  const float* b;  // whole vectors
  int64_t b_step, b_line;
  float* c;
  int64_t c_row;
  int rows, steps, lines;
  bool add;
};

// kUnit: which of a's distances is 1, known to the compiler: one step (activations) or one row (sums over pixels).
enum class Unit1 { kStep, kRow };

template <int kR, int kV, Unit1 kUnit>
static __attribute__((noinline)) void product_block(const BlockProduct& p, int row) {
  Vec acc[kR][kV];
  float* const c = p.c + row * p.c_row;
#pragma GCC unroll 12
  for (int r = 0; r < kR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) acc[r][v] = p.add ? load(c + r * p.c_row + v * kLanes) : Vec{};
  const int64_t a_row = kUnit == Unit1::kRow ? 1 : p.a_row, a_step = kUnit == Unit1::kStep ? 1 : p.a_step;
  for (int line = 0; line < p.lines; ++line) {
    // A pointer for every third row, so that x86 addresses reach all of them with one register of distance.
    const float* a[(kR + 2) / 3];
#pragma GCC unroll 4
    for (int r = 0; r < kR; r += 3) a[r / 3] = p.a + line * p.a_line + (row + r) * a_row;
    const float* b = p.b + line * p.b_line;
    for (int step = 0; step < p.steps; ++step) {
      Vec wide[kV];
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) wide[v] = load(b + v * kLanes);
      b += p.b_step;
#pragma GCC unroll 12
      for (int r = 0; r < kR; ++r) {
        const Vec x = broadcast(a[r / 3][r % 3 * a_row]);
#pragma GCC unroll 4
        for (int v = 0; v < kV; ++v) acc[r][v] = fma(x, wide[v], acc[r][v]);
      }
#pragma GCC unroll 4
      for (int r = 0; r < kR; r += 3) a[r / 3] += a_step;
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) store(c + r * p.c_row + v * kLanes, acc[r][v]);
}

template <int kR, int kV, Unit1 kUnit>
FASTNEST_INLINE void product_rows(const BlockProduct& p, int row, int rows) {
  if constexpr (kR > 0) {
    if (rows == kR) return product_block<kR, kV, kUnit>(p, row);
    product_rows<kR - 1, kV, kUnit>(p, row, rows);
  }
}

// Rows in blocks of nearly equal height: a short last block would leave the multipliers waiting for one another.
template <int kV, Unit1 kUnit>
static void product_panel(const BlockProduct& p) {
  constexpr int kMost = kAccumulators / kV < 12 ? kAccumulators / kV : 12;
  int row = 0;
  for (int left = (p.rows + kMost - 1) / kMost; left > 0; --left) {
    const int rows = (p.rows - row + left - 1) / left;
    product_rows<kMost, kV, kUnit>(p, row, rows);
    row += rows;
  }
}

template <Unit1 kUnit>
static void block_product(const BlockProduct& p, int vectors) {
  switch (vectors) {
    case 1: return product_panel<1, kUnit>(p);
    case 2: return product_panel<2, kUnit>(p);
    default: return product_panel<3, kUnit>(p);
  }
}
