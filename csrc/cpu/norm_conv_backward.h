// The backward of one link, once per instruction set (norm_conv.cpp).
//
// Read once a band of the source: the target's gradient into a tile, then for every panel of channels the source, from
// which its activation is computed again (no convolution is). Written once: the source's gradient. The gradient of the
// weights is summed while the panel's activations are in cache.
//
// Where products are of pairs of bfloat16, these are neighbours of what is summed over: channels of the target for the
// gradient of the source, pixels of a line for that of the weights. So the tile is made twice, and every pixel of the
// second is paired with the one behind it, for a tap may begin at any.

static Lanes backward_lanes(const NormConv& conv) {
  return {kLanes, kPanelVectors, conv.element == Element::kBFloat16 && kHasBf16Dot && conv.stride == 1 ? 2 : 1};
}

static bool is_flat(const NormConv& conv) { return conv.kernel == 1 && conv.stride == 1; }

// Float weights of a 1x1 convolution lie as they are read, in rows of its channels, and so does their gradient.
static bool lies_packed(const NormConv& conv) {
  return conv.kernel == 1 && conv.element == Element::kFloat32 && conv.c % kLanes == 0;
}

static int64_t backward_positions(const NormConv& conv, const Band& band) {
  return is_flat(conv) ? band.pixels() : target_lines(conv, band).positions(conv.out_width());
}

static int64_t backward_scratch(const NormConv& conv, const Band& band) {
  const int64_t positions = backward_positions(conv, band), tile = positions * conv.o;
  const int64_t segments = 3 * 2 * (band.pixels() / std::max<int64_t>(conv.width, 1) + 2);
  return room_floats(band.pixels(), backward_lanes(conv).channels == 1 ? tile : 2 * tile + positions + 3 * conv.o) +
         segments + kLanes;
}

// The target's gradient of one pixel as a row of the tile.
template <class T, class D, class Number>
FASTNEST_INLINE void read_gradient(const NormConv& conv, const NormConvBackward& io, int64_t p, float* tile) {
  using To = std::conditional_t<Number::kPerLane == 2, BFloat16, float>;
  To* const to = reinterpret_cast<To*>(tile);
  const Gradient& gradient = io.target;
  for (int64_t i = 0; i < conv.o; i += kLanes) {
    const int count = (int)std::min<int64_t>(conv.o - i, kLanes);
    Vec d = load_first(static_cast<const D*>(gradient.d.data) + p * gradient.d.stride + i, count);
    if (gradient.slope) {
      const Vec value = load_first(static_cast<const T*>(conv.target.data) + p * conv.target.stride + i, count);
      d += fma(value - load_first(gradient.mean + i, count), load_first(gradient.slope + i, count),
               load_first(gradient.offset + i, count));
    }
    if (io.dropout.data) d *= load_first(static_cast<const T*>(io.dropout.data) + p * io.dropout.stride + i, count);
    store_first(to + i, d, count);
  }
  if (Number::kPerLane == 2 && conv.o % 2) to[conv.o] = To{};
}

// pairs [position][o]: a bfloat16 of the tile and its neighbour at the next position, behind the last one zero.
static void pair_positions(const float* tile, int64_t positions, int64_t o, float* pairs) {
  const int64_t row = (o + 1) / 2 * 2;
  const BFloat16* from = reinterpret_cast<const BFloat16*>(tile);
  for (int64_t q = 0; q < positions; ++q, from += row)
    for (int64_t i = 0; i < o; i += kLanes) {
      const int count = (int)std::min<int64_t>(o - i, kLanes);
      const UVec low = (UVec)load_first(from + i, count) >> 16;
      const UVec high = q + 1 < positions ? (UVec)load_first(from + row + i, count) : UVec{};
      store_first(pairs + q * o + i, (Vec)(low | high), count);
    }
  std::memset(pairs + positions * o, 0, 2 * o * sizeof(float));
}

// Pixels of one line of the source in a band: values [slot ...] are theirs.
struct LinePart {
  int64_t image, y, x, pixels, slot;
};

template <class Number, class Visit>
FASTNEST_INLINE void for_lines(const NormConv& conv, const Band& band, const Visit& visit) {
  int64_t slot = 0;
  const int64_t w = is_flat(conv) ? conv.height * conv.images : conv.width;
  for (int64_t p = band.begin; p < band.end;) {
    const int64_t line = p / w, x = p % w, pixels = std::min(w - x, band.end - p);
    visit(LinePart{line / conv.height, line % conv.height, x, pixels, slot});
    slot += lanes_of<Number>(pixels), p += pixels;
  }
}

