// dense_chain backward. The gradient of a group of tiles accumulates in one buffer beside the activated prefix, both
// in cache: from the last block to the first, a block's columns of it are complete when the block is reached, and the
// block adds its share to every column before its own.

// Sums of one block's gradients over rows, float32, with the product's outputs along the vectors; one set per team.
struct DenseSums {
  float* prefix;              // [m, columns of wide()]: the weight that reads the prefix, transposed
  float* growth;              // [d, columns of h]: the weight after a hidden layer
  float *bias, *hidden_bias;  // [d], [h]
  float *scale, *shift;       // [m]
  int64_t floats;

  DenseSums(const DenseBlock& block, float* memory) {
    float* next = memory;
    auto take = [&](bool present, int64_t count) {
      float* start = present ? next : nullptr;
      if (present) next += count;
      return start;
    };
    prefix = take(true, block.m * whole_vectors(block.wide()));
    growth = take(block.h, block.d * whole_vectors(block.h));
    bias = take(true, block.d);
    hidden_bias = take(block.h, block.h);
    scale = take(block.scale, block.m);
    shift = take(block.scale, block.m);
    floats = next - memory;
  }
};

template <class T, class Number>
struct DenseBackwardSweep {
  const DenseChain& chain;
  const DenseBackward& io;
  const Share& share;
  const int tiles, slice, widest;
  const int64_t width, read;  // columns of the output, columns that blocks read

  // One team shares the prefix and the gradient, [tiles][read][row] each.
  struct Layout {
    int64_t stream, tiled, rows, work, slices, affine, packed, own;
    Layout(const DenseChain& chain, const Share& share)
        : stream(share.tiles * chain.blocks.back().m * kTileRows),
          tiled(share.tiles * chain.widest() * kTileRows),
          rows((int64_t)share.tiles * kTileRows * whole_vectors(chain.widest())),
          work(5 * chain.widest() * kTileRows + kTileRows * whole_vectors(chain.widest())),
          slices((share.tiles + 2) * (int64_t)share.slice * kTileRows),
          affine(2 * share.slice),
          packed(packed_floats(chain.widest(), std::max<int64_t>(share.slice, chain.widest()))),
          own(tiled + rows + work + slices + affine + packed) {}
    int64_t floats(const Share& share) const { return 2 * stream + share.parts * own; }
  };
  const Layout layout;
  float *prefix, *g, *own_memory, *sums;

  struct Own {
    float *dz, *dz_rows;  // operands [tiles][wide][row], [tiles][row][columns]
    float* work;          // [5][widest][row], and [row][columns]
    float* left;          // [tiles + 2][slice][row]
    float *affine, *packed;
  };

  DenseBackwardSweep(const DenseChain& chain, const DenseBackward& io, const Share& share, float* scratch, float* sums)
      : chain(chain),
        io(io),
        share(share),
        tiles(share.tiles),
        slice(share.slice),
        widest(chain.widest()),
        width(chain.width),
        read(chain.blocks.back().m),
        layout(chain, share),
        prefix(scratch),
        sums(sums) {
    g = prefix + layout.stream;
    own_memory = g + layout.stream;
  }

  Own own(int part) const {
    Own o;
    float* next = own_memory + part * layout.own;
    auto take = [&](int64_t count) { return next += count, next - count; };
    o.dz = take(layout.tiled), o.dz_rows = take(layout.rows), o.work = take(layout.work);
    o.left = take(layout.slices), o.affine = take(layout.affine), o.packed = take(layout.packed);
    return o;
  }

  DenseSums sums_of(int64_t i) const {
    float* at = sums;
    for (int64_t j = 0; j < i; ++j) at += DenseSums(chain.blocks[j], nullptr).floats;
    return DenseSums(chain.blocks[i], at);
  }

  float* at(float* stream, int t, int64_t column) const { return stream + (t * read + column) * kTileRows; }
  // Without an affine map all readers share one operand, and g is the gradient of the activated columns until read.
  bool shared() const { return !chain.affine(); }

  // Phase (group of tiles, p): p = 0 reads the prefix, p = 1 .. blocks walks the blocks from the last to the first.
  void operator()(int64_t phase, int part) const {
    const int64_t blocks = chain.blocks.size(), p = phase % (blocks + 1);
    const int64_t begin = share.begin + phase / (blocks + 1) * tiles * kTileRows;
    const int rows = share.end - begin < tiles * kTileRows ? share.end - begin : tiles * kTileRows;
    const Own o = own(part);
    if (p == 0) return read_prefix(begin, rows, part, o);
    const int64_t i = blocks - p;
    finish_growth(begin, rows, i, part, o);
    const DenseSums into = sums_of(i);
    for_own_slices(chain.blocks[i].m, part,
                   [&](int64_t first, int count) { add_share(rows, i, first, count, into, o); });
    if (i == 0)
      for_own_slices(chain.m, part, [&](int64_t first, int count) {
        for (int t = 0; t * kTileRows < rows; ++t) {
          const int64_t row = begin + t * kTileRows;
          total_gradient(row, rows_of_tile(rows, t), t, first, count, o.left, o.left + slice * kTileRows);
          write_tile(o.left, rows_of_tile(rows, t), count, static_cast<T*>(io.dx) + row * chain.m + first, chain.m);
        }
      });
  }

