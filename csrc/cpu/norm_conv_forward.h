// The forward of one link, once per instruction set (norm_conv.cpp).
//
// Read once a band: the source, normalised and rectified into a tile that stays in second-level cache while every
// channel of the target is computed from it. Written once: the target, with the moments of what was written. The
// normalised image is never in memory.

constexpr int64_t kTileFloats = 96 * 1024;  // of an operand tile: a fifth of a large second-level cache
constexpr int64_t kChunkFloats = 6 * 1024;  // of packed weights, read for every few pixels: most of first-level cache
constexpr int64_t kBandPixels = 192;

// How many vectors of channels are written at a time: 2 or 3, which reuse an activation best, unless lanes stay unused.
static inline int panel_vectors(int64_t channels) {
  const int64_t vectors = (channels + kLanes - 1) / kLanes;
  const auto cost = [&](int v) { return (vectors + v - 1) / v * v * (v == 1 ? 5 : 4); };
  int best = 1;
  for (int v = 2; v <= kPanelVectors; ++v)
    if (cost(v) < cost(best)) best = v;
  return best;
}

static inline int64_t panels_of(int64_t channels) {
  const int width = panel_vectors(channels) * kLanes;
  return (channels + width - 1) / width;
}

static inline int64_t packed_floats(int64_t written, int64_t read, int64_t taps) {
  return panels_of(written) * panel_vectors(written) * kLanes * read * taps;
}

// Panels [begin, end) of weight [o, c, taps] as [panel][tap][c][o of the panel].
template <class T>
static void pack_forward_as(const NormConv& conv, int64_t begin, int64_t end, float* packed) {
  const int width = panel_vectors(conv.o) * kLanes;
  const int64_t taps = conv.taps(), row = conv.c * taps;
  for (int64_t panel = begin; panel < end; ++panel)
    for (int lane = 0; lane < width; lane += kLanes) {
      const int64_t o = panel * width + lane;
      float* const to = packed + panel * width * row + lane;
      for (int64_t j = 0; j < row; j += kLanes) {
        Vec square[kLanes];
        const int count = (int)std::min<int64_t>(row - j, kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r)
          square[r] = o + r < conv.o ? load_first(static_cast<const T*>(conv.weight) + (o + r) * row + j, count) : Vec{};
        transpose(square);
        for (int i = 0; i < count; ++i) store(to + ((j + i) % taps * conv.c + (j + i) / taps) * width, square[i]);
      }
    }
}

static void pack_forward(const NormConv& conv, int64_t begin, int64_t end, float* packed) {
  with_types(conv.element, false, [&](auto element, auto) {
    pack_forward_as<decltype(element)>(conv, begin, end, packed);
  });
}

// Rows of the target in one band: its operand tile fits, and there are bands enough for every thread.
static inline int64_t band_rows(const NormConv& conv, int64_t threads) {
  const int64_t row = conv.width * conv.c * conv.stride, halo = conv.kernel / 2 * 2 * conv.width * conv.c;
  const int64_t fit = std::max<int64_t>((kTileFloats - halo) / std::max<int64_t>(row, 1), 1);
  const int64_t most = std::max<int64_t>(kBandPixels / std::max<int64_t>(conv.out_width(), 1), 1);
  const int64_t rows = conv.images * conv.out_height(), shared = (rows + threads - 1) / threads;
  return std::max<int64_t>(std::min({fit, std::max<int64_t>(most, 1), shared}), 1);
}

// relu(scale x + shift) of one pixel, to a row of the tile.
template <class T>
FASTNEST_INLINE void activate_pixel(const T* x, const float* scale, const float* shift, int64_t c, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= c; i += kLanes) {
    Vec u = load(x + i);
    if (scale) u = fma(u, load(scale + i), load(shift + i));
    store(to + i, activate<Activation::kRelu>(u));
  }
  if (i < c) {
    const int rest = (int)(c - i);
    Vec u = load_first(x + i, rest);
    if (scale) u = fma(u, load_first(scale + i, rest), load_first(shift + i, rest));
    store_first(to + i, activate<Activation::kRelu>(u), rest);
  }
}

static inline int64_t forward_scratch(const NormConv& conv, int64_t rows) {
  const int64_t lines = conv.kernel == 1 ? rows : (rows - 1) * conv.stride + 3;
  const int64_t line = conv.kernel == 1 ? conv.out_width() : conv.width;
  return lines * line * conv.c + rows * conv.out_width() * panel_vectors(conv.o) * kLanes + 2 * kLanes;
}

// What a band of the target needs of the source: whole lines [first, last) for 3x3, else the pixels that are read.
struct SourceLines {
  int64_t first, last;
};

static inline SourceLines source_lines(const NormConv& conv, const Band& band) {
  return {std::max<int64_t>(band.begin * conv.stride - 1, 0),
          std::min<int64_t>((band.end - 1) * conv.stride + 2, conv.height)};
}

template <class T>
static void activate_band(const NormConv& conv, const Band& band, float* tile) {
  const auto pixel = [&](int64_t y, int64_t x) {
    return static_cast<const T*>(conv.source.data) +
           ((band.image * conv.height + y) * conv.width + x) * conv.source.stride;
  };
  if (conv.kernel == 1) {
    for (int64_t y = band.begin; y < band.end; ++y)
      for (int64_t x = 0; x < conv.out_width(); ++x, tile += conv.c)
        activate_pixel(pixel(y * conv.stride, x * conv.stride), conv.scale, conv.shift, conv.c, tile);
    return;
  }
  const SourceLines lines = source_lines(conv, band);
  for (int64_t y = lines.first; y < lines.last; ++y)
    for (int64_t x = 0; x < conv.width; ++x, tile += conv.c)
      activate_pixel(pixel(y, x), conv.scale, conv.shift, conv.c, tile);
}

