#include <algorithm>
#include <chrono>
#include <mutex>
#include <numeric>
#include <thread>

#include "check.h"
#include "scheduler.h"

using nuwaxl::Plan;
using nuwaxl::Policy;
using nuwaxl::Scheduler;
using nuwaxl::Window;
using nuwaxl::Work;
using namespace std::chrono_literals;

namespace {

// Windows of `length` frames every `hop` frames over the plan, clamped at its end.
std::vector<Window> windows_over(const Plan& plan, std::int64_t length, std::int64_t hop) {
    std::vector<Window> windows;
    for (std::int64_t first = 0; first < plan.frames(); first += hop) {
        windows.push_back({first, std::min(first + length, plan.frames()) - 1});
    }
    return windows;
}

// What several threads did, in the order in which the scheduler saw it.
class Record {
public:
    Record(const Plan& plan, const std::vector<Window>& windows, Policy policy)
        : plan_(plan), windows_(windows), policy_(policy), done_(static_cast<std::size_t>(plan.size()), false) {}

    // Called by the thread that got `work`, before it reports it done.
    void begin(const Work& work, std::int64_t max_batch) {
        const std::lock_guard lock(mutex_);
        if (work.kind == Work::Kind::kDecode) {
            CHECK(work.items.size() == 1 && work.depth == -1);
            decoded_.push_back(work.items.front());
            const Window& window = windows_[static_cast<std::size_t>(work.items.front())];
            for (std::int64_t frame = window.first; frame <= window.last; ++frame)
                CHECK(is_done(plan_.origin_of(frame)));
            return;
        }
        CHECK(!work.items.empty() && static_cast<std::int64_t>(work.items.size()) <= max_batch);
        CHECK(std::is_sorted(work.items.begin(), work.items.end()));
        for (const std::int64_t id : work.items) {
            const nuwaxl::Segment segment = plan_.segment(id);
            CHECK(segment.depth == work.depth);
            CHECK(segment.parent == Plan::kNoParent || is_done(segment.parent));
            if (policy_ == Policy::kLevel && segment.depth > 0) {
                const std::int64_t depth_start = plan_.id_of(segment.depth, 0);
                CHECK(std::all_of(done_.begin(), done_.begin() + depth_start, [](bool done) { return done; }));
            }
            diffused_.push_back(id);
        }
    }

    // Called before Scheduler::done, so that whoever sees its consequence also sees this.
    void end(const Work& work) {
        if (work.kind == Work::Kind::kDecode) return;
        const std::lock_guard lock(mutex_);
        for (const std::int64_t id : work.items) done_[static_cast<std::size_t>(id)] = true;
    }

    void check_all_was_done_once() {
        CHECK(decoded_.size() == windows_.size());
        std::sort(decoded_.begin(), decoded_.end());
        for (std::size_t i = 0; i < decoded_.size(); ++i) CHECK(decoded_[i] == static_cast<std::int64_t>(i));
        CHECK(static_cast<std::int64_t>(diffused_.size()) == plan_.size());
        std::sort(diffused_.begin(), diffused_.end());
        for (std::size_t i = 0; i < diffused_.size(); ++i) CHECK(diffused_[i] == static_cast<std::int64_t>(i));
    }

private:
    bool is_done(std::int64_t id) const { return done_[static_cast<std::size_t>(id)]; }

    const Plan& plan_;
    const std::vector<Window>& windows_;
    const Policy policy_;
    std::mutex mutex_;
    std::vector<bool> done_;
    std::vector<std::int64_t> diffused_;
    std::vector<std::int64_t> decoded_;
};

void render_with_threads(const Plan& plan, Policy policy, std::int64_t devices, std::int64_t max_batch) {
    const std::vector<Window> windows = windows_over(plan, 16, 12);
    Scheduler scheduler(plan, policy, devices, max_batch, windows, 3);
    Record record(plan, windows, policy);
    std::vector<std::thread> workers;
    for (std::int64_t device = 0; device < devices; ++device) {
        workers.emplace_back([&, device] {
            while (const auto work = scheduler.next(device)) {
                CHECK(work->device == device);
                record.begin(*work, max_batch);
                std::this_thread::yield();
                record.end(*work);
                scheduler.done(*work);
                if (work->kind == Work::Kind::kDecode) scheduler.consumed(work->items.front());
            }
        });
    }
    for (std::thread& worker : workers) worker.join();
    CHECK(scheduler.finished());
    CHECK(!scheduler.stopped());
    record.check_all_was_done_once();
}

}  // namespace

TEST(threads_do_all_work_once_each_segment_after_its_parent) {
    for (const Policy policy : {Policy::kLevel, Policy::kEager}) {
        for (const std::int64_t devices : {1, 2, 5}) {
            for (const std::int64_t max_batch : {1, 4, 16}) {
                render_with_threads(Plan(1024, 16, 3), policy, devices, max_batch);
            }
        }
        render_with_threads(Plan(1, 16), policy, 3, 4);
        render_with_threads(Plan(243, 4, 5), policy, 4, 7);
    }
}

