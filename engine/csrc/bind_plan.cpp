#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <numeric>
#include <optional>
#include <sstream>
#include <string>

#include "bindings.h"
#include "plan.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace nuwaxl {

namespace {

using FrameArray = nb::ndarray<nb::numpy, std::int64_t, nb::ndim<1>>;

FrameArray frames_of(const Plan& plan, std::int64_t id) {
    auto frames = std::make_unique<std::vector<std::int64_t>>(plan.frames_of(id));
    std::int64_t* data = frames->data();
    const std::size_t size = frames->size();
    nb::capsule owner(frames.get(), [](void* held) noexcept { delete static_cast<std::vector<std::int64_t>*>(held); });
    frames.release();
    return FrameArray(data, {size}, owner);
}

std::vector<std::int64_t> children(const Plan& plan, std::int64_t id) {
    const IdRange range = plan.children(id);
    std::vector<std::int64_t> ids(static_cast<std::size_t>(range.count));
    std::iota(ids.begin(), ids.end(), range.first);
    return ids;
}

const char* kind_name(const Plan& plan) { return plan.kind() == Plan::Kind::kTree ? "tree" : "autoregressive"; }

std::string repr(const Segment& segment) {
    std::ostringstream out;
    out << "Segment(depth=" << segment.depth << ", index=" << segment.index << ", first_frame=" << segment.first_frame
        << ", stride=" << segment.stride << ", parent=" << segment.parent << ")";
    return out.str();
}

std::string repr(const Plan& plan) {
    std::ostringstream out;
    if (plan.kind() == Plan::Kind::kTree) {
        out << "Plan(frames=" << plan.frames() << ", length=" << plan.length() << ", depth=" << plan.depth() << ")";
    } else {
        out << "Plan.autoregressive(frames=" << plan.frames() << ", length=" << plan.length()
            << ", overlap=" << plan.overlap() << ")";
    }
    return out.str();
}

}  // namespace

void bind_plan(nb::module_& module) {
    nb::class_<Segment>(module, "Segment")
        .def_ro("depth", &Segment::depth)
        .def_ro("index", &Segment::index)
        .def_ro("first_frame", &Segment::first_frame)
        .def_ro("stride", &Segment::stride)
        .def_ro("parent", &Segment::parent)
        .def("__repr__", [](const Segment& segment) { return repr(segment); });

    nb::class_<Plan>(module, "Plan")
        .def(nb::init<std::int64_t, std::int64_t, std::optional<std::int64_t>>(), "frames"_a, "length"_a,
             "depth"_a = nb::none())
        .def_static("autoregressive", &Plan::autoregressive, "frames"_a, "length"_a, "overlap"_a)
        .def_static("span", &Plan::span, "length"_a, "depth"_a)
        .def_prop_ro("kind", &kind_name)
        .def_prop_ro("frames", &Plan::frames)
        .def_prop_ro("length", &Plan::length)
        .def_prop_ro("depth", &Plan::depth)
        .def_prop_ro("counts", &Plan::counts)
        .def("__len__", &Plan::size)
        .def("segment", &Plan::segment, "id"_a)
        .def("frames_of", &frames_of, "id"_a)
        .def("known", &Plan::known, "id"_a)
        .def("children", &children, "id"_a)
        .def("origin_of", &Plan::origin_of, "frame"_a)
        .def("__repr__", [](const Plan& plan) { return repr(plan); });
}

}  // namespace nuwaxl
