/* A page as columns: an array for each thing that its records have. The same as _decode/columns.py.
 *
 *     Walk --take_records--> timestamp, id, pid, start, length     a row for each record
 *            --take_rows---> for each chosen event: which rows are its own
 *            --new_event---> and an array for each of its fields; of strings and the like, where they lie
 *
 * Invariants: damage ends the page, and what came before it is kept. A plan is constant, so that
 * threads may share it.
 */
#include "decode/walk.h"

typedef struct {
    Py_ssize_t size;
    int has_places;
    Py_ssize_t fields_count;
    Field *fields;
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
column_field_parse(Field *field, PyObject *item, Py_ssize_t event_size)
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
                                                               : kind < FIELD_KINDS;
    if (!is_sized || (uint64_t)offset + size > (uint64_t)event_size) {
        PyErr_Format(PyExc_ValueError, "a field of kind %u at %u with %u bytes, of %zd", kind, offset, size,
                     event_size);
        return -1;
    }
    *field = (Field){.offset = offset, .size = size, .kind = (unsigned char)kind};
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
    event->fields = PyMem_New(Field, count + 1);
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

PyDoc_STRVAR(column_plan_doc, "ColumnPlan(((id, size, ((kind, offset, size), ...)), ...)); see aiotrace._decode.columns.");

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

static int
check_places(const ColumnEvent *event, const unsigned char *data, const Record *record, int swap, Fault *fault)
{
    for (Py_ssize_t i = 0; i < event->fields_count; i++) {
        const Field *field = &event->fields[i];
        uint32_t at, count;
        if (field->kind != DATA_LOC && field->kind != REL_LOC)
            continue;
        if (!find_place(data + record->start, record->length, field, swap, &at, &count))
            return aiotrace_damaged(fault, record->start,
                                    "a field lies at %" PRIu32 "..%" PRIu64 " of a record of %zd bytes", at,
                                    (uint64_t)at + count, record->length);
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
new_numbers(const Field *field, const Rows *rows, const Payloads *payloads)
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
new_places(const Field *field, const Rows *rows, const Payloads *payloads)
{
    const uint32_t *row = COLUMN(uint32_t, rows->row);
    PyObject *offsets = new_column(rows->count, 4), *lengths = new_column(rows->count, 4);
    for (Py_ssize_t i = 0; offsets != NULL && lengths != NULL && i < rows->count; i++) {
        const uint32_t begin = payloads->start[row[i]];
        uint32_t at, count;
        if (!find_place(payloads->data + begin, payloads->length[row[i]], field, payloads->swap, &at, &count))
            at = count = 0; /* was checked, unless the page is being written */
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
        const Field *field = &event->fields[i];
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
    Scan scan = walk->scan;
    Record record = {0};
    Py_ssize_t count = 0;
    int status;
    while ((status = next_record(&scan, &record, fault)) == FOUND) {
        const uint16_t number = self->index[record.id];
        if (number != 0) {
            const ColumnEvent *event = &self->events[number - 1];
            if (record.length < event->size)
                status = aiotrace_damaged(fault, record.start, "a record of %zd bytes, where its event needs %zd",
                                          record.length, event->size);
            else if (event->has_places)
                status = check_places(event, scan.data, &record, scan.swap, fault);
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
    walk->scan = scan;
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
             "decode(walk) -> (timestamp, id, pid, start, length, events, fault); see aiotrace._decode.columns.");

static PyObject *
column_plan_decode(ColumnPlan *self, PyObject *argument)
{
    Walk *walk = as_walk(PyType_GetModuleState(Py_TYPE(self)), argument);
    if (walk == NULL)
        return NULL;
    if (walk->ids != NULL || walk->pids != NULL || walk->scan.end > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "a Walk over everything, of less than 4 GiB, is needed");
        return NULL;
    }
    const Py_ssize_t most = (walk->scan.end - walk->scan.position) / (4 + AIOTRACE_RECORD_COMMON_SIZE);
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
    const Payloads payloads = {walk->scan.data, COLUMN(uint32_t, page[START]), COLUMN(uint32_t, page[LENGTH]),
                               walk->scan.swap};
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

int
aiotrace_columns_exec(PyObject *module)
{
    PyTypeObject *type;
    if (aiotrace_add_type(module, &column_plan_spec, &type, "ColumnPlan") < 0)
        return -1;
    Py_DECREF(type);
    return 0;
}
