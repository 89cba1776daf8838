// Matrix products of a warp: nvcuda::wmma, whose fragments only lane 0 really holds, and mma.sync and ldmatrix of PTX,
// whose fragments are spread over the lanes as the PTX ISA says.
#pragma once

namespace nvcuda::wmma {
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };
namespace precision {
struct tf32 {};
}

template <class T> struct storage { using type = T; };
template <> struct storage<precision::tf32> { using type = float; };

template <class Use, int m, int n, int k, class T, class Layout = void>
struct fragment {
    static constexpr int rows = std::is_same_v<Use, matrix_b> ? k : m;
    static constexpr int columns = std::is_same_v<Use, matrix_a> ? k : n;
    static constexpr int num_elements = rows * columns;
    typename storage<T>::type x[num_elements];
};

template <class F, class V> void fill_fragment(F &f, V value) {
    for (auto &x : f.x) x = value;
}

template <class F, class P> void take(F &f, const P *from, unsigned stride, bool by_row) {
    emulated::meet_warp();
    if (emulated::lane() == 0)
        for (int r = 0; r < F::rows; r++)
            for (int c = 0; c < F::columns; c++) f.x[r * F::columns + c] = by_row ? from[r * stride + c] : from[c * stride + r];
    emulated::meet_warp();
}

template <class Use, int m, int n, int k, class T, class Layout, class P>
void load_matrix_sync(fragment<Use, m, n, k, T, Layout> &f, const P *from, unsigned stride) {
    take(f, from, stride, std::is_same_v<Layout, row_major>);
}

template <int m, int n, int k, class T, class P>
void load_matrix_sync(fragment<accumulator, m, n, k, T, void> &f, const P *from, unsigned stride, layout_t layout) {
    take(f, from, stride, layout == mem_row_major);
}

template <int m, int n, int k, class T, class P>
void store_matrix_sync(P *to, const fragment<accumulator, m, n, k, T, void> &f, unsigned stride, layout_t layout) {
    emulated::meet_warp();
    if (emulated::lane() == 0)
        for (int r = 0; r < m; r++)
            for (int c = 0; c < n; c++) to[layout == mem_row_major ? r * stride + c : c * stride + r] = f.x[r * n + c];
    emulated::meet_warp();
}

template <int m, int n, int k, class C, class A, class LA, class LB, class D>
void mma_sync(fragment<accumulator, m, n, k, C, void> &d, const fragment<matrix_a, m, n, k, A, LA> &a,
              const fragment<matrix_b, m, n, k, A, LB> &b, const fragment<accumulator, m, n, k, D, void> &c) {
    if (emulated::lane() != 0) return;
    constexpr bool whole = std::is_integral_v<typename storage<A>::type>;
    using S = std::conditional_t<whole, int, float>;
    S left[m * k], right[k * n];
    for (int i = 0; i < m * k; i++) left[i] = S(a.x[i]);
    for (int i = 0; i < k * n; i++) right[i] = S(b.x[i]);
    if constexpr (std::is_same_v<A, precision::tf32>) {
        for (auto &x : left) x = emulated::to_tf32(x);
        for (auto &x : right) x = emulated::to_tf32(x);
    }
    for (int r = 0; r < m; r++) {
        S sums[n];
        for (int j = 0; j < n; j++) sums[j] = S(c.x[r * n + j]);
        for (int i = 0; i < k; i++)
            for (int j = 0; j < n; j++) sums[j] += left[r * k + i] * right[i * n + j];
        for (int j = 0; j < n; j++) d.x[r * n + j] = sums[j];
    }
}

inline float __float_to_tf32(float x) { return emulated::to_tf32(x); }
}  // namespace nvcuda::wmma
using namespace nvcuda;
inline float __float_to_tf32(float x) { return emulated::to_tf32(x); }

