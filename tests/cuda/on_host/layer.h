// What the tests of the layer share: numbers, and a register of checks by name.
#pragma once

#include <cstdio>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "cuda/device.h"

namespace layer {

using namespace fastnest;
using namespace fastnest::cuda;

using Checks = std::map<std::string, bool (*)()>;
extern const Checks kInstructions, kProducts, kHopper, kBroken;

inline std::mt19937 generator(7);

inline float a_float() { return std::normal_distribution<float>()(generator); }
// Exact in every precision, as are sums of a few products.
inline float a_small_integer() { return static_cast<float>(std::uniform_int_distribution<int>(-8, 8)(generator)); }

template <class T>
std::vector<T> random_matrix(int rows, int columns, float (*draw)()) {
  std::vector<T> values;
  for (int i = 0; i < rows * columns; ++i) values.push_back(from_float<T>(draw()));
  return values;
}

inline bool holds(bool true_, const char* what) {
  if (!true_) std::fprintf(stderr, "not so: %s\n", what);
  return true_;
}

}  // namespace layer
