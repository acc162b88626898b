/* What runs per event: the same as _events/event.py's PythonEvent.__call__, which is the
 * specification.
 *
 *   event(200, "/index") -> gate -> lease of this thread -> measure -> convert and store in place -> commit
 *                             |          |                    |                |
 *                             none open  stale                does not fit,    not an exact int, float, str ...
 *                             (return)   +----- fall back to the Python event's call, from the beginning ----+
 *
 * Invariants:
 * - The fast path runs no Python code, allocates nothing and takes no lock. Only exact, plain
 *   values are converted here (convert.h); whatever could run foreign code falls back as a whole,
 *   so nothing is half done when Python runs.
 * - One step under the GIL: room is checked, the record stored, commit advanced last
 *   (ring/cursor.h).
 *
 * Free-threaded builds are refused, because of the second invariant.
 */

#include "events/event.h"

#include "events/convert.h"
#include "ring/cursor.h"

#include <stddef.h>
#include <structmember.h>

#ifdef Py_GIL_DISABLED
#error "aiotrace._c needs the GIL: a free-threaded Python uses the pure-Python implementation"
#endif

#define PAGE_OVERHEAD 40 /* see _ring/writer.py's payload_max */

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    uint64_t plain_epoch; /* `mode_epoch` if the mode is MODE_ALL, else 0, which no epoch is */
    /* `fields_count` if there are numbers alone and no long record: see `record_short`; or -1 */
    Py_ssize_t short_count;
    uint32_t id; /* 16 bits: with the flags and the count after it as a record begins */
    uint16_t fixed_size;
    uint16_t fields_count;
    uint8_t wide_count; /* fields, if they are one to three of eight bytes each and nothing else; or 0 */
    char has_dynamic;
    char has_gaps; /* bytes between or after fields, to be zeroed */
    Field fields[FIELDS_MAX];
    PyObject *names;   /* tuple of interned str */
    PyObject *symbols; /* dict: text -> key */
    PyObject *python;    /* the Python event: for what C does not handle, and everything else about it */
    PyObject *emit;    /* created when first asked for */
    uint64_t mode_epoch;
    int mode;
} Event;

/* What the open recordings make of an event, as of mode_epoch; `_events/event.PythonEvent` decides. */
enum { MODE_ALL = 0, MODE_SOME = 1, MODE_OFF = 2 };

/* Written once, at import. */
static PyTypeObject *event_type;
static PyObject *write_name; /* "write" */

/* Bytes of the payload, a multiple of 4; 0: fall back to Python. Runs no Python code. */
static uint32_t
measure(Event *self, PyObject *const *args, Measures *measures)
{
    uint64_t size = self->fixed_size, dynamic = 0;
    for (int i = 0; i < self->fields_count; i++) {
        PyObject *value = args[i];
        switch (self->fields[i].code) {
        case 'S':
            if (!PyUnicode_CheckExact(value) || PyUnicode_GET_LENGTH(value) > DYNAMIC_MAX)
                return 0;
            measures->size[i] = (uint32_t)text_size(value) + 1;
            dynamic += measures->size[i];
            break;
        case 'Y':
            if (!PyBytes_CheckExact(value) || PyBytes_GET_SIZE(value) > DYNAMIC_MAX)
                return 0;
            measures->size[i] = (uint32_t)PyBytes_GET_SIZE(value);
            dynamic += measures->size[i];
            break;
        case 'K': {
            if (!PyUnicode_CheckExact(value))
                return 0;
            PyObject *key = PyDict_GetItemWithError(self->symbols, value);
            if (key == NULL) {
                PyErr_Clear();
                return 0; /* not interned yet */
            }
            measures->key[i] = PyLong_AsUnsignedLongLong(key);
            break;
        }
        default:
            break;
        }
    }
    uint32_t room = DYNAMIC_MAX - self->fixed_size;
    if (dynamic > ((room < DYNAMIC_MAX - 8 ? room : DYNAMIC_MAX - 8) & ~3u))
        return 0; /* it has to be cut: _schema knows how */
    size += dynamic;
    return (uint32_t)((size + 3) & ~(uint64_t)3);
}

/* Convert all values and store them at `payload`. Returns 0 if one does not fit: then nothing was
 * committed. */
