// Hands out the work of one render to worker threads, one a device: denoising batches and decode windows.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <queue>
#include <vector>

#include "plan.h"
#include "policy.h"

namespace nuwaxl {

struct Work {
    enum class Kind { kDiffuse, kDecode };
    std::int64_t id;  // counts from 0 in the order of handing out
    Kind kind;
    std::vector<std::int64_t> items;  // segment ids of one depth, or the one decode window
    std::int64_t depth;               // -1 for decode
    std::int64_t device;

    bool operator==(const Work&) const = default;
};

// Inclusive range of frames whose latents a decode window reads.
struct Window {
    std::int64_t first;
    std::int64_t last;
};

// All methods may be called from any thread. Wrong use throws std::invalid_argument and changes nothing.
class Scheduler {
public:
    // Windows must lie within the plan's frames, in order: neither end may move back.
    Scheduler(Plan plan, Policy policy, std::int64_t devices, std::int64_t max_batch, std::vector<Window> windows,
              std::int64_t decode_ahead);

    // Blocks until there is work for `device`; nothing once all work is handed out, or after stop().
    // A device holds one work at a time: it must report done() before it asks again.
    std::optional<Work> next(std::int64_t device);

    // As next(), but nothing also when there is no work at this moment.
    std::optional<Work> try_next(std::int64_t device);

    // Publishes the results of `work`: children become ready, windows may become decodable.
    void done(const Work& work);

    // The clip of `window` was taken, which makes room for another one: at most decode_ahead windows are decoded or
    // being decoded beyond the number of those taken.
    void consumed(std::int64_t window);

    // next() returns nothing from now on, and every thread blocked in it wakes. Running work may still be done().
    void stop();
    bool stopped() const;

    // All work was handed out and reported done.
    bool finished() const;

private:
    using LowestFirst = std::priority_queue<std::int64_t, std::vector<std::int64_t>, std::greater<>>;

    void check_device(std::int64_t device) const;
    bool window_final();
    bool exhausted() const;
    std::optional<Work> take(std::int64_t device);
    void segment_done(std::int64_t id);

    const Plan plan_;
    const Policy policy_;
    const std::int64_t devices_;
    const std::int64_t max_batch_;
    const std::vector<Window> windows_;
    const std::int64_t decode_ahead_;

    mutable std::mutex mutex_;
    std::condition_variable changed_;
    bool stopped_ = false;
    std::vector<LowestFirst> ready_;          // by depth: segment ids
    std::vector<std::int64_t> ready_counts_;  // by depth
    std::vector<std::int64_t> unfinished_;    // by depth
    std::vector<bool> is_done_;               // by segment id
    std::vector<bool> consumed_;              // by window
    std::int64_t consumed_count_ = 0;
    std::int64_t next_window_ = 0;  // windows below are handed out
    std::int64_t final_end_ = 0;    // frames from windows_[next_window_].first to here (exclusive) are final
    std::int64_t segments_left_;    // not yet handed out
    std::int64_t next_id_ = 0;
    std::map<std::int64_t, Work> running_;  // by work id
    std::vector<bool> device_busy_;
};

}  // namespace nuwaxl
