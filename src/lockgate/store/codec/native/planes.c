/* Elements alone: one plane for each of an element's bytes, coded as arrays by themselves.
 *
 * The bits are rotated left by one first where an exponent would straddle two bytes (bf16, fp32) or
 * share its byte with the sign (fp16), so that the top plane holds the exponent: the part of a trained
 * weight that is not noise (ZipNN, arXiv:2411.05239). */
#include <string.h>

#include "kernel.h"

static int rotates(int kind) { return kind == LG_BF16 || kind == LG_F32 || kind == LG_F16; }

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define LG_X86 1
#define TARGET_512 __attribute__((target("avx512f,avx512bw,avx512vl")))

/* Splits and joins 32 elements at a time; they return where the others go on. */
TARGET_512 static size_t split16_512(const uint8_t *data, size_t count, uint8_t *low, uint8_t *high,
                                     int rotate)
{
    size_t i = 0;
    for (; i + 32 <= count; i += 32) {
        __m512i v = _mm512_loadu_si512(data + 2 * i);
        if (rotate) v = _mm512_or_si512(_mm512_slli_epi16(v, 1), _mm512_srli_epi16(v, 15));
        _mm256_storeu_si256((__m256i *)(low + i), _mm512_cvtepi16_epi8(v));
        _mm256_storeu_si256((__m256i *)(high + i), _mm512_cvtepi16_epi8(_mm512_srli_epi16(v, 8)));
    }
    return i;
}

TARGET_512 static size_t join16_512(const uint8_t *low, const uint8_t *high, size_t count, uint8_t *data,
                                    int rotate)
{
    size_t i = 0;
    for (; i + 32 <= count; i += 32) {
        __m512i v = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(high + i)));
        v = _mm512_or_si512(_mm512_slli_epi16(v, 8),
                            _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(low + i))));
        if (rotate) v = _mm512_or_si512(_mm512_srli_epi16(v, 1), _mm512_slli_epi16(v, 15));
        _mm512_storeu_si512(data + 2 * i, v);
    }
    return i;
}
#endif

static void split16(const uint8_t *data, size_t count, uint8_t *low, uint8_t *high, int rotate, int level)
{
    size_t i = 0;
#ifdef LG_X86
    if (level >= LG_AVX512) i = split16_512(data, count, low, high, rotate);
#endif
    (void)level;
    for (; i < count; i++) {
        uint16_t v;
        memcpy(&v, data + 2 * i, 2);
        if (rotate) v = (uint16_t)(v << 1 | v >> 15);
        low[i] = (uint8_t)v;
        high[i] = (uint8_t)(v >> 8);
    }
}

static void join16(const uint8_t *low, const uint8_t *high, size_t count, uint8_t *data, int rotate,
                   int level)
{
    size_t i = 0;
#ifdef LG_X86
    if (level >= LG_AVX512) i = join16_512(low, high, count, data, rotate);
#endif
    (void)level;
    for (; i < count; i++) {
        uint16_t v = (uint16_t)(low[i] | high[i] << 8);
        if (rotate) v = (uint16_t)(v >> 1 | v << 15);
        memcpy(data + 2 * i, &v, 2);
    }
}

static void split32(const uint8_t *data, size_t count, uint8_t *planes, int rotate)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t v;
        memcpy(&v, data + 4 * i, 4);
        if (rotate) v = v << 1 | v >> 31;
        planes[i] = (uint8_t)v;
        planes[count + i] = (uint8_t)(v >> 8);
        planes[2 * count + i] = (uint8_t)(v >> 16);
        planes[3 * count + i] = (uint8_t)(v >> 24);
    }
}

static void join32(const uint8_t *const *planes, size_t count, uint8_t *data, int rotate)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t v = (uint32_t)planes[0][i] | (uint32_t)planes[1][i] << 8 | (uint32_t)planes[2][i] << 16 |
                     (uint32_t)planes[3][i] << 24;
        if (rotate) v = v >> 1 | v << 31;
        memcpy(data + 4 * i, &v, 4);
    }
}

int lg_planes_encode(lg_bytes *out, const uint8_t *data, size_t count, int kind, lg_arena arena, int level)
{
    size_t width = lg_width(kind);
    uint8_t *planes = lg_alloc(&arena, width * count + 1);
    int status = planes ? LG_OK : LG_NOMEM;
    if (!planes) return status;
    if (width == 1 && count) memcpy(planes, data, count);
    if (width == 2) split16(data, count, planes, planes + count, rotates(kind), level);
    if (width == 4) split32(data, count, planes, rotates(kind));
    lg_put_u8(out, (unsigned)kind);
    for (size_t p = 0; p < width && !status; p++)
        status = lg_array_encode(out, planes + p * count, count, arena, level);
    return status;
}

/* Decodes and joins LG_TILE elements at a time, while they are in the cache; to `data`, or, where that is
 * NULL, to be compared with `known`. */
static int join_all(lg_array *arrays, uint8_t *data, const uint8_t *known, size_t count, int kind, int level)
{
    uint8_t tile[4 * LG_TILE];
    size_t width = lg_width(kind);
    for (size_t begin = 0; begin < count; begin += LG_TILE) {
        size_t some = count - begin < LG_TILE ? count - begin : LG_TILE;
        uint8_t tiles[4][LG_TILE], *to = data ? data + begin * width : tile;
        const uint8_t *planes[4];
        lg_ahead ahead = {{NULL, NULL}, width};
        if (begin + 2 * LG_TILE <= count) ahead.at[0] = (known ? known : data) + (begin + LG_TILE) * width;
        for (size_t p = 0; p < width; p++) {
            if (lg_array_next(&arrays[p], tiles[p], some, &planes[p], ahead, level)) return LG_CORRUPT;
            if (ahead.at[0] && arrays[p].mode == 0) ahead.at[1] = arrays[p].raw; /* which moved on */
        }
        if (width == 1) memcpy(to, planes[0], some);
        if (width == 2) join16(planes[0], planes[1], some, to, rotates(kind), level);
        if (width == 4) join32(planes, some, to, rotates(kind));
        if (!data && memcmp(tile, known + begin * width, some * width)) return LG_DIFFERS;
    }
    return LG_OK;
}

static int decode(const uint8_t *payload, size_t size, uint8_t *data, const uint8_t *known, size_t count,
                  int kind, lg_arena arena, int level)
{
    lg_input in = {payload, payload + size};
    size_t width = lg_width(kind);
    uint32_t stated;
    lg_array arrays[4];
    int status = LG_OK;
    if (!width || count > LG_MAX_ELEMENTS) return LG_CORRUPT;
    if (lg_take_u8(&in, &stated) || (int)stated != kind) return LG_CORRUPT;
    for (size_t p = 0; p < width && !status; p++) status = lg_array_open(&arrays[p], &in, count, &arena);
    if (!status && in.at != in.end) status = LG_CORRUPT;
    return status ? status : join_all(arrays, data, known, count, kind, level);
}

int lg_planes_decode(const uint8_t *payload, size_t size, uint8_t *data, size_t count, int kind,
                     lg_arena arena, int level)
{
    return decode(payload, size, data, NULL, count, kind, arena, level);
}

int lg_planes_compare(const uint8_t *payload, size_t size, const uint8_t *data, size_t count, int kind,
                      lg_arena arena, int level)
{
    return decode(payload, size, NULL, data, count, kind, arena, level);
}
