// What plan_call makes of a node's shapes: the kernel's name, what it is given, or a refusal.
#include "onnxruntime/calls.h"

#include <stdexcept>

#include "check.h"

using nuwaxl::Attributes;
using nuwaxl::Call;
using nuwaxl::Op;
using nuwaxl::plan_call;
using nuwaxl::Shape;

namespace {

Call attention(const Shape& qkv, std::int64_t heads = 8) {
    return plan_call(Op::kTemporalAttention, {qkv}, {heads, 0, 0.0F}, "float16");
}

Call convolution(const Shape& x, const Shape& weight, const Shape& bias) {
    return plan_call(Op::kTemporalConv, {x, weight, bias}, {}, "float16");
}

Call injection(const Shape& x, const Shape& scale, const Shape& shift) {
    return plan_call(Op::kTemporalConvInjection, {x, {3, 320, 320}, {320}, scale, shift}, {}, "float16");
}

Call norm(const Shape& x, const Shape& weight, const Shape& bias, std::int64_t groups) {
    return plan_call(Op::kGroupNorm, {x, weight, bias}, {0, groups, 1e-5F}, "float16");
}

// The update of x, whose other four tensors are of one shape but the one of number `odd`.
Call update(const Shape& x, std::size_t odd, const Shape& other, const Shape& coefficients, const Shape& guidance) {
    std::vector<Shape> inputs(5, x);
    inputs[odd] = other;
    inputs.push_back(coefficients);
    inputs.push_back(guidance);
    return plan_call(Op::kGuidedUpdate, inputs, {}, "float32");
}

// Whether the call is refused in three parts, the first two of which begin so.
bool refuses(const std::string& expected, const std::string& found, const std::function<void()>& call) {
    try {
        call();
    } catch (const std::invalid_argument& error) {
        const std::string text = error.what();
        const auto second = text.find("; found " + found);
        return text.starts_with("expected " + expected) && second != std::string::npos &&
               text.find("; ", second + 2) != std::string::npos;
    }
    return false;
}

}  // namespace

TEST(a_node_names_the_kernel_that_was_compiled_for_its_shapes) {
    CHECK(attention({3, 16, 1024, 960}).kernel == "temporal_attention-L16-c320-h8-float16");
    const Shape x{4, 16, 64, 320}, half{2, 16, 64, 320}, weight{3, 320, 320}, bias{320};
    CHECK(plan_call(Op::kTemporalConv, {x, weight, bias}, {}, "bfloat16").kernel ==
          "temporal_conv-L16-c320-k3-bfloat16");
    CHECK(plan_call(Op::kTemporalConvInjection, {x, weight, bias, x, x}, {}, "float32").kernel ==
          "temporal_conv_injection-L16-c320-k3-n1-float32");
    CHECK(plan_call(Op::kTemporalConvInjection, {x, weight, bias, half, half}, {}, "float32").kernel ==
          "temporal_conv_injection-L16-c320-k3-n2-float32");
    const Attributes norm{0, 32, 1e-5F};
    CHECK(plan_call(Op::kGroupNormSilu, {x, bias, bias}, norm, "float16").kernel ==
          "group_norm_silu_held-L16-c320-g32-e1e-05-p64-float16");
    CHECK(plan_call(Op::kGroupNorm, {x, bias, bias}, {0, 16, 1e-6F}, "float16").kernel ==
          "group_norm-L16-c320-g16-e1e-06-float16");
    const Shape latents{2, 16, 4, 32, 32};
    const Call update =
        plan_call(Op::kGuidedUpdate, {latents, latents, latents, latents, latents, {2, 6}, {2}}, {}, "float32");
    CHECK(update.kernel == "guided_update-float32");
    CHECK(update.items == 16 * 4 * 32 * 32);
    CHECK(update.outputs.size() == 2 && update.outputs[1] == latents);
}

TEST(outputs_have_the_shapes_of_the_nodes_definition) {
    CHECK((attention({3, 16, 1024, 960}).outputs == std::vector<Shape>{{3, 16, 1024, 320}}));
    const Shape x{4, 16, 64, 320};
    CHECK((plan_call(Op::kGroupNorm, {x, {320}, {320}}, {0, 32, 1e-5F}, "float32").outputs == std::vector<Shape>{x}));
}

TEST(an_attention_of_other_shapes_is_refused) {
    const std::string expected = "qkv (b, L, p, 3c) with c a multiple of 8 heads";
    CHECK(refuses(expected, "(2, 16, 64, 961)", [] { attention({2, 16, 64, 961}); }));
    CHECK(refuses(expected, "(2, 16, 64, 12)", [] { attention({2, 16, 64, 12}); }));
    CHECK(refuses("qkv (b, L, p, 3c) with c a multiple of 0 heads", "", [] { attention({2, 16, 64, 960}, 0); }));
    CHECK(refuses("qkv of rank 4", "(16, 64, 960)", [] { attention({16, 64, 960}); }));
    CHECK(refuses("1 to 64 frames", "L = 65", [] { attention({2, 65, 64, 960}); }));
    CHECK(refuses("1 to 64 frames", "L = 0", [] { attention({2, 0, 64, 960}); }));
    CHECK(attention({2, 64, 64, 960}).items == 64);
}

