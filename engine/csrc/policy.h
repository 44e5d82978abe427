// What goes first, and how much of it a device takes: pure functions of a snapshot, with no device, thread or clock.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "cost.h"
#include "plan.h"
#include "ready_queue.h"

namespace nuwaxl {

enum class Policy {
    kLevel,    // a depth of a video starts when its whole depth before is done (the paper's barrier)
    kEager,    // a segment starts when its parent is done; what most others wait for goes first
    kLatency,  // as eager, but what the earliest frames need goes first
};

// "level", "eager" or "latency"; anything else throws std::invalid_argument.
Policy parse_policy(std::string_view name);

// Ranks of the segments `ids`, `steps` denoising steps each, that became ready together.
//
// Eager: by the steps on the longest chain that starts with the segment, longest first (Hu's highest level first).
// Latency: by first frame; an ancestor begins no later than its descendants and has the lower id.
// Level: by job and id alone.
ReadyRange ranked(Policy policy, const Plan& plan, std::int64_t steps, std::int64_t job, IdRange ids);

// Step times of a device for the batch sizes 0 to widest(), which are as good as the best from target() on.
class StepTimes {
public:
    StepTimes(const CostModel& cost, std::int64_t max_batch);

    std::int64_t target() const { return target_; }
    std::int64_t widest() const { return static_cast<std::int64_t>(seconds_.size()) - 1; }
    // A larger batch never takes less time here, whatever was measured.
    double operator[](std::int64_t batch) const { return seconds_[static_cast<std::size_t>(batch)]; }
    // The most segments whose step takes less than `seconds`, 0 to target().
    std::int64_t within(double seconds) const;

private:
    std::int64_t target_;
    std::vector<double> seconds_;
};

// What a device is doing.
struct Load {
    const StepTimes* times;   // null for a device that was lost
    std::int64_t held;        // segments it denoises
    std::int64_t steps_left;  // until the last of them is finished
    double decoding_s;        // what the decode window takes that it holds; 0 without one
    std::int64_t coming = 0;  // segments that become ready when those that it holds are finished
};

// Whether segments of `steps` steps should join what the device holds, as far as the makespan goes: they would share at
// least three quarters of their steps. Later ones would leave it with batches that end piecemeal, which costs more than
// waiting for a full batch gains.
bool young(const Load& load, std::int64_t steps);

// Of `ready` segments that all are as urgent as those that the device holds, how many join them at best, up to its
// target: as many as make the sum of the times to the ends of all the least. Newcomers gain that they need not wait,
// those under way lose that their steps take longer.
std::int64_t welcome(const Load& load, std::int64_t ready);

// Of the `ready` segments, `steps` steps each, how many device `asking`, which has `room`, takes now: as many as have
// it finish before the others could have taken the last of them, were they dealt out so that all devices end together.
// Other devices count by when they could finish further segments, be they idle or not; but once they have finished
// their batches, they have the children of those to do. So an idle device leaves work only to a faster one.
std::int64_t share(std::span<const Load> devices, std::size_t asking, std::int64_t ready, std::int64_t steps,
                   std::int64_t room);

// A number of ready segments from which on share() is all the room up to its target that device `asking` has, whatever
// the others do.
std::int64_t plenty(std::span<const Load> devices, std::size_t asking);

// The size of the next batch of device `asking`, which is free, when the last `left` segments, `steps` steps each, are
// not begun: of the one or two batches in which its part of all the work takes the least time, the first. So a full
// batch is not followed by a small and dear one. While its part is more than two batches it is the target.
std::int64_t last_batch(std::span<const Load> devices, std::size_t asking, std::int64_t left, std::int64_t steps);

// A number of segments not begun from which on last_batch() is the target of device `asking`, whatever the others hold.
std::int64_t many(std::span<const Load> devices, std::size_t asking);

}  // namespace nuwaxl
