#include "bindings.h"

NB_MODULE(_core, module) {
    module.doc() = "The native core of nuwaxl.engine: plan, scheduler, virtual clock and noise. Documented in _core.pyi.";
    // A process that was forked from one that renders exits with references of threads that it has not.
    nanobind::set_leak_warnings(false);
    nuwaxl::bind_plan(module);
    nuwaxl::bind_cost(module);
    nuwaxl::bind_scheduler(module);
    nuwaxl::bind_clock(module);
    nuwaxl::bind_noise(module);
}
