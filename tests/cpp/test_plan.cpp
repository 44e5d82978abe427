#include <algorithm>
#include <map>
#include <set>

#include "check.h"
#include "plan.h"

using nuwaxl::Plan;
using nuwaxl::Segment;

namespace {

using Ids = std::vector<std::int64_t>;

Ids children(const Plan& plan, std::int64_t id) {
    const nuwaxl::IdRange range = plan.children(id);
    Ids ids;
    for (std::int64_t i = 0; i < range.count; ++i) ids.push_back(range.first + i);
    return ids;
}

struct Shape {
    std::int64_t frames, length, depth;
};

// Every pruned tree of a few small shapes, and the paper's.
std::vector<Shape> shapes() {
    std::vector<Shape> all{{1024, 16, 3}, {3376, 16, 3}, {3375, 16, 3}, {227, 16, 3}};
    for (const std::int64_t length : {3, 4, 6}) {
        for (std::int64_t depth = 1; depth <= 3; ++depth) {
            for (std::int64_t frames = 1; frames <= Plan::span(length, depth); ++frames) {
                all.push_back({frames, length, depth});
            }
        }
    }
    return all;
}

}  // namespace

TEST(the_papers_1024_frames_take_1_5_and_69_segments) {
    const Plan plan(1024, 16, 3);
    CHECK((plan.counts() == Ids{1, 5, 69}));
    CHECK(plan.size() == 75);
    CHECK((Plan(3376, 16).counts() == Ids{1, 15, 225}));
}

TEST(spans_are_those_of_the_paper) {
    CHECK(Plan::span(16, 1) == 16);
    CHECK(Plan::span(16, 2) == 226);
    CHECK(Plan::span(16, 3) == 3376);
}

TEST(the_default_depth_is_the_smallest_that_spans_the_frames) {
    CHECK(Plan(1, 16).depth() == 1);
    CHECK(Plan(16, 16).depth() == 1);
    CHECK(Plan(17, 16).depth() == 2);
    CHECK(Plan(226, 16).depth() == 2);
    CHECK(Plan(227, 16).depth() == 3);
    CHECK(Plan(3377, 16).depth() == 4);
}

TEST(segments_are_the_global_and_the_locals_whose_first_frame_lies_before_the_last_frame) {
    for (const auto& [frames, length, depth] : shapes()) {
        const Plan plan(frames, length, depth);
        std::int64_t whole = 1;
        std::int64_t reach = Plan::span(length, depth) - 1;
        for (std::int64_t d = 0; d < depth; ++d, whole *= length - 1, reach /= length - 1) {
            std::int64_t expected = 0;
            for (std::int64_t k = 0; k < whole; ++k) expected += d == 0 || k * reach < frames - 1 ? 1 : 0;
            CHECK(plan.count(d) == expected);
        }
    }
}

TEST(a_video_that_ends_where_a_segment_would_begin_goes_without_it) {
    CHECK((Plan(31, 16).counts() == Ids{1, 2}));
    CHECK((Plan(32, 16).counts() == Ids{1, 3}));
    CHECK((Plan(451, 16).counts() == Ids{1, 2, 30}));  // of two depths at once
    CHECK((Plan(452, 16).counts() == Ids{1, 3, 31}));
    const Plan one(1, 16, 3);
    CHECK((one.depth() == 3 && one.counts() == Ids{1} && one.size() == 1 && one.height(0) == 0));
    CHECK(children(one, 0).empty() && one.frames_of(0).back() == 3375);
}

// So a render that has all its frames has done all its steps.
TEST(every_segment_generates_a_frame_of_the_video_or_leads_to_one_that_does) {
    for (const auto& [frames, length, depth] : shapes()) {
        const Plan plan(frames, length, depth);
        std::set<std::int64_t> needed;
        for (std::int64_t frame = 0; frame < frames; ++frame) {
            for (std::int64_t id = plan.origin_of(frame); id != Plan::kNoParent; id = plan.segment(id).parent) {
                needed.insert(id);
            }
        }
        CHECK(static_cast<std::int64_t>(needed.size()) == plan.size());
    }
}

TEST(each_segment_shares_its_ends_with_adjacent_frames_of_its_parent) {
    for (const auto& [frames, length, depth] : shapes()) {
        const Plan plan(frames, length, depth);
        CHECK(plan.segment(0).parent == Plan::kNoParent);
        for (std::int64_t id = 1; id < plan.size(); ++id) {
            const Segment segment = plan.segment(id);
            const Ids own = plan.frames_of(id);
            const Ids given = plan.frames_of(segment.parent);
            const auto first = std::find(given.begin(), given.end(), own.front());
            CHECK(segment.parent < id);
            CHECK(first != given.end() && first + 1 != given.end() && *(first + 1) == own.back());
        }
    }
}

TEST(children_and_parents_agree) {
    for (const auto& [frames, length, depth] : shapes()) {
        const Plan plan(frames, length, depth);
        std::int64_t count = 0;
        for (std::int64_t id = 0; id < plan.size(); ++id) {
            for (const std::int64_t child : children(plan, id)) {
                CHECK(plan.segment(child).parent == id);
                ++count;
            }
        }
        CHECK(count == plan.size() - 1);
    }
}

TEST(the_height_is_the_longest_chain_of_descendants) {
    for (const auto& [frames, length, depth] : shapes()) {
        const Plan plan(frames, length, depth);
        for (std::int64_t id = plan.size() - 1; id >= 0; --id) {
            std::int64_t height = 0;
            for (const std::int64_t child : children(plan, id)) height = std::max(height, 1 + plan.height(child));
            CHECK(plan.height(id) == height);
        }
    }
}

