/* Elements as differences from a prediction (a stored base, or something made from it).
 *
 * The bits of a float are mapped to an integer in the order of the values (as in FM-Delta, NeurIPS
 * 2024), so that a step of one unit in the last place is a difference of 1. The difference, counted
 * away from zero, becomes a token (sign, magnitude class) and extra bits (the hybrid integers of JPEG
 * XL, ISO/IEC 18181-1), and tokens are coded under a context: how large a difference is to be expected,
 * in half octaves. That is the scale of the element's group (a row, say), which the encoder states, less the
 * exponent of the prediction: an update of one size spans twice the units for each exponent lower. */
#include <stdlib.h>
#include <string.h>

#include "kernel.h"

#define TILE LG_TILE
#define SPAN 24    /* exponents further below the greatest are taken as that far */
#define FEW 63     /* units; a group's scale is not judged by larger differences */
#define LARGE 255  /* stands for the token of a larger magnitude until it is made */
#define SAMPLE 16  /* the model is chosen by every 16th element */
#define SPREAD 512 /* expected sizes, moved by SHIFT to be indices */
#define SHIFT 128

enum { sparse_from = 1024 }; /* elements of a group of which a sample will do */

#define INLINE static inline __attribute__((always_inline))

INLINE uint32_t load(const uint8_t *data, size_t i, int kind)
{
    uint16_t half;
    uint32_t full;
    switch (kind) {
    case LG_I8: case LG_E4M3: case LG_E5M2: return data[i];
    case LG_F32: case LG_I32: memcpy(&full, data + 4 * i, 4); return full;
    default: memcpy(&half, data + 2 * i, 2); return half;
    }
}

INLINE void store(uint8_t *data, size_t i, uint32_t value, int kind)
{
    uint16_t half = (uint16_t)value;
    switch (kind) {
    case LG_I8: case LG_E4M3: case LG_E5M2: data[i] = (uint8_t)value; break;
    case LG_F32: case LG_I32: memcpy(data + 4 * i, &value, 4); break;
    default: memcpy(data + 2 * i, &half, 2);
    }
}

INLINE int is_float(int kind) { return kind != LG_I8 && kind != LG_I16 && kind != LG_I32; }

INLINE int bits_of(int kind)
{
    if (kind == LG_F32 || kind == LG_I32) return 32;
    return kind == LG_I8 || kind == LG_E4M3 || kind == LG_E5M2 ? 8 : 16;
}

INLINE uint32_t exponent(uint32_t b, int kind)
{
    switch (kind) {
    case LG_E4M3: return b >> 3 & 15;
    case LG_E5M2: return b >> 2 & 31;
    case LG_F16: return b >> 10 & 31;
    case LG_BF16: return b >> 7 & 255;
    case LG_F32: return b >> 23 & 255;
    default: return SPAN;
    }
}

INLINE uint32_t most(int kind) /* the exponent of infinities and NaN; none for E4M3 */
{
    return kind == LG_E5M2 || kind == LG_F16 ? 31 : kind == LG_BF16 || kind == LG_F32 ? 255 : 256;
}

/* All bits of a value set when its top bit is. */
INLINE uint32_t smear(uint32_t v, int kind)
{
    int bits = bits_of(kind);
    return 0u - (v >> (bits - 1) & 1);
}

INLINE uint32_t mask_of(int kind) { return 0xffffffffu >> (32 - bits_of(kind)); }

/* The difference x - b counted away from zero, modulo 2^bits. */
INLINE uint32_t subtract(uint32_t x, uint32_t b, int kind)
{
    uint32_t top = 1u << (bits_of(kind) - 1), sx, sb, d;
    if (!is_float(kind)) return (x - b) & mask_of(kind);
    sx = smear(x, kind);
    sb = smear(b, kind);
    d = (x ^ (sx | top)) - (b ^ (sb | top));
    return ((d ^ sb) - sb) & mask_of(kind);
}

INLINE uint32_t add(uint32_t b, uint32_t d, int kind)
{
    uint32_t top = 1u << (bits_of(kind) - 1), sb, o;
    if (!is_float(kind)) return (b + d) & mask_of(kind);
    sb = smear(b, kind);
    o = (b ^ (sb | top)) + ((d ^ sb) - sb);
    return (o ^ (~smear(o, kind) | top)) & mask_of(kind);
}

INLINE uint32_t magnitude(uint32_t d, int kind)
{
    uint32_t s = smear(d, kind);
    return ((d ^ s) - s) & mask_of(kind);
}

INLINE uint32_t shift_of(uint32_t b, uint32_t reference, int kind)
{
    uint32_t e = exponent(b, kind);
    e = e > reference ? e - reference : 0;
    return e > SPAN ? SPAN : e;
}

/* Magnitudes below 2^small have a token of their own; `first` is the first token with extra bits. */
INLINE uint32_t small_of(int kind) { return bits_of(kind) == 32 ? 4 : 6; }
INLINE uint32_t first_of(int kind) { return (2u << small_of(kind)) - 1; }

INLINE int lowered(int kind) { return bits_of(kind) == 32 ? 16 : 0; }

/* ---- bits ---- */

typedef struct {
    lg_bytes *out;
    uint64_t bits;
    uint32_t many; /* below 8 between calls */
} bit_writer;

