// Hopper's instructions on the CPU (cuda/hopper/instructions.h): barriers and loads by TMA on shared memory as it is on
// a GPU, products of warpgroups by reading descriptors.
#include "cuda/hopper/instructions.h"

#include <cstring>
#include <deque>
#include <map>
#include <vector>

#include "blocks.h"

namespace fastnest::cuda {

using namespace host;

namespace {

constexpr uint32_t kFirstAddress = 0x480;

bool loads_are_late() { return order == Order::kFirstThreadLateCopies; }
bool products_are_late() { return !loads_are_late(); }

unsigned char* at(uint32_t address, int bytes, int rank = cluster_rank()) {
  const int64_t offset = static_cast<int64_t>(address) - kFirstAddress;
  if (offset < 0 || offset + bytes > shared_bytes()) fail("an address behind shared memory");
  return shared_memory_of(rank) + offset;
}

// A barrier as it lies in shared memory.
struct State {
  static constexpr uint8_t kValid = 0xb5;
  uint8_t valid, parity, arrivals, pending;
  int32_t bytes;
  void end_phase_if_over() {
    if (pending || bytes) return;
    parity ^= 1;
    pending = arrivals;
  }
};
static_assert(sizeof(State) == 8);

State& barrier_at(uint32_t address, int rank = cluster_rank()) {
  if (address % 8) fail("a barrier is not aligned to 8 bytes");
  auto& state = *reinterpret_cast<State*>(at(address, 8, rank));
  if (state.valid != State::kValid) fail("a barrier that nobody has initialised");
  return state;
}

void arrive_at(State& state) {
  if (!state.pending) fail("more arrivals at a barrier than its phase has");
  --state.pending;
  state.end_phase_if_over();
}

struct Load {
  uint32_t barrier;
  int rank;
  std::function<void()> copy;
  int bytes;
};

struct Store {
  std::function<void()> copy;
  bool committed = false;
};

struct Multiplication {
  hopper::Operands operands;
  std::vector<const uint32_t*> a;
  std::vector<float*> d;
};

struct Warpgroup {
  bool begun = false;
  std::deque<std::vector<Multiplication>> groups = std::deque<std::vector<Multiplication>>(1);  // the last one is open
};

struct {
  bool overlaps;
  std::map<int, bool> waited;  // by thread, for the launch before
  std::vector<Load> loads;
  std::map<int, std::vector<std::vector<std::function<void()>>>> stores;  // by thread, groups; the last one is open
  std::map<std::pair<int, int>, Warpgroup> warpgroups;                    // by rank and number
} now;

void finish(const Load& load) {
  load.copy();
  State& state = barrier_at(load.barrier, load.rank);
  state.bytes -= load.bytes;
  state.end_phase_if_over();
}

void begin(Load load) {
  if (loads_are_late()) now.loads.push_back(std::move(load));
  else finish(load);
}

void finish_loads(uint32_t barrier, int rank) {
  for (size_t i = 0; i < now.loads.size();) {
    if (now.loads[i].barrier == barrier && now.loads[i].rank == rank) {
      const Load load = std::move(now.loads[i]);
      now.loads.erase(now.loads.begin() + static_cast<ptrdiff_t>(i));
      finish(load);
    } else {
      ++i;
    }
  }
}

uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

int bytes_of_element(Element element) { return element == Element::kFloat32 ? 4 : 2; }

// Every element of a box: function(shared address, pointer or null where the tensor has none).
template <class Function>
void each_of_box(uint32_t shared, const hopper::BoxLayout& layout, const int* first, const Function& function) {
  int index[hopper::kMostDimensions] = {};
  const int bytes = bytes_of_element(layout.element);
  for (uint32_t address = shared;; address += bytes) {
    const char* from = static_cast<const char*>(layout.data);
    bool inside = true;
    for (int i = 0; i < layout.dimensions; ++i) {
      const int64_t coordinate = int64_t{first[i]} + index[i];
      inside &= coordinate >= 0 && coordinate < layout.sizes[i];
      from += coordinate * layout.strides[i];
    }
    function(swizzled(address), inside ? const_cast<char*>(from) : nullptr);
    int i = 0;
    while (i < layout.dimensions && ++index[i] == layout.box[i]) index[i++] = 0;
    if (i == layout.dimensions) return;
  }
}

int box_bytes(const hopper::BoxLayout& layout) {
  int bytes = bytes_of_element(layout.element);
  for (int i = 0; i < layout.dimensions; ++i) bytes *= layout.box[i];
  return bytes;
}

void load(uint32_t to, const hopper::TensorMap& map, uint32_t barrier, int ranks, std::vector<int> first) {
  if (to % 1024) fail("a box of swizzled rows is not aligned to 1024 bytes");
  if (static_cast<int>(first.size()) != map.layout.dimensions)
    fail("a box of other dimensions than the tensor map has");
  if (now.overlaps && !now.waited[thread_index()]) fail("a load of what the launch before may not have written yet");
  const int bytes = box_bytes(map.layout);
  for (int rank = 0; rank < blocks_in_cluster(); ++rank) {
    if (!(ranks >> rank & 1)) continue;
    at(to, bytes, rank);
    begin({barrier, rank,
           [=, layout = map.layout] {
             const int size = bytes_of_element(layout.element);
             each_of_box(to, layout, first.data(), [&](uint32_t address, const void* from) {
               if (from) std::memcpy(at(address, size, rank), from, size);
               else std::memset(at(address, size, rank), 0, size);
             });
           },
           bytes});
  }
}

// The element (row, byte) of an operand in rows of 128 bytes, or where its rows are along the other side.
uint32_t element_address(uint64_t descriptor, bool transposed, int row, int k, int size) {
  const uint32_t start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4,
                 stride = (descriptor >> 32 & 0x3fff) << 4;
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7)) fail("a descriptor without 128-byte swizzle, or with an offset");
  if (transposed) return swizzled(start + row / 64 * leading + k / 8 * stride + k % 8 * 128 + row % 64 * 2);
  return swizzled(start + row / 8 * stride + row % 8 * 128 + k * size);
}

