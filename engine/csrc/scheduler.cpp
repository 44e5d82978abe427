#include "scheduler.h"

#include <algorithm>
#include <string>
#include <utility>

#include "refuse.h"

namespace nuwaxl {

namespace {

std::string text(const Item& item) { return pair_text(item.job, item.id); }

void include(std::set<std::int64_t>& jobs, std::int64_t number, bool included) {
    if (included) {
        jobs.insert(number);
    } else {
        jobs.erase(number);
    }
}

}  // namespace

Scheduler::Scheduler(Policy policy, std::vector<CostModel> devices, std::int64_t max_batch) : policy_(policy) {
    check_at_least_one("devices", static_cast<std::int64_t>(devices.size()));
    devices_.resize(devices.size());
    std::vector<const CostModel*> different;
    std::vector<std::size_t> model_of;
    for (std::size_t i = 0; i < devices.size(); ++i) {
        const auto same = std::find_if(different.begin(), different.end(),
                                       [&](const CostModel* model) { return *model == devices[i]; });
        model_of.push_back(static_cast<std::size_t>(same - different.begin()));
        if (same == different.end()) {
            different.push_back(&devices[i]);
            times_.emplace_back(devices[i], max_batch);
        }
        devices_[i].decode_s = devices[i].decode_s();
    }
    for (const std::size_t model : model_of) loads_.push_back({&times_[model], 0, 0, 0.0});
    refresh_limits();
}

std::int64_t Scheduler::add(Plan plan, std::int64_t steps, std::vector<Window> windows, std::int64_t decode_ahead,
                            const std::vector<std::int64_t>& finished) {
    const std::lock_guard lock(mutex_);
    if (closed_ || stopped_) {
        refuse("a scheduler that takes further videos", closed_ ? "one that was closed" : "one that was stopped",
               "add all of them before close() and stop()");
    }
    jobs_.emplace_back(std::move(plan), steps, std::move(windows), decode_ahead, finished);
    const auto number = static_cast<std::int64_t>(jobs_.size()) - 1;
    ++open_jobs_;
    untaken_ += jobs_.back().untaken();
    push(number, {0, 1});
    if (!finished.empty()) {
        refresh_windows(number);
        if (jobs_.back().finished()) job_ended(number);
    }
    changed();
    return number;
}

void Scheduler::close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    changed();
}

std::optional<Work> Scheduler::next(std::int64_t device) {
    std::unique_lock lock(mutex_);
    if (checked_free(device).left) {
        refuse("no window on its way from device " + std::to_string(device), "one that left it and did not arrive",
               "call arrived(device) before next(device), or try_next(device)");
    }
    while (!stopped_ && !is_lost(device)) {
        if (auto work = take(device)) return work;
        if (closed_ && idle()) break;
        ++waiting_;
        changed_.wait(lock);
        --waiting_;
    }
    return std::nullopt;
}

std::optional<Work> Scheduler::try_next(std::int64_t device) {
    const std::lock_guard lock(mutex_);
    checked_free(device);
    if (stopped_ || is_lost(device)) return std::nullopt;
    return take(device);
}

std::vector<Item> Scheduler::join(std::int64_t device) {
    const std::lock_guard lock(mutex_);
    if (checked(device).segments.empty()) {
        refuse("device " + std::to_string(device) + " to hold segments", "none", "call next(device) when it is free");
    }
    std::vector<Item> items;
    // A device that never drained would never decode.
    if (stopped_ || policy_ == Policy::kLevel || decode_first()) return items;
    if (const std::int64_t count = takes(device); count > 0) {
        take_segments(device, count, items);
        if (!ready_.empty()) changed();  // as in take()
    }
    return items;
}

void Scheduler::advance(std::int64_t device) {
    const std::lock_guard lock(mutex_);
    Device& held = checked(device);
    if (held.segments.empty()) {
        refuse("device " + std::to_string(device) + " to hold segments", "none", "report steps of segments alone");
    }
    ++held.steps;
    Load& load = loads_[static_cast<std::size_t>(device)];
    if (load.steps_left > 0) --load.steps_left;
}

void Scheduler::done(std::int64_t device, std::span<const Item> items) {
    const std::lock_guard lock(mutex_);
    Device& held = checked(device);
    if (held.window && items.size() == 1 && items.front() == *held.window) {
        held.window.reset();
        window_done(items.front());
    } else {
        if (const auto unknown = held.drop(items)) {
            refuse("items that next() or join() gave to device " + std::to_string(device) + " and that it holds",
                   text(*unknown), "report each item done once, by the device that has it");
        }
        for (const Item& item : items) {
            Job& owner = job(item.job);
            if (owner.failed()) continue;
            push(item.job, owner.segment_done(item.id, policy_));
            if (owner.finished()) job_ended(item.job);
        }
        for (std::size_t i = 0; i < items.size(); ++i) {
            if (i == 0 || items[i].job != items[i - 1].job) refresh_windows(items[i].job);
        }
    }
    refresh_load(device);
    changed();
}

