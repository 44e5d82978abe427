#include "kernels.h"

#include <cstdint>
#include <limits>

#include "../refuse.h"

namespace nuwaxl {

namespace {

constexpr int kMaxDynamicSharedSizeBytes = 8;           // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr unsigned kSharedBytesWithoutAsking = 48 << 10;
constexpr std::uintptr_t kAlignment = 16;               // what the kernels were promised of tensors

// ONNX Runtime aligns all that it allocates itself.
void check_aligned(const void* pointer) {
    if (reinterpret_cast<std::uintptr_t>(pointer) % kAlignment != 0) {
        refuse("tensors at addresses that are multiples of 16", "another", "bind buffers that are aligned");
    }
}

}  // namespace

void Kernels::add(int device, const std::string& name, Kernel kernel) {
    const std::lock_guard lock(mutex_);
    entries_.try_emplace({device, name}, Entry{std::move(kernel)});
}

void Kernels::load(const std::string& name) { find(name); }

void Kernels::launch(const Call& call, const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
                     cuda::Stream stream, Scratch& scratch) {
    std::vector<const void*> pointers;
    for (const int input : call.inputs) pointers.push_back(inputs[static_cast<std::size_t>(input)]);
    for (std::size_t i = 0; i + call.unaligned < pointers.size(); ++i) check_aligned(pointers[i]);
    for (const void* pointer : outputs) check_aligned(pointer);
    if (call.batch == 0) return;
    if (!call.statistics.empty()) {
        void* between = reserve(scratch, call.scratch_bytes);
        put(call.statistics, call, {pointers.front()}, {between}, stream);
        pointers.push_back(between);
    }
    put(call.kernel, call, std::move(pointers), outputs, stream);
}

void Kernels::put(const std::string& name, const Call& call, std::vector<const void*> inputs,
                  std::vector<void*> outputs, cuda::Stream stream) {
    const auto [kernel, function] = find(name);
    const std::int64_t programs = kernel->grid.programs(call.batch, call.items);
    if (programs == 0) return;
    if (programs > std::numeric_limits<std::int32_t>::max()) {
        refuse("at most 2^31 - 1 programs", std::to_string(programs), "use a smaller --max-batch");
    }
    auto items = static_cast<std::int32_t>(call.items);
    void* null = nullptr;
    std::vector<void*> parameters;
    for (const void*& pointer : inputs) parameters.push_back(&pointer);
    parameters.push_back(&items);
    for (void*& pointer : outputs) parameters.push_back(&pointer);
    for (unsigned i = 0; i < kernel->hidden; ++i) parameters.push_back(&null);
    driver_->check(driver_->launch_kernel(function, static_cast<unsigned>(programs), 1, 1, 32 * kernel->warps, 1, 1,
                                          kernel->shared_bytes, stream, parameters.data(), nullptr),
                   "cuLaunchKernel");
}

// The kernel of the current device, loaded.
std::pair<const Kernel*, cuda::Function> Kernels::find(const std::string& name) {
    const std::lock_guard lock(mutex_);
    int device = 0;
    driver().check(driver().ctx_get_device(&device), "cuCtxGetDevice");
    const auto found = entries_.find({device, name});
    if (found == entries_.end()) {
        refuse("a compiled kernel " + name + " for device " + std::to_string(device), "none",
               "export the bundle again with --sm for this GPU");
    }
    return {&found->second.kernel, loaded(found->second)};  // entries stay where they are, and are never changed
}

void* Kernels::reserve(Scratch& scratch, std::int64_t bytes) {
    const std::lock_guard lock(mutex_);
    if (bytes > scratch.bytes_) {
        scratch.all_.reserve(scratch.all_.size() + 1);  // now, lest the address be lost
        cuda::Address address = 0;
        driver().check(driver().mem_alloc(&address, static_cast<std::size_t>(bytes)), "cuMemAlloc");
        scratch.driver_ = &driver();
        scratch.all_.push_back(address);
        scratch.bytes_ = bytes;
    }
    return reinterpret_cast<void*>(scratch.all_.back());
}

// At the end of a process the driver may be gone already, and the memory with it.
Scratch::~Scratch() {
    for (const cuda::Address address : all_) driver_->mem_free(address);
}

const cuda::Driver& Kernels::driver() {
    if (!driver_) driver_ = load_();
    return *driver_;
}

cuda::Function Kernels::loaded(Entry& entry) {
    if (entry.function != nullptr) return entry.function;
    const cuda::Driver& cuda = driver();
    if (entry.module == nullptr) {
        cuda::Module module = nullptr;
        cuda.check(cuda.module_load_data(&module, entry.kernel.image.data()), "cuModuleLoadData");
        entry.module = module;
    }
    cuda::Function function = nullptr;
    cuda.check(cuda.module_get_function(&function, entry.module, entry.kernel.entry.c_str()), "cuModuleGetFunction");
    if (entry.kernel.shared_bytes > kSharedBytesWithoutAsking) {
        cuda.check(cuda.func_set_attribute(function, kMaxDynamicSharedSizeBytes,
                                           static_cast<int>(entry.kernel.shared_bytes)),
                   "cuFuncSetAttribute");
    }
    entry.function = function;
    return function;
}

}  // namespace nuwaxl
