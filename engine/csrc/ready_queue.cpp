#include "ready_queue.h"

#include <algorithm>
#include <tuple>

namespace nuwaxl {

namespace {

// The standard heaps keep the largest in front.
bool goes_later(const ReadyRange& a, const ReadyRange& b) {
    return std::tie(a.rank, a.job, a.first) > std::tie(b.rank, b.job, b.first);
}

}  // namespace

void ReadyQueue::push(const ReadyRange& range) {
    const auto job = static_cast<std::size_t>(range.job);
    if (job >= counts_.size()) counts_.resize(job + 1, 0);
    counts_[job] += range.end - range.first;
    count_ += range.end - range.first;
    heap_.push_back(range);
    std::push_heap(heap_.begin(), heap_.end(), goes_later);
}

Item ReadyQueue::pop() {
    ReadyRange& front = heap_.front();
    const Item item{front.job, front.first};
    ++front.first;
    front.rank += front.rank_step;
    --counts_[static_cast<std::size_t>(item.job)];
    --count_;
    if (front.first == front.end) {
        std::pop_heap(heap_.begin(), heap_.end(), goes_later);
        heap_.pop_back();
        return item;
    }
    // The front range goes later now. Siblings mostly go one after the other, so it seldom has to move.
    std::size_t at = 0;
    for (;;) {
        std::size_t child = 2 * at + 1;
        if (child >= heap_.size()) break;
        if (child + 1 < heap_.size() && goes_later(heap_[child], heap_[child + 1])) ++child;
        if (!goes_later(heap_[at], heap_[child])) break;
        std::swap(heap_[at], heap_[child]);
        at = child;
    }
    return item;
}

void ReadyQueue::drop(std::int64_t job) {
    std::erase_if(heap_, [job](const ReadyRange& range) { return range.job == job; });
    std::make_heap(heap_.begin(), heap_.end(), goes_later);
    if (const auto at = static_cast<std::size_t>(job); at < counts_.size()) {
        count_ -= counts_[at];
        counts_[at] = 0;
    }
}

std::int64_t ReadyQueue::count_of(std::int64_t job) const {
    const auto at = static_cast<std::size_t>(job);
    return at < counts_.size() ? counts_[at] : 0;
}

}  // namespace nuwaxl