void Scheduler::leave(std::int64_t device) {
    const std::lock_guard lock(mutex_);
    Device& of = checked(device);
    if (!of.window || of.left) {
        refuse("device " + std::to_string(device) + " to hold a window, with no other on its way",
               of.left ? "one on its way" : "none held", "call leave(device) once a window, and arrived(device) after it");
    }
    of.left = std::exchange(of.window, std::nullopt);
    refresh_load(device);
}

void Scheduler::arrived(std::int64_t device) {
    const std::lock_guard lock(mutex_);
    Device& of = checked(device);
    if (!of.left) {
        refuse("a window on its way from device " + std::to_string(device), "none", "call leave(device) before");
    }
    window_done(*std::exchange(of.left, std::nullopt));
    refresh_load(device);
    changed();
}

void Scheduler::lost(std::int64_t device) {
    const std::lock_guard lock(mutex_);
    Device& held = checked(device);
    if (is_lost(device)) return;
    for (const Holding::Segment& segment : held.segments) {
        if (job(segment.item.job).failed()) continue;
        push(segment.item.job, {segment.item.id, 1});
        job(segment.item.job).return_segment();
        ++untaken_;
    }
    return_window(held.window);
    return_window(held.left);
    held.segments.clear();
    refresh_load(device);
    loads_[static_cast<std::size_t>(device)].times = nullptr;
    refresh_limits();
    if (std::all_of(loads_.begin(), loads_.end(), [](const Load& load) { return load.times == nullptr; })) {
        stopped_ = true;
    }
    changed();
}

void Scheduler::fail(std::int64_t number) {
    const std::lock_guard lock(mutex_);
    Job& failing = checked_job(number);
    if (failing.failed() || failing.finished()) return;
    untaken_ -= failing.untaken();
    failing.fail();
    ready_.drop(number);
    refresh_windows(number);
    job_ended(number);
    changed();
}

void Scheduler::consumed(std::int64_t number, std::int64_t window) {
    const std::lock_guard lock(mutex_);
    checked_job(number).consumed(window);
    refresh_windows(number);
    changed();
}

void Scheduler::stop() {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    changed();
}

bool Scheduler::stopped() const {
    const std::lock_guard lock(mutex_);
    return stopped_;
}

bool Scheduler::finished() const {
    const std::lock_guard lock(mutex_);
    return closed_ && idle();
}

bool Scheduler::job_finished(std::int64_t number) const {
    const std::lock_guard lock(mutex_);
    return checked_job(number).finished();
}

bool Scheduler::failed(std::int64_t number) const {
    const std::lock_guard lock(mutex_);
    return checked_job(number).failed();
}

std::vector<Item> Scheduler::held(std::int64_t device) const {
    const std::lock_guard lock(mutex_);
    return checked(device).items();
}

bool Scheduler::has_ready() const {
    const std::lock_guard lock(mutex_);
    return !ready_.empty() || !awaited_.empty() || !spare_.empty();
}

const Scheduler::Device& Scheduler::checked(std::int64_t device) const {
    const auto count = static_cast<std::int64_t>(devices_.size());
    if (device < 0 || device >= count) {
        refuse("a device between 0 and " + std::to_string(count - 1), std::to_string(device),
               "number the workers from 0");
    }
    return devices_[static_cast<std::size_t>(device)];
}

Scheduler::Device& Scheduler::checked(std::int64_t device) {
    return const_cast<Device&>(std::as_const(*this).checked(device));
}

Scheduler::Device& Scheduler::checked_free(std::int64_t device) {
    Device& asking = checked(device);
    if (!asking.free()) {
        refuse("device " + std::to_string(device) + " to be free", "work of it not reported done",
               "call done() for all that it holds before next(device)");
    }
    return asking;
}

const Job& Scheduler::checked_job(std::int64_t number) const {
    const auto count = static_cast<std::int64_t>(jobs_.size());
    if (number < 0 || number >= count) {
        refuse("the number of a job that add() returned, " + std::to_string(count) + " of them", std::to_string(number),
               "keep what add() returns");
    }
    return jobs_[static_cast<std::size_t>(number)];
}

Job& Scheduler::checked_job(std::int64_t number) {
    return const_cast<Job&>(std::as_const(*this).checked_job(number));
}

