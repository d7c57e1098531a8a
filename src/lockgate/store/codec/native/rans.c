/* Interleaved range ANS (Duda 2013, arXiv:1311.2540) over bytes, with one static table per context:
 * 11-bit probabilities, 31-bit states renormalised by 16-bit words, 4 or 64 lanes, element i in lane
 * i mod lanes. A block is cut in segments that decode by themselves. */
#include <string.h>

#include "kernel.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define LG_X86 1
#endif

#define COUNTERS 4
#define COUNTS (LG_MAX_CONTEXTS * 256 + 272) /* not whole pages apart, or equal places would alias */
#define MANY (1u << 18) /* bytes of which pairs are worth a table */
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

/* What a frequency is expected to be, from those before it: 64, then half of that and half of the last. */
typedef struct {
    uint32_t mean; /* times four */
} guess;

static const guess AT_FIRST = {256};

/* The order of the Exp-Golomb code of the next frequency: its low bits that are written as they are. */
static uint32_t order(guess g)
{
    uint32_t log = 0;
    for (uint32_t v = g.mean >> 4; v; v >>= 1) log++;
    return log;
}

static guess after(guess g, uint32_t freq) { return (guess){(g.mean + 4 * freq) >> 1}; }

typedef struct {
    lg_bytes *out;
    uint64_t bits;
    uint32_t many; /* below 8 between calls */
} table_writer;

static void put_table_bits(table_writer *w, uint64_t value, uint32_t many)
{
    w->bits |= value << w->many;
    for (w->many += many; w->many >= 8; w->many -= 8) {
        lg_put_u8(w->out, (unsigned)(w->bits & 255));
        w->bits >>= 8;
    }
}

/* A table: bit 0 when it is empty; else 1, eight bits of its first symbol, and frequencies until they sum to
 * LG_SCALE. Bits go on from table to table. */
static void put_table(table_writer *w, const uint32_t *freqs)
{
    uint32_t symbol = 0, sum = 0;
    guess g = AT_FIRST;
    while (symbol < 256 && !freqs[symbol]) symbol++;
    if (symbol == 256) {
        put_table_bits(w, 0, 1);
        return;
    }
    put_table_bits(w, 1 | symbol << 1, 9);
    while (sum < LG_SCALE) {
        uint32_t freq = freqs[symbol++], low = order(g), high = (freq >> low) + 1;
        uint32_t log = 31 - (uint32_t)__builtin_clz(high);
        put_table_bits(w, 1u << log, log + 1);
        put_table_bits(w, high - (1u << log), log);
        put_table_bits(w, freq & ((1u << low) - 1), low);
        sum += freq;
        g = after(g, freq);
    }
}

static void put_tables(lg_bytes *out, const uint32_t *freqs, int contexts)
{
    table_writer w = {out, 0, 0};
    for (int c = 0; c < contexts; c++) put_table(&w, freqs + c * 256);
    if (w.many) lg_put_u8(out, (unsigned)w.bits);
}

typedef struct {
    const uint8_t *at, *end;
    uint64_t bits;
    uint32_t many;
} table_reader;

static void fill(table_reader *r)
{
    while (r->many <= 56 && r->at < r->end) {
        r->bits |= (uint64_t)*r->at++ << r->many;
        r->many += 8;
    }
}

/* Takes up to 32 bits of what `fill` brought. */
static uint32_t take(table_reader *r, uint32_t many)
{
    uint32_t value = (uint32_t)(r->bits & ((1ull << many) - 1));
    r->bits >>= many;
    r->many -= many;
    return value;
}

static int take_freq(table_reader *r, uint32_t low, uint32_t *freq)
{
    uint32_t log, high;
    fill(r);
    log = (uint32_t)__builtin_ctzll(r->bits | 1ull << 63);
    if (log > LG_SCALE_BITS || 2 * log + 1 + low > r->many) return LG_CORRUPT;
    (void)take(r, log + 1);
    high = (1u << log) + take(r, log);
    *freq = (high - 1) << low | take(r, low);
    return LG_OK;
}

static int take_table(table_reader *r, uint32_t *table)
{
    uint32_t symbol, sum = 0;
    guess g = AT_FIRST;
    fill(r);
    if (!r->many) return LG_CORRUPT;
    if (!take(r, 1)) { /* never asked for by a sound frame: one symbol everywhere keeps reads defined */
        for (uint32_t slot = 0; slot < LG_SCALE; slot++)
            table[slot] = (uint32_t)LG_SCALE << 19 | slot << 8;
        return LG_OK;
    }
    if (r->many < 8) return LG_CORRUPT;
    for (symbol = take(r, 8); sum < LG_SCALE; symbol++) {
        uint32_t freq;
        if (symbol > 255 || take_freq(r, order(g), &freq) || freq > LG_SCALE - sum) return LG_CORRUPT;
        for (uint32_t slot = 0; slot < freq; slot++) table[sum + slot] = freq << 19 | slot << 8 | symbol;
        sum += freq;
        g = after(g, freq);
    }
    return LG_OK;
}

