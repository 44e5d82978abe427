#include <algorithm>
#include <vector>

#include "check.h"
#include "policy.h"

using nuwaxl::CostModel;
using nuwaxl::Load;
using nuwaxl::Plan;
using nuwaxl::Policy;
using nuwaxl::ranked;
using nuwaxl::last_batch;
using nuwaxl::StepTimes;

namespace {

const StepTimes kFlat(CostModel({1}, {1.0}), 8);             // batches save nothing: target 1
const StepTimes kWide(CostModel({1, 8}, {8.0, 15.0}), 8);    // 7 + b: target 8
const StepTimes kSlow(CostModel({1, 8}, {80.0, 150.0}), 8);  // the same, ten times slower

Load idle(const StepTimes& times) { return {&times, 0, 0, 0.0}; }
std::int64_t share(const std::vector<Load>& loads, std::size_t asking, std::int64_t ready, std::int64_t steps) {
    return nuwaxl::share(loads, asking, ready, steps, loads[asking].times->target() - loads[asking].held);
}
Load busy(const StepTimes& times, std::int64_t held, std::int64_t steps_left) { return {&times, held, steps_left, 0.0}; }

// Deals `ready` segments of 10 steps to the devices, each asking once, in order.
std::vector<std::int64_t> deal(std::vector<Load> loads, std::int64_t ready) {
    std::vector<std::int64_t> counts;
    for (std::size_t i = 0; i < loads.size(); ++i) {
        counts.push_back(share(loads, i, ready, 10));
        ready -= counts.back();
        if (counts.back() > 0) loads[i] = busy(*loads[i].times, loads[i].held + counts.back(), 10);
    }
    return counts;
}

using Counts = std::vector<std::int64_t>;

}  // namespace

TEST(a_device_alone_takes_all_that_it_has_room_for) {
    CHECK(share(std::vector{idle(kWide)}, 0, 3, 10) == 3);
    CHECK(share(std::vector{idle(kWide)}, 0, 100, 10) == 8);
    CHECK(share(std::vector{idle(kFlat)}, 0, 100, 10) == 1);
    CHECK(share(std::vector{busy(kWide, 5, 10)}, 0, 100, 10) == 3);
    CHECK(share(std::vector{busy(kWide, 8, 10)}, 0, 100, 10) == 0);
}

TEST(few_segments_are_dealt_out_evenly_over_idle_devices) {
    CHECK((deal({idle(kWide), idle(kWide), idle(kWide), idle(kWide)}, 15) == Counts{4, 4, 4, 3}));
    CHECK((deal({idle(kWide), idle(kWide), idle(kWide), idle(kWide)}, 3) == Counts{1, 1, 1, 0}));
    CHECK((deal({idle(kWide), idle(kWide)}, 100) == Counts{8, 8}));
}

TEST(a_device_that_is_soon_free_has_a_share) {
    // The other one ends in one step of 15 s: better four each than eight here.
    CHECK(share(std::vector{idle(kWide), busy(kWide, 8, 1)}, 0, 8, 10) < 8);
    CHECK(share(std::vector{idle(kWide), busy(kWide, 8, 1)}, 0, 8, 10) >= 4);
    // It ends as late as this device would with all eight.
    CHECK(share(std::vector{idle(kWide), busy(kWide, 8, 10)}, 0, 8, 10) == 8);
}

TEST(a_device_that_will_have_children_to_do_has_no_share) {
    Load parent = busy(kWide, 2, 1);
    CHECK(share(std::vector{idle(kWide), parent}, 0, 8, 10) < 8);
    parent.coming = 30;
    CHECK(share(std::vector{idle(kWide), parent}, 0, 8, 10) == 8);
}

TEST(an_idle_device_goes_before_one_that_could_join) {
    CHECK(share(std::vector{busy(kWide, 4, 9), idle(kWide)}, 0, 1, 10) == 0);
    CHECK(share(std::vector{busy(kWide, 4, 9), idle(kWide)}, 1, 1, 10) == 1);
}

TEST(a_slow_device_leaves_the_last_segments_to_faster_ones) {
    CHECK(share(std::vector{idle(kSlow), idle(kWide)}, 0, 5, 10) == 0);
    CHECK(share(std::vector{idle(kSlow), busy(kWide, 8, 10)}, 0, 5, 10) == 0);
    CHECK(share(std::vector{idle(kSlow), idle(kWide)}, 1, 5, 10) == 5);
    CHECK(share(std::vector{idle(kSlow), idle(kWide)}, 0, 1000, 10) == 8);
}

TEST(lost_devices_do_not_count) {
    CHECK(share(std::vector{idle(kWide), Load{nullptr, 0, 0, 0.0}}, 0, 8, 10) == 8);
}

