#include <stdlib.h>
#include <string.h>

#include "kernel.h"

uint8_t *lg_room(lg_bytes *out, size_t size)
{
    if (out->failed) return NULL;
    if (size > out->room - out->size) {
        size_t room = out->room * 2 > out->size + size ? out->room * 2 : out->size + size + 64;
        uint8_t *more = realloc(out->lent ? NULL : out->data, room);
        if (!more) {
            out->failed = 1;
            return NULL;
        }
        if (out->lent) memcpy(more, out->data, out->size);
        out->lent = 0;
        out->data = more;
        out->room = room;
    }
    return out->data + out->size;
}

void lg_put(lg_bytes *out, const void *data, size_t size)
{
    uint8_t *to = size ? lg_room(out, size) : NULL;
    if (!to) return;
    memcpy(to, data, size);
    out->size += size;
}

void lg_put_u8(lg_bytes *out, unsigned value)
{
    uint8_t raw = (uint8_t)value;
    lg_put(out, &raw, 1);
}

void lg_put_u16(lg_bytes *out, unsigned value)
{
    uint8_t raw[2] = {(uint8_t)value, (uint8_t)(value >> 8)};
    lg_put(out, raw, 2);
}

void lg_put_u32(lg_bytes *out, uint32_t value)
{
    uint8_t raw[4] = {(uint8_t)value, (uint8_t)(value >> 8), (uint8_t)(value >> 16), (uint8_t)(value >> 24)};
    lg_put(out, raw, 4);
}

int lg_take(lg_input *in, size_t size, const uint8_t **data)
{
    if (size > (size_t)(in->end - in->at)) return LG_CORRUPT;
    *data = in->at;
    in->at += size;
    return LG_OK;
}

int lg_take_u8(lg_input *in, uint32_t *value)
{
    const uint8_t *raw;
    if (lg_take(in, 1, &raw)) return LG_CORRUPT;
    *value = raw[0];
    return LG_OK;
}

int lg_take_u16(lg_input *in, uint32_t *value)
{
    const uint8_t *raw;
    if (lg_take(in, 2, &raw)) return LG_CORRUPT;
    *value = (uint32_t)raw[0] | (uint32_t)raw[1] << 8;
    return LG_OK;
}

int lg_take_u32(lg_input *in, uint32_t *value)
{
    const uint8_t *raw;
    if (lg_take(in, 4, &raw)) return LG_CORRUPT;
    *value = (uint32_t)raw[0] | (uint32_t)raw[1] << 8 | (uint32_t)raw[2] << 16 | (uint32_t)raw[3] << 24;
    return LG_OK;
}

void *lg_alloc(lg_arena *arena, size_t size)
{
    size_t skip = (64 - (uintptr_t)(arena->data + arena->used) % 64) % 64;
    uint8_t *found;
    if (skip > arena->size - arena->used || size > arena->size - arena->used - skip) return NULL;
    found = arena->data + arena->used + skip;
    arena->used += skip + size;
    return found;
}

/* Of n <= size elements, the most is taken by lg_delta_encode: keys 2 n + 1, classes n + 1 at most, counts of
 * keys below 2^18; then the coder, as for the classes: counts and tables below 2^18, and, at different times,
 * counts of pairs, 2^18, and words of one segment, 2 * (2^20 + LG_MAX_LANES + 8). With 63 to align each of the
 * six that is less than 3 n + 2^21 + 2^20. Planes take size + 1 instead of the first two; decoding has tables
 * of 4 * LG_SCALE * LG_MAX_CONTEXTS = 2^18 besides the classes. */
size_t lg_arena_size(size_t size)
{
    return 3 * size + (3u << 20);
}

size_t lg_width(int kind)
{
    switch (kind) {
    case LG_I8: case LG_E4M3: case LG_E5M2: return 1;
    case LG_F16: case LG_BF16: case LG_I16: return 2;
    case LG_F32: case LG_I32: return 4;
    default: return 0;
    }
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>

/* Since Sapphire Rapids, which AVX512-FP16 tells, gathers need no microcode against the sampling of their
 * data (CVE-2022-40982), which made them many times slower; before it, and on Zen 4, loads are faster. */
static int gathers_well(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 23 & 1);
}
#endif

int lg_best_level(void)
{
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512cd"))
        return gathers_well() ? LG_GATHER : LG_AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2")) return LG_AVX2;
#endif
    return LG_SCALAR;
}
