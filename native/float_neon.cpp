#include "simd_neon.h"
// The wrapper comes first: what follows is made of it.
#include "float_kernels.h"

namespace handlens {

const FloatKernels kFloatNeon = kTable;

}  // namespace handlens
