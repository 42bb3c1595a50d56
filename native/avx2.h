// AVX2 with FMA: 8 rows a register. With AVX-VNNI there is a dot product of four bytes. Without, pairs go to 16 bits and
// pairs of these to 32: codes of four to six bits cannot overflow the 16 bits; codes of eight bits could, so they are made
// signed again and their sign is moved to the activation: 128 * 127 * 2 just fits.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "kernels.h"
#include "steps.h"

namespace handlens {
namespace {

#ifdef __AVXVNNI__
constexpr bool kHasDots = true;
#else
constexpr bool kHasDots = false;
#endif

constexpr size_t kRows = 8;
constexpr size_t kAhead = 2048;  // bytes of codes that are fetched ahead
constexpr int kMaxTokens = 4;  // 4 integer and 4 float totals of the 16 registers

__m256 halves(const uint8_t* at) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}

__m256 bytes(const uint8_t* at) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
}

__m256 signed_bytes(const uint8_t* at) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
}

__m256i load(const uint8_t* at) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(at)); }

__m256i four_values(const int8_t* at) {
    int32_t word;
    __builtin_memcpy(&word, at, 4);
    return _mm256_set1_epi32(word);
}

// Adds the products of unsigned and signed bytes, four a lane.
__m256i add_products(__m256i total, __m256i codes, __m256i values) {
#ifdef __AVXVNNI__
    return _mm256_dpbusd_avx_epi32(total, codes, values);
#else
    const __m256i pairs = _mm256_maddubs_epi16(codes, values);
    return _mm256_add_epi32(total, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}

// Whether the codes of a layout come with a sign.
constexpr bool has_sign(Layout layout) {
    return !kHasDots && (form(layout).codes == Codes::bytes || form(layout).codes == Codes::levels);
}

// The codes of one step of a group; `levels` is the table of four-bit codes, where the layout has one.
template <Layout L, int Step>
__m256i codes_of(const uint8_t* group, __m256i levels) {
    constexpr Codes kCodes = form(L).codes;
    if constexpr (kCodes == Codes::bytes) {
        const __m256i codes = load(group + Step * 32);
        return has_sign(L) ? _mm256_xor_si256(codes, _mm256_set1_epi8(-128)) : codes;
    }
    __m256i four = load(group + Step % 4 * 32);
    if constexpr (Step >= 4) four = _mm256_srli_epi16(four, 4);
    four = _mm256_and_si256(four, _mm256_set1_epi8(15));
    if constexpr (kCodes == Codes::levels) return _mm256_shuffle_epi8(levels, four);
    if constexpr (kCodes == Codes::five || kCodes == Codes::six) {
        constexpr bool kSix = kCodes == Codes::six;
        constexpr int kShift = kSix ? 4 - Step % 4 * 2 : 4 - Step;  // to the left
        __m256i upper = load(group + 128 + (kSix ? Step / 4 * 32 : 0));
        if constexpr (kShift > 0) upper = _mm256_slli_epi16(upper, kShift);
        if constexpr (kShift < 0) upper = _mm256_srli_epi16(upper, -kShift);
        return _mm256_or_si256(four, _mm256_and_si256(upper, _mm256_set1_epi8(kSix ? 48 : 16)));
    }
    return four;
}

// T tokens times one block, through all columns.
template <Layout L, int T>
void tile(const Weights& w, const Activations& x, size_t block, size_t token, const Output& out) {
    constexpr Form kForm = form(L);
    constexpr int kParts = kForm.parts;
    constexpr bool kSigned = has_sign(L);
    constexpr size_t kGroupBytes = kRows * row_code_bytes(L);
    const size_t groups = x.groups;
    const uint8_t* codes = w.codes + block * groups * kGroupBytes;
    const uint8_t* scales = w.scales + block * w.scale_bytes();
    const int8_t* values = x.values + token * groups * kGroup;
    const size_t first = token * groups;
    __m256i levels = _mm256_setzero_si256();
    if constexpr (kForm.codes == Codes::levels)
        levels = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w.levels)));
    if constexpr (kSigned) levels = _mm256_xor_si256(levels, _mm256_set1_epi8(-128));
    __m256 total[T];
    for (int t = 0; t < T; t++) total[t] = _mm256_setzero_ps();
    for (size_t g = 0; g < groups; g += run_of(L)) {
        if constexpr (T == 1)  // which waits for the weights
            for (size_t line = 0; line < kGroupBytes * run_of(L); line += 64)
                __builtin_prefetch(codes + g * kGroupBytes + kAhead + line);
        for (int part = 0; part < kParts; part++) {
            __m256i dot[T];
            for (int t = 0; t < T; t++) {
                const size_t at = first + t * groups + g;
                dot[t] = _mm256_setzero_si256();
                if constexpr (kForm.offset != 0 && !kSigned)
                    dot[t] = _mm256_set1_epi32(kForm.offset / 8 * (kParts == 2 ? x.half_offsets[2 * at + part] : x.offsets[at]));
            }
            for (size_t of_run = g; of_run < std::min(g + run_of(L), groups); of_run++) {
                const auto add_step = [&](auto step) __attribute__((always_inline)) {
                    const __m256i code = codes_of<L, step>(codes + of_run * kGroupBytes, levels);
                    const __m256i magnitude = kSigned ? _mm256_abs_epi8(code) : code;
                    for (int t = 0; t < T; t++) {
                        const __m256i value = four_values(values + (of_run + t * groups) * kGroup + step * 4);
                        dot[t] = add_products(dot[t], magnitude, kSigned ? _mm256_sign_epi8(value, code) : value);
                    }
                };
                for_steps_of_part<kParts>(part, add_step);
            }
            if constexpr (L == Layout::q8_row) {
                for (int t = 0; t < T; t++)
                    total[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[t]),
                                               _mm256_set1_ps(x.scales[first + t * groups + g]), total[t]);
                continue;
            }
            __m256 scale, minimum;
            const uint8_t* run = scales + g / scale_groups(L) * kRows * row_scale_bytes(L);
            const size_t factor = (g % kGroupsPerSuperblock * kParts + part) * kRows;
            if constexpr (kForm.scales == Scales::minima) {
                scale = _mm256_mul_ps(halves(run), bytes(run + kRows * 4 + factor));
                minimum = _mm256_mul_ps(halves(run + kRows * 2), bytes(run + kRows * (4 + 8 * kParts) + factor));
            } else if constexpr (kForm.scales == Scales::factors) {
                scale = _mm256_mul_ps(_mm256_loadu_ps(reinterpret_cast<const float*>(run)),
                                      signed_bytes(run + kRows * 4 + factor));
            } else {
                scale = halves(run);
                if constexpr (kForm.scales == Scales::pair) minimum = halves(run + kRows * 2);
            }
            for (int t = 0; t < T; t++) {
                const size_t at = first + t * groups + g;
                __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(dot[t]), _mm256_set1_ps(x.scales[at]));
                total[t] = _mm256_fmadd_ps(product, scale, total[t]);
                if constexpr (has_minimum(L))
                    total[t] = _mm256_fnmadd_ps(_mm256_set1_ps(x.sum(at, kParts, part)), minimum, total[t]);
            }
        }
    }
    const size_t row = block * kRows, left = w.rows - row;
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i kept = _mm256_cmpgt_epi32(_mm256_set1_epi32(left < kRows ? static_cast<int>(left) : 8), lanes);
    for (int t = 0; t < T; t++) {
        const size_t at = (token + t) * w.rows + row;
        __m256 result = total[t];
        if constexpr (L == Layout::q8_row)
            result = _mm256_mul_ps(result, _mm256_load_ps(reinterpret_cast<const float*>(scales)));
        if (out.bias) result = _mm256_add_ps(result, _mm256_maskload_ps(out.bias + row, kept));
        if (out.residual) result = _mm256_add_ps(_mm256_maskload_ps(out.residual + at, kept), result);
        _mm256_maskstore_ps(out.data + at, kept, result);
    }
}

