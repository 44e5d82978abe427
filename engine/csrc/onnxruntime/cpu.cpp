#include "cpu.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "../refuse.h"

namespace nuwaxl {

namespace {

constexpr std::size_t kPixelsATask = 16;
constexpr std::size_t kTokens = 4;     // of a tile of the convolution
constexpr std::size_t kColumns = 64;   // output channels of a tile

// float16 and bfloat16 as their bits.
struct Half {
    std::uint16_t bits;
};
struct BFloat16 {
    std::uint16_t bits;
};

float widen(float value) { return value; }

float widen(BFloat16 value) { return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16); }

float widen(Half value) {
    const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000U) << 16;
    const std::uint32_t exponent = (value.bits >> 10) & 0x1FU;
    const std::uint32_t fraction = value.bits & 0x3FFU;
    if (exponent == 0x1FU) return std::bit_cast<float>(sign | 0x7F800000U | (fraction << 13));
    if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112U) << 23) | (fraction << 13));
    const float magnitude = static_cast<float>(fraction) * 0x1p-24F;  // subnormal, or zero
    return sign != 0 ? -magnitude : magnitude;
}

void narrow(float value, float& result) { result = value; }

void narrow(float value, BFloat16& result) {
    std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    if ((bits & 0x7FFFFFFFU) > 0x7F800000U) {
        result.bits = static_cast<std::uint16_t>((bits >> 16) | 0x40U);  // a NaN stays one
        return;
    }
    bits += 0x7FFFU + ((bits >> 16) & 1U);  // to the nearest, ties to even
    result.bits = static_cast<std::uint16_t>(bits >> 16);
}

void narrow(float value, Half& result) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000U);
    const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
    if (magnitude > 0x7F800000U) {
        result.bits = static_cast<std::uint16_t>(sign | 0x7E00U);
    } else if (magnitude >= 0x477FF000U) {  // rounds past the largest, 65504
        result.bits = static_cast<std::uint16_t>(sign | 0x7C00U);
    } else if (magnitude < 0x38800000U) {  // below 2^-14: in steps of 2^-24
        const float steps = std::bit_cast<float>(magnitude) * 0x1p24F;
        result.bits = static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(std::nearbyint(steps)));
    } else {
        const std::uint32_t rounded = magnitude + 0xFFFU + ((magnitude >> 13) & 1U);
        result.bits = static_cast<std::uint16_t>(sign | ((rounded - (112U << 23)) >> 13));
    }
}

template <typename T>
void load(const T* source, std::size_t count, float* target) {
    for (std::size_t i = 0; i < count; ++i) target[i] = widen(source[i]);
}

template <typename T>
void store(const float* source, std::size_t count, T* target) {
    for (std::size_t i = 0; i < count; ++i) narrow(source[i], target[i]);
}

template <typename T>
std::vector<float> loaded(const void* source, std::size_t count) {
    std::vector<float> values(count);
    load(static_cast<const T*>(source), count, values.data());
    return values;
}

std::size_t size(std::int64_t dimension) { return static_cast<std::size_t>(dimension); }

// One pixel and head: query, value and out (length, dim), key (dim, length), weights (length,) for use.
void attend(const float* query, const float* key, const float* value, float* out, float* weights, std::size_t length,
            std::size_t dim, float scale) {
    for (std::size_t i = 0; i < length; ++i) {
        for (std::size_t j = 0; j < length; ++j) weights[j] = 0.0F;
        for (std::size_t d = 0; d < dim; ++d) {
            const float q = query[i * dim + d] * scale;
            for (std::size_t j = 0; j < length; ++j) weights[j] += q * key[d * length + j];
        }
        float largest = weights[0];
        for (std::size_t j = 1; j < length; ++j) largest = std::max(largest, weights[j]);
        float sum = 0.0F;
        for (std::size_t j = 0; j < length; ++j) weights[j] = std::exp(weights[j] - largest);
        for (std::size_t j = 0; j < length; ++j) sum += weights[j];
        float* row = out + i * dim;
        for (std::size_t d = 0; d < dim; ++d) row[d] = 0.0F;
        for (std::size_t j = 0; j < length; ++j) {
            const float weight = weights[j] / sum;
            for (std::size_t d = 0; d < dim; ++d) row[d] += weight * value[j * dim + d];
        }
    }
}

// sums (kTokens, kColumns) += the rows (c_in,) of kTokens tokens times the columns of weight (c_in, stride).
void multiply(const float* const* rows, const float* weight, std::size_t stride, std::size_t c_in, std::size_t columns,
              float* sums) {
    for (std::size_t c = 0; c < c_in; ++c) {
        for (std::size_t t = 0; t < kTokens; ++t) {
            const float x = rows[t][c];
            for (std::size_t n = 0; n < columns; ++n) sums[t * kColumns + n] += x * weight[c * stride + n];
        }
    }
}

