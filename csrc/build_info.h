// What this binary was compiled with; setup.py passes what only it knows by -D.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

namespace fastnest {

inline pybind11::object cuda_info() {
#ifdef FASTNEST_NVCC
  std::istringstream words(FASTNEST_CUDA_ARCHITECTURES);
  std::vector<std::string> architectures;
  for (std::string word; words >> word;) architectures.push_back(word);
  pybind11::dict info;
  info["nvcc"] = FASTNEST_NVCC;
  info["architectures"] = architectures;
  return info;
#else
  return pybind11::none();
#endif
}

inline pybind11::dict build_info() {
  pybind11::dict info;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["flags"] = FASTNEST_FLAGS;
  info["torch_target"] =
      std::to_string(TORCH_TARGET_VERSION >> 56) + "." + std::to_string(TORCH_TARGET_VERSION >> 48 & 255);
  info["cuda"] = cuda_info();
  return info;
}

}  // namespace fastnest