// The tokens from `token` to before `last` for one block, T at a time, then fewer.
template <Layout L, int T>
void tiles(const Weights& w, const Activations& x, size_t block, size_t token, size_t last, const Output& out) {
    for (; token + T <= last; token += T) tile<L, T>(w, x, block, token, out);
    if constexpr (T > 1) tiles<L, T / 2>(w, x, block, token, last, out);
}

template <Layout L>
void multiply_layout(const Weights& w, const Activations& x, Range rows, Range blocks, const Output& out) {
    // A tile's activations stay in the first cache while the blocks pass by, the blocks in the second.
    for (size_t row = rows.first; row < rows.last; row += kMaxTokens)
        for (size_t block = blocks.first; block < blocks.last; block++)
            tiles<L, kMaxTokens>(w, x, block, row, std::min(row + kMaxTokens, rows.last), out);
}

void multiply(const Weights& w, const Activations& x, Range rows, Range blocks, const Output& out) {
    for_layout(w.layout, [&](auto layout) { multiply_layout<layout>(w, x, rows, blocks, out); });
}

constexpr int kIndependent = 10;

double integer_work(size_t rounds) {
    __m256i total[kIndependent] = {}, a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5);
    for (size_t i = 0; i < rounds; i++)
        for (int k = 0; k < kIndependent; k++) {
            total[k] = add_products(total[k], a, b);
            asm volatile("" : "+x"(total[k]), "+x"(a));  // or the loop would be folded
        }
    return static_cast<double>(rounds) * kIndependent * 64;
}

double float_work(size_t rounds) {
    __m256 total[kIndependent] = {}, a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
    for (size_t i = 0; i < rounds; i++)
        for (int k = 0; k < kIndependent; k++) {
            total[k] = _mm256_fmadd_ps(total[k], a, b);
            asm volatile("" : "+x"(total[k]));
        }
    return static_cast<double>(rounds) * kIndependent * 16;
}

}  // namespace

}  // namespace handlens
