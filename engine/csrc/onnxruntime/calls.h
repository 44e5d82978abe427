// What a node of the domain `nuwaxl` asks of the GPU: which compiled kernel, over how much. Pure functions of the
// tensors' shapes; kernels/aot.py gives the kernels the same names.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nuwaxl {

enum class Op { kTemporalAttention, kTemporalConv, kTemporalConvInjection, kGroupNorm, kGroupNormSilu, kGuidedUpdate };

struct Attributes {
    std::int64_t heads = 0;
    std::int64_t groups = 0;
    float eps = 0.0F;
};

using Shape = std::vector<std::int64_t>;

struct Call {
    std::string kernel;               // the name in kernels.json
    std::int64_t batch = 0;           // segments, or frames where every frame is one
    std::int64_t items = 0;           // the kernel's int32 argument: pixels, or values of a segment
    std::vector<int> inputs;          // which input each pointer argument before `items` is
    std::vector<Shape> outputs;       // shapes, in order
    // A kernel to launch before, from the first input to scratch memory, which `kernel` takes after its inputs.
    std::string statistics = {};      // its name; empty for none
    std::int64_t scratch_bytes = 0;
    // Of the pointer arguments before `items`, the last ones that kernels were promised no alignment of
    // (kernels/checks.py).
    std::size_t unaligned = 0;
};

// How the kernel's programs are counted, as kernels.json says.
struct Grid {
    std::int64_t fixed = 1;
    std::int64_t per_item = 0;
    std::int64_t block = 0;

    std::int64_t programs(std::int64_t batch, std::int64_t items) const;
};

// `type` is "float32", "float16" or "bfloat16". Throws std::invalid_argument where the shapes do not fit the node.
Call plan_call(Op op, const std::vector<Shape>& inputs, const Attributes& attributes, const std::string& type);

}  // namespace nuwaxl
