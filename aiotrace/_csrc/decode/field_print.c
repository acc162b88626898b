/* Parts of lines, printed: numbers as printf does, strings, symbols, floats, hexadecimal dumps.
 *
 *     part --kind--> append_integer, append_text, append_symbol, append_float, append_hex --> Text
 *
 * Invariant: what might differ from _decode/report_lines.py and _decode/printf.py is printed by
 * these: strings that are not printable ASCII by `show_text`, a record whose string lies outside of
 * it as a whole.
 */
#include "decode/field_print.h"

/* Where the value of a conversion comes from: the kinds of _decode/report_lines.py. */
enum { LITERAL, INTEGER, BOOLEAN, FLOATING, TEXT_LOC, TEXT_REL, TEXT_ARRAY, TEXT_TAIL, SYMBOL, HEX_LOC, PART_KINDS };

static uint64_t
load_integer(const unsigned char *at, const Part *part, int swap)
{
    switch (part->size) {
    case 1:
        return part->is_signed ? (uint64_t)(int64_t)(int8_t)*at : *at;
    case 2:
        return part->is_signed ? (uint64_t)(int64_t)(int16_t)load16(at, swap) : load16(at, swap);
    case 4:
        return part->is_signed ? (uint64_t)(int64_t)(int32_t)load32(at, swap) : load32(at, swap);
    default:
        return load64(at, swap);
    }
}

/* printf's integers, as _printf._integer has them. */
static int
append_integer(Text *text, const Part *part, uint64_t value)
{
    char buffer[24], prefix[3];
    Py_ssize_t prefix_size = 0;
    const int is_decimal = part->conversion == 'd';
    if (part->bits < 64)
        value &= (UINT64_C(1) << part->bits) - 1;
    if (part->is_bare && !(is_decimal && value >> (part->bits - 1))) {
        const char *found = write_digits(buffer + sizeof buffer, value, part->conversion);
        return text_append(text, found, (size_t)(buffer + sizeof buffer - found));
    }
    if (is_decimal && value >> (part->bits - 1)) {
        prefix[prefix_size++] = '-';
        value = part->bits < 64 ? (UINT64_C(1) << part->bits) - value : -value;
    } else if (is_decimal && part->flags & (PLUS | SPACE)) {
        prefix[prefix_size++] = part->flags & PLUS ? '+' : ' ';
    }
    if (part->flags & ALTERNATE && value && (part->conversion | 0x20) == 'x') {
        prefix[prefix_size++] = '0';
        prefix[prefix_size++] = (char)part->conversion;
    } else if (part->flags & ALTERNATE && value && part->conversion == 'o') {
        prefix[prefix_size++] = '0';
    }
    const char *digits = write_digits(buffer + sizeof buffer, value, part->conversion);
    const Py_ssize_t count = buffer + sizeof buffer - digits;
    Py_ssize_t zeros = part->precision > count ? part->precision - count : 0;
    if (part->flags & ZERO && !(part->flags & LEFT) && part->precision < 0 && part->width - prefix_size > count)
        zeros = part->width - prefix_size - count;
    const Py_ssize_t blanks = part->width - prefix_size - zeros - count;
    return (part->flags & LEFT ? 0 : text_fill(text, ' ', blanks)) < 0 ||
                   text_append(text, prefix, (size_t)prefix_size) < 0 || text_fill(text, '0', zeros) < 0 ||
                   text_append(text, digits, (size_t)count) < 0 ||
                   (part->flags & LEFT ? text_fill(text, ' ', blanks) : 0) < 0
               ? -1
               : 0;
}

int
aiotrace_append_str(Text *text, PyObject *str, int width, int flags)
{
    Py_ssize_t size;
    const char *data = PyUnicode_AsUTF8AndSize(str, &size);
    if (data == NULL)
        return -1;
    const Py_ssize_t blanks = width - PyUnicode_GET_LENGTH(str);
    return (flags & LEFT ? 0 : text_fill(text, ' ', blanks)) < 0 || text_append(text, data, (size_t)size) < 0 ||
                   (flags & LEFT ? text_fill(text, ' ', blanks) : 0) < 0
               ? -1
               : 0;
}

static int
is_plain(const unsigned char *data, Py_ssize_t size)
{
    unsigned char other = 0;
    for (Py_ssize_t i = 0; i < size; i++)
        other |= (unsigned char)(data[i] - 0x20) > 0x7e - 0x20;
    return !other;
}

