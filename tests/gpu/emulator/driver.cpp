// A CUDA driver (libcuda.so.1) whose one device is this machine's memory and processor: the part of the driver's
// interface that cubecl-cuda and dg-nccl call, in the signatures of cuda.h. Kernels come from nvrtc.cpp beside it.
//
// All calls are done when they return. Fresh device memory holds NaN patterns, so that reading what nobody wrote shows.
#include <dlfcn.h>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

namespace {
enum : int { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, INVALID_DEVICE = 101, LAUNCH_FAILED = 719 };

std::mutex lock;
std::map<uint64_t, size_t> allocations;
size_t in_use = 0;

size_t setting(const char *name, size_t otherwise) {
    const char *text = getenv(name);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}

// DG_EMULATED_MEMORY: bytes of the device.
size_t capacity() { return setting("DG_EMULATED_MEMORY", size_t{16} << 30); }

// DG_EMULATED_CAPABILITY: 80 for compute capability 8.0.
int capability() { return static_cast<int>(setting("DG_EMULATED_CAPABILITY", 80)); }

int allocate(uint64_t *out, size_t bytes) {
    std::lock_guard guard(lock);
    if (bytes == 0) return INVALID_VALUE;
    if (in_use + bytes > capacity()) return OUT_OF_MEMORY;
    void *memory = aligned_alloc(512, (bytes + 511) / 512 * 512);
    if (!memory) return OUT_OF_MEMORY;
    memset(memory, 0xff, bytes);
    *out = reinterpret_cast<uint64_t>(memory);
    allocations[*out] = bytes;
    in_use += bytes;
    return SUCCESS;
}

int release(uint64_t address) {
    std::lock_guard guard(lock);
    auto found = allocations.find(address);
    if (found == allocations.end()) return INVALID_VALUE;
    in_use -= found->second;
    allocations.erase(found);
    free(reinterpret_cast<void *>(address));
    return SUCCESS;
}

double now_ms() {
    using namespace std::chrono;
    return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

struct Copy2D {
    size_t src_x, src_y;
    int src_type;
    const void *src_host;
    uint64_t src_device;
    void *src_array;
    size_t src_pitch;
    size_t dst_x, dst_y;
    int dst_type;
    void *dst_host;
    uint64_t dst_device;
    void *dst_array;
    size_t dst_pitch;
    size_t width, height;
};

struct Event {
    double at = 0;
};

using Launch = void (*)(const unsigned *grid, const unsigned *block, unsigned shared, void **parameters);

struct Function {
    Launch launch;
};
}  // namespace

#define API extern "C" __attribute__((visibility("default"))) int

API cuInit(unsigned) { return SUCCESS; }
API cuDriverGetVersion(int *out) { return *out = 12080, SUCCESS; }
API cuDeviceGetCount(int *out) { return *out = 1, SUCCESS; }
API cuDeviceGet(int *out, int ordinal) {
    if (ordinal != 0) return INVALID_DEVICE;
    return *out = 0, SUCCESS;
}
API cuDeviceGetName(char *out, int length, int) { return snprintf(out, length, "NVIDIA A100 (emulated)"), SUCCESS; }
API cuDeviceTotalMem_v2(size_t *out, int) { return *out = capacity(), SUCCESS; }
API cuDeviceGetPCIBusId(char *out, int length, int) { return snprintf(out, length, "0000:01:00.0"), SUCCESS; }
API cuDeviceGetUuid(void *out, int) { return memset(out, 7, 16), SUCCESS; }
API cuDeviceGetUuid_v2(void *out, int) { return memset(out, 7, 16), SUCCESS; }
API cuDeviceGetAttribute(int *out, int attribute, int) {
    static const std::map<int, int> known = {
        {1, 1024},       {2, 1024},  {3, 1024},  {4, 64},          {5, 2147483647}, {6, 65535}, {7, 65535},
        {8, 49152},      {9, 65536}, {10, 32},   {11, 1 << 30},    {12, 65536},     {13, 1000}, {14, 512},
        {16, 4},         {18, 0},    {19, 1},    {20, 0},          {31, 1},         {33, 1},    {34, 0},
        {39, 2048},      {41, 1},    {81, 163840}, {82, 65536},    {83, 1},         {97, 163840}, {115, 1},
    };
    if (attribute == 75) return *out = capability() / 10, SUCCESS;
    if (attribute == 76) return *out = capability() % 10, SUCCESS;
    auto found = known.find(attribute);
    *out = found == known.end() ? 0 : found->second;
    return SUCCESS;
}

API cuDevicePrimaryCtxRetain(void **out, int) { return *out = &allocations, SUCCESS; }
API cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API cuCtxSetCurrent(void *) { return SUCCESS; }
API cuCtxGetCurrent(void **out) { return *out = &allocations, SUCCESS; }
API cuCtxSynchronize() { return SUCCESS; }
API cuCtxGetStreamPriorityRange(int *least, int *greatest) { return *least = 0, *greatest = -1, SUCCESS; }

API cuMemGetInfo_v2(size_t *available, size_t *total) {
    std::lock_guard guard(lock);
    return *total = capacity(), *available = *total - in_use, SUCCESS;
}
API cuMemAlloc_v2(uint64_t *out, size_t bytes) { return allocate(out, bytes); }
API cuMemAllocAsync(uint64_t *out, size_t bytes, void *) { return allocate(out, bytes); }
API cuMemFree_v2(uint64_t address) { return release(address); }
API cuMemFreeAsync(uint64_t address, void *) { return release(address); }
API cuMemAllocHost_v2(void **out, size_t bytes) {
    *out = aligned_alloc(64, (bytes + 63) / 64 * 64);
    return *out ? SUCCESS : OUT_OF_MEMORY;
}
API cuMemHostAlloc(void **out, size_t bytes, unsigned) { return cuMemAllocHost_v2(out, bytes); }
API cuMemFreeHost(void *memory) { return free(memory), SUCCESS; }
API cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t n) {
    return memcpy(reinterpret_cast<void *>(to), from, n), SUCCESS;
}
API cuMemcpyDtoH_v2(void *to, uint64_t from, size_t n) {
    return memcpy(to, reinterpret_cast<void *>(from), n), SUCCESS;
}
API cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t n) {
    return memmove(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), n), SUCCESS;
}
API cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, void *) { return cuMemcpyHtoD_v2(to, from, n); }
API cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, void *) { return cuMemcpyDtoH_v2(to, from, n); }
API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, void *) { return cuMemcpyDtoD_v2(to, from, n); }
API cuMemsetD8_v2(uint64_t to, unsigned char value, size_t n) {
    return memset(reinterpret_cast<void *>(to), value, n), SUCCESS;
}
API cuMemsetD8Async(uint64_t to, unsigned char value, size_t n, void *) { return cuMemsetD8_v2(to, value, n); }
API cuMemcpy2DAsync_v2(const Copy2D *c, void *) {
    auto side = [](int type, const void *host, uint64_t device) {
        return type == 1 ? reinterpret_cast<uint64_t>(host) : device;
    };
    uint64_t from = side(c->src_type, c->src_host, c->src_device) + c->src_y * c->src_pitch + c->src_x;
    uint64_t to = side(c->dst_type, c->dst_host, c->dst_device) + c->dst_y * c->dst_pitch + c->dst_x;
    for (size_t row = 0; row < c->height; row++) {
        memcpy(reinterpret_cast<void *>(to + row * c->dst_pitch),
               reinterpret_cast<const void *>(from + row * c->src_pitch), c->width);
    }
    return SUCCESS;
}

