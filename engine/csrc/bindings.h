// One function a file binds one part of the core into the Python module.
#pragma once

#include <nanobind/nanobind.h>

namespace nuwaxl {

void bind_plan(nanobind::module_& module);
void bind_cost(nanobind::module_& module);
void bind_scheduler(nanobind::module_& module);
void bind_clock(nanobind::module_& module);
void bind_noise(nanobind::module_& module);

}  // namespace nuwaxl