static int take_tables(lg_input *in, uint32_t *tables, int contexts)
{
    table_reader r = {in->at, in->end, 0, 0};
    for (int c = 0; c < contexts; c++)
        if (take_table(&r, tables + (size_t)c * LG_SCALE)) return LG_CORRUPT;
    in->at = r.at - r.many / 8;
    return LG_OK;
}

/* Brings near what is ahead by `begin` to `begin + count` symbols. */
static inline void bring(lg_ahead ahead, size_t begin, size_t count)
{
    for (size_t j = begin * ahead.width; j < (begin + count) * ahead.width; j += 64) {
        if (ahead.at[0]) __builtin_prefetch(ahead.at[0] + j);
        if (ahead.at[1]) __builtin_prefetch(ahead.at[1] + j);
    }
}

/* ---- encoding ---- */

/* What is encoded: bytes, or keys, each a context times 256 and a byte. */
typedef struct {
    const uint8_t *bytes;
    const uint16_t *keys;
} symbols_in;

static inline uint32_t key_at(symbols_in in, size_t i) { return in.keys ? in.keys[i] : in.bytes[i]; }

/* Counts bytes by pairs: half as many additions, in what of the table is in use of the cache. */
static size_t histogram_of_pairs(uint32_t *counts, const uint8_t *bytes, size_t count, lg_arena arena)
{
    uint32_t *pairs = count < MANY ? NULL : lg_alloc(&arena, 65536 * sizeof *pairs);
    size_t i = 0;
    if (!pairs) return 0;
    memset(pairs, 0, 65536 * sizeof *pairs);
    for (; i + 8 <= count; i += 8) {
        uint64_t v;
        memcpy(&v, bytes + i, 8);
        pairs[v & 65535]++;
        pairs[v >> 16 & 65535]++;
        pairs[v >> 32 & 65535]++;
        pairs[v >> 48]++;
    }
    for (int a = 0; a < 256; a++) {
        uint32_t sum = 0;
        for (int b = 0; b < 256; b++) {
            sum += pairs[a << 8 | b];
            counts[b] += pairs[a << 8 | b];
        }
        counts[a] += sum;
    }
    return i;
}

/* Counts bytes. Neighbours are often equal: four tables keep them from waiting for one another. */
static void histogram(uint32_t *counts, const uint8_t *bytes, size_t count, lg_arena arena)
{
    size_t i = histogram_of_pairs(counts, bytes, count, arena);
    for (; i + 8 <= count; i += 8) {
        uint64_t v;
        memcpy(&v, bytes + i, 8);
        counts[v & 255]++;
        counts[COUNTS + (v >> 8 & 255)]++;
        counts[2 * COUNTS + (v >> 16 & 255)]++;
        counts[3 * COUNTS + (v >> 24 & 255)]++;
        counts[v >> 32 & 255]++;
        counts[COUNTS + (v >> 40 & 255)]++;
        counts[2 * COUNTS + (v >> 48 & 255)]++;
        counts[3 * COUNTS + (v >> 56)]++;
    }
    for (; i < count; i++) counts[bytes[i]]++;
}

uint32_t *lg_rans_counts(lg_arena *arena, int contexts)
{
    uint32_t *counts = lg_alloc(arena, COUNTERS * COUNTS * sizeof *counts);
    for (int t = 0; counts && t < COUNTERS; t++)
        memset(counts + t * COUNTS, 0, (size_t)contexts * 256 * sizeof *counts);
    return counts;
}

void lg_rans_count(uint32_t *counts, const uint16_t *keys, size_t count, lg_ahead ahead)
{
    size_t i = 0;
    for (; i + 32 <= count; i += 32) {
        bring(ahead, i, 32);
        for (size_t j = i; j < i + 32; j += 4) {
            counts[keys[j]]++;
            counts[COUNTS + keys[j + 1]]++;
            counts[2 * COUNTS + keys[j + 2]]++;
            counts[3 * COUNTS + keys[j + 3]]++;
        }
    }
    for (; i < count; i++) counts[keys[i]]++;
}

