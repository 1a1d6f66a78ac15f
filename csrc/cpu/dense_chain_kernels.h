#include "cpu/dense_chain_few_rows.h"
#include "cpu/dense_chain_forward.h"
#include "cpu/dense_chain_backward.h"
