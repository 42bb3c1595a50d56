// float16 and bfloat16 to float32 in plain integers, for where no instruction does it.
#pragma once

#include <cstdint>
#include <cstring>

namespace handlens {
namespace {

inline float from_half(const uint8_t* bytes) {
    uint16_t half;
    std::memcpy(&half, bytes, 2);
    uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    uint32_t exponent = half >> 10 & 31, mantissa = half & 1023;
    float number;
    if (exponent == 0) {
        number = static_cast<float>(mantissa) * 0x1p-24f;
        return sign ? -number : number;
    }
    uint32_t bits = sign | (exponent == 31 ? 255u : exponent + 112u) << 23 | mantissa << 13;
    std::memcpy(&number, &bits, 4);
    return number;
}

// Numbers as files hold them.
struct Half {
    uint16_t bits;
};
struct BrainFloat {
    uint16_t bits;
};

inline float widened(float number) { return number; }
inline float widened(const Half& half) { return from_half(reinterpret_cast<const uint8_t*>(&half)); }
inline float widened(const BrainFloat& brain) {
    const uint32_t bits = static_cast<uint32_t>(brain.bits) << 16;
    float number;
    std::memcpy(&number, &bits, 4);
    return number;
}

}  // namespace
}  // namespace handlens