static inline __attribute__((always_inline)) int
store_all(Event *self, char *payload, int32_t pid, PyObject *const *args, const Measures *measures, uint32_t size)
{
    if (self->has_gaps)
        memset(payload + 8, 0, self->fixed_size - 8);
    uint32_t common = self->id;
    memcpy(payload, &common, 4);
    memcpy(payload + 4, &pid, 4);
    uint32_t dynamic = self->fixed_size;
    for (int i = 0; i < self->fields_count; i++) {
        const Field *field = &self->fields[i];
        char *place = payload + field->offset;
        if (field->code == 'S' || field->code == 'Y') {
            uint32_t length = measures->size[i];
            uint32_t location = dynamic | length << 16;
            memcpy(place, &location, 4);
            if (field->code == 'S') {
                put_text(payload + dynamic, args[i], length - 1);
                payload[dynamic + length - 1] = 0;
            }
            else {
                memcpy(payload + dynamic, PyBytes_AS_STRING(args[i]), length);
            }
            dynamic += length;
        }
        else if (field->code == 'K') {
            memcpy(place, &measures->key[i], 8);
        }
        else if (unlikely(!store_number(place, field, args[i]))) {
            return 0;
        }
    }
    if (self->has_dynamic)
        memset(payload + dynamic, 0, size - dynamic);
    return 1;
}

/* Put keyword arguments into the order of the fields. Returns 0 if the Python event must raise an
 * error. */
static int
bind(Event *self, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords, PyObject **bound)
{
    Py_ssize_t nkeywords = PyTuple_GET_SIZE(keywords);
    if (nargs + nkeywords != self->fields_count)
        return 0;
    for (Py_ssize_t i = 0; i < nargs; i++)
        bound[i] = args[i];
    for (Py_ssize_t i = nargs; i < self->fields_count; i++) {
        PyObject *name = PyTuple_GET_ITEM(self->names, i);
        Py_ssize_t k = i - nargs; /* mostly they come in order */
        if (PyTuple_GET_ITEM(keywords, k) != name) {
            for (k = 0; k < nkeywords && PyTuple_GET_ITEM(keywords, k) != name; k++)
                ;
            if (k == nkeywords)
                return 0;
        }
        bound[i] = args[nargs + k];
    }
    return 1;
}

/* The page is full: give the writer the whole payload; it turns the page. Returns 0, without
 * effect, if the Python event must handle it (the values do not convert, or have to be cut), -1
 * with what a signal handler raised. */
static __attribute__((noinline, cold)) int
write_whole(Event *self, Lease *lease, PyObject *const *args, const Measures *measures, uint32_t size)
{
    Cursor *writer = lease->cursors[0];
    if (writer->at.page_size < size + PAGE_OVERHEAD)
        return 0;
    PyObject *payload = PyBytes_FromStringAndSize(NULL, size);
    if (payload == NULL || !store_all(self, PyBytes_AS_STRING(payload), lease->pid, args, measures, size)) {
        PyErr_Clear();
        Py_XDECREF(payload);
        return 0;
    }
    Py_INCREF(writer); /* the lease may end in there */
    PyObject *done = PyObject_CallMethodOneArg((PyObject *)writer, write_name, payload);
    Py_DECREF(writer);
    Py_DECREF(payload);
    Py_XDECREF(done);
    return done == NULL ? -1 : 1;
}

/* Write the event for every writer of the thread. Returns 1 if written, 0 (nothing done) if the
 * Python event must handle it, -1 with an exception set. */
static __attribute__((noinline)) int
record(Event *self, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords)
{
    Lease *lease = aiotrace_lease;
    PyObject *bound[FIELDS_MAX];
    Measures measures;
    if (unlikely(self->mode_epoch != aiotrace_epoch))
        return 0;
    if (unlikely(self->mode != MODE_ALL))
        return self->mode == MODE_OFF;
    if (unlikely(lease == NULL || lease->epoch != aiotrace_epoch))
        return 0;
    if (keywords != NULL && PyTuple_GET_SIZE(keywords)) {
        if (!bind(self, args, nargs, keywords, bound))
            return 0;
        args = bound;
    }
    else if (unlikely(nargs != self->fields_count)) {
        return 0;
    }
    uint32_t size = self->fixed_size;
    if (self->has_dynamic && (size = measure(self, args, &measures)) == 0)
        return 0;
    Py_ssize_t count = Py_SIZE(lease);
    if (unlikely(count != 1)) {
        for (Py_ssize_t i = 0; i < count; i++) {
            Cursor *cursor = lease->cursors[i];
            if (!has_room(&cursor->at, size) || cursor->clock_kind == CLOCK_PYTHON)
                return 0; /* before the first is written */
        }
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        Cursor *cursor = lease->cursors[i];
        uint32_t end;
        if (unlikely(cursor->clock_kind == CLOCK_PYTHON))
            return 0;
        uint64_t now = now_ns(cursor);
        char *payload = reserve(&cursor->at, &now, size, &end);
        if (unlikely(payload == NULL))
            return count == 1 ? write_whole(self, lease, args, &measures, size) : 0;
        if (unlikely(!store_all(self, payload, lease->pid, args, &measures, size)))
            return 0; /* the first one fails as the others would: the values are the same */
        commit(&cursor->at, now, end);
    }
    return 1;
}

