// The layer on which kernels run here (blocks.cpp), and the products made of it, tested by kernels of a few lines:
//   layer CHECK first|last   ends with 0 where the check holds in that order of threads; breaks_* have to end badly.
// Here: the instructions, each by the places of a lane's elements that device.h names; layer_products.cpp,
// layer_hopper.cpp, layer_broken.cpp: the rest.
#include "layer.h"

#include <cstring>

#include "cuda/sums.h"

namespace layer {
namespace {

// Element i of a lane's a or b in registers of kPairs elements each: d += a b of plain matrices [16, kDepth] [kDepth,
// 8].
template <class T>
__global__ void instruction_kernel(const float* a, const float* b, float* d) {
  constexpr bool kTf32 = std::is_same_v<T, float>;
  constexpr int kDepth = kTf32 ? 8 : 16;
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  const auto of_a = [&](int row, int k) { return a[row * kDepth + k]; };
  const auto of_b = [&](int k, int column) { return b[k * 8 + column]; };
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = d[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  if constexpr (kTf32) {
    multiply_add_tf32(
        sums, {to_tf32(of_a(g, t)), to_tf32(of_a(g + 8, t)), to_tf32(of_a(g, t + 4)), to_tf32(of_a(g + 8, t + 4))},
        {to_tf32(of_b(t, g)), to_tf32(of_b(t + 4, g))});
  } else {
    const auto pair_a = [&](int row, int k) { return pack<T>(of_a(row, k), of_a(row, k + 1)); };
    const auto pair_b = [&](int k) { return pack<T>(of_b(k, g), of_b(k + 1, g)); };
    multiply_add<T>(sums, {pair_a(g, 2 * t), pair_a(g + 8, 2 * t), pair_a(g, 2 * t + 8), pair_a(g + 8, 2 * t + 8)},
                    {pair_b(2 * t), pair_b(2 * t + 8)});
  }
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
}

template <class T>
bool instruction() {
  const int depth = std::is_same_v<T, float> ? 8 : 16;
  const auto a = random_matrix<float>(16, depth, a_small_integer), b = random_matrix<float>(depth, 8, a_small_integer);
  auto d = random_matrix<float>(16, 8, a_small_integer), expected = d;
  for (int i = 0; i < 16 * 8; ++i)
    for (int k = 0; k < depth; ++k) expected[i] += a[i / 8 * depth + k] * b[k * 8 + i % 8];
  launch(instruction_kernel<T>, Grid{1, 32}, nullptr, a.data(), b.data(), d.data());
  return holds(d == expected, "d + a b");
}

bool multiply_adds() { return instruction<BFloat16>() && instruction<Half>() && instruction<float>(); }

// 16-bit matrices of which element (row, column) of matrix i is i * 64 + row * 8 + column.
template <bool kTransposed>
__global__ void load_matrices_kernel(uint32_t* loaded) {
  FASTNEST_SHARED(shared);
  auto* const matrices = reinterpret_cast<uint16_t*>(shared);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 8; ++i) matrices[lane * 8 + i] = static_cast<uint16_t>(lane * 8 + i);
  __syncwarp();
  uint32_t r[4];
  load_matrices<kTransposed>(r, matrices + lane * 8);
  for (int i = 0; i < 4; ++i) loaded[lane * 4 + i] = r[i];
}

bool load_both_ways() {
  bool right = true;
  for (const bool transposed : {false, true}) {
    std::vector<uint32_t> loaded(32 * 4);
    launch(transposed ? load_matrices_kernel<true> : load_matrices_kernel<false>, Grid{1, 32, 512}, nullptr,
           loaded.data());
    for (uint32_t lane = 0; lane < 32; ++lane)
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t g = lane / 4, t = lane % 4;
        const uint32_t first = i * 64 + (transposed ? 2 * t * 8 + g : g * 8 + 2 * t);
        right &= loaded[lane * 4 + i] == (first | (first + (transposed ? 8 : 1)) << 16);
      }
  }
  return holds(right, "the pair at (g, 2t) of every matrix, or of its transpose");
}

// What 16 bytes are, before and after waiting for each of two groups: two copies, the second of 8 bytes only.
__global__ void copies_kernel(const float* from, float* seen) {
  FASTNEST_SHARED(shared);
  auto* const to = reinterpret_cast<float*>(shared);
  for (int i = 0; i < 8; ++i) to[i] = -1;
  copy_16_bytes(to, from, 16);
  commit_copies();
  copy_16_bytes(to + 4, from + 4, 8);
  commit_copies();
  const auto look = [&](int time) {
    for (int i = 0; i < 8; ++i) seen[(threadIdx.x * 3 + time) * 8 + i] = to[i];
  };
  look(0);
  wait_for_copies<1>();
  look(1);
  wait_for_copies<0>();
  look(2);
}

bool copies() {
  alignas(16) const float from[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<float> seen(32 * 3 * 8);
  launch(copies_kernel, Grid{1, 32, 64}, nullptr, static_cast<const float*>(from), seen.data());
  const bool late = host::order == host::Order::kFirstThreadLateCopies;
  const std::vector<float> none(8, -1), all{1, 2, 3, 4, 5, 6, 0, 0}, first{1, 2, 3, 4, -1, -1, -1, -1};
  const auto at = [&](int time) { return std::vector<float>(seen.begin() + time * 8, seen.begin() + time * 8 + 8); };
  return holds(at(0) == (late ? none : all), "before the wait, as late or early as can be") &&
         holds(at(1) == (late ? first : all), "one group") && holds(at(2) == all, "both, filled up with zeros");
}

__global__ void shuffles_kernel(float* sums) {
  float sum = static_cast<float>(threadIdx.x * threadIdx.x);
  for (int lanes = 16; lanes; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  sums[threadIdx.x] = sum;
}

bool shuffles() {
  std::vector<float> sums(64);
  launch(shuffles_kernel, Grid{1, 64}, nullptr, sums.data());
  float expected[2] = {0, 0};
  for (int i = 0; i < 64; ++i) expected[i / 32] += static_cast<float>(i * i);
  bool right = true;
  for (int i = 0; i < 64; ++i) right &= sums[i] == expected[i / 32];
  return holds(right, "every lane has the sum of its warp");
}

// Every block of a cluster sums what all of them have in their shared memory.
__global__ void clusters_kernel(float* sums, int blocks) {
  FASTNEST_SHARED(shared);
  auto* const own = reinterpret_cast<float4*>(shared) + threadIdx.x;
  *own = make_float4(static_cast<float>(blockIdx.x), static_cast<float>(threadIdx.x), 1, 0);
  cluster_barrier();
  float4 sum = make_float4(0, 0, 0, static_cast<float>(cluster_rank()));
  for (int rank = 0; rank < blocks; ++rank) {
    const float4 one = load_from_cluster(own, rank);
    sum.x += one.x, sum.y += one.y, sum.z += one.z;
  }
  cluster_barrier();
  reinterpret_cast<float4*>(sums)[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

bool clusters() {
  constexpr int kBlocks = 4, kClusters = 2, kThreads = 64;
  std::vector<float4> sums(kBlocks * kClusters * kThreads);
  launch(clusters_kernel, Grid{kBlocks * kClusters, kThreads, kThreads * 16, kBlocks}, nullptr,
         reinterpret_cast<float*>(sums.data()), kBlocks);
  bool right = true;
  for (int i = 0; i < kBlocks * kClusters * kThreads; ++i) {
    const int block = i / kThreads, first = block / kBlocks * kBlocks;
    right &= sums[i].x == kBlocks * first + 6 && sums[i].y == kBlocks * (i % kThreads) && sums[i].z == kBlocks &&
             sums[i].w == block % kBlocks;
  }
  return holds(right, "sums over a cluster's blocks");
}

// Every thread of every block runs once, and a barrier is one.
__global__ void grid_kernel(int* counts) {
  FASTNEST_SHARED(shared);
  auto* const of_block = reinterpret_cast<int*>(shared);
  of_block[threadIdx.x] = 1;
  __syncthreads();
  int sum = 0;
  for (unsigned i = 0; i < blockDim.x; ++i) sum += of_block[i];
  counts[((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x] += sum;
}

bool grids() {
  Grid grid{3, 96, 96 * 4};
  grid.y = 2, grid.z = 5;
  std::vector<int> counts(3 * 2 * 5 * 96);
  launch(grid_kernel, grid, nullptr, counts.data());
  return holds(counts == std::vector<int>(counts.size(), 96), "every thread once, and it sees its block's others");
}

bool slices() {
  constexpr int kRows = 37, kSize = 300, kSlices = 4;
  const auto values = random_matrix<Half>(kRows, kSize, a_small_integer);
  std::vector<float> scratch(kSlices * kSize), expected(kSize);
  std::vector<Half> left(kSize / 3), right(kSize - kSize / 3);  // in which the totals land
  const auto size = static_cast<int64_t>(left.size());
  const Target targets[] = {{left.data(), 0, size}, {right.data(), size, kSize - size}};
  slice_rows<Half>(values.data(), kSize, scratch.data(), kSlices, kRows, kSize, nullptr);
  add_slices_to<Half>(targets, 2, scratch.data(), kSlices, kSize, nullptr);
  for (int i = 0; i < kRows * kSize; ++i) expected[i % kSize] += to_float(values[i]);
  bool same = true;
  for (int i = 0; i < kSize; ++i) same &= to_float(i < size ? left[i] : right[i - size]) == expected[i];
  return holds(same, "sums over rows, by way of slices");
}

}  // namespace

const Checks kInstructions = {
    {"multiply_adds", multiply_adds},
    {"load_both_ways", load_both_ways},
    {"copies", copies},
    {"shuffles", shuffles},
    {"clusters", clusters},
    {"grids", grids},
    {"slices", slices},
};

}  // namespace layer

int main(int, char** words) {
  using namespace layer;
  if (!std::strcmp(words[2], "last")) host::order = host::Order::kLastThreadEarlyCopies;
  for (const Checks& checks : {kInstructions, kProducts, kHopper, kBroken})
    if (const auto found = checks.find(words[1]); found != checks.end()) return found->second() ? 0 : 1;
  std::fprintf(stderr, "no check %s\n", words[1]);
  return 2;
}
