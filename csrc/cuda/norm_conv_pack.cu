// What stands before the convolutions of a dense block: packed weights, and x in the block's buffer.
#include "cuda/norm_conv_pack.h"

namespace fastnest::cuda {
namespace {

template <class V>
const char* copy(const void* x, int64_t x_stride, void* y, int64_t y_stride, int64_t pixels, int64_t parts,
                 void* stream) {
  constexpr int64_t kBlocksEach = 8;  // on a multiprocessor
  const int64_t blocks = divide_up(pixels * parts, kPackThreads), most = kBlocksEach * current_device().multiprocessors;
  return launch(copy_pixels_kernel<V>, Grid{blocks < most ? blocks : most, kPackThreads}, stream,
                static_cast<const V*>(x), x_stride, static_cast<V*>(y), y_stride, pixels, static_cast<int>(parts));
}

}  // namespace

const char* pack_layers(const LayersToPack& layers, void* stream) {
  Grid grid{kBlocksOfLayer, kPackThreads};
  grid.y = layers.count;
  switch (layers.element) {
    case Element::kBFloat16: return launch(pack_layers_kernel<BFloat16>, grid, stream, layers);
    case Element::kFloat16: return launch(pack_layers_kernel<Half>, grid, stream, layers);
    default: return launch(pack_layers_kernel<float>, grid, stream, layers);
  }
}

const char* copy_pixels(Element element, const void* x, int64_t x_stride, void* y, int64_t y_stride, int64_t pixels,
                        int channels, void* stream) {
  const int bytes = bytes_of(element);
  const int64_t in_parts = 16 / bytes;
  const bool aligned = reinterpret_cast<uintptr_t>(x) % 16 == 0 && reinterpret_cast<uintptr_t>(y) % 16 == 0 &&
                       x_stride % in_parts == 0 && y_stride % in_parts == 0 && channels % in_parts == 0;
  if (aligned) return copy<uint4>(x, x_stride / in_parts, y, y_stride / in_parts, pixels, channels / in_parts, stream);
  if (bytes == 4) return copy<uint32_t>(x, x_stride, y, y_stride, pixels, channels, stream);
  return copy<uint16_t>(x, x_stride, y, y_stride, pixels, channels, stream);
}

const char* hopper_note() { return hopper::note_in_words(); }

}  // namespace fastnest::cuda
