// What every kernel builds on, in the order the parts need one another; included once per instruction set.
#include "common/vector.h"
#include "common/activation.h"
#include "common/tile.h"
#include "common/gemm.h"
#include "common/operand.h"
#include "common/gradient.h"
#include "common/few_rows.h"
#include "common/block_product.h"
