// The custom-op library: the nodes of the domain `nuwaxl` on ONNX Runtime's CUDA provider, launched through the CUDA
// driver on the session's stream, and on its CPU provider (cpu.h). It links neither ONNX Runtime nor CUDA.
//
// A session on a GPU that registers it must find every kernel it calls: a custom op takes the place of the node's
// function body, whether its kernel is there or not. So the runner (engine/runners/custom_ops.py) adds and loads a
// bundle's kernels first, and registers the library only where the device has them all.
#include <array>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "calls.h"
#include "cpu.h"
#include "kernels.h"
#include "ort_abi.h"

#define NUWAXL_EXPORT extern "C" __attribute__((visibility("default")))

namespace nuwaxl {

namespace {

constexpr const char* kDomain = "nuwaxl";

struct Node {
    Op op;
    const char* name;
    std::size_t inputs;
    std::size_t outputs;
    bool heads, groups;
};

constexpr std::array<Node, 6> kNodes{{
    {Op::kTemporalAttention, "TemporalAttention", 1, 1, true, false},
    {Op::kTemporalConv, "TemporalConv", 3, 1, false, false},
    {Op::kTemporalConvInjection, "TemporalConvInjection", 5, 1, false, false},
    {Op::kGroupNorm, "GroupNorm", 3, 1, false, true},
    {Op::kGroupNormSilu, "GroupNormSilu", 3, 1, false, true},
    {Op::kGuidedUpdate, "GuidedUpdate", 7, 2, false, false},
}};

// Every type that bundles are exported in: one that is missing would make their graphs invalid.
struct Element {
    int type;
    const char* name;
};
constexpr std::array<Element, 3> kElements{
    {{ort::kFloat, "float32"}, {ort::kFloat16, "float16"}, {ort::kBFloat16, "bfloat16"}}};

// Never destroyed: sessions and the driver may outlive any order of destruction.
Kernels& kernels() {
    static auto* all = new Kernels([] { return cuda::Driver::load(); });
    return *all;
}

// One node, one type and one provider, as ONNX Runtime knows it.
struct TypedOp : ort::CustomOp {
    Node node;
    Element element;
    bool on_gpu;

    TypedOp(const Node& of, const Element& in, bool gpu) : node(of), element(in), on_gpu(gpu) {
        get_name = [](const CustomOp* self) { return as(self).node.name; };
        get_execution_provider = [](const CustomOp* self) {
            return as(self).on_gpu ? "CUDAExecutionProvider" : "CPUExecutionProvider";
        };
        get_input_type = [](const CustomOp* self, std::size_t i) {
            // The rows of the update are float32 whatever the tensors are.
            const bool row = as(self).node.op == Op::kGuidedUpdate && i >= 5;
            return row ? static_cast<int>(ort::kFloat) : as(self).element.type;
        };
        get_input_type_count = [](const CustomOp* self) { return as(self).node.inputs; };
        get_output_type = [](const CustomOp* self, std::size_t) { return as(self).element.type; };
        get_output_type_count = [](const CustomOp* self) { return as(self).node.outputs; };
        get_input_characteristic = [](const CustomOp*, std::size_t) { return 0; };
        get_output_characteristic = [](const CustomOp*, std::size_t) { return 0; };
        get_input_memory_type = [](const CustomOp*, std::size_t) { return 0; };
        get_variadic_input_min_arity = [](const CustomOp*) { return 1; };
        get_variadic_input_homogeneity = [](const CustomOp*) { return 1; };
        get_variadic_output_min_arity = [](const CustomOp*) { return 1; };
        get_variadic_output_homogeneity = [](const CustomOp*) { return 1; };
        kernel_destroy = destroy;
        create_kernel_v2 = create;
        kernel_compute_v2 = compute;
    }

    static const TypedOp& as(const CustomOp* self) { return *static_cast<const TypedOp*>(self); }