/* Appends `count` values of up to 29 bits; says whether there was memory. */
static int put_bits(bit_writer *w, const uint32_t *values, const uint8_t *sizes, size_t count)
{
    uint8_t *to = lg_room(w->out, 4 * count + 8);
    const uint8_t *from = to;
    if (!to) return LG_NOMEM;
    for (size_t i = 0; i < count; i++) {
        w->bits |= (uint64_t)values[i] << w->many;
        w->many += sizes[i];
        memcpy(to, &w->bits, 8);
        to += w->many >> 3;
        w->bits >>= w->many & ~7u;
        w->many &= 7;
    }
    w->out->size += (size_t)(to - from);
    return LG_OK;
}

static void end_bits(bit_writer *w)
{
    if (w->many) lg_put_u8(w->out, (unsigned)(w->bits & 255));
}

typedef struct {
    const uint8_t *data;
    uint64_t at, end; /* in bits */
} bit_reader;

static int take_bits(bit_reader *r, uint32_t count, uint32_t *value)
{
    uint64_t raw = 0;
    size_t byte = (size_t)(r->at >> 3), left = (size_t)(r->end >> 3) - byte;
    if (count > r->end - r->at) return LG_CORRUPT;
    if (left >= 8) {
        memcpy(&raw, r->data + byte, 8);
    } else {
        for (size_t i = 0; i < left; i++) raw |= (uint64_t)r->data[byte + i] << (8 * i);
    }
    *value = (uint32_t)(raw >> (r->at & 7) & ((1ull << count) - 1));
    r->at += count;
    return LG_OK;
}

/* ---- loops over many elements, by kind ---- */

/* The greatest exponent of every 16th element. */
INLINE uint32_t greatest(const uint8_t *base, size_t count, int kind)
{
    uint32_t top = 0;
    if (!is_float(kind)) return SPAN;
    for (size_t i = 0; i < count; i += SAMPLE) {
        uint32_t e = exponent(load(base, i, kind), kind);
        e = e == most(kind) ? 0 : e;
        top = e > top ? e : top;
    }
    return top;
}

/* The sum of the differences as if at one exponent, none counted for more than `limit`; of a quarter of
 * the elements in a large group. A difference is 2^31 at most, 2^39 once moved, and a group has LG_MAX_GROUP
 * / 4 of them: 2^57. Those of less than 32 bits count for FEW units at most: 2^30 once moved. */
INLINE uint64_t weigh(const uint8_t *data, const uint8_t *base, size_t begin, size_t end, uint32_t reference,
                      uint64_t limit, size_t stride, int kind)
{
    uint64_t sum = 0;
    for (size_t block = begin; block < end; block += stride) {
        size_t stop = block + 16 < end ? block + 16 : end;
        for (size_t i = block; i < stop; i++) {
            uint32_t b = load(base, i, kind);
            uint64_t m = magnitude(subtract(load(data, i, kind), b, kind), kind);
            if (bits_of(kind) < 32 && m > FEW) m = FEW;
            m = (m << shift_of(b, reference, kind)) >> lowered(kind);
            sum += m > limit ? limit : m;
        }
    }
    return sum;
}

/* Counts the sizes that every 16th element expects; `begin` is such an element. */
INLINE void tally(const uint8_t *base, size_t begin, size_t end, int class, uint32_t reference,
                  uint32_t *seen, int kind)
{
    for (size_t i = begin; i < end; i += SAMPLE)
        seen[class - 2 * (int)shift_of(load(base, i, kind), reference, kind) + SHIFT]++;
}

INLINE void expect(const uint8_t *base, size_t begin, size_t end, int class, uint32_t reference, int origin,
                   int step, int contexts, uint8_t *out, int kind)
{
    int top = contexts - 1;
    for (size_t i = begin; i < end; i++) {
        int c = (class - 2 * (int)shift_of(load(base, i, kind), reference, kind) - origin) >> step;
        c = c < 0 ? 0 : c;
        out[i - begin] = (uint8_t)(c > top ? top : c);
    }
}

/* Tokens of small magnitudes, and LARGE for the others. */
INLINE void tokenize(const uint8_t *data, const uint8_t *base, size_t begin, size_t end, uint8_t *tokens,
                     int kind)
{
    for (size_t i = begin; i < end; i++) {
        uint32_t d = subtract(load(data, i, kind), load(base, i, kind), kind);
        uint32_t m = magnitude(d, kind);
        uint32_t t = m ? 2 * m - 1 + (smear(d, kind) & 1) : 0;
        tokens[i - begin] = (uint8_t)(m >> small_of(kind) ? LARGE : t);
    }
}

/* Adds the small tokens' differences; the others are taken for nothing yet. */
INLINE void combine(const uint8_t *base, const uint8_t *tokens, size_t begin, size_t end, uint8_t *data,
                    int kind)
{
    for (size_t i = begin; i < end; i++) {
        uint32_t t = tokens[i - begin], k = (t + 1) >> 1;
        uint32_t d = t & 1 ? k : 0u - k;
        store(data, i, add(load(base, i, kind), d, kind), kind);
    }
}