// sums [pixel of the band][width] = every tap's share of the gradient of the activations, one panel of them.
template <class Number>
static void convolve_back(const NormConv& conv, const Band& band, const Room& room, const float* packed, int64_t step,
                          int vectors) {
  const int64_t inner = lanes_of<Number>(conv.o), s = conv.stride, pad = conv.kernel / 2, k = conv.kernel;
  int64_t tap_at[kMostTaps], b_at[kMostTaps];
  RowProduct p{};
  p.a = room.tile, p.tap_at = tap_at, p.b_at = b_at, p.b = packed, p.b_step = step;
  p.c = room.sums, p.steps = (int)inner;
  p.a_at = room.a_at, p.c_at = room.c_at;
  if (is_flat(conv)) {
    for (int64_t j = 0; j < band.pixels(); ++j) room.a_at[j] = j * inner, room.c_at[j] = j;
    tap_at[0] = b_at[0] = 0, p.taps = 1, p.rows = (int)band.pixels();
    return block_product<Number>(p, vectors);
  }
  // Pixels whose distance from the first line and column leaves the same rest have the same taps.
  const Padded padded{conv.out_height(), conv.out_width(), target_lines(conv, band).first};
  for (int64_t ry = 0; ry < s; ++ry)
    for (int64_t rx = 0; rx < s; ++rx) {
      p.taps = p.rows = 0;
      for (int64_t m = 0; ry + m * s < k; ++m)
        for (int64_t n = 0; rx + n * s < k; ++n, ++p.taps) {
          tap_at[p.taps] = -(m * (conv.out_width() + 1) + n) * inner;
          b_at[p.taps] = ((ry + m * s) * k + rx + n * s) * inner;
        }
      for_pixels(band, conv.height, conv.width, [&](int64_t j, int64_t image, int64_t y, int64_t x) {
        if ((y + pad) % s != ry || (x + pad) % s != rx) return;
        room.a_at[p.rows] = padded.at(image, (y + pad) / s, (x + pad) / s) * inner, room.c_at[p.rows++] = j;
      });
      block_product<Number>(p, vectors);
    }
}

constexpr int kPixelsAhead = 4;  // prefetched: a pixel's part of a panel is a short piece of a long row

// Through relu and the affine map: gradients of a panel's channels, and in the place of the sums the activations, of
// neighbouring pixels in one lane where products are of pairs.
template <class T, class Number, int kV>
static void pull_back_panel(const NormConv& conv, const NormConvBackward& io, const Band& band, const Panel& panel,
                            float* values, float* sums) {
  const Counts<kV> counts(panel, conv.c);
  const int64_t at = panel.vector * kLanes;
  Vec scale[kV], shift[kV], mean[kV];
  LongSum gradients[kV], products[kV];
  for (int v = 0; v < kV; ++v) {
    const auto constant = [&](const float* p, float otherwise) {
      return p ? load_first(p + at + v * kLanes, counts.of[v]) : broadcast(otherwise);
    };
    scale[v] = constant(conv.scale, 1), shift[v] = constant(conv.shift, 0), mean[v] = constant(io.mean, 0);
  }
  const auto part = [&](const Pixels& image, int64_t p, int v) {
    return static_cast<const T*>(image.data) + p * image.stride + at + v * kLanes;
  };
  const auto pixel = [&](int64_t p, Vec(&u)[kV]) {
    const float* const da = values + (p - band.begin) * kV * kLanes;
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      float* const into = static_cast<float*>(io.into.data) + p * io.into.stride + at + v * kLanes;
      __builtin_prefetch(into + kPixelsAhead * io.into.stride, 1);
      __builtin_prefetch(part(conv.source, p + kPixelsAhead, v));
      const Vec x = load_first(part(conv.source, p, v), counts.of[v]);
      u[v] = fma(x, scale[v], shift[v]);
      Vec d = load(da + v * kLanes);
      if (io.features.data) d += load_first(part(io.features, p, v), counts.of[v]);
      const Vec du = select(u[v] <= Vec{}, Vec{}, d);
      Vec dx = du * scale[v];
      if (io.add) dx += load_first(into, counts.of[v]);
      if (io.shortcut.data) dx += load_first(part(io.shortcut, p, v), counts.of[v]);
      store_first(into, dx, counts.of[v]);
      gradients[v].run += du;
      products[v].run = fma(du, x - mean[v], products[v].run);
      close_run(gradients[v], p), close_run(products[v], p);
      u[v] = activate<Activation::kRelu>(u[v]);
    }
  };
  int64_t end = band.begin;
  for_lines<Number>(conv, band, [&](const LinePart& line) {
    float* to = values + line.slot * kV * kLanes;
    end += line.pixels;
    for (int64_t p = end - line.pixels; p < end; p += Number::kPerLane, to += kV * kLanes) {
      Vec u[kV], next[kV] = {};
      pixel(p, u);
      if constexpr (Number::kPerLane == 2) {
        if (p + 1 < end) pixel(p + 1, next);
      }
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) store(to + v * kLanes, Number::kPerLane == 2 ? pack_bf16(u[v], next[v]) : u[v]);
    }
  });
  for (int v = 0; v < kV; ++v) {
    store_first(sums + at + v * kLanes, total(gradients[v]), counts.of[v]);
    store_first(sums + conv.c + at + v * kLanes, total(products[v]), counts.of[v]);
  }
}

