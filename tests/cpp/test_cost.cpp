#include <cmath>
#include <limits>

#include "check.h"
#include "cost.h"

using nuwaxl::CostModel;

namespace {

bool near(double a, double b) { return std::abs(a - b) < 1e-12; }

}  // namespace

TEST(steps_are_linear_between_the_measured_sizes_and_go_on_by_the_last_slope) {
    const CostModel cost({1, 4, 8}, {1.0, 2.5, 3.5});
    CHECK(near(cost.step_s(1), 1.0) && near(cost.step_s(2), 1.5) && near(cost.step_s(4), 2.5));
    CHECK(near(cost.step_s(6), 3.0) && near(cost.step_s(8), 3.5) && near(cost.step_s(12), 4.5));
}

TEST(one_measured_size_scales_in_proportion) {
    const CostModel cost({2}, {3.0});
    CHECK(near(cost.step_s(1), 1.5) && near(cost.step_s(2), 3.0) && near(cost.step_s(6), 9.0));
}

TEST(a_last_slope_that_falls_is_not_followed) {
    const CostModel cost({1, 2, 4}, {1.0, 2.0, 1.8});
    CHECK(near(cost.step_s(100), 1.8));
}

TEST(sizes_that_are_filled_up_to_the_last_do_not_make_larger_ones_free) {
    const CostModel cost({1, 2, 3, 4, 5, 6}, {1.0, 2.0, 4.0, 4.0, 6.0, 6.0});
    CHECK(near(cost.step_s(3), 4.0) && near(cost.step_s(5), 6.0));
    CHECK(near(cost.step_s(7), 7.0) && near(cost.step_s(8), 8.0));
    CHECK(near(CostModel({1, 2, 4}, {1.0, 1.0, 1.0}).step_s(9), 1.0));  // every batch takes the same time
}

TEST(below_the_smallest_size_a_step_takes_at_least_its_share) {
    CHECK(near(CostModel({4, 8}, {4.0, 6.0}).step_s(1), 2.5));
    CHECK(near(CostModel({4, 8}, {4.0, 12.0}).step_s(1), 1.0));
}

TEST(the_best_batch_is_the_smallest_within_two_percent_of_the_cheapest) {
    CHECK(CostModel({1}, {1.0}).best_batch(16) == 1);
    CHECK(CostModel({1, 8}, {8.0, 15.0}).best_batch(8) == 8);
    CHECK(CostModel({1, 8}, {8.0, 15.0}).best_batch(5) == 5);
    CHECK(CostModel({1, 2, 16}, {1.0, 1.01, 8.0}).best_batch(16) == 2);
    CHECK(CostModel({1, 2, 4}, {1.0, 1.9, 5.0}).best_batch(4) == 2);
}

TEST(the_widest_batch_is_the_largest_within_two_percent_of_the_cheapest) {
    CHECK(CostModel({1}, {1.0}).widest_batch(16) == 16);
    CHECK(CostModel({1, 8}, {8.0, 15.0}).widest_batch(8) == 8);
    CHECK(CostModel({1, 2, 4}, {1.0, 1.9, 5.0}).widest_batch(4) == 2);
    CHECK(CostModel({1, 16, 32}, {10.0, 32.0, 64.1}).widest_batch(32) == 32);
    CHECK(CostModel({1, 16, 32}, {10.0, 32.0, 66.0}).widest_batch(32) < 32);
}

TEST(wrong_measurements_are_refused) {
    using Sizes = std::vector<std::int64_t>;
    using Times = std::vector<double>;
    const auto refused = [](const Sizes& sizes, const Times& times, double decode_s = 0.0) {
        return check::refuses([&] { CostModel(sizes, times, decode_s); });
    };
    CHECK(refused({}, {}));
    CHECK(refused({1, 2}, {1.0}));
    CHECK(refused({0}, {1.0}));
    CHECK(refused({2, 2}, {1.0, 1.0}));
    CHECK(refused({2, 1}, {1.0, 1.0}));
    CHECK(refused({1}, {0.0}));
    CHECK(refused({1}, {0.99e-9}) && !refused({1}, {1e-9}));
    CHECK(refused({1}, {1.01e9}) && !refused({1}, {1e9}));
    CHECK(refused({1}, {1.0}, 1.01e9) && !refused({1}, {1.0}, 1e9));
    CHECK(refused({1}, {-1.0}));
    CHECK(refused({1}, {std::numeric_limits<double>::infinity()}));
    CHECK(refused({1}, {std::numeric_limits<double>::quiet_NaN()}));
    CHECK(refused({1}, {1.0}, -0.5));
    const CostModel cost({1}, {1.0});
    CHECK(check::refuses([&] { cost.step_s(0); }));
    CHECK(check::refuses([&] { cost.best_batch(0); }));
    CHECK(check::refuses([&] { cost.widest_batch(0); }));
    const std::int64_t most = CostModel::kMostBatch;
    CHECK(cost.best_batch(most) == 1 && cost.widest_batch(most) == most);
    CHECK(check::refuses([&] { cost.best_batch(most + 1); }));
    CHECK(check::refuses([&] { cost.widest_batch(most + 1); }));
}

int main() { return check::run_all(); }
