#include "job.h"

#include <algorithm>
#include <string>
#include <utility>

#include "refuse.h"

namespace nuwaxl {

namespace {

constexpr std::int64_t kMostSteps = std::int64_t{1} << 60;

std::string text(const Window& window) { return pair_text(window.first, window.last); }

void check_windows(const std::vector<Window>& windows, std::int64_t frames) {
    Window before{0, 0};
    for (const Window& window : windows) {
        if (window.first > window.last || window.first < before.first || window.last < before.last) {
            refuse("decode windows (first, last) in order, no end before the one of the window " + text(before),
                   text(window), "sort them");
        }
        if (window.last >= frames) {
            refuse("decode windows within frames 0 to " + std::to_string(frames - 1), text(window),
                   "clamp it to the video's end");
        }
        before = window;
    }
}

// Which segments of a plan are among `finished`; throws unless each one's ancestors are.
std::vector<bool> marked(const Plan& plan, const std::vector<std::int64_t>& finished) {
    if (finished.empty()) return {};
    std::vector<bool> there(static_cast<std::size_t>(plan.size()), false);
    std::int64_t before = -1;
    for (const std::int64_t id : finished) {
        const std::int64_t parent = plan.segment(id).parent;
        if (id <= before || (parent != Plan::kNoParent && !there[static_cast<std::size_t>(parent)])) {
            refuse("finished segments in rising order, each after its parent", std::to_string(id),
                   "leave out those whose parent is not there");
        }
        there[static_cast<std::size_t>(id)] = true;
        before = id;
    }
    return there;
}

}  // namespace

Job::Job(Plan plan, std::int64_t steps, std::vector<Window> windows, std::int64_t decode_ahead,
         const std::vector<std::int64_t>& finished)
    : plan_(std::move(plan)),
      steps_(steps),
      windows_(std::move(windows)),
      decode_ahead_(decode_ahead),
      there_(marked(plan_, finished)),
      segments_left_(plan_.size()),
      untaken_(plan_.size() - static_cast<std::int64_t>(finished.size())),
      windows_left_(static_cast<std::int64_t>(windows_.size())),
      opening_end_(windows_.empty() ? 0 : windows_.front().last) {
    check_at_least_one("steps", steps);
    if (const std::int64_t chain = plan_.height(0) + 1; steps > kMostSteps / chain) {
        refuse("at most 2^60 denoising steps one after another",
               std::to_string(chain) + " segments of " + std::to_string(steps) + " each",
               "pass fewer steps, or plan a shorter video");
    }
    check_at_least_one("decode_ahead", decode_ahead);
    check_windows(windows_, plan_.frames());
    done_ = there_;
    if (!windows_.empty()) done_.resize(static_cast<std::size_t>(plan_.size()), false);
    consumed_.assign(windows_.size(), false);
}

std::vector<IdRange> Job::to_denoise(IdRange ids, Policy policy) {
    if (there_.empty()) return {ids};
    std::vector<IdRange> found;
    std::vector<IdRange> reached{ids};
    while (!reached.empty()) {
        const auto [first, count] = reached.back();
        reached.pop_back();
        found.push_back({first, 0});
        for (std::int64_t id = first; id < first + count; ++id) {
            if (there_[static_cast<std::size_t>(id)]) {
                found.push_back({id + 1, 0});
                reached.push_back(segment_done(id, policy));
            } else {
                ++found.back().count;
            }
        }
    }
    return found;
}

IdRange Job::segment_done(std::int64_t id, Policy policy) {
    --segments_left_;
    if (!windows_.empty()) {
        done_[static_cast<std::size_t>(id)] = true;
    } else if (plan_.segment(id).first_frame == 0 && plan_.height(id) == 0) {
        opening_end_ = -1;
    }
    if (policy != Policy::kLevel || plan_.kind() != Plan::Kind::kTree) return plan_.children(id);
    if (--depth_left_ > 0 || segments_left_ == 0) return {0, 0};
    ++depth_;
    depth_left_ = plan_.count(depth_);
    return {plan_.id_of(depth_, 0), depth_left_};
}

// Frames stay once they are there, so each frame is looked at about once over the whole render.
bool Job::window_ready() {
    if (failed_ || windows_left_ == 0) return false;
    if (!returned_.empty()) return true;
    if (next_window_ == static_cast<std::int64_t>(windows_.size())) return false;
    if (next_window_ - consumed_count_ >= decode_ahead_) return false;
    const Window& window = windows_[static_cast<std::size_t>(next_window_)];
    final_end_ = std::max(final_end_, window.first);
    while (final_end_ <= window.last && done_[static_cast<std::size_t>(plan_.origin_of(final_end_))]) ++final_end_;
    return final_end_ > window.last;
}

bool Job::consumer_waits() const { return !returned_.empty() || next_window_ == consumed_count_; }

std::int64_t Job::take_window() {
    opening_end_ = -1;
    if (returned_.empty()) return next_window_++;
    const auto first = std::min_element(returned_.begin(), returned_.end());
    const std::int64_t window = *first;
    returned_.erase(first);
    return window;
}

std::int64_t Job::opening(const ReadyRange& range) const {
    if (range.rank > opening_end_) return 0;
    if (range.rank_step == 0) return range.end - range.first;
    return std::min(range.end - range.first, (opening_end_ - range.rank) / range.rank_step + 1);
}

void Job::consumed(std::int64_t window) {
    if (window < 0 || window >= next_window_ || consumed_[static_cast<std::size_t>(window)]) {
        refuse("a decode window that was handed out and not yet consumed", "window " + std::to_string(window),
               "report each window consumed once, after it was decoded");
    }
    consumed_[static_cast<std::size_t>(window)] = true;
    ++consumed_count_;
}

void Job::release() {
    std::vector<bool>().swap(there_);
    std::vector<bool>().swap(done_);
    std::vector<Window>().swap(windows_);
}

}  // namespace nuwaxl
