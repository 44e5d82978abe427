#include "scheduler.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace nuwaxl {

namespace {

void check_at_least_one(const char* name, std::int64_t value) {
    if (value < 1) {
        throw std::invalid_argument(std::string("expected ") + name + " of at least 1; found " + std::to_string(value) +
                                    "; pass a larger number");
    }
}

std::string text(const Window& window) {
    return "(" + std::to_string(window.first) + ", " + std::to_string(window.last) + ")";
}

void check_windows(const std::vector<Window>& windows, std::int64_t frames) {
    Window before{0, 0};
    for (const Window& window : windows) {
        if (window.first > window.last || window.first < before.first || window.last < before.last) {
            throw std::invalid_argument(
                "expected decode windows (first, last) in order, no end before the one of the window " + text(before) +
                "; found " + text(window) + "; sort them");
        }
        if (window.last >= frames) {
            throw std::invalid_argument("expected decode windows within frames 0 to " + std::to_string(frames - 1) +
                                        "; found " + text(window) + "; clamp it to the video's end");
        }
        before = window;
    }
}

}  // namespace

Scheduler::Scheduler(Plan plan, Policy policy, std::int64_t devices, std::int64_t max_batch,
                     std::vector<Window> windows, std::int64_t decode_ahead)
    : plan_(std::move(plan)),
      policy_(policy),
      devices_(devices),
      max_batch_(max_batch),
      windows_(std::move(windows)),
      decode_ahead_(decode_ahead),
      segments_left_(plan_.size()) {
    check_at_least_one("devices", devices);
    check_at_least_one("max_batch", max_batch);
    check_at_least_one("decode_ahead", decode_ahead);
    check_windows(windows_, plan_.frames());
    ready_.resize(static_cast<std::size_t>(plan_.depth()));
    ready_counts_.assign(ready_.size(), 0);
    unfinished_ = plan_.counts();
    is_done_.assign(static_cast<std::size_t>(plan_.size()), false);
    consumed_.assign(windows_.size(), false);
    device_busy_.assign(static_cast<std::size_t>(devices), false);
    ready_[0].push(0);
    ready_counts_[0] = 1;
}

void Scheduler::check_device(std::int64_t device) const {
    if (device < 0 || device >= devices_) {
        throw std::invalid_argument("expected a device between 0 and " + std::to_string(devices_ - 1) + "; found " +
                                    std::to_string(device) + "; number the workers from 0");
    }
    if (device_busy_[static_cast<std::size_t>(device)]) {
        throw std::invalid_argument(
            "expected device " + std::to_string(device) +
            " to be free; found work of it not reported done; call done(work) before next(device)");
    }
}

// Whether the next window to hand out has all its frames. Final frames stay final, so each frame is looked at about
// once over the whole render.
bool Scheduler::window_final() {
    if (next_window_ == static_cast<std::int64_t>(windows_.size())) return false;
    const Window& window = windows_[static_cast<std::size_t>(next_window_)];
    final_end_ = std::max(final_end_, window.first);
    while (final_end_ <= window.last && is_done_[static_cast<std::size_t>(plan_.origin_of(final_end_))]) ++final_end_;
    return final_end_ > window.last;
}

bool Scheduler::exhausted() const {
    return segments_left_ == 0 && next_window_ == static_cast<std::int64_t>(windows_.size());
}

std::optional<Work> Scheduler::take(std::int64_t device) {
    const bool room = next_window_ < consumed_count_ + decode_ahead_;
    const Choice choice = choose(policy_, {ready_counts_, unfinished_, room && window_final(), devices_, max_batch_});
    if (choice.kind == Choice::Kind::kNothing) return std::nullopt;

    Work work{next_id_++, Work::Kind::kDecode, {}, choice.depth, device};
    if (choice.kind == Choice::Kind::kDecode) {
        work.items.push_back(next_window_++);
    } else {
        work.kind = Work::Kind::kDiffuse;
        const auto depth = static_cast<std::size_t>(choice.depth);
        for (std::int64_t i = 0; i < choice.count; ++i) {
            work.items.push_back(ready_[depth].top());
            ready_[depth].pop();
        }
        ready_counts_[depth] -= choice.count;
        segments_left_ -= choice.count;
    }
    running_.emplace(work.id, work);
    device_busy_[static_cast<std::size_t>(device)] = true;
    if (exhausted()) changed_.notify_all();  // the others need not wait any longer
    return work;
}

std::optional<Work> Scheduler::next(std::int64_t device) {
    std::unique_lock lock(mutex_);
    check_device(device);
    while (!stopped_ && !exhausted()) {
        if (auto work = take(device)) return work;
        changed_.wait(lock);
    }
    return std::nullopt;
}

std::optional<Work> Scheduler::try_next(std::int64_t device) {
    const std::lock_guard lock(mutex_);
    check_device(device);
    if (stopped_ || exhausted()) return std::nullopt;
    return take(device);
}

void Scheduler::segment_done(std::int64_t id) {
    is_done_[static_cast<std::size_t>(id)] = true;
    --unfinished_[static_cast<std::size_t>(plan_.segment(id).depth)];
    for (const std::int64_t child : plan_.children(id)) {
        const auto depth = static_cast<std::size_t>(plan_.segment(child).depth);
        ready_[depth].push(child);
        ++ready_counts_[depth];
    }
}

void Scheduler::done(const Work& work) {
    const std::lock_guard lock(mutex_);
    const auto found = running_.find(work.id);
    if (found == running_.end() || !(found->second == work)) {
        throw std::invalid_argument(
            "expected work that next() of this scheduler handed out and that is still running; found work " +
            std::to_string(work.id) + "; report each work done once");
    }
    if (work.kind == Work::Kind::kDiffuse) {
        for (const std::int64_t id : work.items) segment_done(id);
    }
    device_busy_[static_cast<std::size_t>(work.device)] = false;
    running_.erase(found);
    changed_.notify_all();
}

void Scheduler::consumed(std::int64_t window) {
    const std::lock_guard lock(mutex_);
    if (window < 0 || window >= next_window_ || consumed_[static_cast<std::size_t>(window)]) {
        throw std::invalid_argument("expected a decode window that was handed out and not yet consumed; found window " +
                                    std::to_string(window) +
                                    "; report each window consumed once, after it was decoded");
    }
    consumed_[static_cast<std::size_t>(window)] = true;
    ++consumed_count_;
    changed_.notify_all();
}

void Scheduler::stop() {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
}

bool Scheduler::stopped() const {
    const std::lock_guard lock(mutex_);
    return stopped_;
}

bool Scheduler::finished() const {
    const std::lock_guard lock(mutex_);
    return exhausted() && running_.empty();
}

}  // namespace nuwaxl
