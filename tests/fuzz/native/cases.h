/* What the sanitizers' driver and the fuzz targets share: made-up tensors, and one case of each
 * property. A case that does not hold aborts, so that a fuzzer sees it. */
#ifndef LOCKGATE_CASES_H
#define LOCKGATE_CASES_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernel.h"

#define MOST_COUNT 200000u /* elements: past every threshold of the format */
#define HEAD 12            /* bytes of a case's head */

typedef struct {
    int kind;
    uint32_t count, group, seed;
    uint8_t like, change;
} lg_case;

static inline uint32_t next(uint64_t *state) /* splitmix64 */
{
    uint64_t z = *state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return (uint32_t)((z ^ z >> 31) >> 32);
}

#define HOLDS(what)                                                                   \
    do {                                                                              \
        if (!(what)) {                                                                \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #what); \
            abort();                                                                  \
        }                                                                             \
    } while (0)

/* Every byte string of HEAD bytes is a case. */
static inline lg_case case_of(const uint8_t *head)
{
    static const uint32_t near[] = {0, 1, 63, 64, 65, 2048, 8191, 8192, 16384, 65535, 65536, 131072};
    lg_case c;
    uint32_t raw = (uint32_t)head[2] | (uint32_t)head[3] << 8 | (uint32_t)head[4] << 16;
    c.kind = 1 + head[0] % 8;
    c.like = head[1] % 4;
    c.change = (uint8_t)(head[1] / 4 % 8);
    c.count = raw % 600; /* most often few, for speed */
    if (head[0] >> 5 == 0) c.count = near[raw % 12] + (raw >> 4) % 5;
    if (head[0] >> 3 == 31) c.count = raw % MOST_COUNT;
    raw = (uint32_t)head[5] | (uint32_t)head[6] << 8 | (uint32_t)head[7] << 16;
    c.group = 1 + raw % (head[5] & 1 ? LG_MAX_GROUP : 5000);
    c.seed = (uint32_t)head[8] | (uint32_t)head[9] << 8;
    return c;
}

/* Whether a case of the fourth target has differences; else it has planes. */
static inline int compares_deltas(const uint8_t *head) { return head[1] >> 7; }

/* The base of a case: all zero, all the same, like weights, or anything. */
static inline void make_base(const lg_case *c, uint8_t *base)
{
    uint64_t state = c->seed;
    size_t width = lg_width(c->kind), size = c->count * width;
    for (size_t i = 0; i < size; i++)
        base[i] = c->like == 0 ? 0 : (uint8_t)(c->like == 1 ? c->seed : next(&state));
    if (c->like == 3 && c->seed & 1) memset(base, 0, size / 2); /* parts that differ */
    if (c->like != 2) return;
    for (size_t i = 0; i < c->count; i++) { /* few exponents, both signs */
        uint32_t r = next(&state), e = 100 + (uint32_t)__builtin_ctz(r | 1u << 20);
        uint32_t f = (r & 0x80000000) | e << 23 | (r >> 4 & 0x7fffff);
        uint16_t h = (uint16_t)(c->kind == LG_BF16 ? f >> 16 : r >> 8);
        if (width == 4) memcpy(base + 4 * i, &f, 4);
        if (width == 2) memcpy(base + 2 * i, &h, 2);
    }
}

/* Data near a base, nearer the less `change` is; 0: the same. */
static inline void make_data(const lg_case *c, const uint8_t *base, uint8_t *data)
{
    uint64_t state = c->seed ^ 0x5bd1e995u;
    size_t width = lg_width(c->kind);
    memcpy(data, base, c->count * width);
    for (size_t i = 0; i < c->count && c->change; i++) {
        uint32_t r = next(&state), v = 0;
        if (c->change < 7 && r % 8 >= c->change) continue;
        memcpy(&v, data + i * width, width);
        v = c->change == 7 ? r : v + (next(&state) >> (r >> 8) % 32) - (r >> 13 & 1);
        memcpy(data + i * width, &v, width);
    }
}

/* Memory whose end is the end of what may be written: the sanitizer sees the first byte beyond it. */
static inline uint8_t *exactly(size_t size)
{
    uint8_t *found = malloc(size + (size == 0));
    HOLDS(found);
    return found;
}

static inline lg_arena arena_for(size_t size)
{
    static uint8_t *block;
    size_t most = lg_arena_size(4 * (size_t)MOST_COUNT + 64), wanted = lg_arena_size(size);
    if (!block) block = exactly(most);
    return (lg_arena){block + (most - wanted), wanted, 0};
}

/* Decodes at every level: the same answer, and the same bytes where it is yes. */
static inline int decode_everywhere(const lg_case *c, const uint8_t *payload, size_t size,
                                    const uint8_t *base, uint8_t *out)
{
    size_t bytes = c->count * lg_width(c->kind);
    uint8_t *other = exactly(bytes);
    int first = LG_OK;
    for (int level = LG_SCALAR; level <= lg_best_level(); level++) {
        uint8_t *to = level ? other : out;
        int status;
        memset(to, level ? 0x55 : 0xaa, bytes); /* what is not written differs */
        if (base)
            status = lg_delta_decode(payload, size, base, to, c->count, c->kind, arena_for(bytes), level);
        else
            status = lg_planes_decode(payload, size, to, c->count, c->kind, arena_for(bytes), level);
        HOLDS(status == LG_OK || status == LG_CORRUPT);
        if (!level) first = status;
        HOLDS(status == first);
        HOLDS(status || !level || !bytes || !memcmp(out, other, bytes));
    }
    free(other);
    return first;
}

