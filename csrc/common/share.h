// How an op's rows are shared among threads.
#pragma once

#include <cstdint>

namespace fastnest {

// A team works on rows [begin, end), `tiles` row tiles at a time, its members each on a part of the width.
struct Share {
  int64_t begin, end;
  int tiles;
  int parts;
  int slice;  // features that stay in the first-level cache between two products
};

// Where a team's sums over rows lie: the large ones may have a home in the gradients themselves, the rest follows here.
struct SumsPlace {
  float* homes[2] = {nullptr, nullptr};
  float* rest = nullptr;
};

}  // namespace fastnest
