#include <algorithm>
#include <random>
#include <set>
#include <tuple>

#include "check.h"
#include "ready_queue.h"

using nuwaxl::Item;
using nuwaxl::ReadyQueue;

TEST(lower_ranks_go_first_then_lower_jobs_then_lower_ids) {
    ReadyQueue queue;
    queue.push({5, 0, 0, 10, 12});
    queue.push({3, 0, 1, 7, 8});
    queue.push({3, 0, 0, 20, 21});
    CHECK(queue.count() == 4 && queue.count_of(0) == 3 && queue.count_of(1) == 1 && queue.count_of(9) == 0);
    CHECK((queue.pop() == Item{0, 20}));
    CHECK((queue.pop() == Item{1, 7}));
    CHECK((queue.pop() == Item{0, 10}));
    CHECK((queue.pop() == Item{0, 11}));
    CHECK(queue.empty() && queue.count() == 0);
}

TEST(any_ranges_come_out_in_the_order_of_a_sorted_set) {
    std::mt19937 random(7);
    const auto below = [&](unsigned end) { return static_cast<std::int64_t>(random() % end); };
    for (int round = 0; round < 50; ++round) {
        ReadyQueue queue;
        std::set<std::tuple<std::int64_t, std::int64_t, std::int64_t>> expected;  // rank, job, id
        std::int64_t next_id = 0;
        for (int i = 0; i < 200; ++i) {
            if (expected.empty() || random() % 3 == 0) {
                const std::int64_t rank = below(20), step = below(4), job = below(3), count = 1 + below(6);
                queue.push({rank, step, job, next_id, next_id + count});
                for (std::int64_t k = 0; k < count; ++k) expected.emplace(rank + k * step, job, next_id + k);
                next_id += count;
            } else {
                const auto [rank, job, id] = *expected.begin();
                CHECK(queue.front().rank == rank);
                CHECK((queue.pop() == Item{job, id}));
                expected.erase(expected.begin());
            }
            CHECK(queue.count() == static_cast<std::int64_t>(expected.size()));
        }
    }
}

TEST(a_dropped_job_is_gone_and_the_others_stay) {
    ReadyQueue queue;
    for (std::int64_t job = 0; job < 4; ++job) queue.push({10 - job, 1, job, 0, 5});
    queue.drop(2);
    queue.drop(17);
    CHECK(queue.count() == 15 && queue.count_of(2) == 0);
    std::int64_t seen = 0;
    while (!queue.empty()) seen += queue.pop().job != 2 ? 1 : 0;
    CHECK(seen == 15);
}

int main() { return check::run_all(); }