/* The rest of `record_short` for narrower fields and longer values. `payload`: of the record that
 * was begun. */
static __attribute__((noinline)) int
record_numbers(Event *self, Lease *lease, uint64_t now, char *payload, PyObject *const *args)
{
    RecordCursor *at = &lease->only->at;
    uint32_t size = self->fixed_size;
    if (self->has_gaps)
        memset(payload + 8, 0, size - 8);
    for (const Field *field = self->fields, *stop = field + self->fields_count; field != stop; field++, args++) {
        if (unlikely(!store_number(payload + field->offset, field, *args)))
            return 0;
    }
    memcpy(payload, &self->id, 4);
    memcpy(payload + 4, &lease->pid, 4);
    commit(at, now, at->end + 4 + size);
    return 1;
}

/* Store a value of eight bytes that takes no call, a small int or a float; or else leave it to
 * `record_numbers`. */
#define STORE_WIDE(N)                                                                              \
    {                                                                                              \
        PyObject *value = args[N];                                                                 \
        char *place = payload + 8 + 8 * N;                                                         \
        if (self->fields[N].code == 'd') {                                                         \
            if (unlikely(!PyFloat_CheckExact(value)))                                              \
                return record_numbers(self, lease, now, payload, args);                            \
            memcpy(place, &((PyFloatObject *)value)->ob_fval, 8);                                  \
        }                                                                                          \
        else {                                                                                     \
            int64_t number;                                                                        \
            if (unlikely(!PyLong_CheckExact(value) || !as_compact(value, &number) ||               \
                         number < self->fields[N].low))                                            \
                return record_numbers(self, lease, now, payload, args);                            \
            memcpy(place, &number, 8);                                                             \
        }                                                                                          \
    }

/* The same for the common case: numbers alone, in order, for one recording. Returns 0, without
 * effect, if `record` must handle it. With no recording open, no lease and no event is of the
 * present epoch. */
static inline __attribute__((always_inline)) int
record_short(Event *self, Lease *lease, PyObject *const *args)
{
    Cursor *cursor = lease->only;
    uint64_t now = now_ns(cursor);
    uint32_t size = self->fixed_size;
    char *payload = begin_record(&cursor->at, now, size);
    if (unlikely(payload == NULL))
        return 0;
    uint8_t wide = self->wide_count;
    if (wide == 0)
        return record_numbers(self, lease, now, payload, args);
    if (wide >= 3)
        STORE_WIDE(2)
    if (wide >= 2)
        STORE_WIDE(1)
    STORE_WIDE(0)
    memcpy(payload, &self->id, 4);
    memcpy(payload + 4, &lease->pid, 4);
    commit(&cursor->at, now, cursor->at.end + 4 + size);
    return 1;
}

static inline __attribute__((always_inline)) int
is_short(Event *self, Lease *lease, Py_ssize_t nargs, PyObject *keywords)
{
    return likely(self->plain_epoch == aiotrace_epoch && lease != NULL && lease->epoch == aiotrace_epoch &&
                  lease->only != NULL && nargs == self->short_count && keywords == NULL);
}

int
aiotrace_event_check(PyObject *event)
{
    return PyObject_TypeCheck(event, event_type);
}

int
aiotrace_event_id(PyObject *event)
{
    return ((Event *)event)->id;
}

const uint64_t *
aiotrace_event_plain_epoch(PyObject *event)
{
    return &((Event *)event)->plain_epoch;
}

int
aiotrace_event_is_off(PyObject *event)
{
    Event *self = (Event *)event;
    return aiotrace_gate == 0 || (self->mode_epoch == aiotrace_epoch && self->mode == MODE_OFF);
}

