#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <string_view>
#include <utility>

#include "bindings.h"
#include "scheduler.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace nuwaxl {

namespace {

const char* kind_name(const Work& work) { return work.kind == Work::Kind::kDiffuse ? "diffuse" : "decode"; }

std::string repr(const Work& work) {
    std::string items;
    for (const std::int64_t item : work.items) items += (items.empty() ? "" : ", ") + std::to_string(item);
    return "Work(id=" + std::to_string(work.id) + ", kind='" + kind_name(work) + "', items=[" + items +
           "], depth=" + std::to_string(work.depth) + ", device=" + std::to_string(work.device) + ")";
}

std::vector<Window> windows_from(const std::vector<std::pair<std::int64_t, std::int64_t>>& ranges) {
    std::vector<Window> windows;
    windows.reserve(ranges.size());
    for (const auto& [first, last] : ranges) windows.push_back({first, last});
    return windows;
}

}  // namespace

void bind_scheduler(nb::module_& module) {
    nb::class_<Work>(module, "Work")
        .def_ro("id", &Work::id)
        .def_prop_ro("kind", &kind_name)
        .def_ro("items", &Work::items)
        .def_ro("depth", &Work::depth)
        .def_ro("device", &Work::device)
        .def("__repr__", [](const Work& work) { return repr(work); });

    // The scheduler's lock is never held while Python runs, so only the blocking call has to give up the GIL.
    nb::class_<Scheduler>(module, "Scheduler")
        .def(
            "__init__",
            [](Scheduler* self, const Plan& plan, std::string_view policy, std::int64_t devices, std::int64_t max_batch,
               const std::vector<std::pair<std::int64_t, std::int64_t>>& decode_windows, std::int64_t decode_ahead) {
                new (self) Scheduler(plan, parse_policy(policy), devices, max_batch, windows_from(decode_windows),
                                     decode_ahead);
            },
            "plan"_a, nb::kw_only(), "policy"_a, "devices"_a, "max_batch"_a, "decode_windows"_a, "decode_ahead"_a)
        .def(
            "next",
            [](Scheduler& self, std::int64_t device) {
                nb::gil_scoped_release released;
                return self.next(device);
            },
            "device"_a)
        .def("try_next", &Scheduler::try_next, "device"_a)
        .def("done", &Scheduler::done, "work"_a)
        .def("consumed", &Scheduler::consumed, "window"_a)
        .def("stop", &Scheduler::stop)
        .def_prop_ro("stopped", &Scheduler::stopped)
        .def_prop_ro("finished", &Scheduler::finished);
}

}  // namespace nuwaxl
