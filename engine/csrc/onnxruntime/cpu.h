// The nodes of the domain `nuwaxl` on the CPU: a custom op takes the place of the function body on every provider, so
// without these a session of the CPU provider could not have the library registered. They are plain loops, for tests
// and for nodes that a GPU does not take: the bodies are faster on the CPU (docs/adr/0007). Sums are in float32.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "calls.h"

namespace nuwaxl {

// Calls the function for 0, 1, ..., count - 1, in any order, on any threads.
using Parallel = std::function<void(std::size_t count, const std::function<void(std::size_t)>& function)>;

// `type` as for plan_call, which has checked the shapes; `outputs` have the call's shapes.
void compute_on_cpu(Op op, const Attributes& attributes, const std::string& type, const std::vector<Shape>& shapes,
                    const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
                    const Parallel& parallel);

}  // namespace nuwaxl
