#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <thread>

#include "check.h"
#include "clock.h"

using nuwaxl::CostModel;
using nuwaxl::Plan;
using nuwaxl::Policy;
using nuwaxl::Simulation;
using nuwaxl::simulate;
using nuwaxl::SimulationSettings;
using nuwaxl::Window;

namespace {

const CostModel kFlat({1}, {1.0});
const CostModel kWide({1, 8}, {8.0, 15.0});

SimulationSettings settings(Policy policy, std::vector<CostModel> devices) {
    return {policy, std::move(devices), 8, 10, {}, 1, false};
}

bool near(double a, double b) { return std::abs(a - b) < 1e-6; }

double makespan(const Plan& plan, Policy policy, const CostModel& cost, std::size_t devices) {
    return simulate({plan}, settings(policy, std::vector<CostModel>(devices, cost))).makespan_s;
}

}  // namespace

TEST(a_chain_takes_its_windows_one_after_the_other_on_any_number_of_devices) {
    const Plan chain = Plan::autoregressive(1024, 16, 8);
    for (const std::size_t devices : {1, 4}) {
        CHECK(near(makespan(chain, Policy::kEager, kWide, devices), static_cast<double>(chain.size()) * 80.0));
    }
}

TEST(a_tree_worked_out_by_hand) {
    // One, then five on four devices: two together on one of them. Then 69, as full as can be.
    CHECK(near(makespan(Plan(16, 16), Policy::kEager, kWide, 4), 80.0));
    CHECK(near(makespan(Plan(75, 16), Policy::kEager, kWide, 4), 80.0 + 90.0));
    CHECK(near(makespan(Plan(75, 16), Policy::kEager, kWide, 1), 80.0 + 120.0));
    CHECK(near(makespan(Plan(75, 16), Policy::kEager, kFlat, 1), 60.0));
    CHECK(near(makespan(Plan(75, 16), Policy::kEager, kFlat, 8), 20.0));
}

TEST(eager_is_never_slower_than_the_paper_s_barrier_where_batches_save_nothing) {
    for (const std::int64_t frames : {300, 1024, 3000}) {
        for (const std::size_t devices : {1, 2, 3, 7, 16}) {
            const Plan plan(frames, 16);
            CHECK(makespan(plan, Policy::kEager, kFlat, devices) <= makespan(plan, Policy::kLevel, kFlat, devices));
        }
    }
}

TEST(latency_shows_the_first_frames_after_one_segment_a_depth) {
    const Plan plan(3000, 16);
    for (const std::size_t devices : {1, 4}) {
        const auto first = [&](Policy policy) {
            return simulate({plan}, settings(policy, std::vector<CostModel>(devices, kWide))).first_frames_s.front();
        };
        CHECK(near(first(Policy::kLatency), 3 * 80.0));
        CHECK(first(Policy::kLatency) < first(Policy::kEager));
    }
}

TEST(spans_tell_every_step_of_every_segment) {
    SimulationSettings recorded = settings(Policy::kEager, {kWide, kFlat});
    recorded.record = true;
    const Plan plan(500, 16);
    const Simulation result = simulate({plan}, recorded);
    std::vector<std::int64_t> steps(static_cast<std::size_t>(plan.size()), 0);
    std::vector<double> busy(2, 0.0), end(2, 0.0);
    for (const nuwaxl::Span& span : result.spans) {
        const auto device = static_cast<std::size_t>(span.device);
        CHECK(span.start_s >= end[device] - 1e-6 && span.end_s > span.start_s);
        end[device] = span.end_s;
        busy[device] += span.end_s - span.start_s;
        for (const nuwaxl::Item& item : span.items) ++steps[static_cast<std::size_t>(item.id)];
    }
    CHECK(std::all_of(steps.begin(), steps.end(), [](std::int64_t count) { return count == 10; }));
    CHECK(near(busy[0], result.busy_s[0]) && near(busy[1], result.busy_s[1]));
    CHECK(near(std::max(end[0], end[1]), result.makespan_s) && near(result.makespan_s, result.diffusion_s));
    CHECK(static_cast<std::int64_t>(result.spans.size()) == result.steps);
}

TEST(windows_are_decoded_as_their_frames_come) {
    SimulationSettings decoding = settings(Policy::kEager, {CostModel({1}, {1.0}, 2.0)});
    decoding.windows = {{{0, 7}, {8, 15}}};
    const Simulation result = simulate({Plan(16, 16)}, decoding);
    CHECK(near(result.diffusion_s, 10.0) && near(result.first_frames_s.front(), 12.0) && near(result.makespan_s, 14.0));
    decoding.windows = {};
    CHECK(near(simulate({Plan(16, 16)}, decoding).first_frames_s.front(), 10.0));
}

TEST(a_simulation_ends_when_its_check_throws) {
    SimulationSettings checked = settings(Policy::kEager, std::vector<CostModel>(4, kFlat));
    int calls = 0;
    checked.check = [&] {
        ++calls;
        std::this_thread::sleep_for(std::chrono::milliseconds(60));
    };
    const std::vector<Plan> plans{Plan(2'000, 16)};
    const double makespan_s = simulate(plans, checked).makespan_s;
    CHECK(calls > 1);
    checked.check = {};
    CHECK(near(simulate(plans, checked).makespan_s, makespan_s));

    calls = 0;
    checked.check = [&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(60));
        if (++calls == 2) throw std::runtime_error("enough");
    };
    bool ended = false;
    try {
        simulate(plans, checked);
    } catch (const std::runtime_error&) {
        ended = true;
    }
    CHECK(ended && calls == 2);
}

TEST(windows_of_another_number_of_plans_are_refused) {
    SimulationSettings wrong = settings(Policy::kEager, {kFlat});
    wrong.windows = {{}, {}};
    CHECK(check::refuses([&] { simulate({Plan(16, 16)}, wrong); }));
}

int main() { return check::run_all(); }
