// What a model does with its matrices, shared out among the threads: linear layers, what stands between them, and whole
// layers of the vision tower and of the decoder. Everything was checked before; functions are false once they were stopped.
#pragma once

#include <functional>
#include <span>

#include "kernels.h"
#include "pool.h"

namespace handlens {

// The threads, and what says that they should stop.
struct Work {
    Pool::Lease& pool;
    const std::function<bool()>& stop;

    bool run(size_t count, const std::function<void(size_t)>& task) const { return pool.run(count, task, stop); }
};

// Packed weights, and the kernels that they are packed for. Where they lie is looked up by the holder of the pool only.
struct Linear {
    const Kernels* kernels;
    const Weights* weights;
    const float* bias = nullptr;

    // Whether it is multiplied in bfloat16; quantised weights are where it is wanted, if they can be.
    bool in_bf16(bool wanted) const { return kernels->in_bf16(weights->layout, wanted); }
};

// Runs work(row) for all rows, a few in a task.
bool for_rows(const Work& work, size_t rows, const std::function<void(size_t)>& row_work);

// Rows after a step, to `out`; `second` is the second input, where the step has one.
bool run_step(const Work& work, const FloatKernels& kernels, const Step& step, const float* x, const float* second, size_t rows,
             size_t columns, float* out);

// What goes into linear layers: rows of numbers, and a step on the way.
struct Input {
    const float* x;
    size_t rows;
    Step step{};
    const float* second = nullptr;  // of the step
    bool bf16 = false;              // where it is wanted, see Linear
};

// Bytes of memory that `run_linears` needs.
size_t scratch_of_linears(std::span<const Linear> layers, const Input& input);
// The input through several layers to an output each; biases are the layers' own.
bool run_linears(const Work& work, std::span<const Linear> layers, std::span<const Output> outs, const Input& input,
                 uint8_t* scratch);

// Softmax attention in float32, or in bfloat16 by kernels that have it.
bool run_attention(const Work& work, const FloatKernels& kernels, const Attention& attention);
bool run_bf16_attention(const Work& work, const Bf16Attention& kernels, const Attention& attention);

// A layer of the vision tower in two halves, on layers in bfloat16: out = x plus what attention among its rows makes of it
// after a step (layers of queries, keys, values and of what is read), or plus what two linear layers make of it, with
// another step between them. `out` may be x.
bool run_self_attention(const Work& work, const Input& input, std::span<const Linear, 4> layers, size_t heads, float* out);
bool run_feed_forward(const Work& work, const Input& input, const Linear& up, const Step& between, const Linear& down, float* out);

// out = x plus what three linear layers in bfloat16 make of it after a step: down of silu(gate) * up, where gate and up have
// one layout. `out` may be x.
bool run_gated_feed_forward(const Work& work, const Input& input, const Linear& gate, const Linear& up, const Linear& down,
                        float* out);

// A layer of the decoder: weights of its norms and its matrices.
struct DecoderLayer {
    const float *attention_norm, *feed_forward_norm;
    Linear qkv[3], out, gate, up, down;
};

struct DecoderShape {
    size_t heads, kv_heads, head;  // how many of each, and the width of one
    float eps;                     // of all norms
};

// Rows of one sequence in a call: behind `length` positions whose keys and values lie in [kv_heads, capacity, head].
struct CachedRows {
    size_t rows, length, capacity;
    void *keys, *values;  // float16 or float32
};

// One layer on the rows x [n, D] of all sequences, in place; their new keys and values, turned by the cosines and sines
// [n, head / 2], are added to what is cached.
bool run_decoder_layer(const Work& work, const DecoderLayer& layer, const DecoderShape& shape, float* x, size_t rows,
                   const float* cos, const float* sin, std::span<const CachedRows> sequences, bool half, bool bf16);

// The logits of the last so many rows (`tails`) of each sequence: a norm, and one layer.
bool run_decoder_end(const Work& work, const float* norm, const Linear& output, const DecoderShape& shape, const float* x,
                     std::span<const CachedRows> sequences, std::span<const size_t> tails, float* logits);

}  // namespace handlens
