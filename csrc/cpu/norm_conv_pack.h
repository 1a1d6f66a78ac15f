// Weights as the products of a link read them, and their gradient back; once per instruction set (norm_conv.cpp).
//
// A panel is packed [tap][channel read][channels of the panel] and lies behind the panels before it. Blocks of kLanes x
// kLanes are transposed in registers, since the weights [o, c, tap] run along neither.

template <class Number>
FASTNEST_INLINE int64_t lanes_of(int64_t channels) {
  return (channels + Number::kPerLane - 1) / Number::kPerLane;
}

constexpr int kMostTaps = 9;
constexpr int kTapVectors = (kMostTaps + kLanes - 1) / kLanes;

// Rows of `channels` of `taps` floats each, vectors along the rows.
template <class T, class Number>
static void pack_rows(const T* weight, int64_t rows, int64_t channels, int64_t taps, const Panel& panel, float* to) {
  const int64_t row = channels * taps, inner = lanes_of<Number>(channels), width = panel.vectors * kLanes;
  Vec columns[kMostTaps * kLanes];
  for (int v = 0; v < panel.vectors; ++v) {
    const int64_t first = (panel.vector + v) * kLanes;
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t count = std::min<int64_t>(channels - c, kLanes), floats = count * taps;
      for (int64_t j = 0; j < floats; j += kLanes) {
        const int rest = (int)std::min<int64_t>(floats - j, kLanes);
        const T* const from = weight + first * row + c * taps + j;
        Vec square[kLanes];
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) {
          square[r] = first + r < rows ? load_first(from + r * row, rest) : Vec{};
          __builtin_prefetch(from + r * row + kPrefetch / (int)sizeof(T));
        }
        transpose(square);
        if (taps == 1 && Number::kPerLane == 1) {
          for (int i = 0; i < rest; ++i) store(to + (c + i) * width + v * kLanes, square[i]);
          continue;
        }
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) columns[j + i] = square[i];
      }
      float* const out = to + v * kLanes;
      for (int64_t tap = 0; tap < taps && taps * Number::kPerLane > 1; ++tap)
        for (int64_t i = 0; i < count; i += Number::kPerLane) {
          Vec lane = columns[i * taps + tap];
          if constexpr (Number::kPerLane == 2)
            lane = pack_bf16(lane, i + 1 < count ? columns[(i + 1) * taps + tap] : Vec{});
          store(out + (tap * inner + (c + i) / Number::kPerLane) * width, lane);
        }
    }
  }
}

template <class T, class Number>
static void pack_forward_as(const NormConv& conv, const Panel& panel, float* to) {
  const int64_t taps = conv.taps();
  if constexpr (Number::kPerLane == 2)
    if (taps == 1 && conv.c % 2 == 0)  // neighbours lie in memory as in a lane
      return pack_rows<float, Float32>(static_cast<const float*>(conv.weight), conv.o, conv.c / 2, 1, panel, to);
  pack_rows<T, Number>(static_cast<const T*>(conv.weight), conv.o, conv.c, taps, panel, to);
}

static void pack_forward(const NormConv& conv, const Panel& panel, float* to) {
  with_types(conv.element, true,
             [&](auto element, auto number) { pack_forward_as<decltype(element), decltype(number)>(conv, panel, to); });
}

// weight [o][c .. c + kLanes][tap] as a vector for every tap.
template <class T>
FASTNEST_INLINE void taps_of(const NormConv& conv, int64_t o, int64_t c, Vec (&out)[kTapVectors * kLanes]) {
  const int64_t taps = conv.taps(), all = conv.o * conv.c * taps;
  const T* const weight = static_cast<const T*>(conv.weight);
  if (o >= conv.o) {
    for (int64_t tap = 0; tap < taps; ++tap) out[tap] = Vec{};
    return;
  }
  if (taps == 1) {
    out[0] = load_first(weight + o * conv.c + c, (int)std::min<int64_t>(conv.c - c, kLanes));
    return;
  }
  for (int64_t j = 0; j < taps; j += kLanes) {
    Vec square[kLanes];
#pragma GCC unroll 16
    for (int r = 0; r < kLanes; ++r) {
      const int64_t at = (o * conv.c + c + r) * taps + j;
      square[r] = c + r >= conv.c      ? Vec{}
                  : at + kLanes <= all ? load(weight + at)
                                       : load_first(weight + at, (int)std::min<int64_t>(all - at, kLanes));
    }
    transpose(square);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) out[j + i] = square[i];
  }
}

template <class T, class Number>
static void pack_backward_as(const NormConv& conv, const Panel& panel, float* to) {
  const int64_t taps = conv.taps(), inner = lanes_of<Number>(conv.o), width = panel.vectors * kLanes;
  for (int64_t i = 0; i < inner; ++i)
    for (int v = 0; v < panel.vectors; ++v) {
      Vec first[kTapVectors * kLanes], second[kTapVectors * kLanes];
      const int64_t o = i * Number::kPerLane, c = (panel.vector + v) * kLanes;
      taps_of<T>(conv, o, c, first);
      if constexpr (Number::kPerLane == 2) taps_of<T>(conv, o + 1, c, second);
      for (int64_t tap = 0; tap < taps; ++tap) {
        Vec lane = first[tap];
        if constexpr (Number::kPerLane == 2) lane = pack_bf16(lane, second[tap]);
        store(to + (tap * inner + i) * width + v * kLanes, lane);
      }
    }
}

static void pack_backward(const NormConv& conv, const Panel& panel, float* to) {
  with_types(conv.element, conv.stride == 1, [&](auto element, auto number) {
    pack_backward_as<decltype(element), decltype(number)>(conv, panel, to);
  });
}

// Sums [tap][o][c of the panel] as the gradient [o, c, tap].
template <class T>
static void unpack_as(const NormConv& conv, const float* sums, const Panel& panel, T* out) {
  const int64_t taps = conv.taps(), width = panel.vectors * kLanes;
  for (int64_t o = 0; o < conv.o; ++o)
    for (int v = 0; v < panel.vectors; ++v) {
      const int64_t c = (panel.vector + v) * kLanes, count = std::min<int64_t>(conv.c - c, kLanes);
      if (count <= 0) break;
      T* const to = out + (o * conv.c + c) * taps;
      const float* const source = sums + o * width + v * kLanes;
      if (taps == 1) {
        store_first(to, load(source), (int)count);
        continue;
      }
      Vec square[kTapVectors][kLanes] = {};
      for (int64_t tap = 0; tap < taps; ++tap) square[tap / kLanes][tap % kLanes] = load(source + tap * conv.o * width);
      for (auto& block : square) transpose(block);
      T lines[kMostTaps * kLanes + kTapVectors * kLanes];
      for (int64_t r = 0; r < kLanes; ++r)
        for (int i = 0; i < kTapVectors; ++i) store(lines + r * taps + i * kLanes, square[i][r]);
      std::memcpy(to, lines, count * taps * sizeof(T));
    }
}

static void unpack(const NormConv& conv, const float* sums, const Panel& panel, void* out) {
  with_types(conv.element, false,
             [&](auto element, auto) { unpack_as(conv, sums, panel, static_cast<decltype(element)*>(out)); });
}
