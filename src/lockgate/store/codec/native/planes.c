/* Elements alone: one plane for each of an element's bytes, coded as arrays by themselves.
 *
 * The bits are rotated left by one first where an exponent would straddle two bytes (bf16, fp32) or
 * share its byte with the sign (fp16), so that the top plane holds the exponent: the part of a trained
 * weight that is not noise (ZipNN, arXiv:2411.05239). */
#include <string.h>

#include "kernel.h"

static int rotates(int kind) { return kind == LG_BF16 || kind == LG_F32 || kind == LG_F16; }

static void split16(const uint8_t *data, size_t count, uint8_t *planes, int rotate)
{
    uint8_t *low = planes, *high = planes + count;
    for (size_t i = 0; i < count; i++) {
        uint16_t v;
        memcpy(&v, data + 2 * i, 2);
        if (rotate) v = (uint16_t)(v << 1 | v >> 15);
        low[i] = (uint8_t)v;
        high[i] = (uint8_t)(v >> 8);
    }
}

static void join16(const uint8_t *planes, size_t count, uint8_t *data, int rotate)
{
    const uint8_t *low = planes, *high = planes + count;
    for (size_t i = 0; i < count; i++) {
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

static void join32(const uint8_t *planes, size_t count, uint8_t *data, int rotate)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t v = (uint32_t)planes[i] | (uint32_t)planes[count + i] << 8 |
                     (uint32_t)planes[2 * count + i] << 16 | (uint32_t)planes[3 * count + i] << 24;
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
    if (width == 2) split16(data, count, planes, rotates(kind));
    if (width == 4) split32(data, count, planes, rotates(kind));
    lg_put_u8(out, (unsigned)kind);
    for (size_t p = 0; p < width && !status; p++)
        status = lg_array_encode(out, planes + p * count, count, arena, level);
    return status;
}

int lg_planes_decode(const uint8_t *payload, size_t size, uint8_t *data, size_t count, int kind,
                     lg_arena arena, int level)
{
    lg_input in = {payload, payload + size};
    size_t width = lg_width(kind);
    uint32_t stated;
    uint8_t *planes;
    int status = LG_OK;
    if (!width || count > LG_MAX_ELEMENTS) return LG_CORRUPT;
    if (lg_take_u8(&in, &stated) || (int)stated != kind) return LG_CORRUPT;
    planes = lg_alloc(&arena, width * count + 1);
    if (!planes) return LG_NOMEM;
    for (size_t p = 0; p < width && !status; p++)
        status = lg_array_decode(&in, planes + p * count, count, arena, level);
    if (!status && in.at != in.end) status = LG_CORRUPT;
    if (!status && width == 1 && count) memcpy(data, planes, count);
    if (!status && width == 2) join16(planes, count, data, rotates(kind));
    if (!status && width == 4) join32(planes, count, data, rotates(kind));
    return status;
}
