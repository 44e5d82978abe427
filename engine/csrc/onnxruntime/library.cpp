// The custom-op library: the nodes of the domain `nuwaxl` on ONNX Runtime's CUDA provider, launched through the CUDA
// driver on the session's stream, and on its CPU provider (cpu.h). It links neither ONNX Runtime nor CUDA.
//
// A session on a GPU that registers it must find every kernel it calls: a custom op takes the place of the node's
// function body, whether its kernel is there or not. So the runner (engine/runners/custom_ops.py) adds and loads a
// bundle's kernels first, and registers the library only where the device has them all.
#include <array>
#include <cstdio>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "calls.h"
#include "cpu.h"
#include "kernels.h"
#include "ort_abi.h"

#define NUWAXL_EXPORT extern "C" __attribute__((visibility("default")))

namespace nuwaxl {

namespace {

constexpr const char* kDomain = "nuwaxl";

// Every function that C calls runs its body in here: nothing may be thrown into C. Null, or what was thrown, until the
// thread's next call. Allocates nothing, since there may be no memory.
template <typename Body>
const char* caught(const Body& body) noexcept {
    thread_local std::array<char, 1024> wrong;
    try {
        body();
        return nullptr;
    } catch (const std::bad_alloc&) {
        return "expected memory of the host; found none left; free some, or use a smaller --max-batch";
    } catch (const std::exception& error) {
        std::snprintf(wrong.data(), wrong.size(), "%s", error.what());
        return wrong.data();
    } catch (...) {
        return "expected an exception of the standard library; found another; report it";
    }
}

// The status that the body returns, null for success; or one of what it threw, for the node `of`.
template <typename Body>
ort::Status* status_of(const ort::Api& api, const char* of, const Body& body) noexcept {
    ort::Status* status = nullptr;
    if (const char* wrong = caught([&] { status = body(); })) {
        std::array<char, 1280> text;
        std::snprintf(text.data(), text.size(), "%s::%s: %s", kDomain, of, wrong);
        const char* message = text.data();
        status = api.call<ort::Status*>(ort::kCreateStatus, static_cast<int>(ort::kFail), message);
    }
    return status;
}

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
    mutable Scratch scratch;  // of one run at a time: runners run a session on one thread and one stream

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
        auto release = [this](ort::TensorInfo* held) { api.call<void>(ort::kReleaseTensorTypeAndShapeInfo, held); };
        const std::unique_ptr<ort::TensorInfo, decltype(release)> held(info, release);
        const ort::TensorInfo* of = info;
        std::size_t rank = 0;
        if (auto* bad = api.call<ort::Status*>(ort::kGetDimensionsCount, of, &rank)) return bad;
        tensor.shape.resize(rank);
        if (auto* bad = api.call<ort::Status*>(ort::kGetDimensions, of, tensor.shape.data(), rank)) return bad;
        return data(const_cast<ort::Value*>(value), const_cast<void**>(&tensor.data));
    }

    ort::Status* data(ort::Value* value, void** pointer) const {
        return api.call<ort::Status*>(ort::kGetTensorMutableData, value, pointer);
    }

