// The nodes on the CPU write all of their outputs and nothing beside them, and read nothing beside their inputs, which
// AddressSanitizer sees. What they compute is tested against float64 in tests/kernels, through ONNX Runtime, whose
// memory tells nothing of that.
#include "onnxruntime/cpu.h"

#include <cstdint>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "check.h"

using nuwaxl::Attributes;
using nuwaxl::Op;
using nuwaxl::Shape;

namespace {

constexpr std::size_t kGuard = 64;  // bytes on both sides of an output
constexpr unsigned char kPoison = 0xFF;

using Bytes = std::vector<unsigned char>;

std::size_t count(const Shape& shape) {
    return static_cast<std::size_t>(
        std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<std::int64_t>()));
}

// Of zeros all answers are zeros, so what of an output is not poison any more can be told byte by byte.
bool stays_inside(Op op, const std::vector<Shape>& shapes, const Attributes& attributes) {
    bool well = true;
    for (const std::string type : {"float32", "float16", "bfloat16"}) {
        const std::size_t element = type == "float32" ? 4 : 2;
        std::vector<Bytes> read, made;
        for (std::size_t i = 0; i < shapes.size(); ++i) {
            const bool row = op == Op::kGuidedUpdate && i >= 5;
            read.emplace_back(count(shapes[i]) * (row ? 4 : element), 0);
        }
        for (const Shape& shape : nuwaxl::plan_call(op, shapes, attributes, type).outputs) {
            made.emplace_back(count(shape) * element + 2 * kGuard, kPoison);
        }
        std::vector<const void*> inputs;
        std::vector<void*> outputs;
        for (const Bytes& tensor : read) inputs.push_back(tensor.data());
        for (Bytes& tensor : made) outputs.push_back(tensor.data() + kGuard);
        nuwaxl::compute_on_cpu(op, attributes, type, shapes, inputs, outputs,
                               [](std::size_t tasks, const std::function<void(std::size_t)>& function) {
                                   for (std::size_t task = 0; task < tasks; ++task) function(task);
                               });
        for (const Bytes& tensor : made) {
            for (std::size_t at = 0; at < tensor.size(); ++at) {
                const bool beside = at < kGuard || at >= tensor.size() - kGuard;
                well = well && tensor[at] == (beside ? kPoison : 0);
            }
        }
    }
    return well;
}

}  // namespace

TEST(attention_stays_inside_its_tensors) {
    // Pixels and channels that fill no tile.
    for (const std::int64_t pixels : {1, 17}) {
        CHECK(stays_inside(Op::kTemporalAttention, {{2, 5, pixels, 3 * 2 * 7}}, {2, 0, 0.0F}));
    }
}

TEST(a_convolution_stays_inside_its_tensors) {
    for (const std::int64_t channels : {3, 70}) {
        const Shape x{4, 3, 3, channels}, half{2, 3, 3, channels}, weight{5, channels, channels}, bias{channels};
        CHECK(stays_inside(Op::kTemporalConv, {x, weight, bias}, {}));
        CHECK(stays_inside(Op::kTemporalConvInjection, {x, weight, bias, half, half}, {}));
    }
}

TEST(a_group_norm_stays_inside_its_tensors) {
    const std::vector<Shape> shapes{{2, 3, 5, 6}, {6}, {6}};
    CHECK(stays_inside(Op::kGroupNorm, shapes, {0, 2, 1e-5F}));
    CHECK(stays_inside(Op::kGroupNormSilu, shapes, {0, 3, 1e-5F}));
}

TEST(the_update_stays_inside_its_tensors) {
    const Shape x{3, 2, 5, 7};
    CHECK(stays_inside(Op::kGuidedUpdate, {x, x, x, x, x, {3, 6}, {3}}, {}));
}

int main() { return check::run_all(); }
