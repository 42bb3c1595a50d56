// AVX-512 with VNNI: 16 rows a register, one instruction for 64 products. The codes are the unsigned operand of the dot
// product, activations the signed one, broadcast from memory four at a time.
#include <immintrin.h>

#include <algorithm>
#include <bit>

#include "avx512.h"
#include "kernels.h"
#include "steps.h"

namespace handlens {
namespace {

constexpr size_t kAhead = 512;  // bytes of codes, or scales, that are fetched ahead where tokens wait for them
constexpr int kMaxTokens = 6;  // 6 tokens x 2 blocks: 12 integer and 12 float totals of the 32 registers

__m512i four_values(const int8_t* at) {
    int32_t word;
    __builtin_memcpy(&word, at, 4);
    return _mm512_set1_epi32(word);
}

// T tokens times B blocks, through all columns. With `cold` the blocks have not been read yet.
template <Layout L, int T, int B>
void tile(const Weights& w, const Activations& x, size_t block, size_t token, bool cold, const Output& out) {
    constexpr Form kForm = form(L);
    constexpr int kParts = kForm.parts;
    constexpr size_t kGroupBytes = kRows * row_code_bytes(L);
    const size_t groups = x.groups;
    const uint8_t* codes = w.codes + block * groups * kGroupBytes;
    const uint8_t* scales = w.scales + block * w.scale_bytes();
    const size_t next_codes = groups * kGroupBytes, next_scales = w.scale_bytes();
    const int8_t* values = x.values + token * groups * kGroup;
    const size_t first = token * groups;
    const __m512i levels = levels_of<L>(w);
    __m512 total[T][B];
    for (int t = 0; t < T; t++)
        for (int b = 0; b < B; b++) {
            total[t][b] = _mm512_setzero_ps();
            // The lines that the results go to are on their way while they are computed.
            __builtin_prefetch(out.data + (token + t) * w.rows + (block + b) * kRows, 1);
            if (out.residual) __builtin_prefetch(out.residual + (token + t) * w.rows + (block + b) * kRows);
        }
    for (size_t g = 0; g < groups; g += run_of(L)) {
        if (cold) {
            // Behind the last column of a block come those of a block that was read already: the next one is B further on.
            const size_t ahead = g * kGroupBytes + kAhead, skipped = ahead < next_codes ? 0 : (B - 1) * next_codes;
            for (int b = 0; b < B; b++)
                for (size_t line = 0; line < kGroupBytes * run_of(L); line += 64)
                    __builtin_prefetch(codes + b * next_codes + ahead + skipped + line);
            // Scales and minima of many bytes are worth it too.
            if constexpr (kForm.scales == Scales::minima || kForm.scales == Scales::factors) {
                constexpr size_t kRunBytes = kRows * row_scale_bytes(L);
                const size_t scale = g / scale_groups(L) * kRunBytes + kAhead;
                if (g % scale_groups(L) == 0)
                    for (int b = 0; b < B; b++)
                        for (size_t line = 0; line < kRunBytes; line += 64)
                            __builtin_prefetch(scales + b * next_scales + scale + line);
            }
        }
        for (int part = 0; part < kParts; part++) {
            __m512i dot[T][B];
            for (int t = 0; t < T; t++) {
                const size_t at = first + t * groups + g;
                __m512i start = _mm512_setzero_si512();
                if constexpr (kForm.offset != 0) {
                    const int32_t eights = kParts == 2 ? x.half_offsets[2 * at + part] : x.offsets[at];
                    start = _mm512_slli_epi32(_mm512_set1_epi32(eights), std::countr_zero(kForm.offset / 8u));
                }
                for (int b = 0; b < B; b++) dot[t][b] = start;
            }
            for (size_t of_run = g; of_run < std::min(g + run_of(L), groups); of_run++) {
                const auto add_step = [&](auto step) __attribute__((always_inline)) {
                    __m512i code[B];
                    for (int b = 0; b < B; b++)
                        code[b] = codes_of<L, step>(codes + b * next_codes + of_run * kGroupBytes, levels);
                    for (int t = 0; t < T; t++) {
                        const __m512i value = four_values(values + (of_run + t * groups) * kGroup + step * 4);
                        for (int b = 0; b < B; b++) dot[t][b] = _mm512_dpbusd_epi32(dot[t][b], code[b], value);
                    }
                };
                for_steps_of_part<kParts>(part, add_step);
            }
            if constexpr (L == Layout::q8_row) {
                for (int t = 0; t < T; t++) {
                    const __m512 scale = _mm512_set1_ps(x.scales[first + t * groups + g]);
                    for (int b = 0; b < B; b++)
                        total[t][b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t][b]), scale, total[t][b]);
                }
                continue;
            }
            for (int b = 0; b < B; b++) {
                const auto [scale, minimum] = scales_of<L>(scales + b * next_scales, g, part);
                for (int t = 0; t < T; t++) {
                    const size_t row = first + t * groups + g;
                    __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(dot[t][b]), _mm512_set1_ps(x.scales[row]));
                    total[t][b] = _mm512_fmadd_ps(product, scale, total[t][b]);
                    if constexpr (has_minimum(L))
                        total[t][b] = _mm512_fnmadd_ps(_mm512_set1_ps(x.sum(row, kParts, part)), minimum, total[t][b]);
                }
            }
        }
    }
    for (int b = 0; b < B; b++) {
        const size_t row = (block + b) * kRows;
        const size_t left = w.rows - row;
        const __mmask16 kept = left >= kRows ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
        __m512 scale, bias;
        if constexpr (L == Layout::q8_row) scale = _mm512_load_ps(scales + b * next_scales);
        if (out.bias) bias = _mm512_maskz_loadu_ps(kept, out.bias + row);
        for (int t = 0; t < T; t++) {
            const size_t at = (token + t) * w.rows + row;
            __m512 result = total[t][b];
            if constexpr (L == Layout::q8_row) result = _mm512_mul_ps(result, scale);
            if (out.bias) result = _mm512_add_ps(result, bias);
            if (out.residual) result = _mm512_add_ps(_mm512_maskz_loadu_ps(kept, out.residual + at), result);
            _mm512_mask_storeu_ps(out.data + at, kept, result);
        }
    }
}