// Whatever the others do, some device takes the next segment as soon as it can; and an idle device turns away work only
// where a faster one exists.
TEST(some_device_always_takes_the_next_segment) {
    for (std::int64_t held = 0; held <= 8; ++held) {
        for (std::int64_t left = 1; left <= 10; ++left) {
            for (std::int64_t ready = 1; ready < 40; ++ready) {
                const std::vector<Load> loads{idle(kWide), held > 0 ? busy(kWide, held, left) : idle(kWide)};
                CHECK(share(loads, 0, ready, 10) >= 1);
            }
        }
    }
}

TEST(from_plenty_on_the_share_is_all_the_room) {
    const std::vector<std::vector<Load>> fleets{{idle(kWide), idle(kWide), idle(kWide)}, {idle(kSlow), idle(kWide)},
                                                {idle(kWide), idle(kFlat)}};
    for (const auto& fleet : fleets) {
        for (std::size_t i = 0; i < fleet.size(); ++i) {
            CHECK(share(fleet, i, nuwaxl::plenty(fleet, i), 10) == fleet[i].times->target());
        }
    }
}

TEST(the_last_segments_are_cut_into_the_two_batches_that_take_the_least_time) {
    // A step of 1, 2, 4, 8, 16 takes 10, 11, 13, 17, 40: target 8, and sixteen at once cost more a segment.
    const StepTimes kinked(CostModel({1, 2, 4, 8, 16}, {10.0, 11.0, 13.0, 17.0, 40.0}), 16);
    CHECK(kinked.target() == 8 && kinked.widest() == 8);
    CHECK(last_batch(std::vector{idle(kinked)}, 0, 100, 10) == 8);
    CHECK(last_batch(std::vector{idle(kinked)}, 0, 3, 10) == 3);
    // Steps of 1, 4, 5, 8 segments take 1, 3, 5.5, 5.6: a batch of five is dearer than one of four and one alone.
    const StepTimes dented(CostModel({1, 4, 5, 8}, {1.0, 3.0, 5.5, 5.6}), 8);
    CHECK(dented.target() == 8);
    CHECK(last_batch(std::vector{idle(dented)}, 0, 5, 10) == 4);
    CHECK(last_batch(std::vector{idle(dented)}, 0, 9, 10) == 8);
    CHECK(last_batch(std::vector{idle(dented)}, 0, 12, 10) == 8);
}

TEST(a_last_batch_may_be_wider_than_the_target_where_that_saves_a_small_one) {
    // From 16 to 32 a segment gets cheaper by a hundredth, so 16 is the target; but one more alone would take 10 s.
    const StepTimes gentle(CostModel({1, 16, 32}, {10.0, 32.0, 63.36}), 32);
    CHECK(gentle.target() == 16 && gentle.widest() == 32);
    CHECK(last_batch(std::vector{idle(gentle)}, 0, 17, 10) == 17);
    CHECK(last_batch(std::vector{idle(gentle)}, 0, 32, 10) == 32);
    CHECK(last_batch(std::vector{idle(gentle)}, 0, 48, 10) == 16);
    // Where a segment costs the same in any batch, batches stay small.
    CHECK(kFlat.widest() == 8);
    for (std::int64_t left = 1; left < 20; ++left) CHECK(last_batch(std::vector{idle(kFlat)}, 0, left, 10) == 1);
}

TEST(the_part_of_a_device_in_the_last_segments_is_by_its_speed_and_counts_what_others_have_to_do) {
    const StepTimes wide(CostModel({1, 16}, {10.0, 40.0}), 16);  // 8 + 2 b
    CHECK(last_batch(std::vector{idle(wide), idle(wide)}, 0, 10, 10) == 5);
    // Sixteen by the other, half done, are eight: each has eight to do, and this one has none of them yet.
    CHECK(last_batch(std::vector{idle(wide), busy(wide, 16, 5)}, 0, 8, 10) == 8);
    CHECK(last_batch(std::vector{idle(wide), busy(wide, 16, 10)}, 0, 8, 10) == 12);
    CHECK(last_batch(std::vector{idle(kWide), idle(kSlow)}, 0, 5, 10) == 5);
    CHECK(last_batch(std::vector{idle(kWide), idle(kSlow)}, 1, 5, 10) == 1);
    CHECK(last_batch(std::vector{idle(wide), Load{nullptr, 0, 0, 0.0}}, 0, 10, 10) == 10);
}

