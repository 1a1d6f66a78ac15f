// Tiles of weights on their way through shared memory: a ring of slots, filled by copies that go on while the block
// computes with those that are there.
#pragma once

#include "cuda/device.h"

namespace fastnest::cuda {

// A part of a matrix in memory, as far as the matrix goes: the rest of a tile is zero.
template <class T>
struct Part {
  const T* data;
  int64_t stride;     // elements between rows
  int rows, columns;  // that there are; may exceed the tile, or be negative
  bool aligned;       // every row begins at a multiple of 16 bytes
};

// Begins the copy of a tile [rows, columns], columns a multiple of 16 bytes. What is not aligned is copied at once.
template <class T>
FASTNEST_DEVICE void copy_tile(T* tile, int pitch, int rows, int columns, const Part<T>& part) {
  constexpr int kRun = 16 / sizeof(T);
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  if (part.aligned) {
    const int runs = columns / kRun;
#pragma unroll 1
    for (int i = thread; i < rows * runs; i += threads) {
      const int row = i / runs, column = i % runs * kRun;
      const int there = row < part.rows ? max(0, min(kRun, part.columns - column)) : 0;
      const T* from = there ? part.data + row * part.stride + column : part.data;
      copy_16_bytes(tile + row * pitch + column, from, there * static_cast<int>(sizeof(T)));
    }
  } else {
#pragma unroll 1
    for (int i = thread; i < rows * columns; i += threads) {
      const int row = i / columns, column = i % columns;
      const bool there = row < part.rows && column < part.columns;
      tile[row * pitch + column] = there ? part.data[row * part.stride + column] : T{};
    }
  }
}

// copy(slot) begins the copies of the next tile in the order that they are read, or nothing behind the last one.
template <class T, class Copy>
class Ring {
 public:
  FASTNEST_DEVICE Ring(T* slots, int slot_elements, int count, const Copy& copy)
      : slots_(slots), slot_elements_(slot_elements), count_(count), copy_(copy) {
    for (int i = 0; i < count - 1; ++i) fill(i);
  }

  // The next tile, there for all threads; the one before it is not read any more. A barrier.
  FASTNEST_DEVICE T* next() {
    if (count_ == 4) wait_for_copies<2>();
    else if (count_ == 3) wait_for_copies<1>();
    else wait_for_copies<0>();
    __syncthreads();
    const int now = at_;
    at_ = now + 1 == count_ ? 0 : now + 1;
    fill(now == 0 ? count_ - 1 : now - 1);
    return slots_ + now * slot_elements_;
  }

  FASTNEST_DEVICE void finish() { wait_for_copies<0>(); }

 private:
  FASTNEST_DEVICE void fill(int slot) {
    copy_(slots_ + slot * slot_elements_);
    commit_copies();
  }

  T* slots_;
  int slot_elements_, count_, at_ = 0;
  Copy copy_;
};

}  // namespace fastnest::cuda
