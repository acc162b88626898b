/* The records of a page for Python: as tuples, and as counts. The same as _page/walk.py, which says
 * what a record is.
 *
 *     data --Walk--> (timestamp, id, pid, start, length), ...
 *              +---> tally: how many of each event, and how many bytes
 *
 * The invariants are those of walk.h. A Walk that met damage stays in front of it.
 */
#include "decode/walk.h"

#include <stdarg.h>
#include <stdio.h>

int
aiotrace_damaged(Fault *fault, Py_ssize_t offset, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(fault->message, sizeof fault->message, format, arguments);
    va_end(arguments);
    fault->offset = offset;
    return DAMAGED;
}

void
aiotrace_raise_damage(PyTypeObject *type, const Fault *fault)
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
                       "An iterator over (timestamp, id, pid, start, length); see aiotrace._page.walk.walk.");

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
    self->scan = (Scan){
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
    Record record = {0};
    Fault fault;
    switch (walk_next(self, &record, &fault)) {
    case DAMAGED:
        aiotrace_raise_damage(Py_TYPE(self), &fault);
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

/* --- tally --- */

PyDoc_STRVAR(tally_doc, "tally(walk, totals) -> (events, bytes, first, last); see aiotrace._page.walk.tally.");

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

/* --- module --- */

static PyMethodDef functions[] = {
    {"tally", (PyCFunction)(void (*)(void))tally, METH_FASTCALL, tally_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_walk_exec(PyObject *module)
{
    if (aiotrace_add_type(module, &walk_spec, &aiotrace_get_state(module)->walk_type, "Walk") < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
