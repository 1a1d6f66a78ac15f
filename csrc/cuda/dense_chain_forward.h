// The dense chain forward: one launch for 48 blocks. A block of threads owns a tile of rows and reads x once, writes y
// once: n (m + m_L) e bytes for n rows, x of width m, y of width m_L and e bytes an element. What has grown so far, the
// prefix, stays in shared memory, in the tensors' type, so that no growth is read back. Weights come through L2, once a
// tile of rows. (64 rows of bfloat16, m = 64, d = 32, 48 blocks: 213 KB of y for 2.5 MB of weights.)
//
// Where f is next to read the prefix as it is, the prefix holds f(x): each value is activated once, not once a block.
// With scale and shift every block reads another f(scale x + shift), which is made a chunk of columns at a time.
#pragma once

#include "cuda/activation.h"
#include "cuda/dense_chain.h"
#include "cuda/ring.h"
#include "cuda/warps.h"

namespace fastnest::cuda {

template <class Product_, int kTiles_, int kRowGroups_>
struct DenseShape : WarpShape<Product_, kTiles_, kRowGroups_, 4, 32> {
  static constexpr int kColumns = 128;
};

constexpr int whole_steps(int columns) { return (columns + 15) / 16 * 16; }
constexpr int passes_of(int features, int pass) { return (features + pass - 1) / pass; }

// What is in a block's shared memory, in bytes: the ring, sums on their way between warps, scratch of the activation,
// two chunks of f(scale x + shift), the prefix and a hidden layer.
struct DenseForwardShared {
  int slots, pitch, hidden_pitch;
  int partials, scratch, staged, prefix, hidden, bytes;

  template <class S>
  static DenseForwardShared of(const DenseChain& chain, int most_bytes) {
    DenseForwardShared shared{};
    const int size = sizeof(typename S::T), curves = !piecewise_linear(chain.activation);
    int h = 0;
    for (int i = 0; i < chain.blocks; ++i) h = h < chain.block[i].h ? chain.block[i].h : h;
    shared.pitch = pitch_of(whole_steps(chain.end()));
    shared.hidden_pitch = pitch_of(whole_steps(h));
    for (shared.slots = 4; shared.slots >= 2; --shared.slots) {
      shared.partials = shared.slots * S::kPass * pitch_of(S::kChunk) * size;
      shared.scratch = shared.partials + S::kPartials * 4;
      shared.staged = shared.scratch + curves * S::kTiles * S::kOwn * 4 * S::kThreads * 4;
      shared.prefix = shared.staged + chain.affine * 2 * S::kRows * pitch_of(S::kChunk) * size;
      shared.hidden = shared.prefix + S::kRows * shared.pitch * size;
      shared.bytes = shared.hidden + (h ? S::kRows * shared.hidden_pitch * size : 0);
      if (shared.bytes <= most_bytes) break;
    }
    return shared;
  }
};

// One linear map: `features` of the `columns` that it reads.
struct DenseLinear {
  const void *weight, *bias;
  int features, columns;
  FASTNEST_DEVICE DenseLinear(const DenseBlock& block, bool first)
      : weight(first && block.h ? block.hidden_weight : block.weight),
        bias(first && block.h ? block.hidden_bias : block.bias),
        features(first ? block.wide() : block.d),
        columns(first ? block.m : block.h) {}
};

// Copies the weights' tiles [kPass, kChunk] in the order that the forward reads them: passes from the last to the
// first.
template <class S>
class DenseForwardTiles {
 public:
  using T = typename S::T;
  FASTNEST_DEVICE explicit DenseForwardTiles(const DenseChain& chain) : chain_(chain) {}

  FASTNEST_DEVICE void operator()(T* slot) {
    if (block_ >= chain_.blocks) return;
    const DenseBlock& block = chain_.block[block_];
    const DenseLinear linear(block, first_);
    if (pass_ < 0) pass_ = passes_of(linear.features, S::kPass) - 1;
    const int feature = pass_ * S::kPass;
    const T* const from =
        static_cast<const T*>(linear.weight) + static_cast<int64_t>(feature) * linear.columns + column_;
    const bool aligned = linear.columns * sizeof(T) % 16 == 0 && reinterpret_cast<uintptr_t>(linear.weight) % 16 == 0;
    copy_tile(slot, pitch_of(S::kChunk), S::kPass, S::kChunk,
              Part<T>{from, linear.columns, linear.features - feature, linear.columns - column_, aligned});
    column_ += S::kChunk;
    if (column_ < linear.columns) return;
    column_ = 0;
    if (--pass_ >= 0) return;
    if (first_ && block.h) first_ = false;
    else first_ = true, ++block_;
  }

