// Mean and sum of squared deviations of a band of pixels, once per instruction set (norm_conv.cpp, batch_stats.cpp).
//
// The band is read from memory once; its second pass, about the band's own mean, finds it in cache. Nothing is lost
// where the mean is far larger than the deviation, as it would be in sums of squares.

template <class T>
static void band_moments_as(const Pixels& image, const Pixels& copy, int64_t c, int64_t begin, int64_t end,
                            float* moments) {
  const Vec share = broadcast(1.0f / (float)(end - begin));
  for (int64_t i = 0; i < c; i += kLanes) {
    const int count = (int)std::min<int64_t>(c - i, kLanes);
    const auto at = [&](int64_t p) {
      return load_first(static_cast<const T*>(image.data) + p * image.stride + i, count);
    };
    LongSum values;
    for (int64_t p = begin; p < end; ++p) {
      const Vec v = at(p);
      values.run += v;
      close_run(values, p);
      if (copy.data) store_first(static_cast<T*>(copy.data) + p * copy.stride + i, v, count);
    }
    if (!moments) continue;
    Deviations sums = deviations_about(values, share);
    for (int64_t p = begin; p < end; ++p) add_value(sums, at(p), p);
    store_moments(sums, share, moments + i, c, count);
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
