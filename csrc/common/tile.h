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
#if FASTNEST_TARGET_LANES == 16
  if constexpr (sizeof(T) == 4) return (Vec)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p);
#endif
  T lane[kLanes] = {};
  __builtin_memcpy(lane, p, count * sizeof(T));
  return load(lane);
}

template <class T>
FASTNEST_INLINE void store_first(T* p, Vec v, int count) {
  if (count >= kLanes) return store(p, v);
#if FASTNEST_TARGET_LANES == 16
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), (__m512)v);
    return;
  }
#endif
  T lane[kLanes];
  store(lane, v);
  __builtin_memcpy(p, lane, count * sizeof(T));
}

constexpr int kPrefetch = 512;  // bytes ahead in every row: rows are short pieces of many streams

constexpr int vectors_for(int rows) { return (rows + kLanes - 1) / kLanes; }

// Rows of a group of `rows` that fall in one of its tiles.
FASTNEST_INLINE int rows_of_tile(int rows, int tile) {
  const int rest = rows - tile * kTileRows;
  return rest < kTileRows ? rest : kTileRows;
}

// One block of kLanes x kLanes; kWhole where none of it lies beyond the tensor.
template <bool kWhole, class T>
FASTNEST_INLINE void read_block(const T* source, int64_t stride, int rows, int features, float* tile) {
  Vec block[kLanes];
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r) {
    block[r] = kWhole ? load(source + r * stride) : r < rows ? load_first(source + r * stride, features) : Vec{};
    __builtin_prefetch(source + r * stride + kPrefetch / (int)sizeof(T));
  }
  transpose(block);
#pragma GCC unroll 16
  for (int c = 0; c < kLanes; ++c)
    if (kWhole || c < features) store(tile + c * kTileRows, block[c]);
}

template <bool kWhole, class T>
FASTNEST_INLINE void write_block(const float* tile, int rows, int features, T* target, int64_t stride) {
  Vec block[kLanes];
#pragma GCC unroll 16
  for (int c = 0; c < kLanes; ++c) block[c] = kWhole || c < features ? load(tile + c * kTileRows) : Vec{};
  transpose(block);
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r)
    if (kWhole) store(target + r * stride, block[r]);
    else if (r < rows) store_first(target + r * stride, block[r], features);
}

// tile[feature][row] = source[row * stride + feature]
template <class T>
static __attribute__((noinline)) void read_tile(const T* source, int64_t stride, int rows, int features, float* tile) {
  for (int row = 0; row < rows; row += kLanes)
    for (int feature = 0; feature < features; feature += kLanes) {
      const T* from = source + row * stride + feature;
      float* to = tile + feature * kTileRows + row;
      if (row + kLanes <= rows && feature + kLanes <= features) read_block<true>(from, stride, 0, 0, to);
      else read_block<false>(from, stride, rows - row, features - feature, to);
    }
}

// target[row * stride + feature] = tile[feature][row]
template <class T>
static __attribute__((noinline)) void write_tile(const float* tile, int rows, int features, T* target, int64_t stride) {
  for (int row = 0; row < rows; row += kLanes)
    for (int feature = 0; feature < features; feature += kLanes) {
      const float* from = tile + feature * kTileRows + row;
      T* to = target + row * stride + feature;
      if (row + kLanes <= rows && feature + kLanes <= features) write_block<true>(from, 0, 0, to, stride);
      else write_block<false>(from, rows - row, features - feature, to, stride);
    }
}

// The same with every row beyond the tensor's set to zero, to the end of the tile.
template <class T>
static void read_whole_tile(const T* source, int64_t stride, int rows, int features, float* tile) {
  if (rows + kLanes <= kTileRows) __builtin_memset(tile, 0, sizeof(float) * features * kTileRows);
  read_tile(source, stride, rows, features, tile);
}
