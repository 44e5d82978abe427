#include "calls.h"

#include <algorithm>
#include <cstdio>
#include <limits>

#include "../refuse.h"

namespace nuwaxl {

namespace {

constexpr std::int64_t kMaxLength = 64;

std::string text(const Shape& shape) {
    std::string result = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) result += (i ? ", " : "") + std::to_string(shape[i]);
    return result + ")";
}

// The checks of kernels/checks.py, of what a bundle's graph has: only an export changes it.
void require(bool holds, const std::string& expected, const std::string& found) {
    if (!holds) refuse(expected, found, "export the bundle again");
}

void check_inputs(std::size_t found, std::size_t expected) {
    require(found == expected, std::to_string(expected) + " inputs", std::to_string(found));
}

void check_rank(const char* name, const Shape& shape, std::size_t rank) {
    require(shape.size() == rank, std::string(name) + " of rank " + std::to_string(rank), text(shape));
}

// Kernels count the values of one segment, or of one frame where a program sees no more, in 32 bits.
void check_values(const char* of, std::int64_t values) {
    if (values > std::numeric_limits<std::int32_t>::max()) {
        refuse("less than 2^31 values a " + std::string(of), std::to_string(values), "use smaller frames");
    }
}

Call attention(const std::vector<Shape>& inputs, const Attributes& attributes, const std::string& type) {
    check_inputs(inputs.size(), 1);
    const Shape& qkv = inputs[0];
    check_rank("qkv", qkv, 4);
    const std::int64_t channels = qkv[3] / 3;
    require(attributes.heads >= 1 && qkv[3] % 3 == 0 && channels % attributes.heads == 0,
            "qkv (b, L, p, 3c) with c a multiple of " + std::to_string(attributes.heads) + " heads", text(qkv));
    require(qkv[1] >= 1 && qkv[1] <= kMaxLength, "1 to " + std::to_string(kMaxLength) + " frames",
            "L = " + std::to_string(qkv[1]));
    check_values("segment", qkv[1] * qkv[2] * qkv[3]);
    return {"temporal_attention-L" + std::to_string(qkv[1]) + "-c" + std::to_string(channels) + "-h" +
                std::to_string(attributes.heads) + "-" + type,
            qkv[0], qkv[2], {0}, {{qkv[0], qkv[1], qkv[2], channels}}};
}

Call convolution(const std::vector<Shape>& inputs, bool inject, const std::string& type) {
    check_inputs(inputs.size(), inject ? 5 : 3);
    const Shape &x = inputs[0], &weight = inputs[1], &bias = inputs[2];
    check_rank("x", x, 4);
    check_rank("weight", weight, 3);
    require(weight[0] % 2 == 1 && weight[1] == x[3] && weight[2] == x[3],
            "weight (k, c, c) with an odd k, and c as x " + text(x), text(weight));
    require(bias == Shape{x[3]}, "bias " + text({x[3]}), text(bias));
    check_values("segment", x[1] * x[2] * x[3]);
    std::string name = inject ? "temporal_conv_injection" : "temporal_conv";
    name += "-L" + std::to_string(x[1]) + "-c" + std::to_string(x[3]) + "-k" + std::to_string(weight[0]);
    if (inject) {
        const Shape &scale = inputs[3], &shift = inputs[4];
        check_rank("scale", scale, 4);
        require(scale == shift && scale[0] >= 1 && x[0] % scale[0] == 0 && scale[1] == x[1] && scale[2] == x[2] &&
                    scale[3] == x[3],
                "scale and shift as x " + text(x) + ", or both with a batch that x's is a multiple of",
                text(scale) + " and " + text(shift));
        name += "-n" + std::to_string(x[0] / scale[0]);
    }
    // Without the injection the kernel reads neither scale nor shift: x stands in for them.
    return {name + "-" + type, x[0], x[2], inject ? std::vector<int>{0, 1, 2, 3, 4} : std::vector<int>{0, 1, 2, 0, 0},
            {x}};
}

std::int64_t power_of_two(std::int64_t n) {
    std::int64_t power = 1;
    while (power < n) power *= 2;
    return power;
}

// This and the next as in kernels/frames.py.
std::int64_t tile_of(std::int64_t pixels, std::int64_t channels, std::int64_t groups) {
    const std::int64_t width = channels / groups;
    if (width == 0 || pixels > 1024) return 0;
    const std::int64_t used = width * std::min(std::max<std::int64_t>(1, 32 / width), groups);
    const std::int64_t lanes = power_of_two(used);
    const std::int64_t tile = power_of_two(pixels);
    return 16 * used >= 15 * lanes && lanes <= 64 && tile * lanes <= 32768 ? tile : 0;
}

std::int64_t part_of(std::int64_t pixels) {
    return pixels < 1024 ? 0 : std::max<std::int64_t>(256, power_of_two(pixels) / 64);
}

Call group_norm(const std::vector<Shape>& inputs, const Attributes& attributes, bool silu, const std::string& type) {
    check_inputs(inputs.size(), 3);
    const Shape &x = inputs[0], &weight = inputs[1], &bias = inputs[2];
    check_rank("x", x, 4);
    const Shape channels{x[3]};
    require(attributes.groups >= 1 && x[3] % attributes.groups == 0 && weight == channels && bias == channels,
            "x (b, L, p, c), weight (c) and bias (c) with c a multiple of " + std::to_string(attributes.groups) +
                " groups",
            text(x) + ", " + text(weight) + " and " + text(bias));
    check_values("frame", x[2] * x[3]);
    char eps[32];
    std::snprintf(eps, sizeof eps, "%g", static_cast<double>(attributes.eps));
    const std::string sizes =
        "-L" + std::to_string(x[1]) + "-c" + std::to_string(x[3]) + "-g" + std::to_string(attributes.groups);
    std::string name = silu ? "group_norm_silu" : "group_norm";
    if (const std::int64_t tile = tile_of(x[2], x[3], attributes.groups)) {
        return {name + "_held" + sizes + "-e" + eps + "-p" + std::to_string(tile) + "-" + type, x[0], x[2], {0, 1, 2},
                {x}};
    }
    const std::int64_t part = part_of(x[2]);
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
    const Shape &x = inputs[0], &coefficients = inputs[5], &guidance = inputs[6];
    require(!x.empty(), "x (b, ...)", text(x));
    for (std::size_t i = 1; i < 5; ++i) require(inputs[i] == x, "five tensors " + text(x) + ", as x", text(inputs[i]));
    const Shape rows{x[0], 6}, scales{x[0]};
    require(coefficients == rows && guidance == scales, "coefficients " + text(rows) + " and guidance " + text(scales),
            text(coefficients) + " and " + text(guidance));
    std::int64_t values = 1;
    for (std::size_t i = 1; i < x.size(); ++i) values *= x[i];
    check_values("segment", values);
    return {"guided_update-" + type, x[0], values, {0, 1, 2, 3, 4, 5, 6}, {x, x}, {}, 0, 2};
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
