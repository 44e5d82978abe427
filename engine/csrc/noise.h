// Noise that depends on what it is for and on nothing else: not on batch slot, device or order.
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace nuwaxl {

// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as
// 1, 2, 3" (SC 2011): ten rounds, key raised by the Weyl constants between them.
std::array<std::uint32_t, 4> philox4x32_10(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key);

// Fills `out` with independent draws of N(0, 1) for step `step` of segment (depth, index) under `seed`.
// Value 4*i + j comes from lane j of Philox at counter (i, step, index, depth), key seed, by Box-Muller on lane pairs.
// Throws std::invalid_argument for more than 2^34 values, where the block counter would wrap.
void normal_noise(std::uint64_t seed, std::uint32_t depth, std::uint32_t index, std::uint32_t step,
                  std::span<float> out);

}  // namespace nuwaxl
