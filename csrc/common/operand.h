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

// Rows of a weight matrix as operand of row_product: where they lie, or widened to float32 in scratch.
template <class T, class Number>
static Weights as_weights(const T* w, int64_t stride, int rows, int columns, float* scratch) {
  if constexpr (sizeof(T) == 4 || Number::kPerLane == 2)
    return {reinterpret_cast<const char*>(w), stride * (int64_t)sizeof(T)};
  for (int i = 0; i < rows; ++i)
    for (int p = 0; p < columns; p += kLanes)
      store_first(scratch + (int64_t)i * columns + p, load_first(w + i * stride + p, columns - p), columns - p);
  return {reinterpret_cast<const char*>(scratch), columns * 4};
}

// The same for a transposed product (the inner dimension runs over the matrix' rows): bfloat16 rows are paired.
template <class T, class Number>
static Weights as_transposed_weights(const T* w, int64_t stride, int rows, int columns, float* scratch) {
  if constexpr (Number::kPerLane == 1) return as_weights<T, Number>(w, stride, rows, columns, scratch);
  for (int p = 0; p < rows; p += 2)
    for (int i = 0; i < columns; i += kLanes) {
      Vec low = load_first(w + p * stride + i, columns - i), high = load_first(w + (p + 1) * stride + i, columns - i);
      store_first(scratch + (int64_t)(p / 2) * columns + i, pack_bf16(low, high), columns - i);
    }
  return {reinterpret_cast<const char*>(scratch), columns * 4};
}
