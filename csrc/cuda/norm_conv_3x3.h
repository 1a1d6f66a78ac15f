// The 3x3 convolution with padding 1, as nine products of h's lines and K. A tile is loaded by TMA with the lines above
// and below it, and what lies outside of the image is 0. Lines take 16 or 8 rows of shared memory, so that a line
// further is a multiple of 1024 bytes and one descriptor away; the three columns of K are outputs of the same product,
// and what belongs to the pixel beside is handed over in registers, where a warp's 16 rows are one line or two.
//
// An image that is no wider than a line needs no halo: the line's ends take nothing from beside. A wider one is cut
// into tiles that overlap by two columns. K lies in shared memory as long as a block lives, or arrives with h, 128
// bytes of channels at a time, where it is too large. Two warpgroups have tiles, stages and a producer warp each.
#pragma once

#include "cuda/hopper/fragment.h"
#include "cuda/hopper/ring.h"
#include "cuda/norm_conv.h"

namespace fastnest::cuda {

using hopper::TensorMap;

constexpr int kThreads3x3 = 320;

// Of a warpgroup, which holds one while it waits for the next. 48 outputs of four bytes leave room for one alone.
template <class T, int kOutputs>
constexpr int kLeastStages = sizeof(T) == 4 && kOutputs > 32 ? 1 : 2;

struct Args3x3 {
  const unsigned char* weights;  // packed K
  void* y;
  int64_t y_stride;
  const void* factor;
  int64_t factor_stride;
  int height, width, grown;
  int tiles_across, tiles_down, tiles;
  int chunks, stages;
  bool resident;  // K
  bool vectors;   // whether outputs, and factors, can be moved by as many as a thread owns
  volatile int* note;
};

template <int kWidth, int kTall>
struct Tile3x3 {
  static constexpr int kLinesOf64 = 64 / kWidth, kLines = kTall * kLinesOf64;
  static constexpr int kLineBytes = kWidth * 128, kBytes = (kLines + 2) * kLineBytes;  // of a chunk
};

constexpr int shared_3x3(int tile_bytes, int weight_bytes, int chunks, int stages, bool resident) {
  const int rows =
      resident ? chunks * weight_bytes + 2 * stages * tile_bytes : 2 * stages * (weight_bytes + tile_bytes);
  return 1024 + rows + (4 * stages + (resident ? chunks : 0)) * 8;
}

#if FASTNEST_HOPPER

using namespace hopper;

// Of a warp's rows g and g + 8, the same of the row before (-1) or behind (+1) on its line; 0 at the line's ends.
template <int kWidth, int kStep>
FASTNEST_DEVICE float2 beside(float upper, float lower, int lane) {
  constexpr int kLastLanes = 28, kFirstLanes = 4;
  const int from = (lane + 4 * kStep) & 31;
  const bool end = kStep < 0 ? lane < kFirstLanes : lane >= kLastLanes;
  // Of 16 pixels, the lanes at whose rows the halves meet give the other half's.
  float to_upper = upper, to_lower = lower;
  if (kWidth == 16 && kStep > 0 && lane < kFirstLanes) to_upper = lower;
  if (kWidth == 16 && kStep < 0 && lane >= kLastLanes) to_lower = upper;
  to_upper = __shfl_sync(0xffffffffu, to_upper, from);
  to_lower = __shfl_sync(0xffffffffu, to_lower, from);
  if (end && (kWidth == 8 || kStep < 0)) to_upper = 0.0f;
  if (end && (kWidth == 8 || kStep > 0)) to_lower = 0.0f;
  return {to_upper, to_lower};
}

// The kOwn outputs of a thread, of a row or of the one 8 below.
template <class T, int kOwn>
struct Outputs {
  float value[kOwn];
  // Into as many of a pixel's channels as there are at `to`, times the factors there, if there are any.
  FASTNEST_DEVICE void store(T* to, const T* factor, int channels, bool vectors) {
    constexpr int kWords = kOwn * static_cast<int>(sizeof(T)) / 4;
    if (vectors && channels >= kOwn) {
      if (factor) {
        alignas(16) T factors[kOwn];
        move<kWords>(factors, factor);
#pragma unroll
        for (int i = 0; i < kOwn; ++i) value[i] *= to_float(factors[i]);
      }
      alignas(16) T rounded[kOwn];
#pragma unroll
      for (int i = 0; i < kOwn; ++i) rounded[i] = from_float<T>(value[i]);
      move<kWords>(to, rounded);
      return;
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i)
      if (i < channels) to[i] = from_float<T>(factor ? value[i] * to_float(factor[i]) : value[i]);
  }
  template <int kWords>
  static FASTNEST_DEVICE void move(T* to, const T* from) {
    if constexpr (kWords == 4) *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    else *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(from);
  }
};

#endif  // FASTNEST_HOPPER

template <class T, int kOutputs, int kWidth, int kTall>
__global__ void __launch_bounds__(kThreads3x3, 1)
    conv_3x3_kernel(const __grid_constant__ TensorMap h, const Args3x3 args) {
#if FASTNEST_HOPPER
  using Tile = Tile3x3<kWidth, kTall>;
  constexpr int N = 3 * kOutputs, kLineOfK = N * kRowBytes, kPanel = 3 * kLineOfK;
  FASTNEST_SHARED(shared);
  const Address weights = align_rows(shared_address(shared));
  const int stage_bytes = args.resident ? Tile::kBytes : Tile::kBytes + kPanel;
  const Address rings = args.resident ? weights + args.chunks * kPanel : weights;
  const RingBarriers all{rings + 2 * args.stages * stage_bytes};
  const Address weights_full = all.full(2 * args.stages);
  const int warp = warp_index(), lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    all.init(2 * args.stages, 1, 4);
    if (args.resident)
      for (int chunk = 0; chunk < args.chunks; ++chunk) init_barrier(weights_full + chunk * 8, 1);
    show_barriers();
  }
  __syncthreads();
  let_next_start();

