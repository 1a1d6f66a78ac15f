// batch_stats for the CPU: per-channel mean and variance of an image or of rows.
#include "cpu/image.h"

namespace fastnest {
namespace {

std::tuple<Tensor, Tensor> batch_stats(Tensor x) {
  const int64_t c = x.size(1), pixels = x.dim() == 4 ? x.size(0) * x.size(2) * x.size(3) : x.size(0);
  const Pixels image = x.dim() == 4 ? pixels_of(x) : Pixels{const_cast<void*>(x.const_data_ptr()), x.stride(0)};
  Tensor mean = empty({c}, ScalarType::Float), var = empty({c}, ScalarType::Float);
  run_batch_stats(element_of(x), image, {}, pixels, c, floats(mean), floats(var));
  return {mean, var};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnest, CPU, m) { m.impl("batch_stats", TORCH_BOX(&batch_stats)); }

}  // namespace fastnest
