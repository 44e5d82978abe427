#include <algorithm>
#include <chrono>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "check.h"
#include "scheduler.h"

using nuwaxl::CostModel;
using nuwaxl::Item;
using nuwaxl::Plan;
using nuwaxl::Policy;
using nuwaxl::Scheduler;
using nuwaxl::Window;
using nuwaxl::Work;
using namespace std::chrono_literals;
using Items = std::vector<Item>;

namespace {

const CostModel kWide({1, 8}, {8.0, 15.0}, 1.0);
constexpr Policy kPolicies[] = {Policy::kLevel, Policy::kEager, Policy::kLatency};

std::vector<CostModel> devices(std::size_t count) { return std::vector<CostModel>(count, kWide); }

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
    explicit Record(Policy policy) : policy_(policy) {}

    void add(std::int64_t job, Plan plan, std::vector<Window> windows) {
        const std::lock_guard lock(mutex_);
        jobs_.emplace(job, Job{std::move(plan), std::move(windows), {}, {}, {}});
    }

    // Called by the thread that got the segments, before it reports them done.
    void began(const Items& items) {
        const std::lock_guard lock(mutex_);
        for (const auto& [number, id] : items) {
            Job& job = jobs_.at(number);
            const nuwaxl::Segment segment = job.plan.segment(id);
            CHECK(segment.parent == Plan::kNoParent || job.done.contains(segment.parent));
            CHECK(!job.done.contains(id));
            if (policy_ == Policy::kLevel && job.plan.kind() == Plan::Kind::kTree && segment.depth > 0) {
                CHECK(static_cast<std::int64_t>(job.done.size()) >= job.plan.id_of(segment.depth, 0));
            }
            job.begun.push_back(id);
        }
    }

    void began_window(const Item& item) {
        const std::lock_guard lock(mutex_);
        Job& job = jobs_.at(item.job);
        const Window& window = job.windows[static_cast<std::size_t>(item.id)];
        for (std::int64_t frame = window.first; frame <= window.last; ++frame) {
            CHECK(job.done.contains(job.plan.origin_of(frame)));
        }
        job.decoded.push_back(item.id);
    }

    // Called before Scheduler::done, so that whoever sees its consequence also sees this.
    void ended(const Items& items) {
        const std::lock_guard lock(mutex_);
        for (const auto& [number, id] : items) CHECK(jobs_.at(number).done.insert(id).second);
    }

    void check_all_was_done_once() {
        for (auto& [number, job] : jobs_) {
            CHECK(static_cast<std::int64_t>(job.done.size()) == job.plan.size());
            CHECK(static_cast<std::int64_t>(job.begun.size()) == job.plan.size());
            std::sort(job.decoded.begin(), job.decoded.end());
            CHECK(job.decoded.size() == job.windows.size());
            for (std::size_t i = 0; i < job.decoded.size(); ++i) CHECK(job.decoded[i] == static_cast<std::int64_t>(i));
        }
    }

private:
    struct Job {
        Plan plan;
        std::vector<Window> windows;
        std::set<std::int64_t> done;
        std::vector<std::int64_t> begun;
        std::vector<std::int64_t> decoded;
    };
    const Policy policy_;
    std::mutex mutex_;
    std::map<std::int64_t, Job> jobs_;
};

// The life of a worker: steps, piecemeal ends, newcomers, windows.
void work(Scheduler& scheduler, Record& record, std::int64_t device, const std::vector<std::int64_t>& steps_of_job) {
    while (const auto taken = scheduler.next(device)) {
        CHECK(taken->device == device);
        if (taken->kind == Work::Kind::kDecode) {
            CHECK(taken->items.size() == 1);
            const Item item = taken->items.front();
            record.began_window(item);
            scheduler.done(device, taken->items);
            scheduler.consumed(item.job, item.id);
            continue;
        }
        record.began(taken->items);
        std::vector<std::pair<Item, std::int64_t>> held;  // and steps left
        Items newcomers = taken->items;
        do {
            for (const Item& item : newcomers) {
                held.emplace_back(item, steps_of_job[static_cast<std::size_t>(item.job)]);
            }
            CHECK(!held.empty() && held.size() <= 8);
            scheduler.advance(device);
            std::this_thread::yield();
            Items finished;
            for (auto& [item, left] : held) {
                if (--left == 0) finished.push_back(item);
            }
            std::erase_if(held, [](const auto& entry) { return entry.second == 0; });
            record.ended(finished);
            scheduler.done(device, finished);
            newcomers = held.empty() ? Items{} : scheduler.join(device);
            record.began(newcomers);
        } while (!held.empty());
    }
}

