// Tensor maps by layout: encoding one takes the driver a microsecond, and a network asks for the same ones every call.
#pragma once

#include <cstddef>
#include <unordered_map>

#include "cuda/hopper/driver.h"

namespace fastnest::cuda::hopper {

struct HashOfLayout {
  size_t operator()(const BoxLayout& layout) const {
    size_t hash = reinterpret_cast<size_t>(layout.data) + static_cast<size_t>(layout.element);
    const auto mix = [&](size_t value) { hash = (hash ^ value) * 0x9e3779b97f4a7c15u, hash ^= hash >> 29; };
    for (int i = 0; i < layout.dimensions; ++i) mix(layout.sizes[i]), mix(layout.strides[i]), mix(layout.box[i]);
    return hash;
  }
};

// Null, or why there is no map of that layout. A map holds an address and sizes alone, so that one of memory that is
// used again is as good as new.
inline const char* find_map(const BoxLayout& layout, TensorMap* map) {
  constexpr size_t kMostMaps = 4096;
  thread_local std::unordered_map<BoxLayout, TensorMap, HashOfLayout> maps;
  if (const auto known = maps.find(layout); known != maps.end()) {
    *map = known->second;
    return nullptr;
  }
  const char* const error = encode(layout, map);
  if (error) return error;
  if (maps.size() == kMostMaps) maps.clear();
  maps.emplace(layout, *map);
  return nullptr;
}

}  // namespace fastnest::cuda::hopper
