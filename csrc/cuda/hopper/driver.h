// What the host side asks of CUDA: tensor maps, which the driver encodes, and memory for a note that outlives a trap.
// The driver's function is asked of the runtime, so that nothing links libcuda.
//
// tests/cuda/on_host has another file of this name.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstring>

#include "cuda/hopper/box_layout.h"

namespace fastnest::cuda::hopper {

using TensorMap = CUtensorMap;

inline auto find_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
  cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
#else
  cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

// Null, or why not.
inline const char* encode(const BoxLayout& layout, TensorMap* map) {
  static const auto encoder = find_encoder();
  if (!encoder) return "the driver has no cuTensorMapEncodeTiled: it is older than CUDA 12.0";
  constexpr CUtensorMapDataType kTypes[] = {CU_TENSOR_MAP_DATA_TYPE_FLOAT32, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                                            CU_TENSOR_MAP_DATA_TYPE_FLOAT16};
  cuuint64_t sizes[kMostDimensions], strides[kMostDimensions];
  cuuint32_t box[kMostDimensions], every[kMostDimensions];
  for (int i = 0; i < layout.dimensions; ++i) {
    sizes[i] = layout.sizes[i], box[i] = layout.box[i], every[i] = 1;
    if (i) strides[i - 1] = layout.strides[i];
  }
  const CUresult result =
      encoder(map, kTypes[static_cast<int>(layout.element)], layout.dimensions, const_cast<void*>(layout.data), sizes,
              strides, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
              CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : "the driver takes no tensor map of this layout";
}

// Where a wait that never ends (instructions.h) says so, at one address for host and GPU, and there even after a trap;
// null where there is no such memory.
inline volatile int* wait_note() {
  static int* const note = [] {
    // Allocating would end a capture that another call is part of, were it not said that this has nothing to do with
    // it.
    auto mode = cudaStreamCaptureModeRelaxed;
    cudaThreadExchangeStreamCaptureMode(&mode);
    void* memory = nullptr;
    if (cudaHostAlloc(&memory, 4 * sizeof(int), cudaHostAllocMapped | cudaHostAllocPortable) != cudaSuccess)
      cudaGetLastError();  // or torch would take it for its own
    cudaThreadExchangeStreamCaptureMode(&mode);
    return static_cast<int*>(memory ? memset(memory, 0, 4 * sizeof(int)) : nullptr);
  }();
  return note;
}
// What it says, or null.
inline const char* note_in_words() {
  static char words[128];
  const volatile int* const note = wait_note();
  if (!note || !note[0]) return nullptr;
  std::snprintf(words, sizeof(words), "wait %d of block %d, thread %d, for parity %d never ended", note[0], note[1],
                note[2], note[3]);
  return words;
}

}  // namespace fastnest::cuda::hopper
