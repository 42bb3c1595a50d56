#define HANDLENS_LANES 4
#include "write_blocks.h"

namespace handlens {

std::span<const Quantizer> scalar_quantizers() { return kQuantizers; }

}  // namespace handlens
