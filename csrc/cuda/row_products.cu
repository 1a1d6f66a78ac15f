// Products over rows by the tensor cores. A block of threads has a tile [kTo, kOf] of one product and a split of the
// rows: it reads its columns of a and b once, through shared memory, where f(scale b + shift) is made in place. The
// blocks of a split run before those of the next, so that its rows come from memory once and then from L2.
#include "cuda/row_products.h"

#include "cuda/activation.h"
#include "cuda/mma.h"
#include "cuda/ring.h"

namespace fastnest::cuda {
namespace {

constexpr int kTo = 32, kOf = 128, kWarps = 4, kSlots = 3;
constexpr int kAPitch = pitch_of(kTo), kBPitch = pitch_of(kOf);

template <class P>
constexpr int rows_of = 128 / sizeof(typename P::Element);  // at a time

template <class P>
struct RowTile {
  int64_t first, last;  // of the rows
  int to, of;           // the first of each
  FASTNEST_DEVICE RowTile(const RowProducts& all, const RowProduct& one) {
    const int64_t steps = (all.n + rows_of<P> - 1) / rows_of<P>;
    const int64_t each = (steps + all.splits - 1) / all.splits * rows_of<P>;
    first = each * blockIdx.z, last = min(first + each, all.n);
    const int tiles = (one.of + kOf - 1) / kOf;
    to = static_cast<int>(blockIdx.x) / tiles * kTo, of = static_cast<int>(blockIdx.x) % tiles * kOf;
  }
};

// Copies the next rows of a [rows, kTo], and behind them of b [rows, kOf].
template <class P>
class RowTiles {
 public:
  using T = typename P::Element;
  FASTNEST_DEVICE RowTiles(const RowProducts& all, const RowProduct& one, const RowTile<P>& tile)
      : all_(all), one_(one), tile_(tile), row_(tile.first) {}
  FASTNEST_DEVICE void operator()(T* slot) {
    if (row_ >= tile_.last) return;
    const int rows = static_cast<int>(min(tile_.last - row_, static_cast<int64_t>(rows_of<P>)));
    copy(slot, kAPitch, kTo, rows, all_.a, all_.a_stride, one_.a, tile_.to, one_.to);
    copy(slot + rows_of<P> * kAPitch, kBPitch, kOf, rows, all_.b, all_.b_stride, one_.b, tile_.of, one_.of);
    row_ += rows_of<P>;
  }

