// The few functions of the CUDA driver that launch a compiled kernel, loaded when they are first wanted: this builds
// and loads on machines without CUDA.
#pragma once

#include <cstddef>
#include <string>

namespace nuwaxl::cuda {

using Module = void*;
using Function = void*;
using Stream = void*;
using Address = unsigned long long;  // CUdeviceptr

// CUresult 0 is success.
struct Driver {
    int (*ctx_get_device)(int*) = nullptr;
    int (*module_load_data)(Module*, const void* image) = nullptr;
    int (*module_get_function)(Function*, Module, const char* name) = nullptr;
    int (*func_set_attribute)(Function, int attribute, int value) = nullptr;
    int (*launch_kernel)(Function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                         unsigned block_y, unsigned block_z, unsigned shared_bytes, Stream, void** parameters,
                         void** extra) = nullptr;
    int (*mem_alloc)(Address*, std::size_t bytes) = nullptr;
    int (*mem_free)(Address) = nullptr;
    int (*get_error_name)(int error, const char** name) = nullptr;

    // Throws std::runtime_error with what is missing.
    static Driver load(const std::string& library = "libcuda.so.1");

    // Throws std::runtime_error naming the call and the error.
    void check(int result, const char* call) const;
};

}  // namespace nuwaxl::cuda
