// The custom-op library as ONNX Runtime calls it, by a stand-in for its table of functions: whatever fails inside comes
// back as a status, and nothing is thrown into C.
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "check.h"
#include "onnxruntime/ort_abi.h"

namespace ort = nuwaxl::ort;

extern "C" ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base);
extern "C" const char* nuwaxl_load_kernel(const char* name);
extern "C" const char* nuwaxl_add_kernel(int device, const char* name, const char* entry, const char* image,
                                         std::size_t bytes, std::int64_t fixed, std::int64_t per_item,
                                         std::int64_t block, unsigned warps, unsigned shared_bytes, unsigned hidden);

namespace {

// Allocations that still succeed; negative: all do.
std::atomic<long> memory{-1};

void* allocate(std::size_t bytes) {
    if (memory == 0) throw std::bad_alloc();
    if (memory > 0) --memory;
    if (void* place = std::malloc(bytes)) return place;
    throw std::bad_alloc();
}

}  // namespace

void* operator new(std::size_t bytes) { return allocate(bytes); }
void* operator new[](std::size_t bytes) { return allocate(bytes); }
void operator delete(void* place) noexcept { std::free(place); }
void operator delete[](void* place) noexcept { std::free(place); }
void operator delete(void* place, std::size_t) noexcept { std::free(place); }
void operator delete[](void* place, std::size_t) noexcept { std::free(place); }

// What is opaque to the library.
namespace nuwaxl::ort {

struct Status {
    std::array<char, 2048> text;
};
struct Value {
    std::vector<std::int64_t> shape;
    std::vector<float> data;
};
struct KernelContext {
    std::vector<Value> inputs;
    std::vector<Value> outputs;
};

}  // namespace nuwaxl::ort

namespace {

std::vector<const ort::CustomOp*> known;
ort::Status status;  // the last one that was made
int infos = 0;       // tensor infos that were not released
bool thrown_into_c = false;

ort::Status* create_status(int, const char* text) {
    std::snprintf(status.text.data(), status.text.size(), "%s", text);
    return &status;
}

ort::Status* create_domain(const char*, ort::Domain** domain) {
    *domain = reinterpret_cast<ort::Domain*>(&known);
    return nullptr;
}

ort::Status* domain_add(ort::Domain*, const ort::CustomOp* op) {
    known.push_back(op);
    return nullptr;
}

ort::Status* add_domain(ort::SessionOptions*, ort::Domain*) { return nullptr; }

ort::Status* attribute(const ort::KernelInfo*, const char*, std::int64_t* value) {
    *value = 2;
    return nullptr;
}

ort::Status* get_input(const ort::KernelContext* context, std::size_t i, const ort::Value** value) {
    *value = &context->inputs[i];
    return nullptr;
}

ort::Status* get_output(ort::KernelContext* context, std::size_t i, const std::int64_t*, std::size_t,
                        ort::Value** value) {
    *value = &context->outputs[i];
    return nullptr;
}

ort::Status* get_info(const ort::Value* value, ort::TensorInfo** info) {
    ++infos;
    *info = reinterpret_cast<ort::TensorInfo*>(const_cast<ort::Value*>(value));
    return nullptr;
}

void release_info(ort::TensorInfo*) { --infos; }

ort::Status* get_rank(const ort::TensorInfo* info, std::size_t* rank) {
    *rank = reinterpret_cast<const ort::Value*>(info)->shape.size();
    return nullptr;
}

ort::Status* get_shape(const ort::TensorInfo* info, std::int64_t* shape, std::size_t rank) {
    std::memcpy(shape, reinterpret_cast<const ort::Value*>(info)->shape.data(), rank * sizeof *shape);
    return nullptr;
}

ort::Status* get_data(ort::Value* value, void** data) {
    *data = value->data.data();
    return nullptr;
}

ort::Status* parallel_for(const ort::KernelContext*, void (*function)(void*, std::size_t), std::size_t count,
                          std::size_t, void* of) {
    try {
        for (std::size_t i = 0; i < count; ++i) function(of, i);
    } catch (...) {
        thrown_into_c = true;
    }
    return nullptr;
}

void* const* table() {
    static std::array<void*, 275> slots{};
    const auto set = [](ort::Slot slot, auto* function) { slots[slot] = reinterpret_cast<void*>(function); };
    set(ort::kCreateStatus, create_status);
    set(ort::kCreateCustomOpDomain, create_domain);
    set(ort::kCustomOpDomainAdd, domain_add);
    set(ort::kAddCustomOpDomain, add_domain);
    set(ort::kGetTensorMutableData, get_data);
    set(ort::kGetDimensionsCount, get_rank);
    set(ort::kGetDimensions, get_shape);
    set(ort::kGetTensorTypeAndShape, get_info);
    set(ort::kKernelInfoGetAttributeInt64, attribute);
    set(ort::kKernelContextGetInput, get_input);
    set(ort::kKernelContextGetOutput, get_output);
    set(ort::kReleaseTensorTypeAndShapeInfo, release_info);
    set(ort::kKernelContextParallelFor, parallel_for);
    return slots.data();
}

// What the call says in the end, after it was tried with memory for 0, 1, 2, ... allocations, and each time said that
// there was none left.
template <typename Call>
std::string with_little_memory(Call call, long least) {
    for (long left = 0;; ++left) {
        std::string said;
        said.reserve(2048);
        try {
            memory = left;
            const char* text = call();
            memory = -1;
            said = text != nullptr ? text : "";
        } catch (...) {
            memory = -1;
            thrown_into_c = true;
            return "thrown";
        }
        if (said.find("memory of the host; found none left") != std::string::npos) continue;
        CHECK(left >= least);
        return said;
    }
}

const char* text_of(const ort::Status* made) { return made != nullptr ? made->text.data() : nullptr; }

void register_ops() {
    known.reserve(64);
    const ort::ApiBase base{[](std::uint32_t) { return table(); }, nullptr};
    CHECK(with_little_memory([&] { return text_of(RegisterCustomOps(nullptr, &base)); }, 0).empty());
}

const ort::CustomOp& float32_op_on_cpu(const std::string& name) {
    if (known.empty()) register_ops();
    for (const ort::CustomOp* op : known) {
        if (op->get_name(op) == name && op->get_input_type(op, 0) == ort::kFloat &&
            op->get_execution_provider(op) == std::string("CPUExecutionProvider")) {
            return *op;
        }
    }
    throw std::logic_error("no op " + name);
}

ort::KernelContext convolution(std::int64_t taps) {
    const std::int64_t b = 1, length = 2, p = 3, c = 2;
    const auto values = [](std::int64_t count) { return std::vector<float>(static_cast<std::size_t>(count), 1.0F); };
    return {{{{b, length, p, c}, values(b * length * p * c)}, {{taps, c, c}, values(taps * c * c)}, {{c}, values(c)}},
            {{{}, values(b * length * p * c)}}};
}

}  // namespace

