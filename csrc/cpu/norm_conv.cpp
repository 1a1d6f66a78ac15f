// The links of image blocks: kernels per instruction set | how their bands are shared among threads.
#include "cpu/norm_conv.h"

#include <atomic>
#include <cmath>
#include <functional>

#include "cpu/norm_conv_plan.h"

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

// work(begin, end) on parts of [0, count), one a thread.
template <class Work>
void in_parts(int64_t count, int64_t threads, const Work& work) {
  const int64_t parts = std::min(count, threads);
  on_threads(parts, [&](int64_t part) { work(part * count / parts, (part + 1) * count / parts); });
}

constexpr double kSumCycles = 12;  // to add a vector of sums of one thread to another's

int64_t threads_for(double flops) { return flops < kAloneFlops ? 1 : torch::stable::get_num_threads(); }

int64_t most_scratch(const std::vector<Band>& bands, const std::function<int64_t(const Band&)>& floats) {
  int64_t most = 0;
  for (const Band& band : bands) most = std::max(most, floats(band));
  return ceil_div(most, 16) * 16;
}

// The moments of bands of pixels as those of all of them, in double (Chan, Golub, LeVeque).
template <class Count>
void combine(const float* moments, int64_t bands, int64_t c, const Count& count, float* mean, float* var) {
  std::vector<double> total(c, 0.0), squares(c, 0.0);
  double n = 0;
  for (int64_t b = 0; b < bands; ++b) {
    const double here = static_cast<double>(count(b));
    n += here;
    const float *high = moments + 3 * b * c, *low = high + c;
    for (int64_t i = 0; i < c; ++i) total[i] += here * (static_cast<double>(high[i]) + low[i]);
  }
  for (int64_t i = 0; i < c; ++i) total[i] /= std::max(n, 1.0);
  for (int64_t b = 0; b < bands; ++b) {
    const double here = static_cast<double>(count(b));
    const float *high = moments + 3 * b * c, *low = high + c;
    for (int64_t i = 0; i < c; ++i) {
      const double d = static_cast<double>(high[i]) + low[i] - total[i];
      squares[i] += low[c + i] + here * d * d;
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
  const Lanes lanes = FASTNEST_RUN(forward_lanes, conv);
  const int64_t read = ceil_div(conv.c, lanes.channels);
  const Plan plan = plan_of({conv.o, conv.c, conv.taps(), conv.target_pixels(), 1, 0},
                            band_pixels(read, conv.kernel, conv.width), threads_for(conv.flops()), lanes);
  const int64_t count = plan.bands.size(), members = plan.groups() * plan.shares();
  const int64_t vector = lanes.vector * read * conv.taps(), weights = ceil_div(conv.o, lanes.vector) * vector;
  const int64_t each =
      most_scratch(plan.bands, [&](const Band& band) { return FASTNEST_RUN(forward_scratch, conv, band); });
  Scratch scratch(weights + members * each + (mean ? 3 * count * conv.o : 0));
  float *const packed = scratch.data(), *const work = packed + weights, *const moments = work + members * each;
  NormConvForward run = io;
  run.packed = packed;
  const bool alone = plan.shares() == 1 && count == 1;
  const auto pack = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end && !alone; ++i)
      FASTNEST_RUN(pack_forward, conv, plan.panels[i], packed + plan.panels[i].vector * vector);
  };
  if (plan.shares() > 1) in_parts(plan.panels.size(), members, pack);
  // Nothing depends on who computes a band: whoever is free takes the next one.
  std::vector<std::atomic<int64_t>> next(plan.groups());
  on_threads(members, [&](int64_t member) {
    const int64_t group = member / plan.shares(), first = plan.group_begin[group], end = plan.group_begin[group + 1];
    if (plan.shares() == 1) pack(first, end);
    for (int64_t b = next[group]++; b < count; b = next[group]++)
      FASTNEST_RUN(norm_conv_forward, conv, run, plan.bands[b], plan.panels.data() + first, end - first, alone,
                   mean ? moments + 3 * b * conv.o : nullptr, work + member * each);
  });
  if (mean) combine(moments, count, conv.o, [&](int64_t b) { return plan.bands[b].pixels(); }, mean, var);
}

