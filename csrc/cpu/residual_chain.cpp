// residual_chain for the CPU: kernels per instruction set | the host side on tensors | registration.
#include "cpu/residual_chain.h"

#define FASTNEST_KERNEL "cpu/residual_chain_kernels.h"
#include "common/each_target.h"
#include "cpu/host.h"

#include <algorithm>
#include <vector>

namespace fastnest {
namespace {

constexpr int64_t kTileRows = 48;
constexpr int64_t kVectorRows = 16;
constexpr int64_t kStreamFloats = 400'000;  // of a group of tiles: it stays in second-level cache, weights pass once a group
constexpr int64_t kMostTiles = 4;
constexpr int64_t kSlice = 128;
constexpr int64_t kRowsWorthOwnSums = 1024;  // a thread: fewer, and sums of its own cost more than waiting for others

// Rows to every thread where there are at least `enough` of them; else the threads share each row's width.
std::vector<Share> shares_of(const ResidualChain& chain, int64_t enough) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t groups = ceil_div(chain.n, kVectorRows);
  const int64_t most = std::clamp<int64_t>(kStreamFloats / (chain.m * kTileRows), 1, kMostTiles);
  const int64_t slice = std::min(kSlice, ceil_div(chain.m, 16) * 16);
  if (chain.n < enough * threads || threads == 1) {
    const int64_t parts = std::clamp<int64_t>(chain.m / 64, 1, threads);
    const int64_t part_slice = std::min<int64_t>(slice, ceil_div(ceil_div(chain.m, parts), 16) * 16);
    const int64_t tiles = std::min(most * parts, ceil_div(chain.n, kTileRows));
    return {{0, chain.n, static_cast<int>(tiles), static_cast<int>(parts), static_cast<int>(part_slice)}};
  }
  const int64_t rounds = ceil_div(groups * kVectorRows, threads * most * kTileRows);
  const int64_t rows = ceil_div(groups, threads * rounds) * kVectorRows;
  std::vector<Share> shares;
  for (int64_t begin = 0; begin < chain.n; begin += rows)
    shares.push_back({begin, std::min(chain.n, begin + rows), static_cast<int>(ceil_div(rows, kTileRows)), 1,
                      static_cast<int>(slice)});
  return shares;
}

// For the backward, where a thread keeps its sums over all of its rows: one share a thread.
std::vector<Share> one_share_a_thread(const ResidualChain& chain) {
  std::vector<Share> shares = shares_of(chain, kRowsWorthOwnSums);
  const size_t threads = torch::stable::get_num_threads();
  if (shares.size() <= threads) return shares;
  const int64_t rows = ceil_div(ceil_div(shares.size(), threads) * (shares[0].end - shares[0].begin), kVectorRows) * kVectorRows;
  const Share first = shares[0];
  shares.clear();
  for (int64_t begin = 0; begin < chain.n; begin += rows)
    shares.push_back({begin, std::min(chain.n, begin + rows), first.tiles, 1, first.slice});
  return shares;
}

ResidualChain describe(const Tensor& x, const Tensor& down, const std::optional<Tensor>& down_bias,
                       const std::optional<Tensor>& mid, const std::optional<Tensor>& mid_bias, const Tensor& up,
                       const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                       const std::string& activation, bool pre_activation) {
  ResidualChain chain{};
  chain.element = element_of(x);
  chain.n = x.size(0), chain.m = x.size(1), chain.l = down.size(0), chain.k = down.size(1), chain.ups = up.size(0);
  chain.activation = activation_named(activation);
  chain.pre_activation = pre_activation;
  chain.down = down.const_data_ptr(), chain.down_bias = data_or_null(down_bias);
  chain.mid = data_or_null(mid), chain.mid_bias = data_or_null(mid_bias);
  chain.up = up.const_data_ptr();
  chain.scale = data_or_null(scale), chain.shift = data_or_null(shift);
  return chain;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> residual_chain_forward(
    Tensor x, Tensor down, std::optional<Tensor> down_bias, std::optional<Tensor> mid, std::optional<Tensor> mid_bias,
    Tensor up, std::optional<Tensor> scale, std::optional<Tensor> shift, std::string activation, bool pre_activation,
    bool features, bool save) {
  const ResidualChain chain = describe(x, down, down_bias, mid, mid_bias, up, scale, shift, activation, pre_activation);
  const auto type = x.scalar_type();
  const bool features_are_hidden = save && idempotent(chain.activation) && !mid;
  Tensor y = empty({chain.n, chain.m}, type);
  Tensor v = features && !features_are_hidden ? empty({chain.n, chain.l, chain.k}, type) : empty({0}, type);
  Tensor hidden = save ? empty({chain.n, chain.l, chain.layers(), chain.k}, type) : empty({0}, type);
  Tensor stream = save && chain.element != Element::kFloat32 ? empty({chain.n, chain.m}, ScalarType::Float)
                                                             : empty({0}, ScalarType::Float);
  ResidualForward io{};
  io.x = x.const_data_ptr(), io.x_stride = x.stride(0);
  io.y = y.mutable_data_ptr();
  if (v.numel()) io.features = v.mutable_data_ptr();
  if (hidden.numel()) io.hidden = hidden.mutable_data_ptr();
  if (stream.numel()) io.stream = stream.mutable_data_ptr<float>();

  const std::vector<Share> shares = shares_of(chain, 2 * kVectorRows);
  run_shares(shares, [&](const Share& share) { return FASTNEST_RUN(residual_forward_scratch, chain, share); },
             [&](const Share& share, float* scratch, Lockstep& team, int member) {
               FASTNEST_RUN(residual_forward, chain, io, share, scratch, team, member);
             });
  return {y, v, hidden, stream};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> residual_chain_backward(
    std::optional<Tensor> dy, std::optional<Tensor> dfeatures, Tensor x, Tensor stream, Tensor hidden, Tensor down,
    std::optional<Tensor> down_bias, std::optional<Tensor> mid, std::optional<Tensor> mid_bias, Tensor up,
    std::optional<Tensor> scale, std::optional<Tensor> shift, std::string activation, bool pre_activation) {
  const ResidualChain chain = describe(x, down, down_bias, mid, mid_bias, up, scale, shift, activation, pre_activation);
  const auto like = [&](const std::optional<Tensor>& parameter) {
    return parameter ? torch::stable::empty_like(*parameter) : empty({0}, x.scalar_type());
  };
  Tensor dx = empty({chain.n, chain.m}, x.scalar_type());
  Tensor ddown = like(down), ddown_bias = like(down_bias), dmid = like(mid), dmid_bias = like(mid_bias), dup = like(up),
         dscale = like(scale), dshift = like(shift);
  ResidualBackward io{};
  io.dy = data_or_null(dy), io.dy_stride = dy ? dy->stride(0) : 0;
  io.dfeatures = data_or_null(dfeatures);
  io.x = x.const_data_ptr(), io.x_stride = x.stride(0);
  io.stream = stream.const_data_ptr<float>();
  io.hidden = hidden.const_data_ptr();
  io.dx = dx.mutable_data_ptr();

  const std::vector<Share> shares = one_share_a_thread(chain);
  const int64_t each = FASTNEST_RUN(residual_sums_floats, chain), sets = std::max<int64_t>(shares.size(), 1);
  Tensor sums = empty({sets * each}, ScalarType::Float);
  float* const memory = sums.mutable_data_ptr<float>();
  in_ranges(sets * each, [&](int64_t begin, int64_t end) { std::fill(memory + begin, memory + end, 0.0f); });
  run_shares(
      shares, [&](const Share& share) { return FASTNEST_RUN(residual_backward_scratch, chain, share); },
      [&](const Share& share, float* scratch, Lockstep& team, int member) {
        float* const own = memory + (&share - shares.data()) * each;
        FASTNEST_RUN(residual_backward, chain, io, share, scratch, own, team, member);
      });
  in_ranges(each, [&](int64_t begin, int64_t end) {
    for (int64_t set = 1; set < sets; ++set)
      for (int64_t i = begin; i < end; ++i) memory[i] += memory[set * each + i];
  });
  const auto data = [](Tensor& t) { return t.numel() ? t.mutable_data_ptr() : nullptr; };
  const ResidualGradients out{data(ddown), data(ddown_bias), data(dmid), data(dmid_bias), data(dup), data(dscale), data(dshift)};
  torch::stable::parallel_for(0, chain.l, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) FASTNEST_RUN(residual_gradients, chain, memory, out, block);
  });
  return {dx, ddown, ddown_bias, dmid, dmid_bias, dup, dscale, dshift};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnest, CPU, m) {
  m.impl("residual_chain_backward", TORCH_BOX(&residual_chain_backward));
  m.impl("residual_chain_forward", TORCH_BOX(&residual_chain_forward));
}

}  // namespace fastnest