TEST(registering_without_memory_is_a_status_and_can_be_repeated) {
    register_ops();
    CHECK(known.size() == 36 && !thrown_into_c);
}

TEST(a_node_without_memory_for_it_is_a_status) {
    const ort::CustomOp& op = float32_op_on_cpu("TemporalAttention");
    void* kernel = nullptr;
    CHECK(with_little_memory([&] { return text_of(op.create_kernel_v2(&op, table(), nullptr, &kernel)); }, 1).empty());
    CHECK(kernel != nullptr && !thrown_into_c);
    op.kernel_destroy(kernel);
}

TEST(a_call_without_memory_is_a_status_wherever_it_runs_out) {
    const ort::CustomOp& op = float32_op_on_cpu("TemporalConv");
    void* kernel = nullptr;
    CHECK(op.create_kernel_v2(&op, table(), nullptr, &kernel) == nullptr);
    ort::KernelContext context = convolution(1);
    const auto run = [&] { return text_of(op.kernel_compute_v2(kernel, &context)); };
    CHECK(with_little_memory(run, 10).empty());
    CHECK(!thrown_into_c && infos == 0);
    for (const float value : context.outputs[0].data) CHECK(value == 3.0F);  // two channels and the bias
    op.kernel_destroy(kernel);
}

TEST(what_does_not_fit_a_node_is_a_status_that_names_it) {
    const ort::CustomOp& op = float32_op_on_cpu("TemporalConv");
    void* kernel = nullptr;
    CHECK(op.create_kernel_v2(&op, table(), nullptr, &kernel) == nullptr);
    ort::KernelContext context = convolution(2);
    const std::string said = with_little_memory([&] { return text_of(op.kernel_compute_v2(kernel, &context)); }, 1);
    CHECK(said.starts_with("nuwaxl::TemporalConv: expected weight (k, c, c) with an odd k"));
    op.kernel_destroy(kernel);
}

TEST(kernels_are_added_and_loaded_without_throwing_into_c) {
    const std::string name(64, 'k');
    const auto add = [&] { return nuwaxl_add_kernel(0, name.c_str(), "entry", "image", 6, 1, 0, 0, 4, 0, 2); };
    CHECK(with_little_memory(add, 2).empty());
    // There is no driver, or this thread has no context.
    CHECK(with_little_memory([&] { return nuwaxl_load_kernel(name.c_str()); }, 1).starts_with("expected "));
    CHECK(!thrown_into_c);
}

int main() { return check::run_all(); }
