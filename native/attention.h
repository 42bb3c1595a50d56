// Softmax attention for one block of queries: scores stay in the cache.
//
// Each score is a sum over the width of a head, from its first element to its last; each output is a sum over the keys,
// from the first to the last; the exponentials of a row are added in sixteen lanes, which are joined at the end. A row of
// the result depends on no other row, so neither threads nor blocks change its bits.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "lanes.h"

namespace handlens {
namespace {

// How many keys ahead values are fetched: in the input of the vision tower each lies in a page of its own.
constexpr size_t kAhead = 16;

// The queries first to last with all heads that share one key-value head: row r is query first + r / group of head
// r % group. Keys are read once for all rows.
class AttentionBlock {
public:
    AttentionBlock(const Attention& attention, size_t task, float* scratch)
        : a(attention), kv_head(task % a.kv_heads), first(task / a.kv_heads * a.block()),
          group(a.heads / a.kv_heads), rows((std::min(first + a.block(), a.queries) - first) * group),
          seen(a.visible(first + (rows - 1) / group)), columns(vectors(seen) * kLanes),
          padded(vectors(a.width) * kLanes) {
        q = scratch;
        inverse = q + rows * a.width;
        scores = inverse + rows;
        values = scores + rows * columns;
        panel = values + seen * padded;
    }

    void run() {
        gather_queries();
        size_t key = 0;
        for (; key + 2 * kLanes <= columns && kMaxBlocks > 1; key += 2 * kLanes) score_keys<std::min(2, kMaxBlocks)>(key);
        for (; key < columns; key += kLanes) score_keys<1>(key);
        for (size_t row = 0; row < rows; row++) inverse[row] = exponentials(scores + row * columns, visible(row));
        gather_values();
        read_from(0);
    }

private:
    size_t query(size_t row) const { return first + row / group; }
    size_t visible(size_t row) const { return a.visible(query(row)); }
    size_t place(size_t row) const { return (query(row) * a.heads + kv_head * group + row % group) * a.width; }

    void gather_queries() {
        const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(a.width)));
        for (size_t row = 0; row < rows; row++)
            for (size_t c = 0; c < a.width; c++) q[row * a.width + c] = a.q[place(row) + c] * scale;
    }

    // Sixteen keys turned, so that a register holds one element of each; keys behind the last are zero.
    void turn_keys(size_t key, float* to) {
        const float* from = a.keys + kv_head * a.key_head + key * a.key_step;
        const size_t here = std::min(kLanes, seen - key);
        if (here == kLanes && a.width >= kLanes) {
            // The last columns that fill a register may have been turned before.
            for (size_t c = 0; c < a.width; c += kLanes) {
                const size_t column = std::min(c, a.width - kLanes);
                transpose(from + column, a.key_step, to + column * kLanes);
            }
            return;
        }
        for (size_t c = 0; c < a.width; c++)
            for (size_t i = 0; i < kLanes; i++) to[c * kLanes + i] = i < here ? from[i * a.key_step + c] : 0;
    }

    template <int B>
    void score_keys(size_t key) {
        for (int b = 0; b < B; b++) turn_keys(key + b * kLanes, panel + b * a.width * kLanes);
        size_t row = 0;
        while (visible(row) <= key) row += group;
        for_tiles<B>(row, rows, [&](auto count, size_t row) {
            constexpr int T = decltype(count)::value;
            Lanes total[T][B];
            multiply_tile<T, B>(q + row * a.width, a.width, panel, kLanes, a.width * kLanes, a.width, total);
            for (int t = 0; t < T; t++)
                for (int b = 0; b < B; b++) store(scores + (row + t) * columns + key + b * kLanes, total[t][b]);
        });
    }

    // The first `count` scores of a row to exponentials, the rest to zeros; gives one over their sum.
    float exponentials(float* row, size_t count) {
        const size_t whole = vectors(count) * kLanes;
        std::fill(row + count, row + whole, -INFINITY);
        Lanes most = load(row);
        for (size_t i = kLanes; i < whole; i += kLanes) most = larger(most, load(row + i));
        const Lanes top = spread(largest(most));
        Lanes total = spread(0);
        for (size_t i = 0; i < whole; i += kLanes) {
            const Lanes power = exponential(load(row + i) - top);
            store(row + i, power);
            total = total + power;
        }
        std::fill(row + count, row + columns, 0.0f);
        return 1.0f / sum(total);
    }

    // The values one behind the other, filled up to whole registers.
    void gather_values() {
        const float* from = a.values + kv_head * a.value_head;
        const size_t whole = a.width / kLanes * kLanes;
        for (size_t key = 0; key < seen; key++, from += a.value_step) {
            float* to = values + key * padded;
            for (size_t c = 0; c < padded; c += kLanes) __builtin_prefetch(from + kAhead * a.value_step + c);
            for (size_t c = 0; c < whole; c += kLanes) store(to + c, load(from + c));
            if (whole < a.width) store(to + whole, load(from + whole, a.width - whole));
        }
    }

    // What all rows read of the vectors from `vector` on, as many at a time as the registers hold.
    template <int B = kMaxBlocks>
    void read_from(size_t vector) {
        const size_t end = vectors(a.width);
        for (; vector + B <= end; vector += B) read<B>(vector * kLanes);
        if constexpr (B > 1) read_from<B - 1>(vector);
    }

    template <int B>
    void read(size_t column) {
        for_tiles<B>(0, rows, [&](auto count, size_t row) {
            constexpr int T = decltype(count)::value;
            Lanes total[T][B];
            multiply_tile<T, B>(scores + row * columns, columns, values + column, padded, kLanes, visible(row + T - 1),
                                total);
#pragma GCC unroll 24  // or totals would lie in memory, for an index that is no constant
            for (int t = 0; t < T; t++)
                for (int b = 0; b < B; b++) {
                    const size_t c = column + b * kLanes;
                    store(a.out + place(row + t) + c, total[t][b] * spread(inverse[row + t]),
                          std::min(kLanes, a.width - c));
                }
        });
    }

    const Attention& a;
    const size_t kv_head, first, group, rows, seen, columns, padded;
    float *q, *inverse, *scores, *values, *panel;
};

}  // namespace
}  // namespace handlens
