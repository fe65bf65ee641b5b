#include "executor/opaque_device_testing.h"

#include "base/check.h"

#include <ggml-backend-impl.h>
#include <ggml-cpp.h>
#include <ggml-impl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

namespace strata::executor {
namespace {

constexpr size_t kAlignment = 256;

uint8_t * map(size_t bytes, int protection) {
    void * at = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    STRATA_CHECK(at != MAP_FAILED);
    return static_cast<uint8_t *>(at);
}

// `shown` are the addresses that tensors have, `real` is where their bytes are.
struct Memory {
    size_t bytes;
    uint8_t * shown;
    uint8_t * real;
    ggml_backend_buffer_ptr host;

    explicit Memory(size_t size)
        : bytes(std::max<size_t>(size, 1))
        , shown(map(bytes, PROT_NONE))
        , real(map(bytes, PROT_READ | PROT_WRITE))
        , host(ggml_backend_cpu_buffer_from_ptr(real, bytes)) {}
    ~Memory() {
        munmap(shown, bytes);
        munmap(real, bytes);
    }
    Memory(const Memory &) = delete;
    Memory & operator=(const Memory &) = delete;

    static Memory & of(ggml_backend_buffer_t buffer) { return *static_cast<Memory *>(buffer->context); }
    static uint8_t * of(const ggml_tensor & tensor) {
        const Memory & memory = of(tensor.buffer);
        return memory.real + (static_cast<uint8_t *>(tensor.data) - memory.shown);
    }
};

void set_tensor(ggml_backend_buffer_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    std::memcpy(Memory::of(*tensor) + offset, data, size);
}

void get_tensor(ggml_backend_buffer_t, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    std::memcpy(data, Memory::of(*tensor) + offset, size);
}

ggml_backend_buffer_t allocate(ggml_backend_buffer_type_t buft, size_t size) {
    ggml_backend_buffer_i interface {};
    interface.free_buffer = [](ggml_backend_buffer_t buffer) { delete &Memory::of(buffer); };
    interface.get_base = [](ggml_backend_buffer_t buffer) -> void * { return Memory::of(buffer).shown; };
    interface.set_tensor = set_tensor;
    interface.get_tensor = get_tensor;
    interface.clear = [](ggml_backend_buffer_t buffer, uint8_t value) {
        std::memset(Memory::of(buffer).real, value, Memory::of(buffer).bytes);
    };
    return ggml_backend_buffer_init(buft, interface, new Memory(size), size);
}

ggml_backend_buffer_type_t buffer_type();

// The same graph, with the tensors where they really are.
ggml_status compute(ggml_backend_t backend, ggml_cgraph * graph) {
    std::map<const ggml_tensor *, std::unique_ptr<ggml_tensor>> copies;
    const auto copy_of = [&](ggml_tensor * tensor) -> ggml_tensor * {
        auto & copy = copies[tensor];
        if (copy != nullptr) return copy.get();
        copy = std::make_unique<ggml_tensor>(*tensor);
        if (tensor->buffer == nullptr) return copy.get();    // without elements
        STRATA_CHECK(tensor->buffer->buft == buffer_type()); // a GPU sees nothing else
        copy->data = Memory::of(*tensor);
        copy->buffer = Memory::of(tensor->buffer).host.get();
        return copy.get();
    };
    auto * const cpu = static_cast<ggml_backend_t>(backend->context);
    for (int i = 0; i < graph->n_nodes; ++i) {
        ggml_tensor * node = copy_of(graph->nodes[i]);
        for (ggml_tensor *& source : node->src) source = source == nullptr ? nullptr : copy_of(source);
        const ggml_context_ptr context(ggml_init({ggml_graph_overhead_custom(1, false), nullptr, true}));
        ggml_cgraph * one = ggml_new_graph_custom(context.get(), 1, false);
        one->nodes[one->n_nodes++] = node;
        const ggml_status status = ggml_backend_graph_compute(cpu, one);
        if (status != GGML_STATUS_SUCCESS) return status;
    }
    return GGML_STATUS_SUCCESS;
}

ggml_backend_t open_backend(ggml_backend_dev_t device, const char *) {
    ggml_backend_i interface {};
    interface.get_name = [](ggml_backend_t) { return "opaque"; };
    interface.free = [](ggml_backend_t backend) {
        ggml_backend_free(static_cast<ggml_backend_t>(backend->context));
        delete backend;
    };
    interface.graph_compute = compute;
    static ggml_guid guid{0x73, 0x74, 0x72, 0x61};
    ggml_backend_t cpu = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
    const auto set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(ggml_backend_get_device(cpu)), "ggml_backend_set_n_threads"));
    set_threads(cpu, 1);
    return new ggml_backend{&guid, interface, device, cpu};
}

bool supports(ggml_backend_dev_t, const ggml_tensor * op) {
    const auto in_memory = [](const ggml_tensor * tensor) {
        return tensor == nullptr || tensor->buffer == nullptr || tensor->buffer->buft == buffer_type();
    };
    return op->op != GGML_OP_SET_ROWS && op->op != GGML_OP_ROPE && op->op != GGML_OP_GET_ROWS && in_memory(op) &&
           std::ranges::all_of(op->src, in_memory);
}

ggml_backend_reg * registry() {
    static ggml_backend_reg registry = [] {
        ggml_backend_reg made{GGML_BACKEND_API_VERSION, {}, nullptr};
        made.iface.get_name = [](ggml_backend_reg_t) { return "opaque"; };
        made.iface.get_device_count = [](ggml_backend_reg_t) { return size_t{1}; };
        made.iface.get_device = [](ggml_backend_reg_t, size_t) { return opaque_device(); };
        return made;
    }();
    return &registry;
}

ggml_backend_buffer_type_t buffer_type() {
    static ggml_backend_buffer_type type = [] {
        ggml_backend_buffer_type made{{}, opaque_device(), nullptr};
        made.iface.get_name = [](ggml_backend_buffer_type_t) { return "opaque"; };
        made.iface.alloc_buffer = allocate;
        made.iface.get_alignment = [](ggml_backend_buffer_type_t) { return kAlignment; };
        return made;
    }();
    return &type;
}

} // namespace

ggml_backend_dev_t opaque_device() {
    static ggml_backend_device device = [] {
        ggml_backend_device made{{}, registry(), nullptr};
        made.iface.get_name = [](ggml_backend_dev_t) { return "opaque"; };
        made.iface.get_description = [](ggml_backend_dev_t) { return "a device for tests"; };
        made.iface.get_memory = [](ggml_backend_dev_t, size_t * free, size_t * total) {
            *free = *total = size_t{1} << 30;
        };
        made.iface.get_type = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; };
        made.iface.get_props = [](ggml_backend_dev_t, ggml_backend_dev_props * props) { *props = {}; };
        made.iface.init_backend = open_backend;
        made.iface.get_buffer_type = [](ggml_backend_dev_t) { return buffer_type(); };
        made.iface.supports_op = supports;
        made.iface.supports_buft = [](ggml_backend_dev_t, ggml_backend_buffer_type_t buft) {
            return buft == buffer_type();
        };
        return made;
    }();
    return &device;
}

} // namespace strata::executor
