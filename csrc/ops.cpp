// Every op's schema, and the python module fastnest._C: build facts and instruction sets.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "build_info.h"
#include "common/instruction_set.h"
#include "common/peak.h"
#include "cpu/scratch.h"

STABLE_TORCH_LIBRARY(fastnest, m) {
  m.def(
      "residual_chain_forward(Tensor x, Tensor down, Tensor? down_bias, Tensor? mid, Tensor? mid_bias, Tensor up, "
      "Tensor? scale, Tensor? shift, str activation, bool pre_activation, bool features, bool save) "
      "-> (Tensor y, Tensor features, Tensor hidden, Tensor stream)");
  m.def(
      "residual_chain_backward(Tensor? dy, Tensor? dfeatures, Tensor x, Tensor stream, Tensor hidden, Tensor down, "
      "Tensor? down_bias, Tensor? mid, Tensor? mid_bias, Tensor up, Tensor? scale, Tensor? shift, str activation, "
      "bool pre_activation) "
      "-> (Tensor dx, Tensor ddown, Tensor ddown_bias, Tensor dmid, Tensor dmid_bias, Tensor dup, Tensor dscale, "
      "Tensor dshift)");
  m.def(
      "dense_chain_forward(Tensor x, Tensor[] weight, Tensor[]? bias, Tensor[]? hidden_weight, Tensor[]? hidden_bias, "
      "Tensor[]? scale, Tensor[]? shift, str activation, bool pre_activation, bool save) -> (Tensor y, Tensor hidden)");
  m.def(
      "dense_chain_backward(Tensor dy, Tensor y, Tensor hidden, Tensor[] weight, Tensor[]? bias, "
      "Tensor[]? hidden_weight, Tensor[]? hidden_bias, Tensor[]? scale, Tensor[]? shift, str activation, "
      "bool pre_activation) "
      "-> (Tensor dx, Tensor[] dweight, Tensor[] dbias, Tensor[] dhidden_weight, Tensor[] dhidden_bias, "
      "Tensor[] dscale, Tensor[] dshift)");
  m.def("batch_stats(Tensor x) -> (Tensor mean, Tensor var)");
  m.def(
      "dense_block2d_forward(Tensor x, Tensor[]? conv1, Tensor[] conv2, Tensor[] norm1_weight, Tensor[] norm1_bias, "
      "Tensor[]? norm1_mean, Tensor[]? norm1_var, Tensor[]? norm2_weight, Tensor[]? norm2_bias, Tensor[]? norm2_mean, "
      "Tensor[]? norm2_var, Tensor[]? dropout, float eps, bool save) "
      "-> (Tensor y, Tensor[] z, Tensor mean, Tensor var, Tensor[] z_mean, Tensor[] z_var)");
  m.def(
      "dense_block2d_backward(Tensor dy, Tensor y, Tensor[] z, Tensor[]? conv1, Tensor[] conv2, Tensor[] norm1_weight, "
      "Tensor[] norm1_bias, Tensor[]? norm1_mean, Tensor[]? norm1_var, Tensor[]? norm2_weight, Tensor[]? norm2_bias, "
      "Tensor[]? norm2_mean, Tensor[]? norm2_var, Tensor[]? dropout, float eps, bool training) "
      "-> (Tensor dx, Tensor[] dconv1, Tensor[] dconv2, Tensor[] dnorm1_weight, Tensor[] dnorm1_bias, "
      "Tensor[] dnorm2_weight, Tensor[] dnorm2_bias)");
  m.def(
      "dense_block2d_pack(Tensor like, Tensor[] conv1, Tensor[] conv2, Tensor[] norm1_weight, Tensor[] norm1_bias, "
      "Tensor[] norm1_mean, Tensor[] norm1_var, Tensor[] norm2_weight, Tensor[] norm2_bias, Tensor[] norm2_mean, "
      "Tensor[] norm2_var, float eps) -> Tensor");
  m.def(
      "dense_block2d_packed_forward(Tensor x, Tensor packed, int[] hidden, int[] growth, Tensor[]? dropout) -> Tensor");
  m.def("norm_conv_1x1(Tensor x, int channels, Tensor packed, int hidden, int growth, str shape) -> Tensor");
  m.def("conv_3x3(Tensor h, Tensor packed, int channels, int growth, Tensor(a!) y, int first, str shape) -> ()");
  m.def(
      "bottleneck2d_forward(Tensor x, Tensor[] conv, Tensor[]? conv_bias, Tensor[]? norm_weight, Tensor[]? norm_bias, "
      "Tensor[]? norm_mean, Tensor[]? norm_var, Tensor? projection, Tensor? projection_bias, int stride, float eps, "
      "bool features, bool save) -> (Tensor y, Tensor features, Tensor[] hidden, Tensor[] mean, Tensor[] var)");
  m.def(
      "bottleneck2d_backward(Tensor? dy, Tensor? dfeatures, Tensor x, Tensor[] hidden, Tensor[] conv, "
      "Tensor[]? conv_bias, Tensor[]? norm_weight, Tensor[]? norm_bias, Tensor[]? norm_mean, Tensor[]? norm_var, "
      "Tensor? projection, Tensor? projection_bias, int stride, float eps, bool training) "
      "-> (Tensor dx, Tensor[] dconv, Tensor[] dconv_bias, Tensor[] dnorm_weight, Tensor[] dnorm_bias, "
      "Tensor dprojection, Tensor dprojection_bias)");
  m.def(
      "basic_block2d_forward(Tensor x, Tensor[] conv, Tensor[]? conv_bias, Tensor[]? norm_weight, Tensor[]? norm_bias, "
      "Tensor[]? norm_mean, Tensor[]? norm_var, Tensor? projection, Tensor? projection_bias, int stride, float eps, "
      "bool features, bool save) -> (Tensor y, Tensor features, Tensor[] hidden, Tensor[] mean, Tensor[] var)");
  m.def(
      "basic_block2d_backward(Tensor? dy, Tensor? dfeatures, Tensor x, Tensor[] hidden, Tensor[] conv, "
      "Tensor[]? conv_bias, Tensor[]? norm_weight, Tensor[]? norm_bias, Tensor[]? norm_mean, Tensor[]? norm_var, "
      "Tensor? projection, Tensor? projection_bias, int stride, float eps, bool training) "
      "-> (Tensor dx, Tensor[] dconv, Tensor[] dconv_bias, Tensor[] dnorm_weight, Tensor[] dnorm_bias, "
      "Tensor dprojection, Tensor dprojection_bias)");
}

