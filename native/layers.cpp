#include "layers.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "half.h"

namespace handlens {
namespace {

// Blocks of weights in one task: enough to be worth the asking, few enough to share out evenly and to stop soon. Few rows
// wait for the weights, and long runs of memory come faster.
constexpr size_t kBlocks = 8, kBlocksOfFew = 32, kFewRows = 6;
constexpr size_t kRowsToPrepare = 8;

// What a thread writes on before it is done with a row or a block; kept for the next one.
uint8_t* notepad(size_t bytes) {
    thread_local Aligned memory;
    thread_local size_t size = 0;
    if (size < bytes) {
        memory = allocate(bytes);
        size = bytes;
    }
    return memory.get();
}
float* float_notepad(size_t floats) { return reinterpret_cast<float*>(notepad(floats * sizeof(float))); }

// A row of x after a step: x itself, or in `to`, or where that is null on the thread's notepad.
const float* take(const FloatKernels& kernels, const Step& step, const float* x, const float* second, size_t columns,
                  float* to = nullptr) {
    if (step.kind == Step::none) return x;
    if (!to) to = float_notepad(columns);
    kernels.prepare(step, x, second, columns, to);
    return to;
}

// The input of linear layers in scratch memory: quantised with a scale for each group or for each run of groups, rounded
// to bfloat16, and as floats after a step, as far as the weights want it.
struct Made {
    std::optional<Activations> groups, runs;
    uint16_t* brain_floats = nullptr;
    float* floats = nullptr;

    const Activations& of(Layout layout) const { return run_of(layout) == 1 ? *groups : *runs; }
};

struct Wanted {
    bool groups = false, runs = false, brain_floats = false, floats = false;

    Wanted(std::span<const Linear> layers, const Input& input) {
        for (const Linear& layer : layers) {
            const Layout layout = layer.weights->layout;
            (layer.in_bf16(input.bf16) ? brain_floats
             : is_float(layout)        ? floats
             : run_of(layout) == 1     ? groups
                                       : runs) = true;
        }
        floats &= input.step.kind != Step::none;
    }

    bool rounded() const { return groups || runs || brain_floats; }
};

// Parts of memory, one behind the other, each at a multiple of 64 bytes.
class Parts {
public:
    size_t add(size_t bytes) {
        const size_t at = bytes_;
        bytes_ += up_to(bytes, kAlignment);
        return at;
    }
    size_t bytes() const { return bytes_; }

private:
    size_t bytes_ = 0;
};

// Where the forms of an input lie.
struct Places {
    size_t groups, runs, brain_floats, floats, bytes;

    Places(const Wanted& wanted, const Bf16Linear* linear, size_t rows, size_t columns) {
        const size_t count = rows * groups_of(columns), quantised = count * (kGroup + 20);
        Parts parts;
        groups = parts.add(wanted.groups ? quantised : 0);
        runs = parts.add(wanted.runs ? quantised : 0);
        brain_floats = parts.add(wanted.brain_floats ? linear->nbytes(rows, columns) : 0);
        floats = parts.add(wanted.floats ? rows * columns * sizeof(float) : 0);
        bytes = parts.bytes();
    }
};

Activations quantised(uint8_t* memory, size_t rows, size_t columns, size_t run) {
    const size_t groups = groups_of(columns), count = rows * groups;
    const auto part = [&](size_t offset) { return memory + count * (kGroup + offset); };
    return {rows, columns, groups, run, reinterpret_cast<int8_t*>(memory), reinterpret_cast<float*>(part(0)),
            reinterpret_cast<int32_t*>(part(4)), reinterpret_cast<int32_t*>(part(8)), reinterpret_cast<float*>(part(16))};
}

// How a linear layer is shared out: its tasks are ranges of the rows of x and of blocks of weights.
class Share {
public:
    // In whole tiles of every instruction set.
    Share(const Linear& layer, size_t rows, bool bf16)
        : Share(layer.in_bf16(bf16) ? Share(*layer.kernels->bf16_linear, rows, layer.weights->blocks())
                                    : Share(rows, layer.weights->blocks(), layer.kernels->rows, 48,
                                            rows <= kFewRows ? kBlocksOfFew : kBlocks, kBlocks)) {}
    Share(const Bf16Linear& linear, size_t rows, size_t blocks, bool gated = false)
        : Share(rows, blocks, linear.rows, 32, linear.blocks / (gated ? 2 : 1), linear.blocks / 8) {}

