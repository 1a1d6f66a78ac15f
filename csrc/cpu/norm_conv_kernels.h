// What norm_conv.cpp compiles once per instruction set.
#include "cpu/norm_conv_pack.h"
#include "cpu/norm_conv_forward.h"
#include "cpu/norm_conv_backward.h"
#include "cpu/batch_stats_kernels.h"
