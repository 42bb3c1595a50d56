// Softmax attention for one block of queries: scores stay in the cache.
//
// Each score is a sum over the width of a head, from its first element to its last; each output is a sum over the keys,
// from the first to the last; the exponentials of a row are added in sixteen lanes, which are joined at the end. A row of
// the result depends on no other row, so neither threads nor blocks change its bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "half.h"
#include "kernels.h"
#include "lanes.h"

namespace handlens {
namespace {

// How many positions ahead keys and values are fetched: in the input of the vision tower each lies in a page of its own,
// and those of a long conversation are in no cache.
constexpr size_t kAhead = 16;

// The queries first to last with all heads that share one key-value head: row r is query first + r / group of head
// r % group. Keys are read once for all rows.
template <class Number>
class AttentionBlock {
public:
    AttentionBlock(const Attention& attention, size_t task, float* scratch)
        : a(attention), kv_head(task % a.kv_heads), first(task / a.kv_heads * a.block()),
          group(a.heads / a.kv_heads), rows((std::min(first + a.block(), a.queries) - first) * group),
          seen(a.visible(first + (rows - 1) / group)), columns(vectors(seen) * kLanes),
          padded(vectors(a.width) * kLanes), reads_in_place(rows <= kFew && padded == a.width) {
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
        if (reads_in_place) {
            read_from(value(0), a.value_step);
        } else {
            gather_values();
            read_from(values, padded);
        }
    }

private:
    // So few rows read the values where they lie; copies are for many, and for widths that do not fill registers.
    static constexpr size_t kFew = 8;

    const Number* value(size_t key) const {
        return static_cast<const Number*>(a.values) + kv_head * a.value_head + key * a.value_step;
    }
    size_t query(size_t row) const { return first + row / group; }
    size_t visible(size_t row) const { return a.visible(query(row)); }
    size_t place(size_t row) const { return (query(row) * a.heads + kv_head * group + row % group) * a.width; }

    void gather_queries() {
        const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(a.width)));
        for (size_t row = 0; row < rows; row++)
            for (size_t c = 0; c < a.width; c++) q[row * a.width + c] = a.q[place(row) + c] * scale;
    }

    // Asks for the numbers of one position.
    void fetch(const Number* position) const {
        for (size_t c = 0; c < a.width; c += 64 / sizeof(Number)) __builtin_prefetch(position + c);
    }

    // Sixteen keys turned, so that a register holds one element of each; keys behind the last are zero.
    void turn_keys(size_t key, float* to) {
        const Number* from = static_cast<const Number*>(a.keys) + kv_head * a.key_head + key * a.key_step;
        const size_t here = std::min(kLanes, seen - key);
        for (size_t i = 0; i < kLanes; i++) {
            fetch(from + (i + kAhead) * a.key_step);
            if (reads_in_place && i < here) fetch(value(key + i));
        }
        if (here == kLanes && a.width >= kLanes) {
            // The last columns that fill a register may have been turned before.
            for (size_t c = 0; c < a.width; c += kLanes) {
                const size_t column = std::min(c, a.width - kLanes);
                if constexpr (std::is_same_v<Number, float>) {
                    transpose(from + column, a.key_step, to + column * kLanes);
                } else {
                    float keys[kLanes * kLanes];
                    for (size_t i = 0; i < kLanes; i++) store(keys + i * kLanes, load(from + i * a.key_step + column));
                    transpose(keys, kLanes, to + column * kLanes);
                }
            }
            return;
        }
        for (size_t c = 0; c < a.width; c++)
            for (size_t i = 0; i < kLanes; i++) to[c * kLanes + i] = i < here ? widened(from[i * a.key_step + c]) : 0;
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
        const Number* from = value(0);
        const size_t whole = a.width / kLanes * kLanes;
        for (size_t key = 0; key < seen; key++, from += a.value_step) {
            float* to = values + key * padded;
            fetch(from + kAhead * a.value_step);
            for (size_t c = 0; c < whole; c += kLanes) store(to + c, load(from + c));
            for (size_t c = whole; c < padded; c++) to[c] = c < a.width ? widened(from[c]) : 0;
        }
    }

    // What all rows read of values `step` numbers apart: of the vectors from `vector` on, as many at a time as the registers
    // hold.
    template <int B = kMaxBlocks, class Value>
    void read_from(const Value* from, size_t step, size_t vector = 0) {
        const size_t end = vectors(a.width);
        for (; vector + B <= end; vector += B) read<B>(from + vector * kLanes, step, vector * kLanes);
        if constexpr (B > 1) read_from<B - 1>(from, step, vector);
    }

    template <int B, class Value>
    void read(const Value* from, size_t step, size_t column) {
        for_tiles<B>(0, rows, [&](auto count, size_t row) {
            constexpr int T = decltype(count)::value;
            Lanes total[T][B];
            multiply_tile<T, B>(scores + row * columns, columns, from, step, kLanes, visible(row + T - 1), total);
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
    const bool reads_in_place;
    float *q, *inverse, *scores, *values, *panel;
};

}  // namespace
}  // namespace handlens
