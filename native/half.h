// float16 and bfloat16 to float32 in plain integers, for where no instruction does it.
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
