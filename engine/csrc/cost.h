// What a device takes for one denoising step, by batch size, as it was measured.
#pragma once

#include <cstdint>
#include <vector>

namespace nuwaxl {

class CostModel {
public:
    // The largest batch that best_batch() and widest_batch() look at: their work grows with it.
    static constexpr std::int64_t kMostBatch = std::int64_t{1} << 16;
    // What a step may take, in seconds: sums and quotients of such times stay finite.
    static constexpr double kLeastStep = 1e-9;
    static constexpr double kMostStep = 1e9;

    // batch_sizes: increasing, from 1 up; steps_s: seconds of one step at each, kLeastStep to kMostStep; decode_s:
    // seconds of one decode window, 0 to kMostStep, 0 where unknown. Throws std::invalid_argument for anything else.
    CostModel(std::vector<std::int64_t> batch_sizes, std::vector<double> steps_s, double decode_s = 0.0);

    // Seconds of one step of `batch` segments: linear between the measured sizes, beyond them by the slope from the
    // last that takes another time, though never falling. With one measured size, and at least below the smallest, in
    // proportion to the batch.
    double step_s(std::int64_t batch) const;

    // The batch size of 1 to max_batch with the cheapest step a segment; the smallest within 2 % of that, since a
    // larger batch takes more memory and frees its device later. Throws std::invalid_argument unless max_batch is 1 to
    // kMostBatch.
    std::int64_t best_batch(std::int64_t max_batch) const;

    // The largest within 2 % of the cheapest. Throws as best_batch().
    std::int64_t widest_batch(std::int64_t max_batch) const;

    const std::vector<std::int64_t>& batch_sizes() const { return batch_sizes_; }
    const std::vector<double>& steps_s() const { return steps_s_; }
    double decode_s() const { return decode_s_; }

    bool operator==(const CostModel&) const = default;

private:
    double share_s(std::int64_t batch) const { return step_s(batch) / static_cast<double>(batch); }
    double cheap_s(std::int64_t max_batch) const;

    std::vector<std::int64_t> batch_sizes_;
    std::vector<double> steps_s_;
    double decode_s_;
};

}  // namespace nuwaxl
