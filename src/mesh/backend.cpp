// The mesh as ggml sees it: a device whose memory and graphs are a Lane's. No thought of its own in here.
#include "mesh/backend.h"

#include "base/check.h"
#include "executor/op_check.h"

#include <fmt/format.h>
#include <ggml-backend-impl.h>

#include <deque>
#include <mutex>

namespace strata::mesh {
namespace {

struct DeviceContext {
    std::string name;
    std::string description;
    std::unique_ptr<Lane> lane;
    ggml_backend_buffer_type buffer_type{};
    ggml_backend_device device{};
};

Lane & lane_of(ggml_backend_dev_t device) {
    return *static_cast<DeviceContext *>(device->context)->lane;
}
Lane & lane_of(ggml_backend_buffer_t buffer) {
    return lane_of(buffer->buft->device);
}
Lane & lane_of(ggml_backend_t backend) {
    return lane_of(backend->device);
}
const Lane::Buffer & buffer_of(ggml_backend_buffer_t buffer) {
    return *static_cast<const Lane::Buffer *>(buffer->context);
}

Segment range_of(const ggml_tensor & tensor, size_t offset, size_t bytes) {
    return {reinterpret_cast<uint64_t>(tensor.data) + offset, bytes};
}

ggml_backend_buffer_t memory_of(const ggml_tensor & tensor) {
    return tensor.view_src != nullptr ? tensor.view_src->buffer : tensor.buffer;
}

// -------------------- buffer

void buffer_free(ggml_backend_buffer_t buffer) {
    lane_of(buffer).free(buffer_of(buffer));
}

void * buffer_base(ggml_backend_buffer_t buffer) {
    return reinterpret_cast<void *>(buffer_of(buffer).range.address); // NOLINT(performance-no-int-to-ptr): invented
}

ggml_status buffer_init_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor) {
    lane_of(buffer).place(*tensor);
    return GGML_STATUS_SUCCESS;
}

void buffer_memset_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor, uint8_t value, size_t offset,
                          size_t size) {
    if (size > 0) lane_of(buffer).fill(range_of(*tensor, offset, size), value);
}

void buffer_set_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * data, size_t offset,
                       size_t size) {
    if (size == 0) return;
    const bool whole = offset == 0 && size == ggml_nbytes(tensor) && tensor->view_src == nullptr;
    if (whole && buffer->usage == GGML_BACKEND_BUFFER_USAGE_WEIGHTS && ggml_is_contiguous(tensor)) {
        lane_of(buffer).set_weight(*tensor, data);
    } else {
        lane_of(buffer).set(range_of(*tensor, offset, size), data);
    }
}

void buffer_get_tensor(ggml_backend_buffer_t buffer, const ggml_tensor * tensor, void * data, size_t offset,
                       size_t size) {
    if (size == 0) return;
    lane_of(buffer).read(range_of(*tensor, offset, size), data);
    (void)lane_of(buffer).synchronize(); // the next graph says what went wrong
}

bool buffer_cpy_tensor(ggml_backend_buffer_t buffer, const ggml_tensor * src, ggml_tensor * dst) {
    if (memory_of(*src)->buft != buffer->buft || !ggml_is_contiguous(src) || !ggml_is_contiguous(dst)) return false;
    if (ggml_nbytes(src) == 0) return true;
    lane_of(buffer).copy(reinterpret_cast<uint64_t>(dst->data), range_of(*src, 0, ggml_nbytes(src)));
    return true;
}

void buffer_clear(ggml_backend_buffer_t buffer, uint8_t value) {
    lane_of(buffer).fill(buffer_of(buffer).range, value);
}

constexpr ggml_backend_buffer_i kBuffer = {
    buffer_free, buffer_base, buffer_init_tensor, buffer_memset_tensor, buffer_set_tensor, buffer_get_tensor,
    nullptr,     nullptr,     buffer_cpy_tensor,  buffer_clear,         nullptr,
};