  template <class Work>
  void for_own_slices(int64_t columns, int part, const Work& work) const {
    for (int64_t s = part; s * slice < columns; s += share.parts)
      work(s * slice, (int)std::min<int64_t>(slice, columns - s * slice));
  }

  void read_prefix(int64_t begin, int rows, int part, const Own& o) const {
    for_own_slices(read, part, [&](int64_t first, int count) {
      for (int t = 0; t * kTileRows < rows; ++t) {
        const int64_t row = begin + t * kTileRows;
        float* const x = shared() ? o.left : at(prefix, t, first);
        read_whole_tile(static_cast<const T*>(io.y) + row * width + first, width, rows_of_tile(rows, t), count, x);
        __builtin_memset(at(g, t, first), 0, sizeof(float) * count * kTileRows);
        if (!shared()) continue;
        activate_tile<float>(chain.before(), x, count, kTileRows / kLanes);
        const float* left = as_left<Number>(x, count, at(prefix, t, first));
        if (left == x) __builtin_memcpy(at(prefix, t, first), x, sizeof(float) * count * kTileRows);
      }
    });
  }

  // dx = dy + what the blocks that read these columns added.
  void total_gradient(int64_t row, int rows, int t, int64_t first, int count, float* out, float* work) const {
    read_whole_tile(static_cast<const T*>(io.dy) + row * io.dy_stride + first, io.dy_stride, rows, count, out);
    if (first >= read) return;  // the last block's growth: nobody read it
    const float* from = at(g, t, first);
    if (!shared() || chain.before() == Activation::kIdentity) {
      for (int j = 0; j < count * kTileRows; j += kLanes) store(out + j, load(out + j) + load(from + j));
      return;
    }
    read_whole_tile(static_cast<const T*>(io.y) + row * width + first, width, rows, count, work);
    pull_back(chain.before(), work, from, nullptr, nullptr, count, out, work, nullptr, nullptr);
  }

  // dz, the gradient of the product over the prefix, from the complete gradient of the block's columns.
  void finish_growth(int64_t begin, int rows, int64_t i, int part, const Own& o) const {
    const DenseBlock& block = chain.blocks[i];
    const DenseSums into = sums_of(i);
    const int d = block.d, h = block.h, wide = block.wide(), columns = whole_vectors(wide),
              vectors = kTileRows / kLanes;
    const int64_t size = (int64_t)widest * kTileRows;
    float *const dq = o.work, *const value = dq + size, *const pairs = value + size, *const left = pairs + size;
    float *const dh = left + size, *const right = dh + size;
    for (int t = 0; t * kTileRows < rows; ++t) {
      const int tile_rows = rows_of_tile(rows, t);
      const int64_t row = begin + t * kTileRows;
      const T* const kept = static_cast<const T*>(io.hidden) + row * chain.kept + block.kept;
      float* dz = dq;
      total_gradient(row, tile_rows, t, block.m, d, dq, value);
      if (!chain.pre_activation) {
        const T* from = chain.keeps_growth() ? kept + h : static_cast<const T*>(io.y) + row * width + block.m;
        read_whole_tile(from, chain.keeps_growth() ? chain.kept : width, tile_rows, d, value);
        multiply_by_derivative<T>(chain.activation, value, d, nullptr, dq);
      }
      if (part == 0) add_row_sums(dq, d, into.bias);
      if (h) {
        read_whole_tile(kept, chain.kept, tile_rows, h, value);
        const T* const matrix = static_cast<const T*>(block.weight);
        row_product<Number>(as_transposed_weights<T, Number>(matrix, h, d, h, 1, o.packed),
                            as_operand<Number>(dq, d, vectors, pairs), h, d / Number::kPerLane, vectors,
                            StoreTile<Write::kSet>{dh});
        multiply_by_derivative<T>(chain.activation, value, h, value, dh);
        if (part == 0) {
          as_right<Number>(value, h, columns, right);
          add_outer<Number>(as_left<Number>(dq, d, left), 0, right, 0, 1, columns, into.growth, d);
          add_row_sums(dh, h, into.hidden_bias);
        }
        dz = dh;
      }
      as_right<Number>(dz, wide, columns, o.dz_rows + (int64_t)t * kTileRows * columns);
      float* const operand = o.dz + t * size;
      if (as_operand<Number>(dz, wide, vectors, operand) == dz)
        __builtin_memcpy(operand, dz, sizeof(float) * wide * kTileRows);
    }
  }