/* Makes the tokens that stand as LARGE, and their extra bits; `at` says where they are. */
INLINE void make_large(const uint8_t *data, const uint8_t *base, const uint16_t *at, size_t count,
                       uint8_t *tokens, uint32_t *values, uint8_t *sizes, int kind)
{
    uint32_t small = small_of(kind);
    for (size_t i = 0; i < count; i++) {
        size_t j = at[i];
        uint32_t d = subtract(load(data, j, kind), load(base, j, kind), kind);
        uint32_t m = magnitude(d, kind), log = 31 - (uint32_t)__builtin_clz(m);
        uint32_t k = (1u << small) + (log - small) * 4 + (m >> (log - 2) & 3);
        tokens[j] = (uint8_t)(2 * k - 1 + (smear(d, kind) & 1));
        values[i] = m & ((1u << (log - 2)) - 1);
        sizes[i] = (uint8_t)(log - 2);
    }
}

/* Stores the elements whose tokens have extra bits; `at` says where they are. */
INLINE int take_large(const uint8_t *base, const uint8_t *tokens, const uint16_t *at, size_t count,
                      uint8_t *data, bit_reader *extra, int kind)
{
    uint32_t small = small_of(kind);
    for (size_t i = 0; i < count; i++) {
        size_t j = at[i];
        uint32_t t = tokens[j], k = ((t + 1) >> 1) - (1u << small), low, m;
        uint32_t log = k / 4 + small;
        if (log >= (uint32_t)bits_of(kind) || take_bits(extra, log - 2, &low)) return LG_CORRUPT;
        m = (4 | (k & 3)) << (log - 2) | low;
        store(data, j, add(load(base, j, kind), t & 1 ? m : 0u - m, kind), kind);
    }
    return LG_OK;
}

/* Bit i: whether token i of the next 64, or of the `left` that there are, is at least `first`. */
INLINE uint64_t large_in(const uint8_t *tokens, size_t left, uint32_t first)
{
    uint64_t found = 0;
    for (size_t i = 0; i < 64 && i < left; i += 8) {
        uint64_t v = 0;
        memcpy(&v, tokens + i, left - i < 8 ? left - i : 8);
        v |= (v & 0x7f7f7f7f7f7f7f7full) + 0x0101010101010101ull * (128 - first);
        found |= ((v >> 7 & 0x0101010101010101ull) * 0x0102040810204080ull >> 56) << i;
    }
    return found;
}

/* Writes down where bits are; four at least, for how many there are is hard to foresee. `at` has room for
 * four more than there are. */
INLINE size_t places_of(uint64_t bits, size_t begin, uint16_t *at)
{
    size_t many = (size_t)__builtin_popcountll(bits), n = 0;
    do {
        for (size_t last = n + 4; n < last; n++) {
            at[n] = (uint16_t)(begin + (size_t)__builtin_ctzll(bits | 1ull << 63));
            bits &= bits - 1;
        }
    } while (n < many);
    return many;
}

/* Writes down where tokens are at least `first`; returns how many there are. */
INLINE size_t find_large(const uint8_t *tokens, size_t count, uint32_t first, uint16_t *at)
{
    size_t many = 0;
    for (size_t i = 0; i < count; i += 64)
        many += places_of(large_in(tokens + i, count - i, first), i, at + many);
    return many;
}

/* Keys of contexts and tokens; and the slots where contexts begin. */
INLINE void join(const uint8_t *contexts_of, const uint8_t *tokens, size_t count, uint16_t *keys)
{
    for (size_t i = 0; i < count; i++) keys[i] = (uint16_t)(contexts_of[i] << 8 | tokens[i]);
}

INLINE void spread(const uint8_t *contexts_of, size_t count, uint16_t *slots)
{
    for (size_t i = 0; i < count; i++) slots[i] = (uint16_t)(contexts_of[i] << LG_SCALE_BITS);
}

typedef struct {
    uint32_t (*greatest)(const uint8_t *, size_t);
    uint64_t (*weigh)(const uint8_t *, const uint8_t *, size_t, size_t, uint32_t, uint64_t);
    void (*expect)(const uint8_t *, size_t, size_t, int, uint32_t, int, int, int, uint8_t *);
    void (*tokenize)(const uint8_t *, const uint8_t *, size_t, size_t, uint8_t *);
    void (*combine)(const uint8_t *, const uint8_t *, size_t, size_t, uint8_t *);
    size_t (*find_large)(const uint8_t *, size_t, uint32_t, uint16_t *);
    void (*make_large)(const uint8_t *, const uint8_t *, const uint16_t *, size_t, uint8_t *, uint32_t *,
                       uint8_t *);
    int (*take_large)(const uint8_t *, const uint8_t *, const uint16_t *, size_t, uint8_t *, bit_reader *);
    void (*tally)(const uint8_t *, size_t, size_t, int, uint32_t, uint32_t *);
    void (*join)(const uint8_t *, const uint8_t *, size_t, uint16_t *);
    void (*spread)(const uint8_t *, size_t, uint16_t *);
} loops;

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#ifdef __clang__ /* which would ignore the whole list for a word that it does not know */
#define WIDE
#else
#define WIDE ",prefer-vector-width=512"
#endif
#define TARGET_512                                                                                          \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx2,bmi2,popcnt,lzcnt" WIDE)))

