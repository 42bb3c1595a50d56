#include "simd_scalar.h"
// The wrapper comes first: what follows is made of it.
#include "float_kernels.h"

namespace handlens {

const FloatKernels kFloatScalar = kTable;

}  // namespace handlens
