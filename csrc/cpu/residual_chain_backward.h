// residual_chain backward. One sweep over the width per block, from the last to the first: with x_i and its gradient g
// of a slice in cache it ends block i + 1 (g += f' * down^T dz, ddown += dz a^T) and starts block i (dup += g v^T,
// dv += up^T g), then steps back: x_{i-1} = x_i - up_i v_i. So no x_i but the last is kept; the subtraction takes away
// the very product that the forward added, rounded alike, and x_0 itself is read where its block is reached.

// Sums of gradients over rows, float32: one set per team. Where ddown and dup themselves have room for their sums
// (float32, whole vectors of k), the first team's lie there.
struct ResidualSums {
  float *ddown, *dup;             // [l, m, columns], [ups, m, columns]: both with k along the vectors
  float* dmid;                    // [l, k, columns]
  float *ddown_bias, *dmid_bias;  // [l, k]
  float *dscale, *dshift;         // [l, m]
  int64_t floats;

  static int columns(const ResidualChain& chain) { return whole_vectors(chain.k); }

  ResidualSums(const ResidualChain& chain, const SumsPlace& place) {
    const int64_t wide = columns(chain);
    float* next = place.rest;
    auto take = [&](bool present, int64_t count) {
      float* start = present ? next : nullptr;
      if (present) next += count;
      return start;
    };
    ddown = place.homes[0] ? place.homes[0] : take(true, chain.l * chain.m * wide);
    dup = place.homes[1] ? place.homes[1] : take(true, chain.ups * chain.m * wide);
    dmid = take(chain.mid, chain.l * chain.k * wide);
    ddown_bias = take(true, chain.l * chain.k);
    dmid_bias = take(chain.mid, chain.l * chain.k);
    dscale = take(chain.scale, chain.l * chain.m);
    dshift = take(chain.scale, chain.l * chain.m);
    floats = next - place.rest;
  }
};

// g += relu'(x) da
struct AddThroughRelu {
  float* g;
  const float* x;
  template <int kI, int kV>
  inline __attribute__((always_inline)) void operator()(int i, int v, Vec (&acc)[kI][kV]) {
    float* const to = g + i * kTileRows + v * kLanes;
    const float* const at = x + i * kTileRows + v * kLanes;
#pragma GCC unroll 8
    for (int r = 0; r < kI; ++r)
#pragma GCC unroll 3
      for (int c = 0; c < kV; ++c) {
        float* p = to + r * kTileRows + c * kLanes;
        const Vec u = load(at + r * kTileRows + c * kLanes);
        store(p, load(p) + (u <= Vec{} ? Vec{} : acc[r][c]));
      }
  }
};

template <class T, class Number>
struct BackwardSweep {
  const ResidualChain& chain;
  const ResidualBackward& io;
  const Share& share;
  const ResidualSums into;
  const int m, k, columns, tiles, slice;

  struct Layout {
    int64_t stream, sums, tiled, rows, work, slices, affine, packed, exact, own;
    Layout(const ResidualChain& chain, const Share& share)
        : stream(share.tiles * chain.m * kTileRows),
          sums(2 * share.tiles * chain.k * kTileRows),
          tiled(share.tiles * chain.k * kTileRows),
          rows((int64_t)share.tiles * kTileRows * ResidualSums::columns(chain)),
          work(4 * chain.k * kTileRows + kTileRows * ResidualSums::columns(chain)),
          slices((share.tiles + 2) * (int64_t)share.slice * kTileRows),
          affine(2 * share.slice),
          packed(packed_floats(chain.k, share.slice > chain.k ? share.slice : chain.k)),
          exact((int64_t)share.tiles * ((chain.m + share.slice - 1) / share.slice)),
          own(2 * tiled + 2 * rows + work + 2 * slices + affine + 3 * packed) {}
    int64_t floats(const Share& share) const { return 2 * stream + exact + share.parts * (sums + own); }
  };
  const Layout layout;
  float *x, *g, *sums, *exact, *own_memory;

  struct Own {                // what one part works in
    float *v, *dz;            // operands [tiles][k][row]
    float *v_rows, *dz_rows;  // operands [tiles][row][columns]
    float* work;              // [4][k][row], and [row][columns]
    float *a, *g_pairs;       // [tiles + 2][slice][row]
    float *affine, *packed_up, *packed_down, *packed;
  };