namespace fastnest {
namespace {

std::string name_of(InstructionSet set) { return kInstructionSetNames[static_cast<int>(set)]; }

std::vector<std::string> available() {
  std::vector<std::string> names;
  for (auto set :
       {InstructionSet::kAvx512Bf16, InstructionSet::kAvx512, InstructionSet::kAvx2, InstructionSet::kPortable})
    if (runs_here(set)) names.push_back(name_of(set));
  return names;
}

void force(const std::string& name) {
  for (auto set :
       {InstructionSet::kAvx512Bf16, InstructionSet::kAvx512, InstructionSet::kAvx2, InstructionSet::kPortable})
    if (name_of(set) == name && runs_here(set)) {
      instruction_set() = set;
      return;
    }
  if (!name.empty()) throw std::invalid_argument("force_instruction_set: this CPU does not run '" + name + "'");
  instruction_set() = best_instruction_set();
}

}  // namespace
}  // namespace fastnest

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled half of fastnest: importing it registers torch.ops.fastnest.";
  m.def("build_info", &fastnest::build_info, "Compiler, flags, the oldest torch this binary runs with, CUDA or None.");
  m.def("instruction_sets", &fastnest::available, "Instruction sets this CPU runs, best first.");
  m.def("instruction_set", [] { return fastnest::name_of(fastnest::instruction_set()); }, "The one in use.");
  m.def("force_instruction_set", &fastnest::force, pybind11::arg("name"),
        "Uses the named instruction set from now on, for tests; an empty name chooses the best again.");
  m.def("release_scratch", &fastnest::Scratch::release,
        "Frees the scratch memory that the kernels keep between calls (at most four buffers of 16 MiB).");
  m.def("peak_gflops", &fastnest::peak_gflops, pybind11::arg("dtype"), pybind11::arg("seconds"),
        "Multiply-adds of independent registers on one core, in GFLOP/s, for dtype 'float32' or 'bfloat16'.");
}
