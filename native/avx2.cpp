// For processors with AVX2 and FMA.
#include "avx2.h"

namespace handlens {

const Kernels kAvx2 = {"avx2", kRows, 192, false, &kFloatAvx2, multiply, integer_work, float_work};

}  // namespace handlens
