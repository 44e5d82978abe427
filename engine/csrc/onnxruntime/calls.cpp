#include "calls.h"

#include <algorithm>
#include <cstdio>
#include <limits>

#include "../refuse.h"

namespace nuwaxl {

namespace {

std::string text(const Shape& shape) {
    std::string result = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) result += (i ? ", " : "") + std::to_string(shape[i]);
    return result + ")";
}

void check_inputs(std::size_t found, std::size_t expected) {
    if (found != expected) {
        refuse(std::to_string(expected) + " inputs", std::to_string(found), "export the bundle again");
    }
}

void check_rank(const char* name, const Shape& shape, std::size_t rank) {
    if (shape.size() != rank) {
        refuse(std::string(name) + " of rank " + std::to_string(rank), text(shape), "export the bundle again");
    }
}

std::int64_t int32(std::int64_t items) {
    if (items > std::numeric_limits<std::int32_t>::max()) {
        refuse("less than 2^31 values a segment", std::to_string(items), "use smaller frames");
    }
    return items;
}

Call attention(const std::vector<Shape>& inputs, const Attributes& attributes, const std::string& type) {
    check_inputs(inputs.size(), 1);
    const Shape& qkv = inputs[0];
    check_rank("qkv", qkv, 4);
    if (attributes.heads < 1 || qkv[3] % (3 * attributes.heads) != 0) {
        refuse("qkv (b, L, p, 3c) with c a multiple of the heads", text(qkv), "export the bundle again");
    }
    const std::int64_t channels = qkv[3] / 3;
    return {"temporal_attention-L" + std::to_string(qkv[1]) + "-c" + std::to_string(channels) + "-h" +
                std::to_string(attributes.heads) + "-" + type,
            qkv[0], int32(qkv[2]), {0}, {{qkv[0], qkv[1], qkv[2], channels}}};
}

Call convolution(const std::vector<Shape>& inputs, bool inject, const std::string& type) {
    check_inputs(inputs.size(), inject ? 5 : 3);
    const Shape &x = inputs[0], &weight = inputs[1];
    check_rank("x", x, 4);
    check_rank("weight", weight, 3);
    std::string name = inject ? "temporal_conv_injection" : "temporal_conv";
    name += "-L" + std::to_string(x[1]) + "-c" + std::to_string(x[3]) + "-k" + std::to_string(weight[0]);
    if (inject) {
        const Shape &scale = inputs[3], &shift = inputs[4];
        check_rank("scale", scale, 4);
        if (scale != shift || scale[0] < 1 || x[0] % scale[0] != 0 || scale[1] != x[1] || scale[2] != x[2] ||
            scale[3] != x[3]) {
            refuse("scale and shift as x " + text(x) + ", for its batch or a part of it", text(scale) + ", " + text(shift),
                   "export the bundle again");
        }
        name += "-n" + std::to_string(x[0] / scale[0]);
    }
    // Without the injection the kernel reads neither scale nor shift: x stands in for them.
    return {name + "-" + type, x[0], int32(x[2]), inject ? std::vector<int>{0, 1, 2, 3, 4} : std::vector<int>{0, 1, 2, 0, 0},
            {x}};
}

// As kernels/parts.py.
std::int64_t part_of(std::int64_t pixels) {
    if (pixels < 1024) return 0;
    std::int64_t power = 1;
    while (power < pixels) power *= 2;
    return std::max<std::int64_t>(256, power / 64);
}

Call group_norm(const std::vector<Shape>& inputs, const Attributes& attributes, bool silu, const std::string& type) {
    check_inputs(inputs.size(), 3);
    const Shape& x = inputs[0];
    check_rank("x", x, 4);
    char eps[32];
    std::snprintf(eps, sizeof eps, "%g", static_cast<double>(attributes.eps));
    const std::string sizes =
        "-L" + std::to_string(x[1]) + "-c" + std::to_string(x[3]) + "-g" + std::to_string(attributes.groups);
    std::string name = silu ? "group_norm_silu" : "group_norm";
    const std::int64_t part = part_of(int32(x[2]));
    if (part == 0) return {name + sizes + "-e" + eps + "-" + type, x[0], x[2], {0, 1, 2}, {x}};

    const std::string cut = "-p" + std::to_string(part) + "-" + type;
    const std::int64_t parts = (x[2] + part - 1) / part;
    return {name + "_of_parts" + sizes + "-e" + eps + cut, x[0], x[2], {0, 1, 2}, {x},
            "group_norm_statistics" + sizes + cut,
            // Mean and squared deviations of every channel in every part.
            x[0] * x[1] * parts * 2 * x[3] * static_cast<std::int64_t>(sizeof(float))};
}

Call update(const std::vector<Shape>& inputs, const std::string& type) {
    check_inputs(inputs.size(), 7);
    const Shape& x = inputs[0];
    if (x.empty()) refuse("x (b, ...)", text(x), "export the bundle again");
    std::int64_t values = 1;
    for (std::size_t i = 1; i < x.size(); ++i) values *= x[i];
    for (std::size_t i = 1; i < 5; ++i) {
        if (inputs[i] != x) refuse("five tensors of one shape", text(inputs[i]), "export the bundle again");
    }
    return {"guided_update-" + type, x[0], int32(values), {0, 1, 2, 3, 4, 5, 6}, {x, x}};
}

}  // namespace

std::int64_t Grid::programs(std::int64_t batch, std::int64_t items) const {
    return batch * fixed * (block != 0 ? (items * per_item + block - 1) / block : 1);
}

Call plan_call(Op op, const std::vector<Shape>& inputs, const Attributes& attributes, const std::string& type) {
    switch (op) {
        case Op::kTemporalAttention: return attention(inputs, attributes, type);
        case Op::kTemporalConv: return convolution(inputs, false, type);
        case Op::kTemporalConvInjection: return convolution(inputs, true, type);
        case Op::kGroupNorm: return group_norm(inputs, attributes, false, type);
        case Op::kGroupNormSilu: return group_norm(inputs, attributes, true, type);
        case Op::kGuidedUpdate: return update(inputs, type);
    }
    refuse("a node of the domain nuwaxl", "another", "export the bundle again");
}

}  // namespace nuwaxl
