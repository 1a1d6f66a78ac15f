#include "cpu/residual_chain_few_rows.h"
#include "cpu/residual_chain_forward.h"
#include "cpu/residual_chain_backward.h"
