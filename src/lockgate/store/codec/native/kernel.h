/* The hot loops of lockgate's codecs, free of Python. The bytes they write and read are described in
 * docs/store-format.md; lockgate/store/codec/twin.py does the same in NumPy, bit for bit.
 *
 * Every function is pure: it reads its input, writes only below the sizes it was given, and keeps no
 * state. What comes from a frame is hostile: anything impossible is LG_CORRUPT, never undefined. */
#ifndef LOCKGATE_KERNEL_H
#define LOCKGATE_KERNEL_H

#include <stddef.h>
#include <stdint.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "elements are read as they lie in memory, little-endian; elsewhere the NumPy twin does the work"
#endif

enum { LG_OK = 0, LG_DIFFERS = 1, LG_CORRUPT = -1, LG_NOMEM = -2 };

/* How the bits of an element are ordered and where its exponent is. */
enum {
    LG_I8 = 1, LG_E4M3 = 2, LG_E5M2 = 3, LG_F16 = 4, LG_BF16 = 5, LG_F32 = 6, LG_I16 = 7, LG_I32 = 8
};

/* Instruction sets, chosen at run time; the bytes are the same with each. The last is AVX-512 where a gather
 * is faster than loads one by one. */
enum { LG_SCALAR = 0, LG_AVX2 = 1, LG_AVX512 = 2, LG_GATHER = 3 };

#define LG_MAX_CONTEXTS 32
#define LG_MAX_LANES 64
#define LG_SCALE_BITS 11
#define LG_SCALE (1 << LG_SCALE_BITS)
#define LG_LOW (1u << 15)          /* the least value of a coder's state */
#define LG_MAX_ELEMENTS (1u << 26) /* of one frame */
#define LG_TILE 4096               /* elements that are worked on together; divides every segment */
#define LG_MAX_GROUP (1u << 20)    /* so that the sums of a group fit in 64 bits */
#define LG_BLOCK (1u << 16)        /* bytes of an array that are coded by themselves where that is less */

/* A growing byte string; `failed` once memory ran out. While it is `lent`, its memory is another's. */
typedef struct {
    uint8_t *data;
    size_t size, room;
    int failed, lent;
} lg_bytes;

/* Memory that the caller lends for one call; nothing in it means anything before or after. */
typedef struct {
    uint8_t *data;
    size_t size, used;
} lg_arena;

/* What is read, and how far. */
typedef struct {
    const uint8_t *at, *end;
} lg_input;

/* A multi-context rANS block, opened for decoding. */
typedef struct {
    uint32_t *table; /* contexts * LG_SCALE entries: freq << 19 | slot-cum << 8 | symbol */
    lg_input lengths, words; /* of the segments to come */
    size_t left;             /* symbols of them */
    uint32_t segment_size, lanes;
} lg_rans;

/* One segment under way; all zero before the first. */
typedef struct {
    uint32_t state[LG_MAX_LANES];
    const uint8_t *at, *end;
    size_t left; /* symbols */
} lg_segment;

/* What is used after the symbols of a call, `width` bytes of each for a symbol; NULL: nothing. It is brought
 * near meanwhile, while coding waits for itself and not for memory. Only a hint: it may end before. */
typedef struct {
    const uint8_t *at[2];
    size_t width;
} lg_ahead;

/* An array of bytes, opened for decoding; where it is cut in blocks, the one under way, what follows it,
 * and memory for the next one's table. */
typedef struct {
    uint32_t mode;
    uint8_t value;
    const uint8_t *raw;
    lg_rans block;
    lg_segment segment;
    int cut;
    size_t inside, rest; /* bytes of the block under way, and of those to come */
    lg_input blocks;
    lg_arena memory;
} lg_array;

int lg_best_level(void);
size_t lg_width(int kind);
/* The arena that any call on `size` bytes of elements is content with. It must not overlap with data. */
size_t lg_arena_size(size_t size);

/* bytes.c */
void *lg_alloc(lg_arena *arena, size_t size); /* aligned to 64; NULL when there is no more */
uint8_t *lg_room(lg_bytes *out, size_t size); /* where `size` more bytes may go; NULL: no memory */
void lg_put(lg_bytes *out, const void *data, size_t size);
void lg_put_u8(lg_bytes *out, unsigned value);
void lg_put_u16(lg_bytes *out, unsigned value);
void lg_put_u32(lg_bytes *out, uint32_t value);
int lg_take(lg_input *in, size_t size, const uint8_t **data);
int lg_take_u8(lg_input *in, uint32_t *value);
int lg_take_u16(lg_input *in, uint32_t *value);
int lg_take_u32(lg_input *in, uint32_t *value);

/* rans.c: symbols (bytes) under contexts. A key is a context times 256 and a symbol. */
/* Memory for counts of each key, all zero; NULL: no memory. */
uint32_t *lg_rans_counts(lg_arena *arena, int contexts);
void lg_rans_count(uint32_t *counts, const uint16_t *keys, size_t count, lg_ahead ahead);
/* `counts` are those of all keys. */
int lg_rans_encode(lg_bytes *out, const uint16_t *keys, size_t count, int contexts, uint32_t *counts,
                   lg_arena arena, int level);
int lg_rans_open(lg_rans *block, lg_input *in, size_t count, int contexts, lg_arena *arena);
/* Decodes the next LG_TILE symbols, or those that are left: a tile never lies in two segments. `slots`
 * are their contexts, each times LG_SCALE; NULL where there is one. */
int lg_rans_next(lg_rans *block, lg_segment *segment, const uint16_t *slots, uint8_t *symbols, size_t count,
                 lg_ahead ahead, int level);
/* A whole array of bytes: raw, constant, rANS, or blocks of these. */
int lg_array_encode(lg_bytes *out, const uint8_t *symbols, size_t count, lg_arena arena,
                    int level);
int lg_array_open(lg_array *array, lg_input *in, size_t count, lg_arena *arena);
/* Gives the next bytes of an array, LG_TILE or those that are left: `found` points to them, in `room` or
 * in the input. */
int lg_array_next(lg_array *array, uint8_t *room, size_t count, const uint8_t **found, lg_ahead ahead,
                  int level);
int lg_array_decode(lg_input *in, uint8_t *symbols, size_t count, lg_arena arena, int level);

/* delta.c: elements against a prediction of the same kind and count. */
int lg_delta_encode(lg_bytes *out, const uint8_t *data, const uint8_t *base, size_t count, int kind,
                    uint32_t group, lg_arena arena, int level);
int lg_delta_decode(const uint8_t *payload, size_t size, const uint8_t *base, uint8_t *data, size_t count,
                    int kind, lg_arena arena, int level);
/* Says LG_OK when decoding would give `data`, LG_DIFFERS when not; while each tile is in the cache. */
int lg_delta_compare(const uint8_t *payload, size_t size, const uint8_t *base, const uint8_t *data,
                     size_t count, int kind, lg_arena arena, int level);

/* planes.c: elements alone, byte plane by byte plane. */
int lg_planes_encode(lg_bytes *out, const uint8_t *data, size_t count, int kind, lg_arena arena,
                     int level);
int lg_planes_decode(const uint8_t *payload, size_t size, uint8_t *data, size_t count, int kind,
                     lg_arena arena, int level);
int lg_planes_compare(const uint8_t *payload, size_t size, const uint8_t *data, size_t count, int kind,
                      lg_arena arena, int level);

#endif
