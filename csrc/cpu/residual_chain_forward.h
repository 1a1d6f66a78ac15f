// residual_chain forward. The rows of a tile stay in the second-level cache through all blocks, weights stream past
// them once per group of tiles, and one sweep over the width both adds a block's up product and starts the next
// block's down product: x is read and written once per block in cache and once per chain in memory.

// x += up v on one block of a product, and the next block's operand from it while it is in registers.
template <class Number, bool kAffine, bool kRelu>
struct AddAndPrepare {
  float *x, *operand;
  const float *scale, *shift;
  template <int kI, int kV>
  inline __attribute__((always_inline)) void operator()(int i, int v, Vec (&acc)[kI][kV]) {
    float* const stream = x + i * kTileRows + v * kLanes;
    float* const next = operand + i / Number::kPerLane * kTileRows + v * kLanes;
#pragma GCC unroll 8
    for (int r = 0; r < kI; ++r)
#pragma GCC unroll 3
      for (int c = 0; c < kV; ++c) {
        Vec u = load(stream + r * kTileRows + c * kLanes) + acc[r][c];
        store(stream + r * kTileRows + c * kLanes, u);
        if constexpr (kAffine) u = fma(u, broadcast(scale[i + r]), broadcast(shift[i + r]));
        acc[r][c] = kRelu ? maximum(Vec{}, u) : u;
      }
    constexpr bool kPaired = Number::kPerLane == 2 && kI > 1;
#pragma GCC unroll 8
    for (int r = 0; r < kI; r += kPaired ? 2 : 1)
#pragma GCC unroll 3
      for (int c = 0; c < kV; ++c) {
        if constexpr (kPaired) store(next + r / 2 * kTileRows + c * kLanes, pack_bf16(acc[r][c], acc[r + 1][c]));
        else store(next + r * kTileRows + c * kLanes, acc[r][c]);
      }
  }
};

template <class T, class Number>
struct ForwardSweep {
  const ResidualChain& chain;
  const ResidualForward& io;
  const Share& share;
  const int m, k, tiles, slice;
  // One team shares x [tiles][m][row] and the down products' sums [part][2][tiles][k][row], of this block and of the
  // last one, which slower members may still be reading; the rest is a part's own.
  float *x, *sums, *own;

  struct Layout {
    int64_t x, sums, v, operand, affine, packed, own;
    Layout(const ResidualChain& chain, const Share& share)
        : x(share.tiles * chain.m * kTileRows),
          sums(2 * share.tiles * chain.k * kTileRows),
          v((share.tiles + 2) * chain.k * kTileRows),  // and two tiles to work in
          operand(share.slice * kTileRows),
          affine(2 * share.slice),
          packed(2 * packed_floats(chain.k, share.slice > chain.k ? share.slice : chain.k)),
          own(v + operand + affine + packed) {}
    int64_t floats(const Share& share) const { return x + share.parts * (sums + own); }
  };
  const Layout layout;

  static int64_t floats(const ResidualChain& chain, const Share& share) { return Layout(chain, share).floats(share); }

  ForwardSweep(const ResidualChain& chain, const ResidualForward& io, const Share& share, float* scratch)
      : chain(chain),
        io(io),
        share(share),
        m(chain.m),
        k(chain.k),
        tiles(share.tiles),
        slice(share.slice),
        x(scratch),
        layout(chain, share) {
    sums = x + layout.x;
    own = sums + share.parts * layout.sums;
  }

  // Phase (group of tiles, block): add the block's up product and start the next block's down product.
  void operator()(int64_t phase, int part) const {
    const int64_t block = phase % (chain.l + 1);
    const int64_t begin = share.begin + phase / (chain.l + 1) * tiles * kTileRows;
    const int rows = share.end - begin < tiles * kTileRows ? share.end - begin : tiles * kTileRows;
    if (block > 0) finish_features(begin, rows, block - 1, part);
    if (block > chain.ups) return;
    if (block < chain.l) __builtin_memset(sums_of(block, part), 0, layout.sums / 2 * sizeof(float));
    const int slices = (m + slice - 1) / slice;
    const int last = slices * (part + 1) / share.parts;
    for (int s = slices * part / share.parts; s < last; ++s) {
      if (block > 0) prefetch_next(begin, rows, (block - 1) * slices + s, chain.l * slices);
      sweep_slice(begin, rows, block, s * slice, part);
    }
  }

