#include <vector>

#include "check.h"
#include "policy.h"

using nuwaxl::Choice;
using nuwaxl::choose;
using nuwaxl::Policy;
using Kind = nuwaxl::Choice::Kind;

namespace {

// Counts by depth that may start, and that are not done; two devices and batches up to 16 unless said otherwise.
Choice pick(Policy policy, const std::vector<std::int64_t>& ready, const std::vector<std::int64_t>& unfinished,
            bool window_ready = false, std::int64_t devices = 2, std::int64_t max_batch = 16) {
    return choose(policy, {ready, unfinished, window_ready, devices, max_batch});
}

bool diffuses(const Choice& choice, std::int64_t depth, std::int64_t count) {
    return choice.kind == Kind::kDiffuse && choice.depth == depth && choice.count == count;
}

}  // namespace

TEST(ready_segments_are_shared_between_the_devices) {
    for (const Policy policy : {Policy::kLevel, Policy::kEager}) {
        CHECK(diffuses(pick(policy, {0, 5, 0}, {0, 5, 69}), 1, 3));
        CHECK(diffuses(pick(policy, {0, 1, 0}, {0, 1, 69}), 1, 1));
        CHECK(diffuses(pick(policy, {0, 0, 69}, {0, 0, 69}, false, 8), 2, 9));
    }
}

TEST(a_batch_never_exceeds_max_batch) {
    CHECK(diffuses(pick(Policy::kEager, {0, 0, 69}, {0, 0, 69}, false, 1, 16), 2, 16));
    CHECK(diffuses(pick(Policy::kEager, {0, 0, 69}, {0, 0, 69}, false, 1, 1), 2, 1));
}

TEST(level_waits_for_the_whole_depth_before) {
    CHECK(pick(Policy::kLevel, {0, 0, 30}, {0, 2, 69}).kind == Kind::kNothing);
    CHECK(diffuses(pick(Policy::kLevel, {0, 0, 30}, {0, 0, 69}), 2, 15));
}

TEST(eager_passes_over_running_depths_and_prefers_the_shallowest) {
    CHECK(diffuses(pick(Policy::kEager, {0, 0, 30}, {0, 2, 69}), 2, 15));
    CHECK(diffuses(pick(Policy::kEager, {0, 2, 30}, {0, 4, 69}), 1, 1));
}

TEST(diffusion_goes_before_decoding) {
    for (const Policy policy : {Policy::kLevel, Policy::kEager}) {
        CHECK(diffuses(pick(policy, {0, 1, 0}, {0, 1, 9}, true), 1, 1));
        CHECK(pick(policy, {0, 0, 0}, {0, 0, 9}, true).kind == Kind::kDecode);
        CHECK(pick(policy, {0, 0, 0}, {0, 0, 9}, false).kind == Kind::kNothing);
    }
    CHECK(pick(Policy::kLevel, {0, 0, 30}, {0, 2, 69}, true).kind == Kind::kDecode);
}

TEST(names_of_policies) {
    CHECK(nuwaxl::parse_policy("level") == Policy::kLevel);
    CHECK(nuwaxl::parse_policy("eager") == Policy::kEager);
    CHECK(check::refuses([] { nuwaxl::parse_policy("Level"); }));
}

int main() { return check::run_all(); }