template <typename T>
void attention(const Attributes& attributes, const Shape& qkv, const T* source, T* target, const Parallel& parallel) {
    const std::size_t batch = size(qkv[0]), length = size(qkv[1]), pixels = size(qkv[2]), channels = size(qkv[3]) / 3;
    const std::size_t heads = size(attributes.heads), dim = channels / heads;
    const float scale = 1.0F / std::sqrt(static_cast<float>(dim));
    const std::size_t tasks = (pixels + kPixelsATask - 1) / kPixelsATask;
    parallel(batch * tasks, [&](std::size_t task) {
        const std::size_t segment = task / tasks, first = task % tasks * kPixelsATask;
        std::vector<float> work(4 * length * dim + length + dim);
        float *query = work.data(), *key = query + length * dim, *value = key + length * dim,
              *out = value + length * dim, *weights = out + length * dim, *row = weights + length;
        for (std::size_t pixel = first; pixel < std::min(first + kPixelsATask, pixels); ++pixel) {
            for (std::size_t head = 0; head < heads; ++head) {
                for (std::size_t l = 0; l < length; ++l) {
                    const T* token = source + ((segment * length + l) * pixels + pixel) * 3 * channels + head * dim;
                    load(token, dim, query + l * dim);
                    load(token + channels, dim, row);
                    for (std::size_t d = 0; d < dim; ++d) key[d * length + l] = row[d];
                    load(token + 2 * channels, dim, value + l * dim);
                }
                attend(query, key, value, out, weights, length, dim, scale);
                for (std::size_t l = 0; l < length; ++l) {
                    T* token = target + ((segment * length + l) * pixels + pixel) * channels + head * dim;
                    store(out + l * dim, dim, token);
                }
            }
        }
    });
}

template <typename T>
void convolution(const std::vector<Shape>& shapes, const std::vector<const void*>& inputs, T* target,
                 const Parallel& parallel) {
    const Shape& x = shapes[0];
    const std::size_t batch = size(x[0]), tokens = size(x[1]) * size(x[2]), pixels = size(x[2]), channels = size(x[3]);
    const std::size_t taps = size(shapes[1][0]);
    const auto* source = static_cast<const T*>(inputs[0]);
    const std::vector<float> weight = loaded<T>(inputs[1], taps * channels * channels);
    const std::vector<float> bias = loaded<T>(inputs[2], channels);
    const bool inject = inputs.size() == 5;
    const std::size_t shared = inject ? size(shapes[3][0]) : 1;
    const std::size_t tiles = (tokens + kTokens - 1) / kTokens;
    parallel(batch * tiles, [&](std::size_t task) {
        const std::size_t segment = task / tiles, first = task % tiles * kTokens;
        // Rows of the tile's tokens at every tap; zeros outside the segment.
        std::vector<float> rows((taps * kTokens + 1) * channels, 0.0F);
        const float* zeros = rows.data() + taps * kTokens * channels;
        std::vector<const float*> row(taps * kTokens, zeros);
        for (std::size_t tap = 0; tap < taps; ++tap) {
            for (std::size_t t = 0; t < kTokens; ++t) {
                const auto token = static_cast<std::int64_t>(first + t) +
                                   (static_cast<std::int64_t>(tap) - static_cast<std::int64_t>(taps / 2)) *
                                       static_cast<std::int64_t>(pixels);
                if (first + t >= tokens || token < 0 || token >= static_cast<std::int64_t>(tokens)) continue;
                float* place = rows.data() + (tap * kTokens + t) * channels;
                load(source + (segment * tokens + size(token)) * channels, channels, place);
                row[tap * kTokens + t] = place;
            }
        }
        for (std::size_t start = 0; start < channels; start += kColumns) {
            const std::size_t columns = std::min(kColumns, channels - start);
            float sums[kTokens * kColumns];
            for (std::size_t t = 0; t < kTokens; ++t) {
                std::copy_n(bias.data() + start, columns, sums + t * kColumns);
            }
            for (std::size_t tap = 0; tap < taps; ++tap) {
                multiply(row.data() + tap * kTokens, weight.data() + tap * channels * channels + start, channels,
                         channels, columns, sums);
            }
            for (std::size_t t = 0; t < std::min(kTokens, tokens - first); ++t) {
                const std::size_t place = (first + t) * channels + start;
                if (inject) {
                    const std::size_t injected = segment % shared * tokens * channels + place;
                    for (std::size_t n = 0; n < columns; ++n) {
                        float& h = sums[t * kColumns + n];
                        h = widen(static_cast<const T*>(inputs[3])[injected + n]) * h +
                            widen(static_cast<const T*>(inputs[4])[injected + n]);
                    }
                }
                store(sums + t * kColumns, columns, target + segment * tokens * channels + place);
            }
        }
    });
}

