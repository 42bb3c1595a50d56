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
    float32x4_t first, second, third, fourth;
};

// f of each four lanes.
template <class Function, class... Several>
inline __attribute__((always_inline)) Lanes fours(const Function& f, const Several&... x) {
    return {f(x.first...), f(x.second...), f(x.third...), f(x.fourth...)};
}

inline float32x4_t four(const float* at) { return vld1q_f32(at); }
inline float32x4_t four(const Half* at) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&at->bits))); }
inline float32x4_t four(const BrainFloat* at) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&at->bits), 16)); }

inline Lanes spread(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x), vdupq_n_f32(x)}; }
template <class Number>
inline Lanes load(const Number* at) {
    return {four(at), four(at + 4), four(at + 8), four(at + 12)};
}
inline void store(float* at, const Lanes& x) {
    vst1q_f32(at, x.first);
    vst1q_f32(at + 4, x.second);
    vst1q_f32(at + 8, x.third);
    vst1q_f32(at + 12, x.fourth);
}
// A few lanes go through memory, out of line: what the loops around it sum stays in registers.
__attribute__((noinline)) Lanes load_few(const float* at, size_t count) {
    float memory[16] = {};
    for (size_t i = 0; i < count; i++) memory[i] = at[i];
    return load(memory);
}
__attribute__((noinline)) void store_few(float* at, const Lanes& x, size_t count) {
    float memory[16];
    store(memory, x);
    for (size_t i = 0; i < count; i++) at[i] = memory[i];
}
inline Lanes load(const float* at, size_t count) { return count == 16 ? load(at) : load_few(at, count); }
inline void store(float* at, const Lanes& x, size_t count) { return count == 16 ? store(at, x) : store_few(at, x, count); }

using Four = float32x4_t;
inline Lanes operator+(const Lanes& a, const Lanes& b) {
    return fours([](Four x, Four y) { return vaddq_f32(x, y); }, a, b);
}
inline Lanes operator-(const Lanes& a, const Lanes& b) {
    return fours([](Four x, Four y) { return vsubq_f32(x, y); }, a, b);
}
inline Lanes operator*(const Lanes& a, const Lanes& b) {
    return fours([](Four x, Four y) { return vmulq_f32(x, y); }, a, b);
}
inline Lanes operator/(const Lanes& a, const Lanes& b) {
    return fours([](Four x, Four y) { return vdivq_f32(x, y); }, a, b);
}
inline Lanes fma(const Lanes& a, const Lanes& b, const Lanes& c) {
    return fours([](Four x, Four y, Four z) { return vfmaq_f32(z, x, y); }, a, b, c);
}
// The instructions fmax and fmin would give no number where one is none.
inline Lanes larger(const Lanes& a, const Lanes& b) {
    return fours([](Four x, Four y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }, a, b);
}
inline Lanes smaller(const Lanes& a, const Lanes& b) {
    return fours([](Four x, Four y) { return vbslq_f32(vcltq_f32(x, y), x, y); }, a, b);
}
inline Lanes power_of_two(const Lanes& x) {
    return fours([](Four four) {
        const int32x4_t bits = vshlq_n_s32(vreinterpretq_s32_f32(four), 23);
        return vreinterpretq_f32_s32(vaddq_s32(bits, vdupq_n_s32(0x3f800000)));
    }, x);
}

// The largest magnitude among all lanes, as the bits of the float: as integers they order numbers < infinity < no number.
inline int32_t largest_bits(const Lanes& a, const Lanes& b) {
    const Lanes most = fours([](Four x, Four y) {
        const int32x4_t first = vreinterpretq_s32_f32(vabsq_f32(x)), second = vreinterpretq_s32_f32(vabsq_f32(y));
        return vreinterpretq_f32_s32(vmaxq_s32(first, second));
    }, a, b);
    const auto bits = [](Four x) { return vreinterpretq_s32_f32(x); };
    return vmaxvq_s32(vmaxq_s32(vmaxq_s32(bits(most.first), bits(most.second)),
                                vmaxq_s32(bits(most.third), bits(most.fourth))));
}
// Stores the nearest integers (ties to even), which fit a byte, and gives their sum.
inline int32_t store_rounded(int8_t* at, const Lanes& x) {
    const int32x4_t first = vcvtnq_s32_f32(x.first), second = vcvtnq_s32_f32(x.second);
    const int32x4_t third = vcvtnq_s32_f32(x.third), fourth = vcvtnq_s32_f32(x.fourth);
    const int16x8_t low = vcombine_s16(vmovn_s32(first), vmovn_s32(second));
    const int16x8_t high = vcombine_s16(vmovn_s32(third), vmovn_s32(fourth));
    vst1q_s8(at, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
    return vaddvq_s32(vaddq_s32(vaddq_s32(first, second), vaddq_s32(third, fourth)));
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
