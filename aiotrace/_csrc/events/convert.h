/* From a Python value to the bytes of a field: exact, plain values alone. What could run Python
 * code (a subclass's methods, a str that is not interned yet) or does not fit returns 0, and the
 * pure-Python implementation handles the whole event.
 *
 * Part of event.c, kept apart for its size. Nothing here allocates or calls Python code.
 */
#ifndef AIOTRACE_CONVERT_H
#define AIOTRACE_CONVERT_H

#include "common/common.h"
#include "common/utf8.h"

#include <math.h>

#define FIELDS_MAX 32 /* events with more are recorded by the pure-Python implementation */
#define DYNAMIC_MAX AIOTRACE_RECORD_DYNAMIC_MAX

/* Field types by their code in `struct`; strings, bytes and symbols have codes of their own. */
typedef struct {
    uint16_t offset;
    char code;
    uint8_t bytes; /* of an int; 0: not an int */
    int32_t low, high; /* what an int that CPython keeps in one piece may be here */
} Field;

/* Found in a first pass over the arguments: sizes of strings, keys of symbols. */
typedef struct {
    uint32_t size[FIELDS_MAX];
    uint64_t key[FIELDS_MAX];
} Measures;

/* --- strings --- */

/* Bytes of a str in UTF-8. */
static Py_ssize_t
text_size(PyObject *text)
{
    Py_ssize_t length = PyUnicode_GET_LENGTH(text);
    if (PyUnicode_IS_ASCII(text))
        return length;
    int kind = PyUnicode_KIND(text);
    const void *data = PyUnicode_DATA(text);
    Py_ssize_t size = 0;
    for (Py_ssize_t i = 0; i < length; i++)
        size += utf8_size(PyUnicode_READ(kind, data, i));
    return size;
}

/* UTF-8 straight into the page (PyUnicode_AsUTF8 would keep a copy for the str's life); lone
 * surrogates pass. */
static void
put_text(char *place, PyObject *text, uint32_t size)
{
    if (PyUnicode_IS_ASCII(text)) {
        memcpy(place, PyUnicode_DATA(text), size);
        return;
    }
    Py_ssize_t length = PyUnicode_GET_LENGTH(text);
    int kind = PyUnicode_KIND(text);
    const void *data = PyUnicode_DATA(text);
    unsigned char *out = (unsigned char *)place;
    for (Py_ssize_t i = 0; i < length; i++)
        out = put_utf8(out, PyUnicode_READ(kind, data, i));
}

/* --- numbers --- */

static void
set_range(Field *field)
{
    static const struct {
        char code;
        uint8_t bytes;
        int32_t low, high;
    } ranges[] = {{'Q', 8, 0, INT32_MAX}, {'q', 8, INT32_MIN, INT32_MAX}, {'I', 4, 0, INT32_MAX},
                  {'i', 4, INT32_MIN, INT32_MAX}, {'H', 2, 0, UINT16_MAX}, {'h', 2, INT16_MIN, INT16_MAX},
                  {'B', 1, 0, UINT8_MAX}, {'b', 1, INT8_MIN, INT8_MAX}};
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        if (ranges[i].code == field->code) {
            field->bytes = ranges[i].bytes;
            field->low = ranges[i].low;
            field->high = ranges[i].high;
        }
    }
}

/* An int that CPython keeps in one piece: up to 30 bits at least. Returns 0 if it is longer. */
static inline int
as_compact(PyObject *value, int64_t *result)
{
#if PY_VERSION_HEX >= 0x030C0000
    if (unlikely(!PyUnstable_Long_IsCompact((PyLongObject *)value)))
        return 0;
    *result = PyUnstable_Long_CompactValue((PyLongObject *)value);
#else
    Py_ssize_t digits = Py_SIZE(value);
    if (unlikely(digits < -1 || digits > 1))
        return 0;
    *result = digits * (int64_t)((PyLongObject *)value)->ob_digit[0]; /* even 0 has a digit */
#endif
    return 1;
}

/* The same for one in two pieces: up to 60 bits. */
static inline int
as_long(PyObject *value, int64_t *result)
{
#if PY_VERSION_HEX >= 0x030C0000
    uintptr_t tag = ((PyLongObject *)value)->long_value.lv_tag, count = tag >> 3;
    const digit *digits = ((PyLongObject *)value)->long_value.ob_digit;
    int64_t sign = 1 - (int64_t)(tag & 3);
#else
    Py_ssize_t size = Py_SIZE(value), count = size < 0 ? -size : size;
    const digit *digits = ((PyLongObject *)value)->ob_digit;
    int64_t sign = size < 0 ? -1 : 1;
#endif
    if (count != 2)
        return 0;
    *result = sign * ((int64_t)digits[0] | (int64_t)digits[1] << PyLong_SHIFT);
    return 1;
}

