// dense_chain forward. The prefix of a group of tiles grows in the second-level cache, already activated where the
// activation is the same for all readers; every block reads it in place and writes its own columns of the one output
// buffer: each feature is computed, activated and written once, however many blocks read it.

template <class T, class Number>
struct DenseForwardSweep {
  const DenseChain& chain;
  const DenseForward& io;
  const Share& share;
  const int tiles, slice, widest;
  const int64_t width;

  // One team shares the prefix [tiles][width][row] and the sums [part][2][tiles][widest][row].
  struct Layout {
    int64_t prefix, sums, work, operand, affine, packed, own;
    Layout(const DenseChain& chain, const Share& share)
        : prefix(share.tiles * chain.width * kTileRows),
          sums(2 * share.tiles * chain.widest() * kTileRows),
          work(3 * chain.widest() * kTileRows),
          operand((int64_t)share.slice * kTileRows),
          affine(2 * share.slice),
          packed(packed_floats(chain.widest(), std::max<int64_t>(share.slice, chain.widest()))),
          own(work + operand + affine + packed) {}
    int64_t floats(const Share& share) const { return prefix + share.parts * (sums + own); }
  };
  const Layout layout;
  static int64_t floats(const DenseChain& chain, const Share& share) { return Layout(chain, share).floats(share); }
  float *prefix, *sums, *own;

  DenseForwardSweep(const DenseChain& chain, const DenseForward& io, const Share& share, float* scratch)
      : chain(chain),
        io(io),
        share(share),
        tiles(share.tiles),
        slice(share.slice),
        widest(chain.widest()),
        width(chain.width),
        layout(chain, share),
        prefix(scratch) {
    sums = prefix + layout.prefix;
    own = sums + share.parts * layout.sums;
  }

  float* sums_of(int64_t i, int part) const { return sums + part * layout.sums + i % 2 * (layout.sums / 2); }
  float* prefix_at(int t, int64_t column) const { return prefix + (t * width + column / kPerLane()) * kTileRows; }
  // With an affine map before the activation every reader prepares its own operand from float32 columns.
  int kPerLane() const { return chain.affine() ? 1 : Number::kPerLane; }

  // Phase (group of tiles, i): finishes the columns of block i - 1 (or reads x), starts block i.
  void operator()(int64_t phase, int part) const {
    const int64_t blocks = chain.blocks.size(), i = phase % (blocks + 1);
    const int64_t begin = share.begin + phase / (blocks + 1) * tiles * kTileRows;
    const int rows = share.end - begin < tiles * kTileRows ? share.end - begin : tiles * kTileRows;
    if (i == 0) read_input(begin, rows, part);
    else finish_block(begin, rows, i - 1, part);
    if (i < blocks) start_block(rows, i, part);
  }

  // Calls work(first, count) for the columns of [begin, end) that are this part's: every parts-th slice.
  template <class Work>
  void for_own_columns(int64_t begin, int64_t end, int part, const Work& work) const {
    for (int64_t at = begin; at < end;) {
      const int64_t s = at / slice, next = std::min(end, (s + 1) * slice);
      if (s % share.parts == part) work(at, (int)(next - at));
      at = next;
    }
  }

  void read_input(int64_t begin, int rows, int part) const {
    float* const work = own + part * layout.own + layout.work;  // the operand of a slice
    for_own_columns(0, chain.m, part, [&](int64_t at, int count) {
      for (int t = 0; t * kTileRows < rows; ++t) {
        const int tile_rows = rows_of_tile(rows, t);
        const int64_t row = begin + t * kTileRows;
        read_tile(static_cast<const T*>(io.x) + row * io.x_stride + at, io.x_stride, tile_rows, count, work);
        append(work, count, tile_rows, row, t, at);
      }
    });
  }

  // A tile of finished columns: into the output, and, activated, where the blocks to come read it.
  void append(float* columns, int count, int rows, int64_t row, int t, int64_t at) const {
    write_tile(columns, rows, count, static_cast<T*>(io.y) + row * width + at, width);
    float* const to = prefix_at(t, at);
    if (chain.affine()) {
      __builtin_memcpy(to, columns, sizeof(float) * count * kTileRows);
      return;
    }
    // Pairs are made where there is room for the float32 they are made of.
    float* const work = Number::kPerLane == 1 ? to : columns;
    const float* operand = prepare<Number>(chain.before(), columns, nullptr, nullptr, count, vectors_for(rows), work);
    if (operand != to) __builtin_memcpy(to, operand, sizeof(float) * count / Number::kPerLane * kTileRows);
  }

  // sums = weight * prefix over this part's columns.
  void start_block(int rows, int64_t i, int part) const {
    const DenseBlock& block = chain.blocks[i];
    const int out = block.wide();
    const T* const matrix = static_cast<const T*>(block.h ? block.hidden_weight : block.weight);
    float* const operand = own + part * layout.own + layout.work;
    float* const affine = operand + layout.operand;
    float* const packed = affine + layout.affine;
    for (int t = 0; t < tiles; ++t)
      __builtin_memset(sums_of(i, part) + (int64_t)t * widest * kTileRows, 0, sizeof(float) * out * kTileRows);
    for_own_columns(0, block.m, part, [&](int64_t at, int count) {
      const Weights w = as_weights<T, Number>(matrix + at, block.m, out, count, packed);
      if (chain.affine())
        for (int j = 0; j < count; ++j) {
          affine[j] = to_float(static_cast<const T*>(block.scale)[at + j]);
          affine[slice + j] = to_float(static_cast<const T*>(block.shift)[at + j]);
        }
      for (int t = 0; t * kTileRows < rows; ++t) {
        const int vectors = vectors_for(rows_of_tile(rows, t));
        const float* in = prefix_at(t, at);
        if (chain.affine()) in = prepare<Number>(chain.before(), in, affine, affine + slice, count, vectors, operand);
        row_product<Number>(w, in, out, count / Number::kPerLane, vectors,
                            StoreTile<Write::kAdd>{sums_of(i, part) + (int64_t)t * widest * kTileRows});
      }
    });
  }

