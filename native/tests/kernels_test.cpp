// Compares every instruction set of this processor with plain C++, bit for bit, on seeded random data.
//
//     kernels_test [NAME ...]     with names: these sets, and no others, have to be usable
//
// Prints what was compared, with a digest of the results, which is the same on every processor, and ends with 1 at the
// first difference.
//
// It needs neither Python nor a framework, so it runs wherever a program can be sent to; see ../cross_test.sh.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#include "dispatch.h"
#include "pack.h"

namespace handlens {
namespace {

using Floats = std::vector<float>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNoNumber = std::numeric_limits<float>::quiet_NaN();

// splitmix64: the same numbers with every compiler and library.
class Random {
public:
    explicit Random(uint64_t seed) : state(seed) {}
    uint64_t bits() {
        uint64_t z = state += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        return z ^ z >> 31;
    }
    size_t below(size_t end) { return bits() % end; }
    // About normal, with variance 1.
    float number() {
        float sum = 0;
        for (int i = 0; i < 3; i++) sum += static_cast<float>(bits() >> 40) * 0x1p-23f - 1.0f;
        return sum;
    }
    Floats numbers(size_t count) {
        Floats made(count);
        for (float& x : made) x = number();
        return made;
    }

private:
    uint64_t state;
};

// What was compared, a row for each set and each thing.
struct Row {
    size_t count = 0;
    uint64_t digest = 0xcbf29ce484222325;  // FNV-1a, 32 bits at a time

    template <class Number>
    void add(Number number) {
        uint32_t bits = 0;
        std::memcpy(&bits, &number, sizeof number);
        if constexpr (std::is_same_v<Number, float>)
            if (std::isnan(number)) bits = 0x7fc00000;
        digest = (digest ^ bits) * 0x100000001b3;
        count++;
    }
};
std::map<std::pair<size_t, std::string>, Row> compared;

template <class Number>
bool same(Number a, Number b) {
    // Which of two operands that are no numbers goes on is left to the processor.
    if constexpr (std::is_same_v<Number, float>)
        if (std::isnan(a) && std::isnan(b)) return true;
    return std::memcmp(&a, &b, sizeof a) == 0;
}

template <class Number>
void compare(size_t set, const std::string& what, const std::string& details, const std::vector<Number>& got,
             const std::vector<Number>& wanted) {
    Row& row = compared[{set, what}];
    for (size_t i = 0; i < wanted.size(); i++) {
        row.add(got[i]);
        if (!same(got[i], wanted[i])) {
            std::printf("%s: %s (%s) gives %.9g at %zu of %zu, scalar %.9g\n", usable_kernels()[set]->name, what.c_str(),
                        details.c_str(), static_cast<double>(got[i]), i, wanted.size(), static_cast<double>(wanted[i]));
            std::exit(1);
        }
    }
}

// Memory to write results on, with numbers behind it that have to stay as they are.
Floats results(size_t count) { return Floats(count + 32, 12345.0f); }

struct Quantized {
    std::vector<int8_t> values;
    Floats scales, sums;
    std::vector<int32_t> offsets, half_offsets;
    Activations view;