float number(Element element, const void* bits) {
  uint32_t word = 0;
  std::memcpy(&word, bits, bytes_of_element(element));
  if (element == Element::kBFloat16) return to_float(BFloat16{static_cast<uint16_t>(word)});
  if (element == Element::kFloat16) return to_float(Half{static_cast<uint16_t>(word)});
  return as_float(word & ~0x1fffu);  // the tensor core reads the upper 19 bits
}

void run(const Multiplication& one) {
  const hopper::Operands& operands = one.operands;
  const int size = bytes_of_element(operands.element), depth = 32 / size;
  std::vector<float> a(kWarpgroup / 2 * depth), b(operands.columns * depth);
  for (int row = 0; row < 64; ++row)
    for (int k = 0; k < depth; ++k) {
      if (one.a.empty()) {
        a[row * depth + k] = number(operands.element, at(element_address(operands.a, false, row, k, size), size));
      } else {
        // Register (k / half, row / 8) of lane (row % 8, which 4 bytes).
        const int half = 16 / size, in_register = 4 / size;
        const int lane = row / 16 * 32 + row % 8 * 4 + k % half / in_register;
        const uint32_t* const held = &one.a[lane][k / half * 2 + row % 16 / 8];
        a[row * depth + k] = number(operands.element, reinterpret_cast<const char*>(held) + k % in_register * size);
      }
    }
  for (int column = 0; column < operands.columns; ++column)
    for (int k = 0; k < depth; ++k)
      b[column * depth + k] =
          number(operands.element, at(element_address(operands.b, operands.transposed, column, k, size), size));
  for (int thread = 0; thread < kWarpgroup; ++thread)
    for (int i = 0; i < operands.columns / 2; ++i) {
      const int row = thread / 32 * 16 + thread % 32 / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + thread % 4 * 2 + i % 2;
      double sum = operands.add ? one.d[thread][i] : 0;
      for (int k = 0; k < depth; ++k) sum += static_cast<double>(a[row * depth + k]) * b[column * depth + k];
      one.d[thread][i] = static_cast<float>(sum);
    }
}

Warpgroup& own_warpgroup() { return now.warpgroups[{cluster_rank(), static_cast<int>(threadIdx.x) / kWarpgroup}]; }

struct Given {
  const hopper::Operands* operands;
  const uint32_t* a;
};

void multiply_together(const void* const* given, void* const* wanted) {
  Warpgroup& own = own_warpgroup();
  if (!own.begun) fail("a product without begin_products before it");
  const auto given_by = [&](int thread) { return static_cast<const Given*>(given[thread]); };
  Multiplication one{*given_by(0)->operands, {}, {}};
  for (int thread = 0; thread < kWarpgroup; ++thread) {
    const hopper::Operands& operands = *given_by(thread)->operands;
    if (std::memcmp(&operands.a, &one.operands.a, 2 * sizeof(operands.a))) fail("threads give different descriptors");
    if (given_by(thread)->a) one.a.push_back(given_by(thread)->a);
    one.d.push_back(static_cast<float*>(wanted[thread]));
  }
  if (products_are_late()) own.groups.back().push_back(std::move(one));
  else run(one);
}

}  // namespace

uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(shared) - shared_memory_of(cluster_rank())) +
         kFirstAddress;
}

namespace host {

void begin_cluster(bool overlaps) {
  now = {};
  now.overlaps = overlaps;
}

void end_thread() {
  for (const auto& group : now.stores[thread_index()])
    if (!group.empty()) fail("the thread ends before its stores do");
}

}  // namespace host

