// Stands in for libcuda.so.1: records launches in `stub_launches`, which the test finds by dlsym.
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "stub_libcuda.h"

static std::vector<StubLaunch> launches;
static std::vector<std::string> loaded;
static std::deque<std::string> modules;  // whose elements stay where they are
static std::deque<StubFunction> functions;
static std::deque<long long> memory;  // bytes of every allocation, -1 once it is freed; its place is the address
static int device_now = 0;
static std::string failing;  // the call that fails, if any

// What a call answers.
static int status(const char* call) { return failing == call ? 700 : 0; }

extern "C" {

std::vector<StubLaunch>* stub_launches() { return &launches; }
std::deque<long long>* stub_memory() { return &memory; }
std::vector<std::string>* stub_loaded() { return &loaded; }
void stub_set_device(int device) { device_now = device; }
void stub_fail(const char* call) { failing = call; }

int cuCtxGetDevice(int* device) {
    *device = device_now;
    return status("cuCtxGetDevice");
}

int cuModuleLoadData(void** module, const void* image) {
    if (std::strncmp(static_cast<const char*>(image), "bad", 3) == 0) return 200;
    loaded.emplace_back(static_cast<const char*>(image));
    *module = &modules.emplace_back(static_cast<const char*>(image));
    return status("cuModuleLoadData");
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
    *function = &functions.emplace_back(StubFunction{*static_cast<std::string*>(module), name, 0});
    return status("cuModuleGetFunction");
}

int cuFuncSetAttribute(void* function, int attribute, int value) {
    if (attribute != 8) return 1;
    static_cast<StubFunction*>(function)->shared_limit = value;
    return status("cuFuncSetAttribute");
}

int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** parameters, void** extra) {
    const auto& of = *static_cast<StubFunction*>(function);
    if (extra != nullptr || gy != 1 || gz != 1 || by != 1 || bz != 1) return 1;
    StubLaunch launch{of.image, of.entry, of.shared_limit, gx, bx, shared, stream, {}};
    // The entry says how its parameters are: p for a pointer, i for an int32.
    for (std::size_t i = 0; i < of.entry.size(); ++i) {
        launch.parameters.push_back(of.entry[i] == 'i' ? static_cast<long long>(*static_cast<int*>(parameters[i]))
                                                       : reinterpret_cast<long long>(*static_cast<void**>(parameters[i])));
    }
    launches.push_back(launch);
    return status("cuLaunchKernel");
}

int cuMemAlloc_v2(unsigned long long* address, std::size_t bytes) {
    *address = reinterpret_cast<unsigned long long>(&memory.emplace_back(bytes));
    return status("cuMemAlloc");
}

int cuMemFree_v2(unsigned long long address) {
    for (long long& bytes : memory) {
        if (reinterpret_cast<unsigned long long>(&bytes) == address) bytes = -1;
    }
    return 0;
}

int cuGetErrorName(int error, const char** name) {
    *name = error == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : error == 200 ? "CUDA_ERROR_INVALID_IMAGE" : nullptr;
    return 0;
}
}
