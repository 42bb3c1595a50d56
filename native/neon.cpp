#include "neon.h"

namespace handlens {

const Kernels kNeon = {"neon", kRows, 192, false, &kFloatNeon, multiply, integer_work, float_work};

}  // namespace handlens
