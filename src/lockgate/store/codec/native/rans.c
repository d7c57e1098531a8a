/* Interleaved range ANS (Duda 2013, arXiv:1311.2540) over bytes, with one static table per context:
 * 12-bit probabilities, 31-bit states renormalised by 16-bit words, 4 or 64 lanes, element i in lane
 * i mod lanes. A block is cut in segments that decode by themselves. */
#include <string.h>

#include "kernel.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define LG_X86 1
#endif

#define COUNTERS 4
#define COUNTS (LG_MAX_CONTEXTS * 256 + 272) /* not whole pages apart, or equal places would alias */
#define WORDS_AHEAD 80 /* words that a step of 64 may read before it looks at the end */

static uint32_t lanes_for(size_t count) { return count < 8192 ? 4 : 64; }

/* ---- tables ---- */

/* Scales counts to frequencies that sum to LG_SCALE, each counted symbol at least 1. */
static void normalise(const uint32_t *counts, uint32_t *freqs)
{
    uint64_t total = 0;
    int64_t sum = 0;
    int best = 0;
    for (int s = 0; s < 256; s++) total += counts[s];
    for (int s = 0; s < 256; s++) {
        freqs[s] = 0;
        if (!counts[s]) continue;
        freqs[s] = (uint32_t)((counts[s] * (uint64_t)LG_SCALE + total / 2) / total);
        if (!freqs[s]) freqs[s] = 1;
        sum += freqs[s];
        if (counts[s] > counts[best] || !counts[best]) best = s;
    }
    if (!total) return;
    if (sum <= LG_SCALE) {
        freqs[best] += (uint32_t)(LG_SCALE - sum);
        return;
    }
    while (sum > LG_SCALE) { /* take from the most frequent, the first of equals */
        int top = 0;
        for (int s = 1; s < 256; s++)
            if (freqs[s] > freqs[top]) top = s;
        freqs[top]--;
        sum--;
    }
}

/* A table: 0,0 when empty; else first symbol, span, and a varint frequency for each of the span. */
static void put_table(lg_bytes *out, const uint32_t *freqs)
{
    int first = 0, last = 255;
    while (first < 256 && !freqs[first]) first++;
    if (first == 256) {
        lg_put_u16(out, 0);
        return;
    }
    while (!freqs[last]) last--;
    lg_put_u16(out, (unsigned)(last - first + 1));
    lg_put_u8(out, (unsigned)first);
    for (int s = first; s <= last; s++) {
        if (freqs[s] < 128) {
            lg_put_u8(out, freqs[s]);
        } else {
            lg_put_u8(out, 128 | (freqs[s] & 127));
            lg_put_u8(out, freqs[s] >> 7);
        }
    }
}

static int take_table(lg_input *in, uint32_t *table)
{
    uint32_t span, first, sum = 0;
    if (lg_take_u16(in, &span)) return LG_CORRUPT;
    if (!span) { /* never asked for by a sound frame: one symbol everywhere keeps reads defined */
        for (uint32_t slot = 0; slot < LG_SCALE; slot++)
            table[slot] = (uint32_t)(LG_SCALE - 1) << 20 | slot << 8;
        return LG_OK;
    }
    if (lg_take_u8(in, &first) || first + span > 256) return LG_CORRUPT;
    for (uint32_t s = first; s < first + span; s++) {
        uint32_t freq, high;
        if (lg_take_u8(in, &freq)) return LG_CORRUPT;
        if (freq & 128) {
            if (lg_take_u8(in, &high)) return LG_CORRUPT;
            freq = (freq & 127) | high << 7;
        }
        if (freq > LG_SCALE - sum) return LG_CORRUPT;
        for (uint32_t slot = 0; slot < freq; slot++) table[sum + slot] = (freq - 1) << 20 | slot << 8 | s;
        sum += freq;
    }
    return sum == LG_SCALE ? LG_OK : LG_CORRUPT;
}

/* ---- encoding ---- */

/* Counts symbols under contexts. Neighbours are often equal: four tables keep them from waiting for
 * one another. */
