#include <nanobind/ndarray.h>

#include <limits>
#include <string>

#include "bindings.h"
#include "noise.h"
#include "refuse.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace nuwaxl {

namespace {

template <typename Unsigned>
Unsigned unsigned_argument(const char* name, nb::int_ value) {
    Unsigned result{};
    if (!nb::try_cast(value, result)) {
        refuse(std::string(name) + " between 0 and " + std::to_string(std::numeric_limits<Unsigned>::max()),
               nb::str(value).c_str(), "pass a number in that range");
    }
    return result;
}

bool is_contiguous(const nb::ndarray<>& array) {
    if (array.size() == 0) return true;
    std::int64_t expected = 1;
    for (std::size_t axis = array.ndim(); axis-- > 0;) {
        if (array.shape(axis) != 1 && array.stride(axis) != expected) return false;
        expected *= static_cast<std::int64_t>(array.shape(axis));
    }
    return true;
}

void fill(nb::int_ seed, nb::int_ depth, nb::int_ index, nb::int_ step, nb::ndarray<> out) {
    if (out.device_type() != nb::device::cpu::value || out.dtype() != nb::dtype<float>() || !is_contiguous(out)) {
        refuse("out as a C-contiguous float32 array in host memory", "another dtype, layout or device",
               "pass numpy.empty(shape, numpy.float32)");
    }
    const auto seed_bits = unsigned_argument<std::uint64_t>("seed", seed);
    const auto depth_bits = unsigned_argument<std::uint32_t>("depth", depth);
    const auto index_bits = unsigned_argument<std::uint32_t>("index", index);
    const auto step_bits = unsigned_argument<std::uint32_t>("step", step);
    const std::span<float> values(static_cast<float*>(out.data()), out.size());
    nb::gil_scoped_release released;
    normal_noise(seed_bits, depth_bits, index_bits, step_bits, values);
}

}  // namespace

void bind_noise(nb::module_& module) {
    // noconvert: a converted argument would be a copy, and the noise would be lost with it.
    module.def("normal_noise", &fill, "seed"_a, "depth"_a, "index"_a, "step"_a, "out"_a.noconvert());
}

}  // namespace nuwaxl
