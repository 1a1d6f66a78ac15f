// The layer on which kernels run here (blocks.cpp), and the products made of it, tested by kernels of a few lines:
//   layer CHECK first|last   ends with 0 where the check holds in that order of threads; breaks_* have to end badly.
#include <cstdio>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "cuda/mma.h"
#include "cuda/sums.h"

using namespace fastnest;
using namespace fastnest::cuda;

namespace {

std::mt19937 generator(7);

float a_float() { return std::normal_distribution<float>()(generator); }
// Exact in every precision, as are sums of a few products.
float a_small_integer() { return static_cast<float>(std::uniform_int_distribution<int>(-8, 8)(generator)); }

template <class T>
std::vector<T> random_matrix(int rows, int columns, float (*draw)()) {
  std::vector<T> values;
  for (int i = 0; i < rows * columns; ++i) values.push_back(from_float<T>(draw()));
  return values;
}

bool holds(bool true_, const char* what) {
  if (!true_) std::fprintf(stderr, "not so: %s\n", what);
  return true_;
}

// The instructions, each by the places of a lane's elements that device.h names.

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
  std::vector<float> scratch(kSlices * kSize), total(kSize), expected(kSize);
  add_rows<Half>(values.data(), kSize, scratch.data(), kSlices, kRows, kSize, total.data(), nullptr);
  // The total is of the values' type.
  for (int i = 0; i < kRows * kSize; ++i) expected[i % kSize] += to_float(values[i]);
  bool right = true;
  for (int i = 0; i < kSize; ++i) right &= to_float(reinterpret_cast<const Half*>(total.data())[i]) == expected[i];
  return holds(right, "sums over rows, by way of slices");
}

// The products of mma.h.

constexpr int kRows = 16, kColumns = 16, kDeep = 48;  // of d [rows, columns] = a [rows, deep] b [deep, columns]

// a and b as they are held in memory, or transposed; kTiles: a is first a tile d.
template <class P, bool kTransposed, bool kTiles>
__global__ void product_kernel(const typename P::Element* a, const typename P::Element* b, float* d) {
  using T = typename P::Element;
  constexpr int kAPitch = pitch_of(kTransposed ? kRows : kDeep), kBPitch = pitch_of(kTransposed ? kColumns : kDeep);
  FASTNEST_SHARED(shared);
  auto* const shared_a = reinterpret_cast<T*>(shared);
  auto* const shared_b = shared_a + (kTransposed ? kDeep : kRows) * kAPitch;
  const Lane lane = lane_of(static_cast<int>(threadIdx.x));
  for (int i = lane.index; i < kRows * kDeep; i += 32) {
    const int row = i / kDeep, k = i % kDeep;
    shared_a[kTransposed ? k * kAPitch + row : row * kAPitch + k] = a[i];
  }
  for (int i = lane.index; i < kColumns * kDeep; i += 32) {
    const int k = i / kColumns, column = i % kColumns;
    shared_b[kTransposed ? k * kBPitch + column : column * kBPitch + k] = b[i];
  }
  __syncwarp();
  float sums[2][4] = {};
  for (int k = 0; k < kDeep; k += P::kDepth) {
    typename P::A rows;
    typename P::B columns[2];
    if constexpr (kTiles) {
      float tiles[P::kDepth / 8][4];
      for (int j = 0; j < P::kDepth / 8; ++j)
        for (int i = 0; i < 4; ++i)
          tiles[j][i] = to_float(a[(lane.g + i / 2 * 8) * kDeep + k + j * 8 + 2 * lane.t + i % 2]);
      rows = P::from_tiles(tiles);
    } else if constexpr (kTransposed) {
      rows = P::load_a_transposed(shared_a + k * kAPitch, kAPitch, lane);
    } else {
      rows = P::load_a(shared_a + k, kAPitch, lane);
    }
    if constexpr (kTransposed) P::load_b_transposed(columns, shared_b + k * kBPitch, kBPitch, lane);
    else P::load_b(columns, shared_b + k, kBPitch, lane);
    P::add(sums[0], rows, columns[0]);
    P::add(sums[1], rows, columns[1]);
  }
  for (int j = 0; j < 2; ++j)
    for (int i = 0; i < 4; ++i) d[(lane.g + i / 2 * 8) * kColumns + j * 8 + 2 * lane.t + i % 2] = sums[j][i];
}