/* An int as 64 bits. Returns 0 if it is not an int or does not fit. A subclass's __index__ is not
 * called, as by `struct`. */
static inline int
as_s64(PyObject *value, int64_t *result)
{
    if (unlikely(!PyLong_Check(value)))
        return 0;
    if (as_compact(value, result) || as_long(value, result))
        return 1;
    int overflow;
    *result = PyLong_AsLongLongAndOverflow(value, &overflow);
    return overflow == 0;
}

static inline int
as_u64(PyObject *value, uint64_t *result)
{
    int64_t number;
    if (likely(as_s64(value, &number))) {
        *result = (uint64_t)number;
        return number >= 0;
    }
    if (!PyLong_Check(value))
        return 0;
    *result = PyLong_AsUnsignedLongLong(value);
    if (*result == (uint64_t)-1 && PyErr_Occurred()) {
        PyErr_Clear();
        return 0;
    }
    return 1;
}

static inline int
as_double(PyObject *value, double *result)
{
    if (likely(PyFloat_Check(value))) {
        *result = PyFloat_AS_DOUBLE(value);
        return 1;
    }
    if (!PyLong_Check(value))
        return 0;
    *result = PyLong_AsDouble(value);
    if (*result == -1.0 && PyErr_Occurred()) {
        PyErr_Clear();
        return 0;
    }
    return 1;
}

#define STORE_SIGNED(TYPE, LOW, HIGH)                             \
    {                                                             \
        int64_t number;                                           \
        if (!as_s64(value, &number) || number < LOW || number > HIGH) \
            return 0;                                             \
        TYPE stored = (TYPE)number;                               \
        memcpy(place, &stored, sizeof stored);                    \
        break;                                                    \
    }

/* Convert one value and store it. Returns 0 if it does not fit or could run foreign code. */
static __attribute__((noinline)) int
store(char *place, char code, PyObject *value)
{
    switch (code) {
    case 'Q': {
        uint64_t number;
        if (!as_u64(value, &number))
            return 0;
        memcpy(place, &number, sizeof number);
        break;
    }
    case 'q':
        STORE_SIGNED(int64_t, INT64_MIN, INT64_MAX)
    case 'd': {
        double number;
        if (!as_double(value, &number))
            return 0;
        memcpy(place, &number, sizeof number);
        break;
    }
    case 'I':
        STORE_SIGNED(uint32_t, 0, UINT32_MAX)
    case 'i':
        STORE_SIGNED(int32_t, INT32_MIN, INT32_MAX)
    case 'H':
        STORE_SIGNED(uint16_t, 0, UINT16_MAX)
    case 'h':
        STORE_SIGNED(int16_t, INT16_MIN, INT16_MAX)
    case 'B':
        STORE_SIGNED(uint8_t, 0, UINT8_MAX)
    case 'b':
        STORE_SIGNED(int8_t, INT8_MIN, INT8_MAX)
    case 'f': {
        double number;
        if (!as_double(value, &number))
            return 0;
        float stored = (float)number;
        if (isinf(stored) && !isinf(number))
            return 0;
        memcpy(place, &stored, sizeof stored);
        break;
    }
    case '?':
        if (value == Py_True)
            *place = 1;
        else if (value == Py_False)
            *place = 0;
        else
            return 0;
        break;
    case 'C': /* characters at their place, as the kernel's comm: only C's own events are quick with them */
        return 0;
    default:
        Py_UNREACHABLE();
    }
    return 1;
}

/* `store`, with the common case inlined: ints of up to 60 bits, and a float as a double. */
static inline __attribute__((always_inline)) int
store_number(char *place, const Field *field, PyObject *value)
{
    int64_t number;
    if (field->bytes != 0 && PyLong_CheckExact(value)) {
        if (likely(as_compact(value, &number))) {
            if (unlikely(number < field->low || number > field->high))
                return 0;
            if (field->bytes == 8)
                memcpy(place, &number, 8);
            else if (field->bytes == 4)
                memcpy(place, &(uint32_t){(uint32_t)number}, 4);
            else if (field->bytes == 2)
                memcpy(place, &(uint16_t){(uint16_t)number}, 2);
            else
                *place = (char)number;
            return 1;
        }
        if (field->bytes == 8 && as_long(value, &number) && (number >= 0 || field->low < 0)) {
            memcpy(place, &number, 8);
            return 1;
        }
    }
    else if (field->code == 'd' && PyFloat_CheckExact(value)) {
        memcpy(place, &((PyFloatObject *)value)->ob_fval, 8);
        return 1;
    }
    return store(place, field->code, value);
}

#endif
