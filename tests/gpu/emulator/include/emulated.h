// What CUDA C++ means on the emulated device: threads of a block are fibers of one thread of the processor, which change
// only where they wait for each other. See the CUDA C++ Programming Guide for the functions, and the PTX ISA for the
// layout of matrix fragments.
#pragma once
#include <sys/mman.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

// The sources define these themselves, as long long.
#define uint64_t emulated_u64
#define int64_t emulated_i64

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __grid_constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __align__(n) __attribute__((aligned(n)))
// The driver runs one kernel at a time.
#define __shared__ static
#define __constant__ static

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
struct float2 { float x, y; };
struct uint4 { unsigned x, y, z, w; };
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

asm(R"(
.text
.weak emulated_switch
.type emulated_switch,@function
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
extern "C" void emulated_switch(void **save, void *resume);

namespace emulated {
enum Wait { RUNS, AT_BLOCK, AT_WARP, DONE };

struct Fiber {
    void *at = nullptr;
    char *stack = nullptr;
    uint3 index{};
    Wait wait = DONE;
};

constexpr size_t STACK = 512 << 10;
// Dynamic shared memory of a block.
constexpr size_t SHARED = 160 << 10;

struct Block {
    std::vector<Fiber> fibers;
    unsigned threads = 0, current = 0, live = 0, at_block = 0;
    unsigned warp_live[32] = {}, at_warp[32] = {};
    void *scheduler = nullptr;
    unsigned char *shared = nullptr;
    void (*body)(void *) = nullptr;
    void *data = nullptr;
    // What the lanes of each warp show each other.
    unsigned char shown[32][32][64];
};
inline Block block;

inline unsigned lane() { return block.current % 32; }
inline unsigned warp() { return block.current / 32; }

inline void yield() {
    Fiber &me = block.fibers[block.current];
    emulated_switch(&me.at, block.scheduler);
}

inline void open_block() {
    if (block.at_block == 0 || block.at_block < block.live) return;
    block.at_block = 0;
    for (unsigned i = 0; i < block.threads; i++)
        if (block.fibers[i].wait == AT_BLOCK) block.fibers[i].wait = RUNS;
}

inline void open_warp(unsigned w, bool anyway) {
    if (block.at_warp[w] == 0 || (!anyway && block.at_warp[w] < block.warp_live[w])) return;
    block.at_warp[w] = 0;
    for (unsigned i = w * 32; i < std::min(block.threads, w * 32 + 32); i++)
        if (block.fibers[i].wait == AT_WARP) block.fibers[i].wait = RUNS;
}

inline void meet_block() {
    block.fibers[block.current].wait = AT_BLOCK;
    block.at_block++;
    open_block();
    yield();
}

inline void meet_warp() {
    block.fibers[block.current].wait = AT_WARP;
    block.at_warp[warp()]++;
    open_warp(warp(), false);
    yield();
}

inline void start() {
    block.body(block.data);
    block.fibers[block.current].wait = DONE;
    block.live--;
    block.warp_live[warp()]--;
    open_block();
    open_warp(warp(), false);
    yield();
    abort();
}

inline void prepare(Fiber &fiber) {
    if (!fiber.stack) {
        void *memory = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) abort();
        fiber.stack = static_cast<char *>(memory);
    }
    // a function starts with the stack eight bytes off a multiple of sixteen
    void **top = reinterpret_cast<void **>(fiber.stack + STACK) - 3;
    *top = nullptr;
    *--top = reinterpret_cast<void *>(&start);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber.at = top;
    fiber.wait = RUNS;
}

inline void run_fibers() {
    while (block.live > 0) {
        bool went = false;
        for (unsigned i = 0; i < block.threads; i++) {
            Fiber &fiber = block.fibers[i];
            if (fiber.wait != RUNS) continue;
            went = true;
            block.current = i;
            threadIdx = fiber.index;
            emulated_switch(&block.scheduler, fiber.at);
        }
        if (went) continue;
        // Lanes that went another way do not come: those that are here go on, as under an active mask.
        bool opened = false;
        for (unsigned w = 0; w < 32; w++) opened |= block.at_warp[w] > 0, open_warp(w, true);
        if (!opened) {
            fprintf(stderr, "emulator: threads of a block wait for others that do not come\n");
            abort();
        }
    }
}

template <class F>
void launch(const unsigned *grid, const unsigned *shape, unsigned bytes, void *shared, bool fibers, F body) {
    block.shared = static_cast<unsigned char *>(shared);
    // Nothing is there until somebody writes it.
    if (shared) memset(shared, 0xff, bytes);
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {shape[0], shape[1], shape[2]};
    unsigned threads = shape[0] * shape[1] * shape[2];
    if (block.fibers.size() < threads) block.fibers.resize(threads);
    block.threads = threads;
    block.data = &body;
    block.body = [](void *data) { (*static_cast<F *>(data))(); };
    for (unsigned bz = 0; bz < grid[2]; bz++)
        for (unsigned by = 0; by < grid[1]; by++)
            for (unsigned bx = 0; bx < grid[0]; bx++) {
                blockIdx = {bx, by, bz};
                block.live = threads;
                std::fill(block.warp_live, block.warp_live + 32, 0);
                for (unsigned t = 0; t < threads; t++) {
                    uint3 index = {t % shape[0], t / shape[0] % shape[1], t / (shape[0] * shape[1])};
                    if (fibers) {
                        block.fibers[t].index = index;
                        block.warp_live[t / 32]++;
                        prepare(block.fibers[t]);
                    } else {
                        block.current = t;
                        threadIdx = index;
                        body();
                    }
                }
                if (fibers) run_fibers();
            }
}

template <class T>
T *shown(unsigned of) {
    static_assert(sizeof(T) <= 64);
    return reinterpret_cast<T *>(block.shown[warp()][of % 32]);
}

template <class T>
T exchange(T value, unsigned from) {
    *shown<T>(lane()) = value;
    meet_warp();
    T got = *shown<T>(from);
    meet_warp();
    return got;
}

template <class T>
void show(T value) {
    *shown<T>(lane()) = value;
    meet_warp();
}

inline float from_bf16(unsigned short bits) {
    unsigned wide = unsigned{bits} << 16;
    float out;
    memcpy(&out, &wide, 4);
    return out;
}

inline unsigned short to_bf16(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return static_cast<unsigned short>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float from_f16(unsigned short bits) {
    _Float16 half;
    memcpy(&half, &bits, 2);
    return static_cast<float>(half);
}

inline unsigned short to_f16(float x) {
    _Float16 half = static_cast<_Float16>(x);
    unsigned short bits;
    memcpy(&bits, &half, 2);
    return bits;
}

// Nineteen bits of an f32, rounded as cvt.rna does.
inline float to_tf32(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    bits = (bits + 0x1000) & 0xffffe000;
    memcpy(&x, &bits, 4);
    return x;
}
}  // namespace emulated

inline void __syncthreads() { emulated::meet_block(); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulated::meet_warp(); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline unsigned __activemask() { return 0xffffffffu; }
template <class T> T __shfl_sync(unsigned, T v, int from, int = 32) { return emulated::exchange(v, from); }
template <class T> T __shfl_xor_sync(unsigned, T v, int mask, int = 32) { return emulated::exchange(v, emulated::lane() ^ mask); }
template <class T> T __shfl_up_sync(unsigned, T v, unsigned by, int = 32) {
    return emulated::exchange(v, emulated::lane() < by ? emulated::lane() : emulated::lane() - by);
}
template <class T> T __shfl_down_sync(unsigned, T v, unsigned by, int = 32) {
    return emulated::exchange(v, emulated::lane() + by > 31 ? emulated::lane() : emulated::lane() + by);
}
inline unsigned __ballot_sync(unsigned, int predicate) {
    emulated::show(predicate != 0);
    unsigned all = 0;
    for (unsigned i = 0; i < 32; i++) all |= unsigned{*emulated::shown<bool>(i)} << i;
    emulated::meet_warp();
    return all;
}
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == 0xffffffffu; }
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; i++) y |= ((x >> i) & 1) << (31 - i);
    return y;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((static_cast<unsigned long long>(a) * b) >> 32); }
