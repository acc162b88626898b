/* Reading: the records of a page, as tuples, counts, columns and lines of text.
 *
 *     data --Walk--> record, record, ...      _records.py is its twin, and says what a record is
 *              |
 *              +---> tally()                  counts by event
 *              +---> ColumnPlan.decode()      _columns.py
 *              +---> Lines.format()           _lines.py
 *
 * The laws: every number that is read is compared with the end of the data before it is used, and nothing outside
 * [start, end) is read. Whoever takes records from a Walk stops in front of damage and keeps what came before; the
 * next one who asks is told (TraceFormatError). What Lines is not sure to print as the twin would, it lets the twin
 * print.
 *
 * This file knows no file, no header of a page and no print fmt.
 */
#include "aiotrace.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

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
} Cursor;

enum { FAILED = -2, DAMAGED = -1, ENDED = 0, FOUND = 1 };

static int __attribute__((format(printf, 3, 4), cold))
damaged(Fault *fault, Py_ssize_t offset, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(fault->message, sizeof fault->message, format, arguments);
    va_end(arguments);
    fault->offset = offset;
    return DAMAGED;
}

/* Returns FOUND, ENDED or DAMAGED. */
static inline int
next_record(Cursor *cursor, Record *record, Fault *fault)
{
    const int swap = cursor->swap;
    while (cursor->position < cursor->end) {
        const Py_ssize_t position = cursor->position;
        const Py_ssize_t left = cursor->end - position; /* at least 4 */
        const uint32_t word = load32(cursor->data + position, swap);
        const uint32_t kind = cursor->big ? word >> AIOTRACE_TIME_DELTA_BITS : word & AIOTRACE_TYPE_LEN_MASK;
        const uint32_t delta = cursor->big ? word & AIOTRACE_TIME_DELTA_MAX : word >> AIOTRACE_TYPE_LEN_BITS;
        Py_ssize_t head = 4, length = (Py_ssize_t)kind * 4;

        if (kind == 0 || kind > AIOTRACE_TYPE_DATA_MAX) {
            if (kind == AIOTRACE_TYPE_PADDING && delta == 0)
                return ENDED;
            if (left < 8)
                return damaged(fault, position, "4 bytes where a record needs 8");
            const uint32_t second = load32(cursor->data + position + 4, swap);
            const uint64_t time = delta + ((uint64_t)second << AIOTRACE_TIME_DELTA_BITS);
            if (kind == AIOTRACE_TYPE_TIME_EXTEND) {
                cursor->time += time;
                cursor->position += 8;
                continue;
            }
            if (kind == AIOTRACE_TYPE_TIME_STAMP) {
                cursor->time = time | (cursor->timestamp >> AIOTRACE_TIME_STAMP_BITS << AIOTRACE_TIME_STAMP_BITS);
                cursor->position += 8;
                continue;
            }
            if (kind == AIOTRACE_TYPE_PADDING) {
                if (second < 4 || second & 3 || (uint64_t)second > (uint64_t)left - 4)
                    return damaged(fault, position, "padding of %" PRIu32 " bytes", second);
                cursor->time += delta;
                cursor->position += 4 + (Py_ssize_t)second;
                continue;
            }
            if (second <= 4)
                return damaged(fault, position, "a record of length %" PRIu32, second);
            head = 8;
            const uint64_t size = (uint64_t)((second - 1) >> 2) * 4;
            if (size > (uint64_t)left - 8)
                return damaged(fault, position, "a record of %" PRIu64 " bytes where %zd are left", size, left - 8);
            length = (Py_ssize_t)size;
        }
        if (length > left - head || length < AIOTRACE_RECORD_COMMON_SIZE)
            return damaged(fault, position, "a record of %zd bytes where %zd are left", length, left - head);
        const unsigned char *payload = cursor->data + position + head;
        cursor->time += delta;
        cursor->position = position + head + length;
        record->time = (int64_t)(cursor->time + cursor->offset);
        record->start = position + head;
        record->length = length;
        record->id = load16(payload, swap);
        record->pid = (int32_t)load32(payload + 4, swap);
        return FOUND;
    }
    return ENDED;
}

/* --- Walk --- */

