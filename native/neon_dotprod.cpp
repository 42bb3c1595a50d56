#include "neon.h"

namespace handlens {

const Kernels kNeonDotprod = {"neon-dotprod", kRows, &kFloatNeon, multiply, integer_work, float_work};

}  // namespace handlens
