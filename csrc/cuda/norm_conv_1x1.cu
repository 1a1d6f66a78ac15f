// The 1x1 convolution's launches: which kernel takes which sizes.
#include "cuda/norm_conv_1x1.h"

namespace fastnest::cuda {
namespace {

using hopper::kNormFloats;

constexpr int kLeastStages = 4, kMostStages = 10;  // of a resident B's two rings

// Of 64 pixels each, the two warpgroups' stages beside all of B; 0 where too few fit.
template <class T>
int resident_stages(const Device& device, const PackedLayer& layer) {
  const auto bytes = [&](int stages) {
    return shared_1x1(layer.b_chunks * layer.b_bytes() + 2 * stages * kTileBytes, layer.b_chunks, kNormFloats<T>,
                      layer.b_outputs, 4 * stages + layer.b_chunks)
        .bytes;
  };
  int stages = kMostStages;
  while (stages >= kLeastStages && bytes(stages) > device.shared_bytes) --stages;
  return stages >= kLeastStages ? stages : 0;
}

// The fastest of those measured (dense_block2d-nvidia-h200.json of benchmarks/results/prototypes; bfloat16, 128
// outputs, us of warm calls): a resident B wherever it was tried, 15.5 against 21.2 at 50176 pixels and 320 channels.
// Of the others, streamed at 12544 pixels and 640 channels (9.2; split 13.6), split at 3136 pixels and 768 (5.9;
// streamed 9.8). Between them the multiprocessors decide, which 128 pixels each keep more than half busy.
Shape1x1 chosen(const Device& device, int64_t pixels, int stages_of_resident) {
  if (stages_of_resident) return Shape1x1::kResident;
  return 2 * divide_up(pixels, 2 * kTilePixels) > device.multiprocessors ? Shape1x1::kStreamed : Shape1x1::kSplit;
}

template <class T, int N>
const char* resident(const Device& device, const NormConv1x1& conv, const TensorMap& x, Args1x1 args, int stages,
                     void* stream) {
  if (stages == 0) return "norm_conv_1x1: no room in shared memory for the weights of so many channels";
  args.stages = stages;
  args.tiles = static_cast<int>(divide_up(args.pixels, kTilePixels));
  const int64_t blocks = divide_up(args.tiles, 2);
  Grid grid{blocks < device.multiprocessors ? blocks : device.multiprocessors, kResidentThreads};
  grid.shared_bytes = shared_1x1(args.chunks * N * 128 + 2 * stages * kTileBytes, args.chunks, kNormFloats<T>, N,
                                 4 * stages + args.chunks)
                          .bytes;
  grid.overlaps = conv.overlaps;
  return launch(norm_conv_1x1_resident_kernel<T, N>, grid, stream, x, args);
}

template <class T, int N, int kTall, int kSplits, int kBlocks>
const char* streamed(const Device& device, const NormConv1x1& conv, const TensorMap& x, Args1x1 args, void* stream) {
  constexpr int kStage = kTall * kTileBytes + N * 128, kMost = 16, kOfSystem = 1024;
  constexpr int kSums = (kSplits - 1) * kTall * N / 2 * 128 * 4;  // bytes, in the place of stages
  const int room = device.shared_bytes / kBlocks - (kBlocks > 1 ? kOfSystem : 0);
  const auto bytes = [&](int stages) {
    return shared_1x1(stages * kStage, args.chunks, kNormFloats<T>, args.outputs, 2 * stages).bytes;
  };
  int stages = args.chunks < kMost ? args.chunks : kMost;
  while (stages > 1 && bytes(stages) > room) --stages;
  while (stages * kStage < kSums) ++stages;
  // A stage is always the same warpgroup's: by its parity one cannot tell a phase from the next but one.
  stages = stages < kSplits ? kSplits : stages / kSplits * kSplits;
  args.stages = stages;
  Grid grid{divide_up(args.pixels, kTall * kTilePixels), kTall * kSplits * 128 + 128, bytes(stages)};
  grid.y = args.outputs / N;
  grid.overlaps = conv.overlaps;
  if (grid.shared_bytes > device.shared_bytes) return "norm_conv_1x1: no room in shared memory for so many channels";
  return launch(norm_conv_1x1_streamed_kernel<T, N, kTall, kSplits, kBlocks>, grid, stream, x, args);
}

template <class T>
const char* run(const NormConv1x1& conv, void* stream) {
  const Device device = current_device();
  if (device.capability != 90) return "norm_conv_1x1: needs a GPU of compute capability 9.0";
  const PackedLayer& layer = conv.layer;
  const auto* const packed = static_cast<const unsigned char*>(conv.packed);
  const int stages = resident_stages<T>(device, layer);
  const int64_t row = conv.x_stride * static_cast<int64_t>(sizeof(T));
  TensorMap x;
  const char* const error = hopper::find_map({.data = conv.x,
                                              .element = conv.element,
                                              .dimensions = 2,
                                              .sizes = {layer.c, conv.pixels},
                                              .strides = {sizeof(T), row},
                                              .box = {hopper::kChunk<T>, kTilePixels}},
                                             &x);
  if (error) return error;
  Args1x1 args{};
  args.weights = packed;
  args.norm1 = reinterpret_cast<const float*>(packed + layer.norm1);
  args.norm2 = reinterpret_cast<const float*>(packed + layer.norm2);
  args.h = conv.h;
  args.pixels = static_cast<int>(conv.pixels), args.hidden = layer.hidden;
  args.chunks = layer.b_chunks, args.outputs = layer.b_outputs;
  args.note = hopper::wait_note();
  const Shape1x1 shape = conv.shape == Shape1x1::kChosen ? chosen(device, conv.pixels, stages) : conv.shape;
  if (shape == Shape1x1::kSplit) return streamed<T, 64, 1, 2, 2>(device, conv, x, args, stream);
  const auto of = [&]<int N>() {
    return shape == Shape1x1::kResident ? resident<T, N>(device, conv, x, args, stages, stream)
                                        : streamed<T, N, 2, 1, 1>(device, conv, x, args, stream);
  };
  switch (layer.b_outputs) {
    case 64: return of.template operator()<64>();
    case 128: return of.template operator()<128>();
    default: return of.template operator()<192>();
  }
}

}  // namespace

const char* norm_conv_1x1(const NormConv1x1& conv, void* stream) {
  switch (conv.element) {
    case Element::kBFloat16: return run<BFloat16>(conv, stream);
    case Element::kFloat16: return run<Half>(conv, stream);
    default: return run<float>(conv, stream);
  }
}

}  // namespace fastnest::cuda