 private:
  const DenseChain& chain_;
  int block_ = 0, pass_ = -1, column_ = 0;
  bool first_ = true;
};

// z [rows, kPass] += a [rows, the warp's columns of a chunk] weight^T, of as many columns as there are; both shared.
template <class S>
FASTNEST_DEVICE void add_columns(const Place<S>& place, Features<S>& z, const typename S::T* a, int a_pitch,
                                 const typename S::T* weight, int columns) {
  using P = typename S::Product;
#pragma unroll 1
  for (int step = 0; step < 32; step += P::kDepth) {
    const int column = place.warp * 32 + step;
    if (column >= columns) return;
    typename P::A rows[S::kTiles];
#pragma unroll
    for (int tile = 0; tile < S::kTiles; ++tile)
      rows[tile] = P::load_a(a + (place.group * S::kTiles + tile) * 16 * a_pitch + column, a_pitch, place.lane);
#pragma unroll
    for (int f = 0; f < S::kPass / 8; f += 2) {
      typename P::B features[2];
      P::load_b(features, weight + f * 8 * pitch_of(S::kChunk) + column, pitch_of(S::kChunk), place.lane);
#pragma unroll
      for (int tile = 0; tile < S::kTiles; ++tile) {
        P::add(z[tile][f], rows[tile], features[0]);
        P::add(z[tile][f + 1], rows[tile], features[1]);
      }
    }
  }
}

// staged [rows, kChunk] = f(scale x + shift) of the prefix from `first` on, and 0 behind the block's columns.
template <class S>
FASTNEST_DEVICE void stage(const DenseChain& chain, const DenseBlock& block, typename S::T* staged,
                           const typename S::T* prefix, int pitch, int first) {
  using T = typename S::T;
  const T *const scale = static_cast<const T*>(block.scale), *const shift = static_cast<const T*>(block.shift);
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < S::kRows * S::kChunk; i += S::kThreads) {
    const int row = i / S::kChunk, in_chunk = i % S::kChunk, column = first + in_chunk;
    float u = 0;
    if (column < block.m)
      u = activated(chain.before(),
                    to_float(prefix[row * pitch + column]) * to_float(scale[column]) + to_float(shift[column]));
    staged[row * pitch_of(S::kChunk) + in_chunk] = from_float<T>(u);
  }
}

// The tile's rows of x in the prefix, and in y if they are not there; as the products read them.
template <class S>
FASTNEST_DEVICE void load_prefix(const DenseChain& chain, const DenseForward& io, typename S::T* prefix, int pitch) {
  using T = typename S::T;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * S::kRows;
  const int rows = static_cast<int>(min(static_cast<int64_t>(S::kRows), chain.n - first_row)), m = chain.begin();
  const T* const x = static_cast<const T*>(io.x) + first_row * io.x_stride;
  const bool aligned = reinterpret_cast<uintptr_t>(io.x) % 16 == 0 && io.x_stride * sizeof(T) % 16 == 0;
  copy_tile(prefix, pitch, S::kRows, pitch - 8, Part<T>{x, io.x_stride, rows, m, aligned});
  commit_copies();
  wait_for_copies<0>();
  __syncthreads();
  const Activation held = chain.affine ? Activation::kIdentity : chain.before();
  T* const y = static_cast<T*>(io.y) + first_row * chain.width;
  const bool copied = io.x != io.y;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < rows * m; i += S::kThreads) {
    const int row = i / m, column = i % m;
    const T value = prefix[row * pitch + column];
    if (copied) y[static_cast<int64_t>(row) * chain.width + column] = value;
    if (held != Activation::kIdentity) prefix[row * pitch + column] = from_float<T>(activated(held, to_float(value)));
  }
}

