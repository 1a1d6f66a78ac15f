// What launchers know of a device and say of a launch.
#pragma once

#include <cstdint>

namespace fastnest::cuda {

constexpr int64_t divide_up(int64_t size, int64_t by) { return (size + by - 1) / by; }

struct Device {
  int multiprocessors;
  int shared_bytes;  // that a block may have
  bool clusters;
  int capability = 90;  // 10 major + minor
};

struct Grid {
  int64_t x;
  int threads;
  int shared_bytes = 0;
  int cluster = 1;  // blocks along x that run together
  int64_t y = 1, z = 1;
  bool overlaps = false;  // with the launch before, whose kernel lets the next start (hopper/instructions.h)
};

}  // namespace fastnest::cuda
