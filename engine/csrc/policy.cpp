#include "policy.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "refuse.h"

namespace nuwaxl {

Policy parse_policy(std::string_view name) {
    if (name == "level") return Policy::kLevel;
    if (name == "eager") return Policy::kEager;
    if (name == "latency") return Policy::kLatency;
    const std::string found = std::string("\"").append(name).append("\"");
    refuse("policy \"level\", \"eager\" or \"latency\"", found, "pass one of the three");
}

ReadyRange ranked(Policy policy, const Plan& plan, std::int64_t steps, std::int64_t job, IdRange ids) {
    ReadyRange range{0, 0, job, ids.first, ids.first + ids.count};
    switch (policy) {
        case Policy::kLevel:
            break;
        case Policy::kEager:
            range.rank = -steps * (plan.height(ids.first) + 1);
            break;
        case Policy::kLatency:
            range.rank = plan.segment(ids.first).first_frame;
            if (ids.count > 1) range.rank_step = plan.segment(ids.first + 1).first_frame - range.rank;
            break;
    }
    return range;
}

StepTimes::StepTimes(const CostModel& cost, std::int64_t max_batch)
    : target_(cost.best_batch(max_batch)), seconds_{0.0} {
    const std::int64_t widest = cost.widest_batch(max_batch);
    for (std::int64_t batch = 1; batch <= widest; ++batch) {
        seconds_.push_back(std::max(seconds_.back(), cost.step_s(batch)));
    }
}

std::int64_t StepTimes::within(double seconds) const {
    const auto end = std::lower_bound(seconds_.begin() + 1, seconds_.begin() + target_ + 1, seconds);
    return end - seconds_.begin() - 1;
}

namespace {

// Ends closer than this part of one another count as equal: rounding must not decide who takes what.
constexpr double kTie = 1e-9;

// As far as segments and batches are counted.
constexpr std::int64_t kMost = std::int64_t{1} << 40;

// The least whole number that is not below.
std::int64_t whole(double number) {
    return static_cast<std::int64_t>(std::ceil(std::min(number, static_cast<double>(kMost))));
}

// When `count` newcomers, no more than the device has room for, would be finished if it took them now.
double end_s(const Load& load, std::int64_t steps, std::int64_t count) {
    const StepTimes& times = *load.times;
    const std::int64_t shared = std::min(load.steps_left, steps);
    return load.decoding_s + static_cast<double>(shared) * times[load.held + count] +
           static_cast<double>(steps - shared) * times[count];
}

// The most ready segments that the device could finish before `deadline_s`: by taking them into the batch that it
// holds, or after it, batch by batch, and after the children of that.
std::int64_t capacity(const Load& load, std::int64_t steps, double deadline_s) {
    const StepTimes& times = *load.times;
    const double length = static_cast<double>(steps);
    const double after_s = deadline_s - load.decoding_s - static_cast<double>(load.steps_left) * times[load.held];
    std::int64_t count = 0;
    if (after_s > 0.0) {
        const double batch_s = length * times[times.target()];
        const std::int64_t batches = whole(after_s / batch_s) - 1;
        count = batches * times.target() + times.within((after_s - static_cast<double>(batches) * batch_s) / length);
        count = std::max<std::int64_t>(count - load.coming, 0);
    }
    if (load.held == 0 || !young(load, steps)) return count;
    std::int64_t joining = std::min(count, times.target() - load.held);
    while (joining < times.target() - load.held && end_s(load, steps, joining + 1) < deadline_s) ++joining;
    return std::max(count, joining);
}

// What device `asking` does of all that is done while every device takes full batches.
double part_of(std::span<const Load> devices, std::size_t asking) {
    const auto speed = [](const Load& load) {
        if (load.times == nullptr) return 0.0;
        const std::int64_t full = load.times->target();
        return static_cast<double>(full) / (*load.times)[full];
    };
    double all = 0.0;
    for (const Load& load : devices) all += speed(load);
    return speed(devices[asking]) / all;
}

}  // namespace

bool young(const Load& load, std::int64_t steps) { return 4 * load.steps_left >= 3 * steps; }

std::int64_t welcome(const Load& load, std::int64_t ready) {
    const StepTimes& times = *load.times;
    std::int64_t best = 0;
    double most = 0.0;
    for (std::int64_t count = 1; count <= std::min(ready, times.target() - load.held); ++count) {
        // By each of the steps that both are under way in.
        const double longer_s = times[load.held + count] - times[load.held];
        const double gained = static_cast<double>(count) * (times[count] - longer_s);
        const double sum = gained - static_cast<double>(load.held) * longer_s;
        if (sum > most) {
            best = count;
            most = sum;
        }
    }
    return best;
}

std::int64_t share(std::span<const Load> devices, std::size_t asking, std::int64_t ready, std::int64_t steps,
                   std::int64_t room) {
    const Load& own = devices[asking];
    const auto takes = [&](std::int64_t count) {
        const double deadline_s = end_s(own, steps, count) * (1.0 - kTie);
        std::int64_t left = ready - (count - 1);
        for (std::size_t i = 0; i < devices.size() && left > 0; ++i) {
            if (i != asking && devices[i].times != nullptr) left -= capacity(devices[i], steps, deadline_s);
        }
        return left > 0;
    };
    std::int64_t least = 0;
    std::int64_t most = std::min(ready, room);
    if (most == 0 || takes(most)) return most;
    while (least + 1 < most) {
        const std::int64_t middle = (least + most) / 2;
        (takes(middle) ? least : most) = middle;
    }
    return least;
}

std::int64_t plenty(std::span<const Load> devices, std::size_t asking) {
    const StepTimes& own = *devices[asking].times;
    std::int64_t count = own.target();
    for (const Load& load : devices) {
        if (load.times == nullptr) continue;
        count = std::min(count + capacity({load.times, 0, 0, 0.0}, 1, own[own.target()]), kMost);
    }
    return count;
}

std::int64_t last_batch(std::span<const Load> devices, std::size_t asking, std::int64_t left, std::int64_t steps) {
    const StepTimes& own = *devices[asking].times;
    double work = static_cast<double>(left);
    for (const Load& load : devices) {
        if (load.times == nullptr) continue;
        const double part = static_cast<double>(std::min(load.steps_left, steps)) / static_cast<double>(steps);
        work += part * static_cast<double>(load.held);
    }
    const std::int64_t count = whole(work * part_of(devices, asking) * (1.0 - kTie));
    if (count >= own.target() + own.widest()) return own.target();
    std::int64_t best = std::min(count, own.target());
    const std::int64_t least = std::max<std::int64_t>(count - own.widest(), 1);
    for (std::int64_t first = std::min(count, own.widest()); first >= least; --first) {
        if (own[first] + own[count - first] < (own[best] + own[count - best]) * (1.0 - kTie)) best = first;
    }
    return best;
}

std::int64_t many(std::span<const Load> devices, std::size_t asking) {
    const StepTimes& own = *devices[asking].times;
    return whole(static_cast<double>(own.target() + own.widest()) / part_of(devices, asking));
}

}  // namespace nuwaxl
