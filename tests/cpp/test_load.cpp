// The end of all work; and a load as no program makes it, of many threads, videos that come and fail, lost devices.
//
// Rounds by the environment variable NUWAXL_LOAD_ROUNDS; a few by default.
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <iterator>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "scheduler.h"

using nuwaxl::CostModel;
using nuwaxl::Item;
using nuwaxl::Plan;
using nuwaxl::Policy;
using nuwaxl::Scheduler;
using nuwaxl::Window;
using nuwaxl::Work;

namespace {

using Random = std::mt19937;

std::int64_t draw(Random& random, std::int64_t least, std::int64_t most) {
    return std::uniform_int_distribution<std::int64_t>(least, most)(random);
}

// Tells the threads what they need, and counts how often each segment was finished.
class Load {
public:
    Load(Policy policy, std::vector<CostModel> devices) : scheduler(policy, std::move(devices), 8) {}

    Scheduler scheduler;

    void add(Plan plan, std::int64_t steps, const std::vector<Window>& windows) {
        const std::lock_guard lock(mutex_);
        const std::int64_t number = scheduler.add(plan, steps, windows, 2);
        jobs_.push_back({std::move(plan), steps, static_cast<std::int64_t>(windows.size()), {}, {}});
        CHECK(number == static_cast<std::int64_t>(jobs_.size()) - 1);
    }

    std::int64_t steps(std::int64_t job) {
        const std::lock_guard lock(mutex_);  // waits for add(), whose video may be handed out before it returns
        return jobs_[static_cast<std::size_t>(job)].steps;
    }

    // Called before Scheduler::done(), by a device that has not been lost.
    void finished(const Item& item) {
        const std::lock_guard lock(mutex_);
        Job& job = jobs_[static_cast<std::size_t>(item.job)];
        const std::int64_t parent = job.plan.segment(item.id).parent;
        CHECK(parent == Plan::kNoParent || job.segments.contains(parent));
        CHECK(job.segments.insert(item.id).second);
    }

    void decoded(const Item& item) {
        const std::lock_guard lock(mutex_);
        CHECK(jobs_[static_cast<std::size_t>(item.job)].windows.insert(item.id).second);
    }

