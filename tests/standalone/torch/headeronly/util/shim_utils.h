#pragma once
#include "torch/csrc/stable/library.h"