    static ort::Status* create(const CustomOp* self, void* const* table, const ort::KernelInfo* info, void** kernel);
    static ort::Status* compute(void* kernel, ort::KernelContext* context);
    static void destroy(void* kernel);
};

// A node of a session.
struct Instance {
    const TypedOp* op = nullptr;
    ort::Api api;
    Attributes attributes;
    mutable Scratch scratch;  // a session runs on one thread and one stream at a time

    struct Tensor {
        const void* data = nullptr;
        Shape shape;
    };

    // Each returns ONNX Runtime's status; null is success.
    ort::Status* read(ort::KernelContext* context, std::size_t index, Tensor& tensor) const {
        const ort::Value* value = nullptr;
        if (auto* bad = api.call<ort::Status*>(ort::kKernelContextGetInput, context, index, &value)) return bad;
        ort::TensorInfo* info = nullptr;
        if (auto* bad = api.call<ort::Status*>(ort::kGetTensorTypeAndShape, value, &info)) return bad;
        std::size_t rank = 0;
        auto* bad = api.call<ort::Status*>(ort::kGetDimensionsCount, static_cast<const ort::TensorInfo*>(info), &rank);
        tensor.shape.resize(rank);
        if (bad == nullptr) {
            bad = api.call<ort::Status*>(ort::kGetDimensions, static_cast<const ort::TensorInfo*>(info),
                                         tensor.shape.data(), rank);
        }
        api.call<void>(ort::kReleaseTensorTypeAndShapeInfo, info);
        if (bad != nullptr) return bad;
        return data(const_cast<ort::Value*>(value), const_cast<void**>(&tensor.data));
    }

    ort::Status* data(ort::Value* value, void** pointer) const {
        return api.call<ort::Status*>(ort::kGetTensorMutableData, value, pointer);
    }

    // On the session's threads. The functions of cpu.cpp throw nothing but what allocating their rows throws.
    ort::Status* parallel(ort::KernelContext* context, std::size_t count,
                          const std::function<void(std::size_t)>& function) const {
        void (*call)(void*, std::size_t) = [](void* of, std::size_t i) {
            (*static_cast<const std::function<void(std::size_t)>*>(of))(i);
        };
        return api.call<ort::Status*>(ort::kKernelContextParallelFor, static_cast<const ort::KernelContext*>(context),
                                      call, count, std::size_t{0},
                                      const_cast<void*>(static_cast<const void*>(&function)));
    }

    ort::Status* run(ort::KernelContext* context) const {
        std::vector<Shape> shapes(op->node.inputs);
        std::vector<const void*> inputs(op->node.inputs);
        for (std::size_t i = 0; i < inputs.size(); ++i) {
            Tensor tensor;
            if (auto* bad = read(context, i, tensor)) return bad;
            shapes[i] = std::move(tensor.shape);
            inputs[i] = tensor.data;
        }
        const Call call = plan_call(op->node.op, shapes, attributes, op->element.name);
        std::vector<void*> outputs(op->node.outputs);
        for (std::size_t i = 0; i < outputs.size(); ++i) {
            ort::Value* value = nullptr;
            const Shape& shape = call.outputs[i];
            if (auto* bad = api.call<ort::Status*>(ort::kKernelContextGetOutput, context, i, shape.data(),
                                                   shape.size(), &value)) {
                return bad;
            }
            if (auto* bad = data(value, &outputs[i])) return bad;
        }
        if (!op->on_gpu) {
            ort::Status* bad = nullptr;
            compute_on_cpu(op->node.op, attributes, op->element.name, shapes, inputs, outputs,
                           [&](std::size_t count, const std::function<void(std::size_t)>& function) {
                               bad = parallel(context, count, function);
                           });
            return bad;
        }
        void* stream = nullptr;
        if (auto* bad = api.call<ort::Status*>(ort::kKernelContextGetGpuComputeStream,
                                               static_cast<const ort::KernelContext*>(context), &stream)) {
            return bad;
        }
        kernels().launch(call, inputs, outputs, stream, scratch);
        return nullptr;
    }

