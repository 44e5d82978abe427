#include "bindings.h"

NB_MODULE(_core, module) {
    module.doc() = "The native core of nuwaxl.engine: plan, scheduler and noise. Documented in _core.pyi.";
    nuwaxl::bind_plan(module);
    nuwaxl::bind_scheduler(module);
    nuwaxl::bind_noise(module);
}
