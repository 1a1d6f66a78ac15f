// Every product of mma.h on the layer, against plain matrices.
#include "cuda/mma.h"
#include "layer.h"

namespace layer {
namespace {

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

}  // namespace

const Checks kProducts = {
    {"bfloat16_product", product<BFloat16Product>},
    {"half_precision_product", product<HalfPrecisionProduct>},
    {"tf32_product", product<Tf32Product>},
    {"float32_product", product<Float32Product>},
    {"float32_is_exact", float32_is_exact},
    {"infinity_stays_in_float32", infinity_stays<Float32Product>},
    {"infinity_stays_in_tf32", infinity_stays<Tf32Product>},
};

}  // namespace layer