typedef struct {
    PyObject_HEAD
    Py_buffer buffer;
    Cursor cursor;
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
    while ((status = next_record(&self->cursor, record, fault)) == FOUND) {
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

static void
raise_damage(PyTypeObject *type, const Fault *fault)
{
    aiotrace_state *state = PyType_GetModuleState(type);
    PyObject *arguments = Py_BuildValue("(s)", fault->message);
    PyObject *keywords = Py_BuildValue("{s:n}", "offset", fault->offset);
    PyObject *error = NULL;
    if (arguments != NULL && keywords != NULL)
        error = PyObject_Call(state->TraceFormatError, arguments, keywords);
    if (error != NULL)
        PyErr_SetObject(state->TraceFormatError, error);
    Py_XDECREF(error);
    Py_XDECREF(keywords);
    Py_XDECREF(arguments);
}

PyDoc_STRVAR(walk_doc, "Walk(data, timestamp, start, end, offset, big, ids, pids, first, last)\n\n"
                       "An iterator over (timestamp, id, pid, start, length); see aiotrace._records.walk.");

static PyObject *
walk_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    PyObject *data, *ids, *pids;
    unsigned long long timestamp;
    long long offset, first, last;
    Py_ssize_t start, end;
    int big;
    if (keywords != NULL && PyDict_GET_SIZE(keywords)) {
        PyErr_SetString(PyExc_TypeError, "Walk takes no keywords");
        return NULL;
    }
    if (!PyArg_ParseTuple(arguments, "OKnnLpOOLL:Walk", &data, &timestamp, &start, &end, &offset, &big, &ids, &pids,
                          &first, &last))
        return NULL;
    if (ids != Py_None && (!PyBytes_Check(ids) || PyBytes_GET_SIZE(ids) != 65536 / 8)) {
        PyErr_SetString(PyExc_TypeError, "ids should be None or 8192 bytes");
        return NULL;
    }
    if (pids != Py_None && !PyFrozenSet_Check(pids)) {
        PyErr_SetString(PyExc_TypeError, "pids should be None or a frozenset");
        return NULL;
    }
    Walk *self = (Walk *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    if (PyObject_GetBuffer(data, &self->buffer, PyBUF_SIMPLE) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    if (start < 0 || start & 3 || end < start || end > self->buffer.len) {
        PyErr_Format(PyExc_ValueError, "records at %zd to %zd of %zd bytes", start, end, self->buffer.len);
        Py_DECREF(self);
        return NULL;
    }
    self->cursor = (Cursor){
        .data = self->buffer.buf,
        .position = start,
        .end = end & ~(Py_ssize_t)3,
        .timestamp = timestamp,
        .time = timestamp,
        .offset = (uint64_t)offset,
        .big = big,
        .swap = big != PY_BIG_ENDIAN,
    };
    self->ids = ids == Py_None ? NULL : Py_NewRef(ids);
    self->pids = pids == Py_None ? NULL : Py_NewRef(pids);
    self->first = first;
    self->last = last;
    return (PyObject *)self;
}

static void
walk_dealloc(Walk *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->buffer.obj != NULL)
        PyBuffer_Release(&self->buffer);
    Py_XDECREF(self->ids);
    Py_XDECREF(self->pids);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
walk_iternext(Walk *self)
{
    Record record;
    Fault fault;
    switch (walk_next(self, &record, &fault)) {
    case DAMAGED:
        raise_damage(Py_TYPE(self), &fault);
        return NULL;
    case FOUND:
        break;
    default: /* ENDED, or FAILED with its exception */
        return NULL;
    }
    PyObject *values[5] = {
        PyLong_FromLongLong(record.time), PyLong_FromLong(record.id),         PyLong_FromLong(record.pid),
        PyLong_FromSsize_t(record.start), PyLong_FromSsize_t(record.length),
    };
    PyObject *result = PyTuple_New(5);
    for (int i = 0; i < 5; i++)
        if (result == NULL || values[i] == NULL) {
            Py_CLEAR(result);
            Py_XDECREF(values[i]);
        } else {
            PyTuple_SET_ITEM(result, i, values[i]);
        }
    return result;
}

static PyType_Slot walk_slots[] = {
    {Py_tp_doc, (void *)walk_doc},
    {Py_tp_new, walk_new},
    {Py_tp_dealloc, walk_dealloc},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, walk_iternext},
    {0, NULL},
};

static PyType_Spec walk_spec = {
    .name = "aiotrace._c.Walk",
    .basicsize = sizeof(Walk),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = walk_slots,
};

static Walk *
as_walk(aiotrace_state *state, PyObject *object)
{
    if (Py_IS_TYPE(object, state->walk_type))
        return (Walk *)object;
    PyErr_Format(PyExc_TypeError, "a Walk is needed, not %.50s", Py_TYPE(object)->tp_name);
    return NULL;
}

/* --- tally --- */

PyDoc_STRVAR(tally_doc, "tally(walk, totals) -> (events, bytes, first, last); see aiotrace._records.tally.");

static PyObject *
tally(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "tally(walk, totals)");
        return NULL;
    }
    Walk *walk = as_walk(aiotrace_get_state(module), arguments[0]);
    Py_buffer buffer;
    if (walk == NULL || PyObject_GetBuffer(arguments[1], &buffer, PyBUF_WRITABLE) < 0)
        return NULL;
    if (buffer.len != 65536 * 16) {
        PyErr_Format(PyExc_ValueError, "totals has %zd bytes, not 2 * 65536 * 8", buffer.len);
        PyBuffer_Release(&buffer);
        return NULL;
    }
    Record record = {0};
    Fault fault;
    int status;
    uint64_t(*totals)[2] = buffer.buf;
    uint64_t events = 0, bytes = 0;
    int64_t first = 0, last = 0;
    while ((status = walk_next(walk, &record, &fault)) == FOUND) {
        if (events++ == 0)
            first = record.time;
        last = record.time;
        bytes += (uint64_t)record.length;
        totals[record.id][0]++;
        totals[record.id][1] += (uint64_t)record.length;
    }
    PyBuffer_Release(&buffer);
    if (status == FAILED)
        return NULL;
    return Py_BuildValue("KKLL", (unsigned long long)events, (unsigned long long)bytes, (long long)first,
                         (long long)last);
}

/* --- columns --- */

