// Hands out the work of many videos to worker threads, one a device: segments to denoise and windows to decode.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "cost.h"
#include "holding.h"
#include "job.h"
#include "plan.h"
#include "policy.h"
#include "ready_queue.h"

namespace nuwaxl {

struct Work {
    enum class Kind { kDiffuse, kDecode };
    std::int64_t id;  // counts from 0 in the order of handing out
    Kind kind;
    std::vector<Item> items;  // segments, or the one decode window
    std::int64_t device;

    bool operator==(const Work&) const = default;
};

// All methods may be called from any thread; only next() blocks longer than a mutex is held. Wrong use throws
// std::invalid_argument and changes nothing. See nuwaxl.h.
class Scheduler {
public:
    // A device takes up to its target batch, CostModel::best_batch(max_batch); at the end of all work up to
    // widest_batch(max_batch), where that saves it a small batch. max_batch: 1 to CostModel::kMostBatch.
    Scheduler(Policy policy, std::vector<CostModel> devices, std::int64_t max_batch);

    // A further video: its number, from 0. See Job for the arguments. Waiting devices wake.
    std::int64_t add(Plan plan, std::int64_t steps, std::vector<Window> windows = {}, std::int64_t decode_ahead = 1,
                     const std::vector<std::int64_t>& finished = {});

    // No further videos will come, so next() need not wait for them.
    void close();

    // Blocks until there is work for `device`, which must hold nothing. Nothing after stop(), for a lost device, and
    // once all videos of a closed scheduler are finished or failed. (Not earlier: what another device holds comes back
    // if that is lost.)
    std::optional<Work> next(std::int64_t device);

    // As next(), but nothing also when there is no work at this moment.
    std::optional<Work> try_next(std::int64_t device);

    // At a boundary between the steps of the segments that `device` holds: others to denoise with them from the next
    // step on. Never blocks.
    std::vector<Item> join(std::int64_t device);

    // `device` did one step of all the segments that it holds.
    void advance(std::int64_t device);

    // Some or all of the segments that `device` holds, or its window, are finished: their children become ready, and
    // windows decodable. Those of failed videos are ignored.
    void done(std::int64_t device, std::span<const Item> items);

    // The decoding of the window that `device` holds was queued, and its frames come to the host beside other work: the
    // device holds it no more, and may be given that work, by try_next(). One window at a time is on its way so.
    void leave(std::int64_t device);

    // The window that left `device` is finished.
    void arrived(std::int64_t device);

    // The device is gone: what it held is ready again, and what left it and did not arrive; and it gets no more. The
    // last one to go stops the scheduler.
    void lost(std::int64_t device);

    // The video is abandoned: nothing of it is handed out any more. Of no effect once it is finished.
    void fail(std::int64_t job);

    // The clip of `window` was taken, which makes room for another one: at most decode_ahead windows of a video are
    // decoded or being decoded beyond the number of those taken.
    void consumed(std::int64_t job, std::int64_t window);

    // next() returns nothing from now on, and every thread blocked in it wakes. Running work may still be done().
    void stop();
    bool stopped() const;

    bool finished() const;  // closed, and all videos finished or failed, and nothing held
    bool job_finished(std::int64_t job) const;
    bool failed(std::int64_t job) const;
    std::vector<Item> held(std::int64_t device) const;

    // Whether anything waits to be handed out at this moment.
    bool has_ready() const;

private:
    struct Device : Holding {
        std::int64_t plenty = 0;  // see policy.h
        std::int64_t many = 0;    // the same
        bool opening = false;     // holds segments that a first window needs
        bool counted = false;     // in holding_
    };

    Device& checked(std::int64_t device);
    const Device& checked(std::int64_t device) const;
    Device& checked_free(std::int64_t device);
    Job& checked_job(std::int64_t job);
    const Job& checked_job(std::int64_t job) const;
    bool is_lost(std::int64_t device) const { return loads_[static_cast<std::size_t>(device)].times == nullptr; }
    Job& job(std::int64_t number) { return jobs_[static_cast<std::size_t>(number)]; }

    bool idle() const { return open_jobs_ == 0 && holding_ == 0; }
    bool decode_first() const { return !awaited_.empty() || (policy_ == Policy::kLatency && !spare_.empty()); }
    std::int64_t takes(std::int64_t device);
    void window_done(const Item& item);
    void return_window(std::optional<Item>& item);
    void take_segments(std::int64_t device, std::int64_t count, std::vector<Item>& items);
    std::optional<Work> take(std::int64_t device);
    Item take_window();
    void push(std::int64_t job, IdRange ids);
    void refresh_windows(std::int64_t job);
    void refresh_load(std::int64_t device);
    void refresh_limits();
    void job_ended(std::int64_t job);
    void changed();

    const Policy policy_;
    std::vector<StepTimes> times_;  // one for each different cost model; loads_ point to them

    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::int64_t waiting_ = 0;  // threads that wait for changed_
    bool stopped_ = false;
    bool closed_ = false;
    std::deque<Job> jobs_;
    std::int64_t open_jobs_ = 0;  // neither finished nor failed
    std::int64_t untaken_ = 0;    // segments of open jobs that no device was given
    ReadyQueue ready_;
    std::set<std::int64_t> awaited_;  // jobs with a window that may be decoded and that its consumer waits for,
    std::set<std::int64_t> spare_;    // and with one that nobody waits for
    std::vector<Device> devices_;
    std::vector<Load> loads_;  // by device
    std::int64_t holding_ = 0;  // devices that have not finished what they were given
    std::int64_t next_id_ = 0;
};

}  // namespace nuwaxl
