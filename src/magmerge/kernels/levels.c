/* Which level of instructions this processor has, and who compiled the library. Compiled once, at
 * the lowest level: whatever the processor, this file may be called. */

#if defined(_WIN32)
#define EXPORT __attribute__((dllexport))
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#define STRING(x) #x
#define QUOTED(x) STRING(x)

#if defined(__x86_64__)
#include <cpuid.h>

enum { FMA = 1 << 12, OSXSAVE = 1 << 27, AVX = 1 << 28, F16C = 1 << 29 };
enum { AVX2 = 1 << 5, BMI2 = 1 << 8 };
enum { XMM_AND_YMM = 6 };

/* Asked of the processor itself: __builtin_cpu_supports knows f16c only of late, and needs a part
 * of the compiler's own library that not all compilers bring. */
static int has_avx2(void) {
    unsigned a, b, c, d, low, high;
    const unsigned first = FMA | OSXSAVE | AVX | F16C, seventh = AVX2 | BMI2;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & first) != first) return 0;
    /* Does the system keep the wide registers when it switches threads? */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & XMM_AND_YMM) != XMM_AND_YMM) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & seventh) == seventh;
}

EXPORT const char *magmerge_level(void) { return has_avx2() ? "avx2" : "sse2"; }
#elif defined(__aarch64__)
EXPORT const char *magmerge_level(void) { return "neon"; }
#else
#error "no level of the kernels is for this processor"
#endif

EXPORT const char *magmerge_compiler(void) {
#if defined(__clang__)
    return "clang " QUOTED(__clang_major__) "." QUOTED(__clang_minor__);
#elif defined(__GNUC__)
    return "gcc " QUOTED(__GNUC__) "." QUOTED(__GNUC_MINOR__);
#else
    return "an unknown compiler";
#endif
}