    Quantized(const Kernels& kernels, const Floats& x, size_t rows, size_t columns, size_t run)
        : view{rows, columns, (columns + kGroup - 1) / kGroup, run, nullptr, nullptr, nullptr, nullptr, nullptr} {
        const size_t count = rows * view.groups;
        values.resize(count * kGroup);
        scales.resize(count), sums.resize(count), offsets.resize(count), half_offsets.resize(count * 2);
        view.values = values.data(), view.scales = scales.data(), view.offsets = offsets.data();
        view.half_offsets = half_offsets.data(), view.sums = sums.data();
        for (size_t row = 0; row < rows; row++) kernels.floats->quantize(x.data() + row * columns, view, row);
    }
};

void test_quantize() {
    const auto& sets = usable_kernels();
    Random random(1);
    for (const size_t columns : {1, 15, 16, 17, 31, 32, 33, 70, 256}) {
        std::vector<Floats> rows(6, random.numbers(columns));
        for (float& x : rows[1]) x = -0.0f;
        for (float& x : rows[2]) x *= 1e-31f;  // counts as zero
        for (float& x : rows[3]) x *= 1e38f;
        for (float& x : rows[4]) x = static_cast<float>(random.below(255)) - 127.5f;  // halves, to be rounded to even
        rows[4][0] = 127.0f;
        rows.insert(rows.end(), {rows[0], rows[0]});
        rows[6][columns / 2] = -kInfinity;
        rows[7][columns - 1] = kNoNumber;
        Floats x;
        for (const Floats& row : rows) x.insert(x.end(), row.begin(), row.end());
        for (const size_t run : {1, 2}) {
            const Quantized wanted(kScalar, x, rows.size(), columns, run);
            for (size_t set = 0; set < sets.size(); set++) {
                const Quantized got(*sets[set], x, rows.size(), columns, run);
                const std::string details = std::to_string(columns) + " columns, runs of " + std::to_string(run);
                compare(set, "quantize", details + ", values", got.values, wanted.values);
                compare(set, "quantize", details + ", scales", got.scales, wanted.scales);
                compare(set, "quantize", details + ", sums", got.sums, wanted.sums);
                compare(set, "quantize", details + ", offsets", got.offsets, wanted.offsets);
                compare(set, "quantize", details + ", offsets of halves", got.half_offsets, wanted.half_offsets);
            }
        }
    }
}

struct Free {
    void operator()(uint8_t* memory) const { ::operator delete[](memory, std::align_val_t(64)); }
};
using Aligned = std::unique_ptr<uint8_t[], Free>;

struct Packed {
    Weights weights;
    Aligned codes, scales;