template <class P, bool kTransposed, bool kTiles>
std::vector<float> product_of(const std::vector<typename P::Element>& a, const std::vector<typename P::Element>& b) {
  const int bytes = (kDeep * pitch_of(kRows) + kDeep * pitch_of(kColumns)) * static_cast<int>(sizeof(a[0]));
  std::vector<float> d(kRows * kColumns, NAN);
  launch(product_kernel<P, kTransposed, kTiles>, Grid{1, 32, bytes}, nullptr, a.data(), b.data(), d.data());
  return d;
}

template <class T>
std::vector<double> plain_product(const std::vector<T>& a, const std::vector<T>& b) {
  std::vector<double> d(kRows * kColumns);
  for (int i = 0; i < kRows * kColumns; ++i)
    for (int k = 0; k < kDeep; ++k)
      d[i] += static_cast<double>(to_float(a[i / kColumns * kDeep + k])) * to_float(b[k * kColumns + i % kColumns]);
  return d;
}

template <class P>
bool product() {
  using T = typename P::Element;
  const auto a = random_matrix<T>(kRows, kDeep, a_small_integer),
             b = random_matrix<T>(kDeep, kColumns, a_small_integer);
  const auto plain = plain_product(a, b);
  const std::vector<float> expected(plain.begin(), plain.end());
  return holds(product_of<P, false, false>(a, b) == expected, "load_a, load_b") &&
         holds(product_of<P, true, false>(a, b) == expected, "load_a_transposed, load_b_transposed") &&
         holds(product_of<P, false, true>(a, b) == expected, "from_tiles");
}

template <class P>
double worst_error(const std::vector<float>& a, const std::vector<float>& b) {
  const auto plain = plain_product(a, b);
  const auto d = product_of<P, false, false>(a, b);
  double worst = 0;
  for (int i = 0; i < kRows * kColumns; ++i) worst = std::max(worst, std::abs(d[i] - plain[i]));
  return worst;
}

// Of sums of kDeep products of numbers near 1: float32 rounds each to within 2^-24 of it, TF32 its factors to 2^-12.
bool float32_is_exact() {
  const auto a = random_matrix<float>(kRows, kDeep, a_float), b = random_matrix<float>(kDeep, kColumns, a_float);
  double largest = 0;
  for (int i = 0; i < kRows * kColumns; ++i) {
    double sum = 0;
    for (int k = 0; k < kDeep; ++k) sum += std::abs(a[i / kColumns * kDeep + k] * b[k * kColumns + i % kColumns]);
    largest = std::max(largest, sum);
  }
  const double exact = worst_error<Float32Product>(a, b), rounded = worst_error<Tf32Product>(a, b);
  std::printf("errors: float32 %.3g, TF32 %.3g, of sums up to %.3g\n", exact, rounded, largest);
  return holds(exact <= largest * 0x1p-22, "Float32Product has float32's error") &&
         holds(rounded <= largest * 0x1p-11 && rounded > largest * 0x1p-17, "Tf32Product has TF32's");
}

template <class P>
bool infinity_stays() {
  auto a = random_matrix<float>(kRows, kDeep, a_float), b = random_matrix<float>(kDeep, kColumns, a_float);
  for (auto& value : b) value = std::abs(value) + 1;
  a[3 * kDeep + 5] = INFINITY, a[7 * kDeep + 20] = -INFINITY, a[9 * kDeep] = NAN;
  const auto d = product_of<P, false, false>(a, b);
  bool right = true;
  for (int i = 0; i < kRows * kColumns; ++i) {
    const int row = i / kColumns;
    right &= row == 3 ? d[i] == INFINITY : row == 7 ? d[i] == -INFINITY : row == 9 ? std::isnan(d[i]) : isfinite(d[i]);
  }
  return holds(right, "infinities and NaN in their rows, nothing of them elsewhere");
}

// What the layer has to see.

// Without a barrier each reads what its neighbour below wrote, or is about to.
__global__ void missing_barrier_kernel(float* seen) {
  FASTNEST_SHARED(shared);
  auto* const values = reinterpret_cast<float*>(shared);
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  seen[threadIdx.x] = threadIdx.x ? values[threadIdx.x - 1] : -1;
}
bool breaks_missing_barrier() {
  std::vector<float> seen(64);
  launch(missing_barrier_kernel, Grid{1, 64, 256}, nullptr, seen.data());
  for (int i = 0; i < 64; ++i)
    if (seen[i] != static_cast<float>(i - 1)) return holds(false, "each sees its neighbour's");
  return true;
}