    ort::Status* failure(const std::string& message) const {
        const std::string text = "nuwaxl::" + std::string(op->node.name) + ": " + message;
        return api.call<ort::Status*>(ort::kCreateStatus, static_cast<int>(ort::kFail), text.c_str());
    }
};

ort::Status* TypedOp::create(const CustomOp* self, void* const* table, const ort::KernelInfo* info, void** kernel) {
    auto* instance = new Instance{&as(self), ort::Api{table}, {}, {}};
    const auto& api = instance->api;
    ort::Status* bad = nullptr;
    if (as(self).node.heads) {
        bad = api.call<ort::Status*>(ort::kKernelInfoGetAttributeInt64, info, "heads", &instance->attributes.heads);
    }
    if (as(self).node.groups) {
        bad = api.call<ort::Status*>(ort::kKernelInfoGetAttributeInt64, info, "groups", &instance->attributes.groups);
        if (bad == nullptr) {
            bad = api.call<ort::Status*>(ort::kKernelInfoGetAttributeFloat, info, "eps", &instance->attributes.eps);
        }
    }
    if (bad != nullptr) {
        delete instance;
        return bad;
    }
    *kernel = instance;
    return nullptr;
}

ort::Status* TypedOp::compute(void* kernel, ort::KernelContext* context) {
    const auto& instance = *static_cast<const Instance*>(kernel);
    try {
        return instance.run(context);
    } catch (const std::exception& error) {
        return instance.failure(error.what());
    }
}

void TypedOp::destroy(void* kernel) { delete static_cast<Instance*>(kernel); }

const std::vector<TypedOp>& typed_ops() {
    static const auto* all = [] {
        auto* made = new std::vector<TypedOp>;
        for (const Node& node : kNodes) {
            for (const Element& element : kElements) {
                for (const bool gpu : {true, false}) made->emplace_back(node, element, gpu);
            }
        }
        return made;
    }();
    return *all;
}

}  // namespace

}  // namespace nuwaxl

// What ONNX Runtime calls for SessionOptions.register_custom_ops_library.
NUWAXL_EXPORT nuwaxl::ort::Status* RegisterCustomOps(nuwaxl::ort::SessionOptions* options,
                                                     const nuwaxl::ort::ApiBase* base) {
    namespace ort = nuwaxl::ort;
    // Never released: sessions made of the options use it.
    static ort::Domain* domain = nullptr;
    static std::mutex mutex;  // runners may be opened side by side
    const std::lock_guard lock(mutex);
    const ort::Api api{base->get_api(ort::kApiVersion)};
    if (domain == nullptr) {
        ort::Domain* made = nullptr;
        if (auto* bad = api.call<ort::Status*>(ort::kCreateCustomOpDomain, nuwaxl::kDomain, &made)) return bad;
        for (const auto& op : nuwaxl::typed_ops()) {
            const ort::CustomOp* known = &op;
            if (auto* bad = api.call<ort::Status*>(ort::kCustomOpDomainAdd, made, known)) return bad;
        }
        domain = made;
    }
    return api.call<ort::Status*>(ort::kAddCustomOpDomain, options, domain);
}

// Load a kernel on the device of the current context; for ctypes. Null, or what was wrong, until the thread's next call.
NUWAXL_EXPORT const char* nuwaxl_load_kernel(const char* name) {
    thread_local std::string wrong;
    try {
        nuwaxl::kernels().load(name);
        return nullptr;
    } catch (const std::exception& error) {
        wrong = error.what();
        return wrong.c_str();
    }
}

// Make a compiled kernel known; for ctypes. The image is copied. Of no effect a second time.
NUWAXL_EXPORT void nuwaxl_add_kernel(int device, const char* name, const char* entry, const char* image,
                                     std::size_t bytes, std::int64_t fixed, std::int64_t per_item, std::int64_t block,
                                     unsigned warps, unsigned shared_bytes, unsigned hidden) {
    nuwaxl::kernels().add(device, name, {entry, {image, image + bytes}, {fixed, per_item, block}, warps, shared_bytes, hidden});
}
