/* The arithmetic of magmerge's torch functions for the CPU, fused over tiles that stay in its cache.

The functions are the definition: methods/, calibrators/wsc.py, linalg/row_norms.py, linalg/draws.py.
Here are the same float32 operations in the same order, so that the bits are the same. Sums are taken
in float64 by lanes and blocks, as row_norms.py says. What is not finite is told by a flag; the
functions then find out what it is. A kernel knows nothing of files, names or recipes.

The file is compiled once for each LEVEL of a processor; see compile.py for the flags that keep the
bits: no contraction of a product and a sum but where fmaf asks for it. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define JOINED(level, name) magmerge_##level##_##name
#define AT_LEVEL(level, name) JOINED(level, name)
#if defined(_WIN32)
#define EXPORT __attribute__((dllexport))
#else
#define EXPORT __attribute__((visibility("default")))
#endif
#define KERNEL(name) AT_LEVEL(LEVEL, name)

enum { VERSION = 1 };
enum { TILE = 1024, BLOCK = 128, LANES = 8, CHUNK = 1 << 16 };
enum { F32, BF16, F16, DELTA };                    /* DELTA: float32 task vectors, not weights */
enum { ALL, BEYOND, BAND, DROP };                  /* which entries of a task vector stay */
enum { SUM, ELECT_PLAIN, ELECT_WEIGHTED };         /* how task vectors become one */
enum { AS_IS, MULTIPLY, DIVIDE };                  /* what is done with the result */
enum { UNCALIBRATED, ELLIPSOID, SPHERE };          /* WSC's target */
enum { GATE_OFF, GROW, SHRINK };
enum { SOUND = 0, INPUT_NOT_FINITE = 1, RESULT_TOO_LARGE = 2 };

typedef double lanes_t __attribute__((vector_size(LANES * sizeof(double))));

/* What is done to a layer; the same for all of its pieces, but for thresholds and draws. */
typedef struct {
    int32_t experts, keep, combine, mean, scaling, calibrate, gate;
    float scale, least;        /* `least`: the smallest weight that is not zero */
    const float *weights;      /* [K] of the combination */
    const float *factors;      /* [K] that what stays is multiplied with, or NULL */
    const float *low, *high;   /* [K] thresholds: what is beyond `low` stays, beyond `high` goes */
    const int64_t *low_until, *high_until; /* [K] before these places equal entries are beyond */
    const uint32_t *stay;      /* [K] an entry stays where its draw of 31 bits is below */
    const uint64_t *states;    /* [K, chunks, 4] of the generators, from the chunk of `start` on */
    int64_t chunks;
} Stages;

/* Some entries of a layer. `columns` is the length of its rows, 0 where rows do not matter. */
typedef struct {
    int64_t entries, columns, grain, start;
    const void *base;          /* or NULL: zeros */
    const void *const *experts;
    const int32_t *formats;    /* of the experts, then the base, then the result */
    void *result;
} Piece;

/* What the record tells of a piece: of each grain, or where it is calibrated of each row. */
typedef struct {
    double *before;            /* squares of the merged task vector */
    double *experts;           /* [K, rows] of the experts' */
    double *cosines;           /* mean cosine of the experts' rows; -2 where there is none */
    float *free_factor, *factor;
} Tally;

typedef struct {
    const uint64_t *states;
    uint64_t a, b, c, counter;
    int64_t place;
    int32_t spare;
} Draws;

/* Memory to work in: a tile of each task vector and of what stays of it, a tile or a whole row of
base and merged task vector, and sums. */
typedef struct {
    float *deltas, *kept, *base, *merged, *signs, *share;
    int32_t *draws;
    double *wide;              /* [K + 1, BLOCK] */
    lanes_t *sums;             /* for each pair of the K + 1 rows */
    double *gram;
    Draws *generators;
} Bench;

static inline float float_of(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline uint32_t bits_of(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }
static inline uint32_t magnitude(float x) { return bits_of(x) & 0x7fffffffu; }
static inline uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }
static inline int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }
static inline float sign_of(float x) { return (float)((x > 0) - (x < 0)); }

/* ---- stored formats ---- */

