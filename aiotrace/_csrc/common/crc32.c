/* crc32 (zlib's) of a page, as fast as it can be read: where zlib takes 16 steps, the processor
 * multiplies once.
 *
 *     64 bytes  --fold-->  the next 64 bytes  --fold--> ...  --> 16 bytes, of the same remainder  --table--> crc
 *
 * and where it multiplies four at once (VPCLMULQDQ on 512 bits), 256 bytes at a time come before
 * that.
 *
 * Without this a FileSink writes at half the speed of its disk: a page's crc took longer than its
 * write(). Carry-less multiplication (PCLMULQDQ) is the method of V. Gopal et al., "Fast CRC
 * Computation for Generic Polynomials Using PCLMULQDQ" (Intel, 2009). A constant is x**n modulo the
 * polynomial 0x104C11DB7, its bits reversed, shifted by one: what an operand is multiplied by to
 * move it n bits on. Where the processor cannot do that, the module has no crc32 and _base/crc32.py
 * takes zlib's; C's own small inputs use the table in that case.
 */
#include "common/crc32.h"

#include "common/common.h"

static uint32_t table[256]; /* filled once, at import */

static void
fill_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++)
            value = value >> 1 ^ (value & 1 ? 0xEDB88320u : 0);
        table[i] = value;
    }
}

static uint32_t
by_bytes(uint32_t state, const unsigned char *data, size_t size)
{
    while (size--)
        state = state >> 8 ^ table[(state ^ *data++) & 0xFF];
    return state;
}

#if defined(__x86_64__)
#include <immintrin.h>

#define LONG_SIZE (1 << 20) /* from here on others may run meanwhile: a page's crc takes less than handing over */
#define TARGET __attribute__((target("pclmul,sse2")))

#define TARGET_WIDE __attribute__((target("avx512f,vpclmulqdq")))
#define WIDE_SIZE 1024 /* what it takes to set up is less than it saves, from here on */

static int is_folding, is_wide; /* what the processor can do; written once, at import */

/* `block`, moved on by as many bits as the constants say, and added to what is there. */
TARGET static inline __m128i
fold(__m128i block, __m128i constants, __m128i there)
{
    const __m128i low = _mm_clmulepi64_si128(block, constants, 0x00);
    const __m128i high = _mm_clmulepi64_si128(block, constants, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), there);
}

TARGET static inline __m128i
load(const unsigned char *at)
{
    return _mm_loadu_si128((const __m128i *)(const void *)at);
}

/* At least 64 bytes. */
TARGET static uint32_t
by_folding(uint32_t state, const unsigned char *data, size_t size)
{
    const __m128i by_512 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4); /* n = 512 - 32, 512 + 32 */
    const __m128i by_128 = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0); /* n = 128 - 32, 128 + 32 */
    __m128i a = _mm_xor_si128(load(data), _mm_cvtsi32_si128((int)state));
    __m128i b = load(data + 16), c = load(data + 32), d = load(data + 48);
    data += 64;
    size -= 64;
    while (size >= 64) {
        a = fold(a, by_512, load(data));
        b = fold(b, by_512, load(data + 16));
        c = fold(c, by_512, load(data + 32));
        d = fold(d, by_512, load(data + 48));
        data += 64;
        size -= 64;
    }
    a = fold(a, by_128, b);
    a = fold(a, by_128, c);
    a = fold(a, by_128, d);
    while (size >= 16) {
        a = fold(a, by_128, load(data));
        data += 16;
        size -= 16;
    }
    unsigned char rest[16];
    _mm_storeu_si128((__m128i *)(void *)rest, a);
    return by_bytes(by_bytes(0, rest, sizeof rest), data, size);
}

TARGET_WIDE static inline __m512i
fold_wide(__m512i block, __m512i constants, const unsigned char *at)
{
    const __m512i low = _mm512_clmulepi64_epi128(block, constants, 0x00);
    const __m512i high = _mm512_clmulepi64_epi128(block, constants, 0x11);
    return _mm512_ternarylogic_epi64(low, high, _mm512_loadu_si512(at), 0x96); /* the xor of the three */
}

/* A multiple of 256 bytes, not 0, becomes 256 bytes of the same remainder. */
TARGET_WIDE static void
fold_to_256(uint32_t state, const unsigned char *data, size_t size, unsigned char *rest)
{
    /* n = 2048 - 32, 2048 + 32 */
    const __m512i by_2048 = _mm512_broadcast_i32x4(_mm_set_epi64x(0x1322d1430, 0x11542778a));
    const __m512i begin = _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)state));
    __m512i a = _mm512_xor_si512(_mm512_loadu_si512(data), begin);
    __m512i b = _mm512_loadu_si512(data + 64), c = _mm512_loadu_si512(data + 128), d = _mm512_loadu_si512(data + 192);
    while (size -= 256) {
        data += 256;
        a = fold_wide(a, by_2048, data);
        b = fold_wide(b, by_2048, data + 64);
        c = fold_wide(c, by_2048, data + 128);
        d = fold_wide(d, by_2048, data + 192);
    }
    _mm512_storeu_si512(rest, a);
    _mm512_storeu_si512(rest + 64, b);
    _mm512_storeu_si512(rest + 128, c);
    _mm512_storeu_si512(rest + 192, d);
}

uint32_t
aiotrace_crc32(uint32_t crc, const unsigned char *data, size_t size)
{
    uint32_t state = ~crc;
    if (!is_folding)
        return ~by_bytes(state, data, size);
    if (is_wide && size >= WIDE_SIZE) {
        unsigned char rest[256];
        fold_to_256(state, data, size & ~(size_t)255, rest);
        state = by_folding(0, rest, sizeof rest);
        data += size & ~(size_t)255;
        size &= 255;
    }
    return ~(size < 64 ? by_bytes(state, data, size) : by_folding(state, data, size));
}

PyDoc_STRVAR(crc32_doc, "crc32(data, value=0) -> int; see aiotrace._base.crc32.");

static PyObject *
crc32(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    Py_buffer buffer;
    unsigned long crc = 0;
    if (count < 1 || count > 2) {
        PyErr_SetString(PyExc_TypeError, "crc32(data, value=0)");
        return NULL;
    }
    if (count == 2) {
        crc = PyLong_AsUnsignedLongMask(arguments[1]);
        if (crc == (unsigned long)-1 && PyErr_Occurred())
            return NULL;
    }
    if (PyObject_GetBuffer(arguments[0], &buffer, PyBUF_SIMPLE) < 0)
        return NULL;
    uint32_t found;
    if (buffer.len < LONG_SIZE) {
        found = aiotrace_crc32((uint32_t)crc, buffer.buf, (size_t)buffer.len);
    } else {
        Py_BEGIN_ALLOW_THREADS
        found = aiotrace_crc32((uint32_t)crc, buffer.buf, (size_t)buffer.len);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&buffer);
    return PyLong_FromUnsignedLong(found);
}

static PyMethodDef functions[] = {
    {"crc32", (PyCFunction)(void (*)(void))crc32, METH_FASTCALL, crc32_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_crc32_exec(PyObject *module)
{
    fill_table();
    is_folding = __builtin_cpu_supports("pclmul");
    if (!is_folding)
        return 0;
    is_wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq");
    return PyModule_AddFunctions(module, functions);
}

#else

uint32_t
aiotrace_crc32(uint32_t crc, const unsigned char *data, size_t size)
{
    return ~by_bytes(~crc, data, size);
}

int
aiotrace_crc32_exec(PyObject *Py_UNUSED(module))
{
    fill_table();
    return 0;
}

#endif