  // A share of the next group's x, so that its rows are near when this group is done.
  void prefetch_next(int64_t begin, int rows, int64_t share_at, int64_t shares) const {
    const int64_t next = begin + rows, end = std::min(share.end, next + rows);
    if (next >= end) return;
    const int64_t first = next + (end - next) * share_at / shares, last = next + (end - next) * (share_at + 1) / shares;
    for (int64_t row = first; row < last; ++row)
      for (int64_t byte = 0; byte < m * (int64_t)sizeof(T); byte += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(static_cast<const T*>(io.x) + row * io.x_stride) + byte, 0, 2);
  }

  float* sums_of(int64_t block, int part) const { return sums + part * layout.sums + block % 2 * (layout.sums / 2); }

  void sweep_slice(int64_t begin, int rows, int64_t block, int at, int part) const {
    const int features = m - at < slice ? m - at : slice;
    const bool has_up = block > 0, has_down = block < chain.l;
    float* const v = own + part * layout.own;
    float* const operand = v + layout.v;
    float* const affine = operand + layout.operand;
    float* const packed = affine + layout.affine;
    const float *scale = nullptr, *shift = nullptr;
    if (has_down && chain.scale) {
      for (int i = 0; i < features; ++i) {
        affine[i] = to_float(static_cast<const T*>(chain.scale)[block * m + at + i]);
        affine[slice + i] = to_float(static_cast<const T*>(chain.shift)[block * m + at + i]);
      }
      scale = affine, shift = affine + slice;
    }
    Weights up{}, down{};
    if (has_up)
      up = as_weights<T, Number>(static_cast<const T*>(chain.up) + ((block - 1) * m + at) * k, k, features, k, packed);
    if (has_down)
      down = as_weights<T, Number>(static_cast<const T*>(chain.down) + block * k * m + at, m, k, features,
                                   packed + layout.packed / 2);
    for (int t = 0; t * kTileRows < rows; ++t) {
      const int tile_rows = rows_of_tile(rows, t), vectors = vectors_for(tile_rows);
      const int64_t row = begin + t * kTileRows;
      float* const tile = x + ((int64_t)t * m + at) * kTileRows;
      const float* in = operand;
      if (!has_up)
        read_tile(static_cast<const T*>(io.x) + row * io.x_stride + at, io.x_stride, tile_rows, features, tile);
      if (has_up && has_down) {
        in = add_up(up, v + (int64_t)t * k * kTileRows, features, vectors, tile, scale, shift, operand);
      } else if (has_up) {
        row_product<Number>(up, v + (int64_t)t * k * kTileRows, features, k / Number::kPerLane, vectors,
                            StoreTile<Write::kAdd>{tile});
      } else {
        in = prepare<Number>(chain.before(), tile, scale, shift, features, vectors, operand);
      }
      if (block == chain.ups) {
        write_tile(tile, tile_rows, features, static_cast<T*>(io.y) + row * m + at, m);
        if (io.stream) write_tile(tile, tile_rows, features, io.stream + row * m + at, m);
      }
      if (has_down)
        row_product<Number>(down, in, k, features / Number::kPerLane, vectors,
                            StoreTile<Write::kAdd>{sums_of(block, part) + (int64_t)t * k * kTileRows});
    }
  }

  // x += up v and the next operand f(scale x + shift), together where f is cheap enough to ride along.
  const float* add_up(Weights up, const float* v, int features, int vectors, float* tile, const float* scale,
                      const float* shift, float* operand) const {
    const Activation f = chain.before();
    const int steps = k / Number::kPerLane;
    if (idempotent(f) && (f == Activation::kRelu || scale || Number::kPerLane == 2)) {
      auto go = [&](auto done) { row_product<Number>(up, v, features, steps, vectors, done); };
      if (f == Activation::kRelu)
        scale ? go(AddAndPrepare<Number, true, true>{tile, operand, scale, shift})
              : go(AddAndPrepare<Number, false, true>{tile, operand, scale, shift});
      else
        scale ? go(AddAndPrepare<Number, true, false>{tile, operand, scale, shift})
              : go(AddAndPrepare<Number, false, false>{tile, operand, scale, shift});
      return operand;
    }
    row_product<Number>(up, v, features, steps, vectors, StoreTile<Write::kAdd>{tile});
    return prepare<Number>(f, tile, scale, shift, features, vectors, operand);
  }