void render_with_threads(const std::vector<Plan>& plans, Policy policy, std::size_t count) {
    Scheduler scheduler(policy, devices(count), 8);
    Record record(policy);
    std::vector<std::int64_t> steps;
    for (std::size_t i = 0; i < plans.size(); ++i) steps.push_back(2 + static_cast<std::int64_t>(i));
    std::vector<std::thread> workers;
    for (std::size_t device = 0; device < count; ++device) {
        workers.emplace_back([&, device] { work(scheduler, record, static_cast<std::int64_t>(device), steps); });
    }
    for (std::size_t i = 0; i < plans.size(); ++i) {
        const std::vector<Window> windows = windows_over(plans[i], 16, 12);
        record.add(static_cast<std::int64_t>(i), plans[i], windows);
        CHECK(scheduler.add(plans[i], steps[i], windows, 3) == static_cast<std::int64_t>(i));
        std::this_thread::yield();
    }
    scheduler.close();
    for (std::thread& worker : workers) worker.join();
    CHECK(scheduler.finished() && !scheduler.stopped());
    for (std::size_t i = 0; i < plans.size(); ++i) CHECK(scheduler.job_finished(static_cast<std::int64_t>(i)));
    record.check_all_was_done_once();
}

Items segments(std::int64_t job, std::int64_t first, std::int64_t end) {
    Items items;
    for (std::int64_t id = first; id < end; ++id) items.push_back({job, id});
    return items;
}

void finish(Scheduler& scheduler, const Work& taken) { scheduler.done(taken.device, taken.items); }

}  // namespace

TEST(threads_do_all_work_once_each_segment_after_its_parent) {
    for (const Policy policy : kPolicies) {
        for (const std::size_t count : {1, 2, 5}) {
            render_with_threads({Plan(1024, 16, 3)}, policy, count);
            render_with_threads({Plan(243, 4, 5), Plan(1, 16), Plan::autoregressive(200, 16, 4), Plan(700, 16)}, policy,
                                count);
        }
    }
}

TEST(eager_starts_a_subtree_while_level_waits) {
    for (const Policy policy : kPolicies) {
        Scheduler scheduler(policy, devices(2), 16);
        scheduler.add(Plan(1024, 16, 3), 10);
        finish(scheduler, *scheduler.next(0));
        const Work first = *scheduler.next(0);
        const Work second = *scheduler.next(1);
        if (policy != Policy::kLatency) CHECK(first.items.size() + second.items.size() == 5);
        finish(scheduler, first);
        const auto next = scheduler.try_next(0);
        CHECK(next.has_value() == (policy != Policy::kLevel));
        finish(scheduler, second);
    }
}

TEST(a_device_with_room_takes_newcomers_at_a_step_boundary) {
    Scheduler scheduler(Policy::kEager, devices(1), 8);
    scheduler.add(Plan(60, 16), 4);
    CHECK(scheduler.next(0)->items == segments(0, 0, 1));
    scheduler.advance(0);
    CHECK(scheduler.join(0).empty());
    scheduler.add(Plan(60, 16), 4);
    CHECK(scheduler.join(0) == segments(1, 0, 1));
    for (int i = 0; i < 3; ++i) scheduler.advance(0);
    scheduler.done(0, segments(0, 0, 1));
    CHECK(scheduler.held(0) == segments(1, 0, 1));
    // What is held now has one step left of four: too old to be joined.
    CHECK(scheduler.join(0).empty());
    scheduler.advance(0);
    scheduler.done(0, segments(1, 0, 1));
    CHECK(scheduler.next(0)->items.size() == 8);
}

TEST(a_waiting_consumer_goes_before_newcomers_and_batches) {
    Scheduler scheduler(Policy::kEager, devices(2), 8);
    scheduler.add(Plan(10, 16), 4, {{0, 9}}, 1);
    const Work first = *scheduler.next(0);
    finish(scheduler, first);
    scheduler.add(Plan(60, 16), 4);
    const Work window = *scheduler.next(0);
    CHECK(window.kind == Work::Kind::kDecode && (window.items == Items{{0, 0}}));
    CHECK(scheduler.next(1)->kind == Work::Kind::kDiffuse);
}

TEST(decoding_waits_for_its_consumer) {
    const Plan plan(100, 16, 2);
    Scheduler scheduler(Policy::kEager, devices(2), 8);
    scheduler.add(plan, 1, windows_over(plan, 10, 10), 2);
    scheduler.close();
    while (const auto taken = scheduler.try_next(0)) finish(scheduler, *taken);
    CHECK(!scheduler.finished());
    std::thread consumer([&] {
        std::this_thread::sleep_for(20ms);
        scheduler.consumed(0, 0);
    });
    const Work taken = *scheduler.next(0);
    consumer.join();
    CHECK(taken.kind == Work::Kind::kDecode && (taken.items == Items{{0, 2}}));
    CHECK(!scheduler.try_next(1).has_value());
}