const char * buft_name(ggml_backend_buffer_type_t buft) {
    return static_cast<DeviceContext *>(buft->device->context)->name.c_str();
}

ggml_backend_buffer_t buft_alloc(ggml_backend_buffer_type_t buft, size_t size) {
    Lane & lane = lane_of(buft->device);
    if (lane.failed()) return nullptr;
    const Lane::Buffer & allocated = lane.allocate(size);
    ggml_backend_buffer_t buffer =
        ggml_backend_buffer_init(buft, kBuffer, const_cast<Lane::Buffer *>(&allocated), size);
    lane.set_usage(allocated, [buffer] {
        switch (buffer->usage) {
        case GGML_BACKEND_BUFFER_USAGE_WEIGHTS:
            return Usage::kWeights;
        case GGML_BACKEND_BUFFER_USAGE_COMPUTE:
            return Usage::kCompute;
        default:
            return Usage::kState;
        }
    });
    return buffer;
}

size_t buft_alignment(ggml_backend_buffer_type_t buft) {
    return lane_of(buft->device).alignment();
}

constexpr ggml_backend_buffer_type_i kBufferType = {buft_name, buft_alloc, buft_alignment, nullptr, nullptr, nullptr};

// -------------------- backend

const char * backend_name(ggml_backend_t backend) {
    return static_cast<DeviceContext *>(backend->device->context)->name.c_str();
}

void backend_free(ggml_backend_t backend) {
    delete backend;
}

void backend_set_async(ggml_backend_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    buffer_set_tensor(memory_of(*tensor), tensor, data, offset, size);
}

void backend_get_async(ggml_backend_t backend, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    if (size > 0) lane_of(backend).read(range_of(*tensor, offset, size), data);
}

bool backend_cpy_async(ggml_backend_t, ggml_backend_t to, const ggml_tensor * src, ggml_tensor * dst) {
    ggml_backend_buffer_t from = memory_of(*src);
    ggml_backend_buffer_t target = memory_of(*dst);
    if (target->buft->device != to->device) return false;
    if (ggml_backend_buffer_is_host(from)) {
        buffer_set_tensor(target, dst, src->data, 0, ggml_nbytes(dst));
        return true;
    }
    return buffer_cpy_tensor(target, src, dst);
}

// Waits for what is being read only: nothing else keeps a pointer of the caller's.
void backend_synchronize(ggml_backend_t backend) {
    (void)lane_of(backend).synchronize();
}

ggml_status backend_compute(ggml_backend_t backend, ggml_cgraph * graph) {
    const absl::Status status = lane_of(backend).compute(*graph);
    if (status.ok()) return GGML_STATUS_SUCCESS;
    fmt::print(stderr, "strata mesh: {}\n", std::string(status.message()));
    return GGML_STATUS_FAILED;
}

constexpr ggml_backend_i kBackend = {
    .get_name = backend_name,
    .free = backend_free,
    .set_tensor_async = backend_set_async,
    .get_tensor_async = backend_get_async,
    .set_tensor_2d_async = nullptr,
    .get_tensor_2d_async = nullptr,
    .cpy_tensor_async = backend_cpy_async,
    .synchronize = backend_synchronize,
    .graph_plan_create = nullptr,
    .graph_plan_free = nullptr,
    .graph_plan_update = nullptr,
    .graph_plan_compute = nullptr,
    .graph_compute = backend_compute,
    .event_record = nullptr,
    .event_wait = nullptr,
    .graph_optimize = nullptr,
};

ggml_guid_t backend_guid() {
    static ggml_guid guid = {0x73, 0x74, 0x72, 0x61, 0x74, 0x61, 0x2d, 0x6d,
                             0x65, 0x73, 0x68, 0x2d, 0x30, 0x30, 0x30, 0x31};
    return &guid;
}

// -------------------- device

