// Blocks on the CPU (cuda/device.h): the fibres, what they wait for, and what the lanes of a warp do together.
#include "blocks.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define FASTNEST_ASAN 1
#else
#define FASTNEST_ASAN 0
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace fastnest::cuda {
namespace host {

Order order = Order::kFirstThreadLateCopies;
Device device{132, 227 << 10, true};
bool only_launch = false;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "blocks on the CPU: %s (block %u %u %u, thread %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z,
               threadIdx.x);
  std::abort();
}

namespace {

constexpr size_t kStack = 256 << 10;

// Where threads meet: `arrived` of them in this round; a thread that waits is free when the round is over.
struct Meeting {
  int members = 0, arrived = 0;
  int64_t round = 0;
};

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Fibre {
  ucontext_t context;
  void* stack = nullptr;
  uint3 thread, block;
  int rank = 0;  // of its block in the cluster
  Meeting* meeting = nullptr;
  int64_t round = 0;
  const std::function<bool()>* until = nullptr;  // it waits for this, or for a meeting
  bool done = false;
  std::vector<Copy> copies;    // not done yet
  std::vector<size_t> groups;  // how many copies each group that was committed has
  size_t open = 0;             // copies of the group that was not
  bool waits() const { return (until && !(*until)()) || (meeting && meeting->round == round); }
};

// Threads that do something together: a warp, or a warpgroup.
struct Team {
  Meeting meeting;
  const char* called = nullptr;  // what its threads call
  const void* given[kWarpgroup];
  void* wanted[kWarpgroup];
};

struct Cluster {
  std::vector<Fibre> fibres;
  std::vector<Team> warps, warpgroups;
  std::vector<Meeting> blocks;
  std::map<std::pair<int, int>, Meeting> named;  // by rank and number
  Meeting all;
  std::vector<unsigned char*> shared;
  int shared_bytes = 0;
  const std::function<void()>* kernel = nullptr;
  ucontext_t caller;
  const void* caller_stack = nullptr;
  size_t caller_stack_size = 0;
  size_t current = 0;  // the fibre that runs
  size_t left = 0;     // those that have not ended
};

Cluster* cluster;

Fibre& self() { return cluster->fibres[cluster->current]; }
int thread() { return static_cast<int>(self().thread.x); }
int lane() { return thread() % kWarp; }
Team& warp() { return cluster->warps[cluster->current / kWarp]; }

void show_current() {
  threadIdx = self().thread;
  blockIdx = self().block;
}

// Leaves one context for another, with its stack; `leaving`: it will not come back. AddressSanitizer has to be told.
void change(ucontext_t* from, ucontext_t* to, const void* stack, size_t size, bool leaving) {
#if FASTNEST_ASAN
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(leaving ? nullptr : &fake, stack, size);
#endif
  swapcontext(from, to);
#if FASTNEST_ASAN
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void enter() {
#if FASTNEST_ASAN
  const void* stack = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &size);
  if (!cluster->caller_stack) cluster->caller_stack = stack, cluster->caller_stack_size = size;
#endif
  show_current();
}

// Runs the next thread that does not wait, the neighbour first.
void next(bool leaving) {
  const size_t count = cluster->fibres.size(), from = cluster->current;
  const bool first = order == Order::kFirstThreadLateCopies;
  for (size_t step = 1; step <= count; ++step) {
    const size_t at = first ? (from + step) % count : (from + count - step) % count;
    Fibre& fibre = cluster->fibres[at];
    if (fibre.done || fibre.waits()) continue;
    if (at == from) return;
    cluster->current = at;
    change(&cluster->fibres[from].context, &fibre.context, fibre.stack, kStack, leaving);
    show_current();
    return;
  }
  if (cluster->left) fail("threads wait for others that never come");
  const Cluster& all = *cluster;
  change(&cluster->fibres[from].context, &cluster->caller, all.caller_stack, all.caller_stack_size, true);
}

void body() {
  enter();
  (*cluster->kernel)();
  Fibre& fibre = self();
  if (!fibre.copies.empty()) fail("the thread ends before its copies do");
  end_thread();
  fibre.done = true;
  --cluster->left;
  next(true);
}

bool arrive(Meeting& meeting) {
  if (++meeting.arrived < meeting.members) return false;
  meeting.arrived = 0;
  ++meeting.round;
  return true;
}

void meet(Meeting& meeting) {
  Fibre& fibre = self();
  fibre.meeting = &meeting;
  fibre.round = meeting.round;
  if (!arrive(meeting)) next(false);
}

// The threads of a team call a function together: the last one to come does it for all.
template <class Function>
void together(Team& all, int member, const char* name, const void* given, void* wanted, const Function& function) {
  if (all.meeting.arrived == 0) all.called = name;
  if (all.called != name) fail("lanes of a warp call different functions");
  all.given[member] = given;
  all.wanted[member] = wanted;
  Fibre& fibre = self();
  fibre.meeting = &all.meeting;
  fibre.round = all.meeting.round;
  if (all.meeting.arrived + 1 == all.meeting.members) function(all);
  if (!arrive(all.meeting)) next(false);
}

void together(const char* name, const void* given, void* wanted, void (*function)(Team&)) {
  together(warp(), lane(), name, given, wanted, function);
}

}  // namespace