__global__ void barrier_of_some_kernel() {
  if (threadIdx.x < 32) __syncthreads();
}
bool breaks_barrier_of_some() { return !launch(barrier_of_some_kernel, Grid{1, 64}, nullptr); }

__global__ void diverging_kernel() {
  FASTNEST_SHARED(shared);
  uint32_t r[4];
  if (threadIdx.x < 16) load_matrices<false>(r, shared);
  else load_matrices<true>(r, shared);
}
bool breaks_diverging_lanes() { return !launch(diverging_kernel, Grid{1, 32, 16}, nullptr); }

__global__ void behind_shared_kernel(float* seen) {
  FASTNEST_SHARED(shared);
  seen[threadIdx.x] = reinterpret_cast<const float*>(shared)[threadIdx.x + 1];
}
bool breaks_behind_shared_memory() {
  std::vector<float> seen(32);
  return !launch(behind_shared_kernel, Grid{1, 32, 128}, nullptr, seen.data());
}

__global__ void behind_memory_kernel(const float* from) {
  FASTNEST_SHARED(shared);
  copy_16_bytes(shared, from + 4 * threadIdx.x, 16);
  wait_for_copies<0>();
  commit_copies();
  wait_for_copies<0>();
}
bool breaks_behind_memory() {
  std::vector<float> from(4 * 31);
  return !launch(behind_memory_kernel, Grid{1, 32, 16}, nullptr, static_cast<const float*>(from.data()));
}

__global__ void unaligned_copy_kernel(const float* from) {
  FASTNEST_SHARED(shared);
  copy_16_bytes(shared, from + 1, 16);
}
bool breaks_unaligned_copy() {
  alignas(16) const float from[8] = {};
  return !launch(unaligned_copy_kernel, Grid{1, 32, 16}, nullptr, static_cast<const float*>(from));
}

__global__ void unaligned_load_kernel() {
  FASTNEST_SHARED(shared);
  uint32_t r[4];
  load_matrices<false>(r, shared + 8);
}
bool breaks_unaligned_load() { return !launch(unaligned_load_kernel, Grid{1, 32, 64}, nullptr); }

__global__ void unfinished_copy_kernel(const float* from) {
  FASTNEST_SHARED(shared);
  copy_16_bytes(shared, from, 16);
  commit_copies();
}
bool breaks_unfinished_copy() {
  alignas(16) const float from[4] = {};
  return !launch(unfinished_copy_kernel, Grid{1, 32, 16}, nullptr, static_cast<const float*>(from));
}

__global__ void nothing_kernel() {}
bool breaks_too_much_shared_memory() {
  return !launch(nothing_kernel, Grid{1, 32, host::device.shared_bytes + 1}, nullptr);
}
bool breaks_cluster_where_there_is_none() {
  host::device.clusters = false;
  return !launch(nothing_kernel, Grid{2, 32, 0, 2}, nullptr);
}

const std::map<std::string, bool (*)()> kChecks = {
    {"multiply_adds", multiply_adds},
    {"load_both_ways", load_both_ways},
    {"copies", copies},
    {"shuffles", shuffles},
    {"clusters", clusters},
    {"grids", grids},
    {"slices", slices},
    {"bfloat16_product", product<BFloat16Product>},
    {"half_precision_product", product<HalfPrecisionProduct>},
    {"tf32_product", product<Tf32Product>},
    {"float32_product", product<Float32Product>},
    {"float32_is_exact", float32_is_exact},
    {"infinity_stays_in_float32", infinity_stays<Float32Product>},
    {"infinity_stays_in_tf32", infinity_stays<Tf32Product>},
    {"breaks_missing_barrier", breaks_missing_barrier},
    {"breaks_barrier_of_some", breaks_barrier_of_some},
    {"breaks_diverging_lanes", breaks_diverging_lanes},
    {"breaks_behind_shared_memory", breaks_behind_shared_memory},
    {"breaks_behind_memory", breaks_behind_memory},
    {"breaks_unaligned_copy", breaks_unaligned_copy},
    {"breaks_unaligned_load", breaks_unaligned_load},
    {"breaks_unfinished_copy", breaks_unfinished_copy},
    {"breaks_too_much_shared_memory", breaks_too_much_shared_memory},
    {"breaks_cluster_where_there_is_none", breaks_cluster_where_there_is_none},
};

}  // namespace

int main(int, char** words) {
  if (!std::strcmp(words[2], "last")) host::order = host::Order::kLastThreadEarlyCopies;
  return kChecks.at(words[1])() ? 0 : 1;
}