API cuStreamCreate(void **out, unsigned) { return *out = new int, SUCCESS; }
API cuStreamCreateWithPriority(void **out, unsigned, int) { return *out = new int, SUCCESS; }
API cuStreamDestroy_v2(void *stream) { return delete static_cast<int *>(stream), SUCCESS; }
API cuStreamSynchronize(void *) { return SUCCESS; }
API cuStreamQuery(void *) { return SUCCESS; }
API cuStreamWaitEvent(void *, void *, unsigned) { return SUCCESS; }
API cuStreamIsCapturing(void *, int *out) { return *out = 0, SUCCESS; }
API cuLaunchHostFunc(void *, void (*f)(void *), void *data) { return f(data), SUCCESS; }
API cuEventCreate(void **out, unsigned) { return *out = new Event, SUCCESS; }
API cuEventDestroy_v2(void *event) { return delete static_cast<Event *>(event), SUCCESS; }
API cuEventRecord(void *event, void *) { return static_cast<Event *>(event)->at = now_ms(), SUCCESS; }
API cuEventQuery(void *) { return SUCCESS; }
API cuEventSynchronize(void *) { return SUCCESS; }
API cuEventElapsedTime(float *out, void *from, void *to) {
    return *out = static_cast<float>(static_cast<Event *>(to)->at - static_cast<Event *>(from)->at), SUCCESS;
}
API cuEventElapsedTime_v2(float *out, void *from, void *to) { return cuEventElapsedTime(out, from, to); }

// What nvrtc.cpp calls PTX is the path of a library with one function for each kernel.
API cuModuleLoadData(void **out, const void *image) {
    const char *text = static_cast<const char *>(image);
    const char prefix[] = "// emulated: ";
    if (strncmp(text, prefix, sizeof prefix - 1) != 0) return INVALID_VALUE;
    *out = dlopen(text + sizeof prefix - 1, RTLD_NOW | RTLD_LOCAL);
    if (!*out) fprintf(stderr, "emulator: %s\n", dlerror());
    return *out ? SUCCESS : INVALID_VALUE;
}
API cuModuleUnload(void *) { return SUCCESS; }
API cuModuleGetFunction(void **out, void *module, const char *name) {
    void *launch = dlsym(module, (std::string("emulated_launch_") + name).c_str());
    if (!launch) return NOT_FOUND;
    *out = new Function{reinterpret_cast<Launch>(launch)};
    return SUCCESS;
}
API cuFuncSetAttribute(void *, int, int) { return SUCCESS; }
API cuFuncGetAttribute(int *out, int, void *) { return *out = 0, SUCCESS; }
API cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *, void **parameters, void **) {
    if (shared > 163840 || size_t{bx} * by * bz > 1024) return INVALID_VALUE;
    const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
    static std::mutex running;
    std::lock_guard<std::mutex> alone(running);
    static_cast<Function *>(function)->launch(grid, block, shared, parameters);
    return SUCCESS;
}

API cuGetErrorName(int code, const char **out) {
    return *out = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_EMULATED", SUCCESS;
}
API cuGetErrorString(int code, const char **out) {
    return *out = code == OUT_OF_MEMORY ? "out of memory" : "an error of the emulated device", SUCCESS;
}
