// How items and windows look in Python, pairs of integers; and kinds of work, words.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "scheduler.h"

namespace nuwaxl {

using Pairs = std::vector<std::pair<std::int64_t, std::int64_t>>;

inline Pairs pairs_of(const std::vector<Item>& items) {
    Pairs pairs;
    pairs.reserve(items.size());
    for (const Item& item : items) pairs.emplace_back(item.job, item.id);
    return pairs;
}

inline std::vector<Item> items_from(const Pairs& pairs) {
    std::vector<Item> items;
    items.reserve(pairs.size());
    for (const auto& [job, id] : pairs) items.push_back({job, id});
    return items;
}

inline std::vector<Window> windows_from(const Pairs& ranges) {
    std::vector<Window> windows;
    windows.reserve(ranges.size());
    for (const auto& [first, last] : ranges) windows.push_back({first, last});
    return windows;
}

inline const char* name_of(Work::Kind kind) { return kind == Work::Kind::kDiffuse ? "diffuse" : "decode"; }

}  // namespace nuwaxl
