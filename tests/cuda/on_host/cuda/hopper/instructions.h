// csrc/cuda/hopper/instructions.h and wgmma.h for the CPU (hopper.cpp). What a GPU leaves open is made the worst of, as
// in device.h: loads by TMA are done at once, or only when a thread waits for their barrier; products are done when
// they are waited for, or at once, the other way round, so that a stage that is given back too early is overwritten.
#pragma once

#include <cstdint>

#include "cuda/device.h"
#include "cuda/hopper/tensor_map.h"

#define FASTNEST_HOPPER 1

namespace fastnest::cuda {

// Shared memory begins at an address that is a multiple of 128 only.
uint32_t shared_address(const void* shared);

}  // namespace fastnest::cuda

namespace fastnest::cuda::hopper {

using Address = uint32_t;
using Descriptor = uint64_t;

[[noreturn]] void trap();
inline int warp_index() { return static_cast<int>(threadIdx.x) / 32; }

void init_barrier(Address barrier, int arrivals);
inline void show_barriers() {}
void arrive(Address barrier);
void arrive_in_cluster(Address barrier, int rank);
void arrive_expecting(Address barrier, int bytes);
void wait(Address barrier, int parity, volatile int* note, int where);
void named_barrier(int name, int threads);

inline void prefetch(const TensorMap&) {}
void load_box(Address to, const TensorMap& map, Address barrier, int c0, int c1);
void load_box(Address to, const TensorMap& map, Address barrier, int c0, int c1, int c2, int c3);
void load_box_multicast(Address to, const TensorMap& map, Address barrier, int blocks, int c0, int c1);
void load_bytes(Address to, const void* from, Address barrier, int bytes);
inline void show_shared() {}
void store_box(const TensorMap& map, Address from, int c0, int c1);
void commit_stores();
void wait_for_stores(int groups);
template <int kGroups>
void wait_for_stores() {
  wait_for_stores(kGroups);
}

void load_matrices(uint32_t (&r)[4], Address row);

template <class T>
uint32_t pack_relu(float first, float second) {
  return pack<T>(first < 0 ? 0 : first, second < 0 ? 0 : second);
}

template <int kCount>
void give_registers() {
  static_assert(kCount % 8 == 0 && kCount >= 24);
}
template <int kCount>
void take_registers() {
  static_assert(kCount % 8 == 0 && kCount <= 240);
}

inline void let_next_start() {}
void wait_for_previous();

// Products.

// One instruction's operands, of all the threads of a warpgroup; a: of each, or null where it lies in shared memory.
struct Operands {
  Element element;
  int columns;
  bool transposed, add;
  Descriptor a, b;
};
void multiply(const Operands& operands, const uint32_t* a, float* d);
void begin_products();
void commit_products();
void wait_for_products(int groups);
template <int kGroups>
void wait_for_products() {
  wait_for_products(kGroups);
}
template <int N>
void keep(float (&)[N]) {}
template <int N>
void keep(uint32_t (&)[N][4]) {}

template <class T>
inline constexpr Element element_of_product = Element::kFloat32;
template <>
inline constexpr Element element_of_product<BFloat16> = Element::kBFloat16;
template <>
inline constexpr Element element_of_product<Half> = Element::kFloat16;

template <class T, int N>
struct Product {
  static_assert(N % 8 == 0 && N <= 256);
  template <bool kTransposed = false>
  static void from_shared(float (&d)[N / 2], Descriptor a, Descriptor b, bool add) {
    multiply({element_of_product<T>, N, kTransposed, add, a, b}, nullptr, d);
  }
  template <bool kTransposed = false>
  static void from_registers(float (&d)[N / 2], const uint32_t (&a)[4], Descriptor b, bool add) {
    multiply({element_of_product<T>, N, kTransposed, add, 0, b}, a, d);
  }
};

}  // namespace fastnest::cuda::hopper
