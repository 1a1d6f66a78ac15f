// Two matrix products on tiles that lie in cache; included once per instruction set (target.h).
//
// A tile is [feature][kTileRows]: vectors run along rows, weights are broadcast, so that weights serve as nn.Linear
// stores them. Every element is summed over the whole inner size in order by one accumulator: its value depends on
// neither the blocking nor the instruction's width nor the thread.
//
// Operands are 32-bit lanes: a float, or (Bf16Pair) two bfloat16 neighbours of the inner dimension.

constexpr int kBlockVectors = 3;                  // accumulators: kBlockRows x 3
constexpr int kBlockRows = kLanes == 16 ? 8 : 4;  // 24 of 32 registers, or 12 of 16
constexpr int kOuterAccumulators = kLanes == 16 ? 24 : 12;

struct Float32 {
  static constexpr int kPerLane = 1;
  FASTNEST_INLINE Vec accumulate(Vec a, Vec b, Vec c) { return fma(a, b, c); }
};

struct Bf16Pair {
  static constexpr int kPerLane = 2;
  FASTNEST_INLINE Vec accumulate(Vec a, Vec b, Vec c) {
#if FASTNEST_TARGET_BF16
    return (Vec)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
#else
    return fma(high_bf16(a), high_bf16(b), fma(low_bf16(a), low_bf16(b), c));
#endif
  }
};

FASTNEST_INLINE Vec splat(const char* p) {
  float x;
  __builtin_memcpy(&x, p, 4);
  return broadcast(x);
}

// Weights of a product, element (i, p), p in lanes, as byte distances from `data`:
//   rows:    4 p + stride (i - b) + block b / kBlockRows          a matrix as nn.Linear stores it
//   columns: stride p + 4 (i - b) + block b / kBlockRows          its transpose, or packed (operand.h)
// with b the first row of i's block of kBlockRows.
struct Weights {
  const char* data;
  int64_t stride, block;
  bool columns;
};

template <class Number, bool kColumns, int kI, int kV, class Epilogue>
FASTNEST_INLINE void row_block(const char* w, int64_t stride, const float* b, int steps, int i, int v, Epilogue& done) {
  Vec acc[kI][kV];
#pragma GCC unroll 8
  for (int r = 0; r < kI; ++r)
#pragma GCC unroll 3
    for (int c = 0; c < kV; ++c) acc[r][c] = Vec{};
  for (int p = 0; p < steps; ++p) {
    Vec row[kV];
#pragma GCC unroll 3
    for (int c = 0; c < kV; ++c) row[c] = load(b + c * kLanes);
    b += kTileRows;
#pragma GCC unroll 8
    for (int r = 0; r < kI; ++r) {
      Vec weight = splat(w + (kColumns ? 4 * r : r * stride));
#pragma GCC unroll 3
      for (int c = 0; c < kV; ++c) acc[r][c] = Number::accumulate(weight, row[c], acc[r][c]);
    }
    w += kColumns ? stride : 4;
  }
  done.template operator()<kI, kV>(i, v, acc);
}

template <class Number, bool kColumns, int kV, class Epilogue>
static __attribute__((noinline)) void row_panel(Weights w, const float* b, int rows, int steps, int v, Epilogue& done) {
  const int64_t next = kColumns ? 4 : w.stride;
  const char* data = w.data;
  int i = 0;
  for (; i + kBlockRows <= rows; i += kBlockRows, data += w.block)
    row_block<Number, kColumns, kBlockRows, kV>(data, w.stride, b, steps, i, v, done);
  if constexpr (kBlockRows > 4)
    if (rows - i >= 4) {
      row_block<Number, kColumns, 4, kV>(data, w.stride, b, steps, i, v, done);
      data += 4 * next, i += 4;
    }
  if (rows - i >= 2) {
    row_block<Number, kColumns, 2, kV>(data, w.stride, b, steps, i, v, done);
    data += 2 * next, i += 2;
  }
  if (rows - i >= 1) row_block<Number, kColumns, 1, kV>(data, w.stride, b, steps, i, v, done);
}

