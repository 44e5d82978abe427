#include "clock.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <functional>
#include <optional>
#include <queue>
#include <stdexcept>
#include <string>
#include <utility>

#include "refuse.h"

namespace nuwaxl {

namespace {

// Moments closer than this part of the time since the start are one: rounding must not make an order.
constexpr double kSameMoment = 1e-9;

// The settings' check is called so often, for which real time is looked at once in so many questions to the scheduler:
// either may take longer than a question.
constexpr std::chrono::milliseconds kBetweenChecks{50};
constexpr std::int64_t kQuestions = 64;

// The worker of a device, as the engine has one in a thread.
struct Worker {
    struct Running {
        Item item;
        std::int64_t steps_left;
    };
    std::vector<Running> segments;
    std::optional<Item> window;
    bool idle = true;
};

struct Event {
    double at_s;
    std::size_t device;

    auto operator<=>(const Event&) const = default;
};

class Clock {
public:
    Clock(const std::vector<Plan>& plans, const SimulationSettings& settings)
        : settings_(settings),
          scheduler_(settings.policy, settings.devices, settings.max_batch),
          workers_(settings.devices.size()) {
        if (!settings.windows.empty() && settings.windows.size() != plans.size()) {
            refuse("the decode windows of each of the " + std::to_string(plans.size()) + " plans",
                   std::to_string(settings.windows.size()) + " lists", "pass a list a plan, or none at all");
        }
        result_.busy_s.assign(workers_.size(), 0.0);
        result_.first_frames_s.assign(plans.size(), 0.0);
        for (std::size_t i = 0; i < plans.size(); ++i) {
            const auto windows = settings.windows.empty() ? std::vector<Window>{} : settings.windows[i];
            scheduler_.add(plans[i], settings.steps, windows, settings.decode_ahead);
        }
        scheduler_.close();
        for (std::size_t i = 0; i < plans.size(); ++i) opening_.push_back(opening_of(plans[i], i));
    }

    Simulation run() {
        ask_idle();
        std::vector<std::size_t> moment;
        while (!events_.empty()) {
            moment.clear();
            now_s_ = events_.top().at_s;
            while (!events_.empty() && events_.top().at_s <= now_s_ * (1.0 + kSameMoment)) {
                moment.push_back(events_.top().device);
                events_.pop();
            }
            for (const std::size_t device : moment) finish(device);
            for (const std::size_t device : moment) go_on(device);
            ask_idle();
        }
        if (!scheduler_.finished()) throw std::logic_error("the scheduler left work undone");
        result_.makespan_s = now_s_;
        if (result_.steps > 0) result_.mean_batch = static_cast<double>(slots_) / static_cast<double>(result_.steps);
        return std::move(result_);
    }

private:
    // Segments that generate the first L frames of a plan; none if its windows tell when those are there.
    std::vector<std::int64_t> opening_of(const Plan& plan, std::size_t number) const {
        std::vector<std::int64_t> ids;
        if (!settings_.windows.empty() && !settings_.windows[number].empty()) return ids;
        for (std::int64_t frame = 0; frame < std::min(plan.length(), plan.frames()); ++frame) {
            ids.push_back(plan.origin_of(frame));
        }
        std::sort(ids.begin(), ids.end());
        ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
        return ids;
    }

    // The step or the window that the device was at is over.
    void finish(std::size_t device) {
        Worker& worker = workers_[device];
        const auto number = static_cast<std::int64_t>(device);
        done_.clear();
        if (worker.window) {
            done_.push_back(*worker.window);
            worker.window.reset();
            const Item& item = done_.front();
            if (item.id == 0) result_.first_frames_s[static_cast<std::size_t>(item.job)] = now_s_;
            scheduler_.done(number, done_);
            scheduler_.consumed(item.job, item.id);
            return;
        }
        std::size_t staying = 0;
        for (Worker::Running& running : worker.segments) {
            if (--running.steps_left > 0) {
                worker.segments[staying++] = running;
            } else {
                done_.push_back(running.item);
            }
        }
        worker.segments.resize(staying);
        for (const Item& item : done_) segment_done(item);
        scheduler_.advance(number);
        if (!done_.empty()) scheduler_.done(number, done_);
    }

