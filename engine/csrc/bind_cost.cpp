#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>

#include "bindings.h"
#include "cost.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace nuwaxl {

void bind_cost(nb::module_& module) {
    nb::class_<CostModel>(module, "CostModel")
        .def(nb::init<std::vector<std::int64_t>, std::vector<double>, double>(), "batch_sizes"_a, "steps_s"_a,
             "decode_s"_a = 0.0)
        .def("step_s", &CostModel::step_s, "batch"_a)
        .def("best_batch", &CostModel::best_batch, "max_batch"_a)
        .def("widest_batch", &CostModel::widest_batch, "max_batch"_a)
        .def_prop_ro("batch_sizes", &CostModel::batch_sizes)
        .def_prop_ro("steps_s", &CostModel::steps_s)
        .def_prop_ro("decode_s", &CostModel::decode_s)
        .def("__repr__", [](const CostModel& cost) {
            return nb::str("CostModel(batch_sizes={}, steps_s={}, decode_s={})")
                .format(cost.batch_sizes(), cost.steps_s(), cost.decode_s());
        });
}

}  // namespace nuwaxl
