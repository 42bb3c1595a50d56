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

// The attention in bfloat16 that goes with these kernels, or null where they or the processor have none.
const Bf16Attention* bf16_attention(const Kernels& kernels);
// The same of linear layers.
const Bf16Linear* bf16_linear(const Kernels& kernels);

}  // namespace handlens
