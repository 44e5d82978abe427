#include <algorithm>
#include <cmath>
#include <vector>

#include "check.h"
#include "noise.h"

using nuwaxl::normal_noise;
using nuwaxl::philox4x32_10;

namespace {

using Counter = std::array<std::uint32_t, 4>;

std::vector<float> noise(std::uint64_t seed, std::uint32_t depth, std::uint32_t index, std::uint32_t step,
                         std::size_t count = 1000) {
    std::vector<float> out(count);
    normal_noise(seed, depth, index, step, out);
    return out;
}

}  // namespace

// The known answers of philox4x32 with 10 rounds that Random123 publishes (its file kat_vectors).
TEST(philox_gives_the_published_answers) {
    CHECK((philox4x32_10({0, 0, 0, 0}, {0, 0}) == Counter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
    CHECK((philox4x32_10({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}) ==
           Counter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
    CHECK((philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
           Counter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(noise_is_box_muller_of_philox_at_block_step_index_depth) {
    const std::uint64_t seed = 0x0123456789abcdef;
    const std::vector<float> out = noise(seed, 2, 68, 5, 10);
    for (std::uint32_t block = 0; block < 3; ++block) {
        const Counter bits = philox4x32_10({block, 5, 68, 2}, {0x89abcdef, 0x01234567});
        for (std::uint32_t lane = 0; lane < 4 && 4 * block + lane < out.size(); ++lane) {
            const std::uint32_t pair = lane / 2 * 2;
            const double radius = std::sqrt(-2 * std::log((bits[pair] + 1.0) / std::exp2(32)));
            const double angle = 2 * std::acos(-1.0) * bits[pair + 1] / std::exp2(32);
            const double expected = radius * (lane % 2 == 0 ? std::cos(angle) : std::sin(angle));
            CHECK(std::abs(out[4 * block + lane] - expected) < 1e-6);
        }
    }
}

TEST(a_shorter_array_gets_the_same_beginning) {
    const std::vector<float> whole = noise(7, 1, 2, 3, 1000);
    for (const std::size_t count : {0u, 1u, 2u, 3u, 4u, 5u, 999u}) {
        const std::vector<float> part = noise(7, 1, 2, 3, count);
        CHECK(std::equal(part.begin(), part.end(), whole.begin()));
    }
}

TEST(each_argument_changes_the_noise) {
    const std::vector<float> base = noise(7, 1, 2, 3);
    CHECK(noise(7, 1, 2, 3) == base);
    CHECK(noise(8, 1, 2, 3) != base);
    CHECK(noise(7 + (std::uint64_t{1} << 32), 1, 2, 3) != base);
    CHECK(noise(7, 2, 2, 3) != base);
    CHECK(noise(7, 1, 3, 3) != base);
    CHECK(noise(7, 1, 2, 4) != base);
    CHECK(noise(7, 2, 1, 3) != noise(7, 1, 2, 3));
}

int main() { return check::run_all(); }
