// What every host function does: read tensors on torch's stable ABI, hand shares of the rows to threads.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "common/activation_kind.h"
#include "common/element.h"
#include "common/lockstep.h"

namespace fastnest {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Element element_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Element::kFloat32;
    case ScalarType::BFloat16: return Element::kBFloat16;
    case ScalarType::Half: return Element::kFloat16;
    default: break;
  }
  STD_TORCH_CHECK(false, "fastnest: the cpp kernels take float32, bfloat16 and float16");
}

inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType type) {
  return torch::stable::empty({sizes.begin(), sizes.size()}, type);
}

inline Tensor empty_like_dtype(const Tensor& x, std::initializer_list<int64_t> sizes) { return empty(sizes, x.scalar_type()); }

inline const void* data_or_null(const std::optional<Tensor>& x) { return x ? x->const_data_ptr() : nullptr; }

inline Activation activation_named(const std::string& name) {
  auto kind = parse_activation(name);
  STD_TORCH_CHECK(kind.has_value(), "fastnest: unknown activation ", name);
  return *kind;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// work(begin, end) over pieces of [0, count) that are worth a thread each.
template <class Work>
void in_ranges(int64_t count, const Work& work) {
  if (count > 0) torch::stable::parallel_for(0, count, 1 << 15, work);
}

// Runs every share: one share by all the threads in lockstep, many shares each by whichever thread is free.
// scratch_floats(share) sizes a share's scratch memory; run(share, scratch, team, member) does the work.
template <class Share, class Size, class Run>
void run_shares(const std::vector<Share>& shares, const Size& scratch_floats, const Run& run) {
  if (shares.empty()) return;
  const int64_t workers =
      shares.size() == 1 ? shares[0].parts : std::min<int64_t>(shares.size(), torch::stable::get_num_threads());
  const int64_t each = ceil_div(scratch_floats(shares[0]), 16) * 16;  // the first share is the largest
  Tensor scratch = empty({each * (shares.size() == 1 ? 1 : workers)}, ScalarType::Float);
  float* const memory = scratch.mutable_data_ptr<float>();
  Lockstep team(shares[0].parts);
  std::atomic<size_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      if (shares.size() == 1) {
        run(shares[0], memory, team, static_cast<int>(worker));
        continue;
      }
      for (size_t i = next++; i < shares.size(); i = next++) {
        Lockstep alone(1);
        run(shares[i], memory + worker * each, alone, 0);
      }
    }
  });
}

}  // namespace fastnest
