#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <string_view>
#include <utility>

#include "bind_items.h"
#include "bindings.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace nuwaxl {

void bind_scheduler(nb::module_& module) {
    nb::class_<Work>(module, "Work")
        .def_ro("id", &Work::id)
        .def_prop_ro("kind", [](const Work& work) { return name_of(work.kind); })
        .def_prop_ro("items", [](const Work& work) { return pairs_of(work.items); })
        .def_ro("device", &Work::device)
        .def("__repr__", [](const Work& work) {
            return nb::str("Work(id={}, kind='{}', items={}, device={})")
                .format(work.id, name_of(work.kind), pairs_of(work.items), work.device);
        });

    // The scheduler's lock is never held while Python runs, so only what takes long has to give up the GIL: waiting,
    // and looking at the batch sizes of many devices.
    nb::class_<Scheduler>(module, "Scheduler")
        .def(
            "__init__",
            [](Scheduler* self, std::string_view policy, std::vector<CostModel> devices, std::int64_t max_batch) {
                nb::gil_scoped_release released;
                new (self) Scheduler(parse_policy(policy), std::move(devices), max_batch);
            },
            nb::kw_only(), "policy"_a, "devices"_a, "max_batch"_a)
        .def(
            "add",
            [](Scheduler& self, const Plan& plan, std::int64_t steps, const Pairs& windows, std::int64_t ahead,
               const std::vector<std::int64_t>& finished) {
                return self.add(plan, steps, windows_from(windows), ahead, finished);
            },
            "plan"_a, nb::kw_only(), "steps"_a, "decode_windows"_a = Pairs(), "decode_ahead"_a = 1,
            "finished"_a = std::vector<std::int64_t>())
        .def("close", &Scheduler::close)
        .def(
            "next",
            [](Scheduler& self, std::int64_t device) {
                nb::gil_scoped_release released;
                return self.next(device);
            },
            "device"_a)
        .def("try_next", &Scheduler::try_next, "device"_a)
        .def("join", [](Scheduler& self, std::int64_t device) { return pairs_of(self.join(device)); }, "device"_a)
        .def("advance", &Scheduler::advance, "device"_a)
        .def(
            "done",
            [](Scheduler& self, std::int64_t device, const Pairs& items) { self.done(device, items_from(items)); },
            "device"_a, "items"_a)
        .def("leave", &Scheduler::leave, "device"_a)
        .def("arrived", &Scheduler::arrived, "device"_a)
        .def("lost", &Scheduler::lost, "device"_a)
        .def("fail", &Scheduler::fail, "job"_a)
        .def("consumed", &Scheduler::consumed, "job"_a, "window"_a)
        .def("stop", &Scheduler::stop)
        .def_prop_ro("stopped", &Scheduler::stopped)
        .def_prop_ro("finished", &Scheduler::finished)
        .def("job_finished", &Scheduler::job_finished, "job"_a)
        .def("failed", &Scheduler::failed, "job"_a)
        .def("held", [](const Scheduler& self, std::int64_t device) { return pairs_of(self.held(device)); }, "device"_a);
}

}  // namespace nuwaxl