const char * device_name(ggml_backend_dev_t device) {
    return static_cast<DeviceContext *>(device->context)->name.c_str();
}

const char * device_description(ggml_backend_dev_t device) {
    return static_cast<DeviceContext *>(device->context)->description.c_str();
}

void device_memory(ggml_backend_dev_t device, size_t * free, size_t * total) {
    *free = lane_of(device).free_bytes();
    *total = lane_of(device).total_bytes();
}

enum ggml_backend_dev_type device_type(ggml_backend_dev_t) {
    return GGML_BACKEND_DEVICE_TYPE_GPU; // what libllama puts layers on
}

void device_props(ggml_backend_dev_t device, ggml_backend_dev_props * props) {
    props->name = device_name(device);
    props->description = device_description(device);
    props->type = device_type(device);
    device_memory(device, &props->memory_free, &props->memory_total);
    props->caps = {};
    props->caps.async = true;
    props->caps.mmap_support = true;
}

ggml_backend_t device_init(ggml_backend_dev_t device, const char *) {
    return new ggml_backend{backend_guid(), kBackend, device, device->context};
}

ggml_backend_buffer_type_t device_buffer_type(ggml_backend_dev_t device) {
    return &static_cast<DeviceContext *>(device->context)->buffer_type;
}

// Executors run ggml's CPU kernels of the same build, on nodes that op_check lets through: both are asked here.
bool device_supports_op(ggml_backend_dev_t, const ggml_tensor * op) {
    static ggml_backend_dev_t const cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (cpu == nullptr || !ggml_backend_dev_supports_op(cpu, op)) return false;
    ggml_tensor asked = *op;
    // libllama asks where frequency factors may lie with a ROPE that turns no channel, which it never runs.
    if (asked.op == GGML_OP_ROPE && asked.op_params[1] == 0) asked.op_params[1] = static_cast<int32_t>(asked.ne[0]);
    return executor::computes_nothing(asked) || executor::check_op(asked).ok();
}

bool device_supports_buft(ggml_backend_dev_t device, ggml_backend_buffer_type_t buft) {
    return buft == device_buffer_type(device);
}

constexpr ggml_backend_device_i kDevice = {
    .get_name = device_name,
    .get_description = device_description,
    .get_memory = device_memory,
    .get_type = device_type,
    .get_props = device_props,
    .init_backend = device_init,
    .get_buffer_type = device_buffer_type,
    .get_host_buffer_type = nullptr,
    .buffer_from_host_ptr = nullptr,
    .supports_op = device_supports_op,
    .supports_buft = device_supports_buft,
    .offload_op = nullptr,
    .event_new = nullptr,
    .event_free = nullptr,
    .event_synchronize = nullptr,
};

// -------------------- registry

std::deque<DeviceContext> & devices() {
    static auto * const all = new std::deque<DeviceContext>; // ggml's devices live as long as the process
    return *all;
}

const char * registry_name(ggml_backend_reg_t) {
    return "STRATA";
}

size_t registry_count(ggml_backend_reg_t) {
    return devices().size();
}

ggml_backend_dev_t registry_device(ggml_backend_reg_t, size_t index) {
    return &devices()[index].device;
}

void * registry_function(ggml_backend_reg_t, const char *) {
    return nullptr;
}

} // namespace

ggml_backend_reg_t registry() {
    static ggml_backend_reg reg = {
        GGML_BACKEND_API_VERSION,
        {registry_name, registry_count, registry_device, registry_function},
        nullptr,
    };
    return &reg;
}

ggml_backend_dev_t add_device(std::unique_ptr<Lane> lane) {
    DeviceContext & context = devices().emplace_back();
    context.name = fmt::format("STRATA{}", devices().size() - 1);
    context.description = lane->description();
    context.lane = std::move(lane);
    context.device = {kDevice, registry(), &context};
    context.buffer_type = {kBufferType, &context.device, nullptr};
    return &context.device;
}

} // namespace strata::mesh