void run_backward(const NormConv& given, const NormConvBackward& io, void* dweight, float* sum, float* product) {
  const NormConv conv = given.flat();
  const Lanes lanes = FASTNEST_RUN(backward_lanes, conv);
  const int64_t read = ceil_div(conv.o, lanes.channels);
  const Plan plan = plan_of({conv.c, conv.o, conv.taps(), conv.source_pixels(), 2, kSumCycles},
                            band_pixels(read, conv.kernel, conv.width), threads_for(2 * conv.flops()), lanes);
  const int64_t count = plan.bands.size(), members = plan.groups() * plan.shares();
  const int64_t channels = ceil_div(conv.c, lanes.vector) * lanes.vector;
  const int64_t weights = channels * read * conv.taps(), own = channels * conv.o * conv.taps();
  const int64_t each =
      most_scratch(plan.bands, [&](const Band& band) { return FASTNEST_RUN(backward_scratch, conv, band); });
  Scratch scratch(weights + plan.shares() * own + members * each + 2 * count * conv.c);
  float *const packed = scratch.data(), *const gradients = packed + weights;
  float *const work = gradients + plan.shares() * own, *const sums = work + members * each;
  const bool direct = FASTNEST_RUN(lies_packed, conv);
  const auto gradients_of = [&](int64_t share) {
    return direct && share == 0 ? static_cast<float*>(dweight) : gradients + share * own;
  };
  NormConvBackward run = io;
  run.packed = direct ? static_cast<float*>(const_cast<void*>(conv.weight)) : packed;
  const bool alone = plan.shares() == 1 && count == 1;
  const auto pack = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end && !direct && !alone; ++i)
      FASTNEST_RUN(pack_backward, conv, plan.panels[i],
                   packed + plan.panels[i].vector * lanes.vector * read * conv.taps());
  };
  // Panels [begin, end) of everyone's sums in the first one's place, then as a gradient.
  const auto close = [&](int64_t begin, int64_t end) {
    const int64_t vector = lanes.vector * conv.o * conv.taps();
    for (int64_t i = begin; i < end; ++i) {
      const Panel& panel = plan.panels[i];
      const int64_t rows = direct ? conv.o : 1, row = direct ? conv.c : 0;
      const int64_t from = panel.vector * (direct ? lanes.vector : vector);
      const int64_t floats = panel.vectors * (direct ? lanes.vector : vector);
      for (int64_t r = 0; r < rows; ++r) {
        float* const to = gradients_of(0) + from + r * row;
        if (count == 0) std::fill(to, to + floats, 0.0f);
        for (int64_t share = 1; share < plan.shares(); ++share) {
          const float* const other = gradients_of(share) + from + r * row;
          for (int64_t j = 0; j < floats; ++j) to[j] += other[j];
        }
      }
      if (!direct) FASTNEST_RUN(unpack, conv, gradients + from, panel, dweight);
    }
  };
  if (plan.shares() > 1) in_parts(plan.panels.size(), members, pack);
  on_threads(members, [&](int64_t member) {
    const int64_t group = member / plan.shares(), share = member % plan.shares();
    const int64_t first = plan.group_begin[group], end = plan.group_begin[group + 1];
    if (plan.shares() == 1) pack(first, end);
    for (int64_t b = plan.share_begin[share]; b < plan.share_begin[share + 1]; ++b)
      FASTNEST_RUN(norm_conv_backward, conv, run, plan.bands[b], plan.panels.data() + first, end - first, alone,
                   b > plan.share_begin[share], gradients_of(share), dweight, sums + 2 * b * conv.c,
                   work + member * each);
    if (plan.shares() == 1 && !alone) close(first, end);
  });
  if (plan.shares() > 1) in_parts(plan.panels.size(), members, close);
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
  Scratch scratch(3 * bands * c + 16);
  float* const moments = scratch.data();
  torch::stable::parallel_for(0, bands, std::max<int64_t>(1, (1 << 15) / (kRows * c)), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      FASTNEST_RUN(band_moments, element, image, copy, c, b * kRows, std::min(pixels, (b + 1) * kRows),
                   mean ? moments + 3 * b * c : nullptr);
  });
  if (mean) combine(moments, bands, c, [&](int64_t b) { return std::min(pixels - b * kRows, kRows); }, mean, var);
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
