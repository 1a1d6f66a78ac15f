// For a few rows: every weight is used so rarely that reading it is the work, so vectors run along the weights' rows as
// they lie in memory. Once per instruction set (target.h).

constexpr int kFewRows = 2;  // from three on, lanes of rows are the faster way

// out[row][j] = sum_p w[j][p] in[row][p] for j < count; in has rows of `stride` floats, zero up to whole vectors.
template <class T, int kRows>
static void dots(const T* w, int64_t w_stride, int count, int size, const float* in, int64_t stride, float* out,
                 int64_t out_stride) {
  constexpr int kAtOnce = 8;
  const int whole = size / kLanes * kLanes;
  for (int j = 0; j < count; j += kAtOnce) {
    const int many = count - j < kAtOnce ? count - j : kAtOnce;
    Vec acc[kAtOnce][kRows];
#pragma GCC unroll 8
    for (int a = 0; a < kAtOnce; ++a)
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) acc[a][r] = Vec{};
    const T* row[kAtOnce];
    for (int a = 0; a < kAtOnce; ++a) row[a] = w + (j + (a < many ? a : 0)) * w_stride;
    for (int p = 0; p < whole; p += kLanes) {
      Vec x[kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) x[r] = load(in + r * stride + p);
#pragma GCC unroll 8
      for (int a = 0; a < kAtOnce; ++a) {
        const Vec weight = load(row[a] + p);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) acc[a][r] = fma(weight, x[r], acc[a][r]);
      }
    }
    if (whole < size)
      for (int a = 0; a < kAtOnce; ++a)
        for (int r = 0; r < kRows; ++r)
          acc[a][r] = fma(load_first(row[a] + whole, size - whole), load(in + r * stride + whole), acc[a][r]);
    for (int a = 0; a < many; ++a)
      for (int r = 0; r < kRows; ++r) out[r * out_stride + j + a] = sum(acc[a][r]);
  }
}

// z -> act(z + bias), rounded to T at both places; keeps z, or act(z) where that tells the derivative.
template <class T>
static void finish_row(Activation activation, float* z, const T* bias, int count, T* kept) {
  with_activation(activation, [&](auto tag) {
    constexpr Activation kKind = decltype(tag)::value;
    for (int j = 0; j < count; j += kLanes) {
      const int many = count - j;
      Vec u = load_first(z + j, many);
      if (bias) u += load_first(bias + j, many);
      u = round_to<T>(u);
      const Vec output = round_to<T>(activate<kKind>(u));
      if (kept) store_first(kept + j, idempotent(kKind) ? output : u, many);
      store(z + j, Vec{});
      store_first(z + j, output, many);
    }
  });
}