  const unsigned tiles = args.tiles;
  const bool halo = args.width > kWidth;
  const int columns = halo ? kWidth - 2 : kWidth;
  const int group = warp < 8 ? warp / 4 : warp - 8;
  const RingBarriers barriers{all.full(group * args.stages)};
  const Address ring = rings + group * args.stages * stage_bytes;
  const unsigned first_tile = blockIdx.x + group * gridDim.x;
  RingPlace place{args.stages};
  if (warp >= 8) {
    if (lane != 0) return;
    const auto load_weights = [&](int chunk, Address to, Address full) {
      load_bytes(to, args.weights + int64_t{chunk} * kPanel, full, kPanel);
    };
    prefetch(h);
    if (args.resident && group == 0)
      for (int chunk = 0; chunk < args.chunks; ++chunk) {
        arrive_expecting(weights_full + chunk * 8, kPanel);
        load_weights(chunk, weights + chunk * kPanel, weights_full + chunk * 8);
      }
    wait_for_previous();
    for (unsigned tile = first_tile; tile < tiles; tile += 2 * gridDim.x) {
      const int across = static_cast<int>(tile % args.tiles_across), rest = static_cast<int>(tile / args.tiles_across);
      const int x = halo ? across * columns - 1 : 0, y = rest % args.tiles_down * Tile::kLines - 1;
      for (int chunk = 0; chunk < args.chunks; ++chunk, place.advance()) {
        const Address full = barriers.full(place.stage), to = ring + place.stage * stage_bytes;
        wait(barriers.empty(place.stage), place.parity ^ 1, args.note, 201);
        arrive_expecting(full, stage_bytes);
        load_box(to, h, full, chunk * kChunk<T>, x, y, rest / args.tiles_down);
        if (!args.resident) load_weights(chunk, to + Tile::kBytes, full);
      }
    }
    return;
  }