  BackwardSweep(const ResidualChain& chain, const ResidualBackward& io, const Share& share, float* scratch,
                const SumsPlace& place)
      : chain(chain),
        io(io),
        share(share),
        into(chain, place),
        m(chain.m),
        k(chain.k),
        columns(ResidualSums::columns(chain)),
        tiles(share.tiles),
        slice(share.slice),
        layout(chain, share) {
    x = scratch;
    g = x + layout.stream;
    exact = g + layout.stream;
    sums = exact + layout.exact;
    own_memory = sums + share.parts * layout.sums;
  }

  Own own(int part) const {
    Own o;
    float* next = own_memory + part * layout.own;
    auto take = [&](int64_t count) { return next += count, next - count; };
    o.v = take(layout.tiled), o.dz = take(layout.tiled);
    o.v_rows = take(layout.rows), o.dz_rows = take(layout.rows);
    o.work = take(layout.work);
    o.a = take(layout.slices), o.g_pairs = take(layout.slices);
    o.affine = take(layout.affine);
    o.packed_up = take(layout.packed), o.packed_down = take(layout.packed), o.packed = take(layout.packed);
    return o;
  }

  float* sums_of(int64_t block, int part) const { return sums + part * layout.sums + block % 2 * (layout.sums / 2); }
  const T* kept(int64_t row, int64_t block, int layer) const {
    return static_cast<const T*>(io.hidden) + ((row * chain.l + block) * chain.layers() + layer) * k;
  }

  // Phase (group of tiles, i), i = l .. 0: ends block i (0-based, where i < l), starts block i - 1.
  void operator()(int64_t phase, int part) const {
    const int64_t i = chain.l - phase % (chain.l + 1);
    const int64_t begin = share.begin + phase / (chain.l + 1) * tiles * kTileRows;
    const int rows = share.end - begin < tiles * kTileRows ? share.end - begin : tiles * kTileRows;
    const Own o = own(part);
    if (i < chain.l) finish_features(begin, rows, i, part, o);
    if (i > 0) __builtin_memset(sums_of(i - 1, part), 0, layout.sums / 2 * sizeof(float));
    if (i > chain.ups) return;
    if (i > 0) read_features(begin, rows, i - 1, o);
    const int slices = (m + slice - 1) / slice;
    const int last = slices * (part + 1) / share.parts;
    for (int s = slices * part / share.parts; s < last; ++s) sweep_slice(begin, rows, i, s, part, o);
  }

  // v of a block from what the forward kept, as both operands.
  void read_features(int64_t begin, int rows, int64_t block, const Own& o) const {
    for (int t = 0; t * kTileRows < rows; ++t) {
      const int tile_rows = rows_of_tile(rows, t);
      float* const v = o.v + (int64_t)t * k * kTileRows;
      load_layer(begin + t * kTileRows, tile_rows, block, chain.layers() - 1, o.work, nullptr);
      as_right<Number>(o.work, k, columns, o.v_rows + (int64_t)t * kTileRows * columns);
      if (as_operand<Number>(o.work, k, kTileRows / kLanes, v) == o.work)
        __builtin_memcpy(v, o.work, sizeof(float) * k * kTileRows);
    }
  }

  // act(h), and multiplies gradient by act'(h), for what the forward kept of one layer; rows beyond the tensor are 0.
  void load_layer(int64_t row, int rows, int64_t block, int layer, float* value, float* gradient) const {
    read_whole_tile(kept(row, block, layer), chain.l * chain.layers() * k, rows, k, value);
    multiply_by_derivative<T>(chain.activation, value, k, value, gradient);
  }

  static constexpr bool kReuse = Number::kPerLane == 1;