static inline float float_of_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, size = half & 0x7fff;
    uint32_t normal = (size << 13) + (112u << 23);
    uint32_t small = bits_of((float)(int32_t)size * 0x1p-24f);
    uint32_t special = normal + (112u << 23);
    return float_of(sign | (size < 0x400 ? small : size < 0x7c00 ? normal : special));
}

static inline uint16_t half_of_float(float x) {
    uint32_t sign = (bits_of(x) >> 16) & 0x8000, size = magnitude(x);
    uint32_t small = bits_of(float_of(size) + 0.5f) - bits_of(0.5f);
    uint32_t normal = (size - (112u << 23) + 0xfff + ((size >> 13) & 1)) >> 13;
    return (uint16_t)(sign | (size < 0x38800000u ? small : normal));
}

static void widen(const void *stored, int format, int64_t at, int64_t count, float *restrict to) {
    if (format == BF16) {
        const uint16_t *from = (const uint16_t *)stored + at;
        for (int64_t i = 0; i < count; i++) to[i] = float_of((uint32_t)from[i] << 16);
    } else if (format == F16) {
        const uint16_t *from = (const uint16_t *)stored + at;
        for (int64_t i = 0; i < count; i++) to[i] = float_of_half(from[i]);
    } else {
        memcpy(to, (const float *)stored + at, (size_t)count * sizeof(float));
    }
}

/* The stored result, and whether all of it is within its format. */
static int narrow(const float *restrict from, int format, int64_t at, int64_t count, void *stored) {
    uint32_t most = 0;
    if (format == BF16) {
        uint16_t *restrict to = (uint16_t *)stored + at;
        for (int64_t i = 0; i < count; i++) {
            uint32_t bits = bits_of(from[i]);
            most = larger(most, bits & 0x7fffffffu);
            to[i] = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
        }
        return most < 0x7f7f8000u;
    }
    for (int64_t i = 0; i < count; i++) most = larger(most, magnitude(from[i]));
    if (format == F16) {
        uint16_t *restrict to = (uint16_t *)stored + at;
        for (int64_t i = 0; i < count; i++) to[i] = half_of_float(from[i]);
        return most < 0x477ff000u;
    }
    memcpy((float *)stored + at, from, (size_t)count * sizeof(float));
    return most < 0x7f800000u;
}

static void read_base(const Piece *piece, int experts, int64_t at, int64_t count, float *base) {
    if (piece->base)
        widen(piece->base, piece->formats[experts], at, count, base);
    else
        memset(base, 0, (size_t)count * sizeof(float));
}

/* The task vector of an expert, and whether it is finite. */
static int difference(const void *stored, int format, int64_t at, int64_t count,
                      const float *restrict base, float *restrict delta) {
    uint32_t most = 0;
    if (format == BF16) {
        const uint16_t *restrict from = (const uint16_t *)stored + at;
        for (int64_t i = 0; i < count; i++) {
            delta[i] = float_of((uint32_t)from[i] << 16) - base[i];
            most = larger(most, magnitude(delta[i]));
        }
        return most < 0x7f800000u;
    }
    widen(stored, format, at, count, delta);
    if (format != DELTA)
        for (int64_t i = 0; i < count; i++) delta[i] = delta[i] - base[i];
    for (int64_t i = 0; i < count; i++) most = larger(most, magnitude(delta[i]));
    return most < 0x7f800000u;
}

/* ---- which entries stay (methods/sparsify.py, linalg/selection.py) ---- */

static void keep_beyond(float *restrict delta, int64_t count, float value, int64_t equal) {
    if (value <= 0) return;
    for (int64_t i = 0; i < equal; i++) delta[i] = fabsf(delta[i]) >= value ? delta[i] : 0.0f;
    for (int64_t i = equal; i < count; i++) delta[i] = fabsf(delta[i]) > value ? delta[i] : 0.0f;
}

static void keep_within(float *restrict delta, int64_t count, float value, int64_t equal) {
    if (isinf(value)) return;
    if (value <= 0) equal = 0, value = -1;
    for (int64_t i = 0; i < equal; i++) delta[i] = fabsf(delta[i]) >= value ? 0.0f : delta[i];
    for (int64_t i = equal; i < count; i++) delta[i] = fabsf(delta[i]) > value ? 0.0f : delta[i];
}

