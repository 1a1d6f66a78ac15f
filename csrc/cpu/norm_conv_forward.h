// The forward of one link, once per instruction set (norm_conv.cpp).
//
// Read once a band: the source, normalised and rectified into a tile that stays in second-level cache while every
// channel of the target is computed from it, in bfloat16 where the products are. Written once: the target, with the
// moments of what was written. The normalised image is never in memory.

// relu(scale x + shift) of one pixel, to a row of the tile.
template <class T, class Number>
FASTNEST_INLINE void activate_pixel(const T* x, const float* scale, const float* shift, int64_t c, float* tile) {
  using To = std::conditional_t<Number::kPerLane == 2, BFloat16, float>;
  To* const to = reinterpret_cast<To*>(tile);
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
    if (Number::kPerLane == 2 && c % 2) to[c] = To{};
  }
}

// Zeros and pixels of lines [lines.first, lines.last] of a tile; pixel(p, to) makes pixel p of the image.
template <class Pixel>
FASTNEST_INLINE void pad_tile(const TileLines& lines, int64_t height, int64_t width, int64_t inner, float* tile,
                              const Pixel& pixel) {
  const auto zeros = [&](int64_t pixels) {
    std::memset(tile, 0, pixels * inner * sizeof(float));
    tile += pixels * inner;
  };
  for (int64_t line = lines.first; line <= lines.last; ++line) {
    const int64_t image = line / (height + 1), y = line % (height + 1) - 1;
    zeros(y < 0 ? width + 1 : 1);
    if (y < 0) continue;
    for (int64_t x = 0; x < width; ++x, tile += inner) pixel((image * height + y) * width + x, tile);
  }
  zeros(1);
}

// visit(j, image, y, x) for the pixels of a band, j counted from its first.
template <class Visit>
FASTNEST_INLINE void for_pixels(const Band& band, int64_t height, int64_t width, const Visit& visit) {
  if (band.begin == band.end) return;
  int64_t image = band.begin / (height * width), y = band.begin % (height * width) / width, x = band.begin % width;
  for (int64_t j = 0; j < band.pixels(); ++j) {
    visit(j, image, y, x);
    if (++x < width) continue;
    x = 0;
    if (++y == height) y = 0, ++image;
  }
}

// Scratch of one thread: where every pixel's row lies in the tile and in the sums, sums of a panel, the tile.
struct Room {
  int64_t *a_at, *c_at;
  float *sums, *tile;
  Room(float* scratch, int64_t pixels, int vectors) {
    a_at = reinterpret_cast<int64_t*>(scratch), c_at = a_at + pixels;
    sums = scratch + (4 * pixels + 15) / 16 * 16, tile = sums + pixels * vectors * kLanes;
  }
};

static inline int64_t room_floats(int64_t pixels, int64_t tile) {
  return (4 * pixels + 15) / 16 * 16 + pixels * kPanelVectors * kLanes + tile + 2 * kLanes;
}

static Lanes forward_lanes(const NormConv& conv) {
  return {kLanes, kPanelVectors, conv.element == Element::kBFloat16 && kHasBf16Dot ? 2 : 1};
}

static int64_t forward_scratch(const NormConv& conv, const Band& band) {
  const int64_t inner = (conv.c + 1) / forward_lanes(conv).channels;
  if (conv.kernel == 1) return room_floats(band.pixels(), band.pixels() * inner);
  return room_floats(band.pixels(), source_lines(conv, band).positions(conv.width) * inner);
}

// The tile of a band, and where in it the first tap of every pixel lies.
template <class T, class Number>
static void activate_band(const NormConv& conv, const Band& band, const Room& room) {
  const int64_t inner = lanes_of<Number>(conv.c), s = conv.stride;
  const auto pixel = [&](int64_t p, float* to) {
    activate_pixel<T, Number>(static_cast<const T*>(conv.source.data) + p * conv.source.stride, conv.scale, conv.shift,
                              conv.c, to);
  };
  if (conv.kernel == 1) {
    for_pixels(band, conv.out_height(), conv.out_width(), [&](int64_t j, int64_t image, int64_t y, int64_t x) {
      pixel((image * conv.height + y * s) * conv.width + x * s, room.tile + j * inner);
      room.a_at[j] = j * inner, room.c_at[j] = j;
    });
    return;
  }
  const TileLines lines = source_lines(conv, band);
  const Padded padded{conv.height, conv.width, lines.first};
  pad_tile(lines, conv.height, conv.width, inner, room.tile, pixel);
  for_pixels(band, conv.out_height(), conv.out_width(), [&](int64_t j, int64_t image, int64_t y, int64_t x) {
    room.a_at[j] = padded.at(image, y * s - 1, x * s - 1) * inner, room.c_at[j] = j;
  });
}

// Writes channels [o, o + count) of the band, and where wanted their mean and sum of squared deviations from it.
template <class T>
static void finish_panel(const NormConv& conv, const NormConvForward& io, const Band& band, const Panel& panel,
                         float* sums, float* moments) {
  const int64_t pixels = band.pixels(), first = band.begin;
  const int width = panel.vectors * kLanes;
  for (int lane = 0; lane < width; lane += kLanes) {
    const int64_t at = panel.vector * kLanes + lane;
    const int count = (int)std::min<int64_t>(conv.o - at, kLanes);
    if (count <= 0) break;
    const Vec bias = conv.bias ? load_first(conv.bias + at, count) : Vec{};
    LongSum values;
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
      values.run += v;
      close_run(values, p);
    }
    if (!moments) continue;
    const Vec mean = total(values) * broadcast(1.0f / (float)pixels);
    LongSum squares;
    for (int64_t p = 0; p < pixels; ++p) {
      const Vec d = load(sums + p * width + lane) - mean;
      squares.run = fma(d, d, squares.run);
      close_run(squares, p);
    }
    store_first(moments + at, mean, count);
    store_first(moments + conv.o + at, total(squares), count);
  }
}

template <class T, class Number>
static void forward_band(const NormConv& conv, const NormConvForward& io, const Band& band, const Panel* panels,
                         int64_t count, float* moments, float* scratch) {
  const int64_t inner = lanes_of<Number>(conv.c), taps = conv.taps();
  int64_t tap_at[kMostTaps], b_at[kMostTaps];
  for (int64_t tap = 0; tap < taps; ++tap)
    tap_at[tap] = (tap / conv.kernel * (conv.width + 1) + tap % conv.kernel) * inner, b_at[tap] = tap * inner;
  const Room room(scratch, band.pixels(), kPanelVectors);
  activate_band<T, Number>(conv, band, room);
  RowProduct p{};
  p.a = room.tile, p.a_at = room.a_at, p.c_at = room.c_at, p.tap_at = tap_at, p.b_at = b_at, p.c = room.sums;
  p.rows = (int)band.pixels(), p.taps = (int)taps, p.steps = (int)inner;
  for (int64_t i = 0; i < count; ++i) {
    p.b = io.packed + panels[i].vector * kLanes * inner * taps;
    block_product<Number>(p, panels[i].vectors);
    finish_panel<T>(conv, io, band, panels[i], room.sums, moments);
  }
}

static void norm_conv_forward(const NormConv& conv, const NormConvForward& io, const Band& band, const Panel* panels,
                              int64_t count, float* moments, float* scratch) {
  with_types(conv.element, true, [&](auto element, auto number) {
    forward_band<decltype(element), decltype(number)>(conv, io, band, panels, count, moments, scratch);
  });
}
