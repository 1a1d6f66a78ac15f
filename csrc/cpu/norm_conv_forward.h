// The forward of one link, once per instruction set (norm_conv.cpp).
//
// Read once a band: the source, normalised and rectified into a tile that stays in second-level cache while every
// channel of the target is computed from it, in bfloat16 where the products are. Written once: the target, with the
// moments of what was written. The normalised image is never in memory.

// relu(scale x + shift) of one pixel, to a row of the tile. The next pixel, `next` elements behind, is prefetched: rows
// of channels are too short for the hardware to notice.
template <class T, class Number>
FASTNEST_INLINE void activate_pixel(const T* x, int64_t next, const float* scale, const float* shift, int64_t c,
                                    float* tile) {
  using To = std::conditional_t<Number::kPerLane == 2, BFloat16, float>;
  To* const to = reinterpret_cast<To*>(tile);
  int64_t i = 0;
  for (; i + kLanes <= c; i += kLanes) {
    Vec u = load(x + i);
    __builtin_prefetch(x + next + i);
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
    activate_pixel<T, Number>(static_cast<const T*>(conv.source.data) + p * conv.source.stride, s * conv.source.stride,
                              conv.scale, conv.shift, conv.c, to);
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

// How many channels of every vector of a panel there are.
template <int kV>
struct Counts {
  int of[kV];
  Counts(const Panel& panel, int64_t channels) {
    for (int v = 0; v < kV; ++v) of[v] = (int)std::clamp<int64_t>(channels - (panel.vector + v) * kLanes, 0, kLanes);
  }
};

// Writes a panel's channels of the band, and where wanted their mean and sum of squared deviations from it.
template <class T, int kV, bool kMoments>
static void finish_panel(const NormConv& conv, const NormConvForward& io, const Band& band, const Panel& panel,
                         const float* sums, float* moments) {
  const Counts<kV> counts(panel, conv.o);
  const int64_t at = panel.vector * kLanes;
  const auto part = [&](const Pixels& image, int64_t p, int v) {
    return static_cast<T*>(image.data) + p * image.stride + at + v * kLanes;
  };
  Vec bias[kV];
  LongSum values[kV];
  for (int v = 0; v < kV; ++v) bias[v] = conv.bias ? load_first(conv.bias + at + v * kLanes, counts.of[v]) : Vec{};
  for (int64_t p = band.begin; p < band.end; ++p, sums += kV * kLanes)
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) {
      Vec value = load(sums + v * kLanes) + bias[v];
      if (io.dropout.data) value *= load_first(part(io.dropout, p, v), counts.of[v]);
      if (io.residual.data) value += load_first(part(io.residual, p, v), counts.of[v]);
      store_first(part(conv.target, p, v), value, counts.of[v]);
      if (!kMoments) continue;
      values[v].run += round_to<T>(value);
      close_run(values[v], p);
    }
  if (!kMoments) return;
  const Vec share = broadcast(1.0f / (float)band.pixels());
  Deviations deviations[kV];
  for (int v = 0; v < kV; ++v) deviations[v] = deviations_about(values[v], share);
  for (int64_t p = band.begin; p < band.end; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < kV; ++v) add_value(deviations[v], load_first(part(conv.target, p, v), counts.of[v]), p);
  for (int v = 0; v < kV; ++v) store_moments(deviations[v], share, moments + at + v * kLanes, conv.o, counts.of[v]);
}

template <class T, class Number>
static void forward_band(const NormConv& conv, const NormConvForward& io, const Band& band, const Panel* panels,
                         int64_t count, bool alone, float* moments, float* scratch) {
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
    float* const packed = io.packed + place_of(panels[i], panels[0], alone) * kLanes * inner * taps;
    if (alone) pack_forward_as<T, Number>(conv, panels[i], packed);
    p.b = packed;
    p.b_step = panels[i].vectors * kLanes;
    block_product<Number>(p, panels[i].vectors);
    with_vectors(panels[i].vectors, [&](auto vectors) {
      constexpr int kV = decltype(vectors)::value;
      if (moments) finish_panel<T, kV, true>(conv, io, band, panels[i], room.sums, moments);
      else finish_panel<T, kV, false>(conv, io, band, panels[i], room.sums, moments);
    });
  }
}

static void norm_conv_forward(const NormConv& conv, const NormConvForward& io, const Band& band, const Panel* panels,
                              int64_t count, bool alone, float* moments, float* scratch) {
  with_types(conv.element, true, [&](auto element, auto number) {
    forward_band<decltype(element), decltype(number)>(conv, io, band, panels, count, alone, moments, scratch);
  });
}
