// Weights and norms in the order in which the convolutions read them, of all layers in one launch: each block of
// threads has a part of one layer. Padding, of channels and of outputs, is 0.
#pragma once

#include "cuda/device.h"
#include "cuda/hopper/fragment.h"
#include "cuda/norm_conv.h"

namespace fastnest::cuda {

constexpr int kPackThreads = 256, kBlocksOfLayer = 64;

FASTNEST_DEVICE float element_at(const void* data, Element element, int64_t at) {
  switch (element) {
    case Element::kFloat32: return static_cast<const float*>(data)[at];
    case Element::kBFloat16: return to_float(static_cast<const BFloat16*>(data)[at]);
    default: return to_float(static_cast<const Half*>(data)[at]);
  }
}

// 16 bytes of a packed row: weight(channel) of its channels.
template <class T, class Weight>
FASTNEST_DEVICE void pack_piece(void* to, const Weight& weight) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if constexpr (sizeof(T) == 4) words[i] = to_tf32(weight(i));
    else words[i] = pack<T>(weight(2 * i), weight(2 * i + 1));
  *static_cast<uint4*>(to) = {words[0], words[1], words[2], words[3]};
}

// Rows [chunks][rows] of B or K; weight(channel, row).
template <class T, class Weight>
FASTNEST_DEVICE void pack_rows(unsigned char* to, int chunks, int rows, int thread, int threads, const Weight& weight) {
  using namespace hopper;
  constexpr int kPieces = kRowBytes / 16, kPiece = 16 / static_cast<int>(sizeof(T));
  for (int i = thread; i < chunks * rows * kPieces; i += threads) {
    const int row = i / kPieces % rows, piece = i % kPieces ^ row % kRowsOfSwizzle;
    const int channel = i / (kPieces * rows) * kChunk<T> + piece * kPiece;
    pack_piece<T>(to + int64_t{16} * i, [&](int j) { return weight(channel + j, row); });
  }
}

template <class T>
__global__ void __launch_bounds__(kPackThreads) pack_layers_kernel(const __grid_constant__ LayersToPack all) {
  using namespace hopper;
  const LayerToPack& one = all.layers[blockIdx.y];
  const PackedLayer& layer = one.layer;
  unsigned char* const to = static_cast<unsigned char*>(all.packed) + one.at;
  const int thread = static_cast<int>(blockIdx.x * kPackThreads + threadIdx.x), threads = kBlocksOfLayer * kPackThreads;

  const int b_own = own_of<T>(layer.b_outputs), k_own = own_of<T>(layer.k_outputs);
  pack_rows<T>(to, layer.b_chunks, layer.b_outputs, thread, threads, [&](int channel, int row) {
    const int output = output_of(b_own, row);
    if (channel >= layer.c || output >= layer.b) return 0.0f;
    return element_at(one.b_weight, one.b_element, output * one.b_stride[0] + channel * one.b_stride[1]);
  });
  // Rows of a chunk: by line of the kernel, then by column, then outputs.
  pack_rows<T>(to + layer.k, layer.k_chunks, 9 * layer.k_outputs, thread, threads, [&](int channel, int row) {
    const int output = output_of(k_own, row % layer.k_outputs), tap = row / layer.k_outputs;
    if (channel >= layer.b || output >= layer.d) return 0.0f;
    return element_at(
        one.k_weight, one.k_element,
        output * one.k_stride[0] + channel * one.k_stride[1] + tap / 3 * one.k_stride[2] + tap % 3 * one.k_stride[3]);
  });

  const auto scale = [&](const float* weight, const float* var, int i) { return weight[i] / sqrtf(var[i] + all.eps); };
  float* const norm1 = reinterpret_cast<float*>(to + layer.norm1);
  for (int i = thread; i < layer.b_chunks * kNormFloats<T>; i += threads) {
    const int channel = sizeof(T) == 2 ? i / 4 * 2 + i % 2 : i / 2;
    const bool is_shift = sizeof(T) == 2 ? i % 4 >= 2 : i % 2;
    float value = 0.0f;
    if (channel < layer.c) {
      value = scale(one.norm1_weight, one.norm1_var, channel);
      if (is_shift) value = one.norm1_bias[channel] - one.norm1_mean[channel] * value;
    }
    norm1[i] = value;
  }
  float* const norm2 = reinterpret_cast<float*>(to + layer.norm2);
  for (int i = thread; i < 2 * layer.b_outputs; i += threads) {
    const int output = i % layer.b_outputs;
    float value = 0.0f;
    if (output < layer.b) {
      value = scale(one.norm2_weight, one.norm2_var, output);
      if (i >= layer.b_outputs) value = one.norm2_bias[output] - one.norm2_mean[output] * value;
    }
    norm2[i] = value;
  }
}

// The first channels of a buffer's pixels, by parts V of 16 bytes or of an element.
template <class V>
__global__ void __launch_bounds__(kPackThreads)
    copy_pixels_kernel(const V* x, int64_t x_stride, V* y, int64_t y_stride, int64_t pixels, int parts) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kPackThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kPackThreads + threadIdx.x; i < pixels * parts; i += threads) {
    const int64_t pixel = i / parts, part = i % parts;
    y[pixel * y_stride + part] = x[pixel * x_stride + part];
  }
}

}  // namespace fastnest::cuda