TEST(every_frame_is_generated_once_and_origin_of_names_by_whom) {
    for (const auto& [frames, length, depth] : shapes()) {
        const Plan plan(frames, length, depth);
        std::map<std::int64_t, std::int64_t> generated;  // frame -> segment; a local is given its first and last
        for (std::int64_t id = 0; id < plan.size(); ++id) {
            const Ids own = plan.frames_of(id);
            const std::size_t given = id == 0 ? 0 : 1;
            for (std::size_t i = given; i + given < own.size(); ++i) {
                CHECK(generated.emplace(own[i], id).second);
            }
        }
        for (std::int64_t frame = 0; frame < frames; ++frame) {
            CHECK(generated.contains(frame));
            CHECK(generated[frame] == plan.origin_of(frame));
        }
        for (const auto& [frame, id] : generated) CHECK(plan.origin_of(frame) == id);
    }
}

TEST(a_chain_covers_the_frames_each_window_after_the_one_before) {
    for (std::int64_t length = 3; length <= 6; ++length) {
        for (std::int64_t overlap = 1; overlap < length; ++overlap) {
            for (std::int64_t frames = 1; frames <= 40; ++frames) {
                const Plan plan = Plan::autoregressive(frames, length, overlap);
                CHECK(plan.kind() == Plan::Kind::kAutoregressive && plan.overlap() == overlap);
                CHECK(plan.counts() == Ids{plan.size()});
                CHECK(plan.frames_of(plan.size() - 1).back() >= frames - 1);
                CHECK(plan.size() == 1 || plan.frames_of(plan.size() - 2).back() < frames - 1);
                std::map<std::int64_t, std::int64_t> generated;
                for (std::int64_t id = 0; id < plan.size(); ++id) {
                    const Segment segment = plan.segment(id);
                    const Ids own = plan.frames_of(id), known = plan.known(id);
                    CHECK(segment.depth == 0 && segment.index == id && segment.stride == 1 && segment.parent == id - 1);
                    CHECK(static_cast<std::int64_t>(known.size()) == (id == 0 ? 0 : overlap));
                    CHECK(plan.height(id) == plan.size() - 1 - id);
                    CHECK(children(plan, id) == (id + 1 < plan.size() ? Ids{id + 1} : Ids{}));
                    for (std::size_t i = 0; i < own.size(); ++i) {
                        if (i >= known.size()) {
                            CHECK(generated.emplace(own[i], id).second);
                        } else {
                            CHECK(known[i] == static_cast<std::int64_t>(i) && generated.contains(own[i]));
                        }
                    }
                }
                for (const auto& [frame, id] : generated) CHECK(plan.origin_of(frame) == id);
                CHECK(check::refuses([&] { plan.origin_of(plan.frames_of(plan.size() - 1).back() + 1); }));
            }
        }
    }
}

TEST(locals_know_both_their_ends) {
    const Plan plan(1024, 16, 3);
    CHECK(plan.kind() == Plan::Kind::kTree && plan.known(0).empty());
    CHECK((plan.known(1) == Ids{0, 15} && plan.known(74) == Ids{0, 15}));
}

TEST(wrong_arguments_are_refused_with_what_to_do) {
    CHECK(check::refuses([] { Plan(0, 16); }));
    CHECK(check::refuses([] { Plan(-1, 16); }));
    CHECK(check::refuses([] { Plan(INT64_MAX, 16); }));
    CHECK(check::refuses([] { Plan(10, 2); }));
    CHECK(check::refuses([] { Plan(10, INT64_MIN); }));
    CHECK(check::refuses([] { Plan(10, (1 << 20) + 1); }));
    CHECK(check::refuses([] { Plan::autoregressive(10, (1 << 20) + 1, 8); }));
    CHECK(check::refuses([] { Plan(10, 16, 0); }));
    CHECK(check::refuses([] { Plan(3377, 16, 3); }));
    CHECK(check::refuses([] { Plan(10, 16, 1000); }));
    CHECK(check::refuses([] { Plan::span(2, 1); }));
    CHECK(check::refuses([] { Plan::span(16, 0); }));
    CHECK(check::refuses([] { Plan::autoregressive(10, 16, 0); }));
    CHECK(check::refuses([] { Plan::autoregressive(10, 16, 16); }));
    CHECK(check::refuses([] { Plan::autoregressive(10, 16, INT64_MIN); }));
    CHECK(check::refuses([] { Plan::autoregressive(0, 16, 8); }));
    CHECK(check::refuses([] { Plan::autoregressive(10, 2, 1); }));
    const Plan plan(100, 16);
    CHECK(check::refuses([&] { plan.segment(-1); }));
    CHECK(check::refuses([&] { plan.segment(plan.size()); }));
    CHECK(check::refuses([&] { plan.origin_of(-1); }));
    CHECK(check::refuses([&] { plan.origin_of(1000); }));
}

// Anything that grew with the number of segments would end neither in this time nor in this memory.
TEST(a_plan_of_10_to_the_16_segments_costs_no_more_than_a_small_one) {
    const std::int64_t frames = 400'000'000'000'000'000;
    const Plan plan(frames, 16);
    CHECK(plan.size() > 10'000'000'000'000'000);
    const std::int64_t id = plan.origin_of(frames - 1);
    CHECK(id == plan.size() - 1);
    CHECK(children(plan, plan.segment(id).parent).back() == id);
}

int main() { return check::run_all(); }
