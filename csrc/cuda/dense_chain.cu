// dense_chain for NVIDIA GPUs: which kernel a call launches, for the host in dense_chain_host.cpp.
#include "cuda/dense_chain.h"

#include "cuda/dense_chain_backward.h"
#include "cuda/dense_chain_forward.h"

namespace fastnest::cuda {
namespace {

constexpr int kFewestRows = 16;  // of a tile

// Whether tiles of `rows` leave no multiprocessor idle.
bool fills(const Device& device, int64_t n, int64_t rows) { return divide_up(n, rows) >= device.multiprocessors; }

template <class S>
const char* forward(const DenseChain& chain, const DenseForward& io, const DenseForwardShared& layout, void* stream) {
  return launch(dense_forward_kernel<S>, Grid{divide_up(chain.n, S::kRows), S::kThreads, layout.bytes}, stream, chain,
                io, layout);
}

// As many rows a block as there is room for in shared memory, and fewer where multiprocessors would be idle.
template <class P>
const char* forward_of(const DenseChain& chain, const DenseForward& io, void* stream) {
  using Many = DenseShape<P, 2, 2>;
  using Some = DenseShape<P, 1, 2>;
  using Few = DenseShape<P, 1, 1>;
  const Device device = current_device();
  const auto many = DenseForwardShared::of<Many>(chain, device.shared_bytes);
  if (many.bytes <= device.shared_bytes && fills(device, chain.n, Many::kRows))
    return forward<Many>(chain, io, many, stream);
  const auto some = DenseForwardShared::of<Some>(chain, device.shared_bytes);
  if (some.bytes <= device.shared_bytes && fills(device, chain.n, Some::kRows))
    return forward<Some>(chain, io, some, stream);
  const auto few = DenseForwardShared::of<Few>(chain, device.shared_bytes);
  if (few.bytes > device.shared_bytes) return "dense_chain: no room in shared memory";
  return forward<Few>(chain, io, few, stream);
}

// With scale and shift as many blocks as there are slices share the rows, else each has a tile.
template <class S>
const char* backward(const DenseChain& chain, const DenseBackward& io, const DenseBackwardShared& layout,
                     void* stream) {
  const Grid grid{chain.affine ? io.slices : divide_up(chain.n, S::kRows), S::kThreads, layout.bytes};
  return launch(dense_backward_kernel<S>, grid, stream, chain, io, layout);
}

template <class P>
const char* backward_of(const DenseChain& chain, const DenseBackward& io, void* stream) {
  using Many = DenseShape<P, 2, 2>;
  using Few = DenseShape<P, 1, 1>;
  static_assert(Few::kRows == kFewestRows);
  const Device device = current_device();
  const auto many = DenseBackwardShared::of<Many>(chain, device.shared_bytes);
  if (many.bytes <= device.shared_bytes && fills(device, chain.n, Many::kRows))
    return backward<Many>(chain, io, many, stream);
  const auto few = DenseBackwardShared::of<Few>(chain, device.shared_bytes);
  if (few.bytes > device.shared_bytes) return "dense_chain_backward: no room in shared memory";
  return backward<Few>(chain, io, few, stream);
}

}  // namespace

const char* dense_chain_forward(const DenseChain& chain, const DenseForward& io, void* stream) {
  if (chain.n == 0) return nullptr;
  switch (chain.element) {
    case Element::kBFloat16: return forward_of<BFloat16Product>(chain, io, stream);
    case Element::kFloat16: return forward_of<HalfPrecisionProduct>(chain, io, stream);
    default: break;
  }
  return chain.tf32 ? forward_of<Tf32Product>(chain, io, stream) : forward_of<Float32Product>(chain, io, stream);
}

const char* dense_chain_backward(const DenseChain& chain, const DenseBackward& io, void* stream) {
  switch (chain.element) {
    case Element::kBFloat16: return backward_of<BFloat16Product>(chain, io, stream);
    case Element::kFloat16: return backward_of<HalfPrecisionProduct>(chain, io, stream);
    default: break;
  }
  return chain.tf32 ? backward_of<Tf32Product>(chain, io, stream) : backward_of<Float32Product>(chain, io, stream);
}

int dense_chain_affine_slices(int64_t n) {
  const int64_t tiles = divide_up(n, kFewestRows), most = 2 * current_device().multiprocessors;
  return static_cast<int>(tiles < most ? tiles : most);
}

}  // namespace fastnest::cuda
