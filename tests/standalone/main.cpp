// The CPU's operators without torch: calls come on standard input, results go to standard output (executable.py).
//
// A call is the name of an operator, of an instruction set, a number of threads, and the arguments.
#include <torch/csrc/stable/library.h>

#include <iostream>

#include "common/instruction_set.h"

int main() {
  wire::Reader in;
  wire::Writer out;
  for (;;) {
    std::string name, set;
    int64_t threads;
    wire::read_any(in, name), wire::read_any(in, set), wire::read_any(in, threads);
    bool known = false;
    for (int i = 0; i < 4; ++i)
      if (set == fastnest::kInstructionSetNames[i]) {
        fastnest::instruction_set() = static_cast<fastnest::InstructionSet>(i);
        known = fastnest::runs_here(fastnest::instruction_set());
      }
    const auto& operators = torch::stable::Library::operators();
    const auto found = operators.find(name);
    if (!known || found == operators.end()) {
      std::cerr << "no operator " << name << " on " << set << "\n";
      return 2;
    }
    torch::stable::threads() = static_cast<uint32_t>(threads);
    found->second(in, out);
    std::fflush(stdout);
  }
}
