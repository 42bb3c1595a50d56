#define HANDLENS_LANES 8
#include "write_blocks.h"

namespace handlens {

std::span<const Quantizer> avx2_quantizers() { return kQuantizers; }

}  // namespace handlens