/* The same for 16-bit floats, 32 elements at a time; they return where the others go on. */
TARGET_512 INLINE uint32_t greatest_512(const uint8_t *base, size_t count, int mantissa, int most)
{
    __m512i none = _mm512_set1_epi16((short)most), top = _mm512_setzero_si512();
    for (size_t i = 0; i < count; i += 32) {
        size_t left = count - i;
        __builtin_prefetch(base + 2 * i + 4096, 0, 2);
        __m512i e = _mm512_maskz_loadu_epi16(left > SAMPLE ? 1u | 1u << SAMPLE : 1u, base + 2 * i);
        e = _mm512_and_si512(_mm512_srli_epi16(e, (unsigned)mantissa), none);
        top = _mm512_max_epu16(top, _mm512_maskz_mov_epi16(_mm512_cmpneq_epu16_mask(e, none), e));
    }
    return _mm512_reduce_max_epu32(_mm512_max_epu32(_mm512_and_si512(top, _mm512_set1_epi32(0xffff)),
                                                    _mm512_srli_epi32(top, 16)));
}

TARGET_512 INLINE __m512i ordered(__m512i v)
{
    return _mm512_xor_si512(v, _mm512_or_si512(_mm512_srai_epi16(v, 15), _mm512_set1_epi16(-32768)));
}

/* The difference of elements, counted away from zero. */
TARGET_512 INLINE __m512i subtract_512(__m512i x, __m512i b)
{
    __m512i s = _mm512_srai_epi16(b, 15), d = _mm512_sub_epi16(ordered(x), ordered(b));
    return _mm512_sub_epi16(_mm512_xor_si512(d, s), s);
}

TARGET_512 INLINE __m512i shift_512(__m512i b, uint32_t reference, int mantissa, int most)
{
    __m512i e = _mm512_and_si512(_mm512_srli_epi16(b, (unsigned)mantissa), _mm512_set1_epi16((short)most));
    e = _mm512_subs_epu16(e, _mm512_set1_epi16((short)reference));
    return _mm512_min_epu16(e, _mm512_set1_epi16(SPAN));
}

/* Two blocks of 16 elements, `apart` from one another. */
TARGET_512 INLINE __m512i two_blocks(const uint8_t *data, size_t i, size_t apart)
{
    __m256i a = _mm256_loadu_si256((const __m256i *)(data + 2 * i));
    __m256i b = _mm256_loadu_si256((const __m256i *)(data + 2 * (i + apart)));
    return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
}

TARGET_512 INLINE uint64_t weigh_512(const uint8_t *data, const uint8_t *base, size_t *at, size_t end,
                                     uint32_t reference, uint64_t limit, int mantissa, int most)
{
    size_t stride = sparse_from <= end - *at ? 64 : 16, i = *at;
    __m512i sum = _mm512_setzero_si512(), low = _mm512_set1_epi32(0xffff);
    __m512i top = _mm512_set1_epi32((int)(limit < 1u << 30 ? limit : 1u << 30));
    for (; i + stride + 16 <= end; i += 2 * stride) {
        __m512i b = two_blocks(base, i, stride), d = subtract_512(two_blocks(data, i, stride), b);
        __m512i m = _mm512_min_epu16(_mm512_abs_epi16(d), _mm512_set1_epi16(FEW));
        __m512i by = shift_512(b, reference, mantissa, most);
        __m512i even = _mm512_sllv_epi32(_mm512_and_si512(m, low), _mm512_and_si512(by, low));
        __m512i odd = _mm512_sllv_epi32(_mm512_srli_epi32(m, 16), _mm512_srli_epi32(by, 16));
        __m512i both = _mm512_add_epi32(_mm512_min_epu32(even, top), _mm512_min_epu32(odd, top));
        sum = _mm512_add_epi64(sum, _mm512_and_si512(both, _mm512_set1_epi64(0xffffffff)));
        sum = _mm512_add_epi64(sum, _mm512_srli_epi64(both, 32));
    }
    *at = i;
    return (uint64_t)_mm512_reduce_add_epi64(sum);
}

TARGET_512 static size_t find_large_512(const uint8_t *tokens, size_t count, uint32_t first, uint16_t *at)
{
    size_t many = 0;
    for (size_t i = 0; i < count; i += 64) {
        __mmask64 there = count - i < 64 ? ~0ull >> (64 - (count - i)) : ~0ull;
        __m512i t = _mm512_maskz_loadu_epi8(there, tokens + i);
        many += places_of(_mm512_mask_cmpge_epu8_mask(there, t, _mm512_set1_epi8((char)first)), i, at + many);
    }
    return many;
}

TARGET_512 INLINE size_t expect_512(const uint8_t *base, size_t i, size_t end, int class, uint32_t reference,
                                    int origin, int step, int contexts, uint8_t *out, int mantissa, int most)
{
    __m512i start = _mm512_set1_epi16((short)(class - origin));
    __m512i top = _mm512_set1_epi16((short)(contexts - 1));
    __m128i by = _mm_cvtsi32_si128(step);
    for (; i + 32 <= end; i += 32, out += 32) {
        __m512i e = shift_512(_mm512_loadu_si512(base + 2 * i), reference, mantissa, most);
        e = _mm512_sra_epi16(_mm512_sub_epi16(start, _mm512_add_epi16(e, e)), by);
        e = _mm512_min_epi16(_mm512_max_epi16(e, _mm512_setzero_si512()), top);
        _mm256_storeu_si256((__m256i *)out, _mm512_cvtepi16_epi8(e));
    }
    return i;
}