    void check_all_was_done_once() {
        for (std::size_t i = 0; i < jobs_.size(); ++i) {
            const Job& job = jobs_[i];
            const auto number = static_cast<std::int64_t>(i);
            if (scheduler.failed(number)) continue;
            CHECK(scheduler.job_finished(number));
            CHECK(static_cast<std::int64_t>(job.segments.size()) == job.plan.size());
            CHECK(static_cast<std::int64_t>(job.windows.size()) == job.window_count);
        }
    }

private:
    struct Job {
        Plan plan;
        std::int64_t steps;
        std::int64_t window_count;
        std::set<std::int64_t> segments;
        std::set<std::int64_t> windows;
    };
    std::mutex mutex_;
    std::vector<Job> jobs_;
};

// The life of a device's thread; at each step it may break, unless it is the last one.
void work(Load& load, std::int64_t device, unsigned seed, bool may_break) {
    Random random(seed);
    const auto breaks = [&] { return may_break && draw(random, 0, 400) == 0; };
    std::optional<Item> left;  // a window on its way
    const auto arrive = [&] {
        const Item item = *std::exchange(left, std::nullopt);
        load.decoded(item);
        load.scheduler.arrived(device);
        load.scheduler.consumed(item.job, item.id);
    };
    while (true) {
        const auto taken = left ? load.scheduler.try_next(device) : load.scheduler.next(device);
        if (!taken && !left) break;
        if (breaks()) return load.scheduler.lost(device);
        if (!taken) {
            arrive();
            continue;
        }
        if (taken->kind == Work::Kind::kDecode) {
            const Item window = taken->items.front();
            if (left) arrive();
            if (draw(random, 0, 1) == 0) {
                load.scheduler.leave(device);
                left = window;
                continue;
            }
            load.decoded(window);
            load.scheduler.done(device, taken->items);
            load.scheduler.consumed(window.job, window.id);
            continue;
        }
        std::vector<std::pair<Item, std::int64_t>> held;  // and steps left
        std::vector<Item> newcomers = taken->items;
        do {
            for (const Item& item : newcomers) held.emplace_back(item, load.steps(item.job));
            if (breaks()) return load.scheduler.lost(device);
            load.scheduler.advance(device);
            if (left && draw(random, 0, 1) == 0) arrive();
            if (draw(random, 0, 3) == 0) std::this_thread::yield();
            std::vector<Item> finished;
            for (auto& [item, steps_left] : held) {
                if (--steps_left == 0) finished.push_back(item);
            }
            std::erase_if(held, [](const auto& entry) { return entry.second == 0; });
            for (const Item& item : finished) load.finished(item);
            load.scheduler.done(device, finished);
            newcomers = held.empty() ? std::vector<Item>{} : load.scheduler.join(device);
        } while (!held.empty());
    }
}

void round(unsigned seed) {
    Random random(seed);
    const auto count = static_cast<std::size_t>(draw(random, 2, 16));
    std::vector<CostModel> devices;
    for (std::size_t i = 0; i < count; ++i) {
        const double speed = static_cast<double>(draw(random, 1, 10));
        devices.push_back(CostModel({1, 8}, {8.0 * speed, 15.0 * speed}, speed));
    }
    constexpr Policy kPolicies[] = {Policy::kLevel, Policy::kEager, Policy::kLatency};
    Load load(kPolicies[draw(random, 0, 2)], devices);
    std::vector<std::thread> threads;
    for (std::size_t device = 0; device < count; ++device) {
        threads.emplace_back(work, std::ref(load), static_cast<std::int64_t>(device), seed + 1 + device, device > 0);
    }
    std::atomic<bool> over = false;
    std::thread watcher([&] {  // whatever else may be asked at any time
        while (!over) {
            for (std::int64_t device = 0; device < std::ssize(devices); ++device) load.scheduler.held(device);
            CHECK(!load.scheduler.stopped());
            load.scheduler.has_ready();
            load.scheduler.finished();
            std::this_thread::yield();
        }
    });
    const std::int64_t videos = draw(random, 1, 30);
    for (std::int64_t video = 0; video < videos; ++video) {
        const std::int64_t frames = draw(random, 1, 400);
        std::vector<Window> windows;
        if (draw(random, 0, 1) == 1) {
            for (std::int64_t first = 0; first < frames; first += 12) {
                windows.push_back({first, std::min(first + 16, frames) - 1});
            }
        }
        load.add(draw(random, 0, 5) == 0 ? Plan::autoregressive(frames, 16, 4) : Plan(frames, 16), draw(random, 1, 6),
                 windows);
        if (draw(random, 0, 9) == 0) load.scheduler.fail(draw(random, 0, video));
        if (draw(random, 0, 4) == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    load.scheduler.close();
    for (std::thread& thread : threads) thread.join();
    over = true;
    watcher.join();
    CHECK(load.scheduler.finished());
    load.check_all_was_done_once();
}

// A step of 1, 4, 5, 8 segments takes 1, 3, 5.5, 5.6: of the last five, four and one take the least time.
const CostModel kDented({1, 4, 5, 8}, {1.0, 3.0, 5.5, 5.6});

}  // namespace

TEST(the_last_segments_are_those_of_videos_that_have_not_failed) {
    Scheduler scheduler(Policy::kEager, {kDented}, 8);
    for (int i = 0; i < 5; ++i) scheduler.add(Plan(16, 16), 1);
    const std::int64_t large = scheduler.add(Plan(1024, 16), 1);
    scheduler.fail(large);
    scheduler.close();
    CHECK(scheduler.next(0)->items.size() == 4);
}

TEST(more_videos_may_come_until_it_is_closed) {
    for (const bool closed : {false, true}) {
        Scheduler scheduler(Policy::kEager, {kDented}, 8);
        for (int i = 0; i < 5; ++i) scheduler.add(Plan(16, 16), 1);
        if (closed) scheduler.close();
        CHECK(scheduler.next(0)->items.size() == (closed ? 4 : 5));
    }
}

TEST(the_last_segments_before_a_barrier_are_those_of_the_depth) {
    for (const Policy policy : {Policy::kLevel, Policy::kEager}) {
        Scheduler scheduler(policy, {kDented}, 8);
        scheduler.add(Plan(1024, 16, 3), 1);  // 1 + 5 + 69 segments
        scheduler.close();
        scheduler.done(0, scheduler.next(0)->items);
        CHECK(scheduler.next(0)->items.size() == (policy == Policy::kLevel ? 4 : 5));
    }
}

TEST(a_device_takes_no_newcomers_while_a_consumer_waits_for_a_window) {
    for (const bool waits : {false, true}) {
        Scheduler scheduler(Policy::kEager, {CostModel({1, 8}, {8.0, 15.0}, 1.0)}, 8);
        scheduler.add(Plan(16, 16), 1, waits ? std::vector<Window>{{0, 15}} : std::vector<Window>{}, 1);
        scheduler.add(Plan(16, 16), 10);
        CHECK(scheduler.next(0)->items.size() == 2);
        scheduler.advance(0);
        scheduler.done(0, std::vector<Item>{{0, 0}});
        scheduler.add(Plan(16, 16), 10);
        CHECK(scheduler.join(0).size() == (waits ? 0 : 1));
    }
}

TEST(any_load_is_done_and_done_once) {
    const char* const rounds = std::getenv("NUWAXL_LOAD_ROUNDS");
    const unsigned count = rounds != nullptr ? static_cast<unsigned>(std::atoi(rounds)) : 20;
    for (unsigned seed = 0; seed < count; ++seed) round(100 * seed);
}

int main() { return check::run_all(); }