// How many segments from the front of the queue the device takes now.
std::int64_t Scheduler::takes(std::int64_t device) {
    const auto at = static_cast<std::size_t>(device);
    const Load& load = loads_[at];
    if (ready_.empty() || load.held >= load.times->target()) return 0;
    const ReadyRange& front = ready_.front();
    std::int64_t ready = ready_.count();
    bool urgent = false;
    if (policy_ == Policy::kLevel) {
        ready = ready_.count_of(front.job);
    } else if (policy_ == Policy::kLatency) {
        // What a first window needs is not slowed down by other segments in its batch.
        const std::int64_t opening = job(front.job).opening(front);
        if (load.held > 0 && opening == 0 && devices_[at].opening) return 0;
        if (opening > 0) ready = load.held > 0 && devices_[at].opening ? welcome(load, opening) : opening;
        urgent = opening > 0;
    }
    const std::int64_t steps = job(front.job).steps();
    if (load.held > 0 && !urgent && !young(load, steps)) return 0;
    std::int64_t room = load.times->target() - load.held;
    // The last ones before an end: that of all work, known once no further videos come, or a barrier.
    const std::int64_t left = policy_ == Policy::kLevel ? ready_.count() : untaken_;
    if (load.held == 0 && closed_ && left < devices_[at].many) room = last_batch(loads_, at, left, steps);
    return ready >= devices_[at].plenty ? std::min(ready, room) : share(loads_, at, ready, steps, room);
}

void Scheduler::take_segments(std::int64_t device, std::int64_t count, std::vector<Item>& items) {
    Device& taking = devices_[static_cast<std::size_t>(device)];
    taking.opening = policy_ == Policy::kLatency && job(ready_.front().job).opening(ready_.front()) > 0;
    untaken_ -= count;
    for (std::int64_t i = 0; i < count; ++i) {
        const Item item = ready_.pop();
        Job& owner = job(item.job);
        owner.segment_taken();
        // Those of the next depth do not wait for one segment, but for all of its depth.
        const std::int64_t children = policy_ == Policy::kLevel ? 0 : owner.plan().children(item.id).count;
        taking.segments.push_back({item, taking.steps + owner.steps(), children});
        items.push_back(item);
    }
    refresh_load(device);
}

std::optional<Work> Scheduler::take(std::int64_t device) {
    Device& taking = devices_[static_cast<std::size_t>(device)];
    Work work{next_id_, Work::Kind::kDecode, {}, device};
    if (const std::int64_t count = decode_first() ? 0 : takes(device); count > 0) {
        work.kind = Work::Kind::kDiffuse;
        work.items.reserve(static_cast<std::size_t>(count));
        taking.steps = 0;
        take_segments(device, count, work.items);
    } else if (!awaited_.empty() || !spare_.empty()) {
        taking.window = take_window();
        work.items.push_back(*taking.window);
        refresh_load(device);
    } else {
        return std::nullopt;
    }
    ++next_id_;
    if (!ready_.empty()) changed();  // this device is busy now, so a slower one may be wanted
    return work;
}

Item Scheduler::take_window() {
    const std::int64_t number = *(awaited_.empty() ? spare_ : awaited_).begin();
    const Item item{number, job(number).take_window()};
    refresh_windows(number);
    return item;
}

void Scheduler::window_done(const Item& item) {
    Job& owner = job(item.job);
    if (owner.failed()) return;
    owner.window_done();
    if (owner.finished()) job_ended(item.job);
}

void Scheduler::return_window(std::optional<Item>& item) {
    if (item && !job(item->job).failed()) {
        job(item->job).return_window(item->id);
        refresh_windows(item->job);
    }
    item.reset();
}

// Segments may start.
void Scheduler::push(std::int64_t number, IdRange ids) {
    Job& owner = job(number);
    for (const IdRange& range : owner.to_denoise(ids, policy_)) {
        if (range.count > 0) ready_.push(ranked(policy_, owner.plan(), owner.steps(), number, range));
    }
}

void Scheduler::refresh_windows(std::int64_t number) {
    const bool ready = job(number).window_ready();
    const bool awaited = ready && job(number).consumer_waits();
    include(awaited_, number, awaited);
    include(spare_, number, ready && !awaited);
}

// Brings what the policy sees of a device, and the number of devices that hold something, up to date.
void Scheduler::refresh_load(std::int64_t device) {
    Device& of = devices_[static_cast<std::size_t>(device)];
    of.describe(loads_[static_cast<std::size_t>(device)]);
    if (of.counted == of.finished()) holding_ += of.counted ? -1 : 1;
    of.counted = !of.finished();
}

void Scheduler::refresh_limits() {
    for (std::size_t i = 0; i < devices_.size(); ++i) {
        if (loads_[i].times == nullptr) continue;
        const auto same = std::find_if(loads_.begin(), loads_.begin() + static_cast<std::ptrdiff_t>(i),
                                       [&](const Load& load) { return load.times == loads_[i].times; });
        const auto at = static_cast<std::size_t>(same - loads_.begin());
        devices_[i].plenty = at < i ? devices_[at].plenty : plenty(loads_, i);
        devices_[i].many = at < i ? devices_[at].many : many(loads_, i);
    }
}

void Scheduler::job_ended(std::int64_t number) {
    job(number).release();
    --open_jobs_;
}

// Wakes the threads that wait, since what they wait for may be there.
void Scheduler::changed() {
    if (waiting_ > 0) changed_.notify_all();
}

}  // namespace nuwaxl
