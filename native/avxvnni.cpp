// For processors with AVX-VNNI, which most have that lack AVX-512.
#include "avx2.h"

namespace handlens {

const Kernels kAvxVnni = {"avxvnni", kRows, 192, true, &kFloatAvx2, multiply, integer_work, float_work};

}  // namespace handlens
