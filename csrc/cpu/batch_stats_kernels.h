// Mean and sum of squared deviations of a band of pixels, once per instruction set (norm_conv.cpp, batch_stats.cpp).
//
// The band is read from memory once; its second pass, about the band's own mean, finds it in cache. Nothing is lost
// where the mean is far larger than the deviation, as it would be in sums of squares.

// A sum in parts: shorter ones lose fewer digits, and none waits for the addition before it.
constexpr int kParts = 4;

struct Sums {
  Vec part[kParts] = {};
  Vec sum() const { return (part[0] + part[1]) + (part[2] + part[3]); }
};

template <class T>
static void band_moments_as(const Pixels& image, const Pixels& copy, int64_t c, int64_t begin, int64_t end,
                            float* moments) {
  for (int64_t i = 0; i < c; i += kLanes) {
    const int count = (int)std::min<int64_t>(c - i, kLanes);
    const T* const from = static_cast<const T*>(image.data) + i;
    const auto at = [&](int64_t p) { return load_first(from + p * image.stride, count); };
    // About the first pixel, so that the sum keeps its digits.
    const Vec first = at(begin), share = broadcast(1.0f / (float)(end - begin));
    Sums total, squares;
    for (int64_t p = begin; p < end; ++p) {
      const Vec v = at(p);
      total.part[p % kParts] += v - first;
      if (copy.data) store_first(static_cast<T*>(copy.data) + p * copy.stride + i, v, count);
    }
    // About nearly the mean; what is left of the sum tells the mean to more digits than a first pixel far from it.
    const Vec near = first + total.sum() * share;
    Sums rest;
    for (int64_t p = begin; p < end; ++p) {
      const Vec d = at(p) - near;
      rest.part[p % kParts] += d;
      squares.part[p % kParts] = fma(d, d, squares.part[p % kParts]);
    }
    const Vec left = rest.sum() * share;
    store_first(moments + i, near + left, count);
    store_first(moments + c + i, squares.sum() - left * rest.sum(), count);
  }
}

static void band_moments(Element element, const Pixels& image, const Pixels& copy, int64_t c, int64_t begin,
                         int64_t end, float* moments) {
  with_types(element, false,
             [&](auto type, auto) { band_moments_as<decltype(type)>(image, copy, c, begin, end, moments); });
}

// Sums of a band of pixels, once per instruction set (norm_conv.cpp).
static void band_sums(Element element, const Pixels& image, int64_t c, int64_t begin, int64_t end, float* sums) {
  with_types(element, false, [&](auto type, auto) {
    for (int64_t i = 0; i < c; i += kLanes) {
      const int count = (int)std::min<int64_t>(c - i, kLanes);
      Vec total{};
      for (int64_t p = begin; p < end; ++p)
        total += load_first(static_cast<const decltype(type)*>(image.data) + p * image.stride + i, count);
      store_first(sums + i, total, count);
    }
  });
}

// relu(scale x + shift) of pixels [begin, end) of a link's source, as it is read by the link.
static void activate_pixels(const NormConv& conv, const Pixels& to, int64_t begin, int64_t end) {
  with_types(conv.element, false, [&](auto type, auto) {
    using T = decltype(type);
    for (int64_t p = begin; p < end; ++p)
      for (int64_t i = 0; i < conv.c; i += kLanes) {
        const int count = (int)std::min<int64_t>(conv.c - i, kLanes);
        Vec u = load_first(static_cast<const T*>(conv.source.data) + p * conv.source.stride + i, count);
        if (conv.scale) u = fma(u, load_first(conv.scale + i, count), load_first(conv.shift + i, count));
        store_first(static_cast<T*>(to.data) + p * to.stride + i, activate<Activation::kRelu>(u), count);
      }
  });
}