    void segment_done(const Item& item) {
        result_.diffusion_s = now_s_;
        auto& missing = opening_[static_cast<std::size_t>(item.job)];
        if (!missing.empty() && std::erase(missing, item.id) > 0 && missing.empty()) {
            result_.first_frames_s[static_cast<std::size_t>(item.job)] = now_s_;
        }
    }

    // Before every question to the scheduler.
    void maybe_check() {
        if (++questions_ % kQuestions != 0 || !settings_.check) return;
        const auto now = std::chrono::steady_clock::now();
        if (now < next_check_) return;
        settings_.check();
        next_check_ = now + kBetweenChecks;
    }

    void go_on(std::size_t device) {
        maybe_check();
        Worker& worker = workers_[device];
        if (worker.segments.empty()) {
            worker.idle = true;
            ++idle_;
            return;
        }
        std::vector<Item> newcomers;
        if (settings_.joining) newcomers = scheduler_.join(static_cast<std::int64_t>(device));
        result_.joined += static_cast<std::int64_t>(newcomers.size());
        step(device, newcomers);
    }

    void ask_idle() {
        for (std::size_t device = 0; device < workers_.size() && idle_ > 0; ++device) {
            if (!workers_[device].idle) continue;
            if (!scheduler_.has_ready()) return;
            maybe_check();
            const auto work = scheduler_.try_next(static_cast<std::int64_t>(device));
            if (!work) continue;
            workers_[device].idle = false;
            --idle_;
            if (work->kind == Work::Kind::kDecode) {
                workers_[device].window = work->items.front();
                begin(device, Work::Kind::kDecode, settings_.devices[device].decode_s(), work->items);
            } else {
                ++result_.batches;
                step(device, work->items);
            }
        }
    }

    // The device begins a step of what it has and of `newcomers`.
    void step(std::size_t device, const std::vector<Item>& newcomers) {
        Worker& worker = workers_[device];
        for (const Item& item : newcomers) worker.segments.push_back({item, settings_.steps});
        ++result_.steps;
        slots_ += static_cast<std::int64_t>(worker.segments.size());
        std::vector<Item> items;
        if (settings_.record) {
            for (const Worker::Running& running : worker.segments) items.push_back(running.item);
        }
        const double length_s = settings_.devices[device].step_s(static_cast<std::int64_t>(worker.segments.size()));
        begin(device, Work::Kind::kDiffuse, length_s, items);
    }

    void begin(std::size_t device, Work::Kind kind, double length_s, const std::vector<Item>& items) {
        events_.push({now_s_ + length_s, device});
        result_.busy_s[device] += length_s;
        if (settings_.record) {
            result_.spans.push_back({static_cast<std::int64_t>(device), now_s_, now_s_ + length_s, kind, items});
        }
    }

    const SimulationSettings& settings_;
    Simulation result_;
    Scheduler scheduler_;
    std::vector<Worker> workers_;
    std::size_t idle_ = workers_.size();
    std::vector<std::vector<std::int64_t>> opening_;  // by plan: of the first L frames, who is not done
    std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
    std::vector<Item> done_;
    double now_s_ = 0.0;
    std::int64_t slots_ = 0;  // segments in all steps
    std::int64_t questions_ = 0;
    std::chrono::steady_clock::time_point next_check_;
};

}  // namespace

Simulation simulate(const std::vector<Plan>& plans, const SimulationSettings& settings) {
    const std::clock_t start = std::clock();
    Simulation result = Clock(plans, settings).run();
    result.cpu_s = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    return result;
}

}  // namespace nuwaxl
