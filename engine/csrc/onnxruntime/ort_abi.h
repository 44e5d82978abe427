// The part of ONNX Runtime's C interface that a custom-op library uses, written down from its documentation: the
// headers are in no wheel. The interface is a table of function pointers whose order never changes; only the used
// places have names here. Numbers of types and of error codes are ONNX's and ONNX Runtime's.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nuwaxl::ort {

constexpr std::uint32_t kApiVersion = 16;  // the first with kernels that return a status

enum Type : int { kFloat = 1, kFloat16 = 10, kBFloat16 = 16 };
enum Code : int { kFail = 1 };

struct Status;
struct SessionOptions;
struct Domain;
struct KernelInfo;
struct KernelContext;
struct Value;
struct TensorInfo;

// OrtApi, by place in the table.
enum Slot : std::size_t {
    kCreateStatus = 0,
    kCreateCustomOpDomain = 26,
    kCustomOpDomainAdd = 27,
    kAddCustomOpDomain = 28,
    kGetTensorMutableData = 51,
    kGetDimensionsCount = 61,
    kGetDimensions = 62,
    kGetTensorTypeAndShape = 65,
    kKernelInfoGetAttributeFloat = 85,
    kKernelInfoGetAttributeInt64 = 86,
    kKernelContextGetInput = 90,
    kKernelContextGetOutput = 91,
    kReleaseTensorTypeAndShapeInfo = 99,
    kKernelContextGetGpuComputeStream = 193,
    kKernelContextParallelFor = 274,
};

struct Api {
    void* const* table = nullptr;

    template <typename Result, typename... Arguments>
    Result call(Slot slot, Arguments... arguments) const {
        return reinterpret_cast<Result (*)(Arguments...)>(table[slot])(arguments...);
    }
};

// OrtApiBase.
struct ApiBase {
    void* const* (*get_api)(std::uint32_t version);
    const char* (*get_version_string)();
};

// OrtCustomOp, to the end that kApiVersion knows.
struct CustomOp {
    std::uint32_t version = kApiVersion;
    void* (*create_kernel)(const CustomOp*, void* const* api, const KernelInfo*) = nullptr;
    const char* (*get_name)(const CustomOp*) = nullptr;
    const char* (*get_execution_provider)(const CustomOp*) = nullptr;
    int (*get_input_type)(const CustomOp*, std::size_t) = nullptr;
    std::size_t (*get_input_type_count)(const CustomOp*) = nullptr;
    int (*get_output_type)(const CustomOp*, std::size_t) = nullptr;
    std::size_t (*get_output_type_count)(const CustomOp*) = nullptr;
    void (*kernel_compute)(void*, KernelContext*) = nullptr;
    void (*kernel_destroy)(void*) = nullptr;
    int (*get_input_characteristic)(const CustomOp*, std::size_t) = nullptr;   // 0: required
    int (*get_output_characteristic)(const CustomOp*, std::size_t) = nullptr;  // 0: required
    int (*get_input_memory_type)(const CustomOp*, std::size_t) = nullptr;      // 0: the provider's
    int (*get_variadic_input_min_arity)(const CustomOp*) = nullptr;
    int (*get_variadic_input_homogeneity)(const CustomOp*) = nullptr;
    int (*get_variadic_output_min_arity)(const CustomOp*) = nullptr;
    int (*get_variadic_output_homogeneity)(const CustomOp*) = nullptr;
    Status* (*create_kernel_v2)(const CustomOp*, void* const* api, const KernelInfo*, void** kernel) = nullptr;
    Status* (*kernel_compute_v2)(void*, KernelContext*) = nullptr;
    // Of later versions; ONNX Runtime does not read them at kApiVersion.
    void* later[7] = {};
};

}  // namespace nuwaxl::ort
