// Hopper's instructions, each by what csrc/cuda/hopper/fragment.h says of it, and mistakes that have to be seen.
#include <type_traits>

#include "cuda/hopper/fragment.h"
#include "cuda/hopper/ring.h"
#include "layer.h"

namespace layer {
namespace {

using namespace fastnest::cuda::hopper;

constexpr Element kElement[] = {Element::kFloat32, Element::kBFloat16, Element::kFloat16};
template <class T>
constexpr Element element_of() {
  return std::is_same_v<T, float> ? kElement[0] : std::is_same_v<T, BFloat16> ? kElement[1] : kElement[2];
}

// A matrix [rows, columns] whose boxes are `tall` rows of 128 bytes.
template <class T>
TensorMap map_of(const std::vector<T>& matrix, int rows, int columns, int tall) {
  TensorMap map;
  const char* const error = find_map({.data = matrix.data(),
                                      .element = element_of<T>(),
                                      .dimensions = 2,
                                      .sizes = {columns, rows},
                                      .strides = {sizeof(T), columns * static_cast<int64_t>(sizeof(T))},
                                      .box = {kChunk<T>, tall}},
                                     &map);
  if (error) std::fprintf(stderr, "%s\n", error);
  return map;
}

// The element of swizzled rows, from a multiple of 1024 on.
template <class T>
T& in_rows(unsigned char* rows, int row, int column) {
  const int piece = column * static_cast<int>(sizeof(T)) / 16, inside = column * static_cast<int>(sizeof(T)) % 16;
  return *reinterpret_cast<T*>(rows + row * kRowBytes + (piece ^ row % kRowsOfSwizzle) * 16 + inside);
}

unsigned char* aligned(unsigned char* shared) {
  return shared + (align_rows(shared_address(shared)) - shared_address(shared));
}

// Loads 8 rows of a box, hands what it sees to `seen`, doubles it, and stores it.
__global__ void boxes_kernel(const TensorMap from, const TensorMap to, int column, int row, float* seen) {
  FASTNEST_SHARED(shared);
  unsigned char* const rows = aligned(shared);
  const Address address = align_rows(shared_address(shared)), barrier = address + 1024;
  if (threadIdx.x == 0) {
    init_barrier(barrier, 1);
    show_barriers();
    arrive_expecting(barrier, 1024);
    load_box(address, from, barrier, column, row);
  }
  __syncthreads();
  wait(barrier, 0, nullptr, 1);
  for (int i = static_cast<int>(threadIdx.x); i < 8 * 64; i += 32) {
    auto& value = in_rows<BFloat16>(rows, i / 64, i % 64);
    seen[i] = to_float(value);
    value = from_float<BFloat16>(2 * to_float(value));
  }
  show_shared();
  __syncthreads();
  if (threadIdx.x == 0) {
    store_box(to, address, column, row);
    commit_stores();
    wait_for_stores<0>();
  }
}

bool boxes() {
  constexpr int kRows = 11, kColumns = 88;
  const auto matrix = random_matrix<BFloat16>(kRows, kColumns, a_small_integer);
  bool right = true;
  for (const auto& [column, row] : {std::pair(0, 0), std::pair(64, 5), std::pair(-8, -3)}) {
    auto out = random_matrix<BFloat16>(kRows, kColumns, a_small_integer);
    const auto before = out;
    std::vector<float> seen(8 * 64);
    launch(boxes_kernel, Grid{1, 32, 1024 + 1024 + 8}, nullptr, map_of(matrix, kRows, kColumns, 8),
           map_of(out, kRows, kColumns, 8), column, row, seen.data());
    for (int i = 0; i < 8; ++i)
      for (int j = 0; j < 64; ++j) {
        const int r = row + i, c = column + j;
        const bool inside = r >= 0 && r < kRows && c >= 0 && c < kColumns;
        right &= seen[i * 64 + j] == (inside ? to_float(matrix[r * kColumns + c]) : 0);
      }
    for (int r = 0; r < kRows; ++r)
      for (int c = 0; c < kColumns; ++c) {
        const bool stored = r >= row && r < row + 8 && c >= column && c < column + 64;
        const int at = r * kColumns + c;
        right &= to_float(out[at]) == (stored ? 2 * to_float(matrix[at]) : to_float(before[at]));
      }
  }
  return holds(right, "a box, 0 outside of the tensor, and stored where there is one");
}

// Each of two blocks loads half of the rows for both; a stage is free when both have read it.
__global__ void multicast_kernel(const TensorMap from, float* seen) {
  FASTNEST_SHARED(shared);
  unsigned char* const rows = aligned(shared);
  const Address address = align_rows(shared_address(shared));
  const RingBarriers barriers{address + 2048};
  const int rank = cluster_rank();
  if (threadIdx.x == 0) {
    barriers.init(1, 1, 2);
    show_barriers();
  }
  cluster_barrier();
  RingPlace place{1};
  for (int step = 0; step < 3; ++step, place.advance()) {
    if (threadIdx.x == 0) {
      wait(barriers.empty(0), place.parity ^ 1, nullptr, 1);
      arrive_expecting(barriers.full(0), 2048);
      load_box_multicast(address + rank * 1024, from, barriers.full(0), 3, 0, step * 16 + rank * 8);
    }
    wait(barriers.full(0), place.parity, nullptr, 2);
    for (int i = static_cast<int>(threadIdx.x); i < 16 * 64; i += 32)
      seen[(rank * 3 + step) * 16 * 64 + i] = to_float(in_rows<BFloat16>(rows, i / 64, i % 64));
    __syncwarp();
    if (threadIdx.x < 2) arrive_in_cluster(barriers.empty(0), static_cast<int>(threadIdx.x));
  }
  cluster_barrier();
}

bool multicast() {
  const auto matrix = random_matrix<BFloat16>(48, 64, a_small_integer);
  std::vector<float> seen(2 * 48 * 64);
  launch(multicast_kernel, Grid{2, 32, 1024 + 2048 + 16, 2}, nullptr, map_of(matrix, 48, 64, 8), seen.data());
  bool right = true;
  for (int i = 0; i < 2 * 48 * 64; ++i) right &= seen[i] == to_float(matrix[i % (48 * 64)]);
  return holds(right, "both blocks see what each loads for both");
}

// d = a b of 64 rows, N columns and 128 bytes of depth: a from shared memory and, below it, from registers.
template <class T, int N, bool kTransposed>
__global__ void product_kernel(const T* a, const T* b, float* d) {
  constexpr int kDepth = kChunk<T>;
  FASTNEST_SHARED(shared);
  unsigned char *const rows = aligned(shared), *const of_b = rows + 64 * kRowBytes;
  const Address address = align_rows(shared_address(shared)), address_of_b = address + 64 * kRowBytes;
  for (int i = static_cast<int>(threadIdx.x); i < 64 * kDepth; i += 128)
    in_rows<T>(rows, i / kDepth, i % kDepth) = a[i];
  for (int i = static_cast<int>(threadIdx.x); i < N * kDepth; i += 128) {
    const int n = i / kDepth, k = i % kDepth;
    // N-major: 64 columns of all depths, then the next 64.
    (kTransposed ? in_rows<T>(of_b + n / 64 * kDepth * kRowBytes, k, n % 64) : in_rows<T>(of_b, n, k)) = b[i];
  }
  show_shared();
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = warp_index();
  float sums[2][N / 2];
  uint32_t in_registers[kSteps][4];
  load_chunk(in_registers, own_row(address, warp, lane), lane);
  keep(in_registers);
  begin_products();
  for (int step = 0; step < kSteps; ++step) {
    const Descriptor columns = kTransposed
                                   ? after(columns_at(address_of_b, kDepth * kRowBytes), step * 2 * kSwizzleBytes)
                                   : after(rows_at(address_of_b), step * kStepBytes);
    using P = Product<T, N>;
    P::template from_shared<kTransposed>(sums[0], after(rows_at(address), step * kStepBytes), columns, step > 0);
    P::template from_registers<kTransposed>(sums[1], in_registers[step], columns, step > 0);
  }
  commit_products();
  wait_for_products<0>();
  keep(sums[0]), keep(sums[1]);
  for (int i = 0; i < N / 2; ++i)
    for (int way = 0; way < 2; ++way) {
      const int row = warp * 16 + lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      d[(way * 64 + row) * N + column] = sums[way][i];
    }
}

template <class T, int N, bool kTransposed = false>
bool product() {
  constexpr int kDepth = kChunk<T>;
  const auto a = random_matrix<T>(64, kDepth, a_small_integer), b = random_matrix<T>(N, kDepth, a_small_integer);
  std::vector<float> d(2 * 64 * N);
  const int bytes = 1024 + (64 + (kTransposed ? (N + 63) / 64 * kDepth : N)) * kRowBytes;
  launch(product_kernel<T, N, kTransposed>, Grid{1, 128, bytes}, nullptr, a.data(), b.data(), d.data());
  bool right = true;
  for (int row = 0; row < 64; ++row)
    for (int column = 0; column < N; ++column) {
      float sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += to_float(a[row * kDepth + k]) * to_float(b[column * kDepth + k]);
      right &= d[row * N + column] == sum && d[(64 + row) * N + column] == sum;
    }
  return holds(right, "a b, with a in shared memory and in registers");
}

bool warpgroup_products() {
  return product<BFloat16, 48>() && product<Half, 96>() && product<float, 144>() && product<BFloat16, 192>() &&
         product<BFloat16, 64, true>() && product<Half, 128, true>() && product<BFloat16, 192, true>();
}

// Mistakes.

__global__ void without_init_kernel() {
  FASTNEST_SHARED(shared);
  arrive(shared_address(shared));
}
bool breaks_barrier_without_init() { return !launch(without_init_kernel, Grid{1, 32, 8}, nullptr); }

__global__ void unloaded_kernel() {
  FASTNEST_SHARED(shared);
  const Address barrier = shared_address(shared);
  if (threadIdx.x == 0) init_barrier(barrier, 1), arrive_expecting(barrier, 16);
  __syncthreads();
  wait(barrier, 0, nullptr, 1);
}
bool breaks_bytes_that_never_come() { return !launch(unloaded_kernel, Grid{1, 32, 8}, nullptr); }

__global__ void early_load_kernel(const TensorMap from) {
  FASTNEST_SHARED(shared);
  const Address address = align_rows(shared_address(shared));
  if (threadIdx.x == 0) init_barrier(address + 1024, 1), load_box(address, from, address + 1024, 0, 0);
}
bool breaks_load_before_the_launch_before() {
  const auto matrix = random_matrix<BFloat16>(8, 64, a_small_integer);
  Grid grid{1, 32, 1024 + 1024 + 8};
  grid.overlaps = true;
  return !launch(early_load_kernel, grid, nullptr, map_of(matrix, 8, 64, 8));
}

__global__ void not_begun_kernel() {
  FASTNEST_SHARED(shared);
  float d[24];
  const Descriptor rows = rows_at(align_rows(shared_address(shared)));
  Product<BFloat16, 48>::from_shared(d, rows, rows, false);
}
bool breaks_product_not_begun() { return !launch(not_begun_kernel, Grid{1, 128, 16 << 10}, nullptr); }

__global__ void unfinished_store_kernel(const TensorMap to) {
  FASTNEST_SHARED(shared);
  if (threadIdx.x == 0) store_box(to, align_rows(shared_address(shared)), 0, 0), commit_stores();
}
bool breaks_unfinished_store() {
  const auto matrix = random_matrix<BFloat16>(8, 64, a_small_integer);
  return !launch(unfinished_store_kernel, Grid{1, 32, 2048}, nullptr, map_of(matrix, 8, 64, 8));
}

// Sums are read without waiting for them: seen where products are late.
__global__ void unwaited_kernel(float* d) {
  FASTNEST_SHARED(shared);
  const Descriptor rows = rows_at(align_rows(shared_address(shared)));
  float sums[24] = {};
  begin_products();
  Product<BFloat16, 48>::from_shared(sums, rows, rows, true);
  commit_products();
  d[threadIdx.x] = sums[0];
  wait_for_products<0>();
}
bool breaks_unwaited_product() {
  std::vector<float> d(128);
  launch(unwaited_kernel, Grid{1, 128, 16 << 10}, nullptr, d.data());
  return holds(d[0] != 0, "shared memory begins as NaN, and so do products of it");
}

}  // namespace

const Checks kHopper = {
    {"boxes", boxes},
    {"multicast", multicast},
    {"warpgroup_products", warpgroup_products},
    {"breaks_barrier_without_init", breaks_barrier_without_init},
    {"breaks_bytes_that_never_come", breaks_bytes_that_never_come},
    {"breaks_load_before_the_launch_before", breaks_load_before_the_launch_before},
    {"breaks_product_not_begun", breaks_product_not_begun},
    {"breaks_unfinished_store", breaks_unfinished_store},
    {"breaks_unwaited_product", breaks_unwaited_product},
};

}  // namespace layer