unsigned char* shared_memory() { return cluster->shared[self().rank]; }

unsigned char* shared_memory_of(int rank) { return cluster->shared[rank]; }
int shared_bytes() { return cluster->shared_bytes; }
int blocks_in_cluster() { return static_cast<int>(cluster->blocks.size()); }
int thread_index() { return static_cast<int>(cluster->current); }

void wait_until(const std::function<bool()>& so) {
  Fibre& fibre = self();
  if (so()) return;
  fibre.until = &so;
  next(false);
  fibre.until = nullptr;
}

Team& warpgroup() {
  return cluster
      ->warpgroups[self().rank * (cluster->warpgroups.size() / cluster->blocks.size()) + thread() / kWarpgroup];
}
void in_warpgroup(const char* name, const void* given, void* wanted, Together function) {
  together(warpgroup(), thread() % kWarpgroup, name, given, wanted,
           [&](Team& all) { function(all.given, all.wanted); });
}

void meet_at(int name, int threads) {
  Meeting& meeting = cluster->named[{self().rank, name}];
  if (meeting.arrived && meeting.members != threads) fail("a barrier of different numbers of threads");
  meeting.members = threads;
  meet(meeting);
}

void run(const Grid& grid, const std::function<void()>& kernel) {
  const int threads = grid.threads, size = grid.cluster;
  gridDim = {static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z)};
  blockDim = {static_cast<unsigned>(threads), 1, 1};
  if (grid.shared_bytes > device.shared_bytes) fail("more shared memory than the device has");
  if (size > 1 && !device.clusters) fail("a device without clusters");
  if (grid.x % size) fail("the grid is not made of whole clusters");
  if (threads % kWarp) fail("a block is not made of whole warps");
  if (threads > 1024) fail("more threads than a block can have");
  if (size > 8) fail("a cluster of more blocks than every part takes");
  if (grid.x < 1 || grid.x > 0x7fffffff) fail("a grid without blocks along x, or with too many");
  if (std::min(grid.y, grid.z) < 1 || std::max(grid.y, grid.z) > 0xffff)
    fail("a grid without blocks along y or z, or with too many");
  if (only_launch) return;
  const size_t count = static_cast<size_t>(threads) * size;
  auto* stacks = static_cast<unsigned char*>(
      mmap(nullptr, count * kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (stacks == MAP_FAILED) fail("no memory for stacks");
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; x += size) {
        Cluster now;
        now.kernel = &kernel;
        now.left = count;
        now.fibres.resize(count);
        now.warps.resize(count / kWarp);
        now.blocks.resize(size);
        now.all.members = static_cast<int>(count);
        for (Team& one : now.warps) one.meeting.members = kWarp;
        now.warpgroups.resize(size * ((threads + kWarpgroup - 1) / kWarpgroup));
        for (Team& one : now.warpgroups) one.meeting.members = kWarpgroup;
        now.shared_bytes = grid.shared_bytes;
        std::vector<std::unique_ptr<unsigned char, decltype(&std::free)>> shared;
        for (int rank = 0; rank < size; ++rank) {
          now.blocks[rank].members = threads;
          // Of just this size, so that AddressSanitizer sees what is behind it.
          void* memory = nullptr;
          if (grid.shared_bytes && posix_memalign(&memory, 128, grid.shared_bytes)) fail("no shared memory");
          if (memory) std::memset(memory, 0xff, grid.shared_bytes);
          shared.emplace_back(static_cast<unsigned char*>(memory), &std::free);
          now.shared.push_back(shared.back().get());
        }
        cluster = &now;
        begin_cluster(grid.overlaps);
        for (size_t i = 0; i < count; ++i) {
          Fibre& fibre = now.fibres[i];
          fibre.rank = static_cast<int>(i / threads);
          fibre.thread = {static_cast<unsigned>(i % threads), 0, 0};
          fibre.block = {x + static_cast<unsigned>(fibre.rank), y, z};
          fibre.stack = stacks + i * kStack;
          getcontext(&fibre.context);
          fibre.context.uc_stack = {.ss_sp = fibre.stack, .ss_flags = 0, .ss_size = kStack};
          fibre.context.uc_link = nullptr;
          makecontext(&fibre.context, body, 0);
        }
        now.current = order == Order::kFirstThreadLateCopies ? 0 : count - 1;
        change(&now.caller, &self().context, self().stack, kStack, false);
        cluster = nullptr;
#if FASTNEST_ASAN
        // The frames that no fibre returned from are none any more, here and where this memory is used again.
        __asan_unpoison_memory_region(stacks, count * kStack);
#endif
      }
  munmap(stacks, count * kStack);
}

}  // namespace host