static void histogram(uint32_t (*counts)[COUNTS], const uint8_t *symbols,
                      const uint8_t *contexts_of, size_t count)
{
    size_t i = 0;
    if (!contexts_of) {
        for (; i + 4 <= count; i += 4) {
            counts[0][symbols[i]]++;
            counts[1][symbols[i + 1]]++;
            counts[2][symbols[i + 2]]++;
            counts[3][symbols[i + 3]]++;
        }
    } else {
        for (; i + 4 <= count; i += 4) {
            counts[0][(uint32_t)contexts_of[i] << 8 | symbols[i]]++;
            counts[1][(uint32_t)contexts_of[i + 1] << 8 | symbols[i + 1]]++;
            counts[2][(uint32_t)contexts_of[i + 2] << 8 | symbols[i + 2]]++;
            counts[3][(uint32_t)contexts_of[i + 3] << 8 | symbols[i + 3]]++;
        }
    }
    for (; i < count; i++) counts[0][(contexts_of ? (uint32_t)contexts_of[i] << 8 : 0) | symbols[i]]++;
}

/* Encodes elements [begin, end) from the last to the first; returns the new head of the words. */
static uint16_t *push_scalar(uint32_t *state, const uint32_t *table, const uint8_t *symbols,
                             const uint8_t *contexts_of, size_t begin, size_t end, uint32_t lanes,
                             uint16_t *head)
{
    for (size_t i = end; i-- > begin;) {
        uint32_t *x = &state[i & (lanes - 1)];
        uint32_t entry = table[(contexts_of ? (uint32_t)contexts_of[i] << 8 : 0) | symbols[i]];
        uint32_t freq = entry >> 12, cum = entry & (LG_SCALE - 1);
        if (*x >= freq << (31 - LG_SCALE_BITS)) {
            *--head = (uint16_t)*x;
            *x >>= 16;
        }
        *x = ((*x / freq) << LG_SCALE_BITS) + *x % freq + cum;
    }
    return head;
}

#ifdef LG_X86
#define TARGET_512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512cd,bmi2,popcnt")))

/* Loads of their own: on many processors faster than a gather, and free of its microcode's slow paths. */
TARGET_512 static inline __m512i look_up(const uint32_t *table, __m512i index)
{
    uint32_t at[16] __attribute__((aligned(64)));
    __m128i a, b, c, d;
    _mm512_store_si512(at, index);
    a = _mm_cvtsi32_si128((int)table[at[0]]);
    b = _mm_cvtsi32_si128((int)table[at[4]]);
    c = _mm_cvtsi32_si128((int)table[at[8]]);
    d = _mm_cvtsi32_si128((int)table[at[12]]);
    a = _mm_insert_epi32(a, (int)table[at[1]], 1);
    b = _mm_insert_epi32(b, (int)table[at[5]], 1);
    c = _mm_insert_epi32(c, (int)table[at[9]], 1);
    d = _mm_insert_epi32(d, (int)table[at[13]], 1);
    a = _mm_insert_epi32(a, (int)table[at[2]], 2);
    b = _mm_insert_epi32(b, (int)table[at[6]], 2);
    c = _mm_insert_epi32(c, (int)table[at[10]], 2);
    d = _mm_insert_epi32(d, (int)table[at[14]], 2);
    a = _mm_insert_epi32(a, (int)table[at[3]], 3);
    b = _mm_insert_epi32(b, (int)table[at[7]], 3);
    c = _mm_insert_epi32(c, (int)table[at[11]], 3);
    d = _mm_insert_epi32(d, (int)table[at[15]], 3);
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set_m128i(b, a)), _mm256_set_m128i(d, c), 1);
}

