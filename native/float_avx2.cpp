#include "simd_avx2.h"
// The wrapper comes first: what follows is made of it.
#include "float_kernels.h"

namespace handlens {

const FloatKernels kFloatAvx2 = kTable;

}  // namespace handlens