/* How a field becomes a column, or two: the kinds of _columns.py. */
enum { NUMBER, TRUTH, DATA_LOC, REL_LOC, ARRAY, TAIL, COLUMN_KINDS };

typedef struct {
    uint32_t offset; /* offset + size is at most the event's size, which the record is compared with */
    uint32_t size;
    unsigned char kind;
} ColumnField;

typedef struct {
    Py_ssize_t size;
    int has_places;
    Py_ssize_t fields_count;
    ColumnField *fields;
} ColumnEvent;

/* Constant once it is made, so that threads may share it. */
typedef struct {
    PyObject_HEAD
    uint16_t *index; /* by id: 0, or the event's number + 1 */
    Py_ssize_t events_count;
    ColumnEvent *events;
} ColumnPlan;

static void
column_plan_dealloc(ColumnPlan *self)
{
    PyTypeObject *type = Py_TYPE(self);
    for (Py_ssize_t i = 0; i < self->events_count; i++)
        PyMem_Free(self->events[i].fields);
    PyMem_Free(self->events);
    PyMem_RawFree(self->index);
    type->tp_free(self);
    Py_DECREF(type);
}

static int
column_field_parse(ColumnField *field, PyObject *item, Py_ssize_t event_size)
{
    unsigned int kind, offset, size;
    if (!PyTuple_Check(item) || !PyArg_ParseTuple(item, "III;a field is (kind, offset, size)", &kind, &offset, &size)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "a field is a tuple");
        return -1;
    }
    const int is_sized = kind == NUMBER ? size == 1 || size == 2 || size == 4 || size == 8
                         : kind == TRUTH                       ? size == 1
                         : kind == DATA_LOC || kind == REL_LOC ? size == 4
                                                               : kind < COLUMN_KINDS;
    if (!is_sized || (uint64_t)offset + size > (uint64_t)event_size) {
        PyErr_Format(PyExc_ValueError, "a field of kind %u at %u with %u bytes, of %zd", kind, offset, size,
                     event_size);
        return -1;
    }
    *field = (ColumnField){.offset = offset, .size = size, .kind = (unsigned char)kind};
    return 0;
}

static int
column_event_parse(ColumnPlan *self, PyObject *item)
{
    int id;
    Py_ssize_t size;
    PyObject *fields;
    if (!PyTuple_Check(item) || !PyArg_ParseTuple(item, "inO!", &id, &size, &PyTuple_Type, &fields)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "an event is a tuple");
        return -1;
    }
    if (id < 0 || id > UINT16_MAX || size < AIOTRACE_RECORD_COMMON_SIZE || size > UINT32_MAX / 2 ||
        self->index[id] != 0) {
        PyErr_Format(PyExc_ValueError, "event %d of %zd bytes", id, size);
        return -1;
    }
    ColumnEvent *event = &self->events[self->events_count];
    const Py_ssize_t count = PyTuple_GET_SIZE(fields);
    *event = (ColumnEvent){.size = size, .fields_count = count};
    event->fields = PyMem_New(ColumnField, count + 1);
    self->events_count++; /* from here on dealloc frees it */
    self->index[id] = (uint16_t)self->events_count;
    if (event->fields == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (column_field_parse(&event->fields[i], PyTuple_GET_ITEM(fields, i), size) < 0)
            return -1;
        event->has_places |= event->fields[i].kind == DATA_LOC || event->fields[i].kind == REL_LOC;
    }
    return 0;
}

PyDoc_STRVAR(column_plan_doc, "ColumnPlan(((id, size, ((kind, offset, size), ...)), ...)); see aiotrace._columns.");

