// dense_chain forward for a few rows, by dot products with the weights' rows; one member of the team does it all.

template <class T, int kRows>
struct DenseFewRowsSweep {
  const DenseChain& chain;
  const DenseForward& io;
  const int64_t width, widest;  // in whole vectors
  float *x, *a, *hidden, *q;    // [row][width]: the prefix, and activated; [row][widest]

  static int64_t floats(const DenseChain& chain, const Share&) {
    return kRows * 2 * (whole_vectors(chain.width) + whole_vectors(chain.widest()));
  }

  DenseFewRowsSweep(const DenseChain& chain, const DenseForward& io, const Share&, float* scratch)
      : chain(chain), io(io), width(whole_vectors(chain.width)), widest(whole_vectors(chain.widest())), x(scratch) {
    a = x + kRows * width;
    hidden = a + kRows * width;
    q = hidden + kRows * widest;
  }

  void operator()(int64_t phase, int part) const {
    if (part != 0) return;
    if (phase > 0) return grow(chain.blocks[phase - 1]);
    __builtin_memset(x, 0, sizeof(float) * kRows * 2 * (width + widest));  // what dots reads beyond a row's end
    for (int r = 0; r < chain.n; ++r)
      for (int f = 0; f < chain.m; f += kLanes) {
        const int many = std::min<int>(kLanes, chain.m - f);
        store(q, load_first(static_cast<const T*>(io.x) + r * io.x_stride + f, many));
        append(r, f, q, many);
      }
  }

  // Columns of one row: into the prefix, activated where all readers share that, and into the output.
  void append(int r, int64_t at, const float* columns, int count) const {
    with_activation(chain.before(), [&](auto tag) {
      for (int j = 0; j < count; j += kLanes) {
        const Vec u = load_first(columns + j, count - j);
        store_first(x + r * width + at + j, u, count - j);
        store_first(a + r * width + at + j, activate<decltype(tag)::value>(u), count - j);
        store_first(static_cast<T*>(io.y) + r * chain.width + at + j, u, count - j);
      }
    });
  }

  void grow(const DenseBlock& block) const {
    if (block.scale) prepare_rows(block);
    T* const kept = static_cast<T*>(io.hidden);
    const Activation after = chain.pre_activation ? Activation::kIdentity : chain.activation;
    const auto vector = [](const void* p) { return static_cast<const T*>(p); };
    if (block.h) {
      dots<T, kRows>(vector(block.hidden_weight), block.m, block.h, block.m, a, width, hidden, widest);
      for (int r = 0; r < kRows; ++r)
        finish_row(chain.activation, hidden + r * widest, vector(block.hidden_bias), block.h,
                   kept && r < chain.n ? kept + r * chain.kept + block.kept : nullptr);
      // The hidden layer of a wider block before must not be read beyond this one's end.
      for (int r = 0; r < kRows; ++r)
        for (int64_t j = whole_vectors(block.h); j < widest; ++j) hidden[r * widest + j] = 0;
    }
    const bool deep = block.h;
    dots<T, kRows>(vector(block.weight), deep ? block.h : block.m, block.d, deep ? block.h : block.m, deep ? hidden : a,
                   deep ? widest : width, q, widest);
    for (int r = 0; r < chain.n; ++r) {
      T* const keep = kept && chain.keeps_growth() ? kept + r * chain.kept + block.kept + block.h : nullptr;
      finish_row(after, q + r * widest, vector(block.bias), block.d, keep);
      append(r, block.m, q + r * widest, block.d);
    }
  }

  // a = f(scale x + shift) for the block's prefix.
  void prepare_rows(const DenseBlock& block) const {
    with_activation(chain.before(), [&](auto tag) {
      for (int r = 0; r < chain.n; ++r)
        for (int f = 0; f < block.m; f += kLanes) {
          const int many = block.m - f;
          const Vec u =
              fma(load_first(x + r * width + f, many), load_first(static_cast<const T*>(block.scale) + f, many),
                  load_first(static_cast<const T*>(block.shift) + f, many));
          store_first(a + r * width + f, activate<decltype(tag)::value>(u), many);
        }
    });
  }
};
