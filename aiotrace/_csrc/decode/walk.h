/* Reading: the records of a page, one after the other, and where in a record a field lies. For
 * walk.c, columns.c and report_lines.c, whose loops these are.
 *
 *     data --Scan, next_record--> record, record, ... --find_place--> the bytes of a string, an array, a rest
 *                `-- Walk, walk_next: those that were chosen
 *
 * Invariants: every number that is read is compared with the end of the data before it is used, and
 * nothing outside of the data is read. A reader stops in front of damage and keeps what came
 * before; the next call raises TraceFormatError.
 *
 * This file knows no file, no header of a page and no print fmt.
 */
#ifndef AIOTRACE_RECORDS_H
#define AIOTRACE_RECORDS_H

#include "common/common.h"

#include <inttypes.h>

/* --- numbers in memory --- */

static inline uint16_t
load16(const unsigned char *at, int swap)
{
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return swap ? __builtin_bswap16(value) : value;
}

static inline uint32_t
load32(const unsigned char *at, int swap)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return swap ? __builtin_bswap32(value) : value;
}

static inline uint64_t
load64(const unsigned char *at, int swap)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return swap ? __builtin_bswap64(value) : value;
}

/* --- records --- */

typedef struct {
    char message[96];
    Py_ssize_t offset;
} Fault;

typedef struct {
    int64_t time;
    Py_ssize_t start;
    Py_ssize_t length;
    int32_t pid;
    uint16_t id;
} Record;

typedef struct {
    const unsigned char *data;
    Py_ssize_t position; /* of the next record; a damaged one is never passed */
    Py_ssize_t end;      /* a multiple of 4 above start, as every position is */
    uint64_t timestamp;
    uint64_t time; /* modulo 2**64; shown as signed */
    uint64_t offset;
    int big;  /* the data's bit fields begin at the high end */
    int swap; /* the data's byte order is not this machine's */
} Scan;

enum { FAILED = -2, DAMAGED = -1, ENDED = 0, FOUND = 1 };

#pragma GCC visibility push(hidden)

/* Say what is wrong, and where. Returns DAMAGED. */
int aiotrace_damaged(Fault *fault, Py_ssize_t offset, const char *format, ...)
    __attribute__((format(printf, 3, 4), cold));

/* Raise it as TraceFormatError; `type` is any of the module's. */
void aiotrace_raise_damage(PyTypeObject *type, const Fault *fault);

#pragma GCC visibility pop

/* Returns FOUND, ENDED or DAMAGED. */
static inline int
next_record(Scan *scan, Record *record, Fault *fault)
{
    const int swap = scan->swap;
    while (scan->position < scan->end) {
        const Py_ssize_t position = scan->position;
        const Py_ssize_t left = scan->end - position; /* at least 4 */
        const uint32_t word = load32(scan->data + position, swap);
        const uint32_t kind = scan->big ? word >> AIOTRACE_TIME_DELTA_BITS : word & AIOTRACE_TYPE_LEN_MASK;
        const uint32_t delta = scan->big ? word & AIOTRACE_TIME_DELTA_MAX : word >> AIOTRACE_TYPE_LEN_BITS;
        Py_ssize_t head = 4, length = (Py_ssize_t)kind * 4;

        if (kind == 0 || kind > AIOTRACE_TYPE_DATA_MAX) {
            if (kind == AIOTRACE_TYPE_PADDING && delta == 0)
                return ENDED;
            if (left < 8)
                return aiotrace_damaged(fault, position, "4 bytes where a record needs 8");
            const uint32_t second = load32(scan->data + position + 4, swap);
            const uint64_t time = delta + ((uint64_t)second << AIOTRACE_TIME_DELTA_BITS);
            if (kind == AIOTRACE_TYPE_TIME_EXTEND) {
                scan->time += time;
                scan->position += 8;
                continue;
            }
            if (kind == AIOTRACE_TYPE_TIME_STAMP) {
                scan->time = time | (scan->timestamp >> AIOTRACE_TIME_STAMP_BITS << AIOTRACE_TIME_STAMP_BITS);
                scan->position += 8;
                continue;
            }
            if (kind == AIOTRACE_TYPE_PADDING) {
                if (second < 4 || second & 3 || (uint64_t)second > (uint64_t)left - 4)
                    return aiotrace_damaged(fault, position, "padding of %" PRIu32 " bytes", second);
                scan->time += delta;
                scan->position += 4 + (Py_ssize_t)second;
                continue;
            }
            if (second <= 4)
                return aiotrace_damaged(fault, position, "a record of length %" PRIu32, second);
            head = 8;
            const uint64_t size = (uint64_t)((second - 1) >> 2) * 4;
            if (size > (uint64_t)left - 8)
                return aiotrace_damaged(fault, position, "a record of %" PRIu64 " bytes where %zd are left", size,
                                        left - 8);
            length = (Py_ssize_t)size;
        }
        if (length > left - head || length < AIOTRACE_RECORD_COMMON_SIZE)
            return aiotrace_damaged(fault, position, "a record of %zd bytes where %zd are left", length, left - head);
        const unsigned char *payload = scan->data + position + head;
        scan->time += delta;
        scan->position = position + head + length;
        record->time = (int64_t)(scan->time + scan->offset);
        record->start = position + head;
        record->length = length;
        record->id = load16(payload, swap);
        record->pid = (int32_t)load32(payload + 4, swap);
        return FOUND;
    }
    return ENDED;
}

