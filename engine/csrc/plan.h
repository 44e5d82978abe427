// The diffusions that generate a long video: the pruned tree of the paper (3.3), "Diffusion over Diffusion", or the
// chain of windows that it is compared with.
//
// Both are regular, so nothing is stored per segment: parent, children and frames follow from a segment's depth and
// index by arithmetic. A plan of a million segments takes as much memory as a plan of one.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace nuwaxl {

// One diffusion of L frames: frames first_frame, first_frame + stride, ..., first_frame + (L-1) * stride.
struct Segment {
    std::int64_t depth;  // 0 is the global diffusion
    std::int64_t index;  // position among the segments of its depth
    std::int64_t first_frame;
    std::int64_t stride;  // (L-1)^(m-1-depth) frames; 1 in a chain
    std::int64_t parent;  // id of the segment that gives it its known frames; -1 for the first
};

// Segments first, first + 1, ..., first + count - 1.
struct IdRange {
    std::int64_t first;
    std::int64_t count;
};

class Plan {
public:
    enum class Kind { kTree, kAutoregressive };
    static constexpr std::int64_t kNoParent = -1;

    // frames = N, length = L, depth = m (by default the smallest whose tree spans N frames). Keeps the global diffusion
    // and the locals whose first frame lies before N - 1: each of them generates, or leads to, a frame of the video.
    // Throws std::invalid_argument if frames < 1, length is not 3 to 2^20, depth < 1 or the tree spans fewer than N
    // frames.
    Plan(std::int64_t frames, std::int64_t length, std::optional<std::int64_t> depth = std::nullopt);

    // "Autoregressive over diffusion": a chain of windows of L frames, each given the last `overlap` frames of the one
    // before, as many as cover N frames. All are of depth 0; window i waits for window i - 1.
    // Throws std::invalid_argument if frames < 1, length is not 3 to 2^20, or overlap is not between 1 and L - 1.
    static Plan autoregressive(std::int64_t frames, std::int64_t length, std::int64_t overlap);

    // Frames a tree of `depth` levels spans, (L-1)^m + 1. Throws std::invalid_argument past 2^62.
    static std::int64_t span(std::int64_t length, std::int64_t depth);

    Kind kind() const { return kind_; }
    std::int64_t frames() const { return frames_; }
    std::int64_t length() const { return length_; }
    std::int64_t overlap() const { return length_ - hop_; }  // frames that neighbours of one depth share
    std::int64_t depth() const { return static_cast<std::int64_t>(levels_.size()); }
    std::int64_t size() const { return levels_.back().offset + levels_.back().count; }
    std::int64_t count(std::int64_t depth) const { return levels_[static_cast<std::size_t>(depth)].count; }
    std::vector<std::int64_t> counts() const;  // of the depths that have any

    // Segment ids are depth-major: all of depth 0, then all of depth 1, ... Unknown ids throw std::invalid_argument.
    std::int64_t id_of(std::int64_t depth, std::int64_t index) const { return level(depth).offset + index; }
    Segment segment(std::int64_t id) const;
    std::vector<std::int64_t> frames_of(std::int64_t id) const;
    IdRange children(std::int64_t id) const;

    // Positions, 0 to L - 1, of the segment's frames that its parent gives it: none for the first segment, both ends
    // for a local diffusion, the first `overlap` for a window.
    std::vector<std::int64_t> known(std::int64_t id) const;

    // Segments on the longest chain of descendants below the segment.
    std::int64_t height(std::int64_t id) const;

    // The segment that generates `frame`: the shallowest one that holds it, since deeper ones are given it.
    // Throws std::invalid_argument for a frame that no segment of the pruned tree holds.
    std::int64_t origin_of(std::int64_t frame) const;

private:
    struct Level {
        std::int64_t stride;
        std::int64_t count;
        std::int64_t offset;  // id of the first segment of this depth
    };

    Plan(Kind kind, std::int64_t frames, std::int64_t length, std::int64_t overlap);

    const Level& level(std::int64_t depth) const { return levels_[static_cast<std::size_t>(depth)]; }
    std::int64_t depth_of(std::int64_t id) const;

    Kind kind_;
    std::int64_t frames_;
    std::int64_t length_;
    std::int64_t hop_;  // strides from a segment to the next of its depth: L - 1, or L - overlap in a chain
    std::vector<Level> levels_;
};

}  // namespace nuwaxl