using namespace host;

float to_float(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
float to_float(Half x) {
  _Float16 value;
  std::memcpy(&value, &x, 2);
  return static_cast<float>(value);
}
template <>
float from_float<float>(float x) {
  return x;
}
template <>
BFloat16 from_float<BFloat16>(float x) {
  if (std::isnan(x)) return {0x7fff};
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
Half from_float<Half>(float x) {
  const auto value = static_cast<_Float16>(x);
  Half half;
  std::memcpy(&half, &value, 2);
  return half;
}
// To the nearest of 11 significant bits, ties away from zero.
uint32_t to_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (std::isnan(x)) return 0x7fffffff;
  return std::isinf(x) ? bits : (bits + 0x1000) & ~0x1fffu;
}

namespace {

struct Operands {
  const uint32_t *a, *b;
};

template <class T>
float half_of(uint32_t both, int which) {
  return to_float(T{static_cast<uint16_t>(which ? both >> 16 : both & 0xffff)});
}
// The tensor core reads the upper 19 bits.
float as_tf32(uint32_t bits) {
  bits &= ~0x1fffu;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// d [16, 8] += a [16, kDepth] b [kDepth, 8], given how the lanes hold a and b.
template <int kDepth, class A, class B>
void multiply_add_tiles(Team& all, A a_at, B b_at) {
  float a[16][kDepth], b[kDepth][8];
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < kDepth; ++k) a[row][k] = a_at(row, k);
  for (int k = 0; k < kDepth; ++k)
    for (int column = 0; column < 8; ++column) b[k][column] = b_at(k, column);
  for (int lane = 0; lane < kWarp; ++lane) {
    auto* d = static_cast<float*>(all.wanted[lane]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      double sum = d[i];
      for (int k = 0; k < kDepth; ++k) sum += static_cast<double>(a[row][k]) * b[k][column];
      d[i] = static_cast<float>(sum);
    }
  }
}

template <class T>
void multiply_add_16_bit(Team& all) {
  const auto of = [&](int lane) { return *static_cast<const Operands*>(all.given[lane]); };
  multiply_add_tiles<16>(
      all, [&](int row, int k) { return half_of<T>(of(row % 8 * 4 + k % 8 / 2).a[row / 8 + k / 8 * 2], k % 2); },
      [&](int k, int column) { return half_of<T>(of(column * 4 + k % 8 / 2).b[k / 8], k % 2); });
}

void multiply_add_8_deep(Team& all) {
  const auto of = [&](int lane) { return *static_cast<const Operands*>(all.given[lane]); };
  multiply_add_tiles<8>(
      all, [&](int row, int k) { return as_tf32(of(row % 8 * 4 + k % 4).a[row / 8 + k / 4 * 2]); },
      [&](int k, int column) { return as_tf32(of(column * 4 + k % 4).b[k / 4]); });
}

template <bool kTransposed>
void load_matrices_of_warp(Team& all) {
  for (int lane = 0; lane < kWarp; ++lane) {
    auto* r = static_cast<uint32_t*>(all.wanted[lane]);
    for (int matrix = 0; matrix < 4; ++matrix) {
      const int g = lane / 4, t = lane % 4;
      const auto at = [&](int row, int column) -> uint32_t {
        return static_cast<const uint16_t*>(all.given[matrix * 8 + row])[column];
      };
      r[matrix] = kTransposed ? at(2 * t, g) | at(2 * t + 1, g) << 16 : at(g, 2 * t) | at(g, 2 * t + 1) << 16;
    }
  }
}

void exchange(Team& all) {
  for (int lane = 0; lane < kWarp; ++lane) {
    const auto* own = static_cast<const std::pair<float, int>*>(all.given[lane]);
    *static_cast<float*>(all.wanted[lane]) =
        static_cast<const std::pair<float, int>*>(all.given[lane ^ own->second])->first;
  }
}

void finish(const Copy& copy) {
  std::memset(static_cast<char*>(copy.to) + copy.bytes, 0, 16 - copy.bytes);
  if (copy.bytes) std::memcpy(copy.to, copy.from, copy.bytes);
}

}  // namespace

template <>
void multiply_add<BFloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const Operands operands{a, b};
  together("multiply_add<BFloat16>", &operands, d, multiply_add_16_bit<BFloat16>);
}
template <>
void multiply_add<Half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const Operands operands{a, b};
  together("multiply_add<Half>", &operands, d, multiply_add_16_bit<Half>);
}
void multiply_add_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const Operands operands{a, b};
  together("multiply_add_tf32", &operands, d, multiply_add_8_deep);
}
template <>
void load_matrices<false>(uint32_t (&r)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16) fail("load_matrices: a row is not aligned to 16 bytes");
  together("load_matrices", row, r, load_matrices_of_warp<false>);
}
template <>
void load_matrices<true>(uint32_t (&r)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16) fail("load_matrices: a row is not aligned to 16 bytes");
  together("load_matrices transposed", row, r, load_matrices_of_warp<true>);
}