TARGET_512 INLINE size_t tokenize_512(const uint8_t *data, const uint8_t *base, size_t i, size_t end,
                                      uint8_t *tokens)
{
    for (; i + 32 <= end; i += 32, tokens += 32) {
        __m512i d = subtract_512(_mm512_loadu_si512(data + 2 * i), _mm512_loadu_si512(base + 2 * i));
        __m512i m = _mm512_abs_epi16(d);
        __m512i t = _mm512_add_epi16(_mm512_add_epi16(m, m), _mm512_srli_epi16(d, 15));
        t = _mm512_subs_epu16(t, _mm512_set1_epi16(1));
        t = _mm512_mask_mov_epi16(t, _mm512_cmpgt_epu16_mask(m, _mm512_set1_epi16(63)),
                                  _mm512_set1_epi16(LARGE));
        _mm256_storeu_si256((__m256i *)tokens, _mm512_cvtepi16_epi8(t));
    }
    return i;
}

TARGET_512 INLINE size_t combine_512(const uint8_t *base, const uint8_t *tokens, size_t i, size_t end,
                                     uint8_t *data)
{
    __m512i one = _mm512_set1_epi16(1);
    for (; i + 32 <= end; i += 32, tokens += 32) {
        __m512i t = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)tokens));
        __m512i d = _mm512_srli_epi16(_mm512_add_epi16(t, one), 1);
        d = _mm512_mask_sub_epi16(d, _mm512_testn_epi16_mask(t, one), _mm512_setzero_si512(), d);
        __m512i b = _mm512_loadu_si512(base + 2 * i), s = _mm512_srai_epi16(b, 15);
        __m512i o = _mm512_add_epi16(ordered(b), _mm512_sub_epi16(_mm512_xor_si512(d, s), s));
        s = _mm512_ternarylogic_epi32(_mm512_srai_epi16(o, 15), _mm512_set1_epi16(-32768),
                                      _mm512_setzero_si512(), 0xcf); /* not a, or b */
        _mm512_storeu_si512(data + 2 * i, _mm512_xor_si512(o, s));
    }
    return i;
}

#define DEFINE_512(name, kind, mantissa, most)                                                              \
    TARGET_512 static uint32_t greatest_##name##_fast(const uint8_t *b, size_t n)                           \
    {                                                                                                       \
        return greatest_512(b, n, mantissa, most);                                                          \
    }                                                                                                       \
    TARGET_512 static uint64_t weigh_##name##_fast(const uint8_t *x, const uint8_t *b, size_t i, size_t j,  \
                                                   uint32_t r, uint64_t l)                                  \
    {                                                                                                       \
        size_t stride = j - i < sparse_from ? 16 : 64;                                                      \
        uint64_t sum = weigh_512(x, b, &i, j, r, l, mantissa, most);                                        \
        return sum + weigh(x, b, i, j, r, l, stride, kind);                                                 \
    }                                                                                                       \
    TARGET_512 static void expect_##name##_fast(const uint8_t *b, size_t i, size_t j, int c, uint32_t r,    \
                                                int o, int s, int n, uint8_t *out)                          \
    {                                                                                                       \
        size_t k = expect_512(b, i, j, c, r, o, s, n, out, mantissa, most);                                 \
        expect(b, k, j, c, r, o, s, n, out + (k - i), kind);                                                \
    }                                                                                                       \
    TARGET_512 static void tokenize_##name##_fast(const uint8_t *x, const uint8_t *b, size_t i, size_t j,   \
                                                  uint8_t *t)                                               \
    {                                                                                                       \
        size_t k = tokenize_512(x, b, i, j, t);                                                             \
        tokenize(x, b, k, j, t + (k - i), kind);                                                            \
    }                                                                                                       \
    TARGET_512 static void combine_##name##_fast(const uint8_t *b, const uint8_t *t, size_t i, size_t j,    \
                                                 uint8_t *x)                                                \
    {                                                                                                       \
        size_t k = combine_512(b, t, i, j, x);                                                              \
        combine(b, t + (k - i), k, j, x, kind);                                                             \
    }

DEFINE_512(f16, LG_F16, 10, 31)
DEFINE_512(bf16, LG_BF16, 7, 255)
#endif

