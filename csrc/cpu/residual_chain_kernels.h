#include "cpu/residual_chain_forward.h"