    Packed(const Source& source, Layout layout, const std::vector<uint8_t>& data, size_t rows, size_t columns,
           const Kernels& kernels)
        : weights{layout,  rows,    columns, is_float(layout) ? 16 : kernels.interleave,
                  nullptr, nullptr, source.levels ? source.levels->data() : nullptr} {
        codes.reset(new (std::align_val_t(64)) uint8_t[weights.blocks() * weights.block_bytes()]);
        scales.reset(new (std::align_val_t(64)) uint8_t[weights.blocks() * weights.scale_bytes()]);
        weights.codes = codes.get(), weights.scales = scales.get();
        // Any places will do for a grid; the smallest has three magnitudes.
        std::vector<uint8_t> grid(source.points * source.point_columns);
        for (size_t i = 0; i < grid.size(); i++) grid[i] = static_cast<uint8_t>(i * 7 % 3);
        const size_t row_bytes = columns / source.weights * source.nbytes;
        for (size_t block = 0; block < weights.blocks(); block++) {
            const size_t row = block * weights.interleave;
            pack_block(source, weights, data.data() + row * row_bytes, std::min(weights.interleave, rows - row), grid.data(),
                       codes.get() + block * weights.block_bytes(), scales.get() + block * weights.scale_bytes());
        }
    }
};

// Blocks of a type: random bytes, but scales are finite and float numbers of one size.
std::vector<uint8_t> random_blocks(const Source& source, size_t count, Random& random) {
    std::vector<uint8_t> data(count * source.nbytes);
    for (uint8_t& byte : data) byte = static_cast<uint8_t>(random.bits());
    for (size_t i = 0; i < count; i++) {
        uint8_t* block = data.data() + i * source.nbytes;
        if (source.layout == Layout::f32) {
            const float number = random.number();
            std::memcpy(block, &number, 4);
        } else if (source.layout == Layout::bf16) {
            block[1] = (block[1] & 0x80) | 0x3f;  // 0.5 to 2
        } else if (source.layout == Layout::f16) {
            block[1] = (block[1] & 0x87) | 0x38;  // 0.5 to 1
        } else {
            // Scales are float16, in the first or the last four bytes; without the highest bit of the exponent they are < 2.
            for (size_t k = 0; k < 4; k++) block[k] &= 0xbf, block[source.nbytes - 1 - k] &= 0xbf;
        }
    }
    return data;
}

// Some numbers are infinite, none at all, or so small that they have fewer bits.
void poison(const Source& source, std::vector<uint8_t>& data) {
    const uint32_t f32[] = {0x7f800000, 0x7fc00000, 1};
    const uint16_t f16[] = {0x7c00, 0x7e00, 0x83ff}, bf16[] = {0xff80, 0x7fc0, 0x8001};
    for (size_t i = 0; i < 3; i++) {
        uint8_t* at = data.data() + data.size() / source.nbytes * i / 4 * source.nbytes;
        if (source.layout == Layout::f32) std::memcpy(at, f32 + i, 4);
        if (source.layout == Layout::f16) std::memcpy(at, f16 + i, 2);
        if (source.layout == Layout::bf16) std::memcpy(at, bf16 + i, 2);
    }
}

// A product in one go, or in pieces as several threads would compute it.
Floats multiply(const Kernels& kernels, const Weights& w, const Floats& x, size_t tokens, const Output& added, bool pieces) {
    Floats made = results(tokens * w.rows);
    // A residual may be what the result takes the place of.
    if (added.residual && pieces) std::copy(added.residual, added.residual + tokens * w.rows, made.begin());
    const Output out{made.data(), added.bias, added.residual && pieces ? made.data() : added.residual};
    const Quantized quantized(kernels, x, tokens, w.columns, run_of(w.layout));
    const size_t row = pieces ? (tokens + 1) / 3 : 0, block = pieces ? w.blocks() / 2 : 0;
    for (const Range rows : {Range{0, row}, Range{row, tokens}})
        for (const Range blocks : {Range{0, block}, Range{block, w.blocks()}})
            if (is_float(w.layout))
                kernels.floats->multiply(w, x.data(), rows, blocks, out);
            else
                kernels.multiply(w, quantized.view, rows, blocks, out);
    return made;
}

void test_multiply(const Source& source, Layout layout) {
    const auto& sets = usable_kernels();
    const bool numbers = is_float(source.layout), int8 = layout != source.layout;
    const std::string what = "multiply " + std::string(source.type) + (int8 ? " as int8" : "");
    std::vector<size_t> widths = {source.weights, 3 * source.weights};
    if (numbers) widths = {1, 33, 72, 130};
    Random random(2);
    for (const size_t columns : widths)
        for (const size_t rows : {1, 3, 4, 8, 17, 37, 66}) {
            std::vector<uint8_t> data = random_blocks(source, rows * columns / source.weights, random);
            const bool poisoned = numbers && rows == 37;
            if (poisoned) poison(source, data);
            std::vector<Packed> packed;
            for (const Kernels* kernels : sets) packed.emplace_back(source, layout, data, rows, columns, *kernels);
            for (const size_t tokens : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17}) {
                Floats x = random.numbers(tokens * columns);
                if (poisoned) x[x.size() / 2] = kNoNumber;
                const Floats bias = random.numbers(rows), residual = random.numbers(tokens * rows);
                const Output added{nullptr, tokens % 2 ? bias.data() : nullptr, tokens % 3 ? nullptr : residual.data()};
                const Floats wanted = multiply(kScalar, packed.back().weights, x, tokens, added, false);
                const std::string details = std::to_string(rows) + " x " + std::to_string(columns) + ", " +
                                            std::to_string(tokens) + " tokens";
                for (size_t set = 0; set < sets.size(); set++) {
                    const Weights& w = packed[set].weights;
                    compare(set, what, details, multiply(*sets[set], w, x, tokens, added, false), wanted);
                    compare(set, what, details + ", in pieces", multiply(*sets[set], w, x, tokens, added, true), wanted);
                }
            }
        }
}

// More tokens, blocks and columns than any set takes at a time.
void test_large_multiply(const Source& source, Layout layout) {
    const size_t rows = 150, columns = 1536, tokens = 300;
    const auto& sets = usable_kernels();
    Random random(6);
    const std::vector<uint8_t> data = random_blocks(source, rows * columns / source.weights, random);
    const Floats x = random.numbers(tokens * columns);
    const Output added{nullptr, nullptr, nullptr};
    Floats wanted;
    for (size_t set = sets.size(); set-- > 0;) {  // scalar is the last
        const Packed packed(source, layout, data, rows, columns, *sets[set]);
        const Floats got = multiply(*sets[set], packed.weights, x, tokens, added, false);
        if (wanted.empty()) wanted = got;
        compare(set, "large multiply " + std::string(source.type), "300 tokens", got, wanted);
    }
}

void test_prepare() {
    const auto& sets = usable_kernels();
    const std::pair<const char*, Step::Kind> kinds[] = {{"layer_norm", Step::layer_norm}, {"rms_norm", Step::rms_norm},
                                                        {"gelu_tanh", Step::gelu_tanh},   {"gelu", Step::gelu},
                                                        {"swiglu", Step::swiglu}};
    Random random(3);
    for (const size_t columns : {1, 5, 15, 16, 17, 72, 1152})
        for (const float size : {1.0f, 30.0f, 1e-20f, 1e20f, kInfinity, kNoNumber}) {
            Floats x = random.numbers(columns);
            const Floats weight = random.numbers(columns), bias = random.numbers(columns), second = random.numbers(columns);
            if (std::isfinite(size))
                for (float& number : x) number *= size;
            else
                x[columns / 3] = size;
            if (columns > 1) x[0] = -0.0f;
            for (const auto& [name, kind] : kinds) {
                const Step step{kind, weight.data(), bias.data(), 1e-6f};
                Floats wanted = results(columns);
                kScalar.floats->prepare(step, x.data(), second.data(), columns, wanted.data());
                for (size_t set = 0; set < sets.size(); set++) {
                    Floats got = results(columns);
                    sets[set]->floats->prepare(step, x.data(), second.data(), columns, got.data());
                    compare(set, name, std::to_string(columns) + " columns", got, wanted);
                }
            }
        }
}

Floats attend(const FloatKernels& kernels, Attention a) {
    Floats out = results(a.queries * a.heads * a.width);
    a.out = out.data();
    for (size_t task = 0; task < a.tasks(); task++) {
        Floats scratch = results(a.scratch());
        kernels.attend(a, task, scratch.data());
        if (!std::all_of(scratch.end() - 32, scratch.end(), [](float x) { return x == 12345.0f; })) {
            std::printf("attention writes behind its scratch memory\n");
            std::exit(1);
        }
    }
    return out;
}

void test_attend() {
    const auto& sets = usable_kernels();
    struct Shape {
        size_t queries, heads, kv_heads, keys, width;
        bool causal;
    };
    const Shape shapes[] = {{1, 4, 2, 33, 64, true},   {1, 2, 2, 1, 8, true},     {7, 4, 1, 40, 72, true},
                            {35, 2, 2, 35, 72, false}, {130, 1, 1, 130, 16, true}, {20, 6, 3, 90, 20, true},
                            {5, 8, 2, 16, 128, true},  {3, 2, 2, 17, 5, false},   {11, 2, 1, 300, 80, true}};
    Random random(4);
    for (const Shape& s : shapes)
        for (const float size : {1.0f, 20.0f, kInfinity}) {
            const size_t step = s.width + 3, head = s.keys * step + 5;
            Floats q = random.numbers(s.queries * s.heads * s.width);
            if (std::isfinite(size))
                for (float& number : q) number *= size;
            else
                q[q.size() / 2] = size;
            const Floats keys = random.numbers(s.kv_heads * head), values = random.numbers(s.kv_heads * head);
            Attention a{s.queries, s.heads, s.kv_heads, s.keys, s.width, s.causal, q.data(), keys.data(),
                        values.data(), head, step, head, step, nullptr};
            const std::string details = std::to_string(s.queries) + " queries, " + std::to_string(s.heads) + " heads, " +
                                        std::to_string(s.keys) + " keys, width " + std::to_string(s.width);
            const auto test = [&](const std::string& what) {
                const Floats wanted = attend(kFloatScalar, a);
                for (size_t set = 0; set < sets.size(); set++)
                    compare(set, what, details, attend(*sets[set]->floats, a), wanted);
            };
            test("attention");
            // As many float16 numbers, of any bits but those of infinities and what is no number.
            std::vector<uint16_t> half_keys(keys.size()), half_values(values.size());
            for (auto* halves : {&half_keys, &half_values})
                for (uint16_t& half : *halves) half = static_cast<uint16_t>(random.bits() & 0xbfff);
            a.keys = half_keys.data(), a.values = half_values.data(), a.half = true;
            test("attention to float16");
        }
}

void test_turn() {
    const auto& sets = usable_kernels();
    Random random(5);
    for (const size_t width : {2, 10, 64, 128}) {
        const size_t heads = 3;
        const Floats x = random.numbers(heads * width), cos = random.numbers(width / 2), sin = random.numbers(width / 2);
        Floats wanted = results(x.size());
        kScalar.floats->turn(x.data(), cos.data(), sin.data(), heads, width, wanted.data());
        for (size_t set = 0; set < sets.size(); set++) {
            Floats got = results(x.size());
            std::copy(x.begin(), x.end(), got.begin());
            sets[set]->floats->turn(got.data(), cos.data(), sin.data(), heads, width, got.data());
            compare(set, "rope", std::to_string(width) + " wide", got, wanted);
        }
    }
}

void test_work() {
    const auto& sets = usable_kernels();
    for (size_t set = 0; set < sets.size(); set++)
        for (const auto work : {sets[set]->fastest_work, sets[set]->float_work}) {
            // Twice the rounds are twice the operations, some in each round.
            const double few = work(100);
            compare(set, "operations counted", "200 rounds", Floats{static_cast<float>(work(200)), few >= 100 ? 1.0f : 0.0f},
                    Floats{static_cast<float>(2 * few), 1.0f});
        }
}

// What this processor has and lacks; false if that is not what was named.
bool list_sets(const std::vector<std::string>& wanted) {
    std::vector<std::string> usable;
    for (const InstructionSet& set : instruction_sets()) {
        std::string lacking;
        for (const std::string& feature : set.lacking) lacking += " " + feature;
        std::printf("%-14s %s%s\n", set.kernels->name, lacking.empty() ? "usable" : "lacks", lacking.c_str());
        if (lacking.empty()) usable.push_back(set.kernels->name);
    }
    if (wanted.empty() || wanted == usable) return true;
    std::printf("wanted:");
    for (const std::string& name : wanted) std::printf(" %s", name.c_str());
    std::printf("\n");
    return false;
}

void run() {
    test_quantize();
    for (const Source& source : sources()) {
        test_multiply(source, source.layout);
        if (packs_as(source, Layout::q8_row)) test_multiply(source, Layout::q8_row);
    }
    for (const char* type : {"Q4_0", "Q4_K", "Q6_K", "F16"}) {
        const Source& source = *find_source(type);
        test_large_multiply(source, is_float(source.layout) ? Layout::q8_row : source.layout);
    }
    test_prepare();
    test_attend();
    test_turn();
    test_work();
}

}  // namespace
}  // namespace handlens

int main(int count, char** names) {
    using namespace handlens;
    std::setvbuf(stdout, nullptr, _IOLBF, 1 << 12);
    if (!list_sets({names + 1, names + count})) return 1;
    run();
    for (const auto& [key, row] : compared)
        std::printf("%-14s %-24s %9zu numbers as scalar, digest %016llx\n", usable_kernels()[key.first]->name,
                    key.second.c_str(), row.count, static_cast<unsigned long long>(row.digest));
    return 0;
}