  // g += weight^T dz and dweight += dz prefix^T for some columns of the prefix.
  void add_share(int rows, int64_t i, int64_t first, int count, const DenseSums& into, const Own& o) const {
    const DenseBlock& block = chain.blocks[i];
    const int wide = block.wide(), columns = whole_vectors(wide), vectors = kTileRows / kLanes;
    const int many = (rows + kTileRows - 1) / kTileRows;
    const int64_t slice_tile = (int64_t)slice * kTileRows;
    const T* const matrix = static_cast<const T*>(block.h ? block.hidden_weight : block.weight) + first;
    const Weights w = as_transposed_weights<T, Number>(matrix, block.m, wide, count, many, o.packed);
    if (!shared())
      for (int j = 0; j < count; ++j) {
        o.affine[j] = to_float(static_cast<const T*>(block.scale)[first + j]);
        o.affine[slice + j] = to_float(static_cast<const T*>(block.shift)[first + j]);
      }
    for (int t = 0; t < many; ++t) {
      const float* const dz = o.dz + (int64_t)t * widest * kTileRows;
      if (shared()) {
        row_product<Number>(w, dz, count, wide / Number::kPerLane, vectors, StoreTile<Write::kAdd>{at(g, t, first)});
        continue;
      }
      float *const da = o.left + tiles * slice_tile, *const value = da + slice_tile, *const a = o.left + t * slice_tile;
      row_product<Number>(w, dz, count, wide / Number::kPerLane, vectors, StoreTile<Write::kSet>{da});
      pull_back(chain.before(), at(prefix, t, first), da, o.affine, o.affine + slice, count, at(g, t, first), value,
                into.scale + first, into.shift + first);
      if (as_left<Number>(value, count, a) == value) __builtin_memcpy(a, value, sizeof(float) * count * kTileRows);
    }
    // Left operands lie a tile's whole prefix apart, or a slice where each block prepares its own.
    const float* const left = shared() ? at(prefix, 0, first) : o.left;
    add_outer<Number>(left, shared() ? read * kTileRows : slice_tile, o.dz_rows, (int64_t)kTileRows * columns, many,
                      columns, into.prefix + first * columns, count);
  }
};

static int64_t dense_sums_floats(const DenseChain& chain) {
  int64_t total = 0;
  for (const DenseBlock& block : chain.blocks) total += DenseSums(block, nullptr).floats;
  return total;
}

static int64_t dense_backward_scratch(const DenseChain& chain, const Share& share) {
  return with_dense_types(chain, [&](auto element, auto number) {
    return typename DenseBackwardSweep<decltype(element), decltype(number)>::Layout(chain, share).floats(share);
  });
}

static void dense_backward(const DenseChain& chain, const DenseBackward& io, const Share& share, float* scratch,
                           float* sums, Lockstep& team, int member) {
  with_dense_types(chain, [&](auto element, auto number) {
    DenseBackwardSweep<decltype(element), decltype(number)> sweep(chain, io, share, scratch, sums);
    const int64_t rows = (int64_t)share.tiles * kTileRows;
    team.work(member, (share.end - share.begin + rows - 1) / rows * (int64_t)(chain.blocks.size() + 1), sweep);
    return 0;
  });
}

// The sums of one block as gradients of its parameters.
static void dense_gradients(const DenseChain& chain, const float* sums, int64_t i, const DenseGradients& out) {
  with_dense_types(chain, [&](auto element, auto) {
    using T = decltype(element);
    float* at = const_cast<float*>(sums);
    for (int64_t j = 0; j < i; ++j) at += DenseSums(chain.blocks[j], nullptr).floats;
    const DenseBlock& block = chain.blocks[i];
    const DenseSums from(block, at);
    const auto vector = [](const float* values, int64_t count, void* to) {
      if (values && to) write_matrix<T>(values, 1, count, count, to);
    };
    write_transpose<T>(from.prefix, block.m, block.wide(), whole_vectors(block.wide()),
                       block.h ? out.hidden_weight : out.weight);
    if (block.h) write_matrix<T>(from.growth, block.d, block.h, whole_vectors(block.h), out.weight);
    vector(from.bias, block.d, out.bias);
    vector(from.hidden_bias, block.h, out.hidden_bias);
    vector(from.scale, block.m, out.scale);
    vector(from.shift, block.m, out.shift);
    return 0;
  });
}
