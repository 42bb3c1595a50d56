// How a register of sixteen rows is read from packed weights, for every instruction set on top of AVX-512.
#pragma once

#include <immintrin.h>

#include "kernels.h"

namespace handlens {
namespace {

constexpr size_t kRows = 16;

inline __m512 halves(const uint8_t* at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}

inline __m512 bytes(const uint8_t* at) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
}

inline __m512 signed_bytes(const uint8_t* at) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
}

// The codes of one step of a group; `levels` is the table of four-bit codes, where the layout has one.
template <Layout L, int Step>
inline __m512i codes_of(const uint8_t* group, __m512i levels) {
    constexpr Codes kCodes = form(L).codes;
    if constexpr (kCodes == Codes::bytes) return _mm512_load_si512(group + Step * 64);
    __m512i four = _mm512_load_si512(group + Step % 4 * 64);
    if constexpr (Step >= 4) four = _mm512_srli_epi16(four, 4);
    four = _mm512_and_si512(four, _mm512_set1_epi8(15));
    if constexpr (kCodes == Codes::levels) return _mm512_shuffle_epi8(levels, four);
    if constexpr (kCodes == Codes::five || kCodes == Codes::six) {
        constexpr bool kSix = kCodes == Codes::six;
        constexpr int kShift = kSix ? 4 - Step % 4 * 2 : 4 - Step;  // to the left
        __m512i upper = _mm512_load_si512(group + 256 + (kSix ? Step / 4 * 64 : 0));
        if constexpr (kShift > 0) upper = _mm512_slli_epi16(upper, kShift);
        if constexpr (kShift < 0) upper = _mm512_srli_epi16(upper, -kShift);
        return _mm512_ternarylogic_epi32(four, upper, _mm512_set1_epi8(kSix ? 48 : 16), 0xf8);  // four | (upper & mask)
    }
    return four;
}

// The table that four-bit codes choose from, where the layout has one.
template <Layout L>
inline __m512i levels_of(const Weights& w) {
    if constexpr (form(L).codes != Codes::levels) return _mm512_setzero_si512();
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w.levels)));
}

// The scales and the minima of a part of group `g`; `scales` are those of the block. Minima only where there are some.
struct GroupScales {
    __m512 scale, minimum;
};

template <Layout L>
inline GroupScales scales_of(const uint8_t* scales, size_t g, size_t part) {
    constexpr Form kForm = form(L);
    const uint8_t* at = scales + g / scale_groups(L) * kRows * row_scale_bytes(L);
    const size_t factor = (g % kGroupsPerSuperblock * kForm.parts + part) * kRows;
    const __m512 none = _mm512_setzero_ps();
    if constexpr (kForm.scales == Scales::minima)
        return {_mm512_mul_ps(halves(at), bytes(at + kRows * 4 + factor)),
                _mm512_mul_ps(halves(at + kRows * 2), bytes(at + kRows * (4 + 8 * kForm.parts) + factor))};
    else if constexpr (kForm.scales == Scales::factors)
        return {_mm512_mul_ps(_mm512_loadu_ps(at), signed_bytes(at + kRows * 4 + factor)), none};
    else if constexpr (kForm.scales == Scales::pair)
        return {halves(at), halves(at + kRows * 2)};
    else
        return {halves(at), none};
}

}  // namespace
}  // namespace handlens
