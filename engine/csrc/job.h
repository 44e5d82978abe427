// One video in the making: which of its segments are done, and which of its decode windows may be decoded.
#pragma once

#include <cstdint>
#include <vector>

#include "plan.h"
#include "policy.h"

namespace nuwaxl {

// Inclusive range of frames whose latents a decode window reads.
struct Window {
    std::int64_t first;
    std::int64_t last;
};

class Job {
public:
    // Windows must lie within the plan's frames, in order: neither end may move back.
    // finished: segments whose frames are there already, of an earlier render, and all their ancestors'.
    // Throws std::invalid_argument for others, if steps < 1 or decode_ahead < 1, and for more than 2^60 steps one after
    // another, those of all segments of a longest chain.
    Job(Plan plan, std::int64_t steps, std::vector<Window> windows, std::int64_t decode_ahead,
        const std::vector<std::int64_t>& finished = {});

    const Plan& plan() const { return plan_; }
    std::int64_t steps() const { return steps_; }
    std::int64_t untaken() const { return untaken_; }  // segments that no device has or had, but a lost one
    void segment_taken() { --untaken_; }
    void return_segment() { ++untaken_; }
    bool failed() const { return failed_; }
    bool finished() const { return segments_left_ == 0 && windows_left_ == 0; }

    // Of segments that may start now, those to be denoised: they themselves, or, where their frames were there from the
    // beginning, what waits for those.
    std::vector<IdRange> to_denoise(IdRange ids, Policy policy);

    // A segment's frames are there. Returns the segments that may start now: its children, or, where `level` makes a
    // barrier of every depth of a tree, all of the next depth once its own depth is done.
    IdRange segment_done(std::int64_t id, Policy policy);

    // Whether there is a window that may be decoded: all its frames are there, and the consumer has taken all but
    // decode_ahead of those before it.
    bool window_ready();
    // Whether the consumer has taken all that was handed out, so that it waits for the next window.
    bool consumer_waits() const;
    std::int64_t take_window();
    void window_done() { --windows_left_; }
    // A window that was taken must be decoded again, by another device.
    void return_window(std::int64_t window) { returned_.push_back(window); }
    // Throws std::invalid_argument unless the window was taken, and not consumed before.
    void consumed(std::int64_t window);

    // How many segments at the beginning of a range ranked by first frame the first window needs; 0 once that is
    // being decoded. A job without windows opens with its first frame.
    std::int64_t opening(const ReadyRange& range) const;

    void fail() { failed_ = true; }
    void release();  // frees what a job that is finished or failed no longer needs

private:
    const Plan plan_;
    const std::int64_t steps_;
    std::vector<Window> windows_;
    const std::int64_t decode_ahead_;
    bool failed_ = false;
    std::vector<bool> there_;  // by segment: at the beginning; empty where none was
    std::vector<bool> done_;   // by segment
    std::int64_t segments_left_;
    std::int64_t untaken_;
    std::int64_t depth_ = 0;       // the depth that `level` is at,
    std::int64_t depth_left_ = 1;  // and its segments that are not done
    std::vector<bool> consumed_;   // by window
    std::vector<std::int64_t> returned_;
    std::int64_t windows_left_;  // not decoded
    std::int64_t consumed_count_ = 0;
    std::int64_t next_window_ = 0;  // windows below were taken
    std::int64_t final_end_ = 0;    // frames from the next window's first one to here (exclusive) are there
    std::int64_t opening_end_;      // last frame of the first window, -1 once that was taken
};

}  // namespace nuwaxl