    size_t tasks() const { return runs() * (large_ + (blocks_ - large_ * most_blocks_ + few_blocks_ - 1) / few_blocks_); }
    // Tasks that follow one another share their weights.
    Range rows(size_t task) const { return {task % runs() * run_, std::min((task % runs() + 1) * run_, rows_)}; }
    Range blocks(size_t task) const {
        const size_t i = task / runs();
        if (i < large_) return {i * most_blocks_, (i + 1) * most_blocks_};
        const size_t first = large_ * most_blocks_ + (i - large_) * few_blocks_;
        return {first, std::min(first + few_blocks_, blocks_)};
    }

private:
    // As many rows as a task may have, shared out evenly in whole tiles. Tasks of many blocks come first, then those of few,
    // so that all threads are done at about the same time.
    Share(size_t rows, size_t blocks, size_t most_rows, size_t tile, size_t most_blocks, size_t few_blocks)
        : rows_(rows), blocks_(blocks), most_blocks_(most_blocks), few_blocks_(few_blocks) {
        const size_t count = std::max<size_t>((rows + most_rows - 1) / most_rows, 1);
        run_ = std::max<size_t>((rows + count * tile - 1) / (count * tile), 1) * tile;
        constexpr size_t kEach = 3;
        while (most_blocks_ > few_blocks_ && blocks * runs() < kEach * Pool::get().threads() * most_blocks_) most_blocks_ /= 2;
        large_ = (blocks - blocks / 4) / most_blocks_;
    }
    size_t runs() const { return (rows_ + run_ - 1) / run_; }

