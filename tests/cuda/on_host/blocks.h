// What the layer's parts (blocks.cpp, hopper.cpp) know of the cluster that runs.
#pragma once

#include <functional>

#include "cuda/device.h"

namespace fastnest::cuda::host {

constexpr int kWarp = 32, kWarpgroup = 128;

// Ends the process.
[[noreturn]] void fail(const char* what);

// A block's shared memory, by its rank in the cluster, and its bytes; the rank of the thread that runs.
unsigned char* shared_memory_of(int rank);
int shared_bytes();
int blocks_in_cluster();
int thread_index();

// The thread that runs goes on when this is so.
void wait_until(const std::function<bool()>& so);

// What the threads of a warpgroup call together: the last one to come does it for all, given and wanted by thread.
using Together = void (*)(const void* const* given, void* const* wanted);
void in_warpgroup(const char* name, const void* given, void* wanted, Together function);

// Of threads that meet at a barrier of their block by number.
void meet_at(int name, int threads);

// Hopper's part of the layer (hopper.cpp): what begins and ends with a cluster and with a thread.
void begin_cluster(bool overlaps);
void end_thread();

}  // namespace fastnest::cuda::host