TEST(while_many_are_not_begun_batches_are_full) {
    const StepTimes gentle(CostModel({1, 16, 32}, {10.0, 32.0, 63.36}), 32);
    const std::vector<std::vector<Load>> fleets{
        {idle(kWide), busy(kWide, 3, 7)}, {idle(kSlow), idle(kWide)}, {idle(gentle), busy(gentle, 16, 1), idle(kFlat)}};
    for (const auto& fleet : fleets) {
        const std::int64_t many = nuwaxl::many(fleet, 0);
        CHECK(last_batch(fleet, 0, many, 10) == fleet[0].times->target());
        CHECK(last_batch(fleet, 0, 10 * many, 10) == fleet[0].times->target());
    }
    CHECK(nuwaxl::many(std::vector{idle(kWide), idle(kWide)}, 0) == 32);
}

TEST(costs_that_differ_beyond_all_measure_are_dealt_with) {
    const StepTimes least(CostModel({1}, {1e-9}), 8), most(CostModel({1}, {1e9}), 8);
    const std::vector loads{idle(most), idle(least)};
    CHECK(share(loads, 0, 1000, 10) == 0 && share(loads, 1, 1000, 10) == 1);
    CHECK(nuwaxl::many(loads, 0) > 1'000'000 && nuwaxl::plenty(loads, 0) > 1'000'000);
    const StepTimes wide(CostModel({1, CostModel::kMostBatch}, {1e-9, 1e-9}), CostModel::kMostBatch);
    std::vector<Load> fleet(200, idle(wide));
    fleet[0] = idle(most);
    CHECK(nuwaxl::many(fleet, 0) > 1'000'000 && nuwaxl::plenty(fleet, 0) > 1'000'000);
    CHECK(share(fleet, 0, INT64_MAX, 10, 8) == 0);
}

TEST(urgent_segments_join_urgent_ones_where_they_gain_more_than_those_lose) {
    CHECK(nuwaxl::welcome(busy(kWide, 1, 5), 3) == 3);
    CHECK(nuwaxl::welcome(busy(kWide, 5, 5), 10) == 3);
    CHECK(nuwaxl::welcome(busy(kWide, 8, 5), 10) == 0);
    CHECK(nuwaxl::welcome(busy(kFlat, 1, 5), 3) == 0);
    // Steps of 1, 2, 4 take 10, 19, 35: a second one makes the first later by 9 and is itself sooner by 1.
    const StepTimes gentle(CostModel({1, 2, 4}, {10.0, 19.0, 35.0}), 4);
    CHECK(gentle.target() == 4 && nuwaxl::welcome(busy(gentle, 1, 5), 3) == 0);
    // Steps of 1, 2, 4 take 10, 11, 30: one newcomer gains, three together would not.
    const StepTimes bent(CostModel({1, 2, 4, 8}, {10.0, 11.0, 30.0, 35.0}), 8);
    CHECK(nuwaxl::welcome(busy(bent, 1, 5), 3) == 1);
}

TEST(batches_are_joined_while_three_quarters_of_their_steps_are_to_come) {
    CHECK(nuwaxl::young(busy(kWide, 3, 8), 10));
    CHECK(!nuwaxl::young(busy(kWide, 3, 7), 10));
}

TEST(eager_ranks_by_the_longest_chain_below) {
    const Plan deep(1024, 16, 3), flat(10, 16);
    const auto rank = [&](const Plan& plan, std::int64_t steps, std::int64_t id) {
        return ranked(Policy::kEager, plan, steps, 0, {id, 1}).rank;
    };
    CHECK(rank(deep, 10, 0) < rank(deep, 10, 1) && rank(deep, 10, 1) < rank(deep, 10, 6));
    CHECK(rank(deep, 10, 1) == rank(deep, 10, 5));
    CHECK(rank(deep, 10, 6) == rank(flat, 10, 0));
    CHECK(rank(flat, 50, 0) < rank(deep, 10, 0));
    const Plan chain = Plan::autoregressive(1024, 16, 8);
    CHECK(rank(chain, 1, 0) == -chain.size() && rank(chain, 1, chain.size() - 1) == -1);
}

TEST(latency_ranks_by_first_frame) {
    const Plan plan(1024, 16, 3);
    const nuwaxl::ReadyRange range = ranked(Policy::kLatency, plan, 10, 4, {6, 15});
    CHECK(range.rank == 0 && range.rank_step == 15 && range.job == 4 && range.first == 6 && range.end == 21);
    CHECK(ranked(Policy::kLatency, plan, 10, 0, {2, 1}).rank == 225);
}

TEST(names_of_policies) {
    CHECK(nuwaxl::parse_policy("level") == Policy::kLevel);
    CHECK(nuwaxl::parse_policy("eager") == Policy::kEager);
    CHECK(nuwaxl::parse_policy("latency") == Policy::kLatency);
    CHECK(check::refuses([] { nuwaxl::parse_policy("Level"); }));
}

int main() { return check::run_all(); }
