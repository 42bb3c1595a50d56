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

// float32 to the bits of the nearest float16, ties to even; what is too large becomes infinity.
inline uint16_t to_half(float number) {
    uint32_t bits;
    std::memcpy(&bits, &number, 4);
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits >= 0x47800000) return sign | 0x7c00;
    if (bits < 0x38800000) {  // below the smallest normal float16: adding 0.5 leaves its units of 2^-24 in the last bits
        float small;
        std::memcpy(&small, &bits, 4);
        small += 0.5f;
        std::memcpy(&bits, &small, 4);
        return sign | static_cast<uint16_t>(bits - 0x3f000000);
    }
    bits += 0xfff + (bits >> 13 & 1);
    return sign | static_cast<uint16_t>((bits - 0x38000000) >> 13);
}

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
