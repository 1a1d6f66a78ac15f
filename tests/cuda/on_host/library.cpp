// What a test says of the device before it calls the kernels (by ctypes): the order of threads, and what there is.
#include "cuda/device.h"

using namespace fastnest::cuda::host;

#define FASTNEST_EXPORT extern "C" __attribute__((visibility("default")))

FASTNEST_EXPORT void fastnest_device(int last_thread_first, int multiprocessors, int shared_bytes, int clusters) {
  order = last_thread_first ? Order::kLastThreadEarlyCopies : Order::kFirstThreadLateCopies;
  device = {multiprocessors, shared_bytes, clusters != 0, clusters ? 90 : 80};
}

// Whether launches are only checked, and nothing runs.
FASTNEST_EXPORT void fastnest_only_launch(int only) { only_launch = only != 0; }
