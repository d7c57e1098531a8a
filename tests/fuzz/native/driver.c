/* Runs without a fuzzer, for `make sanitize`: `driver CASES [FILE…]`. Round trips over seeded cases at
 * every level, the payloads broken and decoded again; then the files, each as a fuzz input. */
#include "cases.h"

static void breaks(const lg_case *c, lg_bytes coded, const uint8_t *base, uint64_t *state)
{
    size_t bytes = c->count * lg_width(c->kind);
    uint8_t *out = exactly(bytes);
    for (int i = 0; i < 4; i++) {
        size_t size = i ? coded.size : next(state) % coded.size;
        uint8_t *payload = exactly(size);
        memcpy(payload, coded.data, size);
        if (size) payload[next(state) % ((size >> next(state) % 12) + 1) % size] ^= (uint8_t)next(state);
        decode_everywhere(c, payload, size, base, out);
        free(payload);
    }
    free(out);
}

static void made_up(uint64_t seed)
{
    uint64_t state = seed;
    uint8_t head[HEAD], *base, *data;
    lg_case c;
    for (int i = 0; i < HEAD; i++) head[i] = (uint8_t)next(&state);
    c = case_of(head);
    c.kind = 1 + (int)(seed % 8);
    base = exactly(c.count * lg_width(c.kind));
    data = exactly(c.count * lg_width(c.kind));
    make_base(&c, base);
    make_data(&c, base, data);
    for (int alone = 0; alone < 2; alone++) {
        lg_bytes coded = round_trip(&c, data, alone ? NULL : base);
        breaks(&c, coded, alone ? NULL : base, &state);
        free(coded.data);
    }
    free(base);
    free(data);
}

static void replay(const char *name)
{
    FILE *file = fopen(name, "rb");
    uint8_t *input = exactly(1u << 22);
    size_t size = file ? fread(input, 1, 1u << 22, file) : 0;
    HOLDS(file);
    fclose(file);
    for (int target = 1; target <= 4; target++) try_input(target, input, size);
    free(input);
}

int main(int count, char **words)
{
    int cases = count > 1 ? atoi(words[1]) : 2000;
    for (int i = 0; i < cases; i++) made_up((uint64_t)i);
    for (int i = 2; i < count; i++) replay(words[i]);
    printf("%d cases and %d files at levels 0 to %d\n", cases, count > 2 ? count - 2 : 0, lg_best_level());
    return 0;
}
