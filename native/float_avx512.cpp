#include "simd_avx512.h"
// The wrapper comes first: what follows is made of it.
#include "float_kernels.h"

namespace handlens {

const FloatKernels kFloatAvx512 = kTable;

}  // namespace handlens