/* Uniform integers of 31 bits (linalg/draws.py); each chunk of places has a generator of its own. */
static void draw(Draws *draws, int64_t count, int32_t *restrict to) {
    const uint64_t mask = 0x7fffffff;
    int64_t i = 0;
    while (i < count) {
        int64_t within = draws->place % CHUNK;
        if (within == 0) {
            draws->a = draws->states[0], draws->b = draws->states[1];
            draws->c = draws->states[2], draws->counter = draws->states[3];
            draws->states += 4;
        }
        if (within & 1) {
            to[i++] = draws->spare, draws->place++;
            continue;
        }
        uint64_t a = draws->a, b = draws->b, c = draws->c, counter = draws->counter;
        int64_t ready = least_of(count - i, CHUNK - within), stop = i + ready;
        for (; i < stop; i += 2) {
            uint64_t word = a + b + counter++;
            a = b ^ (b >> 11), b = c + (c << 3), c = ((c << 24) | (c >> 40)) + word;
            to[i] = (int32_t)(word & mask);
            draws->spare = (int32_t)((word >> 32) & mask);
            if (i + 1 < stop) to[i + 1] = draws->spare;
        }
        draws->a = a, draws->b = b, draws->c = c, draws->counter = counter;
        i = stop, draws->place += ready;
    }
}

static void start_draws(Draws *draws, const uint64_t *states, int64_t start, int32_t *dump) {
    int64_t skipped = start % CHUNK;
    draws->states = states, draws->place = start - skipped;
    for (int64_t done = 0; done < skipped; done += TILE)
        draw(draws, least_of(TILE, skipped - done), dump);
}

static void keep_drawn(float *restrict delta, int64_t count, uint32_t stay,
                       const int32_t *restrict draws) {
    for (int64_t i = 0; i < count; i++)
        delta[i] = (int32_t)((uint32_t)draws[i] - stay) < 0 ? delta[i] : 0.0f;
}

static void keep(const Stages *stages, const Bench *bench, int k, float *delta, int64_t count,
                 int64_t place) {
    if (stages->keep == BEYOND || stages->keep == BAND) {
        int64_t equal = stages->low_until[k] - place;
        keep_beyond(delta, count, stages->low[k], equal < 0 ? 0 : least_of(equal, count));
    }
    if (stages->keep == BAND) {
        int64_t equal = stages->high_until[k] - place;
        keep_within(delta, count, stages->high[k], equal < 0 ? 0 : least_of(equal, count));
    }
    if (stages->keep == DROP && stages->stay[k] < 0x80000000u) {
        draw(&bench->generators[k], count, bench->draws);
        keep_drawn(delta, count, stages->stay[k], bench->draws);
    }
    if (stages->factors)
        for (int64_t i = 0; i < count; i++) delta[i] *= stages->factors[k];
}

/* ---- many task vectors to one (methods/combine.py) ---- */

static void add_scaled(float *restrict total, const float *restrict term, float weight,
                       int64_t count) {
    if (weight == 1.0f)
        for (int64_t i = 0; i < count; i++) total[i] += term[i];
    else
        for (int64_t i = 0; i < count; i++) total[i] = fmaf(term[i], weight, total[i]);
}

static void weighted_sum(const Bench *bench, int experts, const float *weights, int unit,
                         float *restrict total, int64_t count) {
    for (int k = 0; k < experts; k++) {
        const float *delta = bench->kept + k * TILE;
        float weight = unit ? sign_of(weights[k]) : weights[k];
        if (k)
            add_scaled(total, delta, weight, count);
        else
            for (int64_t i = 0; i < count; i++) total[i] = delta[i] * weight;
    }
}

/* The size of an entry that has the elected sign, zero for the others. */
static inline float agreement(float delta, float sign, float turn) {
    float product = delta * sign * turn;
    return product < 0 ? 0.0f : product;
}

