// Which work a free device takes next: a pure function of a snapshot, with no device, thread or clock in it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace nuwaxl {

enum class Policy {
    kLevel,  // a depth starts when the whole depth before it is done (the paper's barrier)
    kEager,  // a segment starts when its parent is done
};

// "level" or "eager"; anything else throws std::invalid_argument.
Policy parse_policy(std::string_view name);

// What may start now, one entry a depth.
struct Snapshot {
    std::span<const std::int64_t> ready;       // segments whose parent is done and that nobody has taken
    std::span<const std::int64_t> unfinished;  // segments not done: waiting, ready or running
    bool window_ready;                         // a decode window could be decoded
    std::int64_t devices;
    std::int64_t max_batch;
};

struct Choice {
    enum class Kind { kNothing, kDiffuse, kDecode };
    Kind kind;
    std::int64_t depth;  // of the segments to take; -1 unless kDiffuse
    std::int64_t count;  // segments to take, lowest index first; 0 unless kDiffuse
};

// Takes min(max_batch, ceil(ready / devices)) segments of the shallowest depth that may start: the ready segments
// are dealt out so that no device idles while another takes more than its share. Diffusion goes before decoding,
// since everything waits for it.
Choice choose(Policy policy, const Snapshot& snapshot);

}  // namespace nuwaxl