// The tokens from `token` to before `last` for B neighbouring blocks, T at a time, then fewer.
template <Layout L, int T, int B>
void tiles(const Weights& w, const Activations& x, size_t block, size_t token, size_t last, bool cold, const Output& out) {
    for (; token + T <= last; token += T, cold = false) tile<L, T, B>(w, x, block, token, cold, out);
    if constexpr (T > 1) tiles<L, T == 3 ? 2 : T / 2, B>(w, x, block, token, last, cold, out);
}

template <Layout L>
void multiply_layout(const Weights& w, const Activations& x, Range rows, Range blocks, const Output& out) {
    // A tile's activations stay in the first cache while the blocks pass by, the blocks in the second.
    for (size_t row = rows.first; row < rows.last; row += kMaxTokens) {
        const size_t last = std::min(row + kMaxTokens, rows.last);
        size_t at = blocks.first;
        const bool cold = row == rows.first;
        for (; at + 2 <= blocks.last; at += 2) tiles<L, kMaxTokens, 2>(w, x, at, row, last, cold, out);
        for (; at < blocks.last; at++) tiles<L, kMaxTokens, 1>(w, x, at, row, last, cold, out);
    }
}

void multiply(const Weights& w, const Activations& x, Range rows, Range blocks, const Output& out) {
    for_layout(w.layout, [&](auto layout) { multiply_layout<layout>(w, x, rows, blocks, out); });
}

constexpr int kIndependent = 16;

double integer_work(size_t rounds) {
    __m512i total[kIndependent] = {}, a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
    for (size_t i = 0; i < rounds; i++)
        for (int k = 0; k < kIndependent; k++) {
            total[k] = _mm512_dpbusd_epi32(total[k], a, b);
            asm volatile("" : "+v"(total[k]));  // or the loop would be folded
        }
    return static_cast<double>(rounds) * kIndependent * 128;
}

double float_work(size_t rounds) {
    __m512 total[kIndependent] = {}, a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
    for (size_t i = 0; i < rounds; i++)
        for (int k = 0; k < kIndependent; k++) {
            total[k] = _mm512_fmadd_ps(total[k], a, b);
            asm volatile("" : "+v"(total[k]));
        }
    return static_cast<double>(rounds) * kIndependent * 32;
}

}  // namespace

const Kernels kAvx512Vnni = {"avx512vnni", kRows, 192, true, &kFloatAvx512, multiply, integer_work, float_work};

}  // namespace handlens
