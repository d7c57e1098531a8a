/* libFuzzer's entry points for the target that TARGET says.
 *
 * The mutator makes real payloads with the encoder and breaks them a little; bytes alone would hardly
 * find a table whose frequencies add up. */
#include "cases.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);
int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *input, size_t size, size_t most, unsigned seed);

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    try_input(TARGET, input, size);
    return 0;
}

#if TARGET != 3
/* Planes whose arrays are cut in blocks, which hardly ever are so short otherwise. */
static void make_blocks(const lg_case *c, lg_bytes *out)
{
    static uint8_t symbols[LG_BLOCK];
    uint64_t state = c->seed;
    lg_put_u8(out, (unsigned)c->kind);
    for (size_t p = 0; p < lg_width(c->kind); p++) {
        size_t at = out->size;
        uint32_t length;
        lg_put_u8(out, 3);
        lg_put_u32(out, 0);
        for (size_t begin = 0; begin < c->count; begin += LG_BLOCK) {
            size_t some = c->count - begin < LG_BLOCK ? c->count - begin : LG_BLOCK;
            uint32_t rare = next(&state) % 4 ? 200 : 0;
            for (size_t i = 0; i < some; i++)
                symbols[i] = (uint8_t)(rare && next(&state) % rare == 0 ? next(&state) : c->seed);
            HOLDS(!lg_array_encode(out, symbols, some, arena_for(LG_BLOCK), lg_best_level()));
        }
        length = (uint32_t)(out->size - at - 5);
        memcpy(out->data + at + 1, &length, 4);
    }
}

static size_t make_payload(const lg_case *c, const uint8_t *head, uint8_t *to, size_t most)
{
    size_t bytes = c->count * lg_width(c->kind), size;
    uint8_t *base = exactly(bytes), *data = exactly(bytes);
    lg_bytes out = {0};
    make_base(c, base);
    make_data(c, base, data);
    if (TARGET == 1 || (TARGET == 4 && compares_deltas(head)))
        lg_delta_encode(&out, data, base, c->count, c->kind, c->group, arena_for(bytes), lg_best_level());
    else if (c->count > LG_BLOCK && c->like)
        make_blocks(c, &out);
    else
        lg_planes_encode(&out, data, c->count, c->kind, arena_for(bytes), lg_best_level());
    size = out.size < most ? out.size : most;
    memcpy(to, out.data, size);
    free(out.data);
    free(base);
    free(data);
    return size;
}

size_t LLVMFuzzerCustomMutator(uint8_t *input, size_t size, size_t most, unsigned seed)
{
    uint64_t state = seed;
    uint32_t way = next(&state) % 8;
    lg_case c;
    if (most < HEAD + 64) return LLVMFuzzerMutate(input, size, most);
    if (size < HEAD || way == 0) {
        for (size_t i = 0; i < HEAD; i++) input[i] = (uint8_t)next(&state);
        c = case_of(input);
        return HEAD + make_payload(&c, input, input + HEAD, most - HEAD);
    }
    if (way < 5) { /* a few bytes, nearer to the front more often, where heads and tables are */
        for (uint32_t times = 1 + next(&state) % 3; times && size > HEAD; times--) {
            size_t room = (size - HEAD) >> next(&state) % 12;
            size_t at = HEAD + next(&state) % (room + 1);
            uint32_t bits = way == 1 ? 1u << next(&state) % 8 : next(&state);
            if (at < size) input[at] ^= (uint8_t)bits;
        }
        return size;
    }
    if (way == 5) return LLVMFuzzerMutate(input, size, most);
    return HEAD + LLVMFuzzerMutate(input + HEAD, size - HEAD, most - HEAD);
}
#endif
