#include "quantizers.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "half.h"

namespace handlens {
namespace {

void read_plain(Plain plain, const uint8_t* numbers, size_t count, float* x) {
    if (plain == Plain::f32) {
        std::memcpy(x, numbers, count * 4);
    } else if (plain == Plain::f16) {
        for (size_t i = 0; i < count; i++) x[i] = from_half(numbers + 2 * i);
    } else {
        for (size_t i = 0; i < count; i++) {
            uint16_t high;
            std::memcpy(&high, numbers + 2 * i, 2);
            const uint32_t bits = static_cast<uint32_t>(high) << 16;
            std::memcpy(x + i, &bits, 4);
        }
    }
}

// The bits of a magnitude, compared as integers, order numbers < infinity < not a number: nothing gets lost.
float largest_magnitude(const float* x, size_t count) {
    int32_t largest = 0;
    for (size_t i = 0; i < count; i++) {
        int32_t bits;
        std::memcpy(&bits, x + i, 4);
        largest = std::max(largest, bits & 0x7fffffff);
    }
    float magnitude;
    std::memcpy(&magnitude, &largest, 4);
    return magnitude;
}

}  // namespace

std::span<const Quantizer> quantizers(std::string_view isa) {
#ifdef HANDLENS_X86
    if (isa == "avx512vnni" || isa == "amx") return avx512_quantizers();
    if (isa == "avx2" || isa == "avxvnni") return avx2_quantizers();
#endif
    (void)isa;
    return scalar_quantizers();
}

float write_blocks(const Quantizer& quantizer, Plain plain, const uint8_t* numbers, const float* importance,
                   size_t columns, size_t first, size_t last, uint8_t* out) {
    const size_t weights = quantizer.weights, count = (last - first) * weights;
    std::vector<float> x(count), repeated(importance ? count : 0);
    read_plain(plain, numbers + first * weights * (plain == Plain::f32 ? 4 : 2), count, x.data());
    if (importance)
        for (size_t block = first; block < last; block++)
            std::memcpy(repeated.data() + (block - first) * weights, importance + block * weights % columns,
                        weights * sizeof(float));
    quantizer.write(x.data(), importance ? repeated.data() : nullptr, last - first, out + first * quantizer.nbytes);
    return largest_magnitude(x.data(), count);
}

}  // namespace handlens
