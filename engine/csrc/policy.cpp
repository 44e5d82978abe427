#include "policy.h"

#include <algorithm>
#include <stdexcept>

namespace nuwaxl {

Policy parse_policy(std::string_view name) {
    if (name == "level") return Policy::kLevel;
    if (name == "eager") return Policy::kEager;
    throw std::invalid_argument("expected policy \"level\" or \"eager\"; found \"" + std::string(name) +
                                "\"; pass one of the two");
}

Choice choose(Policy policy, const Snapshot& snapshot) {
    for (std::size_t depth = 0; depth < snapshot.ready.size(); ++depth) {
        const std::int64_t ready = snapshot.ready[depth];
        if (ready > 0) {
            const std::int64_t share = (ready - 1) / snapshot.devices + 1;
            return {Choice::Kind::kDiffuse, static_cast<std::int64_t>(depth), std::min(snapshot.max_batch, share)};
        }
        if (policy == Policy::kLevel && snapshot.unfinished[depth] > 0) break;
    }
    if (snapshot.window_ready) return {Choice::Kind::kDecode, -1, 0};
    return {Choice::Kind::kNothing, -1, 0};
}

}  // namespace nuwaxl
