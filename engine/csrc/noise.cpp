#include "noise.h"

#include <cmath>
#include <numbers>
#include <string>
#include <utility>

#include "refuse.h"

namespace nuwaxl {

namespace {

constexpr int kRounds = 10;
constexpr std::uint32_t kMultiplier0 = 0xD2511F53;
constexpr std::uint32_t kMultiplier1 = 0xCD9E8D57;
constexpr std::uint32_t kWeyl0 = 0x9E3779B9;
constexpr std::uint32_t kWeyl1 = 0xBB67AE85;
constexpr double kTwoToMinus32 = 1.0 / 4294967296.0;

// Box-Muller. The radius takes its uniform from (0, 1], so its logarithm is finite; the computation is in double
// so that the two rounding steps left are the uniforms' and the float result's.
std::pair<float, float> normal_pair(std::uint32_t a, std::uint32_t b) {
    const double radius = std::sqrt(-2.0 * std::log((a + 1.0) * kTwoToMinus32));
    const double angle = 2.0 * std::numbers::pi * (b * kTwoToMinus32);
    return {static_cast<float>(radius * std::cos(angle)), static_cast<float>(radius * std::sin(angle))};
}

}  // namespace

std::array<std::uint32_t, 4> philox4x32_10(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
    for (int round = 0; round < kRounds; ++round) {
        const std::uint64_t product0 = std::uint64_t{kMultiplier0} * counter[0];
        const std::uint64_t product1 = std::uint64_t{kMultiplier1} * counter[2];
        counter = {
            static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(product1),
            static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(product0)};
        key[0] += kWeyl0;
        key[1] += kWeyl1;
    }
    return counter;
}

void normal_noise(std::uint64_t seed, std::uint32_t depth, std::uint32_t index, std::uint32_t step,
                  std::span<float> out) {
    if (out.size() > (std::uint64_t{1} << 34)) {
        refuse("at most 2^34 values a call", std::to_string(out.size()), "draw the noise of one segment at a time");
    }
    const std::array<std::uint32_t, 2> key{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};
    for (std::size_t start = 0; start < out.size(); start += 4) {
        const auto bits = philox4x32_10({static_cast<std::uint32_t>(start / 4), step, index, depth}, key);
        const auto [n0, n1] = normal_pair(bits[0], bits[1]);
        const auto [n2, n3] = normal_pair(bits[2], bits[3]);
        const std::array<float, 4> block{n0, n1, n2, n3};
        for (std::size_t i = 0; i < 4 && start + i < out.size(); ++i) out[start + i] = block[i];
    }
}

}  // namespace nuwaxl