    // On the session's threads. Throws one of what `function` threw there.
    ort::Status* parallel(ort::KernelContext* context, std::size_t count,
                          const std::function<void(std::size_t)>& function) const {
        struct Calls {
            const std::function<void(std::size_t)>& function;
            std::mutex mutex;
            std::exception_ptr thrown;
        } calls{function, {}, {}};
        void (*call)(void*, std::size_t) = [](void* of, std::size_t i) {
            auto& all = *static_cast<Calls*>(of);
            try {
                all.function(i);
            } catch (...) {
                const std::lock_guard lock(all.mutex);
                all.thrown = std::current_exception();
            }
        };
        auto* bad = api.call<ort::Status*>(ort::kKernelContextParallelFor,
                                           static_cast<const ort::KernelContext*>(context), call, count,
                                           std::size_t{0}, static_cast<void*>(&calls));
        if (calls.thrown) std::rethrow_exception(calls.thrown);
        return bad;
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
};

ort::Status* TypedOp::create(const CustomOp* self, void* const* table, const ort::KernelInfo* info, void** kernel) {
    const ort::Api api{table};
    const Node& node = as(self).node;
    return status_of(api, node.name, [&]() -> ort::Status* {
        auto instance = std::unique_ptr<Instance>(new Instance{&as(self), api, {}, {}});
        const auto read = [&](ort::Slot slot, const char* name, auto* value) {
            return api.call<ort::Status*>(slot, info, name, value);
        };
        Attributes& of = instance->attributes;
        if (node.heads) {
            if (auto* bad = read(ort::kKernelInfoGetAttributeInt64, "heads", &of.heads)) return bad;
        }
        if (node.groups) {
            if (auto* bad = read(ort::kKernelInfoGetAttributeInt64, "groups", &of.groups)) return bad;
            if (auto* bad = read(ort::kKernelInfoGetAttributeFloat, "eps", &of.eps)) return bad;
        }
        *kernel = instance.release();
        return nullptr;
    });
}

ort::Status* TypedOp::compute(void* kernel, ort::KernelContext* context) {
    const auto& instance = *static_cast<const Instance*>(kernel);
    return status_of(instance.api, instance.op->node.name, [&] { return instance.run(context); });
}

void TypedOp::destroy(void* kernel) { delete static_cast<Instance*>(kernel); }

const std::vector<TypedOp>& typed_ops() {
    // Never destroyed, as the kernels.
    static const auto* all = [] {
        std::vector<TypedOp> made;
        for (const Node& node : kNodes) {
            for (const Element& element : kElements) {
                for (const bool gpu : {true, false}) made.emplace_back(node, element, gpu);
            }
        }
        return new std::vector<TypedOp>(std::move(made));
    }();
    return *all;
}

}  // namespace

}  // namespace nuwaxl

// What ONNX Runtime calls for SessionOptions.register_custom_ops_library.
NUWAXL_EXPORT nuwaxl::ort::Status* RegisterCustomOps(nuwaxl::ort::SessionOptions* options,
                                                     const nuwaxl::ort::ApiBase* base) {
    namespace ort = nuwaxl::ort;
    const ort::Api api{base->get_api(ort::kApiVersion)};
    return nuwaxl::status_of(api, "RegisterCustomOps", [&]() -> ort::Status* {
        // Never released: sessions made of the options use it.
        static ort::Domain* domain = nullptr;
        static std::mutex mutex;  // runners may be opened side by side
        const std::lock_guard lock(mutex);
        if (domain == nullptr) {
            const auto& ops = nuwaxl::typed_ops();
            ort::Domain* made = nullptr;
            if (auto* bad = api.call<ort::Status*>(ort::kCreateCustomOpDomain, nuwaxl::kDomain, &made)) return bad;
            for (const auto& op : ops) {
                const ort::CustomOp* known = &op;
                if (auto* bad = api.call<ort::Status*>(ort::kCustomOpDomainAdd, made, known)) return bad;
            }
            domain = made;
        }
        return api.call<ort::Status*>(ort::kAddCustomOpDomain, options, domain);
    });
}

// Load a kernel on the device of the current context; for ctypes. Null, or what was wrong, until the thread's next
// call.
NUWAXL_EXPORT const char* nuwaxl_load_kernel(const char* name) {
    return nuwaxl::caught([&] { nuwaxl::kernels().load(name); });
}

// Make a compiled kernel known; for ctypes. The image is copied. Of no effect a second time. Returns as above.
NUWAXL_EXPORT const char* nuwaxl_add_kernel(int device, const char* name, const char* entry, const char* image,
                                            std::size_t bytes, std::int64_t fixed, std::int64_t per_item,
                                            std::int64_t block, unsigned warps, unsigned shared_bytes,
                                            unsigned hidden) {
    return nuwaxl::caught([&] {
        nuwaxl::kernels().add(device, name,
                              {entry, {image, image + bytes}, {fixed, per_item, block}, warps, shared_bytes, hidden});
    });
}