TEST(a_convolution_of_other_shapes_is_refused) {
    const Shape x{4, 16, 64, 320}, weight{3, 320, 320}, bias{320};
    CHECK(refuses("3 inputs", "2", [&] { plan_call(Op::kTemporalConv, {x, weight}, {}, "float16"); }));
    CHECK(refuses("x of rank 4", "(16, 64, 320)", [&] { convolution({16, 64, 320}, weight, bias); }));
    CHECK(refuses("weight of rank 3", "(3, 320)", [&] { convolution(x, {3, 320}, bias); }));
    const std::string of_weight = "weight (k, c, c) with an odd k, and c as x (4, 16, 64, 320)";
    for (const Shape& other : {Shape{4, 320, 320}, Shape{0, 320, 320}, Shape{3, 160, 320}, Shape{3, 320, 640}}) {
        CHECK(refuses(of_weight, "(", [&] { convolution(x, other, bias); }));
    }
    CHECK(refuses("bias (320)", "(160)", [&] { convolution(x, weight, {160}); }));
    CHECK(refuses("bias (320)", "(1, 320)", [&] { convolution(x, weight, {1, 320}); }));
}

TEST(a_scale_and_a_shift_of_other_shapes_are_refused) {
    const Shape x{4, 16, 64, 320}, half{2, 16, 64, 320};
    const std::string expected = "scale and shift as x (4, 16, 64, 320), or both with a batch that x's is a multiple of";
    const std::string of_half = "(2, 16, 64, 320)";
    CHECK(refuses(expected, "(4, 16, 64, 320) and " + of_half, [&] { injection(x, x, half); }));
    CHECK(refuses(expected, of_half + " and (4, 16, 64, 320)", [&] { injection(x, half, x); }));
    for (const Shape& other : {Shape{3, 16, 64, 320}, Shape{0, 16, 64, 320}, Shape{8, 16, 64, 320},
                               Shape{4, 15, 64, 320}, Shape{4, 16, 63, 320}, Shape{4, 16, 64, 160}}) {
        CHECK(refuses(expected, "(", [&] { injection(x, other, other); }));
    }
    CHECK(refuses("scale of rank 4", "(320)", [&] { injection(x, {320}, {320}); }));
    CHECK(injection({0, 16, 64, 320}, half, half).batch == 0);
}

TEST(a_norm_of_other_shapes_is_refused) {
    const Shape x{4, 16, 64, 320}, bias{320};
    const auto expected = [](const char* groups) {
        return "x (b, L, p, c), weight (c) and bias (c) with c a multiple of " + std::string(groups) + " groups";
    };
    CHECK(refuses("x of rank 4", "(16, 64, 320)", [&] { norm({16, 64, 320}, bias, bias, 32); }));
    CHECK(refuses(expected("0"), "", [&] { norm(x, bias, bias, 0); }));
    CHECK(refuses(expected("-32"), "", [&] { norm(x, bias, bias, -32); }));
    CHECK(refuses(expected("33"), "", [&] { norm(x, bias, bias, 33); }));
    CHECK(refuses(expected("32"), "(4, 16, 64, 320), (32) and (320)", [&] { norm(x, {32}, bias, 32); }));
    CHECK(refuses(expected("32"), "(4, 16, 64, 320), (320) and (1, 320)", [&] { norm(x, bias, {1, 320}, 32); }));
}

TEST(an_update_of_other_shapes_is_refused) {
    const Shape x{3, 16, 4, 8, 8};
    CHECK(refuses("x (b, ...)", "()", [] { update({}, 0, {}, {}, {}); }));
    for (std::size_t odd = 1; odd < 5; ++odd) {
        CHECK(refuses("five tensors (3, 16, 4, 8, 8), as x", "(3, 16, 4, 8, 7)",
                      [&] { update(x, odd, {3, 16, 4, 8, 7}, {3, 6}, {3}); }));
    }
    const std::string expected = "coefficients (3, 6) and guidance (3)";
    CHECK(refuses(expected, "(1, 6) and (3)", [&] { update(x, 0, x, {1, 6}, {3}); }));
    CHECK(refuses(expected, "(3, 5) and (3)", [&] { update(x, 0, x, {3, 5}, {3}); }));
    CHECK(refuses(expected, "(3, 6) and (1)", [&] { update(x, 0, x, {3, 6}, {1}); }));
    CHECK(update(x, 0, x, {3, 6}, {3}).batch == 3);
}

TEST(what_a_program_counts_in_32_bits_is_less) {
    const std::string segment = "less than 2^31 values a segment", frame = "less than 2^31 values a frame";
    const std::string found = "2147483648";
    constexpr std::int64_t kHalf = 1LL << 30;
    CHECK(refuses(segment, "3221225472", [&] { attention({1, 2, kHalf / 8, 3 * 4}, 4); }));
    CHECK(refuses(segment, found, [&] { convolution({1, 2, kHalf / 4, 4}, {3, 4, 4}, {4}); }));
    CHECK(refuses(frame, found, [&] { norm({1, 1, kHalf / 2, 4}, {4}, {4}, 2); }));
    CHECK(refuses(segment, found, [&] { update({1, 2, kHalf}, 0, {1, 2, kHalf}, {1, 6}, {1}); }));
    // Many segments, or frames, may have more.
    CHECK(attention({1000, 2, kHalf / 16, 3 * 4}, 4).batch == 1000);
    CHECK(norm({4, 16, kHalf / 4, 4}, {4}, {4}, 2).items == kHalf / 4);
    CHECK(update({4, kHalf}, 0, {4, kHalf}, {4, 6}, {4}).items == kHalf);
}

int main() { return check::run_all(); }
