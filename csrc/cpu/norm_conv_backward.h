// The backward of one link, once per instruction set (norm_conv.cpp).
//
// Read once a band of the source: the target's gradient into a tile, then for every panel of channels the source, from
// which its activation is computed again (no convolution is). Written once: the source's gradient. The gradient of the
// weights is summed while the panel's activations are in first-level cache.

// Panels [begin, end) of weight [o, c, taps] as [panel][tap][o][c of the panel].
template <class T>
static void pack_backward_as(const NormConv& conv, int64_t begin, int64_t end, float* packed) {
  const int width = panel_vectors(conv.c) * kLanes;
  const int64_t taps = conv.taps();
  for (int64_t panel = begin; panel < end; ++panel)
    for (int64_t o = 0; o < conv.o; ++o)
      for (int lane = 0; lane < width; lane += kLanes) {
        const int64_t c = panel * width + lane;
        const int count = (int)std::clamp<int64_t>(conv.c - c, 0, kLanes);
        const T* const from = static_cast<const T*>(conv.weight) + (o * conv.c + c) * taps;
        float* to = packed + (panel * taps * conv.o + o) * width + lane;
        for (int64_t tap = 0; tap < taps; ++tap, to += conv.o * width) {
          float lanes[kLanes] = {};
          for (int i = 0; i < count; ++i) lanes[i] = to_float(from[i * taps + tap]);
          store(to, load(lanes));
        }
      }
}

static void pack_backward(const NormConv& conv, int64_t begin, int64_t end, float* packed) {
  with_types(conv.element, false, [&](auto element, auto) {
    pack_backward_as<decltype(element)>(conv, begin, end, packed);
  });
}

// Sums in the packed layout as the gradient [o, c, taps], panels [begin, end) of c.
template <class T>
static void unpack_as(const NormConv& conv, const float* packed, int64_t begin, int64_t end, T* out) {
  const int width = panel_vectors(conv.c) * kLanes;
  const int64_t taps = conv.taps();
  for (int64_t panel = begin; panel < end; ++panel)
    for (int64_t o = 0; o < conv.o; ++o) {
      const int64_t c = panel * width, count = std::min<int64_t>(conv.c - c, width);
      T* const to = out + (o * conv.c + c) * taps;
      const float* const from = packed + (panel * taps * conv.o + o) * width;
      if (taps == 1) {
        for (int64_t i = 0; i < count; i += kLanes)
          store_first(to + i, load_first(from + i, (int)std::min<int64_t>(count - i, kLanes)), (int)(count - i));
        continue;
      }
      for (int64_t i = 0; i < count; ++i)
        for (int64_t tap = 0; tap < taps; ++tap) to[i * taps + tap] = from_float<T>(from[tap * conv.o * width + i]);
    }
}

static void unpack(const NormConv& conv, const float* packed, int64_t begin, int64_t end, void* out) {
  with_types(conv.element, false, [&](auto element, auto) {
    unpack_as(conv, packed, begin, end, static_cast<decltype(element)*>(out));
  });
}

// Lines [first, last) of the target that a band of the source has a part in.
struct TargetLines {
  int64_t first, last;
};

static inline TargetLines target_lines(const NormConv& conv, const Band& band) {
  const int64_t pad = conv.kernel / 2;
  return {std::max<int64_t>(band.begin - pad + conv.stride - 1, 0) / conv.stride,
          std::min(conv.out_height(), (band.end - 1 + pad) / conv.stride + 1)};
}

// Rows of the source in one band, as band_rows.
static inline int64_t band_rows_backward(const NormConv& conv, int64_t threads) {
  const int64_t line = std::max<int64_t>(conv.out_width() * conv.o, 1);
  const int64_t fit = std::max<int64_t>((kTileFloats / line - 2) * conv.stride, 1);
  const int64_t most = std::max<int64_t>(kBandPixels / std::max<int64_t>(conv.width, 1), 1);
  const int64_t shared = (conv.images * conv.height + threads - 1) / threads;
  return std::max<int64_t>(std::min({fit, most, shared}), 1);
}

static inline int64_t backward_scratch(const NormConv& conv, int64_t rows) {
  const int64_t lines = (rows - 1 + conv.kernel / 2 * 2) / conv.stride + 2;
  return lines * conv.out_width() * conv.o + rows * conv.width * panel_vectors(conv.c) * kLanes + 2 * kLanes;
}

