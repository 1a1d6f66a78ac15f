// The links of image blocks: kernels per instruction set | how their bands are shared among threads.
#include "cpu/norm_conv.h"

#include <cmath>

#define FASTNEST_KERNEL "cpu/norm_conv_kernels.h"
#include "common/each_target.h"
#include "cpu/parallel.h"

namespace fastnest {
namespace {

// work(member) on every thread, or on this one alone where less than a thread's wake-up is to be done.
template <class Work>
void on_threads(int64_t threads, const Work& work) {
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t member = begin; member < end; ++member) work(member);
  });
}

int64_t threads_for(double flops) { return flops < kAloneFlops ? 1 : torch::stable::get_num_threads(); }

std::vector<Band> bands_of(int64_t images, int64_t height, int64_t rows) {
  std::vector<Band> bands;
  for (int64_t image = 0; image < images; ++image)
    for (int64_t begin = 0; begin < height; begin += rows)
      bands.push_back({image, begin, std::min(begin + rows, height)});
  return bands;
}

// The moments of bands of pixels as those of all of them, in double (Chan, Golub, LeVeque).
template <class Count>
void combine(const float* moments, int64_t bands, int64_t c, const Count& count, float* mean, float* var) {
  std::vector<double> total(c, 0.0), squares(c, 0.0);
  double n = 0;
  for (int64_t b = 0; b < bands; ++b) {
    const double here = static_cast<double>(count(b));
    n += here;
    for (int64_t i = 0; i < c; ++i) total[i] += here * moments[2 * b * c + i];
  }
  for (int64_t i = 0; i < c; ++i) total[i] /= std::max(n, 1.0);
  for (int64_t b = 0; b < bands; ++b) {
    const double here = static_cast<double>(count(b));
    for (int64_t i = 0; i < c; ++i) {
      const double d = moments[2 * b * c + i] - total[i];
      squares[i] += moments[(2 * b + 1) * c + i] + here * d * d;
    }
  }
  for (int64_t i = 0; i < c; ++i) {
    mean[i] = static_cast<float>(total[i]);
    var[i] = static_cast<float>(squares[i] / std::max(n, 1.0));
  }
}

}  // namespace

void run_forward(const NormConv& given, const NormConvForward& io, float* mean, float* var) {
  const NormConv conv = given.flat();
  const int64_t threads = threads_for(conv.flops());
  const int64_t rows = FASTNEST_RUN(band_rows, conv, threads);
  const std::vector<Band> bands = bands_of(conv.images, conv.out_height(), rows);
  const int64_t count = bands.size(), panels = FASTNEST_RUN(panels_of, conv.o);
  const int64_t weights = FASTNEST_RUN(packed_floats, conv.o, conv.c, conv.taps());
  const int64_t each = ceil_div(FASTNEST_RUN(forward_scratch, conv, rows), 16) * 16;
  Scratch scratch(weights + threads * each + (mean ? 2 * count * conv.o : 0));
  float *const packed = scratch.data(), *const work = packed + weights, *const moments = work + threads * each;
  NormConvForward run = io;
  run.packed = packed;
  on_threads(std::min(threads, panels), [&](int64_t member) {
    const int64_t members = std::min(threads, panels);
    FASTNEST_RUN(pack_forward, conv, member * panels / members, (member + 1) * panels / members, packed);
  });
  on_threads(threads, [&](int64_t member) {
    for (int64_t b = member * count / threads; b < (member + 1) * count / threads; ++b)
      FASTNEST_RUN(norm_conv_forward, conv, run, bands[b], mean ? moments + 2 * b * conv.o : nullptr,
                   work + member * each);
  });
  if (!mean) return;
  const int64_t w = conv.out_width();
  combine(moments, count, conv.o, [&](int64_t b) { return (bands[b].end - bands[b].begin) * w; }, mean, var);
}

