// What row_product reads, made from tiles and tensors of any element type; once per instruction set (target.h).

// Calls work(ActivationTag<kind>) so that loops over vectors are compiled once per activation.
template <Activation kKind>
struct ActivationTag {
  static constexpr Activation value = kKind;
};

template <class Work>
FASTNEST_INLINE void with_activation(Activation kind, Work&& work) {
  switch (kind) {
    case Activation::kIdentity: return work(ActivationTag<Activation::kIdentity>{});
    case Activation::kRelu: return work(ActivationTag<Activation::kRelu>{});
    case Activation::kLeakyRelu: return work(ActivationTag<Activation::kLeakyRelu>{});
    case Activation::kTanh: return work(ActivationTag<Activation::kTanh>{});
    case Activation::kSilu: return work(ActivationTag<Activation::kSilu>{});
    case Activation::kGelu: return work(ActivationTag<Activation::kGelu>{});
    case Activation::kGeluTanh: return work(ActivationTag<Activation::kGeluTanh>{});
  }
}

// A float32 tile as operand of row_product: itself, or neighbouring features rounded to bfloat16 and paired.
template <class Number>
static const float* as_operand(const float* tile, int features, int vectors, float* packed) {
  if constexpr (Number::kPerLane == 1) return tile;
  for (int f = 0; f < features; f += 2)
    for (int c = 0; c < vectors; ++c) {
      const float* p = tile + f * kTileRows + c * kLanes;
      store(packed + f / 2 * kTileRows + c * kLanes, pack_bf16(load(p), load(p + kTileRows)));
    }
  return packed;
}

// operand = f(scale x + shift) for some features of a tile.
template <class Number>
static const float* prepare(Activation f, const float* x, const float* scale, const float* shift, int features,
                            int vectors, float* operand) {
  if (f == Activation::kIdentity && !scale) return as_operand<Number>(x, features, vectors, operand);
  with_activation(f, [&](auto kind) {
    for (int i = 0; i < features; ++i)
      for (int c = 0; c < vectors; ++c) {
        Vec u = load(x + i * kTileRows + c * kLanes);
        if (scale) u = fma(u, broadcast(scale[i]), broadcast(shift[i]));
        store(operand + i * kTileRows + c * kLanes, activate<decltype(kind)::value>(u));
      }
  });
  return as_operand<Number>(operand, features, vectors, operand);
}

// z += bias, rounded as a tensor of T would be.
template <class T>
static void add_bias(float* z, const T* bias, int features, int vectors) {
  for (int i = 0; i < features; ++i) {
    const Vec b = broadcast(bias ? to_float(bias[i]) : 0.0f);
    for (int c = 0; c < vectors; ++c) {
      float* p = z + i * kTileRows + c * kLanes;
      store(p, round_to<T>(load(p) + b));
    }
  }
}

// z -> act(z), rounded likewise.
template <class T>
static void activate_tile(Activation kind, float* z, int features, int vectors) {
  with_activation(kind, [&](auto tag) {
    for (int i = 0; i < features; ++i)
      for (int c = 0; c < vectors; ++c) {
        float* p = z + i * kTileRows + c * kLanes;
        store(p, round_to<T>(activate<decltype(tag)::value>(load(p))));
      }
  });
}

// Floats that packing a matrix of rows x columns takes, in either direction.
constexpr int64_t packed_floats(int64_t rows, int64_t columns) { return (rows + 2 * kLanes) * (columns + 2 * kLanes); }

// A weight matrix for row_product, i along its rows: where it lies, or widened to float32 in scratch. (Packing it in
// blocks was measured: it gains 3 % in the product and costs more than that.)
template <class T, class Number>
static Weights as_weights(const T* w, int64_t stride, int rows, int columns, float* scratch) {
  if constexpr (sizeof(T) == 4 || Number::kPerLane == 2) {
    const int64_t bytes = stride * (int64_t)sizeof(T);
    return {reinterpret_cast<const char*>(w), bytes, kBlockRows * bytes, false};
  } else {
    for (int i = 0; i < rows; ++i)
      for (int p = 0; p < columns; p += kLanes)
        store_first(scratch + (int64_t)i * columns + p, load_first(w + i * stride + p, columns - p), columns - p);
    return {reinterpret_cast<const char*>(scratch), (int64_t)4 * columns, (int64_t)4 * kBlockRows * columns, false};
  }
}

// The same for the transpose, i along the matrix' columns. Packed in blocks of kBlockRows where `uses` tiles read it (a
// step down a wide matrix is a new page, and the copy pays), and where neighbours of the inner dimension, rows here,
// are to be paired.
template <class T, class Number>
static Weights as_transposed_weights(const T* w, int64_t stride, int rows, int columns, int uses, float* scratch) {
  if (sizeof(T) == 4 && uses < 2)
    return {reinterpret_cast<const char*>(w), stride * (int64_t)sizeof(T), 4 * kBlockRows, true};
  const int steps = rows / Number::kPerLane;
  for (int p = 0; p < steps; ++p)
    for (int i = 0; i < columns; i += kLanes) {
      const T* from = w + (int64_t)p * Number::kPerLane * stride + i;
      Vec lanes = load_first(from, columns - i);
      if constexpr (Number::kPerLane == 2) lanes = pack_bf16(lanes, load_first(from + stride, columns - i));
#pragma GCC unroll 4
      for (int r = 0; r < kLanes; r += kBlockRows)
        __builtin_memcpy(scratch + ((int64_t)(i + r) * steps + p * kBlockRows),
                         reinterpret_cast<const float*>(&lanes) + r, kBlockRows * sizeof(float));
    }
  return {reinterpret_cast<const char*>(scratch), 4 * kBlockRows, (int64_t)4 * kBlockRows * steps, true};
}

// Calls work(element, number): the tensors' element type and what the products are made of. Pairs of bfloat16 need
// every inner size even.
template <class Work>
static auto with_types(Element element, bool even, Work&& work) {
  switch (element) {
    case Element::kBFloat16:
      if (kHasBf16Dot && even) return work(BFloat16{}, Bf16Pair{});
      return work(BFloat16{}, Float32{});
    case Element::kFloat16: return work(Half{}, Float32{});
    default: return work(float{}, Float32{});
  }
}