static void elect(const Stages *stages, const Bench *bench, float *restrict total, int64_t count) {
    float *restrict signs = bench->signs, *restrict share = bench->share;
    int weighted = stages->combine == ELECT_WEIGHTED;
    weighted_sum(bench, stages->experts, stages->weights, !weighted, signs, count);
    for (int64_t i = 0; i < count; i++)
        signs[i] = weighted ? (signs[i] < 0 ? -1.0f : 1.0f) : sign_of(signs[i]);
    for (int k = 0; k < stages->experts; k++) {
        const float *restrict delta = bench->kept + k * TILE;
        float size = fabsf(stages->weights[k]), turn = stages->weights[k] >= 0 ? 1.0f : -1.0f;
        if (!k && !stages->mean) memset(total, 0, (size_t)count * sizeof(float));
        if (k || !stages->mean) {
            for (int64_t i = 0; i < count; i++)
                total[i] = fmaf(agreement(delta[i], signs[i], turn), size, total[i]);
            if (stages->mean)
                for (int64_t i = 0; i < count; i++)
                    share[i] = fmaf(sign_of(agreement(delta[i], signs[i], turn)), size, share[i]);
        } else {
            for (int64_t i = 0; i < count; i++) {
                float part = agreement(delta[i], signs[i], turn);
                share[i] = sign_of(part) * size, total[i] = part * size;
            }
        }
    }
    if (stages->mean) {
        for (int64_t i = 0; i < count; i++) {
            float whole = share[i] < stages->least ? stages->least : share[i];
            total[i] = total[i] * signs[i] / whole;
        }
    } else {
        for (int64_t i = 0; i < count; i++) total[i] *= signs[i];
    }
}

static void combine(const Stages *stages, const Bench *bench, float *restrict total,
                    int64_t count) {
    if (stages->combine == SUM)
        weighted_sum(bench, stages->experts, stages->weights, 0, total, count);
    else
        elect(stages, bench, total, count);
    if (stages->scaling == MULTIPLY)
        for (int64_t i = 0; i < count; i++) total[i] *= stages->scale;
    else if (stages->scaling == DIVIDE)
        for (int64_t i = 0; i < count; i++) total[i] /= stages->scale;
}

/* ---- sums in one order (linalg/row_norms.py) ---- */

static void widen_block(const float *restrict from, int64_t count, double *restrict to) {
    for (int64_t i = 0; i < count; i++) to[i] = from[i];
    for (int64_t i = count; i < BLOCK; i++) to[i] = 0;
}

static inline lanes_t block_sum(const double *restrict left, const double *restrict right) {
    lanes_t sum, x, y;
    memcpy(&x, left, sizeof x), memcpy(&y, right, sizeof y);
    sum = x * y;
    for (int i = LANES; i < BLOCK; i += LANES) {
        memcpy(&x, left + i, sizeof x), memcpy(&y, right + i, sizeof y);
        sum += x * y;
    }
    return sum;
}