// The target's gradient of these lines as rows of floats.
template <class T, class D>
static void read_gradient(const NormConv& conv, const NormConvBackward& io, const Band& band, const TargetLines& lines,
                          float* tile) {
  const Gradient& gradient = io.target;
  const int64_t w = conv.out_width(), begin = (band.image * conv.out_height() + lines.first) * w;
  const int64_t end = begin + (lines.last - lines.first) * w;
  for (int64_t p = begin; p < end; ++p, tile += conv.o)
    for (int64_t i = 0; i < conv.o; i += kLanes) {
      const int count = (int)std::min<int64_t>(conv.o - i, kLanes);
      Vec d = load_first(static_cast<const D*>(gradient.d.data) + p * gradient.d.stride + i, count);
      if (gradient.slope) {
        const Vec value = load_first(static_cast<const T*>(conv.target.data) + p * conv.target.stride + i, count);
        d += fma(value - load_first(gradient.mean + i, count), load_first(gradient.slope + i, count),
                 load_first(gradient.offset + i, count));
      }
      if (io.dropout.data)
        d *= load_first(static_cast<const T*>(io.dropout.data) + p * io.dropout.stride + i, count);
      store_first(tile + i, d, count);
    }
}

// sums [pixel of the band][width] = every tap's share of the gradient of the activations, one panel of them.
static void convolve_back(const NormConv& conv, const Band& band, const TargetLines& lines, const float* tile,
                          const float* packed, float* sums) {
  const int vectors = panel_vectors(conv.c), width = vectors * kLanes;
  const int64_t w = conv.out_width(), s = conv.stride, pad = conv.kernel / 2, taps = conv.taps();
  const int64_t chunk = std::max<int64_t>(kChunkFloats / width, 1), pixels = (band.end - band.begin) * conv.width;
  if (s > 1) std::memset(sums, 0, pixels * width * sizeof(float));  // some pixels have no tap at all
  for (int64_t i = 0; i < taps; ++i) {
    const int64_t tap = (i + taps / 2) % taps, ty = tap / conv.kernel, tx = tap % conv.kernel;
    const Columns columns = columns_of(conv, tx);
    if (columns.to <= columns.from) continue;
    for (int64_t k = 0; k < conv.o; k += chunk) {
      BlockProduct p{};
      p.a_row = conv.o, p.a_step = 1, p.b = packed + (tap * conv.o + k) * width, p.b_step = width;
      p.steps = (int)std::min(chunk, conv.o - k), p.lines = 1, p.c_row = s * width, p.add = s > 1 || i > 0 || k > 0;
      if (taps == 1 && s == 1) {
        p.a = tile + k, p.c = sums, p.rows = (int)pixels;
        block_product<Unit1::kStep>(p, vectors);
        continue;
      }
      p.rows = (int)(columns.to - columns.from);
      for (int64_t line = lines.first; line < lines.last; ++line) {
        const int64_t y = line * s + ty - pad;
        if (y < band.begin || y >= band.end) continue;
        p.a = tile + ((line - lines.first) * w + columns.from) * conv.o + k;
        p.c = sums + ((y - band.begin) * conv.width + columns.from * s + tx - pad) * width;
        block_product<Unit1::kStep>(p, vectors);
      }
    }
  }
}

// [pixel of the band][channel] of an image as vectors: to = d + slope (value - mean) + offset, the gradient of a source
// once its batch norm's share is known. From and to are T or float.
template <class D, class T, class To>
static void add_share(const Gradient& gradient, const Pixels& value, const Pixels& to, int64_t c, int64_t begin,
                      int64_t end) {
  for (int64_t p = begin; p < end; ++p)
    for (int64_t i = 0; i < c; i += kLanes) {
      const int count = (int)std::min<int64_t>(c - i, kLanes);
      Vec d = load_first(static_cast<const D*>(gradient.d.data) + p * gradient.d.stride + i, count);
      if (gradient.slope) {
        const Vec x = load_first(static_cast<const T*>(value.data) + p * value.stride + i, count);
        d += fma(x - load_first(gradient.mean + i, count), load_first(gradient.slope + i, count),
                 load_first(gradient.offset + i, count));
      }
      store_first(static_cast<To*>(to.data) + p * to.stride + i, d, count);
    }
}

static void finish_gradient(Element element, const Gradient& gradient, const Pixels& value, const Pixels& to,
                            bool to_float, int64_t c, int64_t begin, int64_t end) {
  with_types(element, false, [&](auto type, auto) {
    using T = decltype(type);
    if (to_float) add_share<T, T, float>(gradient, value, to, c, begin, end);
    else add_share<float, T, T>(gradient, value, to, c, begin, end);
  });
}