TARGET_512 static inline uint16_t *push_16(__m512i *state, const uint32_t *table, __m128i symbols,
                                           __m128i contexts, uint16_t *head)
{
    __m512i index = _mm512_or_si512(_mm512_slli_epi32(_mm512_cvtepu8_epi32(contexts), 8),
                                    _mm512_cvtepu8_epi32(symbols));
    __m512i entry = look_up(table, index);
    __m512i freq = _mm512_srli_epi32(entry, 12);
    __m512i cum = _mm512_and_si512(entry, _mm512_set1_epi32(LG_SCALE - 1));
    __m512i x = *state;
    __mmask16 out = _mm512_cmpge_epu32_mask(x, _mm512_slli_epi32(freq, 31 - LG_SCALE_BITS));
    unsigned many = (unsigned)__builtin_popcount(out);
    head -= many;
    _mm256_mask_storeu_epi16(head, (__mmask16)((1u << many) - 1),
                             _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(out, x)));
    x = _mm512_mask_srli_epi32(x, out, x, 16);
    /* x < freq * 2^20, so the quotient has 20 bits and a float's is off by one at most */
    __m512i q = _mm512_cvttps_epi32(_mm512_div_ps(_mm512_cvtepi32_ps(x), _mm512_cvtepi32_ps(freq)));
    __m512i r = _mm512_sub_epi32(x, _mm512_mullo_epi32(q, freq));
    __mmask16 under = _mm512_movepi32_mask(r);
    q = _mm512_mask_sub_epi32(q, under, q, _mm512_set1_epi32(1));
    r = _mm512_mask_add_epi32(r, under, r, freq);
    __mmask16 over = _mm512_cmpge_epi32_mask(r, freq);
    q = _mm512_mask_add_epi32(q, over, q, _mm512_set1_epi32(1));
    r = _mm512_mask_sub_epi32(r, over, r, freq);
    *state = _mm512_add_epi32(_mm512_slli_epi32(q, LG_SCALE_BITS), _mm512_add_epi32(r, cum));
    return head;
}

TARGET_512 static uint16_t *push_512(uint32_t *state, const uint32_t *table, const uint8_t *symbols,
                                     const uint8_t *contexts_of, size_t begin, size_t end, uint16_t *head)
{
    __m512i x[4];
    __m128i none = _mm_setzero_si128();
    for (int v = 0; v < 4; v++) x[v] = _mm512_loadu_si512(state + 16 * v);
    for (size_t i = end; i > begin; i -= 64) {
#pragma GCC unroll 4
        for (int v = 3; v >= 0; v--) {
            size_t j = i - 64 + 16 * (size_t)v;
            __m128i c = contexts_of ? _mm_loadu_si128((const __m128i *)(contexts_of + j)) : none;
            head = push_16(&x[v], table, _mm_loadu_si128((const __m128i *)(symbols + j)), c, head);
        }
    }
    for (int v = 0; v < 4; v++) _mm512_storeu_si512(state + 16 * v, x[v]);
    return head;
}
#endif

static int put_segment(lg_bytes *out, const uint32_t *table, const uint8_t *symbols,
                       const uint8_t *contexts_of, size_t count, uint32_t lanes, uint16_t *words, int level)
{
    uint32_t state[LG_MAX_LANES];
    uint16_t *end = words + count + LG_MAX_LANES, *head = end;
    size_t whole = count - count % lanes;
    for (uint32_t lane = 0; lane < lanes; lane++) state[lane] = LG_LOW;
    head = push_scalar(state, table, symbols, contexts_of, whole, count, lanes, head);
#ifdef LG_X86
    if (level >= LG_AVX512 && lanes == 64) {
        head = push_512(state, table, symbols, contexts_of, 0, whole, head);
        whole = 0;
    }
#endif
    (void)level;
    head = push_scalar(state, table, symbols, contexts_of, 0, whole, lanes, head);
    for (uint32_t lane = 0; lane < lanes; lane++) lg_put_u32(out, state[lane]);
    lg_put(out, head, (size_t)(end - head) * 2);
    return out->failed ? LG_NOMEM : LG_OK;
}

/* The least power of two of elements whose words take about 32 KiB, from 2^13 to 2^20. */
static uint32_t segment_bits(uint64_t bits, size_t count)
{
    uint32_t log = 13;
    while (log < 20 && (bits >> 3) * (uint64_t)(1u << log) < (uint64_t)count * 32768) log++;
    return log;
}

/* An upper guess of the coded bits, in integers so that every machine guesses the same. */
static uint64_t coded_bits(const uint32_t *counts, const uint32_t *freqs, int contexts)
{
    uint64_t bits = 0;
    for (int i = 0; i < contexts * 256; i++) {
        uint32_t log = 0;
        if (!counts[i]) continue;
        while (log < LG_SCALE_BITS && freqs[i] << log < LG_SCALE) log++;
        bits += (uint64_t)counts[i] * (log ? log : 1) / (log ? 1 : 16);
    }
    return bits;
}

typedef struct {
    uint32_t counts[COUNTERS][COUNTS], freqs[LG_MAX_CONTEXTS * 256];
    uint32_t table[LG_MAX_CONTEXTS * 256];
} workspace;