/* A record of fixed size whose fields the caller has laid out; 0: the page has no room for it. */
static inline int
write_fields(Event *self, Lease *lease, uint64_t now, const void *fields)
{
    Cursor *cursor = lease->only;
    uint32_t end, common = self->id, size = self->fixed_size;
    char *payload = reserve(&cursor->at, &now, size, &end);
    if (unlikely(payload == NULL))
        return 0;
    memcpy(payload, &common, 4);
    memcpy(payload + 4, &lease->pid, 4);
    memcpy(payload + 8, fields, size - 8);
    commit(&cursor->at, now, end);
    return 1;
}

int
aiotrace_event_numbers(PyObject *event, uint64_t now, const void *fields)
{
    Event *self = (Event *)event;
    Lease *lease = aiotrace_lease;
    if (aiotrace_event_is_off(event))
        return 1;
    if (unlikely(self->plain_epoch != aiotrace_epoch || lease == NULL || lease->epoch != aiotrace_epoch ||
                 lease->only == NULL))
        return 0;
    if (now < lease->only->at.last)
        now = now_ns(lease->only);
    return write_fields(self, lease, now, fields);
}

uint64_t
aiotrace_event_now(void)
{
    Lease *lease = aiotrace_lease;
    if (likely(lease != NULL && lease->epoch == aiotrace_epoch && lease->only != NULL))
        return now_ns(lease->only);
    return monotonic_ns();
}

int
aiotrace_event_at(PyObject *event, uint64_t now, const void *fields)
{
    Event *self = (Event *)event;
    Lease *lease = aiotrace_lease;
    if (unlikely(self->plain_epoch != aiotrace_epoch || lease == NULL || lease->epoch != aiotrace_epoch ||
                 lease->only == NULL))
        return aiotrace_event_is_off(event);
    return write_fields(self, lease, now, fields);
}

static __attribute__((noinline)) PyObject *
call_slowly(Event *self, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords)
{
    int done = aiotrace_gate == 0 ? 1 : record(self, args, nargs, keywords);
    if (done < 0)
        return NULL;
    if (done)
        Py_RETURN_NONE;
    return PyObject_Vectorcall(self->python, args, (size_t)nargs, keywords);
}

static inline __attribute__((always_inline)) PyObject *
call(Event *self, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords)
{
    Lease *lease = aiotrace_lease;
    if (unlikely(!is_short(self, lease, nargs, keywords)))
        return call_slowly(self, args, nargs, keywords);
    if (unlikely(!record_short(self, lease, args)))
        return call_slowly(self, args, self->short_count, NULL);
    Py_RETURN_NONE;
}

static PyObject *
event_vectorcall(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *keywords)
{
    return call((Event *)self, args, PyVectorcall_NARGS(nargsf), keywords);
}

static PyObject *
event_emit(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords)
{
    return call((Event *)self, args, nargs, keywords);
}

static PyMethodDef emit_def = {"emit", (PyCFunction)(void (*)(void))event_emit, METH_FASTCALL | METH_KEYWORDS,
                               "Record one event: the same call as the event itself, as a bound C function."};

static PyObject *
event_get_emit(Event *self, void *Py_UNUSED(closure))
{
    if (self->emit == NULL) {
        self->emit = PyCFunction_New(&emit_def, (PyObject *)self);
        if (self->emit == NULL)
            return NULL;
    }
    Py_INCREF(self->emit);
    return self->emit;
}

static PyObject *
event_getattro(PyObject *self, PyObject *name)
{
    PyObject *value = PyObject_GenericGetAttr(self, name);
    if (value != NULL || !PyErr_ExceptionMatches(PyExc_AttributeError))
        return value;
    PyErr_Clear();
    return PyObject_GetAttr(((Event *)self)->python, name);
}

static PyObject *
event_repr(Event *self)
{
    return PyObject_Repr(self->python);
}