/* Compares at every level: the same answer, yes if and only if decoding gives `data`. */
static inline void compare_everywhere(const lg_case *c, const uint8_t *payload, size_t size,
                                      const uint8_t *base, const uint8_t *data, int decoded, int same)
{
    size_t bytes = c->count * lg_width(c->kind);
    int first = LG_OK;
    for (int level = LG_SCALAR; level <= lg_best_level(); level++) {
        int status;
        if (base)
            status = lg_delta_compare(payload, size, base, data, c->count, c->kind, arena_for(bytes), level);
        else
            status = lg_planes_compare(payload, size, data, c->count, c->kind, arena_for(bytes), level);
        if (!level) first = status;
        HOLDS(status == first);
    }
    if (decoded == LG_OK)
        HOLDS(first == (same ? LG_OK : LG_DIFFERS));
    else /* which tile differs may be seen before what is corrupt */
        HOLDS(first == LG_CORRUPT || first == LG_DIFFERS);
}

/* Encodes at every level: the same bytes. */
static inline lg_bytes encode_everywhere(const lg_case *c, const uint8_t *data, const uint8_t *base)
{
    size_t bytes = c->count * lg_width(c->kind);
    lg_bytes first = {0};
    for (int level = LG_SCALAR; level <= lg_best_level(); level++) {
        lg_bytes out = {0};
        lg_arena arena = arena_for(bytes);
        int status = base ? lg_delta_encode(&out, data, base, c->count, c->kind, c->group, arena, level)
                          : lg_planes_encode(&out, data, c->count, c->kind, arena, level);
        HOLDS(status == LG_OK && out.size);
        if (!level) {
            first = out;
            continue;
        }
        HOLDS(out.size == first.size && !memcmp(out.data, first.data, out.size));
        free(out.data);
    }
    return first;
}

/* What was encoded comes back. Returns the payload, for whoever wants to break it. */
static inline lg_bytes round_trip(const lg_case *c, const uint8_t *data, const uint8_t *base)
{
    size_t bytes = c->count * lg_width(c->kind);
    lg_bytes coded = encode_everywhere(c, data, base);
    uint8_t *payload = exactly(coded.size), *out = exactly(bytes);
    memcpy(payload, coded.data, coded.size);
    HOLDS(decode_everywhere(c, payload, coded.size, base, out) == LG_OK);
    HOLDS(!bytes || !memcmp(out, data, bytes));
    compare_everywhere(c, payload, coded.size, base, data, LG_OK, 1);
    free(payload);
    free(out);
    return coded;
}

static inline void try_decoding(const lg_case *c, const uint8_t *rest, size_t size, int with_base)
{
    size_t bytes = c->count * lg_width(c->kind);
    uint8_t *base = exactly(bytes), *out = exactly(bytes), *payload = exactly(size);
    make_base(c, base);
    memcpy(payload, rest, size);
    decode_everywhere(c, payload, size, with_base ? base : NULL, out);
    free(base);
    free(out);
    free(payload);
}

/* Compares with what decoding gives, with a byte of it changed, or with what was encoded. */
static inline void try_comparing(const lg_case *c, const uint8_t *head, const uint8_t *rest, size_t size)
{
    size_t bytes = c->count * lg_width(c->kind);
    uint8_t *base = exactly(bytes), *out = exactly(bytes), *data = exactly(bytes), *payload = exactly(size);
    const uint8_t *from = compares_deltas(head) ? base : NULL;
    int decoded, way = head[1] >> 5 & 3;
    make_base(c, base);
    make_data(c, base, data);
    memcpy(payload, rest, size);
    decoded = decode_everywhere(c, payload, size, from, out);
    if (way < 3 && bytes) memcpy(data, out, bytes);
    if (way && way < 3 && bytes) {
        size_t at = (head[10] | (size_t)head[11] << 8) * bytes >> 16;
        data[at] ^= (uint8_t)(way == 1 ? 1 : 1 + c->seed % 255);
    }
    compare_everywhere(c, payload, size, from, data, decoded, !bytes || !memcmp(out, data, bytes));
    free(base);
    free(out);
    free(data);
    free(payload);
}

/* Encodes what was made, with the rest of the input written over it from the front. */
static inline void try_encoding(const lg_case *c, const uint8_t *rest, size_t size)
{
    size_t bytes = c->count * lg_width(c->kind);
    uint8_t *base = exactly(bytes), *data = exactly(bytes);
    lg_bytes coded;
    make_base(c, base);
    make_data(c, base, data);
    for (size_t i = 0; i < bytes && i < size; i++) (i & 1 ? base : data)[i] = rest[i];
    coded = round_trip(c, data, base);
    free(coded.data);
    coded = round_trip(c, data, NULL);
    free(coded.data);
    free(base);
    free(data);
}

/* One input of a fuzz target: a case's head and the rest. 1 decodes it as differences, 2 as planes, 3
 * encodes it, 4 compares what it decodes to. */
static inline void try_input(int target, const uint8_t *input, size_t size)
{
    lg_case c;
    if (size < HEAD) return;
    c = case_of(input);
    if (target == 3)
        try_encoding(&c, input + HEAD, size - HEAD);
    else if (target == 4)
        try_comparing(&c, input, input + HEAD, size - HEAD);
    else
        try_decoding(&c, input + HEAD, size - HEAD, target == 1);
}

#endif