// Features from what the owners have summed: biased, rounded as memory keeps them, and activated where a product or y
// is to have them so. first: of a hidden layer, which goes into `tile`; else growths, which follow the prefix there.
template <class S>
FASTNEST_DEVICE void finish_features(const DenseChain& chain, const DenseForward& io, const DenseBlock& block,
                                     bool is_hidden, int pass, OwnFeatures<S>& z, typename S::T* tile, int pitch,
                                     float* scratch) {
  using T = typename S::T;
  const Place<S> place(1);
  if (place.warp >= S::kOwners) return;
  const int features = is_hidden ? block.h : block.d, width = chain.width;
  const T* const bias = static_cast<const T*>(is_hidden ? block.hidden_bias : block.bias);
  for_own<S>(place, pass, [&](int index, int, int feature) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float more = bias && feature + e < features ? to_float(bias[feature + e]) : 0.0f;
      z[index + e] = to_float(from_float<T>(z[index + e] + more));
    }
  });
  const auto keep = [&](T* to, int64_t stride) {
    for_own<S>(place, pass, [&](int index, int row, int feature) {
      if (place.first_row + row < chain.n)
        store_pair(to + (place.first_row + row) * stride, feature, features, z[index], z[index + 1]);
    });
  };
  T* const y = static_cast<T*>(io.y) + block.m;
  T* const hidden = static_cast<T*>(io.hidden) + chain.kept_before(block);
  if (!is_hidden && chain.pre_activation) keep(y, width);
  else if (io.hidden && (is_hidden || chain.keeps_growth())) keep(hidden + (is_hidden ? 0 : block.h), chain.kept());
  const bool raw = !is_hidden && chain.pre_activation && chain.affine;
  activate<S::kTiles * S::kOwn * 4>(raw ? Activation::kIdentity : chain.activation, z, scratch);
  if (!is_hidden && !chain.pre_activation) keep(y, width);
  // Behind a hidden layer the product reads on to a whole step.
  const int end = is_hidden ? whole_steps(features) : features;
  for_own<S>(place, pass, [&](int index, int row, int feature) {
#pragma unroll
    for (int e = 0; e < 2; ++e)
      if (feature + e < end)
        tile[row * pitch + feature + e] = from_float<T>(feature + e < features ? z[index + e] : 0.0f);
  });
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    dense_forward_kernel(const __grid_constant__ DenseChain chain, const DenseForward io,
                         const DenseForwardShared layout) {
  using T = typename S::T;
  FASTNEST_SHARED(shared);
  auto* const partials = reinterpret_cast<float4*>(shared + layout.partials);
  auto* const scratch = reinterpret_cast<float*>(shared + layout.scratch);
  T* const staged = reinterpret_cast<T*>(shared + layout.staged);
  T* const prefix = reinterpret_cast<T*>(shared + layout.prefix);
  T* const hidden = reinterpret_cast<T*>(shared + layout.hidden);
  load_prefix<S>(chain, io, prefix, layout.pitch);
  Ring<T, DenseForwardTiles<S>> ring(reinterpret_cast<T*>(shared), S::kPass * pitch_of(S::kChunk), layout.slots,
                                     DenseForwardTiles<S>(chain));
  const int layers = chain.block[0].h ? 2 : 1;
#pragma unroll 1
  for (int at = 0; at < chain.blocks * layers; ++at) {
    const DenseBlock& block = chain.block[at / layers];
    const bool first = at % layers == 0, is_hidden = first && layers == 2, is_staged = first && chain.affine;
    const DenseLinear linear(block, first);
    const T* const source = first ? prefix : hidden;
    const int pitch = first ? layout.pitch : layout.hidden_pitch;
    if (is_staged) __syncthreads();  // the prefix has all that has grown
    // Pass 0 writes a growth's first features, which the other passes read as columns behind the prefix: it is the
    // last.
#pragma unroll 1
    for (int pass = passes_of(linear.features, S::kPass) - 1; pass >= 0; --pass) {
      Features<S> z = {};
      int turn = 0;
#pragma unroll 1
      for (int column = 0; column < linear.columns; column += S::kChunk, turn ^= 1) {
        T* const chunk = staged + turn * S::kRows * pitch_of(S::kChunk);
        if (is_staged) stage<S>(chain, block, chunk, prefix, layout.pitch, column);
        const T* const weight = ring.next();
        add_columns<S>(Place<S>(1), z, is_staged ? chunk : source + column, is_staged ? pitch_of(S::kChunk) : pitch,
                       weight, linear.columns - column);
      }
      OwnFeatures<S> own;
      complete<S>(Place<S>(1), z, own, partials, nullptr, 0);
      finish_features<S>(chain, io, block, is_hidden, pass, own, is_hidden ? hidden : prefix + block.m,
                         is_hidden ? layout.hidden_pitch : layout.pitch, scratch);
    }
  }
  ring.finish();
}

}  // namespace fastnest::cuda
