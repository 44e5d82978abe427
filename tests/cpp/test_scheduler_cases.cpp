// Single situations in which the scheduler could forget something, or hand out too much.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "check.h"
#include "scheduler.h"

using nuwaxl::CostModel;
using nuwaxl::Item;
using nuwaxl::Plan;
using nuwaxl::Policy;
using nuwaxl::Scheduler;
using nuwaxl::Work;
using namespace std::chrono_literals;
using Items = std::vector<Item>;

namespace {

std::vector<CostModel> devices(std::size_t count) {
    return std::vector<CostModel>(count, CostModel({1, 8}, {8.0, 15.0}, 1.0));
}

// Devices whose batches have one segment, which takes them so long a step.
std::vector<CostModel> one_at_a_time(const std::vector<double>& seconds) {
    std::vector<CostModel> models;
    for (const double step_s : seconds) models.push_back(CostModel({1}, {step_s}));
    return models;
}

void finish(Scheduler& scheduler, const Work& taken) { scheduler.done(taken.device, taken.items); }

}  // namespace

TEST(frames_between_two_windows_need_not_be_there) {
    Scheduler scheduler(Policy::kEager, one_at_a_time({1.0, 1.0}), 1);
    scheduler.add(Plan(10, 4), 1, {{0, 2}, {7, 9}}, 2);
    finish(scheduler, *scheduler.next(0));
    const Work first = *scheduler.next(0);
    CHECK((scheduler.next(1)->items == Items{{0, 2}}));  // frames 4 and 5, which no window shows
    finish(scheduler, first);
    const Work shown = *scheduler.next(0);
    CHECK(shown.kind == Work::Kind::kDecode && (shown.items == Items{{0, 0}}));
    finish(scheduler, shown);
    finish(scheduler, *scheduler.next(0));
    const auto last = scheduler.try_next(0);
    CHECK(last && last->kind == Work::Kind::kDecode && (last->items == Items{{0, 1}}));
}

TEST(windows_of_all_videos_of_a_batch_are_seen) {
    Scheduler scheduler(Policy::kEager, devices(1), 8);
    for (int job = 0; job < 2; ++job) scheduler.add(Plan(10, 16), 1, {{0, 9}}, 1);
    const Work both = *scheduler.next(0);
    CHECK((both.items == Items{{0, 0}, {1, 0}}));
    finish(scheduler, both);
    for (std::int64_t job = 0; job < 2; ++job) {
        const auto window = scheduler.try_next(0);
        CHECK(window && window->kind == Work::Kind::kDecode && (window->items == Items{{job, 0}}));
        if (window) finish(scheduler, *window);
    }
}

TEST(nobody_joins_a_batch_while_a_consumer_waits_for_a_window) {
    Scheduler scheduler(Policy::kEager, devices(1), 8);
    scheduler.add(Plan(10, 16), 1, {{0, 9}}, 1);
    scheduler.add(Plan(10, 16), 4);
    scheduler.next(0);
    CHECK(scheduler.held(0).size() == 2);
    scheduler.advance(0);
    scheduler.done(0, Items{{0, 0}});
    scheduler.add(Plan(10, 16), 4);
    CHECK(scheduler.join(0).empty());  // the device drains, and decodes
}

TEST(level_takes_no_newcomers_between_steps) {
    for (const Policy policy : {Policy::kLevel, Policy::kEager}) {
        Scheduler scheduler(policy, devices(1), 8);
        scheduler.add(Plan(10, 16), 4);
        CHECK((scheduler.next(0)->items == Items{{0, 0}}));
        scheduler.add(Plan(10, 16), 4);
        CHECK(scheduler.join(0).empty() == (policy == Policy::kLevel));
    }
}

TEST(a_slower_device_that_waits_is_woken_when_the_faster_one_takes_something) {
    Scheduler scheduler(Policy::kEager, one_at_a_time({1.0, 2.5}), 1);
    // The faster one could do both of these before the slower one had done one, but not their children as well.
    for (int job = 0; job < 2; ++job) scheduler.add(Plan(226, 16), 1);
    CHECK(!scheduler.try_next(1).has_value());
    std::atomic<bool> got = false;
    std::thread slower([&] { got = scheduler.next(1).has_value(); });
    std::this_thread::sleep_for(100ms);
    CHECK(!got);
    CHECK((scheduler.next(0)->items == Items{{0, 0}}));
    for (int i = 0; i < 1000 && !got; ++i) std::this_thread::sleep_for(5ms);
    CHECK(got);
    scheduler.stop();
    slower.join();
}

