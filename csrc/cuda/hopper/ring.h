// Stages of shared memory that a producer fills and consumers empty in turns, with two barriers each.
#pragma once

#include "cuda/hopper/instructions.h"

namespace fastnest::cuda::hopper {

// The barriers of a ring's stages, in shared memory: full 0, empty 0, full 1, ...
struct RingBarriers {
  Address first;
  static constexpr int kBytes = 16;  // of a stage
  FASTNEST_DEVICE Address full(int stage) const { return first + stage * kBytes; }
  FASTNEST_DEVICE Address empty(int stage) const { return full(stage) + 8; }
  FASTNEST_DEVICE void init(int stages, int arrivals_full, int arrivals_empty) const {
    for (int stage = 0; stage < stages; ++stage)
      init_barrier(full(stage), arrivals_full), init_barrier(empty(stage), arrivals_empty);
  }
};

// Where one is in the ring: the stage, and the parity of the phase in which it is filled. A producer waits for the
// phase before, which of a barrier that was never used is over. Who waits must have waited for the phase before, too:
// a parity is that of the last phase but one as well. So a stage has the same consumers every time.
struct RingPlace {
  int stages;
  int stage = 0, parity = 0;
  FASTNEST_DEVICE void advance(int by = 1) {
    stage += by;
    while (stage >= stages) stage -= stages, parity ^= 1;
  }
};

}  // namespace fastnest::cuda::hopper
