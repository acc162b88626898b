/* Text that grows: the lines of a page, before they are Python's. */
#ifndef AIOTRACE_TEXT_H
#define AIOTRACE_TEXT_H

#include "common/common.h"

typedef struct {
    char *data; /* NULL: none yet */
    size_t size;
    size_t capacity;
} Text;

/* Make room for `more` bytes. Returns -1 with an exception set, and the text as it was, if there is
 * no memory; so does all here that returns an int. */
static inline int
text_reserve(Text *text, size_t more)
{
    if (text->capacity - text->size >= more)
        return 0;
    const size_t capacity = (text->size + more) * 2;
    char *data = PyMem_Realloc(text->data, capacity);
    if (data == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    text->data = data;
    text->capacity = capacity;
    return 0;
}

static inline int
text_append(Text *text, const char *data, size_t size)
{
    if (text_reserve(text, size) < 0)
        return -1;
    memcpy(text->data + text->size, data, size);
    text->size += size;
    return 0;
}

/* Where room was reserved. */
static inline void
text_put(Text *text, const char *data, size_t size)
{
    memcpy(text->data + text->size, data, size);
    text->size += size;
}

static inline int
text_append_bytes(Text *text, PyObject *bytes)
{
    return text_append(text, PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes));
}

static inline int
text_fill(Text *text, char c, Py_ssize_t count)
{
    if (count <= 0)
        return 0;
    if (text_reserve(text, (size_t)count) < 0)
        return -1;
    memset(text->data + text->size, c, (size_t)count);
    text->size += (size_t)count;
    return 0;
}

/* Digits from the end of 24 bytes backwards; returns where they begin. */
static inline char *
write_digits(char *end, uint64_t value, unsigned char conversion)
{
    if (conversion == 'x' || conversion == 'X' || conversion == 'o') {
        const char *digits = conversion == 'X' ? "0123456789ABCDEF" : "0123456789abcdef";
        const int shift = conversion == 'o' ? 3 : 4;
        do
            *--end = digits[value & ((1u << shift) - 1)];
        while (value >>= shift);
        return end;
    }
    while (value >= 100) {
        const unsigned pair = (unsigned)(value % 100);
        value /= 100;
        *--end = (char)('0' + pair % 10);
        *--end = (char)('0' + pair / 10);
    }
    if (value >= 10) {
        *--end = (char)('0' + value % 10);
        value /= 10;
    }
    *--end = (char)('0' + value);
    return end;
}

#endif
