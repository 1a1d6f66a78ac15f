// Where the elements of a warpgroup's product lie: rows of 128 bytes in shared memory, swizzled, and the registers of
// its threads. A row has 64 channels of two bytes or 32 of four (a "chunk"), an instruction reads 32 bytes of it (a
// "step").
//
// Swizzle. Of every eight rows, 1024 bytes that begin at a multiple of 1024, row r has its 16-byte pieces at piece ^ r:
//
//   row 0 | 0 1 2 3 4 5 6 7      An address made with the piece that is wanted has bits 4 to 6 changed by its own
//   row 1 | 1 0 3 2 5 4 7 6      bits 7 to 9; TMA, products and load_chunk all do so. The eight rows of a piece lie
//   row 2 | 2 3 0 1 6 7 4 5      in different banks.
//   ...
//   row 7 | 7 6 5 4 3 2 1 0
//
// Sums d [64, N] of a warpgroup. Warp w has rows 16 w to 16 w + 15; with g = lane / 4 and t = lane % 4 a thread has of
// every eight columns 8 j, ..., 8 j + 7
//
//            2t        2t+1
//   g     d[4j]     d[4j + 1]        g: row of its warp's upper eight
//   g+8   d[4j + 2] d[4j + 3]
//
// a [64, 32 bytes] in registers, per warp [16, 32 bytes]; a register has 4 bytes: two channels or one
//
//            bytes 4t..4t+3   bytes 16+4t..16+4t+3
//   g            a[0]                a[2]
//   g+8          a[1]                a[3]
//
// which is what load_matrices returns where lane l gives row l % 16, bytes l / 16 * 16 and on.
#pragma once

#include "cuda/hopper/instructions.h"

namespace fastnest::cuda::hopper {

constexpr int kRowBytes = 128, kRowsOfSwizzle = 8, kSwizzleBytes = 1024, kStepBytes = 32, kSteps = 4;

template <class T>
constexpr int kChunk = kRowBytes / static_cast<int>(sizeof(T));  // channels

constexpr int round_up(int size, int by) { return (size + by - 1) / by * by; }

// The next address at which rows may begin.
FASTNEST_DEVICE Address align_rows(Address address) { return (address + kSwizzleBytes - 1) & ~(kSwizzleBytes - 1); }

// A K-major operand: swizzled rows of which a product reads 32 bytes each, from `first` on. That is a multiple of 1024,
// plus a multiple of kStepBytes within the first row.
FASTNEST_DEVICE Descriptor rows_at(Address first) {
  constexpr Descriptor kSwizzle128 = Descriptor{1} << 62, kNextEightRows = Descriptor{kSwizzleBytes / 16} << 32;
  constexpr Descriptor kUnused = Descriptor{1} << 16;  // the leading offset
  return (first & 0x3ffff) >> 4 | kUnused | kNextEightRows | kSwizzle128;
}
// The same for an N-major b of 16-bit elements, [K rows of 128 bytes, 64 columns], and `panel_bytes` on the next 64
// columns. An instruction reads 16 rows.
FASTNEST_DEVICE Descriptor columns_at(Address first, int panel_bytes) {
  constexpr Descriptor kSwizzle128 = Descriptor{1} << 62, kNextEightRows = Descriptor{kSwizzleBytes / 16} << 32;
  return (first & 0x3ffff) >> 4 | static_cast<Descriptor>(panel_bytes / 16) << 16 | kNextEightRows | kSwizzle128;
}
// `bytes` further; of what a descriptor says, only its first address changes.
FASTNEST_DEVICE Descriptor after(Descriptor rows, int bytes) { return rows + static_cast<Descriptor>(bytes / 16); }

// A thread's address in a chunk of rows for load_chunk: row lane % 16 of its warp, without the piece.
FASTNEST_DEVICE Address own_row(Address rows, int warp, int lane) { return rows + (warp * 16 + lane % 16) * kRowBytes; }

// A chunk of a warp's 16 rows as a of kSteps products.
FASTNEST_DEVICE void load_chunk(uint32_t (&a)[kSteps][4], Address own_row, int lane) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) load_matrices(a[step], own_row + ((step * 2 + lane / 16) ^ lane % 8) * 16);
}

// The two channels of a register.
template <class T>
FASTNEST_DEVICE float2 unpack(uint32_t both) {
  return {to_float(T{static_cast<uint16_t>(both)}), to_float(T{static_cast<uint16_t>(both >> 16)})};
}

// max(x, 0), as torch's relu: NaN stays.
FASTNEST_DEVICE float relu(float x) { return x < 0.0f ? 0.0f : x; }

// Vectors of scale and shift as load_chunk's registers want them: of two-byte elements {scale, scale, shift, shift} for
// two channels, of four-byte ones {scale, shift} for each.
template <class T>
constexpr int kNormFloats = 2 * kChunk<T>;  // of a chunk

// relu(scale x + shift) of a chunk, rounded as products read it.
template <class T>
FASTNEST_DEVICE void norm_relu(uint32_t (&a)[kSteps][4], const float* norm, int t) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if constexpr (sizeof(T) == 2) {
      const auto apply = [](uint32_t& both, const float4& s) {
        const float2 x = unpack<T>(both);
        both = pack_relu<T>(fmaf(s.x, x.x, s.z), fmaf(s.y, x.y, s.w));
      };
      const auto* const pairs = reinterpret_cast<const float4*>(norm) + step * 8 + t;
      const float4 left = pairs[0], right = pairs[4];
      apply(a[step][0], left), apply(a[step][1], left), apply(a[step][2], right), apply(a[step][3], right);
    } else {
      const auto apply = [](uint32_t& x, const float2& s) { x = to_tf32(relu(fmaf(s.x, as_float(x), s.y))); };
      const auto* const channels = reinterpret_cast<const float2*>(norm) + step * 8 + t;
      const float2 left = channels[0], right = channels[4];
      apply(a[step][0], left), apply(a[step][1], left), apply(a[step][2], right), apply(a[step][3], right);
    }
  }
}

// Outputs of a product in an order in which a thread's own channels lie side by side: own_of of each group of four
// times as many, 16 bytes where that divides the outputs. Column n of a product has output output_of(own, n).
template <class T>
constexpr int own_of(int outputs) {
  return sizeof(T) == 2 && outputs % 32 == 0 ? 8 : 4;
}
constexpr int output_of(int own, int n) {
  const int group = n / (4 * own), j = n % (4 * own) / 8, t = n % 8 / 2;
  return group * 4 * own + t * own + 2 * j + n % 2;
}

}  // namespace fastnest::cuda::hopper
