/* The kernels. Compiled once for each level, with -DLEVEL=sse2, avx2 or neon: every function that
 * is called from outside is named magmerge_<level>_<name>. */

#include <stddef.h>

#if defined(_WIN32)
#define EXPORT __attribute__((dllexport))
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#define JOIN(level, name) magmerge_##level##_##name
#define EXPAND(level, name) JOIN(level, name)
#define NAME(name) EXPAND(LEVEL, name)

/* The same number as library.ABI; raised whenever the arguments of any function change. */
EXPORT int NAME(version)(void) { return 1; }

EXPORT float NAME(sum)(const float *values, size_t count) {
    float total = 0.0f;
    for (size_t i = 0; i < count; i++) total += values[i];
    return total;
}