// dweight [tap][o][width] (+)= the target's gradient times the activations, over the pixels of the band.
template <class Number>
static void add_weight_gradient(const NormConv& conv, const Band& band, const float* tile, const float* values,
                                int vectors, Segment* segments, bool add, float* dweight, int64_t row) {
  const int width = vectors * kLanes;
  const int64_t s = conv.stride, pad = conv.kernel / 2;
  OuterProduct p{};
  p.a = tile, p.b = values, p.segments = segments, p.a_step = Number::kPerLane * conv.o, p.b_step = s * width;
  p.rows = (int)conv.o, p.c_row = row, p.add = add;
  const Padded padded{conv.out_height(), conv.out_width(), is_flat(conv) ? 0 : target_lines(conv, band).first};
  for (int64_t tap = 0; tap < conv.taps(); ++tap) {
    const int64_t ty = tap / conv.kernel, tx = tap % conv.kernel;
    p.count = 0;
    for_lines<Number>(conv, band, [&](const LinePart& line) {
      Segment& segment = segments[p.count];
      if (is_flat(conv)) {
        segment = {0, 0, lanes_of<Number>(line.pixels)}, ++p.count;
        return;
      }
      const int64_t up = line.y + pad - ty, y = up / s;
      if (up < 0 || up % s || y >= conv.out_height()) return;
      if constexpr (Number::kPerLane == 2) {  // pairs stay together: beyond the line the tile has zeros
        segment = {padded.at(line.image, y, line.x + pad - tx) * conv.o, line.slot * width,
                   lanes_of<Number>(line.pixels)};
      } else {
        const int64_t left = line.x + pad - tx, from = left < 0 ? 0 : (left + s - 1) / s;
        const int64_t to = std::min(conv.out_width(), (left + line.pixels - 1 + s) / s);
        if (to <= from) return;
        segment = {padded.at(line.image, y, from) * conv.o, (line.slot + from * s - left) * width, to - from};
      }
      ++p.count;
    });
    p.c = dweight + tap * conv.o * row;
    block_product<Number>(p, vectors);
  }
}

// The tile's rows, then for every panel: the gradient of the activations, of the source, of the weights.
template <class T, class D, class Number>
static void backward_band(const NormConv& conv, const NormConvBackward& io, const Band& band, const Panel* panels,
                          int64_t count, bool alone, bool add, float* dweight, void* out, float* sums, float* scratch) {
  const int64_t inner = lanes_of<Number>(conv.o), positions = backward_positions(conv, band), taps = conv.taps();
  const bool direct = lies_packed(conv);
  const Room room(scratch, band.pixels(), kPanelVectors);
  const auto pixel = [&](int64_t p, float* to) { read_gradient<T, D, Number>(conv, io, p, to); };
  if (is_flat(conv))
    for (int64_t p = band.begin; p < band.end; ++p) pixel(p, room.tile + (p - band.begin) * inner);
  else pad_tile(target_lines(conv, band), conv.out_height(), conv.out_width(), inner, room.tile, pixel);
  float *outer = room.tile, *behind = room.tile + positions * inner;
  if constexpr (Number::kPerLane == 2) {
    outer = behind, behind += (positions + 2) * conv.o;
    pair_positions(room.tile, positions, conv.o, outer);
  }
  Segment* const segments = reinterpret_cast<Segment*>((reinterpret_cast<uintptr_t>(behind) + alignof(Segment) - 1) /
                                                       alignof(Segment) * alignof(Segment));
  for (int64_t i = 0; i < count; ++i) {
    const Panel& panel = panels[i];
    const int64_t row = direct ? conv.c : panel.vectors * kLanes;
    const int64_t place = (direct ? panel.vector : place_of(panel, panels[0], alone) * taps) * kLanes;
    float *const packed = io.packed + place * (direct ? 1 : inner), *const own =
                                                                        dweight + place * (direct ? 1 : conv.o);
    if (alone && !direct) pack_backward_as<T, Number>(conv, panel, packed);
    convolve_back<Number>(conv, band, room, packed, row, panel.vectors);
    with_vectors(panel.vectors, [&](auto vectors) {
      pull_back_panel<T, Number, decltype(vectors)::value>(conv, io, band, panel, room.sums, sums);
    });
    add_weight_gradient<Number>(conv, band, outer, room.sums, panel.vectors, segments, add, own, row);
    if (alone && !direct) unpack_as(conv, own, panel, static_cast<T*>(out));
  }
}

// dweight: sums of this thread in the layout of the packed weights, added to or set, in the end `out`; sums: of
// this band, [2][c].
static void norm_conv_backward(const NormConv& conv, const NormConvBackward& io, const Band& band, const Panel* panels,
                               int64_t count, bool alone, bool add, float* dweight, void* out, float* sums,
                               float* scratch) {
  with_types(conv.element, conv.stride == 1, [&](auto element, auto number) {
    using T = decltype(element);
    using Number = decltype(number);
    if (io.target.element == Element::kFloat32)
      backward_band<T, float, Number>(conv, io, band, panels, count, alone, add, dweight, out, sums, scratch);
    else backward_band<T, T, Number>(conv, io, band, panels, count, alone, add, dweight, out, sums, scratch);
  });
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
