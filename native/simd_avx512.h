// Sixteen floats at a time with AVX-512: one register. See float_kernels.h for what a wrapper has to offer.
#pragma once

#include <immintrin.h>

#include "half.h"

namespace handlens {
namespace {

constexpr int kTotals = 24;    // of the 32 registers
constexpr int kMaxBlocks = 5;  // head size 80 in one go

struct Lanes {
    __m512 all;
};

inline __mmask16 first_of(size_t count) { return static_cast<__mmask16>((1u << count) - 1); }

inline Lanes spread(float x) { return {_mm512_set1_ps(x)}; }
inline Lanes load(const float* at) { return {_mm512_loadu_ps(at)}; }
inline Lanes load(const float* at, size_t count) { return {_mm512_maskz_loadu_ps(first_of(count), at)}; }
inline Lanes load(const Half* at) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)))};
}
inline Lanes load(const BrainFloat* at) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline void store(float* at, Lanes x) { _mm512_storeu_ps(at, x.all); }
inline void store(float* at, Lanes x, size_t count) { _mm512_mask_storeu_ps(at, first_of(count), x.all); }

inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.all, b.all)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.all, b.all)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.all, b.all)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm512_div_ps(a.all, b.all)}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.all, b.all, c.all)}; }
inline Lanes larger(Lanes a, Lanes b) { return {_mm512_max_ps(a.all, b.all)}; }
inline Lanes smaller(Lanes a, Lanes b) { return {_mm512_min_ps(a.all, b.all)}; }
inline Lanes power_of_two(Lanes x) {
    const __m512i bits = _mm512_slli_epi32(_mm512_castps_si512(x.all), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_set1_epi32(0x3f800000)))};
}

// The largest magnitude among all lanes, as the bits of the float: as integers they order numbers < infinity < no number.
inline int32_t largest_bits(Lanes a, Lanes b) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    return _mm512_reduce_max_epi32(_mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(a.all), magnitude),
                                                    _mm512_and_si512(_mm512_castps_si512(b.all), magnitude)));
}
// Stores the nearest integers (ties to even), which fit a byte, and gives their sum.
inline int32_t store_rounded(int8_t* at, Lanes x) {
    const __m512i rounded = _mm512_cvtps_epi32(x.all);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm512_cvtepi32_epi8(rounded));
    return _mm512_reduce_add_epi32(rounded);
}

// 16 rows of 16 numbers turned: to[c * 16 + r] = from[r * stride + c].
inline void transpose(const float* from, size_t stride, float* to) {
    // Four rows that lie four apart stand in one register, so that the turning goes on inside 128 bits.
    for (size_t c = 0; c < 16; c += 4) {
        __m512 rows[4];
        for (size_t i = 0; i < 4; i++) {
            __m512 row = _mm512_castps128_ps512(_mm_loadu_ps(from + i * stride + c));
            row = _mm512_insertf32x4(row, _mm_loadu_ps(from + (i + 4) * stride + c), 1);
            row = _mm512_insertf32x4(row, _mm_loadu_ps(from + (i + 8) * stride + c), 2);
            rows[i] = _mm512_insertf32x4(row, _mm_loadu_ps(from + (i + 12) * stride + c), 3);
        }
        const __m512 a = _mm512_unpacklo_ps(rows[0], rows[1]), b = _mm512_unpackhi_ps(rows[0], rows[1]);
        const __m512 d = _mm512_unpacklo_ps(rows[2], rows[3]), e = _mm512_unpackhi_ps(rows[2], rows[3]);
        _mm512_storeu_ps(to + (c + 0) * 16, _mm512_shuffle_ps(a, d, 0x44));
        _mm512_storeu_ps(to + (c + 1) * 16, _mm512_shuffle_ps(a, d, 0xee));
        _mm512_storeu_ps(to + (c + 2) * 16, _mm512_shuffle_ps(b, e, 0x44));
        _mm512_storeu_ps(to + (c + 3) * 16, _mm512_shuffle_ps(b, e, 0xee));
    }
}

}  // namespace
}  // namespace handlens