// Columns x of the target whose tap, column x stride + tx - padding of the source, lies inside the image.
struct Columns {
  int64_t from, to;
};

static inline Columns columns_of(const NormConv& conv, int64_t tx) {
  const int64_t last = conv.width - 1 - tx + conv.kernel / 2;
  return {tx < conv.kernel / 2 ? 1 : 0, std::min(conv.out_width(), (last + conv.stride) / conv.stride)};
}

// One panel of the band: sums [pixel][width] = every tap's share. Where a tap lies outside the image nothing is added.
static void convolve_panel(const NormConv& conv, const Band& band, const float* tile, const float* packed, float* sums) {
  const int vectors = panel_vectors(conv.o), width = vectors * kLanes;
  const int64_t w = conv.out_width(), rows = band.end - band.begin, s = conv.stride;
  const int64_t chunk = std::max<int64_t>(kChunkFloats / width, 1);
  const auto steps = [&](int64_t tap, auto&& lines) {
    for (int64_t k = 0; k < conv.c; k += chunk) {
      BlockProduct p{};
      p.a_step = 1, p.b = packed + (tap * conv.c + k) * width, p.b_step = width;
      p.steps = (int)std::min(chunk, conv.c - k), p.lines = 1, p.c_row = width;
      lines(p, k);
    }
  };
  if (conv.kernel == 1) {
    steps(0, [&](BlockProduct& p, int64_t k) {
      p.a = tile + k, p.a_row = conv.c, p.c = sums, p.rows = (int)(rows * w), p.add = k > 0;
      block_product<Unit1::kStep>(p, vectors);
    });
    return;
  }
  const int64_t first = source_lines(conv, band).first;
  for (int64_t i = 0; i < 9; ++i) {
    const int64_t tap = (i + 4) % 9, ty = tap / 3, tx = tap % 3;  // the middle first: it alone reaches every pixel
    const Columns columns = columns_of(conv, tx);
    if (columns.to <= columns.from) continue;
    steps(tap, [&](BlockProduct& p, int64_t k) {
      p.a_row = s * conv.c, p.rows = (int)(columns.to - columns.from), p.add = i > 0 || k > 0;
      for (int64_t y = band.begin; y < band.end; ++y) {
        const int64_t line = y * s + ty - 1;
        if (line < 0 || line >= conv.height) continue;
        p.a = tile + ((line - first) * conv.width + columns.from * s + tx - 1) * conv.c + k;
        p.c = sums + ((y - band.begin) * w + columns.from) * width;
        block_product<Unit1::kStep>(p, vectors);
      }
    });
  }
}

// Writes channels [o, o + count) of the band, and where wanted their mean and sum of squared deviations from it.
template <class T>
static void finish_panel(const NormConv& conv, const NormConvForward& io, const Band& band, int64_t o, int width,
                         float* sums, float* moments) {
  const int64_t w = conv.out_width(), pixels = (band.end - band.begin) * w;
  const int64_t first = (band.image * conv.out_height() + band.begin) * w;
  for (int lane = 0; lane < width; lane += kLanes) {
    const int64_t at = o + lane;
    const int count = (int)std::min<int64_t>(conv.o - at, kLanes);
    if (count <= 0) break;
    const Vec bias = conv.bias ? load_first(conv.bias + at, count) : Vec{};
    Vec total{};
    for (int64_t p = 0; p < pixels; ++p) {
      Vec v = load(sums + p * width + lane) + bias;
      if (io.dropout.data)
        v *= load_first(static_cast<const T*>(io.dropout.data) + (first + p) * io.dropout.stride + at, count);
      if (io.residual.data)
        v += load_first(static_cast<const T*>(io.residual.data) + (first + p) * io.residual.stride + at, count);
      store_first(static_cast<T*>(conv.target.data) + (first + p) * conv.target.stride + at, v, count);
      if (!moments) continue;
      v = round_to<T>(v);
      store(sums + p * width + lane, v);
      total += v;
    }
    if (!moments) continue;
    const Vec mean = total * broadcast(1.0f / (float)pixels);
    Vec squares{};
    for (int64_t p = 0; p < pixels; ++p) {
      const Vec d = load(sums + p * width + lane) - mean;
      squares = fma(d, d, squares);
    }
    store_first(moments + at, mean, count);
    store_first(moments + conv.o + at, squares, count);
  }
}

static void norm_conv_forward(const NormConv& conv, const NormConvForward& io, const Band& band, float* moments,
                              float* scratch) {
  float* const sums = scratch;
  const int width = panel_vectors(conv.o) * kLanes;
  float* const tile = scratch + (band.end - band.begin) * conv.out_width() * width;
  with_types(conv.element, false, [&](auto element, auto) {
    using T = decltype(element);
    activate_band<T>(conv, band, tile);
    for (int64_t panel = 0; panel < panels_of(conv.o); ++panel) {
      convolve_panel(conv, band, tile, io.packed + panel * width * conv.c * conv.taps(), sums);
      finish_panel<T>(conv, io, band, panel * width, width, sums, moments);
    }
  });
}
