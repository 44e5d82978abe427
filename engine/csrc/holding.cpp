#include "holding.h"

#include <algorithm>
#include <utility>

namespace nuwaxl {

std::vector<Item> Holding::items() const {
    std::vector<Item> items;
    for (const Segment& segment : segments) items.push_back(segment.item);
    if (window) items.push_back(*window);
    return items;
}

std::optional<Item> Holding::drop(std::span<const Item> items) {
    // The finished ones go to the back, where they are easily dropped; the order of a batch is of no importance.
    std::size_t staying = segments.size();
    for (const Item& item : items) {
        const auto end = segments.begin() + static_cast<std::ptrdiff_t>(staying);
        const auto found =
            std::find_if(segments.begin(), end, [&](const Segment& segment) { return segment.item == item; });
        if (found == end) return item;
        std::swap(*found, segments[--staying]);
    }
    segments.resize(staying);
    return std::nullopt;
}

void Holding::describe(Load& load) const {
    std::int64_t last_step = steps;
    load.coming = 0;
    for (const Segment& segment : segments) {
        last_step = std::max(last_step, segment.last_step);
        load.coming += segment.children;
    }
    load.held = static_cast<std::int64_t>(segments.size());
    load.steps_left = last_step - steps;
    load.decoding_s = window ? decode_s : 0.0;
}

}  // namespace nuwaxl
