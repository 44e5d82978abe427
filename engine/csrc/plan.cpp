#include "plan.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "refuse.h"

namespace nuwaxl {

namespace {

constexpr std::int64_t kMostFrames = std::int64_t{1} << 62;
constexpr std::int64_t kMostLength = std::int64_t{1} << 20;  // so that the frames of one segment can be listed

void check_length(std::int64_t length) {
    if (length < 3 || length > kMostLength) {
        refuse("length (frames a diffusion) of 3 to 2^20", std::to_string(length),
               "pass the L the bundle was trained with");
    }
}

void check_frames(std::int64_t frames) {
    if (frames < 1 || frames > kMostFrames) {
        refuse("frames between 1 and 2^62", std::to_string(frames), "ask for at least one frame");
    }
}

void check_depth(std::int64_t depth) {
    if (depth < 1) {
        refuse("depth of at least 1", std::to_string(depth),
               "pass a larger depth, or none for the smallest that spans the frames");
    }
}

// (L-1)^exponent, or -1 where that passes kMostFrames.
std::int64_t power(std::int64_t base, std::int64_t exponent) {
    std::int64_t value = 1;
    for (std::int64_t i = 0; i < exponent; ++i) {
        if (value > kMostFrames / base) return -1;
        value *= base;
    }
    return value;
}

std::int64_t smallest_depth(std::int64_t frames, std::int64_t length) {
    std::int64_t depth = 1;
    while (Plan::span(length, depth) < frames) ++depth;
    return depth;
}

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace

std::int64_t Plan::span(std::int64_t length, std::int64_t depth) {
    check_length(length);
    check_depth(depth);
    const std::int64_t last = power(length - 1, depth);
    if (last < 0) {
        refuse("a tree of at most 2^62 frames",
               "length " + std::to_string(length) + " and depth " + std::to_string(depth), "pass a smaller depth");
    }
    return last + 1;
}

Plan::Plan(Kind kind, std::int64_t frames, std::int64_t length, std::int64_t overlap)
    : kind_(kind), frames_(frames), length_(length) {
    check_frames(frames);
    check_length(length);
    hop_ = length - overlap;
}

Plan Plan::autoregressive(std::int64_t frames, std::int64_t length, std::int64_t overlap) {
    check_length(length);
    if (overlap < 1 || overlap >= length) {
        refuse("an overlap of 1 to " + std::to_string(length - 1) + " frames", std::to_string(overlap),
               "let windows share at least one frame, and add at least one");
    }
    Plan plan(Kind::kAutoregressive, frames, length, overlap);
    const std::int64_t further = frames > length ? ceil_div(frames - length, plan.hop_) : 0;
    plan.levels_.push_back({1, 1 + further, 0});
    return plan;
}

Plan::Plan(std::int64_t frames, std::int64_t length, std::optional<std::int64_t> wanted_depth)
    : Plan(Kind::kTree, frames, length, 1) {
    const std::int64_t depth = wanted_depth ? *wanted_depth : smallest_depth(frames, length);
    if (const std::int64_t spanned = span(length, depth); spanned < frames) {
        refuse("at most " + std::to_string(spanned) + " frames, what a tree of length " + std::to_string(length) +
                   " and depth " + std::to_string(depth) + " spans",
               std::to_string(frames),
               "ask for fewer frames or a depth of " + std::to_string(smallest_depth(frames, length)));
    }
    std::int64_t offset = 0;
    for (std::int64_t d = 0; d < depth; ++d) {
        const std::int64_t stride = power(length - 1, depth - 1 - d);
        const std::int64_t whole = power(length - 1, d);  // segments of this depth in the unpruned tree
        // Those that begin before the last frame: one that begins with it would add none that the video has.
        const std::int64_t needed = ceil_div(frames - 1, (length - 1) * stride);
        const std::int64_t count = d == 0 ? 1 : std::min(whole, needed);
        levels_.push_back({stride, count, offset});
        offset += count;
    }
}

std::vector<std::int64_t> Plan::counts() const {
    std::vector<std::int64_t> counts;
    for (const Level& level : levels_) {
        if (level.count > 0) counts.push_back(level.count);
    }
    return counts;
}

std::int64_t Plan::depth_of(std::int64_t id) const {
    if (id < 0 || id >= size()) {
        refuse("a segment id between 0 and " + std::to_string(size() - 1), std::to_string(id),
               "pass an id below len(plan)");
    }
    std::int64_t depth = this->depth() - 1;
    while (id < level(depth).offset) --depth;
    return depth;
}

Segment Plan::segment(std::int64_t id) const {
    const std::int64_t depth = depth_of(id);
    const std::int64_t index = id - level(depth).offset;
    const std::int64_t stride = level(depth).stride;
    std::int64_t parent = depth == 0 ? kNoParent : id_of(depth - 1, index / (length_ - 1));
    if (kind_ == Kind::kAutoregressive) parent = id - 1;  // kNoParent for the first
    return {depth, index, index * hop_ * stride, stride, parent};
}

std::vector<std::int64_t> Plan::frames_of(std::int64_t id) const {
    const Segment segment = this->segment(id);
    std::vector<std::int64_t> frames(static_cast<std::size_t>(length_));
    for (std::int64_t i = 0; i < length_; ++i) {
        frames[static_cast<std::size_t>(i)] = segment.first_frame + i * segment.stride;
    }
    return frames;
}

IdRange Plan::children(std::int64_t id) const {
    const std::int64_t depth = depth_of(id);
    if (kind_ == Kind::kAutoregressive) return {id + 1, id + 1 < size() ? 1 : 0};
    if (depth + 1 == this->depth()) return {size(), 0};
    const std::int64_t first = (id - level(depth).offset) * (length_ - 1);
    const std::int64_t end = std::min(first + length_ - 1, level(depth + 1).count);
    return {id_of(depth + 1, first), end - first};
}

std::vector<std::int64_t> Plan::known(std::int64_t id) const {
    const Segment segment = this->segment(id);
    if (segment.parent == kNoParent) return {};
    if (kind_ == Kind::kTree) return {0, length_ - 1};
    std::vector<std::int64_t> positions(static_cast<std::size_t>(overlap()));
    std::iota(positions.begin(), positions.end(), 0);
    return positions;
}

std::int64_t Plan::height(std::int64_t id) const {
    const std::int64_t depth = depth_of(id);
    if (kind_ == Kind::kAutoregressive) return size() - 1 - id;
    // The tree is pruned from the end, so every segment above the last depth keeps its first child; but a video of one
    // frame has the global diffusion alone, whatever the depth.
    return size() == 1 ? 0 : this->depth() - 1 - depth;
}

std::int64_t Plan::origin_of(std::int64_t frame) const {
    if (kind_ == Kind::kAutoregressive) {
        const std::int64_t window = frame < length_ ? 0 : (frame - overlap()) / hop_;
        if (frame >= 0 && window < size()) return window;
    } else if (frame >= 0) {
        for (std::int64_t d = 0; d < depth(); ++d) {
            const Level& level = this->level(d);
            if (frame % level.stride != 0) continue;
            // Only the very last frame of the tree falls past the last segment, which ends on it.
            const std::int64_t reach = (length_ - 1) * level.stride;
            const std::int64_t index = d == 0 && frame == reach ? 0 : frame / reach;
            if (index < level.count) return level.offset + index;
            break;
        }
    }
    refuse("a frame that the plan generates, at best 0 to " + std::to_string(frames_ - 1), std::to_string(frame),
           "plan for more frames");
}

}  // namespace nuwaxl
