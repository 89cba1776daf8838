// The 16-bit floats of cuda_fp16.h and cuda_bf16.h: every operation rounds.
#pragma once

#define EMULATED_HALF(NAME, PAIR, FROM, TO)                                                                            \
    struct NAME {                                                                                                      \
        unsigned short bits;                                                                                           \
        NAME() = default;                                                                                              \
        template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>                                          \
        NAME(T x) : bits(emulated::TO(static_cast<float>(x))) {}                                                       \
        operator float() const { return emulated::FROM(bits); }                                                        \
        NAME &operator+=(NAME o) { return *this = NAME(float(*this) + float(o)); }                                     \
        NAME &operator-=(NAME o) { return *this = NAME(float(*this) - float(o)); }                                     \
        NAME &operator*=(NAME o) { return *this = NAME(float(*this) * float(o)); }                                     \
        NAME &operator/=(NAME o) { return *this = NAME(float(*this) / float(o)); }                                     \
    };                                                                                                                 \
    inline NAME operator+(NAME a, NAME b) { return NAME(float(a) + float(b)); }                                        \
    inline NAME operator-(NAME a, NAME b) { return NAME(float(a) - float(b)); }                                        \
    inline NAME operator*(NAME a, NAME b) { return NAME(float(a) * float(b)); }                                        \
    inline NAME operator/(NAME a, NAME b) { return NAME(float(a) / float(b)); }                                        \
    inline NAME operator-(NAME a) { return NAME(-float(a)); }                                                          \
    struct PAIR {                                                                                                      \
        NAME x, y;                                                                                                     \
        PAIR() = default;                                                                                              \
        PAIR(NAME a, NAME b) : x(a), y(b) {}                                                                           \
        PAIR(NAME a) : x(a), y(a) {}                                                                                   \
    };                                                                                                                 \
    inline PAIR operator+(PAIR a, PAIR b) { return {a.x + b.x, a.y + b.y}; }                                           \
    inline PAIR operator-(PAIR a, PAIR b) { return {a.x - b.x, a.y - b.y}; }                                           \
    inline PAIR operator*(PAIR a, PAIR b) { return {a.x * b.x, a.y * b.y}; }                                           \
    inline PAIR operator/(PAIR a, PAIR b) { return {a.x / b.x, a.y / b.y}; }                                           \
    inline PAIR operator-(PAIR a) { return {-a.x, -a.y}; }                                                             \
    inline NAME __habs(NAME a) { return NAME(std::fabs(float(a))); }                                                   \
    inline NAME __hneg(NAME a) { return -a; }                                                                          \
    inline NAME __hadd(NAME a, NAME b) { return a + b; }                                                               \
    inline NAME __hsub(NAME a, NAME b) { return a - b; }                                                               \
    inline NAME __hmul(NAME a, NAME b) { return a * b; }                                                               \
    inline NAME __hdiv(NAME a, NAME b) { return a / b; }                                                               \
    inline NAME __hmax(NAME a, NAME b) { return float(a) < float(b) ? b : a; }                                         \
    inline NAME __hmin(NAME a, NAME b) { return float(b) < float(a) ? b : a; }                                         \
    inline NAME __hfma(NAME a, NAME b, NAME c) { return NAME(std::fma(float(a), float(b), float(c))); }                \
    inline bool __hisnan(NAME a) { return std::isnan(float(a)); }                                                      \
    inline bool __hisinf(NAME a) { return std::isinf(float(a)); }                                                      \
    inline NAME hexp(NAME a) { return NAME(std::exp(float(a))); }                                                      \
    inline NAME hlog(NAME a) { return NAME(std::log(float(a))); }                                                      \
    inline NAME hsin(NAME a) { return NAME(std::sin(float(a))); }                                                      \
    inline NAME hcos(NAME a) { return NAME(std::cos(float(a))); }                                                      \
    inline NAME htanh(NAME a) { return NAME(std::tanh(float(a))); }                                                    \
    inline NAME hsqrt(NAME a) { return NAME(std::sqrt(float(a))); }                                                    \
    inline NAME hrsqrt(NAME a) { return NAME(1.0f / std::sqrt(float(a))); }                                            \
    inline NAME hrcp(NAME a) { return NAME(1.0f / float(a)); }                                                         \
    inline NAME hfloor(NAME a) { return NAME(std::floor(float(a))); }                                                  \
    inline NAME hceil(NAME a) { return NAME(std::ceil(float(a))); }                                                    \
    inline NAME hrint(NAME a) { return NAME(std::rint(float(a))); }                                                    \
    inline NAME htrunc(NAME a) { return NAME(std::trunc(float(a))); }                                                  \
    inline PAIR __habs2(PAIR a) { return {__habs(a.x), __habs(a.y)}; }                                                 \
    inline PAIR __hmax2(PAIR a, PAIR b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }                               \
    inline PAIR __hmin2(PAIR a, PAIR b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }                               \
    inline PAIR __hfma2(PAIR a, PAIR b, PAIR c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }             \
    inline PAIR h2exp(PAIR a) { return {hexp(a.x), hexp(a.y)}; }                                                       \
    inline PAIR h2log(PAIR a) { return {hlog(a.x), hlog(a.y)}; }                                                       \
    inline PAIR h2sin(PAIR a) { return {hsin(a.x), hsin(a.y)}; }                                                       \
    inline PAIR h2cos(PAIR a) { return {hcos(a.x), hcos(a.y)}; }                                                       \
    inline PAIR h2tanh(PAIR a) { return {htanh(a.x), htanh(a.y)}; }                                                    \
    inline PAIR h2sqrt(PAIR a) { return {hsqrt(a.x), hsqrt(a.y)}; }                                                    \
    inline PAIR h2rsqrt(PAIR a) { return {hrsqrt(a.x), hrsqrt(a.y)}; }                                                 \
    inline PAIR h2rcp(PAIR a) { return {hrcp(a.x), hrcp(a.y)}; }                                                       \
    inline PAIR h2floor(PAIR a) { return {hfloor(a.x), hfloor(a.y)}; }                                                 \
    inline PAIR h2ceil(PAIR a) { return {hceil(a.x), hceil(a.y)}; }                                                    \
    inline PAIR h2rint(PAIR a) { return {hrint(a.x), hrint(a.y)}; }                                                    \
    inline PAIR h2trunc(PAIR a) { return {htrunc(a.x), htrunc(a.y)}; }

EMULATED_HALF(__half, __half2, from_f16, to_f16)
EMULATED_HALF(__nv_bfloat16, __nv_bfloat162, from_bf16, to_bf16)
#undef EMULATED_HALF
using half = __half;
using half2 = __half2;

inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __half __float2half(float x) { return x; }
inline float __half2float(__half x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline __half2 __float22half2_rn(float2 x) { return {__half(x.x), __half(x.y)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 x) { return {__nv_bfloat16(x.x), __nv_bfloat16(x.y)}; }
inline float2 __half22float2(__half2 x) { return {x.x, x.y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 x) { return {x.x, x.y}; }