namespace emulated {
// The two 16-bit halves of a register, as numbers.
template <bool bf16> float low(unsigned x) { return bf16 ? from_bf16(x & 0xffff) : from_f16(x & 0xffff); }
template <bool bf16> float high(unsigned x) { return bf16 ? from_bf16(x >> 16) : from_f16(x >> 16); }

// m16n8k16: a lane has rows g and g + 8 of A and D, g = lane / 4, and column g of B; t = lane % 4 picks its pairs of k.
template <bool bf16>
void mma_16816(float *d, const unsigned (&a)[4], const unsigned (&b)[2], const float (&c)[4]) {
    struct Registers { unsigned a[4], b[2]; } mine;
    memcpy(mine.a, a, sizeof a), memcpy(mine.b, b, sizeof b);
    show(mine);
    unsigned g = lane() / 4, t = lane() % 4;
    for (unsigned i = 0; i < 4; i++) {
        unsigned column = 2 * t + i % 2, high_row = i / 2;
        float sum = c[i];
        for (unsigned part = 0; part < 2; part++)
            for (unsigned u = 0; u < 4; u++) {
                unsigned left = shown<Registers>(g * 4 + u)->a[2 * part + high_row];
                unsigned right = shown<Registers>(column * 4 + u)->b[part];
                sum += low<bf16>(left) * low<bf16>(right) + high<bf16>(left) * high<bf16>(right);
            }
        d[i] = sum;
    }
    meet_warp();
}

// The r-th 8 × 8 matrix that ldmatrix reads: lane 8·r + i has the address of its row i.
inline unsigned matrix_part(unsigned address, unsigned r, bool transposed) {
    show(address);
    unsigned g = lane() / 4, t = lane() % 4;
    auto row = [&](unsigned i) {
        return reinterpret_cast<const unsigned short *>(block.shared + *shown<unsigned>(8 * r + i));
    };
    unsigned low = transposed ? row(2 * t)[g] : row(g)[2 * t];
    unsigned high = transposed ? row(2 * t + 1)[g] : row(g)[2 * t + 1];
    meet_warp();
    return low | high << 16;
}
}  // namespace emulated

template <class T> unsigned __cvta_generic_to_shared(T *address) {
    return static_cast<unsigned>(reinterpret_cast<const unsigned char *>(address) - emulated::block.shared);
}

#define EMULATED_LDMATRIX(SUFFIX, TRANSPOSED)                                                                          \
    inline void ptx_ldmatrix_sync_aligned_m8n8_x4##SUFFIX(unsigned &r0, unsigned &r1, unsigned &r2, unsigned &r3,      \
                                                          unsigned address) {                                          \
        r0 = emulated::matrix_part(address, 0, TRANSPOSED), r1 = emulated::matrix_part(address, 1, TRANSPOSED);        \
        r2 = emulated::matrix_part(address, 2, TRANSPOSED), r3 = emulated::matrix_part(address, 3, TRANSPOSED);        \
    }                                                                                                                  \
    inline void ptx_ldmatrix_sync_aligned_m8n8_x2##SUFFIX(unsigned &r0, unsigned &r1, unsigned address) {              \
        r0 = emulated::matrix_part(address, 0, TRANSPOSED), r1 = emulated::matrix_part(address, 1, TRANSPOSED);        \
    }                                                                                                                  \
    inline void ptx_ldmatrix_sync_aligned_m8n8_x1##SUFFIX(unsigned &r0, unsigned address) {                            \
        r0 = emulated::matrix_part(address, 0, TRANSPOSED);                                                            \
    }
EMULATED_LDMATRIX(_shared__cta_b16, false)
EMULATED_LDMATRIX(_trans_shared__cta_b16, true)
#undef EMULATED_LDMATRIX

#define EMULATED_MMA(NAME, BF16)                                                                                       \
    inline void NAME(float &d0, float &d1, float &d2, float &d3, unsigned a0, unsigned a1, unsigned a2, unsigned a3,   \
                     unsigned b0, unsigned b1, float c0, float c1, float c2, float c3) {                               \
        float d[4];                                                                                                    \
        emulated::mma_16816<BF16>(d, {a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3});                                    \
        d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];                                                                    \
    }
EMULATED_MMA(ptx_mma_sync_aligned_m16n8k16_row_col_f32_bf16_bf16_f32, true)
EMULATED_MMA(ptx_mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32, false)
#undef EMULATED_MMA