/* Encodes elements [begin, end) from the last to the first; returns the new head of the words. */
static uint16_t *push_scalar(uint32_t *state, const uint32_t *table, symbols_in in, size_t begin, size_t end,
                             uint32_t lanes, uint16_t *head)
{
    for (size_t i = end; i-- > begin;) {
        uint32_t *x = &state[i & (lanes - 1)];
        uint32_t entry = table[key_at(in, i)];
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
#define INLINE static inline __attribute__((always_inline))

/* Loads of their own: on many processors faster than a gather, and free of its microcode's slow paths. */
TARGET_512 INLINE __m128i four(const uint32_t *table, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    __m128i found = _mm_insert_epi32(_mm_cvtsi32_si128((int)table[a]), (int)table[b], 1);
    return _mm_insert_epi32(_mm_insert_epi32(found, (int)table[c], 2), (int)table[d], 3);
}

TARGET_512 INLINE __m512i sixteen(__m128i a, __m128i b, __m128i c, __m128i d)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set_m128i(b, a)), _mm256_set_m128i(d, c), 1);
}

TARGET_512 INLINE __m128i four_of(const uint32_t *table, uint64_t places)
{
    return four(table, (uint16_t)places, (uint16_t)(places >> 16), (uint16_t)(places >> 32),
                (uint32_t)(places >> 48));
}

/* Looks up 16 numbers of 16 bits. */
TARGET_512 INLINE __m512i look_up(const uint32_t *table, __m256i places)
{
    __m128i low = _mm256_castsi256_si128(places), high = _mm256_extracti128_si256(places, 1);
    return sixteen(four_of(table, (uint64_t)_mm_cvtsi128_si64(low)),
                   four_of(table, (uint64_t)_mm_extract_epi64(low, 1)),
                   four_of(table, (uint64_t)_mm_cvtsi128_si64(high)),
                   four_of(table, (uint64_t)_mm_extract_epi64(high, 1)));
}

TARGET_512 INLINE __m128i four_bytes(const uint32_t *table, uint32_t v)
{
    return four(table, v & 255, v >> 8 & 255, v >> 16 & 255, v >> 24);
}

TARGET_512 INLINE __m512i look_up_at(const uint32_t *table, symbols_in in, size_t i)
{
    uint64_t v[4];
    if (in.keys) {
        memcpy(v, in.keys + i, 32);
        return sixteen(four_of(table, v[0]), four_of(table, v[1]), four_of(table, v[2]),
                       four_of(table, v[3]));
    }
    memcpy(v, in.bytes + i, 16);
    return sixteen(four_bytes(table, (uint32_t)v[0]), four_bytes(table, (uint32_t)(v[0] >> 32)),
                   four_bytes(table, (uint32_t)v[1]), four_bytes(table, (uint32_t)(v[1] >> 32)));
}

/* For each mask of 8 words, how to bring those that it names to the end, in order. */
typedef struct {
    uint8_t places[256][16];
} packing;

static void make_packing(packing *made)
{
    memset(made, 0, sizeof *made);
    for (int mask = 0; mask < 256; mask++) {
        int to = 8;
        for (int i = 7; i >= 0; i--) {
            if (!(mask >> i & 1)) continue;
            to--;
            made->places[mask][2 * to] = (uint8_t)(2 * i);
            made->places[mask][2 * to + 1] = (uint8_t)(2 * i + 1);
        }
    }
}

/* Writes the words that `mask` names below `head`, and what comes next will write over, below them. */
TARGET_512 INLINE uint16_t *put_words(const packing *pack, __m128i words, uint32_t mask, uint16_t *head)
{
    __m128i how = _mm_loadu_si128((const __m128i *)pack->places[mask]);
    _mm_storeu_si128((__m128i *)(head - 8), _mm_shuffle_epi8(words, how));
    return head - __builtin_popcount(mask);
}

TARGET_512 INLINE uint16_t *push_16(__m512i *state, const packing *pack, __m512i entry, uint16_t *head)
{
    __m512i x = *state, freq = _mm512_srli_epi32(entry, 12);
    __m512i cum = _mm512_and_si512(entry, _mm512_set1_epi32(LG_SCALE - 1));
    __mmask16 out = _mm512_cmpge_epu32_mask(x, _mm512_slli_epi32(freq, 31 - LG_SCALE_BITS));
    __m256i words = _mm512_cvtepi32_epi16(x);
    head = put_words(pack, _mm256_extracti128_si256(words, 1), (uint32_t)out >> 8, head);
    head = put_words(pack, _mm256_castsi256_si128(words), (uint32_t)out & 255, head);
    x = _mm512_mask_srli_epi32(x, out, x, 16);
    /* x < freq * 2^20, so the quotient has 20 bits; rounded down, it is right or one too small */
    enum { down = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC };
    __m512 ratio = _mm512_div_round_ps(_mm512_cvt_roundepi32_ps(x, down), _mm512_cvtepi32_ps(freq), down);
    __m512i q = _mm512_cvttps_epi32(ratio);
    __m512i rest = _mm512_sub_epi32(x, _mm512_mullo_epi32(q, freq));
    __mmask16 more = _mm512_cmpge_epi32_mask(rest, freq);
    x = _mm512_add_epi32(_mm512_slli_epi32(q, LG_SCALE_BITS), _mm512_add_epi32(rest, cum));
    *state = _mm512_mask_add_epi32(x, more, x, _mm512_sub_epi32(_mm512_set1_epi32(LG_SCALE), freq));
    return head;
}