/* What is not printable ASCII is printed by Python: `object` is what it is given. */
static int
append_shown(const Printer *printer, Text *text, const Part *part, PyObject *object)
{
    PyObject *shown = PyObject_CallFunction(printer->show_text, "Oi", object, part->precision);
    if (shown == NULL || !PyUnicode_Check(shown)) {
        if (shown != NULL)
            PyErr_SetString(PyExc_TypeError, "show_text should return a str");
        Py_XDECREF(shown);
        return -1;
    }
    const int status = aiotrace_append_str(text, shown, part->width, part->flags);
    Py_DECREF(shown);
    return status;
}

static int
append_plain(Text *text, const Part *part, const unsigned char *data, Py_ssize_t size)
{
    if (part->precision >= 0 && size > part->precision)
        size = part->precision;
    const Py_ssize_t blanks = part->width - size;
    return (part->flags & LEFT ? 0 : text_fill(text, ' ', blanks)) < 0 ||
                   text_append(text, (const char *)data, (size_t)size) < 0 ||
                   (part->flags & LEFT ? text_fill(text, ' ', blanks) : 0) < 0
               ? -1
               : 0;
}

static int
append_text(const Printer *printer, Text *text, const Part *part, const unsigned char *data, Py_ssize_t size)
{
    const int is_loc = part->kind == TEXT_LOC || part->kind == TEXT_REL;
    if (is_loc && !printer->c_strings) {
        size -= size > 0 && data[size - 1] == 0;
    } else {
        const unsigned char *nul = size > 0 ? memchr(data, 0, (size_t)size) : NULL;
        if (nul != NULL)
            size = nul - data;
    }
    if (is_plain(data, size))
        return append_plain(text, part, data, size);
    PyObject *bytes = PyBytes_FromStringAndSize((const char *)data, size);
    const int status = bytes == NULL ? -1 : append_shown(printer, text, part, bytes);
    Py_XDECREF(bytes);
    return status;
}

static int
append_symbol(const Printer *printer, Text *text, const Part *part, uint64_t key)
{
    PyObject *number = PyLong_FromUnsignedLongLong(key);
    if (number == NULL)
        return -1;
    PyObject *name = PyDict_GetItemWithError(printer->symbols, number);
    Py_DECREF(number);
    if (name == NULL && PyErr_Occurred())
        return -1;
    if (name != NULL && PyUnicode_Check(name)) {
        if (PyUnicode_IS_ASCII(name) && is_plain(PyUnicode_1BYTE_DATA(name), PyUnicode_GET_LENGTH(name)))
            return append_plain(text, part, PyUnicode_1BYTE_DATA(name), PyUnicode_GET_LENGTH(name));
        Py_INCREF(name);
        const int status = append_shown(printer, text, part, name);
        Py_DECREF(name);
        return status;
    }
    if (key == 0)
        return append_plain(text, part, (const unsigned char *)"(null)", 6);
    Part plain = *part; /* an address is never cut */
    plain.precision = -1;
    char buffer[24];
    char *digits = write_digits(buffer + sizeof buffer, key, 'x');
    *--digits = 'x';
    *--digits = '0';
    return append_plain(text, &plain, (const unsigned char *)digits, buffer + sizeof buffer - digits);
}

/* As repr() shows it. */
static int
append_float(Text *text, const Part *part, const unsigned char *at, int swap)
{
    double value;
    if (part->size == 4) {
        const uint32_t bits = load32(at, swap);
        float single;
        memcpy(&single, &bits, sizeof single);
        value = single;
    } else {
        const uint64_t bits = load64(at, swap);
        memcpy(&value, &bits, sizeof value);
    }
    char *shown = PyOS_double_to_string(value, 'r', 0, Py_DTSF_ADD_DOT_0, NULL);
    if (shown == NULL)
        return -1;
    Part plain = *part; /* printf's precision is an integer's here */
    plain.precision = -1;
    const int status = append_plain(text, &plain, (const unsigned char *)shown, (Py_ssize_t)strlen(shown));
    PyMem_Free(shown);
    return status;
}

