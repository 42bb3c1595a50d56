// Sixteen floats at a time with NEON: four registers. See lanes.h for what a wrapper has to offer. All of it is in every
// 64-bit ARM processor, the conversion of float16 included.
#pragma once

#include <arm_neon.h>

#include "half.h"

namespace handlens {
namespace {

constexpr int kTotals = 6;  // 24 of the 32 registers
constexpr int kMaxBlocks = 1;

struct Lanes {
    float32x4_t four[4];
};

// The lanes of f(0) ... f(3).
template <class Function>
inline __attribute__((always_inline)) Lanes fours(const Function& f) {
    return {{f(0), f(1), f(2), f(3)}};
}

inline float32x4_t widened(uint16x4_t brain) { return vreinterpretq_f32_u32(vshll_n_u16(brain, 16)); }

inline Lanes spread(float x) {
    return fours([&](int) { return vdupq_n_f32(x); });
}
inline Lanes load(const float* at) {
    return fours([&](int i) { return vld1q_f32(at + 4 * i); });
}
inline Lanes load(const float* at, size_t count) {
    if (count == 16) return load(at);
    float memory[16] = {};
    for (size_t i = 0; i < count; i++) memory[i] = at[i];
    return load(memory);
}
inline Lanes load(const Half* at) {
    return fours([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&at->bits + 4 * i))); });
}
inline Lanes load(const BrainFloat* at) {
    return fours([&](int i) { return widened(vld1_u16(&at->bits + 4 * i)); });
}
inline void store(float* at, const Lanes& x) {
    for (int i = 0; i < 4; i++) vst1q_f32(at + 4 * i, x.four[i]);
}
inline void store(float* at, const Lanes& x, size_t count) {
    if (count == 16) return store(at, x);
    float memory[16];
    store(memory, x);
    for (size_t i = 0; i < count; i++) at[i] = memory[i];
}

inline Lanes operator+(const Lanes& a, const Lanes& b) {
    return fours([&](int i) { return vaddq_f32(a.four[i], b.four[i]); });
}
inline Lanes operator-(const Lanes& a, const Lanes& b) {
    return fours([&](int i) { return vsubq_f32(a.four[i], b.four[i]); });
}
inline Lanes operator*(const Lanes& a, const Lanes& b) {
    return fours([&](int i) { return vmulq_f32(a.four[i], b.four[i]); });
}
inline Lanes operator/(const Lanes& a, const Lanes& b) {
    return fours([&](int i) { return vdivq_f32(a.four[i], b.four[i]); });
}
inline Lanes fma(const Lanes& a, const Lanes& b, const Lanes& c) {
    return fours([&](int i) { return vfmaq_f32(c.four[i], a.four[i], b.four[i]); });
}
// The instructions vmax and vmin would give no number where one is none.
inline Lanes larger(const Lanes& a, const Lanes& b) {
    return fours([&](int i) { return vbslq_f32(vcgtq_f32(a.four[i], b.four[i]), a.four[i], b.four[i]); });
}
inline Lanes smaller(const Lanes& a, const Lanes& b) {
    return fours([&](int i) { return vbslq_f32(vcltq_f32(a.four[i], b.four[i]), a.four[i], b.four[i]); });
}
inline Lanes power_of_two(const Lanes& x) {
    return fours([&](int i) {
        const int32x4_t bits = vshlq_n_s32(vreinterpretq_s32_f32(x.four[i]), 23);
        return vreinterpretq_f32_s32(vaddq_s32(bits, vdupq_n_s32(0x3f800000)));
    });
}

// The largest magnitude among all lanes, as the bits of the float: as integers they order numbers < infinity < no number.
inline int32_t largest_bits(const Lanes& a, const Lanes& b) {
    const auto magnitude = [](float32x4_t x) { return vreinterpretq_s32_f32(vabsq_f32(x)); };
    int32x4_t most = vdupq_n_s32(0);
    for (int i = 0; i < 4; i++) most = vmaxq_s32(most, vmaxq_s32(magnitude(a.four[i]), magnitude(b.four[i])));
    return vmaxvq_s32(most);
}
// Stores the nearest integers (ties to even), which fit a byte, and gives their sum.
inline int32_t store_rounded(int8_t* at, const Lanes& x) {
    int32x4_t rounded[4];
    for (int i = 0; i < 4; i++) rounded[i] = vcvtnq_s32_f32(x.four[i]);
    const int16x8_t low = vcombine_s16(vmovn_s32(rounded[0]), vmovn_s32(rounded[1]));
    const int16x8_t high = vcombine_s16(vmovn_s32(rounded[2]), vmovn_s32(rounded[3]));
    vst1q_s8(at, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
    return vaddvq_s32(vaddq_s32(vaddq_s32(rounded[0], rounded[1]), vaddq_s32(rounded[2], rounded[3])));
}

// 16 rows of 16 numbers turned: to[c * 16 + r] = from[r * stride + c].
inline void transpose(const float* from, size_t stride, float* to) {
    for (size_t r = 0; r < 16; r += 4)
        for (size_t c = 0; c < 16; c += 4) {
            float32x4_t row[4];
            for (size_t i = 0; i < 4; i++) row[i] = vld1q_f32(from + (r + i) * stride + c);
            const float32x4_t even[2] = {vzip1q_f32(row[0], row[2]), vzip2q_f32(row[0], row[2])};
            const float32x4_t odd[2] = {vzip1q_f32(row[1], row[3]), vzip2q_f32(row[1], row[3])};
            for (size_t i = 0; i < 2; i++) {
                vst1q_f32(to + (c + 2 * i) * 16 + r, vzip1q_f32(even[i], odd[i]));
                vst1q_f32(to + (c + 2 * i + 1) * 16 + r, vzip2q_f32(even[i], odd[i]));
            }
        }
}

}  // namespace
}  // namespace handlens
