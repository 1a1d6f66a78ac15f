// Matrix products on rows of channels as images in channels-last memory have them; once per instruction set (target.h).
//
// Vectors run along the channels written, the other factor is broadcast: an activation of a pixel against packed
// weights in a forward, an element of a gradient against activations in a sum over pixels. Nothing is transposed. A
// block of sums stays in registers over all the taps of a convolution, while the weights stream from second-level
// cache; measured, that costs 2 % of the multipliers' rate. Operands are 32-bit lanes as in gemm.h.

constexpr int kPanelVectors = kLanes == 16 ? 4 : 3;  // at most, of the channels written at a time

// Rows of a block: sums fill the registers, but the pointers to a dozen rows would no longer all have one.
template <int kV>
constexpr int kBlockRowsOf = kLanes == 16 ? (kV < 3 ? 11 : 24 / kV)
                                          : (kV == 1   ? 8
                                             : kV == 2 ? 5
                                                       : 4);

// c[c_at[r]][v] = sum over taps and steps of a[a_at[r] + tap_at[tap] + step] * b[(b_at[tap] + step) b_step + v]
struct RowProduct {
  const float* a;
  const int64_t *a_at, *c_at;    // [rows]
  const int64_t *tap_at, *b_at;  // [taps]
  const float* b;
  int64_t b_step;
  float* c;  // rows of kV vectors
  int rows, taps, steps;
};

template <class Number, int kR, int kV>
static __attribute__((noinline)) void row_product_block(const RowProduct& p, int row) {
  constexpr int kWidth = kV * kLanes;
  Vec acc[kR][kV];
#pragma GCC unroll 12
  for (int r = 0; r < kR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) acc[r][v] = Vec{};
  for (int tap = 0; tap < p.taps; ++tap) {
    const float* a[kR];
#pragma GCC unroll 12
    for (int r = 0; r < kR; ++r) a[r] = p.a + p.a_at[row + r] + p.tap_at[tap];
    const float* b = p.b + p.b_at[tap] * p.b_step;
    for (int64_t step = 0; step < p.steps; ++step, b += p.b_step) {
      Vec wide[kV];
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) wide[v] = load(b + v * kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < kR; ++r) {
        const Vec x = broadcast(a[r][step]);
#pragma GCC unroll 4
        for (int v = 0; v < kV; ++v) acc[r][v] = Number::accumulate(x, wide[v], acc[r][v]);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) store(p.c + p.c_at[row + r] * kWidth + v * kLanes, acc[r][v]);
}

// c[r][v] (+)= sum over segments and their steps of a[a_at + step a_step + r] * b[b_at + step b_step + v]
struct Segment {
  int64_t a_at, b_at, steps;
};

struct OuterProduct {
  const float *a, *b;
  const Segment* segments;
  int64_t a_step, b_step, c_row;
  float* c;
  int rows, count;
  bool add;
};

template <class Number, int kR, int kV>
static __attribute__((noinline)) void outer_product_block(const OuterProduct& p, int row) {
  float* const c = p.c + row * p.c_row;
  Vec acc[kR][kV];
#pragma GCC unroll 12
  for (int r = 0; r < kR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) acc[r][v] = p.add ? load(c + r * p.c_row + v * kLanes) : Vec{};
  for (int segment = 0; segment < p.count; ++segment) {
    const Segment& at = p.segments[segment];
    const float *a = p.a + at.a_at + row, *b = p.b + at.b_at;
    for (int64_t step = 0; step < at.steps; ++step, a += p.a_step, b += p.b_step) {
      Vec wide[kV];
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) wide[v] = load(b + v * kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < kR; ++r) {
        const Vec x = broadcast(a[r]);
#pragma GCC unroll 4
        for (int v = 0; v < kV; ++v) acc[r][v] = Number::accumulate(x, wide[v], acc[r][v]);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) store(c + r * p.c_row + v * kLanes, acc[r][v]);
}

template <class Number, int kR, int kV>
FASTNEST_INLINE void product_block(const RowProduct& p, int row) {
  row_product_block<Number, kR, kV>(p, row);
}

template <class Number, int kR, int kV>
FASTNEST_INLINE void product_block(const OuterProduct& p, int row) {
  outer_product_block<Number, kR, kV>(p, row);
}

template <class Number, int kR, int kV, class Product>
FASTNEST_INLINE void product_rows(const Product& p, int row, int rows) {
  if constexpr (kR > 0) {
    if (rows == kR) return product_block<Number, kR, kV>(p, row);
    product_rows<Number, kR - 1, kV>(p, row, rows);
  }
}

// Rows in blocks of nearly equal height: a short last block would leave the multipliers waiting for one another.
template <class Number, int kV, class Product>
static void product_panel(const Product& p) {
  constexpr int kMost = kBlockRowsOf<kV>;
  int row = 0;
  for (int left = (p.rows + kMost - 1) / kMost; left > 0; --left) {
    const int rows = (p.rows - row + left - 1) / left;
    product_rows<Number, kMost, kV>(p, row, rows);
    row += rows;
  }
}

// Calls work(a constant equal to `vectors`).
template <class Work>
FASTNEST_INLINE void with_vectors(int vectors, Work&& work) {
  switch (vectors) {
    case 1: return work(std::integral_constant<int, 1>{});
    case 2: return work(std::integral_constant<int, 2>{});
    case 3: return work(std::integral_constant<int, 3>{});
    default: return work(std::integral_constant<int, kPanelVectors>{});
  }
}

// `vectors` of channels are written: a RowProduct or an OuterProduct.
template <class Number, class Product>
static void block_product(const Product& p, int vectors) {
  with_vectors(vectors, [&](auto constant) { product_panel<Number, decltype(constant)::value>(p); });
}