    size_t rows_, run_, blocks_, most_blocks_, few_blocks_, large_;
};

// Rounds rows to bfloat16 after a step.
bool round_rows(const Work& work, const Kernels& kernels, const Input& input, size_t columns, uint16_t* to) {
    return for_rows(work, input.rows, [&](size_t row) {
        const float* from = take(*kernels.floats, input.step, input.x + row * columns, nullptr, columns);
        kernels.bf16_linear->round(from, columns, to, row);
    });
}

// One layer in bfloat16 of rows that are rounded already.
bool multiply_rounded(const Work& work, const Linear& layer, const uint16_t* x, size_t rows, float* out,
                      const float* residual) {
    const Share share(layer, rows, true);
    return work.run(share.tasks(), [&](size_t task) {
        layer.kernels->bf16_linear->multiply(*layer.weights, x, share.rows(task), share.blocks(task),
                                             {out, layer.bias, residual});
    });
}

uint16_t half_of(float number) { return number == number ? to_half(number) : 0x7e00; }

// A head's numbers to where they are cached.
void keep(const float* head, size_t width, void* cached, size_t at, bool half) {
    if (half)
        std::transform(head, head + width, static_cast<uint16_t*>(cached) + at, half_of);
    else
        std::copy_n(head, width, static_cast<float*>(cached) + at);
}

// The sequence of a row, and the row's place in it.
struct Place {
    const CachedRows* sequence;
    size_t at;
};

Place place_of(std::span<const CachedRows> sequences, size_t row) {
    const CachedRows* sequence = sequences.data();
    while (row >= sequence->rows) row -= sequence++->rows;
    return {sequence, row};
}

// With memory for what the kernels pack of keys and values.
bool attend_packed(const Work& work, const Bf16Attention& kernels, const Attention& a, uint8_t* packed) {
    return work.run(kernels.tasks_to_pack(a), [&](size_t task) { kernels.pack(a, task, packed); }) &&
           work.run(kernels.tasks(a), [&](size_t task) { kernels.attend(a, task, packed, notepad(kernels.scratch(a))); });
}

// out = x plus the second layer of what `hand_on` makes, in tasks of a share, of the rounded input.
bool feed(const Work& work, const Input& input, const Linear& wide, const Share& share, const Linear& down, float* out,
          const std::function<void(const uint16_t* in, Range rows, Range blocks, uint16_t* inner)>& hand_on) {
    const Bf16Linear& linear = *wide.kernels->bf16_linear;
    const size_t rows = input.rows, columns = wide.weights->columns;
    Parts parts;
    const size_t in_at = parts.add(linear.nbytes(rows, columns)), inner_at = parts.add(linear.nbytes(rows, wide.weights->rows));
    uint8_t* const memory = work.pool.scratch(parts.bytes());
    auto *const in = reinterpret_cast<uint16_t*>(memory + in_at), *const inner = reinterpret_cast<uint16_t*>(memory + inner_at);
    return round_rows(work, *wide.kernels, input, columns, in) &&
           work.run(share.tasks(), [&](size_t task) { hand_on(in, share.rows(task), share.blocks(task), inner); }) &&
           multiply_rounded(work, down, inner, rows, out, input.x);
}

// The first half of a decoder's layer.
bool decoder_attention(const Work& work, const DecoderLayer& layer, const DecoderShape& shape, float* x, size_t rows,
                       const float* cos, const float* sin, std::span<const CachedRows> sequences, bool half, bool bf16) {
    const FloatKernels& floats = *layer.out.kernels->floats;
    const size_t width = shape.head, queries = shape.heads * width, keys = shape.kv_heads * width;
    const Input input{x, rows, {Step::rms_norm, layer.attention_norm, nullptr, shape.eps}, nullptr, bf16};
    Parts parts;
    const size_t q_at = parts.add(rows * queries * sizeof(float)), read_at = parts.add(rows * queries * sizeof(float));
    const size_t k_at = parts.add(rows * keys * sizeof(float)), v_at = parts.add(rows * keys * sizeof(float));
    // Float models keep what they compute, and their keys and values are floats.
    const Bf16Attention* const in_bf16 = bf16 && half ? layer.out.kernels->bf16_attention : nullptr;
    std::vector<Attention> attentions;
    size_t packed_bytes = 0, first = 0;
    for (const CachedRows& sequence : sequences) {
        const size_t step = sequence.capacity * width;
        attentions.push_back({sequence.rows, shape.heads, shape.kv_heads, sequence.length + sequence.rows, width, true,
                              nullptr, sequence.keys, sequence.values, step, width, step, width, nullptr, half});
        if (in_bf16) packed_bytes = std::max(packed_bytes, in_bf16->packed_bytes(attentions.back()));
    }
    const size_t packed_at = parts.add(packed_bytes);
    const std::span<const Linear> out_layer(&layer.out, 1);
    const Input read_input{nullptr, rows, {}, nullptr, bf16};
    const size_t scratch_at =
        parts.add(std::max(scratch_of_linears(layer.qkv, input), scratch_of_linears(out_layer, read_input)));
    uint8_t* const memory = work.pool.scratch(parts.bytes());
    const auto floats_at = [&](size_t at) { return reinterpret_cast<float*>(memory + at); };
    float *const q = floats_at(q_at), *const k = floats_at(k_at), *const v = floats_at(v_at), *const read = floats_at(read_at);
    const Output made[] = {{q, nullptr, nullptr}, {k, nullptr, nullptr}, {v, nullptr, nullptr}};
    const auto turn_and_keep = [&](size_t row) {
        const float *row_cos = cos + row * width / 2, *row_sin = sin + row * width / 2;
        floats.turn(q + row * queries, row_cos, row_sin, shape.heads, width, q + row * queries);
        floats.turn(k + row * keys, row_cos, row_sin, shape.kv_heads, width, k + row * keys);
        const auto [sequence, at] = place_of(sequences, row);
        for (size_t head = 0; head < shape.kv_heads; head++) {
            const size_t place = (head * sequence->capacity + sequence->length + at) * width;
            keep(k + row * keys + head * width, width, sequence->keys, place, half);
            keep(v + row * keys + head * width, width, sequence->values, place, half);
        }
    };
    bool whole = run_linears(work, layer.qkv, made, input, memory + scratch_at) && for_rows(work, rows, turn_and_keep);
    for (Attention& a : attentions) {
        a.q = q + first * queries, a.out = read + first * queries;
        whole = whole && (in_bf16 ? attend_packed(work, *in_bf16, a, memory + packed_at) : run_attention(work, floats, a));
        first += a.queries;
    }
    const Output sum[] = {{x, nullptr, x}};
    return whole && run_linears(work, out_layer, sum, {read, rows, {}, nullptr, bf16}, memory + scratch_at);
}

// The second half.
bool decoder_feed_forward(const Work& work, const DecoderLayer& layer, const DecoderShape& shape, float* x, size_t rows,
                          bool bf16) {
    const Input input{x, rows, {Step::rms_norm, layer.feed_forward_norm, nullptr, shape.eps}, nullptr, bf16};
    const Linear both[] = {layer.gate, layer.up};
    const std::span<const Linear> down(&layer.down, 1);
    if (layer.gate.in_bf16(bf16) && layer.up.in_bf16(bf16) && layer.down.in_bf16(bf16) &&
        layer.gate.weights->layout == layer.up.weights->layout)
        return run_gated_feed_forward(work, input, layer.gate, layer.up, layer.down, x);
    const size_t bytes = rows * layer.gate.weights->rows * sizeof(float);
    Input inner{nullptr, rows, {Step::swiglu}, nullptr, bf16};
    Parts parts;
    const size_t gate_at = parts.add(bytes), up_at = parts.add(bytes);
    const size_t scratch_at = parts.add(std::max(scratch_of_linears(both, input), scratch_of_linears(down, inner)));
    uint8_t* const memory = work.pool.scratch(parts.bytes());
    auto *const gates = reinterpret_cast<float*>(memory + gate_at), *const ups = reinterpret_cast<float*>(memory + up_at);
    inner.x = gates, inner.second = ups;
    const Output made[] = {{gates, nullptr, nullptr}, {ups, nullptr, nullptr}}, sum[] = {{x, nullptr, x}};
    return run_linears(work, both, made, input, memory + scratch_at) &&
           run_linears(work, down, sum, inner, memory + scratch_at);
}

}  // namespace

bool for_rows(const Work& work, size_t rows, const std::function<void(size_t)>& row_work) {
    return work.run((rows + kRowsToPrepare - 1) / kRowsToPrepare, [&](size_t task) {
        for (size_t row = task * kRowsToPrepare; row < std::min(rows, (task + 1) * kRowsToPrepare); row++) row_work(row);
    });
}

bool run_step(const Work& work, const FloatKernels& kernels, const Step& step, const float* x, const float* second, size_t rows,
             size_t columns, float* out) {
    return for_rows(work, rows, [&](size_t row) {
        kernels.prepare(step, x + row * columns, second ? second + row * columns : nullptr, columns, out + row * columns);
    });
}

size_t scratch_of_linears(std::span<const Linear> layers, const Input& input) {
    return Places(Wanted(layers, input), layers[0].kernels->bf16_linear, input.rows, layers[0].weights->columns).bytes;
}

bool run_linears(const Work& work, std::span<const Linear> layers, std::span<const Output> outs, const Input& input,
                 uint8_t* scratch) {
    const Kernels& kernels = *layers[0].kernels;
    const size_t rows = input.rows, columns = layers[0].weights->columns;
    const Wanted wanted(layers, input);
    const Places places(wanted, kernels.bf16_linear, rows, columns);
    Made made;
    if (wanted.groups) made.groups = quantised(scratch + places.groups, rows, columns, 1);
    if (wanted.runs) made.runs = quantised(scratch + places.runs, rows, columns, run_of(Layout::q8_row));
    if (wanted.brain_floats) made.brain_floats = reinterpret_cast<uint16_t*>(scratch + places.brain_floats);
    if (wanted.floats) made.floats = reinterpret_cast<float*>(scratch + places.floats);
    const auto make = [&](size_t row) {
        const float* second = input.second ? input.second + row * columns : nullptr;
        const float* from = take(*kernels.floats, input.step, input.x + row * columns, second, columns,
                                 made.floats ? made.floats + row * columns : nullptr);
        if (made.groups) kernels.floats->quantize(from, *made.groups, row);
        if (made.runs) kernels.floats->quantize(from, *made.runs, row);
        if (made.brain_floats) kernels.bf16_linear->round(from, columns, made.brain_floats, row);
    };
    std::vector<Share> shares;
    std::vector<size_t> firsts;  // tasks of each layer
    size_t tasks = 0;
    for (const Linear& layer : layers) {
        shares.emplace_back(layer, rows, input.bf16);
        firsts.push_back(tasks);
        tasks += shares.back().tasks();
    }
    const auto multiply = [&](size_t task) {
        size_t i = layers.size() - 1;
        while (task < firsts[i]) i--;
        const Weights& w = *layers[i].weights;
        const Range some = shares[i].rows(task - firsts[i]), blocks = shares[i].blocks(task - firsts[i]);
        Output out = outs[i];
        out.bias = layers[i].bias;
        if (layers[i].in_bf16(input.bf16))
            kernels.bf16_linear->multiply(w, made.brain_floats, some, blocks, out);
        else if (is_float(w.layout))
            kernels.floats->multiply(w, made.floats ? made.floats : input.x, some, blocks, out);
        else
            kernels.multiply(w, made.of(w.layout), some, blocks, out);
    };
    return (!(wanted.floats || wanted.rounded()) || for_rows(work, rows, make)) && work.run(tasks, multiply);
}

bool run_attention(const Work& work, const FloatKernels& kernels, const Attention& a) {
    return work.run(a.tasks(), [&](size_t task) { kernels.attend(a, task, float_notepad(a.scratch())); });
}

bool run_bf16_attention(const Work& work, const Bf16Attention& kernels, const Attention& a) {
    return attend_packed(work, kernels, a, work.pool.scratch(kernels.packed_bytes(a)));
}

bool run_self_attention(const Work& work, const Input& input, std::span<const Linear, 4> layers, size_t heads, float* out) {
    const Kernels& kernels = *layers[0].kernels;
    const size_t rows = input.rows, columns = layers[0].weights->columns, width = columns / heads;
    Attention a{rows, heads, heads, rows, width, false, nullptr, nullptr, nullptr, width, columns, width, columns, nullptr};
    Parts parts;
    const size_t in_at = parts.add(kernels.bf16_linear->nbytes(rows, columns));
    const size_t packed_at = parts.add(kernels.bf16_attention->packed_bytes(a));
    size_t at[4];  // of queries, keys, values, and what is read
    for (size_t& part : at) part = parts.add(rows * columns * sizeof(float));
    uint8_t* const memory = work.pool.scratch(parts.bytes());
    auto* const in = reinterpret_cast<uint16_t*>(memory + in_at);
    float* made[4];
    for (size_t i = 0; i < 4; i++) made[i] = reinterpret_cast<float*>(memory + at[i]);
    a.q = made[0], a.keys = made[1], a.values = made[2], a.out = made[3];
    bool whole = round_rows(work, kernels, input, columns, in);
    for (size_t i = 0; i < 3 && whole; i++) whole = multiply_rounded(work, layers[i], in, rows, made[i], nullptr);
    return whole && attend_packed(work, *kernels.bf16_attention, a, memory + packed_at) &&
           round_rows(work, kernels, {made[3], rows}, columns, in) &&
           multiply_rounded(work, layers[3], in, rows, out, input.x);
}

bool run_feed_forward(const Work& work, const Input& input, const Linear& up, const Step& between, const Linear& down, float* out) {
    const Share share(up, input.rows, true);
    return feed(work, input, up, share, down, out, [&](const uint16_t* in, Range rows, Range blocks, uint16_t* inner) {
        up.kernels->bf16_linear->multiply_between(*up.weights, in, rows, blocks, up.bias, between, inner);
    });
}

bool run_gated_feed_forward(const Work& work, const Input& input, const Linear& gate, const Linear& up, const Linear& down,
                        float* out) {
    const Share share(*gate.kernels->bf16_linear, input.rows, gate.weights->blocks(), true);
    return feed(work, input, gate, share, down, out, [&](const uint16_t* in, Range rows, Range blocks, uint16_t* inner) {
        gate.kernels->bf16_linear->multiply_gated(*gate.weights, *up.weights, in, rows, blocks, inner);
    });
}

bool run_decoder_layer(const Work& work, const DecoderLayer& layer, const DecoderShape& shape, float* x, size_t rows,
                   const float* cos, const float* sin, std::span<const CachedRows> sequences, bool half, bool bf16) {
    return decoder_attention(work, layer, shape, x, rows, cos, sin, sequences, half, bf16) &&
           decoder_feed_forward(work, layer, shape, x, rows, bf16);
}

bool run_decoder_end(const Work& work, const float* norm, const Linear& output, const DecoderShape& shape, const float* x,
                     std::span<const CachedRows> sequences, std::span<const size_t> tails, float* logits) {
    const size_t columns = output.weights->columns, count = std::accumulate(tails.begin(), tails.end(), size_t{0});
    Input input{nullptr, count, {Step::rms_norm, norm, nullptr, shape.eps}};
    const std::span<const Linear> layer(&output, 1);
    Parts parts;
    const size_t last_at = parts.add(count * columns * sizeof(float)), scratch_at = parts.add(scratch_of_linears(layer, input));
    uint8_t* const memory = work.pool.scratch(parts.bytes());
    auto* const last = reinterpret_cast<float*>(memory + last_at);
    float* to = last;
    for (size_t i = 0; i < sequences.size(); i++) {
        x += sequences[i].rows * columns;
        to = std::copy_n(x - tails[i] * columns, tails[i] * columns, to);
    }
    input.x = last;
    const Output out[] = {{logits, nullptr, nullptr}};
    return run_linears(work, layer, out, input, memory + scratch_at);
}

}  // namespace handlens