TEST(what_a_lost_device_held_is_done_by_the_others) {
    for (const Policy policy : kPolicies) {
        const Plan plan(100, 16, 2);
        Scheduler scheduler(policy, devices(2), 8);
        const auto windows = windows_over(plan, 16, 16);
        scheduler.add(plan, 2, windows, 1);
        scheduler.close();
        finish(scheduler, *scheduler.next(0));
        const Work gone = *scheduler.next(0);
        std::thread other([&] {
            while (const auto taken = scheduler.next(1)) {
                finish(scheduler, *taken);
                if (taken->kind == Work::Kind::kDecode) scheduler.consumed(0, taken->items.front().id);
            }
        });
        std::this_thread::sleep_for(5ms);
        CHECK(!scheduler.finished());
        scheduler.lost(0);
        scheduler.lost(0);
        other.join();
        CHECK(scheduler.finished() && !scheduler.stopped());
        CHECK(!scheduler.next(0).has_value());
        CHECK(check::refuses([&] { finish(scheduler, gone); }));
    }
}

TEST(a_window_of_a_lost_device_is_decoded_again) {
    Scheduler scheduler(Policy::kEager, devices(2), 8);
    scheduler.add(Plan(16, 16), 1, {{0, 9}, {6, 15}}, 2);
    scheduler.close();
    finish(scheduler, *scheduler.next(0));
    CHECK((scheduler.next(0)->items == Items{{0, 0}}));
    const Work second = *scheduler.next(1);
    CHECK((second.items == Items{{0, 1}}));
    scheduler.lost(0);
    finish(scheduler, second);
    const Work again = *scheduler.next(1);
    CHECK((again.items == Items{{0, 0}}));
    finish(scheduler, again);
    CHECK(scheduler.finished());
}

TEST(when_all_devices_are_lost_the_scheduler_is_stopped) {
    Scheduler scheduler(Policy::kEager, devices(2), 8);
    scheduler.add(Plan(100, 16), 1);
    CHECK(scheduler.next(0).has_value());
    std::thread blocked([&] { CHECK(!scheduler.next(1).has_value()); });
    std::this_thread::sleep_for(5ms);
    scheduler.lost(1);
    blocked.join();
    CHECK(!scheduler.stopped());
    scheduler.lost(0);
    CHECK(scheduler.stopped() && !scheduler.finished());
}

TEST(a_failed_job_leaves_the_others_alone) {
    Scheduler scheduler(Policy::kEager, devices(1), 8);
    for (int i = 0; i < 2; ++i) scheduler.add(Plan(100, 16), 1, {{0, 15}}, 1);
    scheduler.close();
    const Work both = *scheduler.next(0);
    CHECK((both.items == Items{{0, 0}, {1, 0}}));
    scheduler.fail(0);
    scheduler.fail(0);
    CHECK(scheduler.failed(0) && !scheduler.failed(1) && !scheduler.job_finished(0));
    CHECK(scheduler.held(0) == both.items);
    finish(scheduler, both);
    while (const auto taken = scheduler.next(0)) {
        for (const Item& item : taken->items) CHECK(item.job == 1);
        finish(scheduler, *taken);
    }
    CHECK(scheduler.finished() && scheduler.job_finished(1));
    scheduler.fail(1);
    CHECK(!scheduler.failed(1));
}

TEST(stop_wakes_workers_that_wait) {
    Scheduler scheduler(Policy::kEager, devices(4), 16);
    scheduler.add(Plan(1024, 16, 3), 1);
    const Work running = *scheduler.next(0);
    std::vector<std::thread> waiting;
    for (std::int64_t device = 1; device < 4; ++device) {
        waiting.emplace_back([&, device] { CHECK(!scheduler.next(device).has_value()); });
    }
    std::this_thread::sleep_for(20ms);
    scheduler.stop();
    for (std::thread& thread : waiting) thread.join();
    CHECK(scheduler.stopped());
    finish(scheduler, running);
    CHECK(!scheduler.next(0).has_value());
    CHECK(!scheduler.finished());
}

TEST(workers_wait_for_videos_until_it_is_closed) {
    Scheduler scheduler(Policy::kEager, devices(1), 8);
    std::vector<Items> seen;
    std::thread worker([&] {
        while (const auto taken = scheduler.next(0)) {
            seen.push_back(taken->items);
            finish(scheduler, *taken);
        }
    });
    for (int i = 0; i < 3; ++i) {
        std::this_thread::sleep_for(2ms);
        scheduler.add(Plan(10, 16), 1);
    }
    std::this_thread::sleep_for(2ms);
    CHECK(!scheduler.finished());
    scheduler.close();
    worker.join();
    Items all;
    for (const Items& items : seen) all.insert(all.end(), items.begin(), items.end());
    CHECK((all == Items{{0, 0}, {1, 0}, {2, 0}}));
}

