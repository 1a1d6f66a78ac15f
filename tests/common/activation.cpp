// Filter for test_activation.py: `activation SET FUNCTION` applies a function of common/activation.h, compiled for that
// instruction set, to the floats on standard input (a multiple of 16). Exit status 3: this CPU does not run SET.
// FUNCTION is sigmoid, or an activation followed by .value, .derivative, .both_value or .both_derivative.
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#define FASTNEST_KERNEL "activation_apply.h"
#include "common/each_target.h"

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  int set = 0;
  while (set < 4 && argv[1] != std::string(fastnest::kInstructionSetNames[set])) ++set;
  if (set == 4) return 2;
  if (!fastnest::runs_here(static_cast<fastnest::InstructionSet>(set))) return 3;
  fastnest::instruction_set() = static_cast<fastnest::InstructionSet>(set);

  std::vector<float> data;
  float chunk[4096];
  while (size_t count = std::fread(chunk, sizeof(float), 4096, stdin)) data.insert(data.end(), chunk, chunk + count);
  const auto count = static_cast<int64_t>(data.size());
  if (count % 16 || !FASTNEST_RUN(apply, argv[2], data.data(), count)) return 2;
  return std::fwrite(data.data(), sizeof(float), data.size(), stdout) == data.size() ? 0 : 1;
}