static PyObject *
event_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(keywords))
{
    PyObject *python, *names, *symbols, *layout;
    int id, fixed_size;
    if (!PyArg_ParseTuple(args, "OiiO!O!O!:Event", &python, &id, &fixed_size, &PyTuple_Type, &layout, &PyTuple_Type,
                          &names, &PyDict_Type, &symbols))
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(layout);
    if (count > FIELDS_MAX || count != PyTuple_GET_SIZE(names) || fixed_size < 8 || fixed_size > 4096 ||
        fixed_size % 4 || id < 1 || id > 65535) {
        PyErr_SetString(PyExc_ValueError, "event layout not supported by the C implementation");
        return NULL;
    }
    Event *self = (Event *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->vectorcall = event_vectorcall;
    self->id = (uint32_t)id;
    self->fixed_size = (uint16_t)fixed_size;
    self->fields_count = (uint16_t)count;
    int filled = 8;
    for (Py_ssize_t i = 0; i < count; i++) {
        int offset, size;
        const char *code;
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(layout, i), "isi:field", &offset, &code, &size)) {
            Py_DECREF(self);
            return NULL;
        }
        if (strchr("QqdIiHhBbf?SYKC", code[0]) == NULL || offset < filled || size < 1 || size > 16 ||
            offset + size > fixed_size) {
            PyErr_Format(PyExc_ValueError, "field %zd", i);
            Py_DECREF(self);
            return NULL;
        }
        self->fields[i].offset = (uint16_t)offset;
        self->fields[i].code = code[0];
        set_range(&self->fields[i]);
        self->has_dynamic |= strchr("SYK", code[0]) != NULL;
        self->has_gaps |= offset != filled;
        filled = offset + size;
    }
    self->has_gaps |= filled != fixed_size;
    if (count >= 1 && count <= 3 && fixed_size == 8 + 8 * count && !self->has_gaps)
        self->wide_count = (uint8_t)count;
    self->short_count = !self->has_dynamic && fixed_size <= AIOTRACE_SHORT_PAYLOAD_MAX ? count : -1;
    Py_INCREF(python);
    self->python = python;
    Py_INCREF(names);
    self->names = names;
    Py_INCREF(symbols);
    self->symbols = symbols;
    return (PyObject *)self;
}

static int
event_traverse(Event *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->python);
    Py_VISIT(self->names);
    Py_VISIT(self->symbols);
    Py_VISIT(self->emit);
    return 0;
}

static int
event_clear(Event *self)
{
    Py_CLEAR(self->emit);
    return 0; /* the others are never part of a cycle that only this breaks; an event must stay callable */
}

static void
event_dealloc(Event *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->emit);
    Py_CLEAR(self->python);
    Py_CLEAR(self->names);
    Py_CLEAR(self->symbols);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

PyDoc_STRVAR(set_mode_doc, "set_mode(epoch, mode)\n--\n\nWhat the recordings of that epoch make of this event.");

static PyObject *
event_set_mode(Event *self, PyObject *args)
{
    unsigned long long decided_in;
    int mode;
    if (!PyArg_ParseTuple(args, "Ki:set_mode", &decided_in, &mode))
        return NULL;
    self->mode_epoch = decided_in;
    self->mode = mode;
    self->plain_epoch = mode == MODE_ALL ? decided_in : 0;
    Py_RETURN_NONE;
}

static PyMethodDef event_methods[] = {
    {"set_mode", (PyCFunction)event_set_mode, METH_VARARGS, set_mode_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef event_getset[] = {
    {"emit", (getter)event_get_emit, NULL, "The same call as a bound C function, for the hottest places.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef event_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Event, vectorcall), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyDoc_STRVAR(event_doc, "An event of one kind; calling it records one. Made by aiotrace.event.");

static PyType_Slot event_slots[] = {
    {Py_tp_doc, (void *)event_doc},     {Py_tp_new, event_new},         {Py_tp_call, PyVectorcall_Call},
    {Py_tp_traverse, event_traverse},   {Py_tp_clear, event_clear},     {Py_tp_dealloc, event_dealloc},
    {Py_tp_getattro, event_getattro},   {Py_tp_repr, event_repr},       {Py_tp_getset, event_getset},
    {Py_tp_members, event_members},     {Py_tp_methods, event_methods},   {0, NULL},
};

static PyType_Spec event_spec = {
    "aiotrace.Event",
    sizeof(Event),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_IMMUTABLETYPE,
    event_slots,
};

/* --- module --------------------------------------------------------------------------------------- */

int
aiotrace_event_exec(PyObject *module)
{
    Py_XSETREF(write_name, PyUnicode_InternFromString("write"));
    if (write_name == NULL || aiotrace_add_type(module, &event_spec, &event_type, "Event") < 0)
        return -1;
    return PyModule_AddIntMacro(module, FIELDS_MAX);
}