static double halved(const lanes_t *sum) {
    double lanes[LANES];
    memcpy(lanes, sum, sizeof lanes);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

/* Adds to the sums of all pairs of `rows` rows, [rows, stride], those of further columns. */
static void add_pairs(const float *const *rows, int count, int64_t columns, double *wide,
                      lanes_t *sums) {
    for (int64_t at = 0; at < columns; at += BLOCK) {
        for (int i = 0; i < count; i++)
            widen_block(rows[i] + at, least_of(BLOCK, columns - at), wide + i * BLOCK);
        lanes_t *sum = sums;
        for (int i = 0; i < count; i++)
            for (int j = i; j < count; j++) *sum++ += block_sum(wide + i * BLOCK, wide + j * BLOCK);
    }
}

/* Where the pair (i, j), i <= j, of `count` rows is among the sums. */
static inline int pair(int i, int j, int count) { return i * count - i * (i - 1) / 2 + j - i; }

/* ---- WSC, of one row (calibrators/wsc.py), and what the record tells ---- */

static double ellipsoid(const double *gram, int count, double radius) {
    double squares = 0, residual = gram[0];
    for (int k = 1; k < count; k++) {
        double own = gram[pair(k, k, count)], along = gram[pair(0, k, count)];
        residual -= 2 * (along / (own > 0 ? own : 1)) * along;
    }
    for (int k = 1; k < count; k++) {
        double own = gram[pair(k, k, count)];
        double share = gram[pair(0, k, count)] / (own > 0 ? own : 1);
        squares += share * share;
        residual += share * share * own;
        for (int j = 1; j < k; j++) {
            double other = gram[pair(j, j, count)];
            double theirs = gram[pair(0, j, count)] / (other > 0 ? other : 1);
            residual += 2 * theirs * share * gram[pair(j, k, count)];
        }
    }
    double length = radius > 0 ? radius : 1;
    squares += (residual < 0 ? 0 : residual) / (length * length);
    return 1 / sqrt(squares > 0 ? squares : 1);
}

static float wsc(const double *gram, int count, int target) {
    double length = sqrt(gram[0]), radius = sqrt(gram[pair(1, 1, count)]);
    for (int k = 2; k < count; k++) radius += sqrt(gram[pair(k, k, count)]);
    radius /= count - 1;
    if (!(length > 0) || !(radius > 0)) return 1.0f;
    return (float)(target == SPHERE ? radius / length : ellipsoid(gram, count, radius));
}

static double mean_cosine(const double *gram, int count) {
    double total = 0, pairs = 0;
    for (int j = 2; j < count; j++)
        for (int i = 1; i < j; i++) {
            double size = sqrt(gram[pair(i, i, count)]) * sqrt(gram[pair(j, j, count)]);
            if (gram[pair(i, i, count)] > 0 && gram[pair(j, j, count)] > 0)
                total += gram[pair(i, j, count)] / size, pairs++;
        }
    return pairs > 0 ? total / pairs : -2;
}

/* ---- a piece ---- */

/* The next `bytes` of memory from `scratch` on, of which `taken` are in use. */
static void *placed(char *scratch, int64_t *taken, int64_t bytes) {
    char *place = scratch ? scratch + *taken : NULL;
    *taken += (bytes + 63) / 64 * 64;
    return place;
}

/* The bench in memory of `scratch` (NULL: nowhere), and how many bytes it takes. `apart`: what stays
is a copy. */
static int64_t set_up(Bench *bench, char *scratch, int64_t experts, int64_t columns, int apart) {
    int64_t count = experts + 1, pairs = count * (count + 1) / 2;
    int64_t width = columns ? (columns + TILE - 1) / TILE * TILE : TILE;
    int64_t taken = 0;
    bench->deltas = placed(scratch, &taken, experts * TILE * 4);
    bench->kept = apart ? placed(scratch, &taken, experts * TILE * 4) : bench->deltas;
    bench->base = placed(scratch, &taken, width * 4);
    bench->merged = placed(scratch, &taken, width * 4);
    bench->signs = placed(scratch, &taken, TILE * 4);
    bench->share = placed(scratch, &taken, TILE * 4);
    bench->draws = placed(scratch, &taken, TILE * 4);
    bench->wide = placed(scratch, &taken, count * BLOCK * 8);
    bench->sums = placed(scratch, &taken, pairs * (int64_t)sizeof(lanes_t));
    bench->gram = placed(scratch, &taken, pairs * 8);
    bench->generators = placed(scratch, &taken, experts * (int64_t)sizeof(Draws));
    return taken;
}

static int is_apart(const Stages *stages) {
    return stages->calibrate && (stages->keep != ALL || stages->factors);
}

/* Bytes of memory that `merge` works in. It must be aligned to 64 bytes. */
EXPORT int64_t KERNEL(scratch)(const Stages *stages, int64_t columns) {
    Bench bench;
    return set_up(&bench, NULL, stages->experts, stages->calibrate ? columns : 0, is_apart(stages));
}

/* Reads a tile of all models from entry `at` on, and merges it; whether all of it is finite. */
static int merge_tile(const Stages *stages, const Piece *piece, const Bench *bench, int64_t at,
                      int64_t count, float *base, float *merged) {
    int sound = 1, K = stages->experts;
    read_base(piece, K, at, count, base);
    for (int k = 0; k < K; k++) {
        float *delta = bench->deltas + k * TILE, *kept = bench->kept + k * TILE;
        sound &= difference(piece->experts[k], piece->formats[k], at, count, base, delta);
        if (kept != delta) memcpy(kept, delta, (size_t)count * sizeof(float));
        keep(stages, bench, k, kept, count, piece->start + at);
    }
    combine(stages, bench, merged, count);
    return sound;
}

static int flags_of(int sound, int fits) {
    return (sound ? SOUND : INPUT_NOT_FINITE) | (fits ? SOUND : RESULT_TOO_LARGE);
}

static int merge_entries(const Stages *stages, const Piece *piece, const Bench *bench,
                         const Tally *tally) {
    int sound = 1, fits = 1, format = piece->formats[stages->experts + 1];
    const float *merged = bench->merged;
    double *before = tally->before;
    for (int64_t first = 0; first < piece->entries; first += piece->grain) {
        int64_t last = least_of(first + piece->grain, piece->entries);
        memset(bench->sums, 0, sizeof(lanes_t));
        for (int64_t at = first; at < last; at += TILE) {
            int64_t count = least_of(TILE, last - at);
            sound &= merge_tile(stages, piece, bench, at, count, bench->base, bench->merged);
            add_pairs(&merged, 1, count, bench->wide, bench->sums);
            for (int64_t i = 0; i < count; i++) bench->base[i] += merged[i];
            fits &= narrow(bench->base, format, at, count, piece->result);
        }
        *before++ = halved(bench->sums);
    }
    return flags_of(sound, fits);
}

static int merge_rows(const Stages *stages, const Piece *piece, const Bench *bench,
                      const Tally *tally) {
    int sound = 1, fits = 1, K = stages->experts, count = K + 1, pairs = count * (count + 1) / 2;
    int64_t columns = piece->columns, rows = piece->entries / columns;
    const float *tiles[count];
    for (int k = 0; k < K; k++) tiles[k + 1] = bench->deltas + k * TILE;
    for (int64_t row = 0; row < rows; row++) {
        memset(bench->sums, 0, pairs * sizeof(lanes_t));
        for (int64_t at = 0; at < columns; at += TILE) {
            int64_t size = least_of(TILE, columns - at);
            float *merged = bench->merged + at;
            sound &= merge_tile(stages, piece, bench, row * columns + at, size, bench->base + at,
                                merged);
            tiles[0] = merged;
            add_pairs(tiles, count, size, bench->wide, bench->sums);
        }
        double *gram = bench->gram;
        for (int i = 0; i < pairs; i++) gram[i] = halved(&bench->sums[i]);
        float xi = tally->free_factor[row] = wsc(gram, count, stages->calibrate);
        if ((stages->gate == GROW && xi < 1) || (stages->gate == SHRINK && xi > 1)) xi = 1;
        tally->factor[row] = xi;
        tally->before[row] = gram[0];
        tally->cosines[row] = mean_cosine(gram, count);
        for (int k = 0; k < K; k++)
            tally->experts[k * rows + row] = gram[pair(k + 1, k + 1, count)];
        float *restrict weight = bench->base;
        const float *restrict merged = bench->merged;
        for (int64_t i = 0; i < columns; i++) weight[i] += xi * merged[i];
        fits &= narrow(weight, piece->formats[K + 1], row * columns, columns, piece->result);
    }
    return flags_of(sound, fits);
}

/* Merges and calibrates a piece, and tells what was done to it; returns flags. */
EXPORT int32_t KERNEL(merge)(const Stages *stages, const Piece *piece, const Tally *tally, char *scratch) {
    Bench bench;
    int64_t columns = stages->calibrate ? piece->columns : 0;
    set_up(&bench, scratch, stages->experts, columns, is_apart(stages));
    if (stages->keep == DROP)
        for (int k = 0; k < stages->experts; k++)
            if (stages->stay[k] < 0x80000000u)
                start_draws(&bench.generators[k], stages->states + 4 * stages->chunks * k,
                            piece->start, bench.draws);
    return columns ? merge_rows(stages, piece, &bench, tally)
                   : merge_entries(stages, piece, &bench, tally);
}

/* ---- what a survey must know (linalg/threshold.py) ---- */

/* How many sizes are greater than `high`, and in `some` how many are within [low, high]. */
static int32_t count_beyond(const float *restrict sizes, int64_t count, float low, float high,
                            int32_t *some) {
    int32_t more = 0, reach = 0;
    for (int64_t i = 0; i < count; i++) more += sizes[i] > high, reach += sizes[i] >= low;
    *some = reach - more;
    return more;
}

/* The sizes within [low, high], `some` of them, in any order. */
static void collect(const float *restrict sizes, int64_t count, float low, float high, int64_t some,
                    float *restrict to) {
    uint8_t inside[TILE];
    for (int64_t i = 0; i < count; i++)
        inside[i] = (uint8_t)((sizes[i] >= low) & (sizes[i] <= high));
    if (some > count / 4) {
        float all[TILE + 1];
        int64_t place = 0;
        for (int64_t i = 0; i < count; i++) all[place] = sizes[i], place += inside[i];
        memcpy(to, all, (size_t)some * sizeof(float));
        return;
    }
    memset(inside + count, 0, (size_t)(TILE - count));
    /* Of 64 at once one bit each: bit j of byte i is that of the size 8 j + i. */
    for (int64_t i = 0; some; i += 64) {
        uint64_t eights[8], bits = 0;
        memcpy(eights, inside + i, sizeof eights);
        for (int j = 0; j < 8; j++) bits |= eights[j] << j;
        for (; bits; bits &= bits - 1, some--) {
            int bit = __builtin_ctzll(bits);
            *to++ = sizes[i + 8 * (bit % 8) + bit / 8];
        }
    }
}

/* Of each task vector, and each of `ranks` brackets of it, how many magnitudes are above the
bracket, and those within: up to `room` of them in `values`, [K, ranks, room], and their number in
`within`. Returns flags. */
EXPORT int32_t KERNEL(observe)(const Piece *piece, int32_t experts, int32_t ranks, const float *low,
                        const float *high, int64_t *above, int64_t *within, float *values,
                        int64_t room) {
    float base[TILE], sizes[TILE];
    int sound = 1;
    memset(above, 0, (size_t)experts * ranks * sizeof *above);
    memset(within, 0, (size_t)experts * ranks * sizeof *within);
    for (int64_t at = 0; at < piece->entries; at += TILE) {
        int64_t count = least_of(TILE, piece->entries - at);
        read_base(piece, experts, at, count, base);
        for (int k = 0; k < experts; k++) {
            sound &= difference(piece->experts[k], piece->formats[k], at, count, base, sizes);
            for (int64_t i = 0; i < count; i++) sizes[i] = fabsf(sizes[i]);
            for (int r = k * ranks; r < (k + 1) * ranks; r++) {
                int32_t some;
                above[r] += count_beyond(sizes, count, low[r], high[r], &some);
                if (some && within[r] + some <= room)
                    collect(sizes, count, low[r], high[r], some, values + r * room + within[r]);
                within[r] += some;
            }
        }
    }
    return sound ? SOUND : INPUT_NOT_FINITE;
}

/* ---- parts of the way, for methods that have no kernel of their own ---- */

/* Task vectors of a piece, or weights where there is no base, as float32 [K, entries]; returns
flags. */
EXPORT int32_t KERNEL(differences)(const Piece *piece, int32_t experts, float *deltas) {
    float base[TILE];
    int sound = 1;
    for (int64_t at = 0; at < piece->entries; at += TILE) {
        int64_t count = least_of(TILE, piece->entries - at);
        read_base(piece, experts, at, count, base);
        for (int k = 0; k < experts; k++)
            sound &= difference(piece->experts[k], piece->formats[k], at, count, base,
                                deltas + k * piece->entries + at);
    }
    return sound ? SOUND : INPUT_NOT_FINITE;
}

/* Float32 numbers cast to the format of the result; returns flags. */
EXPORT int32_t KERNEL(cast)(const float *from, int64_t entries, int32_t format, void *result) {
    int fits = 1;
    for (int64_t at = 0; at < entries; at += TILE)
        fits &= narrow(from + at, format, at, least_of(TILE, entries - at), result);
    return fits ? SOUND : RESULT_TOO_LARGE;
}

/* Inner products of all pairs of `count` rows, [count, count, rows], for each row of layers that
are [rows, columns]. `scratch`: 64 * count * (16 + count) bytes, aligned to 64. */
EXPORT void KERNEL(gram)(const float *const *layers, int32_t count, int64_t rows, int64_t columns,
                  double *gram, char *scratch) {
    int64_t taken = 0;
    double *wide = placed(scratch, &taken, count * BLOCK * 8);
    int pairs = count * (count + 1) / 2;
    lanes_t *sums = placed(scratch, &taken, pairs * (int64_t)sizeof(lanes_t));
    const float *tiles[count];
    for (int64_t row = 0; row < rows; row++) {
        memset(sums, 0, pairs * sizeof(lanes_t));
        for (int i = 0; i < count; i++) tiles[i] = layers[i] + row * columns;
        add_pairs(tiles, count, columns, wide, sums);
        for (int i = 0; i < count; i++)
            for (int j = i; j < count; j++)
                gram[(i * count + j) * rows + row] = gram[(j * count + i) * rows + row] =
                    halved(&sums[pair(i, j, count)]);
    }
}

/* ---- entries by their ranks in a row (methods/della.py, linalg/selection.py) ---- */

enum { WIDEST = 11, KEY = 63 };

/* Sorts by the highest digits of `width` bits, an even number of them; equal ones stay in order. */
static void by_digits(uint64_t *keys, uint64_t *more, int64_t count, int width, int digits) {
    uint32_t places[1 << WIDEST];
    const uint32_t mask = (1u << width) - 1;
    for (int shift = KEY - width * digits; shift < KEY; shift += width) {
        uint32_t place = 0;
        memset(places, 0, (size_t)(mask + 1) * sizeof(uint32_t));
        for (int64_t i = 0; i < count; i++) places[(keys[i] >> shift) & mask]++;
        for (uint32_t i = 0; i <= mask; i++) {
            uint32_t some = places[i];
            places[i] = place, place += some;
        }
        for (int64_t i = 0; i < count; i++)
            more[places[(keys[i] >> shift) & mask]++] = keys[i];
        uint64_t *sorted = more;
        more = keys, keys = sorted;
    }
}

/* Whether what is almost in order could be put in order by few steps; some of them are done. */
static int inserted(uint64_t *keys, int64_t count) {
    int64_t steps = 8 * count;
    for (int64_t i = 1; i < count && steps >= 0; i++) {
        uint64_t key = keys[i];
        int64_t j = i;
        for (; j && keys[j - 1] > key; j--) keys[j] = keys[j - 1];
        keys[j] = key, steps -= i - j;
    }
    return steps >= 0;
}

/* Magnitude and column of each entry of a row as one number, in rising order. `more` is memory of
the same size. Two digits leave little to be done, unless almost all magnitudes are the same. */
static void in_order(const float *row, int64_t columns, uint64_t *keys, uint64_t *more) {
    int width = columns < 512 ? 8 : columns < 2048 ? 9 : columns < 8192 ? 10 : WIDEST;
    for (int64_t i = 0; i < columns; i++)
        keys[i] = (uint64_t)magnitude(row[i]) << 32 | (uint64_t)i;
    by_digits(keys, more, columns, width, 2);
    if (!inserted(keys, columns)) by_digits(keys, more, columns, width, 4);
}

/* Sets entries of a task vector [rows, columns] to zero: each stays where its draw is below
`chances` [columns] at its rank, and is divided by that where it is to be `inverse`. `scratch`:
20 * columns + 192 bytes, aligned to 64. */
EXPORT void KERNEL(keep_by_rank)(float *delta, int64_t rows, int64_t columns, const float *chances,
                          int32_t inverse, const uint64_t *states, int64_t start, char *scratch) {
    int64_t taken = 0;
    uint64_t *keys = placed(scratch, &taken, columns * 8);
    uint64_t *more = placed(scratch, &taken, columns * 8);
    float *chance = placed(scratch, &taken, columns * 4);
    int32_t draws[TILE];
    Draws generator;
    start_draws(&generator, states, start, draws);
    for (int64_t row = 0; row < rows; row++, delta += columns) {
        in_order(delta, columns, keys, more);
        for (int64_t i = 0; i < columns; i++) chance[(uint32_t)keys[i]] = chances[i];
        for (int64_t at = 0; at < columns; at += TILE) {
            int64_t count = least_of(TILE, columns - at);
            float *restrict part = delta + at;
            const float *restrict own = chance + at;
            draw(&generator, count, draws);
            /* A draw has 24 bits. What goes keeps its sign. */
            for (int64_t i = 0; i < count; i++)
                part[i] *= (float)(draws[i] >> 7) * 0x1p-24f < own[i] ? 1.0f : 0.0f;
            if (inverse)
                for (int64_t i = 0; i < count; i++) part[i] /= own[i];
        }
    }
}

EXPORT int32_t KERNEL(version)(void) { return VERSION; }
