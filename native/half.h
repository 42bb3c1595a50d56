// float16 and bfloat16 to float32, and float32 to float16, in plain integers, for where no instruction does it.
#pragma once

#include <cstdint>
#include <cstring>

namespace handlens {
namespace {

// Without branches, so that compilers make loops of it that take several numbers at once.
inline float from_half(uint16_t half) {
    const uint32_t magnitude = half & 0x7fff;
    const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
    uint32_t bits;
    std::memcpy(&bits, &subnormal, 4);
    const uint32_t rebased = (magnitude << 13) + (magnitude >= 0x7c00 ? 224u << 23 : 112u << 23);
    bits = (magnitude < 1024 ? bits : rebased) | static_cast<uint32_t>(half & 0x8000) << 16;
    float number;
    std::memcpy(&number, &bits, 4);
    return number;
}
inline float from_half(const uint8_t* bytes) {
    uint16_t half;
    std::memcpy(&half, bytes, 2);
    return from_half(half);
}

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

// Numbers as files hold them.
struct Half {
    uint16_t bits;
};
struct BrainFloat {
    uint16_t bits;
};

inline float widened(float number) { return number; }
inline float widened(const Half& half) { return from_half(half.bits); }
inline float widened(const BrainFloat& brain) {
    const uint32_t bits = static_cast<uint32_t>(brain.bits) << 16;
    float number;
    std::memcpy(&number, &bits, 4);
    return number;
}

}  // namespace
}  // namespace handlens
