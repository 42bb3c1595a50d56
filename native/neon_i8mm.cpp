#include "neon.h"

namespace handlens {

const Kernels kNeonI8mm = {"neon-i8mm", kRows, 192, true, &kFloatNeon, multiply, integer_work, float_work};

}  // namespace handlens