TARGET_512 INLINE uint16_t *push_512(uint32_t *state, const uint32_t *table, symbols_in in, size_t end,
                                     const packing *pack, uint16_t *head)
{
    __m512i x[4];
    for (int v = 0; v < 4; v++) x[v] = _mm512_loadu_si512(state + 16 * v);
    for (size_t i = end; i > 0; i -= 64) {
#pragma GCC unroll 4
        for (int v = 3; v >= 0; v--)
            head = push_16(&x[v], pack, look_up_at(table, in, i - 64 + 16 * (size_t)v), head);
    }
    for (int v = 0; v < 4; v++) _mm512_storeu_si512(state + 16 * v, x[v]);
    return head;
}

TARGET_512 static uint16_t *push_bytes_512(uint32_t *state, const uint32_t *table, const uint8_t *bytes,
                                           size_t end, const packing *pack, uint16_t *head)
{
    return push_512(state, table, (symbols_in){bytes, NULL}, end, pack, head);
}

TARGET_512 static uint16_t *push_keys_512(uint32_t *state, const uint32_t *table, const uint16_t *keys,
                                          size_t end, const packing *pack, uint16_t *head)
{
    return push_512(state, table, (symbols_in){NULL, keys}, end, pack, head);
}
#endif

typedef struct {
    uint32_t freqs[LG_MAX_CONTEXTS * 256];
    uint32_t table[LG_MAX_CONTEXTS * 256];
#ifdef LG_X86
    packing pack;
#endif
} workspace;

