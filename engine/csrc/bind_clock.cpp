#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string_view>
#include <utility>

#include "bind_items.h"
#include "bindings.h"
#include "clock.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace nuwaxl {

void bind_clock(nb::module_& module) {
    nb::class_<Span>(module, "Span")
        .def_ro("device", &Span::device)
        .def_ro("start_s", &Span::start_s)
        .def_ro("end_s", &Span::end_s)
        .def_prop_ro("kind", [](const Span& span) { return name_of(span.kind); })
        .def_prop_ro("items", [](const Span& span) { return pairs_of(span.items); });

    nb::class_<Simulation>(module, "Simulation")
        .def_ro("makespan_s", &Simulation::makespan_s)
        .def_ro("diffusion_s", &Simulation::diffusion_s)
        .def_ro("busy_s", &Simulation::busy_s)
        .def_ro("first_frames_s", &Simulation::first_frames_s)
        .def_ro("batches", &Simulation::batches)
        .def_ro("joined", &Simulation::joined)
        .def_ro("steps", &Simulation::steps)
        .def_ro("mean_batch", &Simulation::mean_batch)
        .def_ro("cpu_s", &Simulation::cpu_s)
        .def_ro("spans", &Simulation::spans);

    module.def(
        "simulate",
        [](const std::vector<Plan>& plans, std::string_view policy, std::vector<CostModel> devices,
           std::int64_t max_batch, std::int64_t steps, const std::optional<std::vector<Pairs>>& decode_windows,
           std::int64_t decode_ahead, bool record, bool joining) {
            SimulationSettings settings{parse_policy(policy), std::move(devices), max_batch, steps, {},
                                        decode_ahead,         record,             joining};
            if (decode_windows) {
                for (const Pairs& ranges : *decode_windows) settings.windows.push_back(windows_from(ranges));
            }
            settings.check = [] {
                const nb::gil_scoped_acquire held;
                if (PyErr_CheckSignals() != 0) throw nb::python_error();
            };
            nb::gil_scoped_release released;
            return simulate(plans, settings);
        },
        "plans"_a, nb::kw_only(), "policy"_a, "devices"_a, "max_batch"_a, "steps"_a, "decode_windows"_a = nb::none(),
        "decode_ahead"_a = 1, "record"_a = false, "joining"_a = true);
}

}  // namespace nuwaxl
