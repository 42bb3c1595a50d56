// Which instruction sets this processor has.
#pragma once

#include <vector>

#include "kernels.h"

namespace handlens {

// The kernels that run here, the fastest first; the last is always the scalar one.
std::vector<const Kernels*> usable_kernels();

}  // namespace handlens
