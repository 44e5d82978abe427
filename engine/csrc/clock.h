// The virtual clock: what a render would take on devices that nobody needs to have, by the very scheduler that runs it.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "cost.h"
#include "plan.h"
#include "policy.h"
#include "scheduler.h"

namespace nuwaxl {

struct SimulationSettings {
    Policy policy;
    std::vector<CostModel> devices;
    std::int64_t max_batch;
    std::int64_t steps;                         // denoising steps of every segment
    std::vector<std::vector<Window>> windows;   // by plan; empty: nothing is decoded
    std::int64_t decode_ahead;
    bool record;
    bool joining = true;  // whether devices take newcomers between steps; without, what that is worth can be told
    std::function<void()> check = {};  // some times a second; what it throws ends the simulation
};

// What a device did without a change: one denoising step, or one window.
struct Span {
    std::int64_t device;
    double start_s;
    double end_s;
    Work::Kind kind;
    std::vector<Item> items;
};

struct Simulation {
    double makespan_s = 0.0;             // until all is done
    double diffusion_s = 0.0;            // until the last segment is done
    std::vector<double> busy_s;          // by device
    std::vector<double> first_frames_s;  // by plan: until its first window is decoded, or its first L frames are there
    std::int64_t batches = 0;            // of segments that a free device took
    std::int64_t joined = 0;             // segments that joined a batch
    std::int64_t steps = 0;              // calls of the step graph
    double mean_batch = 0.0;             // segments in a step, on average
    double cpu_s = 0.0;                  // processor time that the process took meanwhile
    std::vector<Span> spans;             // if they are recorded
};

// Renders `plans`, added together at time 0 by one thread. A step of b segments takes CostModel::step_s(b), a window
// decode_s; consumers take a clip at once, and all else takes no time. What ends at the same moment is reported before
// any device asks for more. Throws std::invalid_argument as Scheduler does, and what settings.check throws.
Simulation simulate(const std::vector<Plan>& plans, const SimulationSettings& settings);

}  // namespace nuwaxl
