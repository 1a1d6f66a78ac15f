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

FASTNEST_DEVICE float2 load_two(const float* p) { return *reinterpret_cast<const float2*>(p); }

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
  static FASTNEST_DEVICE void add(float (&d)[4], const A& a, const B& b) { multiply_add<T>(d, a.r, b.r); }
};

// float32 rounded to TF32.
struct Tf32Product {
  using Element = float;
  static constexpr int kDepth = 8;
  struct A {
    uint32_t r[4];
  };
  struct B {
    uint32_t r[2];
  };

  static FASTNEST_DEVICE A a_of(float upper_first, float lower_first, float upper_second, float lower_second) {
    return {{to_tf32(upper_first), to_tf32(lower_first), to_tf32(upper_second), to_tf32(lower_second)}};
  }
  static FASTNEST_DEVICE B b_of(float first, float second) { return {{to_tf32(first), to_tf32(second)}}; }

  static FASTNEST_DEVICE A from_tiles(const float (*d)[4]) { return a_of(d[0][0], d[0][2], d[0][1], d[0][3]); }
  static FASTNEST_DEVICE A load_a(const float* tile, int pitch, Lane lane) {
    const float2 upper = load_two(tile + lane.g * pitch + 2 * lane.t);
    const float2 lower = load_two(tile + (lane.g + 8) * pitch + 2 * lane.t);
    return a_of(upper.x, lower.x, upper.y, lower.y);
  }
  static FASTNEST_DEVICE A load_a_transposed(const float* tile, int pitch, Lane lane) {
    const float *first = tile + 2 * lane.t * pitch, *second = first + pitch;
    return a_of(first[lane.g], first[lane.g + 8], second[lane.g], second[lane.g + 8]);
  }
  static FASTNEST_DEVICE void load_b(B (&b)[2], const float* tile, int pitch, Lane lane) {
    const float2 left = load_two(tile + lane.g * pitch + 2 * lane.t);
    const float2 right = load_two(tile + (lane.g + 8) * pitch + 2 * lane.t);
    b[0] = b_of(left.x, left.y), b[1] = b_of(right.x, right.y);
  }
  static FASTNEST_DEVICE void load_b_transposed(B (&b)[2], const float* tile, int pitch, Lane lane) {
    const float *first = tile + 2 * lane.t * pitch, *second = first + pitch;
    b[0] = b_of(first[lane.g], second[lane.g]), b[1] = b_of(first[lane.g + 8], second[lane.g + 8]);
  }
  static FASTNEST_DEVICE void add(float (&d)[4], const A& a, const B& b) { multiply_add_tf32(d, a.r, b.r); }
};

// float32 as it is: the sum of three bfloat16 numbers of 8 bits each. Of their nine products the three smallest, below
// 2^-24 of the largest, are left out, so that the error is that of float32's own. The six others take the tensor cores
// as long as TF32 with a high and a low half, which loses a bit of each number.
struct Float32Product {
  using Element = float;
  static constexpr int kDepth = 16;
  struct A {
    uint32_t r[3][4];
  };
  struct B {
    uint32_t r[3][2];
  };

  // Two neighbours as pairs of their parts, the largest first.
  template <int kCount>
  static FASTNEST_DEVICE void split(uint32_t (&r)[3][kCount], int i, float first, float second) {
#pragma unroll
    for (int part = 0; part < 3; ++part) {
      r[part][i] = pack<BFloat16>(first, second);
      first -= as_float(r[part][i] << 16);
      second -= as_float(r[part][i] & 0xffff0000u);
    }
  }
  static FASTNEST_DEVICE A from_tiles(const float (*d)[4]) {
    A a;
#pragma unroll
    for (int i = 0; i < 4; ++i) split(a.r, i, d[i / 2][i % 2 * 2], d[i / 2][i % 2 * 2 + 1]);
    return a;
  }
  static FASTNEST_DEVICE A load_a(const float* tile, int pitch, Lane lane) {
    A a;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 two = load_two(tile + (lane.g + i % 2 * 8) * pitch + i / 2 * 8 + 2 * lane.t);
      split(a.r, i, two.x, two.y);
    }
    return a;
  }
  static FASTNEST_DEVICE A load_a_transposed(const float* tile, int pitch, Lane lane) {
    A a;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* const first = tile + (i / 2 * 8 + 2 * lane.t) * pitch + lane.g + i % 2 * 8;
      split(a.r, i, first[0], first[pitch]);
    }
    return a;
  }
  static FASTNEST_DEVICE void load_b(B (&b)[2], const float* tile, int pitch, Lane lane) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 two = load_two(tile + (lane.g + i / 2 * 8) * pitch + i % 2 * 8 + 2 * lane.t);
      split(b[i / 2].r, i % 2, two.x, two.y);
    }
  }
  static FASTNEST_DEVICE void load_b_transposed(B (&b)[2], const float* tile, int pitch, Lane lane) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* const first = tile + (i % 2 * 8 + 2 * lane.t) * pitch + lane.g + i / 2 * 8;
      split(b[i / 2].r, i % 2, first[0], first[pitch]);
    }
  }
  static FASTNEST_DEVICE void add(float (&d)[4], const A& a, const B& b) {
    float low[4] = {0, 0, 0, 0};
    multiply_add<BFloat16>(low, a.r[2], b.r[0]);
    multiply_add<BFloat16>(low, a.r[1], b.r[1]);
    multiply_add<BFloat16>(low, a.r[0], b.r[2]);
    multiply_add<BFloat16>(low, a.r[1], b.r[0]);
    multiply_add<BFloat16>(low, a.r[0], b.r[1]);
    // An infinity has no other parts: what that makes of them is not to be seen.
    for (int i = 0; i < 4; ++i) d[i] += isfinite(low[i]) ? low[i] : 0.0f;
    multiply_add<BFloat16>(d, a.r[0], b.r[0]);
  }
};

using BFloat16Product = HalfProduct<BFloat16>;
using HalfPrecisionProduct = HalfProduct<Half>;

}  // namespace fastnest::cuda
