// residual_chain forward for a few rows: every weight is used so rarely that reading it is the work. Vectors run along
// the weights' rows as they lie in memory, one product's results are summed across lanes at its end, and the parts of
// the width are shared among threads as in residual_chain_forward.h.

template <class T, int kRows>
struct FewRowsSweep {
  const ResidualChain& chain;
  const ResidualForward& io;
  const Share& share;
  const int m, k;
  // One team shares x [row][width]; sums are [part][2][row][columns], v and work each part's own.
  int64_t width, columns;
  float *x, *sums, *own;

  static int64_t floats(const ResidualChain& chain, const Share& share) {
    const int64_t width = whole_vectors(chain.m), columns = whole_vectors(chain.k);
    return kFewRows * (width + share.parts * (2 * columns + 2 * columns + 2 * width));
  }

  FewRowsSweep(const ResidualChain& chain, const ResidualForward& io, const Share& share, float* scratch)
      : chain(chain),
        io(io),
        share(share),
        m(chain.m),
        k(chain.k),
        width(whole_vectors(chain.m)),
        columns(whole_vectors(chain.k)),
        x(scratch) {
    sums = x + kFewRows * width;
    own = sums + share.parts * 2 * kFewRows * columns;
  }

  float* sums_of(int64_t block, int part) const { return sums + (2 * part + block % 2) * kFewRows * columns; }

  void operator()(int64_t block, int part) const {
    float* const v = own + part * kFewRows * (2 * columns + 2 * width);
    float *const work = v + kFewRows * columns, *const a = work + kFewRows * columns,
                 *const added = a + kFewRows * width;
    if (block > 0) finish_features(block - 1, part, v, work);
    if (block > chain.ups) return;
    const int slices = (m + share.slice - 1) / share.slice;
    const int begin = slices * part / share.parts * share.slice;
    const int end = std::min(m, slices * (part + 1) / share.parts * share.slice), features = end - begin;
    if (block > 0)
      dots<T, kRows>(static_cast<const T*>(chain.up) + ((block - 1) * m + begin) * k, k, features, k, v, columns, added,
                     width);
    const int rows = chain.n;
    for (int r = 0; r < rows; ++r) {
      float* const stream = x + r * width + begin;
      for (int f = 0; f < features; f += kLanes) {
        const int many = features - f;
        const Vec old = block > 0 ? load_first(stream + f, many)
                                  : load_first(static_cast<const T*>(io.x) + r * io.x_stride + begin + f, many);
        store_first(stream + f, block > 0 ? old + load_first(added + r * width + f, many) : old, many);
      }
      if (block == chain.ups)
        for (int f = 0; f < features; f += kLanes) {
          const Vec u = load_first(stream + f, features - f);
          store_first(static_cast<T*>(io.y) + (int64_t)r * m + begin + f, u, features - f);
          if (io.stream) store_first(io.stream + (int64_t)r * m + begin + f, u, features - f);
        }
    }
    if (block < chain.l) start_features(block, begin, features, part, a);
  }

  void start_features(int64_t block, int begin, int features, int part, float* a) const {
    const T* const scale = chain.scale ? static_cast<const T*>(chain.scale) + block * m + begin : nullptr;
    const T* const shift = chain.scale ? static_cast<const T*>(chain.shift) + block * m + begin : nullptr;
    with_activation(chain.before(), [&](auto kind) {
      for (int r = 0; r < kRows; ++r)
        for (int f = 0; f < features; f += kLanes) {
          const int many = features - f;
          Vec u = r < chain.n ? load_first(x + r * width + begin + f, many) : Vec{};
          if (scale) u = fma(u, load_first(scale + f, many), load_first(shift + f, many));
          u = activate<decltype(kind)::value>(u);
          store(a + r * width + f, Vec{});
          store_first(a + r * width + f, u, many);
        }
    });
    dots<T, kRows>(static_cast<const T*>(chain.down) + block * k * m + begin, m, k, features, a, width,
                   sums_of(block, part), columns);
  }

  void finish_features(int64_t block, int part, float* v, float* work) const {
    for (int r = 0; r < kRows; ++r)
      for (int j = 0; j < k; ++j) {
        float z = 0;
        for (int other = 0; other < share.parts; ++other) z += sums_of(block, other)[r * columns + j];
        v[r * columns + j] = z;
      }
    activate_layer(chain.down_bias, block, 0, part == 0, v);
    if (chain.mid) {
      dots<T, kRows>(static_cast<const T*>(chain.mid) + block * k * k, k, k, k, v, columns, work, columns);
      __builtin_memcpy(v, work, sizeof(float) * kFewRows * columns);
      activate_layer(chain.mid_bias, block, 1, part == 0, v);
    }
    if (io.features && part == 0)
      for (int r = 0; r < chain.n; ++r)
        write_matrix<T>(v + r * columns, 1, k, k, io.features, (r * chain.l + block) * k);
  }

  void activate_layer(const void* bias, int64_t block, int layer, bool mine, float* z) const {
    for (int r = 0; r < kRows; ++r) {
      float* const row = z + r * columns;
      T* const kept = io.hidden && mine && r < chain.n
                          ? static_cast<T*>(io.hidden) + ((r * chain.l + block) * chain.layers() + layer) * k
                          : nullptr;
      finish_row(chain.activation, row, bias ? static_cast<const T*>(bias) + block * k : nullptr, k, kept);
    }
  }
};