  // v = act(bias + sum over parts), through the mid layer if there is one; keeps what the backward and the caller need.
  void finish_features(int64_t begin, int rows, int64_t block, int part) const {
    float* const v = own + part * layout.own;
    float* const work = v + (int64_t)tiles * k * kTileRows;
    float* const pairs = work + k * kTileRows;
    float* const packed = v + layout.v + layout.operand + layout.affine;
    for (int t = 0; t * kTileRows < rows; ++t) {
      const int tile_rows = rows_of_tile(rows, t), vectors = vectors_for(tile_rows);
      const bool mine = t % share.parts == part;  // every part computes v, one of them writes it
      const int64_t row = begin + t * kTileRows;
      float* const out = v + (int64_t)t * k * kTileRows;
      for (int i = 0; i < k; ++i)
        for (int c = 0; c < vectors; ++c) {
          const float* p = sums_of(block, 0) + ((int64_t)t * k + i) * kTileRows + c * kLanes;
          Vec z = load(p);
          for (int other = 1; other < share.parts; ++other) z += load(p + other * layout.sums);
          store(work + i * kTileRows + c * kLanes, z);
        }
      activate_layer(chain.down_bias, block, 0, tile_rows, row, mine, work);
      if (chain.mid) {
        const T* mid = static_cast<const T*>(chain.mid) + block * k * k;
        const float* h = as_operand<Number>(work, k, vectors, pairs);
        row_product<Number>(as_weights<T, Number>(mid, k, k, k, packed), h, k, k / Number::kPerLane, vectors,
                            StoreTile<Write::kSet>{out});
        __builtin_memcpy(work, out, sizeof(float) * k * kTileRows);
        activate_layer(chain.mid_bias, block, 1, tile_rows, row, mine, work);
      }
      if (io.features && mine)
        write_tile(work, tile_rows, k, static_cast<T*>(io.features) + (row * chain.l + block) * k, chain.l * k);
      if (as_operand<Number>(work, k, vectors, out) == work) __builtin_memcpy(out, work, sizeof(float) * k * kTileRows);
    }
  }

  // z -> act(z + bias), rounded to T at both places as a tensor of that type would be.
  void activate_layer(const void* biases, int64_t block, int layer, int rows, int64_t row, bool mine, float* z) const {
    const int vectors = vectors_for(rows);
    const bool keep = io.hidden && mine, keep_output = idempotent(chain.activation);
    T* const kept = static_cast<T*>(io.hidden) + ((row * chain.l + block) * chain.layers() + layer) * k;
    const int64_t stride = chain.l * chain.layers() * k;
    add_bias(z, biases ? static_cast<const T*>(biases) + block * k : nullptr, k, vectors);
    if (keep && !keep_output) write_tile(z, rows, k, kept, stride);
    activate_tile<T>(chain.activation, z, k, vectors);
    if (keep && keep_output) write_tile(z, rows, k, kept, stride);
  }
};

template <class Work>
static auto with_residual_types(const ResidualChain& chain, Work&& work) {
  return with_types(chain.element, chain.m % 2 == 0 && chain.k % 2 == 0, work);
}

// Calls work with the type of sweep that suits the chain's element type and number of rows.
template <class Work>
static auto with_forward_sweep(const ResidualChain& chain, Work&& work) {
  return with_residual_types(chain, [&](auto element, auto number) {
    using T = decltype(element);
    if (chain.n > kFewRows) return work.template operator()<ForwardSweep<T, decltype(number)>>();
    if (chain.n == 1) return work.template operator()<FewRowsSweep<T, 1>>();
    return work.template operator()<FewRowsSweep<T, kFewRows>>();
  });
}

static int64_t residual_forward_scratch(const ResidualChain& chain, const Share& share) {
  return with_forward_sweep(chain, [&]<class Sweep>() { return Sweep::floats(chain, share); });
}

static void residual_forward(const ResidualChain& chain, const ResidualForward& io, const Share& share, float* scratch,
                             Lockstep& team, int member) {
  with_forward_sweep(chain, [&]<class Sweep>() {
    const int64_t rows = (int64_t)share.tiles * kTileRows;
    team.work(member, (share.end - share.begin + rows - 1) / rows * (chain.l + 1), Sweep(chain, io, share, scratch));
    return 0;
  });
}
