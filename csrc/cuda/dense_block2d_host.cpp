// dense_block2d for NVIDIA GPUs, in evaluation on Hopper: the host side on tensors | registration.
//
// Layer i reads a prefix of the buffer's channels and writes the slice behind it; h is one image that all layers use.
// Launches: weights and norms of all layers packed (once per version of the weights, where the caller keeps them), x
// copied into the buffer, and two a layer, which overlap.
#include "cuda/norm_conv.h"
#include "cuda/precision.h"
#include "cuda/tensor.h"

namespace fastnest::cuda {
namespace {

// The distance between pixels, in elements. (A dimension of size 1 has any stride.)
int64_t pixel_stride(const Tensor& x) {
  for (const int i : {3, 2, 0})
    if (x.size(i) > 1) return x.stride(i);
  return x.size(1);
}

int64_t pixels_in(const Tensor& x) { return x.size(0) * x.size(2) * x.size(3); }

// As check_launch, and what a kernel before said when it waited in vain: nothing can be launched after that.
void check_convolution(const char* why_not) {
  const char* const note = why_not ? hopper_note() : nullptr;
  STD_TORCH_CHECK(note == nullptr, "fastnest: a kernel of dense_block2d ended with an error: ", note);
  check_launch(why_not);
}

void check_element(const Tensor& x) {
  STD_TORCH_CHECK(element_of(x) != Element::kFloat32 || tf32_is_asked_for(),
                  "fastnest: these kernels multiply float32 by TF32, which torch does not allow");
}

// What a layer is packed from, but for where it lies.
struct Lists {
  const List &conv1, &conv2;
  const List* norms[8];
};

LayerToPack layer_to_pack(Element element, const Lists& lists, size_t i) {
  const Tensor &b = lists.conv1[i], &k = lists.conv2[i];
  LayerToPack one{};
  one.layer =
      packed_layer(element, static_cast<int>(b.size(1)), static_cast<int>(b.size(0)), static_cast<int>(k.size(0)));
  STD_TORCH_CHECK(one.layer.b <= kMostHidden && one.layer.d <= kMostGrowth, "fastnest: dense_block2d_pack: layer ", i,
                  " must hide at most ", kMostHidden, " channels and grow by at most ", kMostGrowth, ", got ",
                  one.layer.b, " and ", one.layer.d);
  one.b_weight = b.const_data_ptr(), one.b_element = element_of(b);
  one.k_weight = k.const_data_ptr(), one.k_element = element_of(k);
  for (int j = 0; j < 2; ++j) one.b_stride[j] = b.stride(j);
  for (int j = 0; j < 4; ++j) one.k_stride[j] = k.stride(j);
  const float** const vectors[] = {&one.norm1_weight, &one.norm1_bias, &one.norm1_mean, &one.norm1_var,
                                   &one.norm2_weight, &one.norm2_bias, &one.norm2_mean, &one.norm2_var};
  for (int j = 0; j < 8; ++j) *vectors[j] = (*lists.norms[j])[i].const_data_ptr<float>();
  return one;
}

Tensor pack(Tensor like, List conv1, List conv2, List norm1_weight, List norm1_bias, List norm1_mean, List norm1_var,
            List norm2_weight, List norm2_bias, List norm2_mean, List norm2_var, double eps) {
  const OnGpu gpu(like.get_device_index());
  check_element(like);
  const Lists lists{
      conv1,
      conv2,
      {&norm1_weight, &norm1_bias, &norm1_mean, &norm1_var, &norm2_weight, &norm2_bias, &norm2_mean, &norm2_var}};
  std::vector<LayerToPack> layers;
  int64_t bytes = 0;
  for (size_t i = 0; i < conv2.size(); ++i) {
    layers.push_back(layer_to_pack(element_of(like), lists, i));
    layers.back().at = bytes;
    bytes += layers.back().layer.end;
  }
  Tensor packed = empty_like(like, {bytes}, ScalarType::Byte);
  LayersToPack all{};
  all.element = element_of(like), all.eps = static_cast<float>(eps), all.packed = packed.mutable_data_ptr();
  for (size_t first = 0; first < layers.size(); first += kLayersInLaunch) {
    all.count = static_cast<int>(std::min<size_t>(kLayersInLaunch, layers.size() - first));
    std::copy_n(layers.begin() + static_cast<ptrdiff_t>(first), all.count, all.layers);
    check_launch(pack_layers(all, gpu.stream));
  }
  return packed;
}

// The operands of one layer in the buffer.
struct Layer {
  PackedLayer layer;
  const unsigned char* packed;
};

NormConv1x1 first_of(const Layer& one, const Tensor& x, void* h, Shape1x1 shape) {
  return {element_of(x), x.const_data_ptr(), pixel_stride(x), pixels_in(x), one.packed, one.layer, h, shape, false};
}

Conv3x3 second_of(const Layer& one, const Tensor& image, const void* h, void* y, int64_t y_stride, Shape3x3 shape) {
  Conv3x3 conv{};
  conv.element = element_of(image), conv.h = h;
  conv.images = image.size(0), conv.height = static_cast<int>(image.size(2)),
  conv.width = static_cast<int>(image.size(3));
  conv.packed = one.packed, conv.layer = one.layer;
  conv.y = y, conv.y_stride = y_stride, conv.shape = shape;
  return conv;
}

unsigned char* channel_of(const Tensor& image, int64_t channel) {
  return static_cast<unsigned char*>(const_cast<void*>(image.const_data_ptr())) + channel * bytes_of(element_of(image));
}

Tensor packed_forward(Tensor x, Tensor packed, std::vector<int64_t> hidden, std::vector<int64_t> growth,
                      OptionalList dropout) {
  const OnGpu gpu(x.get_device_index());
  const Element element = element_of(x);
  check_element(x);
  const List& masks = tensors_of(dropout);
  int64_t channels = x.size(1), most_hidden = 0, bytes = 0;
  std::vector<Layer> layers;
  for (size_t i = 0; i < growth.size(); ++i) {
    const auto layer =
        packed_layer(element, static_cast<int>(channels), static_cast<int>(hidden[i]), static_cast<int>(growth[i]));
    layers.push_back({layer, static_cast<const unsigned char*>(packed.const_data_ptr()) + bytes});
    channels += growth[i], bytes += layer.end, most_hidden = std::max<int64_t>(most_hidden, layer.hidden);
  }
  STD_TORCH_CHECK(bytes == packed.numel(), "fastnest: dense_block2d_packed_forward: packed must have ", bytes,
                  " bytes for these layers, got ", packed.numel());
  Tensor y = empty_image_like(x, channels);
  if (x.numel() == 0) return y;
  Tensor h = empty_like(x, {pixels_in(x), most_hidden}, x.scalar_type());
  check_launch(copy_pixels(element, x.const_data_ptr(), pixel_stride(x), y.mutable_data_ptr(), channels, pixels_in(x),
                           static_cast<int>(x.size(1)), gpu.stream));
  int64_t c = x.size(1);
  for (size_t i = 0; i < layers.size(); ++i) {
    NormConv1x1 first = first_of(layers[i], y, h.mutable_data_ptr(), Shape1x1::kChosen);
    first.x_stride = channels, first.overlaps = true;
    check_convolution(norm_conv_1x1(first, gpu.stream));
    Conv3x3 second = second_of(layers[i], y, h.const_data_ptr(), channel_of(y, c), channels, Shape3x3::kChosen);
    second.overlaps = true;
    if (!masks.empty()) second.factor = masks[i].const_data_ptr(), second.factor_stride = pixel_stride(masks[i]);
    check_convolution(conv_3x3(second, gpu.stream));
    c += growth[i];
  }
  return y;
}

std::tuple<Tensor, List, Tensor, Tensor, List, List> forward(Tensor x, OptionalList conv1, List conv2,
                                                             List norm1_weight, List norm1_bias,
                                                             OptionalList norm1_mean, OptionalList norm1_var,
                                                             OptionalList norm2_weight, OptionalList norm2_bias,
                                                             OptionalList norm2_mean, OptionalList norm2_var,
                                                             OptionalList dropout, double eps, bool save) {
  STD_TORCH_CHECK(conv1 && norm1_mean && !save,
                  "fastnest: dense_block2d's kernels in CUDA C++ are for evaluation, of layers with conv1");
  std::vector<int64_t> hidden, growth;
  for (const Tensor& weight : *conv1) hidden.push_back(weight.size(0));
  for (const Tensor& weight : conv2) growth.push_back(weight.size(0));
  const Tensor packed = pack(x, *conv1, conv2, norm1_weight, norm1_bias, *norm1_mean, *norm1_var, *norm2_weight,
                             *norm2_bias, *norm2_mean, *norm2_var, eps);
  const Tensor nothing = empty_like(x, {0}, ScalarType::Float);
  return {packed_forward(x, packed, hidden, growth, dropout), {}, nothing, nothing, {}, {}};
}

// Single convolutions with a chosen shape, for measurements and tests.

template <class Shape, size_t kCount>
Shape shape_named(const std::string& name, const char* const (&names)[kCount]) {
  for (size_t i = 0; i < kCount; ++i)
    if (name == names[i]) return static_cast<Shape>(i);
  STD_TORCH_CHECK(false, "fastnest: no such shape of a convolution: ", name);
}

Tensor only_1x1(Tensor x, int64_t channels, Tensor packed, int64_t hidden, int64_t growth, std::string shape) {
  const OnGpu gpu(x.get_device_index());
  check_element(x);
  const auto layer =
      packed_layer(element_of(x), static_cast<int>(channels), static_cast<int>(hidden), static_cast<int>(growth));
  const Layer one{layer, static_cast<const unsigned char*>(packed.const_data_ptr())};
  Tensor h = empty_image_like(x, layer.hidden);
  constexpr const char* kNames[] = {"", "resident", "streamed", "split"};
  check_convolution(
      norm_conv_1x1(first_of(one, x, h.mutable_data_ptr(), shape_named<Shape1x1>(shape, kNames)), gpu.stream));
  return h;
}

void only_3x3(Tensor h, Tensor packed, int64_t channels, int64_t growth, Tensor y, int64_t first, std::string shape) {
  const OnGpu gpu(h.get_device_index());
  check_element(h);
  const auto layer =
      packed_layer(element_of(h), static_cast<int>(channels), static_cast<int>(h.size(1)), static_cast<int>(growth));
  STD_TORCH_CHECK(layer.hidden == h.size(1), "fastnest: conv_3x3: h must have a multiple of 16 bytes of channels, got ",
                  h.size(1), " channels");
  const Layer one{layer, static_cast<const unsigned char*>(packed.const_data_ptr())};
  constexpr const char* kNames[] = {"", "8_lines", "4_lines", "8_columns"};
  check_convolution(conv_3x3(second_of(one, h, h.const_data_ptr(), channel_of(y, first), pixel_stride(y),
                                       shape_named<Shape3x3>(shape, kNames)),
                             gpu.stream));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastnest, FASTNEST_GPU, m) {
  m.impl("dense_block2d_forward", TORCH_BOX(&forward));
  m.impl("dense_block2d_pack", TORCH_BOX(&pack));
  m.impl("dense_block2d_packed_forward", TORCH_BOX(&packed_forward));
  m.impl("norm_conv_1x1", TORCH_BOX(&only_1x1));
  m.impl("conv_3x3", TORCH_BOX(&only_3x3));
}

}  // namespace fastnest::cuda