/* `words` has room for `count`, for the lanes, and for 8 that are not meant. */
static int put_segment(lg_bytes *out, const workspace *work, symbols_in in, size_t count, uint32_t lanes,
                       uint16_t *words, int level)
{
    uint32_t state[LG_MAX_LANES];
    uint16_t *end = words + count + LG_MAX_LANES, *head = end;
    size_t whole = count - count % lanes;
    for (uint32_t lane = 0; lane < lanes; lane++) state[lane] = LG_LOW;
    head = push_scalar(state, work->table, in, whole, count, lanes, head);
#ifdef LG_X86
    if (level >= LG_AVX512 && lanes == 64) {
        head = in.keys ? push_keys_512(state, work->table, in.keys, whole, &work->pack, head)
                       : push_bytes_512(state, work->table, in.bytes, whole, &work->pack, head);
        whole = 0;
    }
#endif
    (void)level;
    head = push_scalar(state, work->table, in, 0, whole, lanes, head);
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

static uint32_t build(workspace *work, uint32_t *counts, size_t count, int contexts)
{
#ifdef LG_X86
    make_packing(&work->pack);
#endif
    for (int c = 0; c < contexts; c++) {
        uint32_t sum = 0;
        for (int s = 0; s < 256; s++)
            for (int t = 1; t < COUNTERS; t++) counts[c * 256 + s] += counts[t * COUNTS + c * 256 + s];
        normalise(counts + c * 256, work->freqs + c * 256);
        for (int s = 0; s < 256; s++) {
            work->table[c * 256 + s] = work->freqs[c * 256 + s] << 12 | (sum & (LG_SCALE - 1));
            sum += work->freqs[c * 256 + s];
        }
    }
    return segment_bits(coded_bits(counts, work->freqs, contexts), count);
}

static int encode(lg_bytes *out, symbols_in in, size_t count, int contexts, uint32_t *counts, lg_arena arena,
                  int level)
{
    workspace *work = lg_alloc(&arena, sizeof *work);
    uint32_t lanes = lanes_for(count), log;
    size_t segment, room, segments, table_at;
    uint16_t *words;
    if (!work) return LG_NOMEM;
    log = build(work, counts, count, contexts);
    segment = (size_t)1 << log;
    room = segment < count ? segment : count;
    segments = (count + segment - 1) / segment;
    lg_put_u8(out, lanes);
    lg_put_u8(out, log);
    put_tables(out, work->freqs, contexts);
    table_at = out->size;
    for (size_t s = 0; s < segments; s++) lg_put_u32(out, 0);
    words = lg_alloc(&arena, (room + LG_MAX_LANES + 8) * sizeof *words);
    if (!words || out->failed) return LG_NOMEM;
    for (size_t s = 0; s < segments; s++) {
        size_t begin = s * segment, size = count - begin < segment ? count - begin : segment;
        size_t before = out->size;
        symbols_in these = {in.bytes ? in.bytes + begin : NULL, in.keys ? in.keys + begin : NULL};
        uint32_t length;
        if (put_segment(out, work, these, size, lanes, words + 8, level)) return LG_NOMEM;
        length = (uint32_t)(out->size - before);
        uint8_t raw[4] = {(uint8_t)length, (uint8_t)(length >> 8), (uint8_t)(length >> 16),
                          (uint8_t)(length >> 24)};
        memcpy(out->data + table_at + 4 * s, raw, 4);
    }
    return LG_OK;
}

int lg_rans_encode(lg_bytes *out, const uint16_t *keys, size_t count, int contexts, uint32_t *counts,
                   lg_arena arena, int level)
{
    return encode(out, (symbols_in){NULL, keys}, count, contexts, counts, arena, level);
}

/* ---- decoding ---- */

int lg_rans_open(lg_rans *block, lg_input *in, size_t count, int contexts, lg_arena *arena)
{
    uint32_t lanes, log;
    uint64_t words = 0;
    memset(block, 0, sizeof *block);
    if (count > LG_MAX_ELEMENTS || contexts < 1 || contexts > LG_MAX_CONTEXTS) return LG_CORRUPT;
    if (lg_take_u8(in, &lanes) || lg_take_u8(in, &log)) return LG_CORRUPT;
    if (lanes != lanes_for(count) || log < 13 || log > 20) return LG_CORRUPT;
    block->lanes = lanes;
    block->segment_size = 1u << log;
    block->left = count;
    block->table = lg_alloc(arena, (size_t)contexts * LG_SCALE * sizeof *block->table);
    if (!block->table) return LG_NOMEM;
    if (take_tables(in, block->table, contexts)) return LG_CORRUPT;
    if (lg_take(in, ((count + block->segment_size - 1) >> log) * 4, &block->lengths.at)) return LG_CORRUPT;
    block->lengths.end = in->at;
    for (lg_input lengths = block->lengths; lengths.at != lengths.end;) {
        uint32_t length;
        (void)lg_take_u32(&lengths, &length);
        if (length < lanes * 4 || length % 2) return LG_CORRUPT;
        words += length;
    }
    if (words > (uint64_t)(in->end - in->at)) return LG_CORRUPT;
    block->words = (lg_input){in->at, in->at + words};
    in->at += words;
    return LG_OK;
}

/* Opens the segment that comes next. */
static int start(lg_rans *block, lg_segment *segment)
{
    lg_input in = block->words;
    uint32_t length;
    if (lg_take_u32(&block->lengths, &length)) return LG_CORRUPT;
    block->words.at += length;
    for (uint32_t lane = 0; lane < block->lanes; lane++) {
        if (lg_take_u32(&in, &segment->state[lane])) return LG_CORRUPT;
        if (segment->state[lane] < LG_LOW || segment->state[lane] >> 31) return LG_CORRUPT;
    }
    segment->at = in.at;
    segment->end = block->words.at;
    segment->left = block->left < block->segment_size ? block->left : block->segment_size;
    block->left -= segment->left;
    return LG_OK;
}

static int finish(const lg_rans *block, const lg_segment *segment)
{
    for (uint32_t lane = 0; lane < block->lanes; lane++)
        if (segment->state[lane] != LG_LOW) return LG_CORRUPT;
    return segment->at == segment->end ? LG_OK : LG_CORRUPT;
}

static int pull_scalar(const lg_rans *block, lg_segment *segment, const uint16_t *slots,
                       uint8_t *symbols, size_t count)
{
    const uint8_t *at = segment->at;
    uint32_t lanes = block->lanes;
    for (size_t i = 0; i < count; i++) {
        uint32_t *x = &segment->state[i & (lanes - 1)];
        uint32_t entry = block->table[(slots ? slots[i] : 0u) | (*x & (LG_SCALE - 1))];
        symbols[i] = (uint8_t)entry;
        *x = (entry >> 19) * (*x >> LG_SCALE_BITS) + ((entry >> 8) & (LG_SCALE - 1));
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
/* Decodes 16 symbols: their entries, of which the lowest bytes are the symbols. */
TARGET_512 INLINE __m512i pull_16(__m512i *state, const uint32_t *table, const uint16_t *slots,
                                  const uint8_t **at, int gathers)
{
    __m512i x = *state, slot = _mm512_set1_epi32(LG_SCALE - 1), places = _mm512_and_si512(x, slot);
    __m512i entry, words;
    __mmask16 low;
    if (slots) /* a, or b and c */
        places = _mm512_ternarylogic_epi32(
            _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)slots)), x, slot, 0xf8);
    if (gathers)
        entry = _mm512_i32gather_epi32(places, (const int *)table, 4);
    else
        entry = look_up(table, _mm512_cvtepi32_epi16(places));
    x = _mm512_mullo_epi32(_mm512_srli_epi32(entry, 19), _mm512_srli_epi32(x, LG_SCALE_BITS));
    x = _mm512_add_epi32(x, _mm512_and_si512(_mm512_srli_epi32(entry, 8), slot));
    low = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32((int)LG_LOW));
    words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)*at));
    words = _mm512_maskz_expand_epi32(low, words);
    *state = _mm512_mask_or_epi32(x, low, _mm512_slli_epi32(x, 16), words);
    *at += 2 * (size_t)__builtin_popcount(low);
    return entry;
}

