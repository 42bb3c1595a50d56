// Which instruction sets this processor has.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace handlens {

// Kernels in this binary, and the features they need that this processor (or its system) does not offer.
struct InstructionSet {
    const Kernels* kernels;
    std::vector<std::string> lacking;
};

// All that this binary holds, the fastest first.
std::vector<InstructionSet> instruction_sets();

// The kernels that run here, the fastest first; the last is always the scalar one.
const std::vector<const Kernels*>& usable_kernels();

}  // namespace handlens
