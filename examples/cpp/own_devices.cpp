// A video's segments denoised by devices of this program's own, which the scheduler of nuwaxl keeps busy.
//
// A device is a thread here, and a denoising step is a little arithmetic and a sleep as long as the device's cost model
// says. A program with real devices replaces denoise(); all else may stay. Prints for each policy what the run took,
// what the virtual clock predicts for it, and the bound that no schedule can beat. Exits with 1 if a segment was not
// generated exactly once, or before its parent, or differs from what one thread alone makes of it.
#include <nuwaxl/nuwaxl.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

using nuwaxl::CostModel;
using nuwaxl::Item;
using nuwaxl::Plan;
using nuwaxl::Policy;
using nuwaxl::Scheduler;

namespace {

constexpr std::int64_t kSteps = 12;  // denoising steps of a segment
constexpr std::int64_t kMaxBatch = 8;
constexpr std::uint64_t kSeed = 7;

using Latents = std::vector<float>;  // of a segment: one number a frame, where a network has a tensor

struct Device {
    CostModel cost;                               // what its steps take, as a program would measure it
    std::optional<std::int64_t> breaks_at_step = {};  // to show what happens then
};

struct DeviceGone : std::runtime_error {
    using std::runtime_error::runtime_error;
};

double since_s(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The frames of a video, and a record of how they came about. Segments write to different places, and a segment is
// only begun after the scheduler was told that its parent is done: no lock is needed.
class Video {
public:
    explicit Video(const Plan& plan)
        : plan_(plan),
          frames_(Plan::span(plan.length(), plan.depth())),  // the upper depths reach past the last frame asked for
          times_finished_(plan.size(), 0),
          parent_came_first_(plan.size(), false) {}

    // What the denoising of a segment starts from: noise, and the frames that its parent made.
    Latents begin(std::int64_t id) {
        const nuwaxl::Segment segment = plan_.segment(id);
        const bool has_parent = segment.parent != Plan::kNoParent;
        parent_came_first_[id] = !has_parent || times_finished_[segment.parent] == 1;
        Latents latents(plan_.length());
        nuwaxl::normal_noise(kSeed, segment.depth, segment.index, 0, latents);
        const std::vector<std::int64_t> frames = plan_.frames_of(id);
        for (const std::int64_t position : plan_.known(id)) latents[position] = frames_[frames[position]];
        return latents;
    }

    // Keeps the frames that the segment made; those that it was given stay as they are.
    void finish(std::int64_t id, const Latents& latents) {
        const std::vector<std::int64_t> frames = plan_.frames_of(id), known = plan_.known(id);
        for (std::int64_t position = 0; position < plan_.length(); ++position) {
            const bool given = std::find(known.begin(), known.end(), position) != known.end();
            if (!given) frames_[frames[position]] = latents[position];
        }
        ++times_finished_[id];
    }

    bool complete_and_in_order() const {
        return std::all_of(times_finished_.begin(), times_finished_.end(), [](int times) { return times == 1; }) &&
               std::all_of(parent_came_first_.begin(), parent_came_first_.end(), [](char yes) { return yes; });
    }

    const std::vector<float>& frames() const { return frames_; }

private:
    const Plan& plan_;
    std::vector<float> frames_;
    std::vector<int> times_finished_;      // by segment
    std::vector<char> parent_came_first_;  // by segment; not bool, whose neighbours share a byte
};

// A segment on a device.
struct UnderWay {
    Item item;
    Latents latents;
    std::int64_t steps_left = kSteps;
};

// One denoising step of one segment.
void denoise(Latents& latents) {
    for (float& x : latents) x += 0.1f * (latents.front() - x);
}

// One denoising step of all segments of a batch. Throws DeviceGone.
void step(std::vector<UnderWay>& batch, const Device& device, std::int64_t steps_before) {
    const auto start = std::chrono::steady_clock::now();
    if (device.breaks_at_step == steps_before) throw DeviceGone("unplugged");
    for (UnderWay& segment : batch) {
        denoise(segment.latents);
        --segment.steps_left;
    }
    const std::chrono::duration<double> length(device.cost.step_s(static_cast<std::int64_t>(batch.size())));
    std::this_thread::sleep_until(start + length);
}

// Removes the segments that had their last step from the batch, and keeps their frames.
std::vector<Item> take_finished(std::vector<UnderWay>& batch, Video& video) {
    std::vector<Item> finished;
    for (const UnderWay& segment : batch) {
        if (segment.steps_left > 0) continue;
        video.finish(segment.item.id, segment.latents);
        finished.push_back(segment.item);
    }
    std::erase_if(batch, [](const UnderWay& segment) { return segment.steps_left == 0; });
    return finished;
}

// The thread of a device. Returns the seconds that it was busy.
double run_device(Scheduler& scheduler, std::int64_t number, const Device& device, Video& video) {
    double busy_s = 0.0;
    std::int64_t steps = 0;
    try {
        // Only segments come: a video that is added without decode windows has none to decode.
        while (const auto work = scheduler.next(number)) {
            const auto start = std::chrono::steady_clock::now();
            std::vector<UnderWay> batch;
            std::vector<Item> newcomers = work->items;
            while (true) {
                for (const Item& item : newcomers) batch.push_back({item, video.begin(item.id)});
                step(batch, device, steps++);
                scheduler.advance(number);
                scheduler.done(number, take_finished(batch, video));
                if (batch.empty()) break;
                newcomers = scheduler.join(number);  // a device with room takes more at every step
            }
            busy_s += since_s(start);
        }
    } catch (const DeviceGone&) {
        scheduler.lost(number);  // what it had under way begins anew, on another device
    }
    return busy_s;
}

// Seconds that no schedule of the plan on the devices can beat: a segment at depth j waits for j diffusions, each at
// best alone on the fastest device; then there is the work at depth j and below, at the best pace of all together.
double lower_bound_s(const Plan& plan, const std::vector<Device>& devices) {
    double alone_s = devices.front().cost.step_s(1) * kSteps, segments_per_s = 0.0, bound_s = 0.0;
    for (const Device& device : devices) {
        double cheapest_s = device.cost.step_s(1);
        for (std::int64_t b = 2; b <= kMaxBatch; ++b) cheapest_s = std::min(cheapest_s, device.cost.step_s(b) / b);
        alone_s = std::min(alone_s, device.cost.step_s(1) * kSteps);
        segments_per_s += 1.0 / (cheapest_s * kSteps);
    }
    std::int64_t segments = plan.size();
    for (std::int64_t depth = 0; depth < plan.depth(); ++depth) {
        bound_s = std::max(bound_s, depth * alone_s + segments / segments_per_s);
        segments -= plan.count(depth);
    }
    return bound_s;
}

double predicted_s(const Plan& plan, Policy policy, const std::vector<CostModel>& costs) {
    nuwaxl::SimulationSettings settings{};
    settings.policy = policy;
    settings.devices = costs;
    settings.max_batch = kMaxBatch;
    settings.steps = kSteps;
    settings.decode_ahead = 1;
    return nuwaxl::simulate({plan}, settings).makespan_s;
}

// The video as one thread makes it, without a scheduler.
Video made_alone(const Plan& plan) {
    Video video(plan);
    for (std::int64_t id = 0; id < plan.size(); ++id) {
        Latents latents = video.begin(id);
        for (std::int64_t done = 0; done < kSteps; ++done) denoise(latents);
        video.finish(id, latents);
    }
    return video;
}

// Renders, prints a line, and returns whether all is as it must be.
bool run(const char* label, Policy policy, const Plan& plan, const std::vector<Device>& devices) {
    std::vector<CostModel> costs;
    for (const Device& device : devices) costs.push_back(device.cost);
    Scheduler scheduler(policy, costs, kMaxBatch);
    Video video(plan);
    std::vector<double> busy_s(devices.size());

    const auto start = std::chrono::steady_clock::now();
    {
        std::vector<std::jthread> threads;
        for (std::size_t i = 0; i < devices.size(); ++i) {
            threads.emplace_back([&, i] { busy_s[i] = run_device(scheduler, i, devices[i], video); });
        }
        scheduler.add(plan, kSteps);  // videos may come at any time,
        scheduler.close();            // until there will be no more: then next() ends
    }
    const double wall_s = since_s(start);

    double all_busy_s = 0.0;
    for (const double seconds : busy_s) all_busy_s += seconds;
    std::printf("%-24s %11.3f %11.3f %11.3f %10.0f %%\n", label, wall_s, predicted_s(plan, policy, costs),
                lower_bound_s(plan, devices), 100.0 * all_busy_s / (wall_s * static_cast<double>(devices.size())));
    return scheduler.finished() && video.complete_and_in_order() && video.frames() == made_alone(plan).frames();
}

// Measured by a program; made up here. A batch of 8 is three times as fast a segment as one segment alone.
CostModel cost_of_speed(double speed) {
    const std::vector<std::int64_t> batch_sizes = {1, 2, 4, 8};
    std::vector<double> steps_s;
    for (const std::int64_t batch : batch_sizes) steps_s.push_back((0.004 + 0.001 * batch) / speed);
    return {batch_sizes, steps_s};
}

}  // namespace

int main() {
    const Plan plan(3376, 16);  // 3376 frames by segments of 16
    std::vector<Device> devices = {{cost_of_speed(1.0)}, {cost_of_speed(1.0)}, {cost_of_speed(0.5)}, {cost_of_speed(0.25)}};
    std::printf("%lld segments of %lld steps on %zu devices\n\n", static_cast<long long>(plan.size()),
                static_cast<long long>(kSteps), devices.size());
    std::printf("%-24s %11s %11s %11s %12s\n", "policy", "makespan_s", "predicted_s", "bound_s", "utilisation");

    bool right = run("level", Policy::kLevel, plan, devices);
    right &= run("eager", Policy::kEager, plan, devices);
    right &= run("latency", Policy::kLatency, plan, devices);
    devices[1].breaks_at_step = 50;  // which prediction and bound know nothing of
    right &= run("eager, a device is lost", Policy::kEager, plan, devices);

    std::printf("\n%s\n", right ? "Each segment was generated exactly once, after its parent, as one thread makes it."
                                : "WRONG: a segment is missing, came twice, too early, or with other frames.");
    return right ? 0 : 1;
}
