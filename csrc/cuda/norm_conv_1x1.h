// The 1x1 convolution with norm and relu on both sides, as a product of the pixels' rows and B. A tile of 64 pixels is
// loaded by TMA, 128 bytes of channels at a time, normalised on its way from shared memory into registers, and
// multiplied there; h leaves from registers. x is read once, h written once, and neither is ever seen unnormalised.
//
// Resident: B lies in shared memory as long as a block lives, and two warpgroups have tiles, stages and a producer warp
// each. Streamed: B and x arrive in the same stages, one tile a block, of kTall times 64 pixels and kOutputs channels;
// kSplits warpgroups share the channels of a tile and add up at the end, for few pixels.
#pragma once

#include "cuda/hopper/fragment.h"
#include "cuda/hopper/ring.h"
#include "cuda/norm_conv.h"

namespace fastnest::cuda {

using hopper::TensorMap;

constexpr int kTilePixels = 64, kTileBytes = kTilePixels * 128;  // of a chunk

struct Args1x1 {
  const unsigned char* weights;  // packed B
  const float *norm1, *norm2;
  void* h;
  int pixels, hidden, chunks, outputs;  // outputs: of B's rows a chunk
  int tiles, stages;
  volatile int* note;
};

#if FASTNEST_HOPPER

using namespace hopper;

FASTNEST_DEVICE void copy_floats(float* to, const float* from, int count, int threads) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += threads) to[i] = from[i];
}

// d += a b for a chunk, done when it returns: a lives in registers that the next chunk is loaded into, and a product in
// flight there would make ptxas wait for each by itself. The other warpgroup's products go on meanwhile.
template <class T, int N>
FASTNEST_DEVICE void add_chunk(float (&d)[N / 2], uint32_t (&a)[kSteps][4], Descriptor b) {
  keep(a);
  begin_products();
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
    Product<T, N>::from_registers(d, a[step], after(b, step * kStepBytes), true);
  commit_products();
  wait_for_products<0>();
  keep(d);
  keep(a);
}

// What a thread owns of a vector of outputs, in as few reads as there can be.
template <int kOwn>
FASTNEST_DEVICE void load_own(float (&own)[kOwn], const float* from) {
#pragma unroll
  for (int i = 0; i < kOwn; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(from + i);
    own[i] = four.x, own[i + 1] = four.y, own[i + 2] = four.z, own[i + 3] = four.w;
  }
}

// 16 bytes of outputs as they are stored, from their sums at d[4 j] and d[4 j + 1].
template <class T, int kOwn>
FASTNEST_DEVICE uint4 hidden_piece(const float* d, const float (&scale)[kOwn], const float (&shift)[kOwn]) {
  const auto value = [&](int i) { return fmaf(d[i / 2 * 4 + i % 2], scale[i], shift[i]); };
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if constexpr (sizeof(T) == 2) words[i] = pack_relu<T>(value(2 * i), value(2 * i + 1));
    else words[i] = to_tf32(relu(value(i)));
  return {words[0], words[1], words[2], words[3]};
}

// A warp's 16 rows of h, from `row` on: outputs `first` and the N - 1 behind it.
template <class T, int N>
FASTNEST_DEVICE void store_hidden(const float (&d)[N / 2], const Args1x1& args, const float* norm2, int64_t row,
                                  int first, int lane) {
  constexpr int kOwn = own_of<T>(N);
  const int t = lane % 4;
  row += lane / 4;
  T* const h = static_cast<T*>(args.h) + row * args.hidden;
#pragma unroll
  for (int group = 0; group < N / (4 * kOwn); ++group) {
    const int output = first + group * 4 * kOwn + t * kOwn;
    if (output >= args.hidden) continue;
    float scale[kOwn], shift[kOwn];
    load_own(scale, norm2 + output);
    load_own(shift, norm2 + args.outputs + output);
    const float* const sums = d + group * 2 * kOwn;
    const auto store = [&](int64_t down) {
      if (row + down >= args.pixels) return;
      *reinterpret_cast<uint4*>(h + down * args.hidden + output) = hidden_piece<T>(sums + down / 4, scale, shift);
    };
    store(0);
    store(8);
  }
}

#endif  // FASTNEST_HOPPER

constexpr int kResidentThreads = 320;