inline int __mulhi(int a, int b) { return static_cast<int>((static_cast<long long>(a) * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}

inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return std::pow(10.0f, x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __tanf(float x) { return std::tan(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __tanhf(float x) { return std::tanh(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __frsqrt_rn(float x) { return 1.0f / std::sqrt(x); }
inline float rsqrt(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __saturatef(float x) { return std::min(1.0f, std::max(0.0f, x)); }
inline float __int_as_float(int x) { float y; memcpy(&y, &x, 4); return y; }
inline int __float_as_int(float x) { int y; memcpy(&y, &x, 4); return y; }
inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
inline unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
using std::abs; using std::exp; using std::log; using std::sqrt; using std::tanh; using std::sin; using std::cos;
using std::pow; using std::floor; using std::ceil; using std::round; using std::trunc; using std::fma; using std::isnan;
using std::isinf; using std::erf; using std::log1p; using std::exp2; using std::log2; using std::fmod; using std::rint;
template <class A, class B> std::common_type_t<A, B> max(A a, B b) { using T = std::common_type_t<A, B>; return T(a) < T(b) ? T(b) : T(a); }
template <class A, class B> std::common_type_t<A, B> min(A a, B b) { using T = std::common_type_t<A, B>; return T(b) < T(a) ? T(b) : T(a); }

template <class T> T atomicAdd(T *at, T by) { T old = *at; *at = old + by; return old; }
template <class T> T atomicMax(T *at, T by) { T old = *at; if (old < by) *at = by; return old; }
template <class T> T atomicMin(T *at, T by) { T old = *at; if (by < old) *at = by; return old; }
template <class T> T atomicExch(T *at, T by) { T old = *at; *at = by; return old; }
template <class T> T atomicCAS(T *at, T if_this, T by) { T old = *at; if (old == if_this) *at = by; return old; }

#include "emulated_half.h"
#include "emulated_matrix.h"