/* Of each number the bits that `mask` has from `a`, the others from `b`. */
TARGET_512 INLINE __m512i blend(int mask, __m512i a, __m512i b)
{
    return _mm512_ternarylogic_epi32(_mm512_set1_epi32(mask), a, b, 0xca);
}

/* Writes the lowest byte of each number of four vectors, in order. */
TARGET_512 INLINE void put_64(uint8_t *symbols, const __m512i *v)
{
    __m128i within = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i across = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i low = blend(0xff, v[0], _mm512_slli_epi32(v[1], 8));
    __m512i high = blend(0xffffff, _mm512_slli_epi32(v[2], 16), _mm512_slli_epi32(v[3], 24));
    low = _mm512_shuffle_epi8(blend(0xffff, low, high), _mm512_broadcast_i32x4(within));
    _mm512_storeu_si512(symbols, _mm512_permutexvar_epi32(across, low));
}

/* Decodes whole steps of 64 while `at` is not beyond `due`, which is so far from the words' end that
 * reading ahead is safe; returns how many elements it did. */
TARGET_512 INLINE size_t pull_512(const lg_rans *block, lg_segment *segment, const uint16_t *slots,
                                  uint8_t *symbols, size_t count, lg_ahead ahead, const uint8_t *due,
                                  int gathers)
{
    const uint8_t *at = segment->at;
    __m512i x[4], entries[4];
    size_t i = 0;
    for (int v = 0; v < 4; v++) x[v] = _mm512_loadu_si512(segment->state + 16 * v);
    for (; i + 64 <= count && at <= due; i += 64) {
        bring(ahead, i, 64);
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++)
            entries[v] = pull_16(&x[v], block->table, slots ? slots + i + 16 * (size_t)v : NULL, &at,
                                 gathers);
        put_64(symbols + i, entries);
    }
    for (int v = 0; v < 4; v++) _mm512_storeu_si512(segment->state + 16 * v, x[v]);
    segment->at = at;
    return i;
}

TARGET_512 static size_t pull_some_512(const lg_rans *block, lg_segment *segment, const uint16_t *slots,
                                       uint8_t *symbols, size_t count, lg_ahead ahead,
                                       const uint8_t *due, int level)
{
    if (level >= LG_GATHER)
        return slots ? pull_512(block, segment, slots, symbols, count, ahead, due, 1)
                     : pull_512(block, segment, NULL, symbols, count, ahead, due, 1);
    return slots ? pull_512(block, segment, slots, symbols, count, ahead, due, 0)
                 : pull_512(block, segment, NULL, symbols, count, ahead, due, 0);
}

/* As far as whole steps go: up to the last words where they are, then in a copy with zeros behind it. */
static int pull_steps_512(const lg_rans *block, lg_segment *segment, const uint16_t *slots, uint8_t *symbols,
                          size_t count, lg_ahead ahead, int level, size_t *done)
{
    uint8_t copy[4 * WORDS_AHEAD] = {0};
    const uint8_t *last = segment->end;
    size_t left;
    *done = 0;
    if (last - segment->at >= 2 * WORDS_AHEAD)
        *done = pull_some_512(block, segment, slots, symbols, count, ahead, last - 2 * WORDS_AHEAD, level);
    if (*done + 64 > count) return LG_OK;
    left = (size_t)(last - segment->at); /* 2 * WORDS_AHEAD at most */
    memcpy(copy, segment->at, left);
    segment->at = copy;
    *done += pull_some_512(block, segment, slots ? slots + *done : NULL, symbols + *done, count - *done,
                           (lg_ahead){{NULL, NULL}, 0}, copy + left, level);
    if (segment->at > copy + left) return LG_CORRUPT;
    segment->at = last - (copy + left - segment->at);
    return LG_OK;
}
#endif