static uint32_t build(workspace *work, const uint8_t *symbols, const uint8_t *contexts_of, size_t count,
                      int contexts)
{
    histogram(work->counts, symbols, contexts_of, count);
    for (int c = 0; c < contexts; c++) {
        uint32_t sum = 0;
        for (int s = 0; s < 256; s++)
            for (int t = 1; t < COUNTERS; t++) work->counts[0][c * 256 + s] += work->counts[t][c * 256 + s];
        normalise(work->counts[0] + c * 256, work->freqs + c * 256);
        for (int s = 0; s < 256; s++) {
            work->table[c * 256 + s] = work->freqs[c * 256 + s] << 12 | (sum & (LG_SCALE - 1));
            sum += work->freqs[c * 256 + s];
        }
    }
    return segment_bits(coded_bits(work->counts[0], work->freqs, contexts), count);
}

int lg_rans_encode(lg_bytes *out, const uint8_t *symbols, const uint8_t *contexts_of, size_t count,
                   int contexts, lg_arena arena, int level)
{
    workspace *work = lg_alloc(&arena, sizeof *work);
    uint32_t lanes = lanes_for(count);
    int status = work ? LG_OK : LG_NOMEM;
    uint16_t *words = NULL;
    if (!status) {
        memset(work, 0, sizeof *work);
        uint32_t log = build(work, symbols, contexts_of, count, contexts);
        size_t segment = (size_t)1 << log, room = segment < count ? segment : count;
        size_t segments = (count + segment - 1) / segment, table_at;
        lg_put_u8(out, lanes);
        lg_put_u8(out, log);
        for (int c = 0; c < contexts; c++) put_table(out, work->freqs + c * 256);
        table_at = out->size;
        for (size_t s = 0; s < segments; s++) lg_put_u32(out, 0);
        words = lg_alloc(&arena, (room + LG_MAX_LANES) * sizeof *words);
        if (!words || out->failed) status = LG_NOMEM;
        for (size_t s = 0; s < segments && !status; s++) {
            size_t begin = s * segment, size = count - begin < segment ? count - begin : segment;
            size_t before = out->size;
            const uint8_t *c = contexts_of ? contexts_of + begin : NULL;
            status = put_segment(out, work->table, symbols + begin, c, size, lanes,
                                 words + (room - size), level);
            if (!status) {
                uint32_t length = (uint32_t)(out->size - before);
                uint8_t raw[4] = {(uint8_t)length, (uint8_t)(length >> 8), (uint8_t)(length >> 16),
                                  (uint8_t)(length >> 24)};
                memcpy(out->data + table_at + 4 * s, raw, 4);
            }
        }
    }
    return status ? status : out->failed ? LG_NOMEM : LG_OK;
}

/* ---- decoding ---- */

int lg_rans_open(lg_rans *block, lg_input *in, size_t count, int contexts, lg_arena *arena)
{
    uint32_t lanes, log;
    uint64_t words = 0;
    lg_input lengths;
    memset(block, 0, sizeof *block);
    if (count > LG_MAX_ELEMENTS || contexts < 1 || contexts > LG_MAX_CONTEXTS) return LG_CORRUPT;
    if (lg_take_u8(in, &lanes) || lg_take_u8(in, &log)) return LG_CORRUPT;
    if (lanes != lanes_for(count) || log < 13 || log > 20) return LG_CORRUPT;
    block->lanes = lanes;
    block->segment_size = 1u << log;
    block->count = (uint32_t)count;
    block->contexts = (uint32_t)contexts;
    block->segments = (uint32_t)((count + block->segment_size - 1) >> log);
    block->table = lg_alloc(arena, (size_t)contexts * LG_SCALE * sizeof *block->table);
    if (!block->table) return LG_NOMEM;
    for (int c = 0; c < contexts; c++)
        if (take_table(in, block->table + (size_t)c * LG_SCALE)) return LG_CORRUPT;
    if (lg_take(in, (size_t)block->segments * 4, &block->lengths)) return LG_CORRUPT;
    lengths = (lg_input){block->lengths, block->lengths + (size_t)block->segments * 4};
    for (uint32_t s = 0; s < block->segments; s++) {
        uint32_t length;
        (void)lg_take_u32(&lengths, &length);
        if (length < lanes * 4 || length % 2) return LG_CORRUPT;
        words += length;
    }
    if (words > (uint64_t)(in->end - in->at)) return LG_CORRUPT;
    block->words = in->at;
    block->end = in->at + words;
    in->at += words;
    return LG_OK;
}