template <typename T>
void group_norm(const Attributes& attributes, bool silu, const std::vector<Shape>& shapes,
                const std::vector<const void*>& inputs, T* target, const Parallel& parallel) {
    const Shape& x = shapes[0];
    const std::size_t pixels = size(x[2]), channels = size(x[3]), groups = size(attributes.groups);
    const std::size_t width = channels / groups;
    const auto* source = static_cast<const T*>(inputs[0]);
    const std::vector<float> weight = loaded<T>(inputs[1], channels), bias = loaded<T>(inputs[2], channels);
    parallel(size(x[0]) * size(x[1]), [&](std::size_t frame) {
        const T* from = source + frame * pixels * channels;
        T* to = target + frame * pixels * channels;
        std::vector<double> mean(groups, 0.0), deviations(groups, 0.0);
        for (std::size_t i = 0; i < pixels * channels; ++i) mean[i % channels / width] += widen(from[i]);
        const double count = static_cast<double>(pixels * width);
        for (double& value : mean) value /= count;
        for (std::size_t i = 0; i < pixels * channels; ++i) {
            const std::size_t group = i % channels / width;
            const double centred = widen(from[i]) - mean[group];
            deviations[group] += centred * centred;
        }
        std::vector<float> scale(channels), centre(channels);
        for (std::size_t c = 0; c < channels; ++c) {
            const double variance = deviations[c / width] / count;
            scale[c] = weight[c] * static_cast<float>(1.0 / std::sqrt(variance + static_cast<double>(attributes.eps)));
            centre[c] = static_cast<float>(mean[c / width]);
        }
        for (std::size_t p = 0; p < pixels; ++p) {
            for (std::size_t c = 0; c < channels; ++c) {
                float y = (widen(from[p * channels + c]) - centre[c]) * scale[c] + bias[c];
                if (silu) y = y / (1.0F + std::exp(-y));
                narrow(y, to[p * channels + c]);
            }
        }
    });
}

template <typename T>
void update(const Shape& x, const std::vector<const void*>& inputs, T* x_next, T* x0, const Parallel& parallel) {
    std::size_t values = 1;
    for (std::size_t i = 1; i < x.size(); ++i) values *= size(x[i]);
    const auto tensor = [&](std::size_t i) { return static_cast<const T*>(inputs[i]); };
    const auto* coefficients = static_cast<const float*>(inputs[5]);
    const auto* guidance = static_cast<const float*>(inputs[6]);
    parallel(size(x[0]), [&](std::size_t segment) {
        const float* row = coefficients + 6 * segment;
        for (std::size_t i = segment * values; i < (segment + 1) * values; ++i) {
            const float of_x = widen(tensor(0)[i]), uncond = widen(tensor(4)[i]);
            const float pred = uncond + guidance[segment] * (widen(tensor(3)[i]) - uncond);
            const float clean = row[0] * of_x + row[1] * pred;
            narrow(row[2] * of_x + row[3] * clean + row[4] * widen(tensor(1)[i]) + row[5] * widen(tensor(2)[i]),
                   x_next[i]);
            narrow(clean, x0[i]);
        }
    });
}

template <typename T>
void compute(Op op, const Attributes& attributes, const std::vector<Shape>& shapes,
             const std::vector<const void*>& inputs, const std::vector<void*>& outputs, const Parallel& parallel) {
    auto* out = static_cast<T*>(outputs[0]);
    switch (op) {
        case Op::kTemporalAttention:
            return attention(attributes, shapes[0], static_cast<const T*>(inputs[0]), out, parallel);
        case Op::kTemporalConv:
        case Op::kTemporalConvInjection: return convolution(shapes, inputs, out, parallel);
        case Op::kGroupNorm:
        case Op::kGroupNormSilu:
            return group_norm(attributes, op == Op::kGroupNormSilu, shapes, inputs, out, parallel);
        case Op::kGuidedUpdate: return update(shapes[0], inputs, out, static_cast<T*>(outputs[1]), parallel);
    }
}

}  // namespace

void compute_on_cpu(Op op, const Attributes& attributes, const std::string& type, const std::vector<Shape>& shapes,
                    const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
                    const Parallel& parallel) {
    if (type == "float32") return compute<float>(op, attributes, shapes, inputs, outputs, parallel);
    if (type == "float16") return compute<Half>(op, attributes, shapes, inputs, outputs, parallel);
    if (type == "bfloat16") return compute<BFloat16>(op, attributes, shapes, inputs, outputs, parallel);
    refuse("float32, float16 or bfloat16", type, "export the bundle again");
}

}  // namespace nuwaxl