  // dz of a block from the sums of up^T g over the parts and from the features' own gradient, through the mid layer.
  void finish_features(int64_t begin, int rows, int64_t block, int part, const Own& o) const {
    for (int t = 0; t * kTileRows < rows; ++t) {
      const int tile_rows = rows_of_tile(rows, t), vectors = kTileRows / kLanes;
      const int64_t row = begin + t * kTileRows, at = (int64_t)t * k * kTileRows, size = (int64_t)k * kTileRows;
      float *const value = o.work, *const dv = value + size, *const pairs = dv + size, *const left = pairs + size;
      float* const right = left + size;
      float* const dz_rows = o.dz_rows + (int64_t)t * kTileRows * columns;
      if (io.dfeatures) {
        read_whole_tile(static_cast<const T*>(io.dfeatures) + (row * chain.l + block) * k, chain.l * k, tile_rows, k,
                        dv);
      } else {
        __builtin_memset(dv, 0, size * sizeof(float));
      }
      for (int other = 0; other < share.parts; ++other)
        for (int j = 0; j < size; j += kLanes)
          store(dv + j, load(dv + j) + load(sums_of(block, 0) + other * layout.sums + at + j));
      if (kReuse && idempotent(chain.activation) && block < chain.ups)  // v is its own record, and still there
        multiply_by_derivative<T>(chain.activation, o.v + at, k, nullptr, dv);
      else load_layer(row, tile_rows, block, chain.layers() - 1, value, dv);
      if (chain.mid) {
        load_layer(row, tile_rows, block, 0, value, nullptr);
        if (part == 0) {
          add_row_sums(dv, k, into.dmid_bias + block * k);
          as_right<Number>(value, k, columns, right);
          add_outer<Number>(as_left<Number>(dv, k, left), 0, right, 0, 1, columns, into.dmid + block * k * columns, k);
        }
        const float* operand = as_operand<Number>(dv, k, vectors, pairs);
        const T* mid = static_cast<const T*>(chain.mid) + block * k * k;
        row_product<Number>(as_transposed_weights<T, Number>(mid, k, k, k, 1, o.packed), operand, k,
                            k / Number::kPerLane, vectors, StoreTile<Write::kSet>{left});
        __builtin_memcpy(dv, left, size * sizeof(float));
        load_layer(row, tile_rows, block, 0, value, dv);
      }
      if (part == 0) add_row_sums(dv, k, into.ddown_bias + block * k);
      as_right<Number>(dv, k, columns, dz_rows);
      if (as_operand<Number>(dv, k, vectors, o.dz + at) == dv) __builtin_memcpy(o.dz + at, dv, size * sizeof(float));
    }
  }

  void sweep_slice(int64_t begin, int rows, int64_t i, int s, int part, const Own& o) const {
    const int at = s * slice, features = m - at < slice ? m - at : slice;
    const int count = (rows + kTileRows - 1) / kTileRows;
    const bool ends = i < chain.l, starts = i > 0;
    const int64_t slice_tile = (int64_t)slice * kTileRows;
    if (i == chain.ups) read_stream(begin, rows, at, features, s);
    if (ends) {
      const float *scale = nullptr, *shift = nullptr;
      if (chain.scale) {
        for (int f = 0; f < features; ++f) {
          o.affine[f] = to_float(static_cast<const T*>(chain.scale)[i * m + at + f]);
          o.affine[slice + f] = to_float(static_cast<const T*>(chain.shift)[i * m + at + f]);
        }
        scale = o.affine, shift = o.affine + slice;
      }
      const Weights down = as_transposed_weights<T, Number>(static_cast<const T*>(chain.down) + i * k * m + at, m, k,
                                                            features, count, o.packed_down);
      const float* left = o.a;
      int64_t left_tile = slice_tile;
      for (int t = 0; t < count; ++t) {
        const int64_t place = ((int64_t)t * m + at) * kTileRows;
        const float* a = end_block(down, o.dz + (int64_t)t * k * kTileRows, i * m + at, features, x + place, g + place,
                                   scale, shift, o.a + t * slice_tile, o.a + tiles * slice_tile);
        if (a == x + place && t == 0) left = a, left_tile = (int64_t)m * kTileRows;
      }
      add_outer<Number>(left, left_tile, o.dz_rows, (int64_t)kTileRows * columns, count, columns,
                        into.ddown + (i * m + at) * columns, features);
    }
    if (starts) start_block(begin, rows, i - 1, s, part, o);
    if (i == 0)
      for (int t = 0; t < count; ++t)
        write_tile(g + ((int64_t)t * m + at) * kTileRows, rows_of_tile(rows, t), features,
                   static_cast<T*>(io.dx) + (begin + t * kTileRows) * m + at, m);
  }

