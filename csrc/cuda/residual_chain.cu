// residual_chain for NVIDIA GPUs: which kernel a call launches, for the host in residual_chain_host.cpp.
#include "cuda/residual_chain.h"

#include "cuda/residual_chain_forward.h"

namespace fastnest::cuda {
namespace {

// How many blocks share the columns: as many as there must be, and more where rows alone would leave multiprocessors
// idle, since each then reads fewer weights.
int cluster_for(const Device& device, int64_t row_tiles, int64_t column_tiles) {
  int64_t cluster = 1;
  while (cluster < column_tiles || (cluster * 2 <= column_tiles && row_tiles * cluster * 2 <= device.multiprocessors))
    cluster *= 2;
  return static_cast<int>(cluster);
}

template <class S>
const char* forward(const Device& device, const ResidualChain& chain, const ResidualForward& io, int cluster,
                    void* stream) {
  const auto layout = ResidualShared::of<S>(chain, cluster, device.shared_bytes);
  if (layout.bytes > device.shared_bytes) return "residual_chain: no room in shared memory";
  const Grid grid{divide_up(chain.n, S::kRows) * cluster, S::kThreads, layout.bytes, cluster};
  return launch(residual_forward_kernel<S>, grid, stream, chain, io, layout, cluster);
}

template <class P>
const char* forward_of(const ResidualChain& chain, const ResidualForward& io, void* stream) {
  constexpr int kPass = P::kDepth == 16 ? 64 : 32;
  const Device device = current_device();
  // Few rows: blocks of 128 columns each, whatever m, so that a cluster reads the weights from as many sides.
  const int64_t row_tiles = divide_up(chain.n, 64);
  if (device.clusters) {
    for (int cluster = kMostBlocksInCluster; cluster > 1; cluster /= 2) {
      if (row_tiles * cluster > device.multiprocessors) continue;
      if (divide_up(chain.m, 128) > cluster / 2 && divide_up(chain.m, 128) <= cluster)
        return forward<ResidualShape<P, 2, 4, 1, kPass>>(device, chain, io, cluster, stream);
    }
  }
  if (chain.m <= 128) return forward<ResidualShape<P, 2, 4, 1, kPass>>(device, chain, io, 1, stream);
  if (chain.m <= 256) return forward<ResidualShape<P, 2, 4, 2, kPass>>(device, chain, io, 1, stream);
  if (chain.m <= 512) return forward<ResidualShape<P, 2, 4, 4, 32>>(device, chain, io, 1, stream);
  const int cluster = cluster_for(device, 1 << 30, divide_up(chain.m, kMostColumns));
  return forward<ResidualShape<P, 2, 8, 4, 32>>(device, chain, io, cluster, stream);
}

}  // namespace

const char* residual_chain_forward(const ResidualChain& chain, const ResidualForward& io, void* stream) {
  if (chain.n == 0) return nullptr;
  switch (chain.element) {
    case Element::kBFloat16: return forward_of<BFloat16Product>(chain, io, stream);
    case Element::kFloat16: return forward_of<HalfPrecisionProduct>(chain, io, stream);
    default: break;
  }
  return chain.tf32 ? forward_of<Tf32Product>(chain, io, stream) : forward_of<Float32Product>(chain, io, stream);
}

}  // namespace fastnest::cuda
