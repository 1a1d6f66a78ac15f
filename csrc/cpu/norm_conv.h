// One link of an image block: target = conv(relu(scale source + shift)), forward and backward, on raw pointers.
//
// Images are rows of channels, one row a pixel (channels last), with any distance between rows: a prefix of the
// channels of a wider buffer, or a slice of one, is an image. A convolution is 1x1 or 3x3 with padding, stride 1 or 2.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/element.h"

namespace fastnest {

struct Pixels {
  void* data = nullptr;
  int64_t stride = 0;  // elements from one pixel to the next
};

struct NormConv {
  Element element;
  int64_t images, height, width, c;  // of the source
  int64_t o, kernel, stride;
  Pixels source, target;
  const float *scale, *shift;  // [c], null: relu alone
  const void* weight;          // [o, c, kernel, kernel]
  const float* bias;           // [o] or null

  int64_t out_height() const { return height ? (height - 1) / stride + 1 : 0; }
  int64_t out_width() const { return width ? (width - 1) / stride + 1 : 0; }
  int64_t source_pixels() const { return images * height * width; }
  int64_t target_pixels() const { return images * out_height() * out_width(); }
  int64_t taps() const { return kernel * kernel; }
  double flops() const { return 2.0 * target_pixels() * taps() * c * o; }
  // A 1x1 convolution that skips nothing does not see where a row of the image ends.
  NormConv flat() const {
    NormConv conv = *this;
    if (kernel == 1 && stride == 1) conv.height = source_pixels(), conv.images = 1, conv.width = 1;
    return conv;
  }
};

struct NormConvForward {
  float* packed;    // weights as pack_forward leaves them
  Pixels residual;  // added to the target, data null: nothing
  Pixels dropout;   // the target is multiplied by it, data null: by nothing
};

// The gradient of an image: d + slope (value - mean) + offset, where a batch norm has read the image and its share is
// known by now (null: d alone).
struct Gradient {
  Pixels d;
  Element element;  // of d
  const float *slope, *offset, *mean;
};

struct NormConvBackward {
  float* packed;  // weights as pack_backward leaves them
  Gradient target;
  Pixels dropout;     // as in the forward
  Pixels shortcut;    // element type of the op: what else is added to the source's gradient; data null: nothing
  Pixels features;    // gradient of relu(scale source + shift) itself, beside the convolution's; data null: none
  Pixels into;        // float32, the source's gradient without its batch norm's share
  bool add;           // to what `into` holds
  const float* mean;  // [c] of the source, null: 0
};

// Computes conv.target; mean and var [o] of it, var divided by the count, unless they are null.
void run_forward(const NormConv& conv, const NormConvForward& io, float* mean, float* var);

// Computes io.into and dweight [o, c, kernel, kernel] (element type of the op), and per channel of the source sum of du
// and of du (source - mean), du the gradient of scale source + shift. dweight is added to nothing.
void run_backward(const NormConv& conv, const NormConvBackward& io, void* dweight, float* sum, float* product);

// Sums [c] of an image over its pixels: of the target's gradient, the gradient of the bias.
void run_sums(Element element, const Pixels& image, int64_t pixels, int64_t c, float* out);

// What conv reads, relu(scale source + shift), in the op's element type.
void run_activate(const NormConv& conv, const Pixels& to);

// to = d + slope (value - mean) + offset over all pixels: from element to float32, or back.
void run_finish(Element element, const Gradient& gradient, const Pixels& value, const Pixels& to, bool to_float,
                int64_t c, int64_t pixels);

// Mean and variance (divided by the count) of the channels of an image, copied to `copy` on the way if that has data;
// mean null: only copied.
void run_batch_stats(Element element, const Pixels& image, const Pixels& copy, int64_t pixels, int64_t c, float* mean,
                     float* var);

// A batch norm as it is applied: scale = weight / sqrt(var + eps), shift = bias - mean scale, and 1 / sqrt(var + eps).
struct Fold {
  std::vector<float> scale, shift, inverse;
  Fold(const float* weight, const float* bias, const float* mean, const float* var, float eps, int64_t c);
  Fold() = default;
};

// Given the sums that run_backward leaves, the gradients of a batch norm's parameters; and subtracts from slope and
// offset what it owes to its source's gradient, unless they are null (its statistics are not of these pixels).
void close_norm(const Fold& fold, const float* sum, const float* product, int64_t pixels, float* dweight, float* dbias,
                float* slope, float* offset);

}  // namespace fastnest
