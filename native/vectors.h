// A vector of numbers, one a lane. HANDLENS_LANES says how many; each instruction set's file sets it and compiles this
// for itself (hence the unnamed namespace).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "half.h"

namespace handlens {
namespace {

constexpr size_t kLanes = HANDLENS_LANES;
using V = float __attribute__((vector_size(4 * kLanes)));
using Mask = int32_t __attribute__((vector_size(4 * kLanes)));

inline V splat(float x) { return V{} + x; }
inline V pick(Mask mask, V yes, V no) { return mask ? yes : no; }
inline V least(V a, V b) { return a < b ? a : b; }
inline V most(V a, V b) { return a > b ? a : b; }
inline V magnitude(V x) { return x < 0.0f ? -x : x; }
// 1 / x, and 0 where x is 0.
inline V reciprocal(V x) { return x != 0.0f ? 1.0f / x : splat(0.0f); }
// The nearest whole number, ties to even: adding and subtracting 1.5 * 2^23 rounds.
inline V whole(V x) { return (x + 12582912.0f) - 12582912.0f; }

// x as float16 can hold it.
inline V half(V x) {
    V rounded;
    for (size_t lane = 0; lane < kLanes; lane++) {
        const uint16_t bits = to_half(x[lane]);
        rounded[lane] = from_half(reinterpret_cast<const uint8_t*>(&bits));
    }
    return rounded;
}

}  // namespace
}  // namespace handlens