int lg_rans_start(const lg_rans *block, uint32_t segment, lg_segment *state)
{
    lg_input lengths = {block->lengths, block->lengths + (size_t)block->segments * 4};
    lg_input in = {block->words, block->end};
    uint32_t length = 0;
    for (uint32_t s = 0; s <= segment; s++) {
        in.at += length;
        if (lg_take_u32(&lengths, &length)) return LG_CORRUPT;
    }
    in.end = in.at + length;
    for (uint32_t lane = 0; lane < block->lanes; lane++) {
        if (lg_take_u32(&in, &state->state[lane])) return LG_CORRUPT;
        if (state->state[lane] < LG_LOW || state->state[lane] >> 31) return LG_CORRUPT;
    }
    state->at = in.at;
    state->end = in.end;
    return LG_OK;
}

static int pull_scalar(const lg_rans *block, lg_segment *segment, const uint8_t *contexts_of,
                       uint8_t *symbols, size_t count)
{
    const uint8_t *at = segment->at;
    uint32_t lanes = block->lanes;
    for (size_t i = 0; i < count; i++) {
        uint32_t *x = &segment->state[i & (lanes - 1)];
        uint32_t context = contexts_of ? contexts_of[i] : 0;
        uint32_t entry = block->table[context << LG_SCALE_BITS | (*x & (LG_SCALE - 1))];
        symbols[i] = (uint8_t)entry;
        *x = ((entry >> 20) + 1) * (*x >> LG_SCALE_BITS) + ((entry >> 8) & (LG_SCALE - 1));
        if (*x < LG_LOW) {
            if (segment->end - at < 2) return LG_CORRUPT;
            *x = *x << 16 | (uint32_t)at[0] | (uint32_t)at[1] << 8;
            at += 2;
        }
    }
    segment->at = at;
    return LG_OK;
}

#ifdef LG_X86
TARGET_512 static inline const uint8_t *pull_16(__m512i *state, const uint32_t *table, __m128i contexts,
                                                uint8_t *symbols, const uint8_t *at)
{
    __m512i x = *state;
    __m512i context = _mm512_slli_epi32(_mm512_cvtepu8_epi32(contexts), LG_SCALE_BITS);
    __m512i slots = _mm512_set1_epi32(LG_SCALE - 1);
    __m512i index = _mm512_ternarylogic_epi32(context, x, slots, 0xf8); /* a, or b and c */
    __m512i entry = look_up(table, index);
    __m512i freq = _mm512_add_epi32(_mm512_srli_epi32(entry, 20), _mm512_set1_epi32(1));
    __m512i bias = _mm512_and_si512(_mm512_srli_epi32(entry, 8), _mm512_set1_epi32(LG_SCALE - 1));
    _mm_storeu_si128((__m128i *)symbols, _mm512_cvtepi32_epi8(entry));
    x = _mm512_add_epi32(_mm512_mullo_epi32(freq, _mm512_srli_epi32(x, LG_SCALE_BITS)), bias);
    __mmask16 low = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32((int)LG_LOW));
    __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)at));
    words = _mm512_maskz_expand_epi32(low, words);
    *state = _mm512_mask_or_epi32(x, low, _mm512_slli_epi32(x, 16), words);
    return at + 2 * (size_t)__builtin_popcount(low);
}

/* Decodes whole steps of 64 while reading ahead is safe; returns how many elements it did. */
TARGET_512 static size_t pull_512(const lg_rans *block, lg_segment *segment, const uint8_t *contexts_of,
                                  uint8_t *symbols, size_t count)
{
    const uint8_t *at = segment->at, *end = segment->end;
    __m512i x[4];
    __m128i none = _mm_setzero_si128();
    size_t i = 0;
    for (int v = 0; v < 4; v++) x[v] = _mm512_loadu_si512(segment->state + 16 * v);
    for (; i + 64 <= count && end - at >= 2 * WORDS_AHEAD; i += 64) {
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            size_t j = i + 16 * (size_t)v;
            __m128i c = contexts_of ? _mm_loadu_si128((const __m128i *)(contexts_of + j)) : none;
            at = pull_16(&x[v], block->table, c, symbols + j, at);
        }
    }
    for (int v = 0; v < 4; v++) _mm512_storeu_si512(segment->state + 16 * v, x[v]);
    segment->at = at;
    return i;
}
#endif