  // x_L and dy of a slice; rows beyond the tensor are 0, so that they add nothing to any sum.
  void read_stream(int64_t begin, int rows, int at, int features, int s) const {
    for (int t = 0; t * kTileRows < rows; ++t) {
      const int tile_rows = rows_of_tile(rows, t);
      const int64_t row = begin + t * kTileRows, place = ((int64_t)t * m + at) * kTileRows;
      const int size = features * kTileRows;
      if (chain.ups == 0)
        read_whole_tile(static_cast<const T*>(io.x) + row * io.x_stride + at, io.x_stride, tile_rows, features,
                        x + place);
      else read_whole_tile(io.stream + row * m + at, m, tile_rows, features, x + place);
      if (io.dy)
        read_whole_tile(static_cast<const T*>(io.dy) + row * io.dy_stride + at, io.dy_stride, tile_rows, features,
                        g + place);
      else __builtin_memset(g + place, 0, size * sizeof(float));
      Vec zero{};
      for (int j = 0; j < size; j += kLanes) zero += load(x + place + j) * 0.0f;  // not 0 after an Inf or a NaN
      exact[t * ((m + slice - 1) / slice) + s] = sum(zero) == 0.0f ? 0.0f : 1.0f;
    }
  }

  // g += scale f'(u) (down^T dz), u = scale x + shift; returns a = f(u) as left operand of the sum for ddown.
  const float* end_block(Weights down, const float* dz, int64_t feature, int features, const float* x, float* g,
                         const float* scale, const float* shift, float* a, float* work) const {
    constexpr int kVectors = kTileRows / kLanes;
    const Activation f = chain.before();
    const int steps = k / Number::kPerLane, size = features * kTileRows;
    if (f == Activation::kIdentity && !scale) {
      row_product<Number>(down, dz, features, steps, kVectors, StoreTile<Write::kAdd>{g});
      return as_left<Number>(x, features, a);
    }
    if (f == Activation::kRelu && !scale) {
      row_product<Number>(down, dz, features, steps, kVectors, AddThroughRelu{g, x});
      float* const to = Number::kPerLane == 1 ? a : work;
      for (int j = 0; j < size; j += kLanes) store(to + j, maximum(Vec{}, load(x + j)));
      return as_left<Number>(to, features, a);
    }
    float* const value = work + slice * kTileRows;
    row_product<Number>(down, dz, features, steps, kVectors, StoreTile<Write::kSet>{work});
    pull_back(f, x, work, scale, shift, features, g, value, scale ? into.dscale + feature : nullptr,
              scale ? into.dshift + feature : nullptr);
    if (as_left<Number>(value, features, a) == value) __builtin_memcpy(a, value, size * sizeof(float));
    return a;
  }

  // dup += g v^T, dv += up^T g, x -= up v.
  void start_block(int64_t begin, int rows, int64_t block, int s, int part, const Own& o) const {
    constexpr int kVectors = kTileRows / kLanes;
    const int at = s * slice, features = m - at < slice ? m - at : slice;
    const int count = (rows + kTileRows - 1) / kTileRows, slices = (m + slice - 1) / slice;
    const int64_t slice_tile = (int64_t)slice * kTileRows, tile = (int64_t)m * kTileRows;
    const T* const matrix = static_cast<const T*>(chain.up) + (block * m + at) * k;
    const Weights back = as_transposed_weights<T, Number>(matrix, k, features, k, 1, o.packed_up);
    const Weights up = as_weights<T, Number>(matrix, k, features, k, o.packed);
    for (int t = 0; t < count; ++t) {
      float* const stream = x + t * tile + at * kTileRows;
      const float* const gradient = g + t * tile + at * kTileRows;
      as_left<Number>(gradient, features, o.a + t * slice_tile);
      row_product<Number>(back, as_operand<Number>(gradient, features, kVectors, o.g_pairs), k,
                          features / Number::kPerLane, kVectors,
                          StoreTile<Write::kAdd>{sums_of(block, part) + (int64_t)t * k * kTileRows});
      const int64_t row = begin + t * kTileRows;
      if (block == 0 || exact[t * slices + s]) rebuild(row, rows_of_tile(rows, t), block, at, features, stream, o);
      else
        row_product<Number>(up, o.v + (int64_t)t * k * kTileRows, features, k / Number::kPerLane, kVectors,
                            StoreTile<Write::kSubtract>{stream});
    }
    const bool as_is = Number::kPerLane == 1;
    add_outer<Number>(as_is ? g + at * kTileRows : o.a, as_is ? tile : slice_tile, o.v_rows,
                      (int64_t)kTileRows * columns, count, columns, into.dup + (block * m + at) * columns, features);
  }