void copy_16_bytes(void* shared, const void* global, int bytes) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16)
    fail("copy_16_bytes: not aligned to 16 bytes");
  if (bytes < 0 || bytes > 16) fail("copy_16_bytes: not 0 to 16 bytes");
  Fibre& fibre = self();
  fibre.copies.push_back({shared, global, bytes});
  if (order == Order::kLastThreadEarlyCopies) finish(fibre.copies.back());
  ++fibre.open;
}
void commit_copies() {
  Fibre& fibre = self();
  fibre.groups.push_back(fibre.open);
  fibre.open = 0;
}
void wait_for_copies(int groups) {
  Fibre& fibre = self();
  size_t done = 0;
  while (static_cast<int>(fibre.groups.size()) > groups) {
    for (size_t i = 0; i < fibre.groups.front(); ++i, ++done)
      if (order == Order::kFirstThreadLateCopies) finish(fibre.copies[done]);
    fibre.groups.erase(fibre.groups.begin());
  }
  fibre.copies.erase(fibre.copies.begin(), fibre.copies.begin() + static_cast<ptrdiff_t>(done));
}

int cluster_rank() { return self().rank; }
void cluster_barrier() { meet(cluster->all); }
float4 load_from_cluster(const float4* own, int rank) {
  const auto at = reinterpret_cast<const unsigned char*>(own) - cluster->shared[self().rank];
  return *reinterpret_cast<const float4*>(cluster->shared[rank] + at);
}

}  // namespace fastnest::cuda

using namespace fastnest::cuda::host;

void __syncthreads() { meet(cluster->blocks[self().rank]); }
void __syncwarp() {
  together("__syncwarp", nullptr, nullptr, [](Team&) {});
}
float __shfl_sync(unsigned mask, float value, int lane) {
  return __shfl_xor_sync(mask, value, lane ^ static_cast<int>(threadIdx.x) % kWarp);
}
float __shfl_xor_sync(unsigned mask, float value, int lanes) {
  if (mask != 0xffffffffu) fail("__shfl_xor_sync: of some lanes only");
  const std::pair<float, int> given{value, lanes};
  float wanted;
  together("__shfl_xor_sync", &given, &wanted, fastnest::cuda::exchange);
  return wanted;
}
