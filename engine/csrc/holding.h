// What one device works on: the segments of its batch, or a decode window.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "policy.h"
#include "ready_queue.h"

namespace nuwaxl {

struct Holding {
    struct Segment {
        Item item;
        std::int64_t last_step;  // `steps` when it will be finished
        std::int64_t children;   // that become ready then
    };
    std::vector<Segment> segments;
    std::optional<Item> window;
    std::optional<Item> left;  // a window on its way to the host: the device is done with it, but it may still be lost
    std::int64_t steps = 0;    // done since the device was free
    double decode_s = 0.0;     // what a window takes

    bool free() const { return segments.empty() && !window; }
    bool finished() const { return free() && !left; }
    std::vector<Item> items() const;

    // Takes finished segments out. The first of `items` that is not held, or is there twice, if there is one: then all
    // of them stay.
    std::optional<Item> drop(std::span<const Item> items);

    // Brings what the policy sees of it up to date.
    void describe(Load& load) const;
};

}  // namespace nuwaxl
