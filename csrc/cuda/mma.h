// Products of tiles by the tensor cores, one warp at a time, in every precision by the same names:
//   d [16, 8] += a [16, kDepth] b [kDepth, 8], with d in float32, as the lanes of a warp hold them (device.h).
// With g = lane / 4 and t = lane % 4, a lane has of d the elements (g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1).
//
// The depth of a product has no order, so that TF32 takes columns 2t and 2t+1 where the hardware's tiles have t and
// t+4: every lane's elements are then neighbours in memory, and a tile d can be the a of another product as it is.
#pragma once

#include "cuda/device.h"

namespace fastnest::cuda {

struct Lane {
  int index, g, t;
};
FASTNEST_DEVICE Lane lane_of(int thread) { return {thread % 32, thread % 32 / 4, thread % 4}; }

// Elements between rows of a tile in shared memory with `columns` of them (a multiple of 8): the padding puts rows in
// different banks, for 16-bit matrices (16 bytes) as for pairs of floats (32 bytes).
constexpr int pitch_of(int columns) { return columns + 8; }

// bfloat16 and float16.
template <class T>
struct HalfProduct {
  using Element = T;
  static constexpr int kDepth = 16;
  struct A {
    uint32_t r[4];
  };
  struct B {
    uint32_t r[2];
  };

  // Of kDepth / 8 neighbouring tiles d.
  static FASTNEST_DEVICE A from_tiles(const float (*d)[4]) {
    return {
        {pack<T>(d[0][0], d[0][1]), pack<T>(d[0][2], d[0][3]), pack<T>(d[1][0], d[1][1]), pack<T>(d[1][2], d[1][3])}};
  }
  // From shared memory [rows, depth], or transposed [depth, rows].
  static FASTNEST_DEVICE A load_a(const T* tile, int pitch, Lane lane) {
    A a;
    load_matrices<false>(a.r, tile + lane.index % 16 * pitch + lane.index / 16 * 8);
    return a;
  }
  static FASTNEST_DEVICE A load_a_transposed(const T* tile, int pitch, Lane lane) {
    A a;
    load_matrices<true>(a.r, tile + (lane.index / 16 * 8 + lane.index % 8) * pitch + lane.index / 8 % 2 * 8);
    return a;
  }
  // Two neighbouring b, columns 0..7 and 8..15, from shared memory [columns, depth], or transposed [depth, columns].
  static FASTNEST_DEVICE void load_b(B (&b)[2], const T* tile, int pitch, Lane lane) {
    uint32_t r[4];
    load_matrices<false>(r, tile + (lane.index / 16 * 8 + lane.index % 8) * pitch + lane.index / 8 % 2 * 8);
    b[0] = {{r[0], r[1]}}, b[1] = {{r[2], r[3]}};
  }
  static FASTNEST_DEVICE void load_b_transposed(B (&b)[2], const T* tile, int pitch, Lane lane) {
    uint32_t r[4];
    load_matrices<true>(r, tile + lane.index % 16 * pitch + lane.index / 16 * 8);
    b[0] = {{r[0], r[1]}}, b[1] = {{r[2], r[3]}};
  }
  static FASTNEST_DEVICE void negate(A& a) {
    for (int i = 0; i < 4; ++i) a.r[i] ^= 0x80008000u;
  }
  static FASTNEST_DEVICE void add(float (&d)[4], const A& a, const B& b) { multiply_add<T>(d, a.r, b.r); }
};

// float32 rounded to TF32, or (kExact) as a high and a low half of 11 bits each: three products have float32's error.
template <bool kExact>
struct FloatProduct {
  using Element = float;
  static constexpr int kDepth = 8;
  static constexpr int kHalves = kExact ? 2 : 1;
  struct A {
    uint32_t r[kHalves][4];
  };
  struct B {
    uint32_t r[kHalves][2];
  };

  template <int kCount>
  static FASTNEST_DEVICE void split(uint32_t (&r)[kHalves][kCount], int i, float value) {
    r[0][i] = to_tf32(value);
    if constexpr (kExact) r[1][i] = to_tf32(value - as_float(r[0][i]));
  }
  static FASTNEST_DEVICE A a_of(float upper_first, float lower_first, float upper_second, float lower_second) {
    A a;
    split(a.r, 0, upper_first), split(a.r, 1, lower_first), split(a.r, 2, upper_second), split(a.r, 3, lower_second);
    return a;
  }
  static FASTNEST_DEVICE B b_of(float first, float second) {
    B b;
    split(b.r, 0, first), split(b.r, 1, second);
    return b;
  }

  static FASTNEST_DEVICE A from_tiles(const float (*d)[4]) { return a_of(d[0][0], d[0][2], d[0][1], d[0][3]); }
  static FASTNEST_DEVICE A load_a(const float* tile, int pitch, Lane lane) {
    const float2 upper = *reinterpret_cast<const float2*>(tile + lane.g * pitch + 2 * lane.t);
    const float2 lower = *reinterpret_cast<const float2*>(tile + (lane.g + 8) * pitch + 2 * lane.t);
    return a_of(upper.x, lower.x, upper.y, lower.y);
  }
  static FASTNEST_DEVICE A load_a_transposed(const float* tile, int pitch, Lane lane) {
    const float *first = tile + 2 * lane.t * pitch, *second = first + pitch;
    return a_of(first[lane.g], first[lane.g + 8], second[lane.g], second[lane.g + 8]);
  }
  static FASTNEST_DEVICE void load_b(B (&b)[2], const float* tile, int pitch, Lane lane) {
    const float2 left = *reinterpret_cast<const float2*>(tile + lane.g * pitch + 2 * lane.t);
    const float2 right = *reinterpret_cast<const float2*>(tile + (lane.g + 8) * pitch + 2 * lane.t);
    b[0] = b_of(left.x, left.y), b[1] = b_of(right.x, right.y);
  }
  static FASTNEST_DEVICE void load_b_transposed(B (&b)[2], const float* tile, int pitch, Lane lane) {
    const float *first = tile + 2 * lane.t * pitch, *second = first + pitch;
    b[0] = b_of(first[lane.g], second[lane.g]), b[1] = b_of(first[lane.g + 8], second[lane.g + 8]);
  }
  static FASTNEST_DEVICE void negate(A& a) {
    for (int i = 0; i < kHalves * 4; ++i) a.r[i / 4][i % 4] ^= 0x80000000u;
  }
  static FASTNEST_DEVICE void add(float (&d)[4], const A& a, const B& b) {
    if constexpr (kExact) {
      float low[4] = {0, 0, 0, 0};
      multiply_add_tf32(low, a.r[1], b.r[0]);
      multiply_add_tf32(low, a.r[0], b.r[1]);
      // An infinity has no low half: what that makes of it is not to be seen.
      for (int i = 0; i < 4; ++i) d[i] += isfinite(low[i]) ? low[i] : 0.0f;
    }
    multiply_add_tf32(d, a.r[0], b.r[0]);
  }
};

using BFloat16Product = HalfProduct<BFloat16>;
using HalfPrecisionProduct = HalfProduct<Half>;
using Tf32Product = FloatProduct<false>;
using Float32Product = FloatProduct<true>;

}  // namespace fastnest::cuda
