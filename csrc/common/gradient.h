// What the backward kernels share: operands of sums over rows, derivatives, and how sums become gradients; once per
// instruction set (target.h).

// A float32 tile as the two operands of outer_product. Left: [feature][row lanes].
template <class Number>
static const float* as_left(const float* tile, int features, float* packed) {
  if constexpr (Number::kPerLane == 1) return tile;
  for (int f = 0; f < features; ++f)
    for (int c = 0; c < kTileRows; c += kLanes)
      store(reinterpret_cast<BFloat16*>(packed + f * kTileRows / 2) + c, load(tile + f * kTileRows + c));
  return packed;
}

// Right: [row lanes][feature], the features filled up with zeros to whole vectors.
template <class Number>
static void as_right(const float* tile, int features, int columns, float* rows) {
  __builtin_memset(rows, 0, sizeof(float) * kTileRows * columns);
  write_tile(tile, kTileRows, features, rows, columns);
  if constexpr (Number::kPerLane == 2)
    for (int r = 0; r < kTileRows; r += 2)
      for (int c = 0; c < columns; c += kLanes)
        store(rows + r / 2 * columns + c, pack_bf16(load(rows + r * columns + c), load(rows + (r + 1) * columns + c)));
}

constexpr int whole_vectors(int64_t features) { return ((int)features + kLanes - 1) / kLanes * kLanes; }

constexpr int kRightFloats = 6 * 1024;  // of the right operand, read again for each few features: most of L1

// to[feature][columns] += sum over the rows of `count` tiles of left[feature] right.
template <class Number>
static void add_outer(const float* left, int64_t left_tile, const float* right, int64_t right_tile, int count,
                      int columns, float* to, int features) {
  constexpr int kSteps = kTileRows / Number::kPerLane;
  const int fit = kRightFloats / (kTileRows * columns) > 0 ? kRightFloats / (kTileRows * columns) : 1;
  for (int t = 0; t < count; t += fit)
    outer_product<Number>({left + t * left_tile, right + t * right_tile, left_tile, right_tile, kSteps,
                           count - t < fit ? count - t : fit, kSteps, columns},
                          features, to);
}

static inline void add_row_sums(const float* tile, int features, float* to) {
  for (int j = 0; j < features; ++j) {
    Vec total{};
    for (int c = 0; c < kTileRows; c += kLanes) total += load(tile + j * kTileRows + c);
    to[j] += sum(total);
  }
}

// relu's derivative selects: a masked gradient is 0 even where it is not finite.
template <Activation kKind>
FASTNEST_INLINE Vec multiply_gradient(Vec gradient, Vec derivative) {
  if constexpr (kKind == Activation::kRelu) return derivative == Vec{} ? Vec{} : gradient;
  return gradient * derivative;
}

// value = act(kept) rounded to T, gradient *= act'(kept); either may be null.
template <class T>
static void multiply_by_derivative(Activation activation, const float* kept, int features, float* value,
                                   float* gradient) {
  with_activation(activation, [&](auto kind) {
    constexpr Activation kKind = decltype(kind)::value;
    if (idempotent(kKind) && !gradient && value == kept) return;
    for (int j = 0; j < features * kTileRows; j += kLanes) {
      const auto both = value_and_derivative<kKind>(load(kept + j));
      if (value) store(value + j, idempotent(kKind) ? both.value : round_to<T>(both.value));
      if (gradient) store(gradient + j, multiply_gradient<kKind>(load(gradient + j), both.derivative));
    }
  });
}

// Through f(scale x + shift): value = f(u), du = f'(u) da, g += scale du, and sums over rows for scale and shift.
static inline void pull_back(Activation f, const float* x, const float* da, const float* scale, const float* shift,
                             int features, float* g, float* value, float* dscale, float* dshift) {
  with_activation(f, [&](auto kind) {
    constexpr Activation kKind = decltype(kind)::value;
    for (int j = 0; j < features; ++j) {
      Vec scale_sum{}, shift_sum{};
      for (int c = 0; c < kTileRows; c += kLanes) {
        const int p = j * kTileRows + c;
        Vec u = load(x + p);
        if (scale) u = fma(u, broadcast(scale[j]), broadcast(shift[j]));
        const Vec output = activate<kKind>(u);
        const Vec du = multiply_gradient<kKind>(load(da + p), derivative<kKind>(idempotent(kKind) ? output : u));
        store(value + p, output);
        store(g + p, load(g + p) + (scale ? du * broadcast(scale[j]) : du));
        scale_sum = fma(du, load(x + p), scale_sum);
        shift_sum += du;
      }
      if (dscale) dscale[j] += sum(scale_sum), dshift[j] += sum(shift_sum);
    }
  });
}

// Sums [rows][stride] as a gradient [rows][columns] of T, and transposed, [columns][rows].
template <class T>
static void write_matrix(const float* from, int64_t rows, int64_t columns, int64_t stride, void* out, int64_t at = 0) {
  T* to = static_cast<T*>(out) + at;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; j += kLanes)
      store_first(to + i * columns + j, load_first(from + i * stride + j, columns - j), columns - j);
}

template <class T>
static void write_transpose(const float* from, int64_t rows, int64_t columns, int64_t stride, void* out,
                            int64_t at = 0) {
  T* to = static_cast<T*>(out) + at;
  for (int64_t i = 0; i < rows; i += kLanes)
    for (int64_t j = 0; j < columns; j += kLanes) {
      Vec square[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) square[r] = i + r < rows ? load(from + (i + r) * stride + j) : Vec{};
      transpose(square);
      for (int c = 0; c < kLanes && j + c < columns; ++c) store_first(to + (j + c) * rows + i, square[c], rows - i);
    }
}