  // q from the parts' sums, through the hidden layer if there is one; appends this part's columns of it.
  void finish_block(int64_t begin, int rows, int64_t i, int part) const {
    const DenseBlock& block = chain.blocks[i];
    float* const total = own + part * layout.own;
    float* const q = total + (int64_t)widest * kTileRows;
    float* const operand = q + (int64_t)widest * kTileRows;
    float* const packed = total + layout.work + layout.operand + layout.affine;
    for (int t = 0; t * kTileRows < rows; ++t) {
      const int tile_rows = rows_of_tile(rows, t), vectors = vectors_for(tile_rows);
      const int64_t row = begin + t * kTileRows;
      T* const kept = io.hidden ? static_cast<T*>(io.hidden) + row * chain.kept + block.kept : nullptr;
      const float* const partial = sums_of(i, 0) + (int64_t)t * widest * kTileRows;
      const bool mine = t % share.parts == part;
      if (block.h) {
        add_sums(partial, block.hidden_bias, 0, block.h, vectors, total);
        activate_columns(chain.activation, total, block.h, tile_rows, mine ? kept : nullptr);
        const float* h = as_operand<Number>(total, block.h, vectors, operand);
        for_own_columns(block.m, block.m + block.d, part, [&](int64_t at, int count) {
          const int64_t j = at - block.m;
          const T* const matrix = static_cast<const T*>(block.weight) + j * block.h;
          row_product<Number>(as_weights<T, Number>(matrix, block.h, count, block.h, packed), h, count,
                              block.h / Number::kPerLane, vectors, StoreTile<Write::kSet>{q});
          add_bias(q, from(block.bias, j), count, vectors);
          finish_growth(q, count, tile_rows, kept ? kept + block.h + j : nullptr);
          append(q, count, tile_rows, row, t, at);
        });
        continue;
      }
      for_own_columns(block.m, block.m + block.d, part, [&](int64_t at, int count) {
        const int64_t j = at - block.m;
        add_sums(partial + j * kTileRows, block.bias, j, count, vectors, q);
        finish_growth(q, count, tile_rows, kept ? kept + j : nullptr);
        append(q, count, tile_rows, row, t, at);
      });
    }
  }

  static const T* from(const void* vector, int64_t first) {
    return vector ? static_cast<const T*>(vector) + first : nullptr;
  }

  void add_sums(const float* partial, const void* bias, int64_t first, int count, int vectors, float* to) const {
    for (int j = 0; j < count; ++j)
      for (int c = 0; c < vectors; ++c) {
        const float* p = partial + j * kTileRows + c * kLanes;
        Vec z = load(p);
        for (int other = 1; other < share.parts; ++other) z += load(p + other * layout.sums);
        store(to + j * kTileRows + c * kLanes, z);
      }
    add_bias(to, from(bias, first), count, vectors);
  }

  // Activated after the linear map where the chain is not pre-activated.
  void finish_growth(float* q, int count, int rows, T* kept) const {
    if (!chain.pre_activation)
      activate_columns(chain.activation, q, count, rows, chain.keeps_growth() ? kept : nullptr);
  }

  // z -> act(z) rounded to T; keeps z, or act(z) where that tells the derivative.
  void activate_columns(Activation kind, float* z, int count, int rows, T* kept) const {
    if (kept && !idempotent(kind)) write_tile(z, rows, count, kept, chain.kept);
    activate_tile<T>(kind, z, count, vectors_for(rows));
    if (kept && idempotent(kind)) write_tile(z, rows, count, kept, chain.kept);
  }
};

template <class Work>
static auto with_dense_types(const DenseChain& chain, Work&& work) {
  return with_types(chain.element, chain.even(), work);
}

// Calls work with the type of sweep that suits the chain's element type and number of rows.
template <class Work>
static auto with_dense_forward_sweep(const DenseChain& chain, Work&& work) {
  return with_dense_types(chain, [&](auto element, auto number) {
    using T = decltype(element);
    if (chain.n > kFewRows) return work.template operator()<DenseForwardSweep<T, decltype(number)>>();
    if (chain.n == 1) return work.template operator()<DenseFewRowsSweep<T, 1>>();
    return work.template operator()<DenseFewRowsSweep<T, kFewRows>>();
  });
}

static int64_t dense_forward_scratch(const DenseChain& chain, const Share& share) {
  return with_dense_forward_sweep(chain, [&]<class Sweep>() { return Sweep::floats(chain, share); });
}

static void dense_forward(const DenseChain& chain, const DenseForward& io, const Share& share, float* scratch,
                          Lockstep& team, int member) {
  with_dense_forward_sweep(chain, [&]<class Sweep>() {
    const int64_t rows = (int64_t)share.tiles * kTileRows;
    team.work(member, (share.end - share.begin + rows - 1) / rows * (int64_t)(chain.blocks.size() + 1),
              Sweep(chain, io, share, scratch));
    return 0;
  });
}
