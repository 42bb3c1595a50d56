#include "neon.h"

namespace handlens {

const Kernels kNeonDotprod = {"neon-dotprod", kRows, 192, true, &kFloatNeon, multiply, integer_work, float_work};

}  // namespace handlens
