// Numbers to GGUF blocks: the block types that weights can be written as, for each instruction set.
//
// A block is chosen so that the sum of importance * (number - what the block says)^2 is small. The search is the one of
// handlens/quant/search.py, operation for operation in float32, so both give the same bytes; here every lane of a vector
// register works on a block of its own (vectors.h, search.h), so the bytes depend neither on the instruction set nor on the
// threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace handlens {

struct Quantizer {
    std::string_view type;
    size_t weights, nbytes;
    // Writes `count` blocks of `weights` numbers; `importance` has as many numbers as x, or is null.
    void (*write)(const float* x, const float* importance, size_t count, uint8_t* out);
};

// What x is stored as.
enum class Plain { f32, f16, bf16 };

// The quantisers of an instruction set of dispatch.h.
std::span<const Quantizer> quantizers(std::string_view isa);

// Blocks of one task.
constexpr size_t kBlocksToWrite = 64;

// Quantises blocks first to last of rows of `columns` numbers. `importance` is a number a column, or null. Returns the
// largest magnitude among the numbers: infinity or not a number where one of them is.
float write_blocks(const Quantizer& quantizer, Plain plain, const uint8_t* numbers, const float* importance,
                   size_t columns, size_t first, size_t last, uint8_t* out);

std::span<const Quantizer> scalar_quantizers();
#ifdef HANDLENS_X86
std::span<const Quantizer> avx2_quantizers();
std::span<const Quantizer> avx512_quantizers();
#endif

}  // namespace handlens