static int
append_hex(Text *text, const Part *part, const unsigned char *data, Py_ssize_t size)
{
    const Py_ssize_t count = size ? size * 3 - 1 : 0, blanks = part->width - count;
    if ((part->flags & LEFT ? 0 : text_fill(text, ' ', blanks)) < 0 || text_reserve(text, (size_t)size * 3) < 0)
        return -1;
    for (Py_ssize_t i = 0; i < size; i++) {
        if (i)
            text->data[text->size++] = ' ';
        text->data[text->size++] = "0123456789abcdef"[data[i] >> 4];
        text->data[text->size++] = "0123456789abcdef"[data[i] & 15];
    }
    return part->flags & LEFT ? text_fill(text, ' ', blanks) : 0;
}

/* Returns FOUND; ENDED if Python should print this record's fields; FAILED. */
static int
append_part(const Printer *printer, Text *text, const Part *part, const unsigned char *payload, Py_ssize_t length,
            int swap)
{
    Field place = {.offset = part->offset, .size = part->size};
    uint32_t at, count;
    switch (part->kind) {
    case LITERAL:
        return text_append_bytes(text, part->literal) < 0 ? FAILED : FOUND;
    case INTEGER:
        return append_integer(text, part, load_integer(payload + part->offset, part, swap)) < 0 ? FAILED : FOUND;
    case BOOLEAN:
        return append_integer(text, part, payload[part->offset] != 0) < 0 ? FAILED : FOUND;
    case FLOATING:
        return append_float(text, part, payload + part->offset, swap) < 0 ? FAILED : FOUND;
    case SYMBOL:
        return append_symbol(printer, text, part,
                             part->size == 4 ? load32(payload + part->offset, swap)
                                             : load64(payload + part->offset, swap)) < 0
                   ? FAILED
                   : FOUND;
    case TEXT_REL:
        place.kind = REL_LOC;
        break;
    case TEXT_ARRAY:
        place.kind = ARRAY;
        break;
    case TEXT_TAIL:
        place.kind = TAIL;
        break;
    default:
        place.kind = DATA_LOC;
    }
    if (!find_place(payload, length, &place, swap, &at, &count))
        return ENDED;
    if (part->kind == HEX_LOC)
        return append_hex(text, part, payload + at, count) < 0 ? FAILED : FOUND;
    return append_text(printer, text, part, payload + at, count) < 0 ? FAILED : FOUND;
}

int
aiotrace_append_parts(const Printer *printer, Text *text, const Part *parts, Py_ssize_t count,
                      const unsigned char *payload, Py_ssize_t length, int swap)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        const int status = append_part(printer, text, &parts[i], payload, length, swap);
        if (status != FOUND)
            return status;
    }
    return FOUND;
}

int
aiotrace_part_parse(Part *part, PyObject *item, Py_ssize_t event_size)
{
    unsigned int kind, offset, size, is_signed, conversion, flags, bits;
    int width, precision;
    PyObject *literal;
    if (!PyTuple_Check(item) || !PyArg_ParseTuple(item, "IIIIIIIiiS", &kind, &offset, &size, &is_signed, &conversion,
                                                  &flags, &bits, &width, &precision, &literal)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "a part is a tuple");
        return -1;
    }
    const int is_sized = kind == INTEGER  ? size == 1 || size == 2 || size == 4 || size == 8
                         : kind == BOOLEAN                    ? size == 1
                         : kind == SYMBOL || kind == FLOATING ? size == 4 || size == 8
                         : kind == TEXT_LOC || kind == TEXT_REL || kind == HEX_LOC ? size == 4
                                                                                   : kind < PART_KINDS;
    if (!is_sized || (uint64_t)offset + size > (uint64_t)event_size || bits < 8 || bits > 64 || width < 0 ||
        width > 1000 || precision < -1 || precision > 1000000 || conversion > 127 || flags > 31) {
        PyErr_Format(PyExc_ValueError, "a part of kind %u at %u with %u bytes, of %zd", kind, offset, size, event_size);
        return -1;
    }
    *part = (Part){
        .kind = (unsigned char)kind,
        .is_signed = is_signed != 0,
        .conversion = (unsigned char)conversion,
        .flags = (unsigned char)flags,
        .bits = (unsigned char)bits,
        .is_bare = flags == 0 && width == 0 && precision < 0,
        .offset = offset,
        .size = size,
        .width = width,
        .precision = precision,
        .literal = Py_NewRef(literal),
    };
    return 0;
}