int lg_rans_step(const lg_rans *block, lg_segment *segment, const uint8_t *contexts_of, uint8_t *symbols,
                 size_t count, int level)
{
    size_t done = 0;
#ifdef LG_X86
    if (level >= LG_AVX512 && block->lanes == 64)
        done = pull_512(block, segment, contexts_of, symbols, count);
#endif
    (void)level;
    return pull_scalar(block, segment, contexts_of ? contexts_of + done : NULL, symbols + done, count - done);
}

int lg_rans_finish(const lg_rans *block, const lg_segment *segment)
{
    for (uint32_t lane = 0; lane < block->lanes; lane++)
        if (segment->state[lane] != LG_LOW) return LG_CORRUPT;
    return segment->at == segment->end ? LG_OK : LG_CORRUPT;
}

/* ---- arrays of bytes ---- */

/* The binary logarithm of a count above 0, in 1/256. */
static uint32_t log_of(uint32_t value)
{
    uint32_t whole = 31 - (uint32_t)__builtin_clz(value), result = whole << 8;
    uint64_t x = (uint64_t)value << (31 - whole); /* from 2^31 to 2^32 - 1: one and a fraction */
    for (uint32_t bit = 128; bit; bit >>= 1) {
        x = x * x >> 31;
        if (x >> 32) {
            x >>= 1;
            result |= bit;
        }
    }
    return result;
}

/* Whether every 8th byte says that coding would save less than a hundredth: noise stays as it is. */
static int is_noise(const uint8_t *symbols, size_t count)
{
    uint32_t counts[256] = {0}, total = 0;
    uint64_t bits = 0;
    if (count < 8192) return 0;
    for (size_t i = 0; i < count; i += 8, total++) counts[symbols[i]]++;
    for (int s = 0; s < 256; s++)
        if (counts[s]) bits += (uint64_t)counts[s] * (log_of(total) - log_of(counts[s]));
    return bits > (uint64_t)total * (8 * 256 * 99 / 100);
}

int lg_array_encode(lg_bytes *out, const uint8_t *symbols, size_t count, lg_arena arena, int level)
{
    size_t at = out->size, same = 0;
    int status;
    while (same < count && symbols[same] == symbols[0]) same++;
    if (same == count) {
        lg_put_u8(out, 1);
        lg_put_u8(out, count ? symbols[0] : 0);
        return out->failed ? LG_NOMEM : LG_OK;
    }
    if (!is_noise(symbols, count)) {
        lg_put_u8(out, 2);
        status = lg_rans_encode(out, symbols, NULL, count, 1, arena, level);
        if (status || out->size - at <= count) return status;
        out->size = at;
    }
    lg_put_u8(out, 0);
    lg_put(out, symbols, count);
    return out->failed ? LG_NOMEM : LG_OK;
}

int lg_array_decode(lg_input *in, uint8_t *symbols, size_t count, lg_arena arena, int level)
{
    uint32_t mode, value;
    const uint8_t *raw;
    lg_rans block;
    int status;
    if (lg_take_u8(in, &mode)) return LG_CORRUPT;
    if (mode == 0) {
        if (lg_take(in, count, &raw)) return LG_CORRUPT;
        if (count) memcpy(symbols, raw, count);
        return LG_OK;
    }
    if (mode == 1) {
        if (lg_take_u8(in, &value)) return LG_CORRUPT;
        if (count) memset(symbols, (int)value, count);
        return LG_OK;
    }
    if (mode != 2) return LG_CORRUPT;
    status = lg_rans_open(&block, in, count, 1, &arena);
    for (uint32_t s = 0; s < block.segments && !status; s++) {
        size_t begin = (size_t)s * block.segment_size;
        size_t size = count - begin < block.segment_size ? count - begin : block.segment_size;
        lg_segment segment;
        status = lg_rans_start(&block, s, &segment);
        if (!status) status = lg_rans_step(&block, &segment, NULL, symbols + begin, size, level);
        if (!status) status = lg_rans_finish(&block, &segment);
    }
    return status;
}
