// Totals of tiles to where results go, on top of AVX-512.
#pragma once

#include <immintrin.h>

#include "avx512.h"
#include "kernels.h"

namespace handlens {
namespace {

constexpr size_t kTokens = 16;  // of a tile

// The totals of a token and the blocks from `first` on to where they go: neighbours there, each token in another page.
template <Layout L>
void give(const Weights& w, const float (*totals)[kTokens * kRows], Range blocks, size_t token, size_t of_tile,
          const Output& out) {
    for (size_t block = blocks.first; block < blocks.last; block++) {
        const size_t row = block * kRows, left = w.rows - row, at = token * w.rows + row;
        const __mmask16 kept = left >= kRows ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
        __m512 result = _mm512_load_ps(totals[block - blocks.first] + of_tile * kRows);
        if constexpr (L == Layout::q8_row) {
            const __m512 scale = _mm512_load_ps(reinterpret_cast<const float*>(w.scales + block * w.scale_bytes()));
            result = _mm512_mul_ps(result, scale);
        }
        if (out.bias) result = _mm512_add_ps(result, _mm512_maskz_loadu_ps(kept, out.bias + row));
        if (out.residual) result = _mm512_add_ps(_mm512_maskz_loadu_ps(kept, out.residual + at), result);
        _mm512_mask_storeu_ps(out.data + at, kept, result);
    }
}

}  // namespace
}  // namespace handlens