TEST(the_most_steps_and_windows_ahead_are_as_good_as_any) {
    for (const Policy policy : {Policy::kLevel, Policy::kEager, Policy::kLatency}) {
        Scheduler scheduler(policy, devices(1), 16);
        scheduler.add(Plan(16, 16), std::int64_t{1} << 60, {{0, 7}, {8, 15}}, INT64_MAX);
        const Work global = *scheduler.next(0);
        scheduler.advance(0);
        scheduler.join(0);
        finish(scheduler, global);
        finish(scheduler, *scheduler.next(0));
        scheduler.consumed(0, 0);
        CHECK(scheduler.next(0)->kind == Work::Kind::kDecode);
    }
}

TEST(wrong_use_is_refused_and_changes_nothing) {
    const Plan plan(1024, 16, 3);
    CHECK(check::refuses([] { Scheduler(Policy::kEager, {}, 8); }));
    CHECK(check::refuses([] { Scheduler(Policy::kEager, devices(1), 0); }));
    CHECK(check::refuses([] { Scheduler(Policy::kEager, devices(1), std::int64_t{1} << 40); }));

    Scheduler scheduler(Policy::kEager, devices(2), 16);
    const auto add = [&](std::int64_t steps, const std::vector<Window>& windows, std::int64_t ahead) {
        return [=, &scheduler, &plan] { scheduler.add(plan, steps, windows, ahead); };
    };
    CHECK(check::refuses(add(0, {}, 1)));
    CHECK(check::refuses(add(1, {}, 0)));
    CHECK(check::refuses(add(INT64_MAX, {}, 1)));
    CHECK(check::refuses(add((std::int64_t{1} << 60) / 3 + 1, {}, 1)));
    CHECK(check::refuses([&] { scheduler.add(Plan::autoregressive(std::int64_t{1} << 62, 16, 15), 1); }));
    CHECK(check::refuses(add(1, {{5, 4}}, 1)));
    CHECK(check::refuses(add(1, {{-1, 4}}, 1)));
    CHECK(check::refuses(add(1, {{0, 1024}}, 1)));
    CHECK(check::refuses(add(1, {{5, 9}, {4, 12}}, 1)));
    CHECK(check::refuses(add(1, {{0, 9}, {4, 8}}, 1)));
    CHECK(check::refuses([&] { scheduler.job_finished(0); }));
    CHECK(scheduler.add(plan, 1, {{0, 1}}, 1) == 0);

    CHECK(check::refuses([&] { scheduler.next(-1); }));
    CHECK(check::refuses([&] { scheduler.next(2); }));
    CHECK(check::refuses([&] { scheduler.held(2); }));
    CHECK(check::refuses([&] { scheduler.done(0, segments(0, 0, 1)); }));
    CHECK(check::refuses([&] { scheduler.join(0); }));
    CHECK(check::refuses([&] { scheduler.advance(0); }));
    const Work global = *scheduler.next(0);
    CHECK(check::refuses([&] { scheduler.next(0); }));
    CHECK(check::refuses([&] { scheduler.done(0, segments(0, 1, 2)); }));
    CHECK(check::refuses([&] { scheduler.done(0, Items{{0, 0}, {0, 0}}); }));
    CHECK(check::refuses([&] { scheduler.done(1, global.items); }));
    CHECK(scheduler.held(0) == global.items);
    finish(scheduler, global);
    CHECK(check::refuses([&] { finish(scheduler, global); }));
    for (const std::int64_t window : {-1, 0, 1}) CHECK(check::refuses([&] { scheduler.consumed(0, window); }));
    CHECK(check::refuses([&] { scheduler.consumed(1, 0); }));
    CHECK(check::refuses([&] { scheduler.fail(1); }));
    CHECK(scheduler.next(0)->items.size() == 3);
    scheduler.close();
    CHECK(check::refuses(add(1, {}, 1)));
}

TEST(a_plan_of_a_million_segments_is_scheduled_in_seconds) {
    const Plan plan(14'000'000, 16);
    Scheduler scheduler(Policy::kEager, devices(2), 8);
    scheduler.add(plan, 1, {{0, 13'999'999}}, 1);
    scheduler.close();
    std::int64_t count = 0;
    const auto start = std::chrono::steady_clock::now();
    while (const auto taken = scheduler.next(0)) {
        if (taken->kind == Work::Kind::kDiffuse) count += static_cast<std::int64_t>(taken->items.size());
        finish(scheduler, *taken);
    }
    CHECK(count == plan.size() && count > 900'000);
    CHECK(std::chrono::steady_clock::now() - start < 60s);
}

int main() { return check::run_all(); }