  const int g = lane / 4, t = lane % 4;
  float d[kTall][N / 2];
  bool first = true;
  for (unsigned tile = first_tile; tile < tiles; tile += 2 * gridDim.x) {
#pragma unroll
    for (int m = 0; m < kTall; ++m)
#pragma unroll
      for (int i = 0; i < N / 2; ++i) d[m][i] = 0.0f;
    int before = 0;
#pragma unroll 1
    for (int chunk = 0; chunk < args.chunks; ++chunk) {
      if (first && args.resident) wait(weights_full + chunk * 8, 0, args.note, 203);
      wait(barriers.full(place.stage), place.parity, args.note, 202);
      const Address stage = ring + place.stage * stage_bytes;
      const Descriptor a = rows_at(stage), b = rows_at(args.resident ? weights + chunk * kPanel : stage + Tile::kBytes);
      begin_products();
#pragma unroll
      for (int line = 0; line < 3; ++line)
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
#pragma unroll
          for (int m = 0; m < kTall; ++m)
            Product<T, N>::from_shared(d[m],
                                       after(a, (m * Tile::kLinesOf64 + line) * Tile::kLineBytes + step * kStepBytes),
                                       after(b, line * kLineOfK + step * kStepBytes), true);
      commit_products();
      if constexpr (kLeastStages<T, kOutputs> > 1) {
        // The chunk before is done; this one goes on while the next is waited for.
        wait_for_products<1>();
        if (chunk > 0 && lane == 0) arrive(barriers.empty(before));
        before = place.stage;
      } else {
        wait_for_products<0>();
        if (lane == 0) arrive(barriers.empty(place.stage));
      }
      place.advance();
    }
    wait_for_products<0>();
#pragma unroll
    for (int m = 0; m < kTall; ++m) keep(d[m]);
    if (kLeastStages<T, kOutputs> > 1 && lane == 0) arrive(barriers.empty(before));
    first = false;

    const int across = static_cast<int>(tile % args.tiles_across), rest = static_cast<int>(tile / args.tiles_across);
    constexpr int kOwn = own_of<T>(kOutputs);
    const auto store = [&](Outputs<T, kOwn>& outputs, int line, int column, int output) {
      const int y = rest % args.tiles_down * Tile::kLines + line, x = halo ? across * columns + column - 1 : column;
      if (y >= args.height || x >= args.width || (halo && (column == 0 || column == kWidth - 1))) return;
      if (output >= args.grown) return;
      const int64_t pixel = (static_cast<int64_t>(rest / args.tiles_down) * args.height + y) * args.width + x;
      outputs.store(static_cast<T*>(args.y) + pixel * args.y_stride + output,
                    args.factor ? static_cast<const T*>(args.factor) + pixel * args.factor_stride + output : nullptr,
                    args.grown - output, args.vectors);
    };
#pragma unroll
    for (int m = 0; m < kTall; ++m)
#pragma unroll
      for (int part = 0; part < kOutputs / (4 * kOwn); ++part) {
        Outputs<T, kOwn> upper, lower;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
          const auto at = [&](int column) { return column * kOutputs / 2 + part * 2 * kOwn + i / 2 * 4 + i % 2; };
          const float2 before = beside<kWidth, -1>(d[m][at(0)], d[m][at(0) + 2], lane);
          const float2 behind = beside<kWidth, +1>(d[m][at(2)], d[m][at(2) + 2], lane);
          upper.value[i] = before.x + d[m][at(1)] + behind.x;
          lower.value[i] = before.y + d[m][at(1) + 2] + behind.y;
        }
        const int output = part * 4 * kOwn + t * kOwn, line = m * Tile::kLinesOf64 + warp % 4 * (16 / kWidth);
        store(upper, line, g, output);
        if constexpr (kWidth == 16) store(lower, line, g + 8, output);
        else store(lower, line + 1, g, output);
      }
  }
#else
  hopper::trap();
#endif
}

}  // namespace fastnest::cuda