/* --- chosen records --- */

typedef struct {
    PyObject_HEAD
    Py_buffer buffer;
    Scan scan;
    PyObject *ids;  /* NULL, or bytes: a bit for each id */
    PyObject *pids; /* NULL, or a frozenset */
    int64_t first;
    int64_t last;
} Walk;


/* Returns FOUND, ENDED, DAMAGED, or FAILED with an exception set. */
static inline int
walk_next(Walk *self, Record *record, Fault *fault)
{
    int status;
    while ((status = next_record(&self->scan, record, fault)) == FOUND) {
        if (self->ids != NULL) {
            const unsigned char *bits = (const unsigned char *)PyBytes_AS_STRING(self->ids);
            if (!(bits[record->id >> 3] >> (record->id & 7) & 1))
                continue;
        }
        if (record->time < self->first || record->time > self->last)
            continue;
        if (self->pids != NULL) {
            PyObject *pid = PyLong_FromLong(record->pid);
            const int contained = pid == NULL ? -1 : PySet_Contains(self->pids, pid);
            Py_XDECREF(pid);
            if (contained < 0)
                return FAILED;
            if (!contained)
                continue;
        }
        return FOUND;
    }
    return status;
}
/* The Walk that an object is, or NULL with an exception set. */
static inline Walk *
as_walk(const aiotrace_state *state, PyObject *object)
{
    if (Py_IS_TYPE(object, state->walk_type))
        return (Walk *)object;
    PyErr_Format(PyExc_TypeError, "a Walk is needed, not %.50s", Py_TYPE(object)->tp_name);
    return NULL;
}

/* --- fields --- */

/* How a field lies in its record: the kinds of _decode/columns.py. */
enum { NUMBER, TRUTH, DATA_LOC, REL_LOC, ARRAY, TAIL, FIELD_KINDS };

typedef struct {
    uint32_t offset; /* offset + size is at most the event's size, which the record is compared with */
    uint32_t size;
    unsigned char kind;
} Field;

/* Where the bytes of a field are, in the record: one that is no number. Returns 0 if they are not
 * in it. */
static inline int
find_place(const unsigned char *payload, Py_ssize_t length, const Field *field, int swap, uint32_t *at,
           uint32_t *count)
{
    switch (field->kind) {
    case ARRAY:
        *at = field->offset;
        *count = field->size;
        return 1;
    case TAIL:
        *at = field->offset;
        *count = length > (Py_ssize_t)field->offset ? (uint32_t)(length - (Py_ssize_t)field->offset) : 0;
        return 1;
    default:
        break;
    }
    const uint32_t location = load32(payload + field->offset, swap);
    *at = (location & 0xFFFF) + (field->kind == REL_LOC ? field->offset + 4 : 0);
    *count = location >> 16;
    return (uint64_t)*at + *count <= (uint64_t)length;
}

#endif