TEST(eager_starts_a_subtree_while_level_waits) {
    for (const Policy policy : {Policy::kLevel, Policy::kEager}) {
        Scheduler scheduler(Plan(1024, 16, 3), policy, 2, 16, {}, 1);
        scheduler.done(*scheduler.next(0));
        const Work first = *scheduler.next(0);   // segments 1, 2, 3
        const Work second = *scheduler.next(1);  // segment 4
        scheduler.done(second);
        const Work third = *scheduler.next(1);  // segment 5, the last of depth 1
        scheduler.done(third);
        const auto next = scheduler.try_next(1);
        CHECK(next.has_value() == (policy == Policy::kEager));
        if (next) CHECK(next->depth == 2);
        scheduler.done(first);
    }
}

TEST(decoding_waits_for_its_consumer) {
    const Plan plan(100, 16, 2);
    Scheduler scheduler(plan, Policy::kEager, 2, 100, windows_over(plan, 10, 10), 2);
    while (const auto work = scheduler.try_next(0)) {
        scheduler.done(*work);
        if (work->kind == Work::Kind::kDecode && work->items.front() == 1) break;
    }
    CHECK(!scheduler.try_next(0).has_value());
    CHECK(!scheduler.finished());
    std::thread consumer([&] {
        std::this_thread::sleep_for(20ms);
        scheduler.consumed(0);
    });
    const Work work = *scheduler.next(0);
    consumer.join();
    CHECK(work.kind == Work::Kind::kDecode && work.items == std::vector<std::int64_t>{2});
    CHECK(!scheduler.try_next(1).has_value());
}

TEST(stop_wakes_workers_that_wait) {
    Scheduler scheduler(Plan(1024, 16, 3), Policy::kEager, 4, 16, {}, 1);
    const Work running = *scheduler.next(0);
    std::vector<std::thread> waiting;
    for (std::int64_t device = 1; device < 4; ++device) {
        waiting.emplace_back([&, device] { CHECK(!scheduler.next(device).has_value()); });
    }
    std::this_thread::sleep_for(20ms);
    const auto start = std::chrono::steady_clock::now();
    scheduler.stop();
    for (std::thread& thread : waiting) thread.join();
    CHECK(std::chrono::steady_clock::now() - start < 1s);
    CHECK(scheduler.stopped());
    scheduler.done(running);
    CHECK(!scheduler.next(0).has_value());
    CHECK(!scheduler.finished());
}

TEST(waiting_workers_leave_when_the_last_work_is_handed_out) {
    Scheduler scheduler(Plan(10, 16), Policy::kLevel, 2, 1, {}, 1);
    const Work only = *scheduler.next(0);
    CHECK(!scheduler.next(1).has_value());
    CHECK(!scheduler.finished());
    scheduler.done(only);
    CHECK(scheduler.finished());
}

TEST(wrong_use_is_refused_and_changes_nothing) {
    const Plan plan(1024, 16, 3);
    const auto make = [&](std::int64_t devices, std::int64_t max_batch, std::vector<Window> windows,
                          std::int64_t ahead) {
        return [=, &plan] { Scheduler(plan, Policy::kEager, devices, max_batch, windows, ahead); };
    };
    CHECK(check::refuses(make(0, 1, {}, 1)));
    CHECK(check::refuses(make(1, 0, {}, 1)));
    CHECK(check::refuses(make(1, 1, {}, 0)));
    CHECK(check::refuses(make(1, 1, {{5, 4}}, 1)));
    CHECK(check::refuses(make(1, 1, {{-1, 4}}, 1)));
    CHECK(check::refuses(make(1, 1, {{0, 1024}}, 1)));
    CHECK(check::refuses(make(1, 1, {{5, 9}, {4, 12}}, 1)));
    CHECK(check::refuses(make(1, 1, {{0, 9}, {4, 8}}, 1)));

    Scheduler scheduler(plan, Policy::kEager, 2, 16, {{0, 0}}, 1);
    CHECK(check::refuses([&] { scheduler.next(-1); }));
    CHECK(check::refuses([&] { scheduler.next(2); }));
    CHECK(check::refuses([&] { scheduler.done({0, Work::Kind::kDiffuse, {0}, 0, 0}); }));
    const Work global = *scheduler.next(0);
    CHECK(check::refuses([&] { scheduler.next(0); }));
    Work forged = global;
    forged.items = {1};
    CHECK(check::refuses([&] { scheduler.done(forged); }));
    scheduler.done(global);
    CHECK(check::refuses([&] { scheduler.done(global); }));
    CHECK(check::refuses([&] { scheduler.consumed(0); }));
    CHECK(check::refuses([&] { scheduler.consumed(-1); }));
    CHECK(check::refuses([&] { scheduler.consumed(1); }));
    CHECK(scheduler.next(0)->items.size() == 3);
}

TEST(a_plan_of_a_million_segments_is_scheduled_in_seconds) {
    const Plan plan(14'000'000, 16);
    Scheduler scheduler(plan, Policy::kEager, 2, 64, {{0, 13'999'999}}, 1);
    std::int64_t segments = 0;
    const auto start = std::chrono::steady_clock::now();
    while (const auto work = scheduler.next(0)) {
        if (work->kind == Work::Kind::kDiffuse) segments += static_cast<std::int64_t>(work->items.size());
        scheduler.done(*work);
    }
    CHECK(segments == plan.size() && segments > 900'000);
    CHECK(std::chrono::steady_clock::now() - start < 60s);
}

int main() { return check::run_all(); }