void run_backward(const NormConv& given, const NormConvBackward& io, void* dweight, float* sum, float* product) {
  const NormConv conv = given.flat();
  const int64_t threads = threads_for(2 * conv.flops());
  const int64_t rows = FASTNEST_RUN(band_rows_backward, conv, threads);
  const std::vector<Band> bands = bands_of(conv.images, conv.height, rows);
  const int64_t count = bands.size(), panels = FASTNEST_RUN(panels_of, conv.c);
  const int64_t weights = FASTNEST_RUN(packed_floats, conv.c, conv.o, conv.taps());
  const int64_t each = ceil_div(FASTNEST_RUN(backward_scratch, conv, rows), 16) * 16;
  Scratch scratch((1 + threads) * weights + threads * each + 2 * count * conv.c);
  float *const packed = scratch.data(), *const sums_of_weights = packed + weights;
  float *const work = sums_of_weights + threads * weights, *const sums = work + threads * each;
  NormConvBackward run = io;
  run.packed = packed;
  const auto share_panels = [&](const auto& work_on) {
    const int64_t members = std::min(threads, panels);
    on_threads(members, [&](int64_t member) { work_on(member * panels / members, (member + 1) * panels / members); });
  };
  share_panels([&](int64_t begin, int64_t end) { FASTNEST_RUN(pack_backward, conv, begin, end, packed); });
  on_threads(threads, [&](int64_t member) {
    float* const own = sums_of_weights + member * weights;
    std::fill(own, own + weights, 0.0f);
    for (int64_t b = member * count / threads; b < (member + 1) * count / threads; ++b)
      FASTNEST_RUN(norm_conv_backward, conv, run, bands[b], own, sums + 2 * b * conv.c, work + member * each);
  });
  share_panels([&](int64_t begin, int64_t end) {
    const int64_t panel = weights / std::max<int64_t>(panels, 1);
    for (int64_t member = 1; member < threads; ++member)
      for (int64_t i = begin * panel; i < end * panel; ++i) sums_of_weights[i] += sums_of_weights[member * weights + i];
    FASTNEST_RUN(unpack, conv, sums_of_weights, begin, end, dweight);
  });
  std::vector<double> total(2 * conv.c, 0.0);
  for (int64_t b = 0; b < count; ++b)
    for (int64_t i = 0; i < 2 * conv.c; ++i) total[i] += sums[2 * b * conv.c + i];
  for (int64_t i = 0; i < conv.c; ++i) {
    sum[i] = static_cast<float>(total[i]);
    product[i] = static_cast<float>(total[conv.c + i]);
  }
}

void run_finish(Element element, const Gradient& gradient, const Pixels& value, const Pixels& to, bool to_float,
                int64_t c, int64_t pixels) {
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(c, 1));
  torch::stable::parallel_for(0, pixels, grain, [&](int64_t begin, int64_t end) {
    FASTNEST_RUN(finish_gradient, element, gradient, value, to, to_float, c, begin, end);
  });
}

void run_batch_stats(Element element, const Pixels& image, const Pixels& copy, int64_t pixels, int64_t c, float* mean,
                     float* var) {
  constexpr int64_t kRows = 128;
  const int64_t bands = ceil_div(pixels, kRows);
  Scratch scratch(2 * bands * c + 16);
  float* const moments = scratch.data();
  torch::stable::parallel_for(0, bands, std::max<int64_t>(1, (1 << 15) / (kRows * c)), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      FASTNEST_RUN(band_moments, element, image, copy, c, b * kRows, std::min(pixels, (b + 1) * kRows),
                   moments + 2 * b * c);
  });
  combine(moments, bands, c, [&](int64_t b) { return std::min(pixels - b * kRows, kRows); }, mean, var);
}

void run_sums(Element element, const Pixels& image, int64_t pixels, int64_t c, float* out) {
  constexpr int64_t kRows = 128;
  const int64_t bands = ceil_div(pixels, kRows);
  Scratch scratch(bands * c + 16);
  float* const sums = scratch.data();
  torch::stable::parallel_for(0, bands, std::max<int64_t>(1, (1 << 15) / (kRows * c)), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      FASTNEST_RUN(band_sums, element, image, c, b * kRows, std::min(pixels, (b + 1) * kRows), sums + b * c);
  });
  std::vector<double> total(c, 0.0);
  for (int64_t b = 0; b < bands; ++b)
    for (int64_t i = 0; i < c; ++i) total[i] += sums[b * c + i];
  for (int64_t i = 0; i < c; ++i) out[i] = static_cast<float>(total[i]);
}

void run_activate(const NormConv& conv, const Pixels& to) {
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / conv.c);
  torch::stable::parallel_for(0, conv.source_pixels(), grain,
                              [&](int64_t begin, int64_t end) { FASTNEST_RUN(activate_pixels, conv, to, begin, end); });
}

Fold::Fold(const float* weight, const float* bias, const float* mean, const float* var, float eps, int64_t c)
    : scale(c), shift(c), inverse(c) {
  for (int64_t i = 0; i < c; ++i) {
    inverse[i] = 1 / std::sqrt(var[i] + eps);
    scale[i] = weight[i] * inverse[i];
    shift[i] = bias[i] - mean[i] * scale[i];
  }
}

void close_norm(const Fold& fold, const float* sum, const float* product, int64_t pixels, float* dweight, float* dbias,
                float* slope, float* offset) {
  for (size_t i = 0; i < fold.scale.size(); ++i) {
    dweight[i] = fold.inverse[i] * product[i];
    dbias[i] = sum[i];
    if (!slope) continue;
    slope[i] -= fold.scale[i] * fold.inverse[i] * dweight[i] / static_cast<float>(pixels);
    offset[i] -= fold.scale[i] * sum[i] / static_cast<float>(pixels);
  }
}

}  // namespace fastnest