/* The loops above for one kind and one instruction set. */
#define DEFINE(name, kind, attribute)                                                                       \
    attribute static uint32_t greatest_##name(const uint8_t *b, size_t n) { return greatest(b, n, kind); }  \
    attribute static uint64_t weigh_##name(const uint8_t *x, const uint8_t *b, size_t i, size_t j,          \
                                           uint32_t r, uint64_t l)                                          \
    {                                                                                                       \
        return weigh(x, b, i, j, r, l, j - i < sparse_from ? 16 : 64, kind);                                \
    }                                                                                                       \
    attribute static void expect_##name(const uint8_t *b, size_t i, size_t j, int c, uint32_t r, int o,     \
                                        int s, int n, uint8_t *out)                                         \
    {                                                                                                       \
        expect(b, i, j, c, r, o, s, n, out, kind);                                                          \
    }                                                                                                       \
    attribute static void tokenize_##name(const uint8_t *x, const uint8_t *b, size_t i, size_t j,           \
                                          uint8_t *t)                                                       \
    {                                                                                                       \
        tokenize(x, b, i, j, t, kind);                                                                      \
    }                                                                                                       \
    attribute static void combine_##name(const uint8_t *b, const uint8_t *t, size_t i, size_t j,            \
                                         uint8_t *x)                                                        \
    {                                                                                                       \
        combine(b, t, i, j, x, kind);                                                                       \
    }                                                                                                       \
    attribute static size_t find_large_##name(const uint8_t *t, size_t n, uint32_t first, uint16_t *at)     \
    {                                                                                                       \
        return find_large(t, n, first, at);                                                                 \
    }                                                                                                       \
    attribute static void make_large_##name(const uint8_t *x, const uint8_t *b, const uint16_t *at,         \
                                            size_t n, uint8_t *t, uint32_t *v, uint8_t *s)                  \
    {                                                                                                       \
        make_large(x, b, at, n, t, v, s, kind);                                                             \
    }                                                                                                       \
    attribute static int take_large_##name(const uint8_t *b, const uint8_t *t, const uint16_t *at,          \
                                           size_t n, uint8_t *x, bit_reader *r)                             \
    {                                                                                                       \
        return take_large(b, t, at, n, x, r, kind);                                                         \
    }                                                                                                       \
    attribute static void tally_##name(const uint8_t *b, size_t i, size_t j, int c, uint32_t r,             \
                                       uint32_t *seen)                                                      \
    {                                                                                                       \
        tally(b, i, j, c, r, seen, kind);                                                                   \
    }                                                                                                       \
    attribute static void join_##name(const uint8_t *c, const uint8_t *t, size_t n, uint16_t *keys)         \
    {                                                                                                       \
        join(c, t, n, keys);                                                                                \
    }                                                                                                       \
    attribute static void spread_##name(const uint8_t *c, size_t n, uint16_t *slots)                        \
    {                                                                                                       \
        spread(c, n, slots);                                                                                \
    }