// Through relu and the affine map: gradients of channels [c, c + width), and in their place the activations.
template <class T>
static void pull_back_panel(const NormConv& conv, const NormConvBackward& io, const Band& band, int64_t c, int width,
                            float* values, float* sums) {
  const int64_t pixels = (band.end - band.begin) * conv.width;
  const int64_t first = (band.image * conv.height + band.begin) * conv.width;
  for (int lane = 0; lane < width; lane += kLanes) {
    const int64_t at = c + lane;
    const int count = (int)std::min<int64_t>(conv.c - at, kLanes);
    if (count <= 0) break;
    const auto constant = [&](const float* p, float otherwise) {
      return p ? load_first(p + at, count) : broadcast(otherwise);
    };
    const Vec scale = constant(conv.scale, 1), shift = constant(conv.shift, 0), mean = constant(io.mean, 0);
    Vec total{}, product{};
    for (int64_t p = 0; p < pixels; ++p) {
      const auto also = [&](const Pixels& image) {
        return load_first(static_cast<const T*>(image.data) + (first + p) * image.stride + at, count);
      };
      float* const value = values + p * width + lane;
      float* const into = static_cast<float*>(io.into.data) + (first + p) * io.into.stride + at;
      const Vec x = also(conv.source), u = conv.scale ? fma(x, scale, shift) : x;
      Vec da = load(value);
      if (io.features.data) da += also(io.features);
      const Vec du = select(u <= Vec{}, Vec{}, da);
      Vec dx = du * scale;
      if (io.add) dx += load_first(into, count);
      if (io.shortcut.data) dx += also(io.shortcut);
      store_first(into, dx, count);
      store(value, activate<Activation::kRelu>(u));
      total += du;
      product = fma(du, x - mean, product);
    }
    store_first(sums + at, total, count);
    store_first(sums + conv.c + at, product, count);
  }
}

// dweight [tap][o][width] += the target's gradient times the activations, over the pixels of the band.
static void add_weight_gradient(const NormConv& conv, const Band& band, const TargetLines& lines, const float* tile,
                                const float* values, float* dweight) {
  const int vectors = panel_vectors(conv.c), width = vectors * kLanes;
  const int64_t w = conv.out_width(), s = conv.stride, pad = conv.kernel / 2;
  BlockProduct p{};
  p.a_row = 1, p.a_step = conv.o, p.a_line = w * conv.o, p.b_step = s * width, p.b_line = s * conv.width * width;
  p.c_row = width, p.rows = (int)conv.o, p.add = true;
  for (int64_t tap = 0; tap < conv.taps(); ++tap) {
    const int64_t ty = tap / conv.kernel, tx = tap % conv.kernel;
    const Columns columns = columns_of(conv, tx);
    const int64_t from = std::max(lines.first, std::max<int64_t>(band.begin + pad - ty + s - 1, 0) / s);
    const int64_t to = std::min(lines.last, (band.end - 1 + pad - ty) / s + 1);
    if (columns.to <= columns.from || to <= from || band.end - 1 + pad - ty < 0) continue;
    p.a = tile + ((from - lines.first) * w + columns.from) * conv.o;
    p.b = values + ((from * s + ty - pad - band.begin) * conv.width + columns.from * s + tx - pad) * width;
    p.c = dweight + tap * conv.o * width;
    p.steps = (int)(columns.to - columns.from), p.lines = (int)(to - from);
    if (conv.kernel == 1 && s == 1) p.steps *= p.lines, p.lines = 1;
    block_product<Unit1::kRow>(p, vectors);
  }
}

// One band of the source; dweight: sums of this thread in the packed layout, sums: of this band, [2][c].
static void norm_conv_backward(const NormConv& conv, const NormConvBackward& io, const Band& band, float* dweight,
                               float* sums, float* scratch) {
  const int width = panel_vectors(conv.c) * kLanes;
  const TargetLines lines = target_lines(conv, band);
  float* const values = scratch;
  float* const tile = scratch + (band.end - band.begin) * conv.width * width;
  const int64_t panel_floats = conv.taps() * conv.o * width;
  with_types(conv.element, false, [&](auto element, auto) {
    using T = decltype(element);
    if (io.target.element == Element::kFloat32) read_gradient<T, float>(conv, io, band, lines, tile);
    else read_gradient<T, T>(conv, io, band, lines, tile);
    for (int64_t panel = 0; panel < panels_of(conv.c); ++panel) {
      convolve_back(conv, band, lines, tile, io.packed + panel * panel_floats, values);
      pull_back_panel<T>(conv, io, band, panel * width, width, values, sums);
      add_weight_gradient(conv, band, lines, tile, values, dweight + panel * panel_floats);
    }
  });
}
