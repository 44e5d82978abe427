#include "cost.h"

#include <algorithm>
#include <sstream>
#include <string>
#include <utility>

#include "refuse.h"

namespace nuwaxl {

namespace {

constexpr double kAsGoodAsTheBest = 1.02;

std::string text(double seconds) {
    std::ostringstream out;  // std::to_string() would round small ones to 0
    out << seconds << " s";
    return out.str();
}

}  // namespace

CostModel::CostModel(std::vector<std::int64_t> batch_sizes, std::vector<double> steps_s, double decode_s)
    : batch_sizes_(std::move(batch_sizes)), steps_s_(std::move(steps_s)), decode_s_(decode_s) {
    if (batch_sizes_.empty() || batch_sizes_.size() != steps_s_.size()) {
        refuse("one step time for each of one or more batch sizes",
               std::to_string(batch_sizes_.size()) + " sizes and " + std::to_string(steps_s_.size()) + " times",
               "pass lists of equal length");
    }
    std::int64_t before = 0;
    for (const std::int64_t size : batch_sizes_) {
        if (size <= before) {
            refuse("batch sizes from 1 up, each larger than the one before",
                   std::to_string(size) + " after " + std::to_string(before), "sort them and name each once");
        }
        before = size;
    }
    for (const double seconds : steps_s_) {
        if (!(seconds >= kLeastStep && seconds <= kMostStep)) {
            refuse("step times of 1e-9 to 1e9 s", text(seconds), "measure again, and give seconds");
        }
    }
    if (!(decode_s_ >= 0.0 && decode_s_ <= kMostStep)) {
        refuse("a decode time of 0 to 1e9 s", text(decode_s_), "pass 0 where it is unknown");
    }
}

double CostModel::step_s(std::int64_t batch) const {
    check_at_least_one("batch", batch);
    const auto size = [this](std::size_t i) { return static_cast<double>(batch_sizes_[i]); };
    const double wanted = static_cast<double>(batch);
    const double proportional = steps_s_[0] * wanted / size(0);
    const std::size_t count = batch_sizes_.size();
    if (count == 1) return proportional;
    // The measured sizes on both sides of the batch, or the outermost two.
    const auto above = static_cast<std::size_t>(
        std::lower_bound(batch_sizes_.begin(), batch_sizes_.end(), batch) - batch_sizes_.begin());
    const std::size_t right = std::clamp<std::size_t>(above, 1, count - 1);
    std::size_t left = right - 1;
    // Sizes that are filled up to the last take its time: they say nothing of what comes after it.
    while (above == count && left > 0 && steps_s_[left] == steps_s_[right]) --left;
    const double slope = (steps_s_[right] - steps_s_[left]) / (size(right) - size(left));
    if (above == 0) return std::max(proportional, steps_s_[0] + slope * (wanted - size(0)));
    if (above == count) return steps_s_.back() + std::max(slope, 0.0) * (wanted - size(count - 1));
    return steps_s_[left] + slope * (wanted - size(left));
}

// What a segment may cost in a batch that is as good as the best.
double CostModel::cheap_s(std::int64_t max_batch) const {
    if (max_batch < 1 || max_batch > kMostBatch) {
        refuse("max_batch of 1 to " + std::to_string(kMostBatch), std::to_string(max_batch),
               "pass the most segments that a device has memory for");
    }
    double cheapest = share_s(1);
    for (std::int64_t batch = 2; batch <= max_batch; ++batch) cheapest = std::min(cheapest, share_s(batch));
    return kAsGoodAsTheBest * cheapest;
}

std::int64_t CostModel::best_batch(std::int64_t max_batch) const {
    const double cheap = cheap_s(max_batch);
    std::int64_t best = 1;
    while (share_s(best) > cheap) ++best;
    return best;
}

std::int64_t CostModel::widest_batch(std::int64_t max_batch) const {
    const double cheap = cheap_s(max_batch);
    std::int64_t widest = max_batch;
    while (share_s(widest) > cheap) --widest;
    return widest;
}

}  // namespace nuwaxl