// Shared memory of both kernels: rows of 128 bytes first, then the norms, then barriers.
struct Shared1x1 {
  int norm1, norm2, barriers, bytes;
};
constexpr Shared1x1 shared_1x1(int row_bytes, int chunks, int norm_floats, int outputs, int barriers) {
  Shared1x1 at{};
  at.norm1 = row_bytes;
  at.norm2 = at.norm1 + chunks * norm_floats * 4;
  at.barriers = at.norm2 + outputs * 8;
  at.bytes = at.barriers + barriers * 8 + 1024;  // to align rows by
  return at;
}

template <class T, int N>
__global__ void __launch_bounds__(kResidentThreads, 1)
    norm_conv_1x1_resident_kernel(const __grid_constant__ TensorMap x, const Args1x1 args) {
#if FASTNEST_HOPPER
  constexpr int kPanel = N * kRowBytes;
  FASTNEST_SHARED(shared);
  const Address weights = align_rows(shared_address(shared)), first_stage = weights + args.chunks * kPanel;
  unsigned char* const base = shared + (weights - shared_address(shared));
  const Shared1x1 at = shared_1x1(args.chunks * kPanel + 2 * args.stages * kTileBytes, args.chunks, kNormFloats<T>, N,
                                  4 * args.stages + args.chunks);
  float *const norm1 = reinterpret_cast<float*>(base + at.norm1), *const norm2 =
                                                                      reinterpret_cast<float*>(base + at.norm2);
  const RingBarriers barriers{weights + at.barriers};
  const Address weights_full = barriers.full(2 * args.stages);
  const int warp = warp_index(), lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    barriers.init(2 * args.stages, 1, 4);
    for (int chunk = 0; chunk < args.chunks; ++chunk) init_barrier(weights_full + chunk * 8, 1);
    show_barriers();
  }
  copy_floats(norm1, args.norm1, args.chunks * kNormFloats<T>, kResidentThreads);
  copy_floats(norm2, args.norm2, 2 * N, kResidentThreads);
  __syncthreads();
  let_next_start();

  const int group = warp < 8 ? warp / 4 : warp - 8;
  const RingBarriers own{barriers.full(group * args.stages)};
  const Address ring = first_stage + group * args.stages * kTileBytes;
  const unsigned first_tile = blockIdx.x * 2 + group, tiles = args.tiles;
  RingPlace place{args.stages};
  if (warp >= 8) {
    if (lane != 0) return;
    if (group == 0)
      for (int chunk = 0; chunk < args.chunks; ++chunk) {
        arrive_expecting(weights_full + chunk * 8, kPanel);
        load_bytes(weights + chunk * kPanel, args.weights + int64_t{chunk} * kPanel, weights_full + chunk * 8, kPanel);
      }
    wait_for_previous();
    for (unsigned tile = first_tile; tile < tiles; tile += 2 * gridDim.x)
      for (int chunk = 0; chunk < args.chunks; ++chunk, place.advance()) {
        const Address full = own.full(place.stage);
        wait(own.empty(place.stage), place.parity ^ 1, args.note, 101);
        arrive_expecting(full, kTileBytes);
        load_box(ring + place.stage * kTileBytes, x, full, chunk * kChunk<T>, static_cast<int>(tile) * kTilePixels);
      }
    return;
  }
  const Address row = own_row(ring, warp % 4, lane);
  float d[N / 2];
  uint32_t a[kSteps][4];
  bool first = true;
  for (unsigned tile = first_tile; tile < tiles; tile += 2 * gridDim.x) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) d[i] = 0.0f;
#pragma unroll 1
    for (int chunk = 0; chunk < args.chunks; ++chunk) {
      wait(own.full(place.stage), place.parity, args.note, 102);
      load_chunk(a, row + place.stage * kTileBytes, lane);
      norm_relu<T>(a, norm1 + chunk * kNormFloats<T>, lane % 4);
      __syncwarp();
      if (lane == 0) arrive(own.empty(place.stage));
      place.advance();
      if (first) wait(weights_full + chunk * 8, 0, args.note, 103);
      add_chunk<T, N>(d, a, rows_at(weights + chunk * kPanel));
    }
    first = false;
    store_hidden<T, N>(d, args, norm2, static_cast<int64_t>(tile) * kTilePixels + warp % 4 * 16, 0, lane);
  }
#else
  hopper::trap();
#endif
}

constexpr int kSumBarrier = 1;  // named

