// residual_chain for NVIDIA GPUs: which kernels a call launches, for the host in residual_chain_host.cpp.
#include "cuda/residual_chain.h"

#include <type_traits>

#include "cuda/residual_chain_backward.h"
#include "cuda/residual_chain_forward.h"
#include "cuda/residual_chain_weights.h"

namespace fastnest::cuda {
namespace {

constexpr int64_t kMostSliceBytes = 64 << 20;

// Features at a time: of what takes four bytes there is room for half as many.
template <class P>
constexpr int kFeatures = sizeof(typename P::Element) == 2 ? 64 : 32;

// Tiles of 16 rows of a warp: float32's numbers in three parts take the registers of two.
template <class P>
constexpr int kTiles = std::is_same_v<P, Float32Product> ? 1 : 2;

// function(Product), the one of the chain's elements.
template <class Function>
const char* with_product(const ResidualChain& chain, const Function& function) {
  switch (chain.element) {
    case Element::kBFloat16: return function(BFloat16Product());
    case Element::kFloat16: return function(HalfPrecisionProduct());
    default: return chain.tf32 ? function(Tf32Product()) : function(Float32Product());
  }
}

// The blocks of a cluster for `tiles` of columns; 0 where there are no such clusters.
int cluster_of(const Device& device, int64_t tiles) {
  int cluster = 1;
  while (cluster < tiles) cluster *= 2;
  return cluster == 1 || (device.clusters && cluster <= kMostBlocksInCluster) ? cluster : 0;
}

constexpr const char* kNoRoom = "residual_chain: no room in shared memory for so many features";

// Launches the kernel of shape S for rows that blocks hold wholly or in clusters, if there is room for it.
template <class S, class Kernel, class Io>
const char* launch_rows(Kernel* kernel, const Device& device, const ResidualChain& chain, const Io& io, int buffers,
                        void* stream) {
  const int cluster = cluster_of(device, divide_up(chain.m, S::kColumns));
  if (cluster == 0) return "residual_chain: m is too large for this GPU";
  const auto layout = ResidualShared::of<S>(chain, buffers, cluster, device.shared_bytes);
  if (layout.bytes > device.shared_bytes) return kNoRoom;
  const Grid grid{divide_up(chain.n, S::kRows) * cluster, S::kThreads, layout.bytes, cluster};
  return launch(kernel, grid, stream, chain, io, layout, cluster);
}

// Whether a cluster of blocks with 128 columns each should share few rows: each then reads as few of the weights, and
// multiprocessors would be idle otherwise.
template <class S>
bool few_rows(const Device& device, const ResidualChain& chain) {
  const int cluster = cluster_of(device, divide_up(chain.m, S::kColumns));
  return cluster > 1 && divide_up(chain.n, S::kRows) * cluster <= device.multiprocessors;
}

// Launches the first of the shapes that there is room for.
template <class... S, class Attempt>
const char* first_with_room(const Attempt& attempt) {
  const char* error = kNoRoom;
  const auto next = [&]<class One>(One one) {
    if (error == kNoRoom) error = attempt(one);
  };
  (next(S()), ...);
  return error;
}

template <class P>
const char* forward(const ResidualChain& chain, const ResidualForward& io, void* stream) {
  const Device device = current_device();
  const auto attempt = [&]<class S>(S) {
    return launch_rows<S>(residual_forward_kernel<S>, device, chain, io, chain.layers(), stream);
  };
  constexpr int kTall = kTiles<P>, kPass = kFeatures<P>;
  using Narrow = ResidualShape<P, kTall, 4, 1, kPass>;
  if (chain.m <= 128 || few_rows<Narrow>(device, chain)) {
    const char* const error = first_with_room<Narrow, ResidualShape<P, kTall, 4, 1, 32>>(attempt);
    if (error != kNoRoom) return error;
  }
  if (chain.m <= 256)
    return first_with_room<ResidualShape<P, kTall, 4, 2, kPass>, ResidualShape<P, kTall, 4, 2, 32>>(attempt);
  if (chain.m <= 512) return attempt(ResidualShape<P, kTall, 4, 4, 32>());
  return attempt(ResidualShape<P, kTall, 8, 4, 32>());
}

template <class P>
const char* step_back(const Device& device, const ResidualChain& chain, const ResidualBackward& io, void* stream) {
  const auto attempt = [&]<class S>(S) {
    return launch_rows<S>(residual_rows_kernel<S>, device, chain, io, 1 + chain.layers(), stream);
  };
  constexpr int kTall = kTiles<P>;
  using Narrow = ResidualShape<P, kTall, 4, 1, 32>;
  using Few = ResidualShape<P, 1, 8, 4, 32>;  // of rows, so that there is room for many features of each
  if (chain.m <= 128 || few_rows<Narrow>(device, chain)) {
    const char* const error = attempt(Narrow());
    if (error != kNoRoom) return error;
  }
  if (chain.m <= 256) return first_with_room<ResidualShape<P, kTall, 4, 2, 32>, Few>(attempt);
  if (!cluster_of(device, divide_up(chain.m, 512))) return attempt(Few());
  return first_with_room<ResidualShape<P, kTall, 8, 2, 32>, Few>(attempt);
}

template <class P>
const char* sum_weights(const Device& device, const ResidualChain& chain, const ResidualBackward& io, void* stream) {
  using S = WeightsShape<P, kFeatures<P>>;
  const auto layout = WeightsShared::of<S>(chain, device.shared_bytes);
  if (layout.bytes > device.shared_bytes) return kNoRoom;
  Grid grid{divide_up(chain.m, S::kChunk), S::kThreads, layout.bytes};
  grid.y = io.slices;
  return launch(residual_weights_kernel<S>, grid, stream, chain, io, layout);
}

}  // namespace

const char* residual_chain_forward(const ResidualChain& chain, const ResidualForward& io, void* stream) {
  if (chain.n == 0) return nullptr;
  return with_product(chain, [&]<class P>(P) { return forward<P>(chain, io, stream); });
}

int residual_chain_slices(const ResidualChain& chain) {
  // Until two blocks run on every multiprocessor.
  const int64_t blocks = divide_up(chain.m, 64), bytes = int64_t{8} * chain.m * chain.k * chain.l;
  const int64_t wanted = divide_up(2 * current_device().multiprocessors, blocks);
  return static_cast<int>(std::max<int64_t>(1, std::min({wanted, divide_up(chain.n, 64), kMostSliceBytes / bytes})));
}

const char* residual_chain_backward(const ResidualChain& chain, const ResidualBackward& io, void* stream) {
  if (chain.n == 0) return nullptr;
  const Device device = current_device();
  return with_product(chain, [&]<class P>(P) {
    const char* const error = step_back<P>(device, chain, io, stream);
    return error ? error : sum_weights<P>(device, chain, io, stream);
  });
}

}  // namespace fastnest::cuda
