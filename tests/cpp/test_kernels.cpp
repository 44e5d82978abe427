// What is launched for a node, on a stub of the CUDA driver that records it.
#include <dlfcn.h>

#include <cstdint>
#include <deque>
#include <stdexcept>

#include "check.h"
#include "onnxruntime/calls.h"
#include "onnxruntime/driver.h"
#include "onnxruntime/kernels.h"
#include "stub_libcuda.h"

using nuwaxl::Attributes;
using nuwaxl::Call;
using nuwaxl::Grid;
using nuwaxl::Kernels;
using nuwaxl::Op;
using nuwaxl::plan_call;
using nuwaxl::Scratch;
using nuwaxl::Shape;

namespace {

template <typename Function>
Function stub(const char* name) {
    void* library = dlopen(NUWAXL_STUB_LIBCUDA, RTLD_NOW);
    return reinterpret_cast<Function>(dlsym(library, name));
}

std::vector<StubLaunch>& launches() { return *stub<std::vector<StubLaunch>* (*)()>("stub_launches")(); }
// Bytes of every allocation, -1 once it is freed.
std::deque<long long>& memory() { return *stub<std::deque<long long>* (*)()>("stub_memory")(); }
std::vector<std::string>& loaded() { return *stub<std::vector<std::string>* (*)()>("stub_loaded")(); }
void set_device(int device) { stub<void (*)(int)>("stub_set_device")(device); }
// The call of this name fails from now on; "" for none.
void fail(const char* call) { stub<void (*)(const char*)>("stub_fail")(call); }

Kernels fresh() {
    launches().clear();
    loaded().clear();
    memory().clear();
    set_device(0);
    fail("");
    return Kernels([] { return nuwaxl::cuda::Driver::load(NUWAXL_STUB_LIBCUDA); });
}

nuwaxl::Kernel kernel(const char* entry, Grid grid, unsigned shared_bytes = 0) {
    const std::string image = "cubin of " + std::string(entry);
    return {entry, {image.c_str(), image.c_str() + image.size() + 1}, grid, 4, shared_bytes, 2};
}

// Of nodes that need none.
Scratch& scratch() {
    static Scratch none;
    return none;
}

const void* in(std::uintptr_t address) { return reinterpret_cast<const void*>(address); }
void* out(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

std::string thrown(const std::function<void()>& call) {
    try {
        call();
    } catch (const std::exception& error) {
        return error.what();
    }
    return "";
}

Call attention(std::int64_t batch) {
    return plan_call(Op::kTemporalAttention, {{batch, 16, 1024, 960}}, {8, 0, 0.0F}, "float16");
}

}  // namespace

TEST(a_launch_has_the_grid_the_block_the_stream_and_the_arguments_in_order) {
    Kernels kernels = fresh();
    // qkv, pixels, out and two hidden pointers; 8 pairs a pixel, 4 a program.
    kernels.add(0, attention(3).kernel, kernel("pippp", {1, 8, 4}));
    kernels.launch(attention(3), {in(0x1000)}, {out(0x2000)}, out(0x77), scratch());
    CHECK(launches().size() == 1);
    const StubLaunch& launch = launches()[0];
    CHECK(launch.grid == 3 * (1024 * 8 / 4));
    CHECK(launch.block == 4 * 32);
    CHECK(launch.shared_bytes == 0);
    CHECK(launch.stream == out(0x77));
    CHECK((launch.parameters == std::vector<long long>{0x1000, 1024, 0x2000, 0, 0}));
}

TEST(a_convolution_without_the_injection_takes_x_for_what_it_does_not_read) {
    Kernels kernels = fresh();
    const Call call = plan_call(Op::kTemporalConv, {{2, 4, 9, 16}, {3, 16, 16}, {16}}, {}, "float32");
    kernels.add(0, call.kernel, kernel("pppppippp", {1, 4, 64}));
    kernels.launch(call, {in(0x100), in(0x200), in(0x300)}, {out(0x400)}, nullptr, scratch());
    CHECK((launches()[0].parameters == std::vector<long long>{0x100, 0x200, 0x300, 0x100, 0x100, 9, 0x400, 0, 0}));
    CHECK(launches()[0].grid == 2 * 1);
}

namespace {

Call norm(std::int64_t batch, std::int64_t pixels, std::int64_t channels = 320) {
    const std::vector<Shape> inputs{{batch, 16, pixels, channels}, {channels}, {channels}};
    return plan_call(Op::kGroupNormSilu, inputs, {0, 32, 1e-5F}, "float16");
}

}  // namespace

TEST(a_group_norm_is_held_where_whole_groups_fill_a_tile_and_walked_otherwise) {
    const auto tile = [](std::int64_t channels, std::int64_t pixels) {
        const std::string name = norm(1, pixels, channels).kernel;
        const std::string held = "group_norm_silu_held-L16-c" + std::to_string(channels) + "-g32-e1e-05-p";
        if (name.rfind(held, 0) != 0) return 0;
        CHECK(norm(1, pixels, channels).statistics.empty() && norm(1, pixels, channels).scratch_bytes == 0);
        return std::stoi(name.substr(held.size()));
    };
    // As kernels/frames.py: tests/kernels/test_group_norm.py has the same.
    CHECK(tile(320, 1) == 1 && tile(320, 45) == 64 && tile(320, 1024) == 1024 && tile(320, 1025) == 0);
    CHECK(tile(960, 1024) == 1024 && tile(512, 1024) == 1024);
    CHECK(tile(1920, 256) == 256 && tile(1920, 512) == 512 && tile(1920, 513) == 0);
    CHECK(tile(640, 256) == 0 && tile(1280, 64) == 0 && tile(3840, 16) == 0);
    CHECK(norm(2, 256, 640).kernel == "group_norm_silu-L16-c640-g32-e1e-05-float16");
    CHECK(norm(2, 1023, 640).statistics.empty() && norm(2, 1023, 640).scratch_bytes == 0);
}

TEST(a_group_norm_of_large_frames_is_two_kernels_with_memory_between_them) {
    Kernels kernels = fresh();
    // 1024 pixels are 4 parts of 256, 1025 are 5; from 16 385 on there are more than 64 of them, and parts grow.
    CHECK(norm(1, 1024, 640).scratch_bytes == 16 * 4 * 2 * 640 * 4);
    CHECK(norm(1, 16384).statistics == "group_norm_statistics-L16-c320-g32-p256-float16");
    CHECK(norm(1, 16385).statistics == "group_norm_statistics-L16-c320-g32-p512-float16");
    CHECK(norm(2, 1025).kernel == "group_norm_silu_of_parts-L16-c320-g32-e1e-05-p256-float16");
    CHECK(norm(2, 1025).statistics == "group_norm_statistics-L16-c320-g32-p256-float16");
    CHECK(norm(2, 1025).scratch_bytes == 2 * 16 * 5 * 2 * 320 * 4);
    CHECK(norm(1, 65536).statistics == "group_norm_statistics-L16-c320-g32-p1024-float16");
    CHECK(norm(1, 65536).scratch_bytes == 16 * 64 * 2 * 320 * 4);

    kernels.add(0, norm(1, 1025).statistics, kernel("pippp", {48, 1, 256}));
    kernels.add(0, norm(1, 1025).kernel, kernel("ppppippp", {48, 1, 256}));
    const auto launch = [&](Scratch& between, std::int64_t batch) {
        kernels.launch(norm(batch, 1025), {in(0x100), in(0x200), in(0x300)}, {out(0x400)}, out(0x77), between);
    };
    {
        Scratch between;
        launch(between, 1);
        CHECK(launches().size() == 2);
        const auto address = launches()[0].parameters[2];
        CHECK((launches()[0].parameters == std::vector<long long>{0x100, 1025, address, 0, 0}));
        CHECK((launches()[1].parameters == std::vector<long long>{0x100, 0x200, 0x300, address, 1025, 0x400, 0, 0}));
        CHECK(launches()[0].grid == 48 * 5 && launches()[1].grid == 48 * 5);
        CHECK(launches()[0].stream == out(0x77) && launches()[1].stream == out(0x77));

        // A larger batch takes more, and leaves what captured graphs have; a smaller one takes none.
        launch(between, 2);
        launch(between, 1);
        const std::int64_t one = norm(1, 1025).scratch_bytes;
        CHECK((memory() == std::deque<long long>{one, 2 * one}));
        CHECK(launches()[2].parameters[2] != address);
        CHECK(launches()[4].parameters[2] == launches()[2].parameters[2]);
        launch(between, 0);
        CHECK(launches().size() == 6);
    }
    CHECK((memory() == std::deque<long long>{-1, -1}));
}

TEST(a_module_is_loaded_once_and_much_shared_memory_is_asked_for) {
    Kernels kernels = fresh();
    kernels.add(0, attention(1).kernel, kernel("pippp", {1, 8, 4}, 100 << 10));
    for (const int batch : {1, 5}) kernels.launch(attention(batch), {in(0x1000)}, {out(0x2000)}, nullptr, scratch());
    CHECK(loaded().size() == 1);
    CHECK(launches().size() == 2);
    CHECK(launches()[1].shared_limit == 100 << 10);
    CHECK(launches()[1].shared_bytes == 100 << 10);
    CHECK(launches()[1].grid == 5 * launches()[0].grid);
}

TEST(every_device_has_its_own_kernels) {
    Kernels kernels = fresh();
    kernels.add(0, attention(1).kernel, kernel("pippp", {1, 8, 4}));
    set_device(1);
    const auto launch = [&] { kernels.launch(attention(1), {in(0x1000)}, {out(0x2000)}, nullptr, scratch()); };
    CHECK(check::refuses(launch));
    nuwaxl::Kernel other = kernel("pippp", {1, 8, 2});
    kernels.add(1, attention(1).kernel, other);
    launch();
    CHECK(launches()[0].grid == 1024 * 8 / 2);
}

TEST(a_kernel_is_loaded_before_its_launch_where_that_is_asked_for) {
    Kernels kernels = fresh();
    kernels.add(0, attention(1).kernel, kernel("pippp", {1, 8, 4}));
    kernels.load(attention(1).kernel);
    CHECK(loaded().size() == 1 && launches().empty());
    kernels.launch(attention(1), {in(0x1000)}, {out(0x2000)}, nullptr, scratch());
    CHECK(loaded().size() == 1 && launches().size() == 1);
    CHECK(check::refuses([&] { kernels.load("another"); }));
    set_device(1);
    CHECK(check::refuses([&] { kernels.load(attention(1).kernel); }));
    set_device(0);
    fail("cuModuleLoadData");
    kernels.add(0, "refused", kernel("pippp", {1, 8, 4}));
    CHECK(thrown([&] { kernels.load("refused"); }).starts_with("expected cuModuleLoadData to succeed; found "));
}

TEST(the_same_kernel_again_changes_nothing) {
    Kernels kernels = fresh();
    kernels.add(0, attention(1).kernel, kernel("pippp", {1, 8, 4}));
    kernels.add(0, attention(1).kernel, kernel("pippp", {9, 8, 4}));
    kernels.launch(attention(1), {in(0x1000)}, {out(0x2000)}, nullptr, scratch());
    CHECK(launches()[0].grid == 1024 * 8 / 4);
}

TEST(no_programs_is_no_launch_and_too_many_are_refused) {
    Kernels kernels = fresh();
    kernels.add(0, attention(1).kernel, kernel("pippp", {1, 8, 4}));
    kernels.launch(attention(0), {in(0x1000)}, {out(0x2000)}, nullptr, scratch());
    CHECK(launches().empty());
    CHECK(check::refuses([&] { kernels.launch(attention(2'000'000), {in(0x1000)}, {out(0x2000)}, nullptr, scratch()); }));
}

TEST(an_unaligned_tensor_is_refused) {
    Kernels kernels = fresh();
    kernels.add(0, attention(1).kernel, kernel("pippp", {1, 8, 4}));
    CHECK(check::refuses([&] { kernels.launch(attention(1), {in(0x1004)}, {out(0x2000)}, nullptr, scratch()); }));
    CHECK(check::refuses([&] { kernels.launch(attention(1), {in(0x1000)}, {out(0x2008)}, nullptr, scratch()); }));
    CHECK(launches().empty());
}

TEST(rows_of_the_update_may_be_at_any_address) {
    Kernels kernels = fresh();
    const Shape x{2, 16, 4, 8, 8};
    const Call call = plan_call(Op::kGuidedUpdate, {x, x, x, x, x, {2, 6}, {2}}, {}, "float32");
    kernels.add(0, call.kernel, kernel("pppppppippp", {1, 1, 1024}));
    std::vector<const void*> inputs{in(0x100), in(0x200), in(0x300), in(0x400), in(0x500), in(0x618), in(0x704)};
    kernels.launch(call, inputs, {out(0x800), out(0x900)}, nullptr, scratch());
    CHECK(launches().size() == 1);
    inputs[4] = in(0x504);  // of a tensor still not
    CHECK(check::refuses([&] { kernels.launch(call, inputs, {out(0x800), out(0x900)}, nullptr, scratch()); }));
}

TEST(errors_of_the_driver_are_told_by_name_and_what_to_do_by_their_cause) {
    Kernels kernels = fresh();
    nuwaxl::Kernel bad = kernel("pippp", {1, 8, 4});
    bad.image = {'b', 'a', 'd', '\0'};
    kernels.add(0, attention(1).kernel, bad);
    const auto launch = [&] { kernels.launch(attention(1), {in(0x1000)}, {out(0x2000)}, nullptr, scratch()); };
    CHECK(thrown(launch) ==
          "expected cuModuleLoadData to succeed; found CUDA_ERROR_INVALID_IMAGE; update an old driver, or export the "
          "bundle again with --sm for this GPU");
    const auto driver = nuwaxl::cuda::Driver::load(NUWAXL_STUB_LIBCUDA);
    CHECK(thrown([&] { driver.check(2, "cuModuleLoadData"); }).ends_with("; free memory of the GPU"));
    CHECK(thrown([&] { driver.check(700, "cuModuleLoadData"); }).ends_with("; see the driver's log"));
}

TEST(every_call_of_the_driver_that_fails_is_told) {
    const Call norm = plan_call(Op::kGroupNorm, {{1, 16, 1025, 320}, {320}, {320}}, {0, 32, 1e-5F}, "float16");
    for (const char* const call : {"cuCtxGetDevice", "cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute",
                                   "cuMemAlloc", "cuLaunchKernel"}) {
        Kernels kernels = fresh();
        kernels.add(0, norm.statistics, kernel("pippp", {48, 1, 256}, 100 << 10));
        kernels.add(0, norm.kernel, kernel("ppppippp", {48, 1, 256}, 100 << 10));
        Scratch between;
        const auto launch = [&] {
            kernels.launch(norm, {in(0x100), in(0x200), in(0x300)}, {out(0x400)}, nullptr, between);
        };
        fail(call);
        CHECK(thrown(launch).starts_with("expected " + std::string(call) +
                                         " to succeed; found CUDA_ERROR_ILLEGAL_ADDRESS; "));
        fail("");
        CHECK(thrown(launch).empty());  // nothing half made is kept
    }
}

TEST(a_machine_without_the_driver_is_told_what_to_do) {
    Kernels kernels([] { return nuwaxl::cuda::Driver::load("libno-such-driver.so.1"); });
    kernels.add(0, attention(1).kernel, kernel("pippp", {1, 8, 4}));
    const std::string said = thrown([&] { kernels.launch(attention(1), {in(0x1000)}, {out(0x2000)}, nullptr, scratch()); });
    CHECK(said.find("expected the CUDA driver; found ") == 0);
    CHECK(said.find("install the NVIDIA driver") != std::string::npos);
}

int main() { return check::run_all(); }