#define EACH(level, attribute)                                                                              \
    DEFINE(i8_##level, LG_I8, attribute)                                                                    \
    DEFINE(e4m3_##level, LG_E4M3, attribute)                                                                \
    DEFINE(e5m2_##level, LG_E5M2, attribute)                                                                \
    DEFINE(f16_##level, LG_F16, attribute)                                                                  \
    DEFINE(bf16_##level, LG_BF16, attribute)                                                                \
    DEFINE(f32_##level, LG_F32, attribute)                                                                  \
    DEFINE(i16_##level, LG_I16, attribute)                                                                  \
    DEFINE(i32_##level, LG_I32, attribute)

#define ROW_WITH(name, find)                                                                                \
    {greatest_##name, weigh_##name, expect_##name, tokenize_##name, combine_##name, find,                   \
     make_large_##name, take_large_##name, tally_##name, join_##name, spread_##name}
#define ROW(name) ROW_WITH(name, find_large_##name)
#define ROW_512(name) ROW_WITH(name, find_large_512)
#define TABLE(level)                                                                                        \
    {ROW(i8_##level), ROW(e4m3_##level), ROW(e5m2_##level), ROW(f16_##level), ROW(bf16_##level),            \
     ROW(f32_##level), ROW(i16_##level), ROW(i32_##level)}

EACH(plain, )
#if defined(__x86_64__) && defined(__GNUC__)
EACH(avx2, __attribute__((target("avx2,bmi2,popcnt,lzcnt"))))
EACH(avx512, TARGET_512 __attribute__((unused)))
#define FAST(name)                                                                                          \
    {greatest_##name##_fast, weigh_##name##_fast, expect_##name##_fast, tokenize_##name##_fast,             \
     combine_##name##_fast, find_large_512, make_large_##name##_avx512, take_large_##name##_avx512,         \
     tally_##name##_avx512, join_##name##_avx512, spread_##name##_avx512}
static const loops LOOPS[3][8] = {
    TABLE(plain), TABLE(avx2),
    {ROW_512(i8_avx512), ROW_512(e4m3_avx512), ROW_512(e5m2_avx512), FAST(f16), FAST(bf16),
     ROW_512(f32_avx512), ROW_512(i16_avx512), ROW_512(i32_avx512)},
};
#else
static const loops LOOPS[1][8] = {TABLE(plain)};
#endif

static const loops *loops_for(int kind, int level)
{
    int have = (int)(sizeof LOOPS / sizeof LOOPS[0]) - 1;
    return &LOOPS[level < 0 ? 0 : level > have ? have : level][kind - 1];
}

/* Brings bytes near, one of every `step`. */
INLINE void soon(const uint8_t *data, size_t begin, size_t end, size_t step)
{
    for (size_t i = begin; i < end; i += step) __builtin_prefetch(data + i, 0, 2);
}

/* ---- encoding ---- */

typedef struct {
    const loops *run;
    int kind;
    uint32_t group, groups, reference;
    int origin, step, contexts;
    uint8_t *classes;
} model;

static uint32_t top_bit(uint64_t v)
{
    uint32_t log = 0;
    while (v >>= 1) log++;
    return log;
}

/* Twice the binary logarithm, rounded to the nearest half octave below or at it; 0 for 0. */
static uint32_t half_octaves(uint64_t v)
{
    uint32_t log;
    uint64_t t;
    if (!v) return 0;
    log = top_bit(v);
    t = log >= 15 ? v >> (log - 15) : v << (15 - log);
    return 2 * log + (t >= 46341);
}

/* How many elements of a group of that size `weigh` looks at. */
static size_t weighed(size_t size)
{
    return size < sparse_from ? size : size / 64 * 16 + (size % 64 < 16 ? size % 64 : 16);
}

/* A group's class is how large its differences are, in half octaves: their mean, where none counts for more
 * than eight times the plain mean. A few that are far out say nothing of the others. */
static void classify(model *m, const uint8_t *data, const uint8_t *base, size_t count, uint32_t *seen)
{
    size_t width = lg_width(m->kind);
    uint32_t top = m->run->greatest(base, count);
    m->reference = top > SPAN ? top - SPAN : 0;
    for (uint32_t g = 0; g < m->groups; g++) {
        size_t begin = (size_t)g * m->group, end = begin + m->group < count ? begin + m->group : count;
        uint64_t many = weighed(end - begin);
        size_t near = m->group < 2 * TILE ? m->group : 2 * TILE;
        size_t next = end + near < count ? end + near : count;
        soon(base, end * width, next * width, 64);
        soon(data, end * width, next * width, m->group < sparse_from ? 64 : 64 * width);
        uint64_t sum = m->run->weigh(data, base, begin, end, m->reference, UINT64_MAX);
        if (sum) sum = m->run->weigh(data, base, begin, end, m->reference, sum * 8 / many);
        int64_t class = (int64_t)half_octaves(sum * 16 / many) + 2 * lowered(m->kind) - 8;
        m->classes[g] = (uint8_t)(sum && class > 0 ? class : 0);
        begin = (begin + SAMPLE - 1) / SAMPLE * SAMPLE;
        if (begin < end && m->classes[g]) m->run->tally(base, begin, end, m->classes[g], m->reference, seen);
    }
}

static int contexts_for(size_t count)
{
    return count >= 65536 ? 32 : count >= 16384 ? 16 : count >= 8192 ? 8 : count >= 2048 ? 4 : 1;
}

/* Chooses the contexts: the expected sizes of every 16th element, without the last of each tail. Groups
 * that did not change (class 0) have no say. */
static void choose(model *m, const uint32_t *seen, size_t count)
{
    uint32_t total = 0, low = 0, high = SPREAD - 1, sum = 0;
    int most_contexts = contexts_for(count);
    for (int s = 0; s < SPREAD; s++) total += seen[s];
    while (low < SPREAD - 1 && (sum += seen[low]) * 200ull <= total) low++;
    sum = 0;
    while (high > low && (sum += seen[high]) * 1000ull <= total) high--;
    m->origin = (int)low - SHIFT;
    for (m->step = 0; (int)((high - low) >> m->step) + 1 > most_contexts; m->step++) {}
    m->contexts = (int)((high - low) >> m->step) + 1;
}

/* The contexts of elements [begin, end). */
static void expect_tile(const model *m, const uint8_t *base, size_t begin, size_t end, uint8_t *contexts_of)
{
    if (m->contexts == 1) {
        memset(contexts_of, 0, end - begin);
        return;
    }
    for (size_t i = begin; i < end;) {
        size_t g = i / m->group, stop = (g + 1) * m->group < end ? (g + 1) * m->group : end;
        m->run->expect(base, i, stop, m->classes[g], m->reference, m->origin, m->step, m->contexts,
                       contexts_of + (i - begin));
        i = stop;
    }
}

/* Makes the keys of all elements, and their extra bits. */
static int describe(const model *m, const uint8_t *data, const uint8_t *base, size_t count, uint16_t *keys,
                    uint32_t *counts, bit_writer *extra)
{
    uint8_t tokens[TILE], contexts_of[TILE], sizes[TILE];
    uint16_t at[TILE + 4];
    uint32_t values[TILE];
    size_t width = lg_width(m->kind);
    for (size_t begin = 0; begin < count; begin += TILE) {
        size_t end = begin + TILE < count ? begin + TILE : count, many;
        const uint8_t *x = data + begin * width, *b = base + begin * width;
        lg_ahead ahead = {{NULL, NULL}, width};
        if (end + TILE <= count) ahead = (lg_ahead){{base + end * width, data + end * width}, width};
        expect_tile(m, base, begin, end, contexts_of);
        m->run->tokenize(data, base, begin, end, tokens);
        many = m->run->find_large(tokens, end - begin, first_of(m->kind), at);
        m->run->make_large(x, b, at, many, tokens, values, sizes);
        if (put_bits(extra, values, sizes, many)) return LG_NOMEM;
        m->run->join(contexts_of, tokens, end - begin, keys + begin);
        lg_rans_count(counts, keys + begin, end - begin, ahead);
    }
    return LG_OK;
}

int lg_delta_encode(lg_bytes *out, const uint8_t *data, const uint8_t *base, size_t count, int kind,
                    uint32_t group, lg_arena arena, int level)
{
    uint32_t seen[SPREAD] = {0};
    lg_bytes extra = {0};
    bit_writer bits = {&extra, 0, 0};
    model m = {loops_for(kind, level), kind, group, 0, 0, 0, 0, 1, NULL};
    uint16_t *keys = lg_alloc(&arena, 2 * count + 1);
    uint32_t *counts;
    int status;
    m.groups = (uint32_t)((count + group - 1) / group);
    m.classes = lg_alloc(&arena, (size_t)m.groups + 1);
    if (!keys || !m.classes) return LG_NOMEM;
    classify(&m, data, base, count, seen);
    choose(&m, seen, count);
    counts = lg_rans_counts(&arena, m.contexts);
    if (!counts) return LG_NOMEM;
    status = describe(&m, data, base, count, keys, counts, &bits);
    end_bits(&bits);
    lg_put_u8(out, (unsigned)kind);
    lg_put_u8(out, (unsigned)m.contexts);
    lg_put_u8(out, (unsigned)m.step);
    lg_put_u8(out, m.reference);
    lg_put_u16(out, (unsigned)(m.origin + SHIFT));
    lg_put_u32(out, group);
    if (!status) status = lg_array_encode(out, m.classes, m.groups, arena, level);
    if (!status) status = lg_rans_encode(out, keys, count, m.contexts, counts, arena, level);
    if (!status) lg_put(out, extra.data, extra.size);
    if (extra.failed || out->failed) status = LG_NOMEM;
    free(extra.data);
    return status;
}

/* ---- decoding ---- */

static int take_model(lg_input *in, model *m, size_t count, lg_arena *arena, int level)
{
    uint32_t kind, contexts, step, origin;
    if (lg_take_u8(in, &kind) || lg_take_u8(in, &contexts) || lg_take_u8(in, &step) ||
        lg_take_u8(in, &m->reference) || lg_take_u16(in, &origin) || lg_take_u32(in, &m->group))
        return LG_CORRUPT;
    if ((int)kind != m->kind || contexts < 1 || contexts > LG_MAX_CONTEXTS || step > 8 || origin >= SPREAD)
        return LG_CORRUPT;
    if (m->group < 1 || m->group > LG_MAX_GROUP) return LG_CORRUPT;
    m->contexts = (int)contexts;
    m->step = (int)step;
    m->origin = (int)origin - SHIFT;
    m->groups = (uint32_t)((count + m->group - 1) / m->group);
    m->classes = lg_alloc(arena, (size_t)m->groups + 1);
    if (!m->classes) return LG_NOMEM;
    return lg_array_decode(in, m->classes, m->groups, *arena, level);
}

/* Writes to `data`, or, where that is NULL, compares with `known`, tile by tile. */
static int decode_tiles(const model *m, lg_rans *block, bit_reader *extra, const uint8_t *base,
                        uint8_t *data, const uint8_t *known, size_t count, int level)
{
    uint8_t tokens[TILE], contexts_of[TILE], tile[4 * TILE];
    uint16_t slots[TILE], at[TILE + 4];
    uint32_t first = first_of(m->kind);
    size_t width = lg_width(m->kind), many;
    lg_segment segment = {{0}, NULL, NULL, 0};
    for (size_t begin = 0; begin < count; begin += TILE) {
        size_t end = begin + TILE < count ? begin + TILE : count;
        const uint8_t *b = base + begin * width;
        lg_ahead ahead = {{NULL, NULL}, width};
        if (end + TILE <= count) {
            ahead.at[0] = b + TILE * width;
            ahead.at[1] = (known ? known : data) + end * width;
        }
        if (m->contexts > 1) {
            expect_tile(m, base, begin, end, contexts_of);
            m->run->spread(contexts_of, end - begin, slots);
        }
        if (lg_rans_next(block, &segment, m->contexts > 1 ? slots : NULL, tokens, end - begin, ahead, level))
            return LG_CORRUPT;
        uint8_t *to = data ? data + begin * width : tile;
        m->run->combine(b, tokens, 0, end - begin, to);
        many = m->run->find_large(tokens, end - begin, first, at);
        if (m->run->take_large(b, tokens, at, many, to, extra)) return LG_CORRUPT;
        if (!data && memcmp(tile, known + begin * width, (end - begin) * width)) return LG_DIFFERS;
    }
    return extra->end - extra->at < 8 ? LG_OK : LG_CORRUPT;
}

static int decode(const uint8_t *payload, size_t size, const uint8_t *base, uint8_t *data,
                  const uint8_t *known, size_t count, int kind, lg_arena arena, int level)
{
    lg_input in = {payload, payload + size};
    model m = {NULL, kind, 0, 0, 0, 0, 0, 1, NULL};
    lg_rans block = {0};
    int status;
    if (!lg_width(kind) || count > LG_MAX_ELEMENTS) return LG_CORRUPT;
    m.run = loops_for(kind, level);
    status = take_model(&in, &m, count, &arena, level);
    if (!status) status = lg_rans_open(&block, &in, count, m.contexts, &arena);
    if (!status) {
        bit_reader extra = {in.at, 0, (uint64_t)(in.end - in.at) * 8};
        status = decode_tiles(&m, &block, &extra, base, data, known, count, level);
    }
    return status;
}

int lg_delta_decode(const uint8_t *payload, size_t size, const uint8_t *base, uint8_t *data, size_t count,
                    int kind, lg_arena arena, int level)
{
    return decode(payload, size, base, data, NULL, count, kind, arena, level);
}

int lg_delta_compare(const uint8_t *payload, size_t size, const uint8_t *base, const uint8_t *data,
                     size_t count, int kind, lg_arena arena, int level)
{
    return decode(payload, size, base, NULL, data, count, kind, arena, level);
}
