// Mean and sum of squared deviations of a band of pixels, once per instruction set (norm_conv.cpp, batch_stats.cpp).
//
// The band is read from memory once; its second pass, about the band's own mean, finds it in cache. Nothing is lost
// where the mean is far larger than the deviation, as it would be in sums of squares.

template <class T>
static void band_moments_as(const Pixels& image, const Pixels& copy, int64_t c, int64_t begin, int64_t end,
                            float* moments) {
  for (int64_t i = 0; i < c; i += kLanes) {
    const int count = (int)std::min<int64_t>(c - i, kLanes);
    const T* const from = static_cast<const T*>(image.data) + i;
    const auto at = [&](int64_t p) { return load_first(from + p * image.stride, count); };
    // About the first pixel, so that the sum keeps its digits.
    const Vec first = at(begin);
    Vec total{}, squares{};
    for (int64_t p = begin; p < end; ++p) {
      const Vec v = at(p);
      total += v - first;
      if (copy.data) store_first(static_cast<T*>(copy.data) + p * copy.stride + i, v, count);
    }
    const Vec mean = first + total * broadcast(1.0f / (float)(end - begin));
    for (int64_t p = begin; p < end; ++p) {
      const Vec d = at(p) - mean;
      squares = fma(d, d, squares);
    }
    store_first(moments + i, mean, count);
    store_first(moments + c + i, squares, count);
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