static int pull(const lg_rans *block, lg_segment *segment, const uint16_t *slots, uint8_t *symbols,
                size_t count, lg_ahead ahead, int level)
{
    size_t done = 0;
#ifdef LG_X86
    if (level >= LG_AVX512 && block->lanes == 64 && count >= 64 &&
        pull_steps_512(block, segment, slots, symbols, count, ahead, level, &done))
        return LG_CORRUPT;
#endif
    (void)level;
    (void)ahead;
    return pull_scalar(block, segment, slots ? slots + done : NULL, symbols + done, count - done);
}

int lg_rans_next(lg_rans *block, lg_segment *segment, const uint16_t *slots, uint8_t *symbols, size_t count,
                 lg_ahead ahead, int level)
{
    if (!segment->left && start(block, segment)) return LG_CORRUPT;
    if (count > segment->left || pull(block, segment, slots, symbols, count, ahead, level)) return LG_CORRUPT;
    segment->left -= count;
    return segment->left ? LG_OK : finish(block, segment);
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

/* What every 8th of the bytes tells, or fewer. */
typedef struct {
    uint32_t counts[256], total;
    uint32_t least, greatest; /* of whole blocks: how often two of a block's bytes are the same, to 2^26 */
} sample;

static size_t sample_stride(size_t count)
{
    size_t stride = 8;
    while (count / stride > 65536) stride *= 2;
    return stride;
}

/* What coding so many of each byte takes, in 1/256 bits. */
static uint64_t bits_for(const uint32_t *counts, uint32_t total)
{
    uint64_t bits = 0;
    for (int s = 0; s < 256; s++)
        if (counts[s]) bits += (uint64_t)counts[s] * (log_of(total) - log_of(counts[s]));
    return bits;
}

static uint32_t count_some(const uint8_t *symbols, size_t count, size_t stride, uint32_t *counts)
{
    uint32_t total = 0;
    memset(counts, 0, 256 * sizeof *counts);
    for (size_t i = 0; i < count; i += stride, total++) counts[symbols[i]]++;
    return total;
}

static void look(sample *seen, const uint8_t *symbols, size_t count)
{
    size_t stride = sample_stride(count);
    *seen = (sample){{0}, 0, UINT32_MAX, 0};
    for (size_t begin = 0; begin < count; begin += LG_BLOCK) {
        size_t some = count - begin < LG_BLOCK ? count - begin : LG_BLOCK;
        uint32_t counts[256], pairs = 0;
        seen->total += count_some(symbols + begin, some, stride, counts);
        for (int s = 0; s < 256; s++) {
            seen->counts[s] += counts[s];
            pairs += counts[s] * counts[s];
        }
        if (some < LG_BLOCK) continue;
        seen->least = pairs < seen->least ? pairs : seen->least;
        seen->greatest = pairs > seen->greatest ? pairs : seen->greatest;
    }
}

/* Whether tables of their own for each block save a sixteenth. That is so where parts differ, as the rows
 * of an embedding that were never trained; most often all blocks repeat themselves alike, and then nothing
 * more is asked. */
static int differs(const sample *seen, uint64_t bits, const uint8_t *symbols, size_t count)
{
    size_t stride = sample_stride(count);
    uint32_t counts[256];
    uint64_t sum = 0;
    if (count <= LG_BLOCK || seen->greatest / 4 < seen->least) return 0;
    for (size_t begin = 0; begin + LG_BLOCK <= count; begin += LG_BLOCK) {
        uint32_t total = count_some(symbols + begin, LG_BLOCK, stride, counts);
        sum += bits_for(counts, total);
    }
    return sum < bits - bits / 16;
}

enum { AS_ONE, IN_BLOCKS, AS_IT_IS };

/* Says how to write an array: noise, of which coding would save less than a hundredth, stays as it is. */
static int judge(const uint8_t *symbols, size_t count)
{
    sample seen;
    uint64_t bits;
    if (count < 8192) return AS_ONE;
    look(&seen, symbols, count);
    bits = bits_for(seen.counts, seen.total);
    if (differs(&seen, bits, symbols, count)) return IN_BLOCKS;
    return bits > (uint64_t)seen.total * (8 * 256 * 99 / 100) ? AS_IT_IS : AS_ONE;
}

static int put_blocks(lg_bytes *out, const uint8_t *symbols, size_t count, lg_arena arena, int level)
{
    size_t at = out->size;
    uint32_t length;
    lg_put_u8(out, 3);
    lg_put_u32(out, 0);
    for (size_t begin = 0; begin < count; begin += LG_BLOCK) {
        size_t some = count - begin < LG_BLOCK ? count - begin : LG_BLOCK;
        if (lg_array_encode(out, symbols + begin, some, arena, level)) return LG_NOMEM;
    }
    length = (uint32_t)(out->size - at - 5);
    memcpy(out->data + at + 1, &length, 4);
    return LG_OK;
}

int lg_array_encode(lg_bytes *out, const uint8_t *symbols, size_t count, lg_arena arena, int level)
{
    size_t at = out->size, same = 0;
    int status, how;
    while (same < count && symbols[same] == symbols[0]) same++;
    if (same == count) {
        lg_put_u8(out, 1);
        lg_put_u8(out, count ? symbols[0] : 0);
        return out->failed ? LG_NOMEM : LG_OK;
    }
    how = judge(symbols, count);
    if (how == IN_BLOCKS) return put_blocks(out, symbols, count, arena, level);
    if (how == AS_ONE) {
        lg_put_u8(out, 2);
        uint32_t *counts = lg_rans_counts(&arena, 1);
        if (!counts) return LG_NOMEM;
        histogram(counts, symbols, count, arena);
        status = encode(out, (symbols_in){symbols, NULL}, count, 1, counts, arena, level);
        if (status || out->size - at <= count) return status;
        out->size = at;
    }
    lg_put_u8(out, 0);
    lg_put(out, symbols, count);
    return out->failed ? LG_NOMEM : LG_OK;
}

static int open_block(lg_array *array, lg_input *in, size_t count, lg_arena *arena)
{
    uint32_t value = 0;
    if (array->mode == 0) return lg_take(in, count, &array->raw);
    if (array->mode == 1) {
        if (lg_take_u8(in, &value)) return LG_CORRUPT;
        array->value = (uint8_t)value;
        return LG_OK;
    }
    array->segment = (lg_segment){{0}, NULL, NULL, 0};
    return array->mode == 2 ? lg_rans_open(&array->block, in, count, 1, arena) : LG_CORRUPT;
}

int lg_array_open(lg_array *array, lg_input *in, size_t count, lg_arena *arena)
{
    uint32_t length;
    *array = (lg_array){0};
    if (lg_take_u8(in, &array->mode)) return LG_CORRUPT;
    if (array->mode != 3) return open_block(array, in, count, arena);
    array->cut = 1;
    array->rest = count;
    array->memory.size = LG_SCALE * sizeof(uint32_t) + 64;
    array->memory.data = lg_alloc(arena, array->memory.size);
    if (!array->memory.data) return LG_NOMEM;
    if (count <= LG_BLOCK || lg_take_u32(in, &length)) return LG_CORRUPT;
    array->blocks.at = in->at;
    if (lg_take(in, length, &array->blocks.at)) return LG_CORRUPT;
    array->blocks.end = in->at;
    return LG_OK;
}

static int next_block(lg_array *array)
{
    lg_arena memory = array->memory;
    array->inside = array->rest < LG_BLOCK ? array->rest : LG_BLOCK;
    array->rest -= array->inside;
    if (lg_take_u8(&array->blocks, &array->mode)) return LG_CORRUPT;
    if (open_block(array, &array->blocks, array->inside, &memory)) return LG_CORRUPT;
    return array->rest || array->blocks.at == array->blocks.end ? LG_OK : LG_CORRUPT;
}

int lg_array_next(lg_array *array, uint8_t *room, size_t count, const uint8_t **found, lg_ahead ahead,
                  int level)
{
    *found = room;
    if (array->cut) {
        if (!array->inside && next_block(array)) return LG_CORRUPT;
        array->inside -= count;
    }
    if (array->mode == 0) {
        *found = array->raw;
        array->raw += count;
        return LG_OK;
    }
    if (array->mode == 1) {
        memset(room, array->value, count);
        return LG_OK;
    }
    return lg_rans_next(&array->block, &array->segment, NULL, room, count, ahead, level);
}

int lg_array_decode(lg_input *in, uint8_t *symbols, size_t count, lg_arena arena, int level)
{
    lg_array array;
    int status = lg_array_open(&array, in, count, &arena);
    for (size_t begin = 0, some; begin < count && !status; begin += some) {
        const uint8_t *found;
        some = count - begin < LG_TILE ? count - begin : LG_TILE;
        status = lg_array_next(&array, symbols + begin, some, &found, (lg_ahead){{NULL, NULL}, 0}, level);
        if (!status && found != symbols + begin) memcpy(symbols + begin, found, some);
    }
    return status;
}
