#define HANDLENS_LANES 16
#include "write_blocks.h"

namespace handlens {

std::span<const Quantizer> avx512_quantizers() { return kQuantizers; }

}  // namespace handlens