  // x before a block from x_0 on, as the forward added it up: exact where subtracting is not (Inf, NaN).
  void rebuild(int64_t row, int rows, int64_t block, int at, int features, float* stream, const Own& o) const {
    constexpr int kVectors = kTileRows / kLanes;
    read_tile(static_cast<const T*>(io.x) + row * io.x_stride + at, io.x_stride, rows, features, stream);
    for (int64_t j = 0; j < block; ++j) {
      load_layer(row, rows, j, chain.layers() - 1, o.work, nullptr);
      const float* v = as_operand<Number>(o.work, k, kVectors, o.work + k * kTileRows);
      const T* const matrix = static_cast<const T*>(chain.up) + (j * m + at) * k;
      row_product<Number>(as_weights<T, Number>(matrix, k, features, k, o.packed), v, features, k / Number::kPerLane,
                          kVectors, StoreTile<Write::kAdd>{stream});
    }
  }
};

static int64_t residual_sums_floats(const ResidualChain& chain) { return ResidualSums(chain, {}).floats; }

static bool residual_sums_fit(const ResidualChain& chain) {
  return chain.element == Element::kFloat32 && chain.k % kLanes == 0;
}

static int64_t residual_backward_scratch(const ResidualChain& chain, const Share& share) {
  return with_residual_types(chain, [&](auto element, auto number) {
    return typename BackwardSweep<decltype(element), decltype(number)>::Layout(chain, share).floats(share);
  });
}

static void residual_backward(const ResidualChain& chain, const ResidualBackward& io, const Share& share,
                              float* scratch, const SumsPlace& sums, Lockstep& team, int member) {
  with_residual_types(chain, [&](auto element, auto number) {
    BackwardSweep<decltype(element), decltype(number)> sweep(chain, io, share, scratch, sums);
    const int64_t rows = (int64_t)share.tiles * kTileRows;
    team.work(member, (share.end - share.begin + rows - 1) / rows * (chain.l + 1), sweep);
    return 0;
  });
}

// The sums of one block as gradients of its parameters; work has room for m * k floats.
static void residual_gradients(const ResidualChain& chain, const SumsPlace& sums, const ResidualGradients& out,
                               int64_t block, float* work) {
  with_residual_types(chain, [&](auto element, auto) {
    using T = decltype(element);
    const ResidualSums from(chain, sums);
    const int64_t m = chain.m, k = chain.k, wide = ResidualSums::columns(chain);
    const auto vector = [&](const float* values, int64_t count, void* to) {
      if (values && to) write_matrix<T>(values + block * count, 1, count, count, to, block * count);
    };
    const float* ddown = from.ddown + block * m * wide;
    if (sums.homes[0]) ddown = static_cast<float*>(__builtin_memcpy(work, ddown, sizeof(float) * m * k));
    write_transpose<T>(ddown, m, k, wide, out.ddown, block * k * m);
    if (block < chain.ups && !sums.homes[1])
      write_matrix<T>(from.dup + block * m * wide, m, k, wide, out.dup, block * m * k);
    if (chain.mid) write_matrix<T>(from.dmid + block * k * wide, k, k, wide, out.dmid, block * k * k);
    vector(from.ddown_bias, k, out.ddown_bias);
    vector(from.dmid_bias, k, out.dmid_bias);
    vector(from.dscale, m, out.dscale);
    vector(from.dshift, m, out.dshift);
    return 0;
  });
}
