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
constexpr int64_t kStreamFloats = 150'000;  // of a tile group's rows: with the weights' slices within 1 MiB of cache
constexpr int64_t kMostTiles = 4;
constexpr int64_t kSlice = 128;

// Rows to every thread where there are enough of them; else the threads share each row's width.
std::vector<Share> forward_shares(const ResidualChain& chain, int64_t threads) {
  const int64_t groups = ceil_div(chain.n, kVectorRows);
  const int64_t most = std::clamp<int64_t>(kStreamFloats / (chain.m * kTileRows), 1, kMostTiles);
  const int slice = static_cast<int>(std::min(kSlice, ceil_div(chain.m, 16) * 16));
  if (groups < 2 * threads) {
    const int64_t parts = std::clamp<int64_t>(chain.m / 64, 1, threads);
    const int64_t part_slice = std::min<int64_t>(slice, ceil_div(ceil_div(chain.m, parts), 16) * 16);
    return {{0, chain.n, static_cast<int>(std::min(most, ceil_div(chain.n, kTileRows))), static_cast<int>(parts),
             static_cast<int>(part_slice)}};
  }
  const int64_t rounds = ceil_div(groups * kVectorRows, threads * most * kTileRows);
  const int64_t rows = ceil_div(groups, threads * rounds) * kVectorRows;
  std::vector<Share> shares;
  for (int64_t begin = 0; begin < chain.n; begin += rows)
    shares.push_back({begin, std::min(chain.n, begin + rows), static_cast<int>(ceil_div(rows, kTileRows)), 1, slice});
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

  const std::vector<Share> shares = forward_shares(chain, torch::stable::get_num_threads());
  run_shares(shares, [&](const Share& share) { return FASTNEST_RUN(residual_forward_scratch, chain, share); },
             [&](const Share& share, float* scratch, Lockstep& team, int member) {
               FASTNEST_RUN(residual_forward, chain, io, share, scratch, team, member);
             });
  return {y, v, hidden, stream};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnest, CPU, m) {
  m.impl("residual_chain_forward", TORCH_BOX(&residual_chain_forward));
}

}  // namespace fastnest
