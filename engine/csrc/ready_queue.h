// The segments that may start, best first.
#pragma once

#include <cstdint>
#include <vector>

namespace nuwaxl {

// What a device works on: a segment or a decode window of a job.
struct Item {
    std::int64_t job;
    std::int64_t id;

    bool operator==(const Item&) const = default;
};

// Segments become ready together, as the children of one parent, and their ids follow one another. So the queue holds
// ranges and not segments: [first, end) of one job, of which the first goes first.
struct ReadyRange {
    std::int64_t rank;       // of `first`: lower goes first; then the lower job, then the lower id
    std::int64_t rank_step;  // from one segment of the range to the next; at least 0
    std::int64_t job;
    std::int64_t first;
    std::int64_t end;
};

// Taking one segment costs O(log of the ranges).
class ReadyQueue {
public:
    void push(const ReadyRange& range);
    Item pop();
    void drop(std::int64_t job);  // takes O(ranges)

    bool empty() const { return heap_.empty(); }
    const ReadyRange& front() const { return heap_.front(); }
    std::int64_t count() const { return count_; }
    std::int64_t count_of(std::int64_t job) const;

private:
    std::vector<ReadyRange> heap_;
    std::vector<std::int64_t> counts_;  // by job
    std::int64_t count_ = 0;
};

}  // namespace nuwaxl