static PyObject *
column_plan_new(PyTypeObject *type, PyObject *arguments, PyObject *Py_UNUSED(keywords))
{
    PyObject *events;
    if (!PyArg_ParseTuple(arguments, "O!:ColumnPlan", &PyTuple_Type, &events))
        return NULL;
    const Py_ssize_t count = PyTuple_GET_SIZE(events);
    if (count > 65535) {
        PyErr_Format(PyExc_ValueError, "%zd events", count);
        return NULL;
    }
    ColumnPlan *self = (ColumnPlan *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->index = PyMem_RawCalloc(65536, sizeof *self->index);
    self->events = PyMem_New(ColumnEvent, count + 1);
    if (self->index == NULL || self->events == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < count; i++)
        if (column_event_parse(self, PyTuple_GET_ITEM(events, i)) < 0) {
            Py_DECREF(self);
            return NULL;
        }
    return (PyObject *)self;
}

/* Where the bytes of a field are, in the record. */
static inline int
find_place(const unsigned char *payload, Py_ssize_t length, const ColumnField *field, int swap, uint32_t *at,
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

static int
check_places(const ColumnEvent *event, const unsigned char *data, const Record *record, int swap, Fault *fault)
{
    for (Py_ssize_t i = 0; i < event->fields_count; i++) {
        const ColumnField *field = &event->fields[i];
        uint32_t at, count;
        if (field->kind != DATA_LOC && field->kind != REL_LOC)
            continue;
        if (!find_place(data + record->start, record->length, field, swap, &at, &count))
            return damaged(fault, record->start, "a field lies at %" PRIu32 "..%" PRIu64 " of a record of %zd bytes",
                           at, (uint64_t)at + count, record->length);
    }
    return FOUND;
}

static PyObject *
new_column(Py_ssize_t count, Py_ssize_t size)
{
    return PyByteArray_FromStringAndSize(NULL, count * size);
}

#define COLUMN(type, object) ((type *)(void *)PyByteArray_AS_STRING(object))

/* The rows of one event on the page at hand, and what is common to all its columns. */
typedef struct {
    Py_ssize_t count;
    PyObject *row;
} Rows;

typedef struct {
    const unsigned char *data;
    const uint32_t *start;
    const uint32_t *length;
    int swap;
} Payloads;

/* One loop for each width, so that none asks for it in its middle. */
#define COPY_NUMBERS(type, expression)                                                                                \
    do {                                                                                                              \
        type *out = COLUMN(type, column);                                                                             \
        for (Py_ssize_t i = 0; i < rows->count; i++) {                                                                \
            const unsigned char *at = payloads->data + payloads->start[row[i]] + field->offset;                       \
            out[i] = (expression);                                                                                    \
        }                                                                                                             \
    } while (0)

static PyObject *
new_numbers(const ColumnField *field, const Rows *rows, const Payloads *payloads)
{
    const uint32_t *row = COLUMN(uint32_t, rows->row);
    const int swap = payloads->swap;
    PyObject *column = new_column(rows->count, field->size);
    if (column == NULL)
        return NULL;
    if (field->kind == TRUTH)
        COPY_NUMBERS(uint8_t, *at != 0);
    else if (field->size == 1)
        COPY_NUMBERS(uint8_t, *at);
    else if (field->size == 2)
        COPY_NUMBERS(uint16_t, load16(at, swap));
    else if (field->size == 4)
        COPY_NUMBERS(uint32_t, load32(at, swap));
    else
        COPY_NUMBERS(uint64_t, load64(at, swap));
    return column;
}

static PyObject *
new_places(const ColumnField *field, const Rows *rows, const Payloads *payloads)
{
    const uint32_t *row = COLUMN(uint32_t, rows->row);
    PyObject *offsets = new_column(rows->count, 4), *lengths = new_column(rows->count, 4);
    for (Py_ssize_t i = 0; offsets != NULL && lengths != NULL && i < rows->count; i++) {
        const uint32_t begin = payloads->start[row[i]];
        uint32_t at, count;
        if (!find_place(payloads->data + begin, payloads->length[row[i]], field, payloads->swap, &at, &count))
            at = count = 0; /* was checked, unless somebody writes on the page */
        COLUMN(uint32_t, offsets)[i] = begin + at;
        COLUMN(uint32_t, lengths)[i] = count;
    }
    PyObject *result = offsets == NULL || lengths == NULL ? NULL : PyTuple_Pack(2, offsets, lengths);
    Py_XDECREF(offsets);
    Py_XDECREF(lengths);
    return result;
}

/* (row, (column or (offsets, lengths), ...)) */
static PyObject *
new_event(const ColumnEvent *event, const Rows *rows, const Payloads *payloads)
{
    PyObject *fields = PyTuple_New(event->fields_count);
    for (Py_ssize_t i = 0; fields != NULL && i < event->fields_count; i++) {
        const ColumnField *field = &event->fields[i];
        PyObject *item = field->kind <= TRUTH ? new_numbers(field, rows, payloads) : new_places(field, rows, payloads);
        if (item == NULL)
            Py_CLEAR(fields);
        else
            PyTuple_SET_ITEM(fields, i, item);
    }
    return fields == NULL ? NULL : Py_BuildValue("ON", rows->row, fields);
}

/* What every record has: the columns of the page, with room for the most records that it can hold. */
enum { TIMESTAMP, ID, PID, START, LENGTH, PAGE_COLUMNS };
static const Py_ssize_t page_column_sizes[PAGE_COLUMNS] = {8, 2, 4, 4, 4};

/* Take the records; count those of each chosen event. Returns ENDED or DAMAGED. */
static int
take_records(const ColumnPlan *self, Walk *walk, PyObject **page, Rows *rows, Py_ssize_t *found, Fault *fault)
{
    int64_t *timestamps = COLUMN(int64_t, page[TIMESTAMP]);
    uint16_t *ids = COLUMN(uint16_t, page[ID]);
    int32_t *pids = COLUMN(int32_t, page[PID]);
    uint32_t *starts = COLUMN(uint32_t, page[START]), *lengths = COLUMN(uint32_t, page[LENGTH]);
    Cursor cursor = walk->cursor;
    Record record;
    Py_ssize_t count = 0;
    int status;
    while ((status = next_record(&cursor, &record, fault)) == FOUND) {
        const uint16_t number = self->index[record.id];
        if (number != 0) {
            const ColumnEvent *event = &self->events[number - 1];
            if (record.length < event->size)
                status = damaged(fault, record.start, "a record of %zd bytes, where its event needs %zd",
                                 record.length, event->size);
            else if (event->has_places)
                status = check_places(event, cursor.data, &record, cursor.swap, fault);
            if (status == DAMAGED)
                break;
            rows[number - 1].count++;
        }
        timestamps[count] = record.time;
        ids[count] = record.id;
        pids[count] = record.pid;
        starts[count] = (uint32_t)record.start;
        lengths[count] = (uint32_t)record.length;
        count++;
    }
    walk->cursor = cursor;
    *found = count;
    return status;
}

/* Which rows of the page are each chosen event's. */
static int
take_rows(const ColumnPlan *self, const uint16_t *ids, Py_ssize_t count, Rows *rows)
{
    for (Py_ssize_t i = 0; i < self->events_count; i++) {
        if ((rows[i].row = new_column(rows[i].count, 4)) == NULL)
            return -1;
        rows[i].count = 0;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        const uint16_t number = self->index[ids[i]];
        if (number != 0) {
            Rows *mine = &rows[number - 1];
            COLUMN(uint32_t, mine->row)[mine->count++] = (uint32_t)i;
        }
    }
    return 0;
}

PyDoc_STRVAR(column_plan_decode_doc,
             "decode(walk) -> (timestamp, id, pid, start, length, events, fault); see aiotrace._columns.");

static PyObject *
column_plan_decode(ColumnPlan *self, PyObject *argument)
{
    Walk *walk = as_walk(PyType_GetModuleState(Py_TYPE(self)), argument);
    if (walk == NULL)
        return NULL;
    if (walk->ids != NULL || walk->pids != NULL || walk->cursor.end > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "a Walk over everything, of less than 4 GiB, is needed");
        return NULL;
    }
    const Py_ssize_t most = (walk->cursor.end - walk->cursor.position) / (4 + AIOTRACE_RECORD_COMMON_SIZE);
    PyObject *page[PAGE_COLUMNS] = {NULL}, *events = NULL, *end = NULL, *result = NULL;
    Py_ssize_t count;
    Fault fault;
    Rows *rows = PyMem_Calloc((size_t)self->events_count + 1, sizeof *rows);
    if (rows == NULL) {
        PyErr_NoMemory();
        goto exit;
    }
    for (int i = 0; i < PAGE_COLUMNS; i++)
        if ((page[i] = new_column(most, page_column_sizes[i])) == NULL)
            goto exit;
    const int status = take_records(self, walk, page, rows, &count, &fault);
    if (take_rows(self, COLUMN(uint16_t, page[ID]), count, rows) < 0)
        goto exit;
    if ((events = PyTuple_New(self->events_count)) == NULL)
        goto exit;
    const Payloads payloads = {walk->cursor.data, COLUMN(uint32_t, page[START]), COLUMN(uint32_t, page[LENGTH]),
                               walk->cursor.swap};
    for (Py_ssize_t i = 0; i < self->events_count; i++) {
        PyObject *item = new_event(&self->events[i], &rows[i], &payloads);
        if (item == NULL)
            goto exit;
        PyTuple_SET_ITEM(events, i, item);
    }
    for (int i = 0; i < PAGE_COLUMNS; i++)
        if (PyByteArray_Resize(page[i], count * page_column_sizes[i]) < 0)
            goto exit;
    end = status == DAMAGED ? Py_BuildValue("sn", fault.message, fault.offset) : Py_NewRef(Py_None);
    if (end != NULL)
        result = PyTuple_Pack(7, page[TIMESTAMP], page[ID], page[PID], page[START], page[LENGTH], events, end);
exit:
    for (int i = 0; i < PAGE_COLUMNS; i++)
        Py_XDECREF(page[i]);
    for (Py_ssize_t i = 0; rows != NULL && i < self->events_count; i++)
        Py_XDECREF(rows[i].row);
    PyMem_Free(rows);
    Py_XDECREF(events);
    Py_XDECREF(end);
    return result;
}

static PyMethodDef column_plan_methods[] = {
    {"decode", (PyCFunction)column_plan_decode, METH_O, column_plan_decode_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot column_plan_slots[] = {
    {Py_tp_doc, (void *)column_plan_doc},
    {Py_tp_new, column_plan_new},
    {Py_tp_dealloc, column_plan_dealloc},
    {Py_tp_methods, column_plan_methods},
    {0, NULL},
};

static PyType_Spec column_plan_spec = {
    .name = "aiotrace._c.ColumnPlan",
    .basicsize = sizeof(ColumnPlan),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = column_plan_slots,
};

/* --- lines --- */

/* Where the value of a conversion comes from: the kinds of _lines.py. */
enum { LITERAL, INTEGER, BOOLEAN, FLOATING, TEXT_LOC, TEXT_REL, TEXT_ARRAY, TEXT_TAIL, SYMBOL, HEX_LOC, PART_KINDS };
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

typedef struct {
    PyObject *head; /* the padded name */
    Py_ssize_t size;
    Py_ssize_t parts_count; /* -1: the twin prints its fields */
    Part *parts;
} LineEvent;

typedef struct {
    char *data;
    size_t size;
    size_t capacity;
} Text;

typedef struct {
    PyObject_HEAD
    PyObject *define;    /* (id) -> (head, size, parts or None) */
    PyObject *name_task; /* (pid) -> bytes */
    PyObject *show_text; /* (str or bytes, precision) -> str, escaped */
    PyObject *show_rest; /* (id, payload) -> str */
    PyObject *symbols;   /* dict: key -> str */
    PyObject *tasks;     /* dict: pid -> bytes */
    PyObject *task;      /* the last one of them that was asked for, or NULL */
    int32_t task_pid;
    int c_strings;
    Text spare;        /* the memory of the last chunk, for the next */
    LineEvent **index; /* by id; made when it is first met, kept to the end: a callback may be running above us */
} Lines;

enum { TASKS_MAX = 65536, CHUNK_SIZE = 1 << 16, SPARE_MAX = 4 * CHUNK_SIZE };

static int
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

static int
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

static int
text_append_bytes(Text *text, PyObject *bytes)
{
    return text_append(text, PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes));
}

static int
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
static char *
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

static int
append_str(Text *text, PyObject *str, int width, int flags)
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

/* What is not printable ASCII is the twin's: `object` is what it is given. */
static int
append_shown(Lines *self, Text *text, const Part *part, PyObject *object)
{
    PyObject *shown = PyObject_CallFunction(self->show_text, "Oi", object, part->precision);
    if (shown == NULL || !PyUnicode_Check(shown)) {
        if (shown != NULL)
            PyErr_SetString(PyExc_TypeError, "show_text should return a str");
        Py_XDECREF(shown);
        return -1;
    }
    const int status = append_str(text, shown, part->width, part->flags);
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
append_text(Lines *self, Text *text, const Part *part, const unsigned char *data, Py_ssize_t size)
{
    const int is_loc = part->kind == TEXT_LOC || part->kind == TEXT_REL;
    if (is_loc && !self->c_strings) {
        size -= size > 0 && data[size - 1] == 0;
    } else {
        const unsigned char *nul = size > 0 ? memchr(data, 0, (size_t)size) : NULL;
        if (nul != NULL)
            size = nul - data;
    }
    if (is_plain(data, size))
        return append_plain(text, part, data, size);
    PyObject *bytes = PyBytes_FromStringAndSize((const char *)data, size);
    const int status = bytes == NULL ? -1 : append_shown(self, text, part, bytes);
    Py_XDECREF(bytes);
    return status;
}

static int
append_symbol(Lines *self, Text *text, const Part *part, uint64_t key)
{
    PyObject *number = PyLong_FromUnsignedLongLong(key);
    if (number == NULL)
        return -1;
    PyObject *name = PyDict_GetItemWithError(self->symbols, number);
    Py_DECREF(number);
    if (name == NULL && PyErr_Occurred())
        return -1;
    if (name != NULL && PyUnicode_Check(name)) {
        if (PyUnicode_IS_ASCII(name) && is_plain(PyUnicode_1BYTE_DATA(name), PyUnicode_GET_LENGTH(name)))
            return append_plain(text, part, PyUnicode_1BYTE_DATA(name), PyUnicode_GET_LENGTH(name));
        Py_INCREF(name);
        const int status = append_shown(self, text, part, name);
        Py_DECREF(name);
        return status;
    }
    Part plain = *part; /* an address is never cut */
    plain.precision = -1;
    if (key == 0)
        return append_plain(text, &plain, (const unsigned char *)"(null)", 6);
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

/* Returns FOUND; ENDED if the twin should print this record's fields; FAILED. */
static int
append_part(Lines *self, Text *text, const Part *part, const unsigned char *payload, Py_ssize_t length, int swap)
{
    ColumnField place = {.offset = part->offset, .size = part->size};
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
        return append_symbol(self, text, part,
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
    return append_text(self, text, part, payload + at, count) < 0 ? FAILED : FOUND;
}

/* Returns FOUND, ENDED or FAILED, as append_part. */
static int
append_fields(Lines *self, Text *text, const LineEvent *event, const unsigned char *payload, Py_ssize_t length,
              int swap)
{
    if (event->parts_count < 0 || length < event->size)
        return ENDED;
    for (Py_ssize_t i = 0; i < event->parts_count; i++) {
        const int status = append_part(self, text, &event->parts[i], payload, length, swap);
        if (status != FOUND)
            return status;
    }
    return FOUND;
}

static int
append_rest(Lines *self, Text *text, const Record *record, const unsigned char *payload)
{
    PyObject *shown = PyObject_CallFunction(self->show_rest, "iy#", (int)record->id, (const char *)payload,
                                            record->length);
    if (shown == NULL || !PyUnicode_Check(shown)) {
        if (shown != NULL)
            PyErr_SetString(PyExc_TypeError, "show_rest should return a str");
        Py_XDECREF(shown);
        return -1;
    }
    const int status = append_str(text, shown, 0, 0);
    Py_DECREF(shown);
    return status;
}

/* Seconds and microseconds, rounded, as trace-cmd shows a time; at most TIME_SIZE bytes, for which there is room. */
enum { TIME_SIZE = 32 };

static void
put_time(Text *text, int64_t time)
{
    /* In microseconds first, so that neither the rounding nor a negative time can overflow. */
    int64_t microseconds = time / 1000, rest = time % 1000;
    if (rest < 0) {
        rest += 1000;
        microseconds--;
    }
    microseconds += rest >= 500;
    int64_t seconds = microseconds / 1000000, fraction = microseconds % 1000000;
    if (fraction < 0) {
        fraction += 1000000;
        seconds--;
    }
    char buffer[32], *end = buffer + sizeof buffer;
    for (int i = 0; i < 6; i++) {
        *--end = (char)('0' + fraction % 10);
        fraction /= 10;
    }
    *--end = '.';
    char *digits = write_digits(end, seconds < 0 ? -(uint64_t)seconds : (uint64_t)seconds, 'd');
    if (seconds < 0)
        *--digits = '-';
    while (end - digits < 5)
        *--digits = ' ';
    text_put(text, digits, (size_t)(buffer + sizeof buffer - digits));
}

/* Returns a new reference to `            name-pid  `. */
static PyObject *
find_task(Lines *self, int32_t pid)
{
    if (self->task != NULL && self->task_pid == pid)
        return Py_NewRef(self->task);
    PyObject *key = PyLong_FromLong(pid);
    if (key == NULL)
        return NULL;
    PyObject *task = PyDict_GetItemWithError(self->tasks, key);
    if (task != NULL) {
        Py_INCREF(task);
    } else if (!PyErr_Occurred()) {
        task = PyObject_CallOneArg(self->name_task, key);
        if (task != NULL && !PyBytes_Check(task)) {
            PyErr_SetString(PyExc_TypeError, "name_task should return bytes");
            Py_CLEAR(task);
        }
        if (PyDict_GET_SIZE(self->tasks) >= TASKS_MAX)
            PyDict_Clear(self->tasks);
        if (task != NULL && PyDict_SetItem(self->tasks, key, task) < 0)
            Py_CLEAR(task);
    }
    Py_DECREF(key);
    if (task != NULL) {
        Py_XSETREF(self->task, Py_NewRef(task));
        self->task_pid = pid;
    }
    return task;
}

static void
line_event_free(LineEvent *event)
{
    for (Py_ssize_t i = 0; i < event->parts_count; i++)
        Py_XDECREF(event->parts[i].literal);
    PyMem_Free(event->parts);
    Py_XDECREF(event->head);
    PyMem_Free(event);
}

static int
part_parse(Part *part, PyObject *item, Py_ssize_t event_size)
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

static LineEvent *
line_event_new(PyObject *definition)
{
    PyObject *head, *parts;
    Py_ssize_t size;
    if (!PyTuple_Check(definition) || !PyArg_ParseTuple(definition, "SnO", &head, &size, &parts)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "define should return a tuple");
        return NULL;
    }
    if (parts != Py_None && !PyTuple_Check(parts)) {
        PyErr_SetString(PyExc_TypeError, "parts should be None or a tuple");
        return NULL;
    }
    LineEvent *event = PyMem_Calloc(1, sizeof *event);
    if (event == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    event->head = Py_NewRef(head);
    event->size = size;
    event->parts_count = -1;
    if (parts == Py_None)
        return event;
    event->parts_count = 0;
    event->parts = PyMem_New(Part, PyTuple_GET_SIZE(parts) + 1);
    if (event->parts == NULL) {
        line_event_free(event);
        PyErr_NoMemory();
        return NULL;
    }
    for (; event->parts_count < PyTuple_GET_SIZE(parts); event->parts_count++)
        if (part_parse(&event->parts[event->parts_count], PyTuple_GET_ITEM(parts, event->parts_count), size) < 0) {
            line_event_free(event);
            return NULL;
        }
    return event;
}

static const LineEvent *
find_line_event(Lines *self, uint16_t id)
{
    if (self->index[id] != NULL)
        return self->index[id];
    PyObject *definition = PyObject_CallFunction(self->define, "i", (int)id);
    LineEvent *event = definition == NULL ? NULL : line_event_new(definition);
    Py_XDECREF(definition);
    if (event != NULL && self->index[id] != NULL) { /* the callback came here too */
        line_event_free(event);
        return self->index[id];
    }
    return self->index[id] = event;
}

static int
append_line(Lines *self, Text *text, const Record *record, PyObject *cpu, const unsigned char *payload, int swap)
{
    const LineEvent *event = find_line_event(self, record->id);
    PyObject *task = event == NULL ? NULL : find_task(self, record->pid);
    if (task == NULL)
        return -1;
    PyObject *const head[] = {task, cpu, event->head};
    size_t room = TIME_SIZE + 2;
    for (int i = 0; i < 3; i++)
        room += (size_t)PyBytes_GET_SIZE(head[i]);
    if (text_reserve(text, room) < 0) {
        Py_DECREF(task);
        return -1;
    }
    text_put(text, PyBytes_AS_STRING(task), (size_t)PyBytes_GET_SIZE(task));
    text_put(text, PyBytes_AS_STRING(cpu), (size_t)PyBytes_GET_SIZE(cpu));
    put_time(text, record->time);
    text_put(text, ": ", 2);
    text_put(text, PyBytes_AS_STRING(event->head), (size_t)PyBytes_GET_SIZE(event->head));
    Py_DECREF(task);
    const size_t mark = text->size;
    int status = append_fields(self, text, event, payload, record->length, swap);
    if (status == ENDED) {
        text->size = mark;
        status = append_rest(self, text, record, payload) < 0 ? FAILED : FOUND;
    }
    return status == FAILED ? -1 : text_append(text, "\n", 1);
}

PyDoc_STRVAR(lines_format_doc, "format(walk, cpu) -> (text, timestamps, ends, in_order); see aiotrace._lines.");

static PyObject *
lines_format(Lines *self, PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 2 || !PyBytes_Check(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "format(walk, cpu: bytes)");
        return NULL;
    }
    Walk *walk = as_walk(PyType_GetModuleState(Py_TYPE(self)), arguments[0]);
    if (walk == NULL)
        return NULL;
    Text text = self->spare, timestamps = {0}, ends = {0};
    PyObject *result = NULL;
    self->spare = (Text){0}; /* a callback may come here too */
    text.size = 0;
    Record record;
    Fault fault;
    int status = ENDED, in_order = 1;
    int64_t before = INT64_MIN;
    while (text.size < CHUNK_SIZE && (status = walk_next(walk, &record, &fault)) == FOUND) {
        if (append_line(self, &text, &record, arguments[1], walk->cursor.data + record.start, walk->cursor.swap) < 0)
            goto exit;
        const uint64_t end = text.size;
        in_order &= before <= record.time;
        before = record.time;
        if (text_append(&timestamps, (const char *)&record.time, sizeof record.time) < 0 ||
            text_append(&ends, (const char *)&end, sizeof end) < 0)
            goto exit;
    }
    if (status == FAILED)
        goto exit;
    if (status == DAMAGED && text.size == 0) {
        raise_damage(Py_TYPE(self), &fault);
        goto exit;
    }
    result = Py_BuildValue("y#NNO", text.data == NULL ? "" : text.data, (Py_ssize_t)text.size,
                           PyByteArray_FromStringAndSize(timestamps.data, (Py_ssize_t)timestamps.size),
                           PyByteArray_FromStringAndSize(ends.data, (Py_ssize_t)ends.size),
                           in_order ? Py_True : Py_False);
exit:
    PyMem_Free(self->spare.data);
    self->spare = text;
    if (text.capacity > SPARE_MAX) {
        PyMem_Free(text.data);
        self->spare = (Text){0};
    }
    PyMem_Free(timestamps.data);
    PyMem_Free(ends.data);
    return result;
}

PyDoc_STRVAR(lines_doc, "Lines(define, name_task, show_text, show_rest, symbols, c_strings); see aiotrace._lines.");

static PyObject *
lines_new(PyTypeObject *type, PyObject *arguments, PyObject *Py_UNUSED(keywords))
{
    PyObject *define, *name_task, *show_text, *show_rest, *symbols;
    int c_strings;
    if (!PyArg_ParseTuple(arguments, "OOOOO!p:Lines", &define, &name_task, &show_text, &show_rest, &PyDict_Type,
                          &symbols, &c_strings))
        return NULL;
    Lines *self = (Lines *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->define = Py_NewRef(define);
    self->name_task = Py_NewRef(name_task);
    self->show_text = Py_NewRef(show_text);
    self->show_rest = Py_NewRef(show_rest);
    self->symbols = Py_NewRef(symbols);
    self->c_strings = c_strings;
    self->tasks = PyDict_New();
    self->index = PyMem_RawCalloc(65536, sizeof *self->index);
    if (self->tasks == NULL || self->index == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static int
lines_traverse(Lines *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->define);
    Py_VISIT(self->name_task);
    Py_VISIT(self->show_text);
    Py_VISIT(self->show_rest);
    Py_VISIT(self->symbols);
    Py_VISIT(self->tasks);
    Py_VISIT(self->task);
    return 0;
}

static int
lines_clear(Lines *self)
{
    Py_CLEAR(self->define);
    Py_CLEAR(self->name_task);
    Py_CLEAR(self->show_text);
    Py_CLEAR(self->show_rest);
    Py_CLEAR(self->symbols);
    Py_CLEAR(self->tasks);
    Py_CLEAR(self->task);
    return 0;
}

static void
lines_dealloc(Lines *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    lines_clear(self);
    for (int id = 0; self->index != NULL && id < 65536; id++)
        if (self->index[id] != NULL)
            line_event_free(self->index[id]);
    PyMem_RawFree(self->index);
    PyMem_Free(self->spare.data);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef lines_methods[] = {
    {"format", (PyCFunction)(void (*)(void))lines_format, METH_FASTCALL, lines_format_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot lines_slots[] = {
    {Py_tp_doc, (void *)lines_doc},         {Py_tp_new, lines_new},
    {Py_tp_traverse, lines_traverse},       {Py_tp_clear, lines_clear},
    {Py_tp_dealloc, lines_dealloc},         {Py_tp_methods, lines_methods},
    {0, NULL},
};

static PyType_Spec lines_spec = {
    .name = "aiotrace._c.Lines",
    .basicsize = sizeof(Lines),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = lines_slots,
};

/* --- module --- */

static PyMethodDef functions[] = {
    {"tally", (PyCFunction)(void (*)(void))tally, METH_FASTCALL, tally_doc},
    {NULL, NULL, 0, NULL},
};

static int
add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **kept)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (type == NULL)
        return -1;
    const int status = PyModule_AddType(module, (PyTypeObject *)type);
    if (kept != NULL && status == 0)
        *kept = (PyTypeObject *)type;
    else
        Py_DECREF(type);
    return status;
}

int
aiotrace_decode_exec(PyObject *module)
{
    aiotrace_state *state = aiotrace_get_state(module);
    if (add_type(module, &walk_spec, &state->walk_type) < 0 || add_type(module, &column_plan_spec, NULL) < 0 ||
        add_type(module, &lines_spec, NULL) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