TEST(segments_of_a_failed_video_do_not_come_back_from_a_lost_device) {
    Scheduler scheduler(Policy::kEager, devices(2), 8);
    scheduler.add(Plan(100, 16, 2), 2);
    scheduler.next(0);
    scheduler.fail(0);
    scheduler.lost(0);
    CHECK(!scheduler.has_ready() && !scheduler.try_next(1).has_value());
}

TEST(windows_on_their_way_from_a_lost_device_are_decoded_again) {
    Scheduler scheduler(Policy::kEager, devices(2), 8);
    scheduler.add(Plan(16, 16), 1, {{0, 9}, {6, 15}}, 2);
    scheduler.close();
    finish(scheduler, *scheduler.next(0));
    scheduler.next(0);
    scheduler.leave(0);
    CHECK((scheduler.try_next(0)->items == Items{{0, 1}}));
    scheduler.lost(0);
    for (std::int64_t window = 0; window < 2; ++window) {
        const Work again = *scheduler.next(1);
        CHECK((again.items == Items{{0, window}}));
        finish(scheduler, again);
    }
    CHECK(scheduler.finished());
}

TEST(the_end_waits_for_a_window_on_its_way) {
    Scheduler scheduler(Policy::kEager, devices(2), 8);
    scheduler.add(Plan(16, 16), 1, {{0, 15}}, 1);
    scheduler.close();
    finish(scheduler, *scheduler.next(0));
    scheduler.next(0);
    scheduler.leave(0);
    CHECK(!scheduler.finished() && !scheduler.try_next(0).has_value());
    std::atomic<bool> ended = false;
    std::thread other([&] {
        CHECK(!scheduler.next(1).has_value());
        ended = true;
    });
    std::this_thread::sleep_for(20ms);
    CHECK(!ended);  // device 0 might still be lost
    scheduler.arrived(0);
    other.join();
    CHECK(scheduler.finished());
}

TEST(a_window_on_its_way_of_a_failed_video_is_ignored) {
    for (const bool arrives : {true, false}) {
        Scheduler scheduler(Policy::kEager, devices(2), 8);
        scheduler.add(Plan(16, 16), 1, {{0, 15}}, 1);
        scheduler.close();
        finish(scheduler, *scheduler.next(0));
        scheduler.next(0);
        scheduler.leave(0);
        scheduler.fail(0);
        arrives ? scheduler.arrived(0) : scheduler.lost(0);
        CHECK(scheduler.finished() && !scheduler.try_next(1).has_value());
    }
}

int main() { return check::run_all(); }

TEST(segments_that_were_there_are_not_handed_out_and_what_waits_for_them_is) {
    const Plan plan(226, 16);
    std::vector<std::int64_t> half;
    for (std::int64_t id = 0; id < plan.size() / 2; ++id) half.push_back(id);
    for (const Policy policy : {Policy::kLevel, Policy::kEager, Policy::kLatency}) {
        Scheduler scheduler(policy, devices(1), 8);
        scheduler.add(plan, 1, {{0, 15}, {211, 225}}, 1, half);
        scheduler.close();
        std::vector<std::int64_t> taken;
        std::int64_t windows = 0;
        while (const auto work = scheduler.next(0)) {
            const bool decoding = work->kind == Work::Kind::kDecode;
            for (const Item& item : work->items) {
                if (!decoding) taken.push_back(item.id);
            }
            finish(scheduler, *work);
            if (decoding) scheduler.consumed(0, windows++);
        }
        CHECK(windows == 2);
        std::sort(taken.begin(), taken.end());
        CHECK(static_cast<std::int64_t>(taken.size()) == plan.size() - static_cast<std::int64_t>(half.size()));
        CHECK(taken.front() == half.back() + 1 && taken.back() == plan.size() - 1);
        CHECK(scheduler.job_finished(0));
    }
}