template <class T, int N, int kTall, int kSplits, int kBlocks>
__global__ void __launch_bounds__(kTall * kSplits * 128 + 128, kBlocks)
    norm_conv_1x1_streamed_kernel(const __grid_constant__ TensorMap x, const Args1x1 args) {
#if FASTNEST_HOPPER
  constexpr int kGroups = kTall * kSplits, kThreads = kGroups * 128 + 128, kPanel = N * kRowBytes;
  constexpr int kStage = kTall * kTileBytes + kPanel;
  // Of 64 K registers: what two blocks of three warpgroups can have, or one.
  constexpr int kProducer = kBlocks == 2 ? 24 : 40, kConsumer = kBlocks == 2 ? 104 : 208;
  FASTNEST_SHARED(shared);
  const Address ring = align_rows(shared_address(shared));
  unsigned char* const base = shared + (ring - shared_address(shared));
  const Shared1x1 at = shared_1x1(args.stages * kStage, args.chunks, kNormFloats<T>, args.outputs, 2 * args.stages);
  float *const norm1 = reinterpret_cast<float*>(base + at.norm1), *const norm2 =
                                                                      reinterpret_cast<float*>(base + at.norm2);
  const RingBarriers barriers{ring + at.barriers};
  const int warp = warp_index(), lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    barriers.init(args.stages, 1, 4 * kTall);
    show_barriers();
  }
  copy_floats(norm1, args.norm1, args.chunks * kNormFloats<T>, kThreads);
  copy_floats(norm2, args.norm2, 2 * args.outputs, kThreads);
  __syncthreads();
  let_next_start();

  const int first_row = static_cast<int>(blockIdx.x) * kTall * kTilePixels,
            first_output = static_cast<int>(blockIdx.y) * N;
  if (warp >= kGroups * 4) {
    give_registers<kProducer>();
    if (warp > kGroups * 4 || lane != 0) return;
    const auto load_weights = [&](int chunk, int stage) {
      arrive_expecting(barriers.full(stage), kStage);
      load_bytes(ring + stage * kStage + kTall * kTileBytes,
                 args.weights + (int64_t{chunk} * args.outputs + first_output) * kRowBytes, barriers.full(stage),
                 kPanel);
    };
    // Weights do not depend on the launch before.
    const int early = min(args.stages, args.chunks);
    for (int chunk = 0; chunk < early; ++chunk) load_weights(chunk, chunk);
    wait_for_previous();
    RingPlace place{args.stages};
    for (int chunk = 0; chunk < args.chunks; ++chunk, place.advance()) {
      if (chunk >= early) {
        wait(barriers.empty(place.stage), place.parity ^ 1, args.note, 111);
        load_weights(chunk, place.stage);
      }
#pragma unroll
      for (int i = 0; i < kTall; ++i)
        load_box(ring + place.stage * kStage + i * kTileBytes, x, barriers.full(place.stage), chunk * kChunk<T>,
                 first_row + i * kTilePixels);
    }
    return;
  }
  take_registers<kConsumer>();
  const int group = warp / 4, tall = group % kTall, split = group / kTall;
  const Address row = own_row(ring + tall * kTileBytes, warp % 4, lane);
  float d[N / 2];
  uint32_t a[kSteps][4];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) d[i] = 0.0f;
  RingPlace place{args.stages};
  place.advance(split);
#pragma unroll 1
  for (int chunk = split; chunk < args.chunks; chunk += kSplits) {
    wait(barriers.full(place.stage), place.parity, args.note, 112);
    load_chunk(a, row + place.stage * kStage, lane);
    norm_relu<T>(a, norm1 + chunk * kNormFloats<T>, lane % 4);
    add_chunk<T, N>(d, a, rows_at(ring + place.stage * kStage + kTall * kTileBytes));
    if (lane == 0) arrive(barriers.empty(place.stage));
    place.advance(kSplits);
  }
  if constexpr (kSplits > 1) {
    // Stages are free when all have multiplied: partial sums take their place.
    float* const sums = reinterpret_cast<float*>(base) + tall * (N / 2) * 128 + threadIdx.x % 128;
    constexpr int kNext = kTall * (N / 2) * 128;
    named_barrier(kSumBarrier, kGroups * 128);
    if (split > 0)
#pragma unroll
      for (int i = 0; i < N / 2; ++i) sums[(split - 1) * kNext + i * 128] = d[i];
    named_barrier(kSumBarrier, kGroups * 128);
    if (split > 0) return;
#pragma unroll
    for (int j = 1; j < kSplits; ++j)
#pragma unroll
      for (int i = 0; i < N / 2; ++i) d[i] += sums[(j - 1) * kNext + i * 128];
  }
  store_hidden<T, N>(d, args, norm2, static_cast<int64_t>(first_row) + tall * kTilePixels + warp % 4 * 16, first_output,
                     lane);
#else
  hopper::trap();
#endif
}

}  // namespace fastnest::cuda
