/* A part of a line: a literal, or one conversion of one field. report_lines.c has the plan of a
 * line, field_print.c prints. */
#ifndef AIOTRACE_LINE_PARTS_H
#define AIOTRACE_LINE_PARTS_H

#include "decode/walk.h"
#include "common/text_buffer.h"

/* A conversion's flags. */
enum { LEFT = 1, ZERO = 2, PLUS = 4, SPACE = 8, ALTERNATE = 16 };

typedef struct {
    unsigned char kind;
    unsigned char is_signed;
    unsigned char conversion; /* d u x X o */
    unsigned char flags;
    unsigned char bits;    /* 8 to 64: to which an integer is cut */
    unsigned char is_bare; /* no flags, no width, no precision */
    uint32_t offset;    /* offset + size is at most the event's size */
    uint32_t size;
    int width;
    int precision; /* -1: none */
    PyObject *literal;
} Part;

/* What parts of all events are printed with. The references are borrowed from the caller. */
typedef struct {
    PyObject *show_text; /* (str or bytes, precision) -> str, escaped */
    PyObject *symbols;   /* dict: key -> str */
    int c_strings;       /* strings end at their first NUL */
} Printer;

#pragma GCC visibility push(hidden)

/* Fill a part from _decode/report_lines.py's tuple, and check it. Returns -1 with an exception set
 * if it is wrong. */
int aiotrace_part_parse(Part *part, PyObject *item, Py_ssize_t event_size);

/* Print a record's parts; the record is as long as its event needs. Returns FOUND; ENDED if Python
 * should print this record's fields; FAILED with an exception set. */
int aiotrace_append_parts(const Printer *printer, Text *text, const Part *parts, Py_ssize_t count,
                          const unsigned char *payload, Py_ssize_t length, int swap);

/* Print a str, padded to `width` characters. Returns -1 with an exception set on failure. */
int aiotrace_append_str(Text *text, PyObject *str, int width, int flags);

#pragma GCC visibility pop

#endif