namespace hopper {

void trap() { fail("a trap"); }

void init_barrier(Address barrier, int arrivals) {
  if (barrier % 8 || arrivals < 1 || arrivals > 255) fail("init_barrier: alignment or arrivals");
  *reinterpret_cast<State*>(at(barrier, 8)) = {State::kValid, 0, static_cast<uint8_t>(arrivals),
                                               static_cast<uint8_t>(arrivals), 0};
}
void arrive(Address barrier) { arrive_at(barrier_at(barrier)); }
void arrive_in_cluster(Address barrier, int rank) { arrive_at(barrier_at(barrier, rank)); }
void arrive_expecting(Address barrier, int bytes) {
  State& state = barrier_at(barrier);
  state.bytes += bytes;
  arrive_at(state);
}
void wait(Address barrier, int parity, volatile int*, int) {
  const int rank = cluster_rank();
  // Loads may end in any order: those of this barrier not before a thread would wait in vain, so that one who takes
  // another phase for its own goes on with what is not there.
  const auto over = [=] { return barrier_at(barrier, rank).parity != parity; };
  wait_until([=] {
    if (over()) return true;
    finish_loads(barrier, rank);
    return over();
  });
}
void named_barrier(int name, int threads) { meet_at(name, threads); }

void load_box(Address to, const TensorMap& map, Address barrier, int c0, int c1) {
  load(to, map, barrier, 1 << cluster_rank(), {c0, c1});
}
void load_box(Address to, const TensorMap& map, Address barrier, int c0, int c1, int c2, int c3) {
  load(to, map, barrier, 1 << cluster_rank(), {c0, c1, c2, c3});
}
void load_box_multicast(Address to, const TensorMap& map, Address barrier, int blocks, int c0, int c1) {
  load(to, map, barrier, blocks, {c0, c1});
}
void load_bytes(Address to, const void* from, Address barrier, int bytes) {
  if (to % 16 || reinterpret_cast<uintptr_t>(from) % 16 || bytes % 16 || bytes < 16)
    fail("load_bytes: not of 16 bytes, or not aligned to them");
  const int rank = cluster_rank();
  at(to, bytes);
  begin({barrier, rank, [=] { std::memcpy(at(to, bytes, rank), from, bytes); }, bytes});
}
void store_box(const TensorMap& map, Address from, int c0, int c1) {
  if (from % 1024) fail("a box of swizzled rows is not aligned to 1024 bytes");
  at(from, box_bytes(map.layout));
  const int rank = cluster_rank();
  const auto copy = [=, layout = map.layout] {
    const int first[] = {c0, c1}, size = bytes_of_element(layout.element);
    each_of_box(from, layout, first, [&](uint32_t address, void* to) {
      if (to) std::memcpy(to, at(address, size, rank), size);
    });
  };
  auto& groups = now.stores[thread_index()];
  if (groups.empty()) groups.emplace_back();
  if (loads_are_late()) groups.back().push_back(copy);
  else copy(), groups.back().push_back([] {});
}
void commit_stores() { now.stores[thread_index()].emplace_back(); }
void wait_for_stores(int left) {
  auto& groups = now.stores[thread_index()];
  while (static_cast<int>(groups.size()) - 1 > left) {
    for (const auto& copy : groups.front()) copy();
    groups.erase(groups.begin());
  }
}

void load_matrices(uint32_t (&r)[4], Address row) { cuda::load_matrices<false>(r, at(row, 16)); }

void wait_for_previous() { now.waited[thread_index()] = true; }

void multiply(const Operands& operands, const uint32_t* a, float* d) {
  const Given given{&operands, a};
  in_warpgroup("multiply", &given, d, multiply_together);
}
void begin_products() {
  in_warpgroup("begin_products", nullptr, nullptr,
               [](const void* const*, void* const*) { own_warpgroup().begun = true; });
}
void commit_products() {
  in_warpgroup("commit_products", nullptr, nullptr,
               [](const void* const*, void* const*) { own_warpgroup().groups.emplace_back(); });
}
void wait_for_products(int left) {
  in_warpgroup("wait_for_products", &left, nullptr, [](const void* const* given, void* const*) {
    auto& groups = own_warpgroup().groups;
    while (static_cast<int>(groups.size()) - 1 > *static_cast<const int*>(given[0])) {
      for (const Multiplication& one : groups.front()) run(one);
      groups.pop_front();
    }
    own_warpgroup().begun = false;
  });
}

const char* encode(const BoxLayout& layout, TensorMap* map) {
  const auto bad = [&](int i) {
    return layout.sizes[i] < 1 || layout.sizes[i] > int64_t{1} << 32 || layout.box[i] < 1 || layout.box[i] > 256 ||
           (i && (layout.strides[i] % 16 || layout.strides[i] >= int64_t{1} << 40));
  };
  const int bytes = bytes_of_element(layout.element);
  if (reinterpret_cast<uintptr_t>(layout.data) % 16 || layout.strides[0] != bytes || layout.box[0] * bytes != 128)
    return "a tensor map of an unaligned tensor, or of a box that is not 128 bytes wide";
  for (int i = 0; i < layout.dimensions; ++i)
    if (bad(i)) return "a tensor map of a size, stride or box that the driver does not take";
  map->layout = layout;
  return nullptr;
}

}  // namespace hopper
}  // namespace fastnest::cuda