 private:
  FASTNEST_DEVICE void copy(T* slot, int pitch, int columns, int rows, const void* data, int64_t stride, int64_t at,
                            int first, int of) const {
    const T* const from = static_cast<const T*>(data) + row_ * stride + at + first;
    const bool aligned = reinterpret_cast<uintptr_t>(from) % 16 == 0 && stride * sizeof(T) % 16 == 0;
    copy_tile(slot, pitch, rows_of<P>, columns, Part<T>{from, stride, rows, of - first, aligned});
  }
  const RowProducts& all_;
  const RowProduct& one_;
  RowTile<P> tile_;
  int64_t row_;
};

// b = f(scale b + shift), of the rows and columns that there are: behind them it stays 0.
template <class P>
FASTNEST_DEVICE void apply(const RowProducts& all, const RowProduct& one, typename P::Element* b, int rows, int first) {
  using T = typename P::Element;
  const T *const scale = static_cast<const T*>(one.scale), *const shift = static_cast<const T*>(one.shift);
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < rows * kOf; i += kWarps * 32) {
    const int column = first + i % kOf;
    if (column >= one.of) continue;
    T* const at = b + i / kOf * kBPitch + i % kOf;
    float u = to_float(*at);
    if (scale) u = u * to_float(scale[column]) + to_float(shift[column]);
    *at = from_float<T>(activated(all.f, u));
  }
}

template <class P>
__global__ void __launch_bounds__(kWarps * 32, 2) row_products_kernel(const __grid_constant__ RowProducts all) {
  using T = typename P::Element;
  constexpr int kRows = rows_of<P>;
  FASTNEST_SHARED(shared);
  const RowProduct& one = all.product[blockIdx.y];
  const RowTile<P> tile(all, one);
  if (tile.to >= one.to) return;
  const bool applied = one.scale || all.f != Activation::kIdentity;
  Ring<T, RowTiles<P>> ring(reinterpret_cast<T*>(shared), kRows * (kAPitch + kBPitch), kSlots,
                            RowTiles<P>(all, one, tile));
  float d[2][4][4] = {};
#pragma unroll 1
  for (int64_t row = tile.first; row < tile.last; row += kRows) {
    T* const a = ring.next();
    T* const b = a + kRows * kAPitch;
    if (applied) {
      apply<P>(all, one, b, static_cast<int>(min(tile.last - row, static_cast<int64_t>(kRows))), tile.of);
      __syncthreads();
    }
    const Lane lane = lane_of(static_cast<int>(threadIdx.x));
    const int column = static_cast<int>(threadIdx.x) / 32 * 32;
#pragma unroll 1
    for (int k = 0; k < kRows; k += P::kDepth) {
      typename P::A to[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) to[i] = P::load_a_transposed(a + k * kAPitch + i * 16, kAPitch, lane);
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        typename P::B of[2];
        P::load_b_transposed(of, b + k * kBPitch + column + j * 8, kBPitch, lane);
#pragma unroll
        for (int i = 0; i < 2; ++i) P::add(d[i][j], to[i], of[0]), P::add(d[i][j + 1], to[i], of[1]);
      }
    }
  }
  ring.finish();
  const Lane lane = lane_of(static_cast<int>(threadIdx.x));
  float* const out = all.slices + blockIdx.z * all.total + one.out;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int to = tile.to + i * 16 + lane.g + e / 2 * 8;
        const int of = tile.of + static_cast<int>(threadIdx.x) / 32 * 32 + j * 8 + 2 * lane.t + e % 2;
        if (to < one.to && of < one.of) out[static_cast<int64_t>(to) * one.of + of] = d[i][j][e];
      }
}

template <class P>
const char* launch_products(const RowProducts& all, void* stream) {
  int64_t tiles = 0;
  for (int i = 0; i < all.count; ++i) {
    const int64_t of_one = divide_up(all.product[i].to, kTo) * divide_up(all.product[i].of, kOf);
    tiles = tiles < of_one ? of_one : tiles;
  }
  Grid grid{tiles, kWarps * 32,
            kSlots * rows_of<P> * (kAPitch + kBPitch) * static_cast<int>(sizeof(typename P::Element))};
  grid.y = all.count, grid.z = all.splits;
  return launch(row_products_kernel<P>, grid, stream, all);
}

}  // namespace

int row_products_splits(Element element, int64_t n, int64_t total) {
  constexpr int64_t kMostBytes = 64 << 20, kBlocksEach = 4;  // of slices, and on a multiprocessor
  const int64_t steps = divide_up(n, element == Element::kFloat32 ? rows_of<Tf32Product> : rows_of<BFloat16Product>);
  const int64_t wanted = divide_up(kBlocksEach * current_device().multiprocessors, divide_up(total, kTo * kOf));
  const int64_t most = kMostBytes / (4 * total);
  const int64_t splits = wanted < steps ? wanted : steps;
  return static_cast<int>(splits < most ? splits : most > 0 ? most : 1);
}

const char* row_products(const RowProducts& all, void* stream) {
  switch (all.element) {
    case Element::kBFloat16: return launch_products<BFloat16Product>(all, stream);
    case Element::kFloat16: return launch_products<HalfPrecisionProduct>(all, stream);
    default: break;
  }
  return all.tf32 ? launch_products<Tf32Product>(all, stream) : launch_products<Float32Product>(all, stream);
}

}  // namespace fastnest::cuda
