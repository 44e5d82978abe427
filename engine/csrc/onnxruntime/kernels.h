// The compiled kernels of a process, by device and name: added by the runner from a bundle's kernels.json, loaded by
// the driver when they are first asked for, and kept to the end of the process. Safe from any thread.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "calls.h"
#include "driver.h"

namespace nuwaxl {

class Kernels;

// Device memory of one node between its kernels. Grows, and keeps what it had: captured graphs use it.
class Scratch {
public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch();

private:
    friend class Kernels;
    const cuda::Driver* driver_ = nullptr;
    std::vector<cuda::Address> all_;  // the last is the largest
    std::int64_t bytes_ = 0;          // of the last
};

struct Kernel {
    std::string entry;         // the function in the image
    std::vector<char> image;   // a cubin
    Grid grid;
    unsigned warps = 0;        // of 32 threads
    unsigned shared_bytes = 0; // dynamic shared memory
    unsigned hidden = 0;       // null pointers after the arguments
};

class Kernels {
public:
    explicit Kernels(std::function<cuda::Driver()> load) : load_(std::move(load)) {}
    Kernels(const Kernels&) = delete;
    Kernels& operator=(const Kernels&) = delete;

    // The same name again on the same device changes nothing: the name says all that a kernel depends on.
    void add(int device, const std::string& name, Kernel kernel);

    // Have the driver load a kernel that was added for the device of the current context, and throw as `launch` does.
    void load(const std::string& name);

    // Put the kernels of `call` on the stream; the current context says on which device. No programs is no launch.
    // Throws std::invalid_argument where there is no such kernel, std::runtime_error where the driver fails.
    void launch(const Call& call, const std::vector<const void*>& inputs, const std::vector<void*>& outputs,
                cuda::Stream stream, Scratch& scratch);

private:
    struct Entry {
        Kernel kernel;
        cuda::Module module = nullptr;
        cuda::Function function = nullptr;
    };

    const cuda::Driver& driver();
    std::pair<const Kernel*, cuda::Function> find(const std::string& name);
    cuda::Function loaded(Entry& entry);
    void* reserve(Scratch& scratch, std::int64_t bytes);
    void put(const std::string& name, const Call& call, std::vector<const void*> inputs, std::vector<void*> outputs,
             cuda::Stream stream);

    std::mutex mutex_;
    std::function<cuda::Driver()> load_;
    std::optional<cuda::Driver> driver_;
    std::map<std::pair<int, std::string>, Entry> entries_;
};

}  // namespace nuwaxl
