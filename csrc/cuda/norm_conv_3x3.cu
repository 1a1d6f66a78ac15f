// The 3x3 convolution's launches: which tile takes which sizes.
#include "cuda/norm_conv_3x3.h"

namespace fastnest::cuda {
namespace {

constexpr int kMostStages = 6;                // of each warpgroup
constexpr int kMostOutputsOfEightLines = 32;  // more sums of two times 64 pixels would not fit into registers

// Whether K stays in shared memory, and how many stages each warpgroup then has; 0 where there is no room.
struct Fit {
  bool resident;
  int stages, bytes;
};

template <class T, int kOutputs, int kWidth, int kTall>
Fit fit(const Device& device, const PackedLayer& layer) {
  const auto bytes = [&](int stages, bool resident) {
    return shared_3x3(Tile3x3<kWidth, kTall>::kBytes, layer.k_bytes(), layer.k_chunks, stages, resident);
  };
  Fit fit{bytes(2, true) <= device.shared_bytes, kMostStages, 0};
  while (fit.stages > 0 && bytes(fit.stages, fit.resident) > device.shared_bytes) --fit.stages;
  if (fit.stages < kLeastStages<T, kOutputs>) fit.stages = 0;
  fit.bytes = bytes(fit.stages, fit.resident);
  return fit;
}

// The fastest of those measured (dense_block2d-nvidia-h200.json of benchmarks/results/prototypes; bfloat16, 128 -> 32
// channels, 64 images, us of warm calls): 8 lines at 56 x 56 (25.4; 4 lines 27.5), where a multiprocessor has 14 such
// tiles, 4 lines at 28 x 28 (8.6; 9.2) and 14 x 14 (4.5; 4.7), where it has 4 and 1. Between them: 8.
template <class T, int kOutputs>
Shape3x3 chosen(const Device& device, const Conv3x3& conv) {
  constexpr int64_t kTilesEach = 8;
  if (conv.width <= 8) return Shape3x3::kEightColumns;
  if constexpr (kOutputs <= kMostOutputsOfEightLines) {
    const int64_t across = conv.width <= 16 ? 1 : divide_up(conv.width, 14);
    const int64_t tiles = conv.images * across * divide_up(conv.height, 8);
    if (tiles >= kTilesEach * device.multiprocessors && fit<T, kOutputs, 16, 2>(device, conv.layer).stages)
      return Shape3x3::kEightLines;
  }
  return Shape3x3::kFourLines;
}

template <class T, int kOutputs, int kWidth, int kTall>
const char* run_tiles(const Device& device, const Conv3x3& conv, void* stream) {
  using Tile = Tile3x3<kWidth, kTall>;
  const PackedLayer& layer = conv.layer;
  const int64_t pixel = layer.hidden * static_cast<int64_t>(sizeof(T)), line = pixel * conv.width;
  TensorMap h;
  const char* const error = hopper::find_map({.data = conv.h,
                                              .element = conv.element,
                                              .dimensions = 4,
                                              .sizes = {layer.b, conv.width, conv.height, conv.images},
                                              .strides = {sizeof(T), pixel, line, line * conv.height},
                                              .box = {hopper::kChunk<T>, kWidth, Tile::kLines + 2, 1}},
                                             &h);
  if (error) return error;
  Args3x3 args{};
  args.weights = static_cast<const unsigned char*>(conv.packed) + layer.k;
  args.y = conv.y, args.y_stride = conv.y_stride;
  args.factor = conv.factor, args.factor_stride = conv.factor_stride;
  args.height = conv.height, args.width = conv.width, args.grown = layer.d;
  args.tiles_across = static_cast<int>(conv.width <= kWidth ? 1 : divide_up(conv.width, kWidth - 2));
  args.tiles_down = static_cast<int>(divide_up(conv.height, Tile::kLines));
  const int64_t tiles = conv.images * args.tiles_across * args.tiles_down;
  args.tiles = static_cast<int>(tiles);
  args.chunks = layer.k_chunks;
  constexpr int64_t kOwnBytes = hopper::own_of<T>(kOutputs) * sizeof(T);
  const auto aligned = [&](const void* data, int64_t stride) {
    return reinterpret_cast<uintptr_t>(data) % kOwnBytes == 0 && stride * sizeof(T) % kOwnBytes == 0;
  };
  args.vectors = aligned(conv.y, conv.y_stride) && (!conv.factor || aligned(conv.factor, conv.factor_stride));
  args.note = hopper::wait_note();
  const Fit fitted = fit<T, kOutputs, kWidth, kTall>(device, layer);
  if (fitted.stages == 0) return "conv_3x3: no room in shared memory for so many lines";
  args.resident = fitted.resident, args.stages = fitted.stages;
  Grid grid{tiles < device.multiprocessors ? tiles : device.multiprocessors, kThreads3x3, fitted.bytes};
  grid.overlaps = conv.overlaps;
  return launch(conv_3x3_kernel<T, kOutputs, kWidth, kTall>, grid, stream, h, args);
}

template <class T, int kOutputs>
const char* run_outputs(const Device& device, const Conv3x3& conv, void* stream) {
  switch (conv.shape == Shape3x3::kChosen ? chosen<T, kOutputs>(device, conv) : conv.shape) {
    case Shape3x3::kEightColumns:
      if (conv.width > 8) return "conv_3x3: tiles of 8 columns are for images that are no wider";
      return run_tiles<T, kOutputs, 8, 1>(device, conv, stream);
    case Shape3x3::kEightLines:
      if constexpr (kOutputs <= kMostOutputsOfEightLines) return run_tiles<T, kOutputs, 16, 2>(device, conv, stream);
      return "conv_3x3: tiles of 8 lines are for at most 32 outputs";
    default: return run_tiles<T, kOutputs, 16, 1>(device, conv, stream);
  }
}

template <class T>
const char* run(const Conv3x3& conv, void* stream) {
  const Device device = current_device();
  if (device.capability != 90) return "conv_3x3: needs a GPU of compute capability 9.0";
  switch (conv.layer.k_outputs) {
    case 16: return run_outputs<T, 16>(device, conv, stream);
    case 32: return run_outputs<T, 32>(device, conv, stream);
    default: return run_outputs<T, 48>(device, conv, stream);
  }
}

}  // namespace

const char* conv_3x3(const Conv3x3& conv, void* stream) {
  switch (conv.element) {
    case Element::kBFloat16: return run<BFloat16>(conv, stream);
    case Element::kFloat16: return run<Half>(conv, stream);
    default: return run<float>(conv, stream);
  }
}

}  // namespace fastnest::cuda
