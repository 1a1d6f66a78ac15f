// The two convolutions of a dense layer in evaluation, on Hopper: what a host hands to their launchers. No torch, no
// CUDA headers.
//
//   h = relu(scale2 (B relu(scale1 x + shift1)) + shift2)    1x1, c channels to b
//   q = (K * h) factor                                       3x3 with padding 1, b channels to d
//
// B, K and the norms are packed beforehand (norm_conv_pack.h), in the order in which the kernels read them.
#pragma once

#include <cstdint>

#include "common/element.h"

namespace fastnest::cuda {

constexpr int kMostHidden = 192, kMostGrowth = 48, kLayersInLaunch = 64;

constexpr int bytes_of(Element element) { return element == Element::kFloat32 ? 4 : 2; }

// Where a layer's weights and norms lie, in bytes from its first. Rows of 128 bytes are swizzled (hopper/fragment.h).
struct PackedLayer {
  int c, b, d;
  int row_channels;              // 64 of two bytes, 32 of four
  int b_chunks, k_chunks;        // rows of channels that B and K read
  int b_outputs, k_outputs;      // b and d, rounded up to what a product has: 64, 128, 192 and 16, 32, 48
  int64_t k, norm1, norm2, end;  // B: [b_chunks, b_outputs rows]; K: [k_chunks, 3, 3 k_outputs rows]; floats
  int hidden;                    // channels of h: b rounded up to 16 bytes
  constexpr int b_bytes() const { return b_outputs * 128; }  // of a chunk
  constexpr int k_bytes() const { return 9 * k_outputs * 128; }
};

constexpr PackedLayer packed_layer(Element element, int c, int b, int d) {
  const auto up = [](int size, int by) { return (size + by - 1) / by; };
  PackedLayer layer{};
  layer.c = c, layer.b = b, layer.d = d;
  layer.row_channels = 128 / bytes_of(element);
  const int piece = 16 / bytes_of(element);
  layer.hidden = up(b, piece) * piece;
  layer.b_chunks = up(c, layer.row_channels), layer.k_chunks = up(layer.hidden, layer.row_channels);
  layer.b_outputs = up(b, 64) * 64, layer.k_outputs = up(d, 16) * 16;
  layer.k = static_cast<int64_t>(layer.b_chunks) * layer.b_bytes();
  layer.norm1 = layer.k + static_cast<int64_t>(layer.k_chunks) * layer.k_bytes();
  layer.norm2 = layer.norm1 + int64_t{8} * layer.b_chunks * layer.row_channels;
  layer.end = (layer.norm2 + 8 * layer.b_outputs + 1023) / 1024 * 1024;
  return layer;
}

// What a layer is packed from: B [b, c] and K [d, b, 3, 3], elements `stride` apart by dimension, and float32 vectors.
struct LayerToPack {
  const void *b_weight, *k_weight;
  Element b_element, k_element;
  int64_t b_stride[2], k_stride[4];
  const float *norm1_weight, *norm1_bias, *norm1_mean, *norm1_var;
  const float *norm2_weight, *norm2_bias, *norm2_mean, *norm2_var;
  int64_t at;  // of the layer in the packed memory, in bytes
  PackedLayer layer;
};
struct LayersToPack {
  Element element;  // to compute in
  float eps;
  int count;
  void* packed;
  LayerToPack layers[kLayersInLaunch];
};

// How the 1x1 is cut, and the 3x3.
enum class Shape1x1 { kChosen, kResident, kStreamed, kSplit };
enum class Shape3x3 { kChosen, kEightLines, kFourLines, kEightColumns };

struct NormConv1x1 {
  Element element;
  const void* x;  // [pixels, c], x_stride elements apart; only its first c channels are read as numbers
  int64_t x_stride;
  int64_t pixels;
  const void* packed;  // the layer's
  PackedLayer layer;
  void* h;  // [pixels, layer.hidden]
  Shape1x1 shape;
  bool overlaps;
};
struct Conv3x3 {
  Element element;
  const void* h;  // [images, height, width, layer.hidden]
  int64_t images;
  int height, width;
  const void* packed;
  PackedLayer layer;
  void* y;  // the first of d channels, pixels y_stride elements apart
  int64_t y_stride;
  const void* factor;  // the same of a dropout mask, or null
  int64_t factor_stride;
  Shape3x3 shape;
  bool overlaps;
};

// Launched on `stream` of the current device. Null, or why it could not be launched. A convolution that overlaps begins
// while the launch before ends: that must be another of them, or one that begins when all before it have ended, and not
// the one that packs the weights.
const char* pack_layers(const LayersToPack& layers, void* stream);
const char* copy_pixels(Element element, const void* x, int64_t x_stride, void* y, int64_t y_stride, int64_t pixels,
                        int channels, void* stream);
const char* norm_conv_1x1(const NormConv1x1& conv, void* stream);
const char* conv_3x3(const Conv3x3& conv, void* stream);

// Why a kernel before ended with a trap, or null: a barrier that was waited for in vain.
const char* hopper_note();

}  // namespace fastnest::cuda
