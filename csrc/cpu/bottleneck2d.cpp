// bottleneck2d for the CPU, a residual block (residual_block2d.h) of convolutions 1x1, 3x3 with the stride, 1x1:
// registration.
#include "cpu/residual_block2d.h"

namespace fastnest {

constexpr size_t kStrided = 1;

STABLE_TORCH_LIBRARY_IMPL(fastnest, CPU, m) {
  m.impl("bottleneck2d_forward", TORCH_BOX(&registered_forward<kStrided>));
  m.impl("bottleneck2d_backward", TORCH_BOX(&registered_backward<kStrided>));
}

}  // namespace fastnest
