// Sixteen floats at a time with AVX2 and FMA: two registers. See float_kernels.h for what a wrapper has to offer.
#pragma once

#include <immintrin.h>

#include "half.h"

namespace handlens {
namespace {

constexpr int kTotals = 6;     // 12 of the 16 registers
constexpr int kMaxBlocks = 1;

struct Lanes {
    __m256 low, high;
};

// All bits set in the lanes below `count`, of those that begin at `start`.
inline __m256i first_of(size_t count, int start) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count) - start), lanes);
}
inline __m256 widened(__m128i brain) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(brain), 16));
}

inline Lanes spread(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Lanes load(const float* at) { return {_mm256_loadu_ps(at), _mm256_loadu_ps(at + 8)}; }
inline Lanes load(const float* at, size_t count) {
    return {_mm256_maskload_ps(at, first_of(count, 0)), _mm256_maskload_ps(at + 8, first_of(count, 8))};
}
inline Lanes load(const Half* at) {
    const auto* halves = reinterpret_cast<const __m128i*>(at);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}
inline Lanes load(const BrainFloat* at) {
    const auto* halves = reinterpret_cast<const __m128i*>(at);
    return {widened(_mm_loadu_si128(halves)), widened(_mm_loadu_si128(halves + 1))};
}
inline void store(float* at, Lanes x) {
    _mm256_storeu_ps(at, x.low);
    _mm256_storeu_ps(at + 8, x.high);
}
inline void store(float* at, Lanes x, size_t count) {
    _mm256_maskstore_ps(at, first_of(count, 0), x.low);
    _mm256_maskstore_ps(at + 8, first_of(count, 8), x.high);
}

inline Lanes operator+(Lanes a, Lanes b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Lanes larger(Lanes a, Lanes b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline Lanes smaller(Lanes a, Lanes b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline __m256 power_of_two(__m256 x) {
    const __m256i bits = _mm256_slli_epi32(_mm256_castps_si256(x), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(bits, _mm256_set1_epi32(0x3f800000)));
}
inline Lanes power_of_two(Lanes x) { return {power_of_two(x.low), power_of_two(x.high)}; }

inline __m256i magnitudes(__m256 x) { return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff)); }
// The largest magnitude among all lanes, as the bits of the float: as integers they order numbers < infinity < no number.
inline int32_t largest_bits(Lanes a, Lanes b) {
    const __m256i most = _mm256_max_epi32(_mm256_max_epi32(magnitudes(a.low), magnitudes(a.high)),
                                          _mm256_max_epi32(magnitudes(b.low), magnitudes(b.high)));
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
// Stores the nearest integers (ties to even), which fit a byte, and gives their sum.
inline int32_t store_rounded(int8_t* at, Lanes x) {
    const __m256i low = _mm256_cvtps_epi32(x.low), high = _mm256_cvtps_epi32(x.high), both = _mm256_add_epi32(low, high);
    const __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    const __m128i more = _mm_packs_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm_packs_epi16(shorts, more));
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

// 16 rows of 16 numbers turned: to[c * 16 + r] = from[r * stride + c].
inline void transpose(const float* from, size_t stride, float* to) {
    for (size_t r = 0; r < 16; r += 4)
        for (size_t c = 0; c < 16; c += 4) {
            __m128 rows[4];
            for (size_t i = 0; i < 4; i++) rows[i] = _mm_loadu_ps(from + (r + i) * stride + c);
            _MM_TRANSPOSE4_PS(rows[0], rows[1], rows[2], rows[3]);
            for (size_t i = 0; i < 4; i++) _mm_storeu_ps(to + (c + i) * 16 + r, rows[i]);
        }
}

}  // namespace
}  // namespace handlens