// out[i][row] = sum_p w(i, p) b[p][row] for i < rows, row < vectors * kLanes; done(i, v, acc) receives each block.
template <class Number, class Epilogue>
FASTNEST_INLINE void row_product(Weights w, const float* b, int rows, int steps, int vectors, Epilogue&& done) {
  for (int v = 0; v < vectors; v += kBlockVectors) {
    const float* column = b + v * kLanes;
    switch ((vectors - v < kBlockVectors ? vectors - v : kBlockVectors) * 2 + w.columns) {
      case 2: row_panel<Number, false, 1>(w, column, rows, steps, v, done); break;
      case 3: row_panel<Number, true, 1>(w, column, rows, steps, v, done); break;
      case 4: row_panel<Number, false, 2>(w, column, rows, steps, v, done); break;
      case 5: row_panel<Number, true, 2>(w, column, rows, steps, v, done); break;
      case 6: row_panel<Number, false, 3>(w, column, rows, steps, v, done); break;
      default: row_panel<Number, true, 3>(w, column, rows, steps, v, done); break;
    }
  }
}

// The plainest epilogue: out[i][row] = acc, += acc or -= acc.
enum class Write { kSet, kAdd, kSubtract };

template <Write kWrite>
struct StoreTile {
  float* out;
  template <int kI, int kV>
  inline __attribute__((always_inline)) void operator()(int i, int v, Vec (&acc)[kI][kV]) {
    float* const to = out + i * kTileRows + v * kLanes;
#pragma GCC unroll 8
    for (int r = 0; r < kI; ++r)
#pragma GCC unroll 3
      for (int c = 0; c < kV; ++c) {
        float* p = to + r * kTileRows + c * kLanes;
        if constexpr (kWrite == Write::kSet) store(p, acc[r][c]);
        else store(p, kWrite == Write::kAdd ? load(p) + acc[r][c] : load(p) - acc[r][c]);
      }
  }
};

// A sum over rows: out[j][k] += sum_r a[j][r] b[r][k], a in tiles, b with rows of `columns` floats (whole vectors).
// These few tiles are summed by themselves and then added: error grows with the number of tiles, not of rows.
struct OuterOperands {
  const float* a;  // [tiles][.. a_tile ..][j][a_row]
  const float* b;  // [tiles][b_tile]
  int64_t a_tile, b_tile;
  int a_row;         // floats from one j to the next
  int tiles, steps;  // steps: rows of a tile, in lanes
  int columns;       // of b and out: floats from one row to the next
};

template <class Number, int kJ, int kV>
FASTNEST_INLINE void outer_block(const OuterOperands& o, int j, int k, float* out) {
  Vec acc[kJ][kV];
  float* target = out + (int64_t)j * o.columns + k;
#pragma GCC unroll 24
  for (int r = 0; r < kJ; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < kV; ++c) acc[r][c] = Vec{};
  for (int t = 0; t < o.tiles; ++t) {
    const float* a = o.a + t * o.a_tile + (int64_t)j * o.a_row;
    const float* b = o.b + t * o.b_tile + k;
    for (int p = 0; p < o.steps; ++p) {
      Vec row[kV];
#pragma GCC unroll 4
      for (int c = 0; c < kV; ++c) row[c] = load(b + c * kLanes);
      b += o.columns;
#pragma GCC unroll 24
      for (int r = 0; r < kJ; ++r) {
        Vec x = broadcast(a[r * o.a_row + p]);
#pragma GCC unroll 4
        for (int c = 0; c < kV; ++c) acc[r][c] = Number::accumulate(x, row[c], acc[r][c]);
      }
    }
  }
#pragma GCC unroll 24
  for (int r = 0; r < kJ; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < kV; ++c) {
      float* p = target + r * o.columns + c * kLanes;
      store(p, load(p) + acc[r][c]);
    }
}

template <class Number, int kV>
static __attribute__((noinline)) void outer_panel(const OuterOperands& o, int rows, int k, float* out) {
  constexpr int kJ = kOuterAccumulators / kV;
  int j = 0;
  for (; j + kJ <= rows; j += kJ) outer_block<Number, kJ, kV>(o, j, k, out);
  if constexpr (kJ > 8)
    for (; j + 8 <= rows; j += 8) outer_block<Number, 8, kV>(o, j, k, out);
  if constexpr (kJ > 4)
    for (; j + 4 <= rows; j += 4) outer_block<Number, 4, kV>(o, j, k, out);
  for (; j < rows; ++j) outer_block<Number, 1, kV>(o, j, k, out);
}

template <class Number>
FASTNEST_INLINE void outer_product(const OuterOperands& o, int rows, float* out) {
  for (int k = 0; k < o.columns; k += 4 * kLanes) {
    switch ((o.columns - k) / kLanes) {
      case 1: outer_panel<Number, 1>(o, rows, k, out); break;
      case 2: outer_panel<Number, 2>(o, rows, k, out); break;
      case 3: outer_panel<Number, 3>(o, rows, k, out); break;
      default: outer_panel<Number, 4>(o, rows, k, out); break;
    }
  }
}
