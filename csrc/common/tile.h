// Between row-major tensors [row][feature] of any element type and float32 tiles [feature][kTileRows]; once per
// instruction set (target.h). Rows that a tile has beyond the tensor's read as zero.

constexpr int kTileRows = 48;  // three vectors of AVX-512

#if FASTNEST_TARGET_LANES == 16
#define FASTNEST_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define FASTNEST_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif FASTNEST_TARGET_LANES == 8
#define FASTNEST_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define FASTNEST_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define FASTNEST_LOW 0, 4, 1, 5
#define FASTNEST_HIGH 2, 6, 3, 7
#endif

// Every stage moves the top bit of the row number into the lane number; log2(kLanes) stages make the transpose.
FASTNEST_INLINE void transpose(Vec (&block)[kLanes]) {
#pragma GCC unroll 4
  for (int stage = 1; stage < kLanes; stage *= 2) {
    Vec next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = __builtin_shufflevector(block[i], block[i + kLanes / 2], FASTNEST_LOW);
      next[2 * i + 1] = __builtin_shufflevector(block[i], block[i + kLanes / 2], FASTNEST_HIGH);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) block[i] = next[i];
  }
}
#undef FASTNEST_LOW
#undef FASTNEST_HIGH

template <class T>
FASTNEST_INLINE Vec load_first(const T* p, int count) {
  if (count >= kLanes) return load(p);
  T lane[kLanes] = {};
  __builtin_memcpy(lane, p, count * sizeof(T));
  return load(lane);
}

template <class T>
FASTNEST_INLINE void store_first(T* p, Vec v, int count) {
  if (count >= kLanes) return store(p, v);
  T lane[kLanes];
  store(lane, v);
  __builtin_memcpy(p, lane, count * sizeof(T));
}

constexpr int vectors_for(int rows) { return (rows + kLanes - 1) / kLanes; }

// tile[feature][row] = source[row * stride + feature]
template <class T>
static void read_tile(const T* source, int64_t stride, int rows, int features, float* tile) {
  for (int row = 0; row < rows; row += kLanes)
    for (int feature = 0; feature < features; feature += kLanes) {
      Vec block[kLanes];
      int columns = features - feature;
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r)
        block[r] = row + r < rows ? load_first(source + (row + r) * stride + feature, columns) : Vec{};
      transpose(block);
      for (int c = 0; c < kLanes && c < columns; ++c) store(tile + (feature + c) * kTileRows + row, block[c]);
    }
}

// target[row * stride + feature] = tile[feature][row]
template <class T>
static void write_tile(const float* tile, int rows, int features, T* target, int64_t stride) {
  for (int row = 0; row < rows; row += kLanes)
    for (int feature = 0; feature < features; feature += kLanes) {
      Vec block[kLanes];
      int columns = features - feature;
#pragma GCC unroll 16
      for (int c = 0; c < kLanes; ++c) block[c] = c < columns ? load(tile + (feature + c) * kTileRows + row) : Vec{};
      transpose(block);
      for (int r = 0; r < kLanes && row + r < rows; ++r)
        store_first(target + (row + r) * stride + feature, block[r], columns);
    }
}
