#include "driver.h"

#include <dlfcn.h>

#include <stdexcept>
#include <type_traits>

namespace nuwaxl::cuda {

Driver Driver::load(const std::string& library) {
    void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        const char* reason = dlerror();
        throw std::runtime_error("expected the CUDA driver; found " +
                                 std::string(reason != nullptr ? reason : "nothing") +
                                 "; install the NVIDIA driver or run on the CPU");
    }
    Driver driver;
    const auto find = [&](auto& function, const char* name) {
        function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
        if (function == nullptr) {
            throw std::runtime_error("expected " + std::string(name) + " in " + library +
                                     "; found none; install a newer driver");
        }
    };
    find(driver.ctx_get_device, "cuCtxGetDevice");
    find(driver.module_load_data, "cuModuleLoadData");
    find(driver.module_get_function, "cuModuleGetFunction");
    find(driver.func_set_attribute, "cuFuncSetAttribute");
    find(driver.launch_kernel, "cuLaunchKernel");
    find(driver.mem_alloc, "cuMemAlloc_v2");
    find(driver.mem_free, "cuMemFree_v2");
    find(driver.get_error_name, "cuGetErrorName");
    return driver;
}

namespace {

// By CUresult.
const char* fix_of(int error) {
    switch (error) {
        case 2:  // CUDA_ERROR_OUT_OF_MEMORY
            return "free memory of the GPU";
        case 200:  // CUDA_ERROR_INVALID_IMAGE
        case 209:  // CUDA_ERROR_NO_BINARY_FOR_GPU
        case 218:  // CUDA_ERROR_INVALID_PTX
            return "update an old driver, or export the bundle again with --sm for this GPU";
        default:
            return "see the driver's log";
    }
}

}  // namespace

void Driver::check(int result, const char* call) const {
    if (result == 0) return;
    const char* name = nullptr;
    get_error_name(result, &name);
    throw std::runtime_error("expected " + std::string(call) + " to succeed; found " +
                             (name != nullptr ? name : "error " + std::to_string(result)) + "; " + fix_of(result));
}

}  // namespace nuwaxl::cuda
