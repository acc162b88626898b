/* Spans: the same as _events/span.py's PythonSpanType and PythonSpan.
 *
 *   SpanType(...) -> Span     __enter__: begin(id, parent, values...)     __exit__: end(id, duration_ns[, name])
 *
 * The events are called as a program calls them, so event.c (and the selection behind it) decides
 * what is written. Without an open recording a call returns the one span that does nothing.
 */

#include "common/clock.h"
#include "common/common.h"
#include "events/event.h"
#include "ring/cursor.h"

#include <stddef.h>
#include <structmember.h>

#define VALUES_MAX 32

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *begin;
    PyObject *end;
    PyObject *current; /* the context variable */
    PyObject *show;    /* fields -> text, for plain spans */
    int is_plain;
} SpanType;

typedef struct {
    PyObject_VAR_HEAD
    SpanType *type; /* NULL: the span that does nothing */
    PyObject *keywords; /* names of the last values, or NULL */
    PyObject *id;       /* NULL: not entered, or left */
    PyObject *parent;
    uint64_t began;
    PyObject *values[];
} Span;

/* Written once, at import. */
static PyTypeObject *span_type;
static PyTypeObject *spans_type;
static PyObject *nothing; /* the span that does nothing */
static PyObject *empty;   /* "" */
static PyObject *zero;

static unsigned long long last_id; /* of the process; written by each new span, with the GIL held */

static int
span_traverse(Span *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->type);
    Py_VISIT(self->keywords);
    Py_VISIT(self->id);
    Py_VISIT(self->parent);
    for (Py_ssize_t i = 0; i < Py_SIZE(self); i++)
        Py_VISIT(self->values[i]);
    return 0;
}

static int
span_clear(Span *self)
{
    Py_CLEAR(self->id); /* from now on it does nothing */
    Py_CLEAR(self->type);
    Py_CLEAR(self->keywords);
    Py_CLEAR(self->parent);
    for (Py_ssize_t i = 0; i < Py_SIZE(self); i++)
        Py_CLEAR(self->values[i]);
    return 0;
}

static void
span_dealloc(Span *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    span_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static int
set_current(PyObject *variable, PyObject *value)
{
    PyObject *token = PyContextVar_Set(variable, value);
    if (token == NULL)
        return -1;
    Py_DECREF(token);
    return 0;
}

static PyObject *
span_enter(Span *self, PyObject *Py_UNUSED(ignored))
{
    SpanType *type = self->type;
    if (type == NULL || self->id != NULL || !aiotrace_is_recording())
        return Py_NewRef((PyObject *)self);
    PyObject *parent;
    if (PyContextVar_Get(type->current, zero, &parent) < 0)
        return NULL;
    PyObject *id = PyLong_FromUnsignedLongLong(++last_id);
    if (id == NULL || set_current(type->current, id) < 0) {
        Py_XDECREF(id);
        Py_DECREF(parent);
        return NULL;
    }
    Py_XSETREF(self->parent, parent);
    self->id = id;
    PyObject *arguments[VALUES_MAX + 2] = {id, parent};
    Py_ssize_t count = Py_SIZE(self), named = self->keywords == NULL ? 0 : PyTuple_GET_SIZE(self->keywords);
    for (Py_ssize_t i = 0; i < count; i++)
        arguments[2 + i] = self->values[i];
    PyObject *done = PyObject_Vectorcall(type->begin, arguments, (size_t)(2 + count - named), self->keywords);
    if (done == NULL) { /* a wrong value, and aiotrace is strict: the block is not entered */
        set_current(type->current, parent);
        Py_CLEAR(self->id);
        return NULL;
    }
    Py_DECREF(done);
    self->began = aiotrace_monotonic_ns();
    return Py_NewRef((PyObject *)self);
}

static PyObject *
span_exit(Span *self, PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(nargs))
{
    if (self->id == NULL)
        Py_RETURN_NONE;
    SpanType *type = self->type;
    PyObject *id = self->id;
    self->id = NULL;
    PyObject *duration = PyLong_FromUnsignedLongLong(aiotrace_monotonic_ns() - self->began);
    PyObject *done = NULL;
    if (duration != NULL && set_current(type->current, self->parent) == 0) {
        PyObject *arguments[3] = {id, duration, type->is_plain ? self->values[0] : NULL};
        done = PyObject_Vectorcall(type->end, arguments, type->is_plain ? 3 : 2, NULL);
    }
    Py_XDECREF(duration);
    Py_DECREF(id);
    return done;
}

static PyMethodDef span_methods[] = {
    {"__enter__", (PyCFunction)span_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))span_exit, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(span_doc, "One stretch: a context manager, to be entered once.");

static PyType_Slot span_slots[] = {
    {Py_tp_doc, (void *)span_doc},
    {Py_tp_traverse, span_traverse},
    {Py_tp_clear, span_clear},
    {Py_tp_dealloc, span_dealloc},
    {Py_tp_methods, span_methods},
    {0, NULL},
};

static PyType_Spec span_spec = {
    "aiotrace._c.Span",
    offsetof(Span, values),
    sizeof(PyObject *),
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    span_slots,
};

/* --- span types ------------------------------------------------------------------------------------ */

static PyObject *
make_plain_text(SpanType *self, PyObject *const *values, PyObject *keywords)
{
    if (keywords == NULL || PyTuple_GET_SIZE(keywords) == 0)
        return Py_NewRef(empty);
    PyObject *fields = PyDict_New();
    if (fields == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(keywords); i++) {
        if (PyDict_SetItem(fields, PyTuple_GET_ITEM(keywords, i), values[i]) < 0) {
            Py_DECREF(fields);
            return NULL;
        }
    }
    PyObject *text = PyObject_CallOneArg(self->show, fields);
    Py_DECREF(fields);
    return text;
}

static PyObject *
spans_vectorcall(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *keywords)
{
    SpanType *self = (SpanType *)callable;
    Py_ssize_t nargs = PyVectorcall_NARGS(nargsf);
    if (!aiotrace_is_recording() && !(self->is_plain && nargs != 1))
        return Py_NewRef(nothing);
    PyObject *text = NULL;
    Py_ssize_t count = nargs + (keywords == NULL ? 0 : PyTuple_GET_SIZE(keywords));
    if (self->is_plain) {
        if (nargs != 1) {
            PyErr_Format(PyExc_TypeError, "span() takes 1 positional argument, its name; got %zd", nargs);
            return NULL;
        }
        text = make_plain_text(self, args + nargs, keywords);
        if (text == NULL)
            return NULL;
        keywords = NULL;
        count = 2;
    }
    else if (count > VALUES_MAX) {
        PyErr_Format(PyExc_TypeError, "a span takes at most %d values; got %zd", VALUES_MAX, count);
        return NULL;
    }
    Span *span = (Span *)span_type->tp_alloc(span_type, count);
    if (span == NULL) {
        Py_XDECREF(text);
        return NULL;
    }
    span->type = (SpanType *)Py_NewRef(callable);
    span->keywords = Py_XNewRef(keywords);
    if (self->is_plain) {
        span->values[0] = Py_NewRef(args[0]);
        span->values[1] = text;
    }
    else {
        for (Py_ssize_t i = 0; i < count; i++)
            span->values[i] = Py_NewRef(args[i]);
    }
    return (PyObject *)span;
}

static PyObject *
spans_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(keywords))
{
    PyObject *begin, *end, *current, *show;
    int is_plain;
    if (!PyArg_ParseTuple(args, "OOpO!O:SpanType", &begin, &end, &is_plain, &PyContextVar_Type, &current, &show))
        return NULL;
    SpanType *self = (SpanType *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->vectorcall = spans_vectorcall;
    self->begin = Py_NewRef(begin);
    self->end = Py_NewRef(end);
    self->current = Py_NewRef(current);
    self->show = Py_NewRef(show);
    self->is_plain = is_plain;
    return (PyObject *)self;
}

static int
spans_traverse(SpanType *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->begin);
    Py_VISIT(self->end);
    Py_VISIT(self->current);
    Py_VISIT(self->show);
    return 0;
}

static void
spans_dealloc(SpanType *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->begin);
    Py_CLEAR(self->end);
    Py_CLEAR(self->current);
    Py_CLEAR(self->show);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMemberDef spans_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(SpanType, vectorcall), READONLY, NULL},
    {"begin", T_OBJECT_EX, offsetof(SpanType, begin), READONLY, "The event of a begin."},
    {"end", T_OBJECT_EX, offsetof(SpanType, end), READONLY, "The event of an end."},
    {NULL, 0, 0, 0, NULL},
};

PyDoc_STRVAR(spans_doc, "Makes spans of one type; called with the values of the fields.");

static PyType_Slot spans_slots[] = {
    {Py_tp_doc, (void *)spans_doc},   {Py_tp_new, spans_new},         {Py_tp_call, PyVectorcall_Call},
    {Py_tp_traverse, spans_traverse}, {Py_tp_dealloc, spans_dealloc}, {Py_tp_members, spans_members},
    {0, NULL},
};

static PyType_Spec spans_spec = {
    "aiotrace._c.SpanType",
    sizeof(SpanType),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_IMMUTABLETYPE,
    spans_slots,
};

int
aiotrace_span_exec(PyObject *module)
{
    span_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &span_spec, NULL);
    if (span_type == NULL || PyModule_AddObjectRef(module, "Span", (PyObject *)span_type) < 0)
        return -1;
    spans_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &spans_spec, NULL);
    if (spans_type == NULL || PyModule_AddObjectRef(module, "SpanType", (PyObject *)spans_type) < 0)
        return -1;
    nothing = span_type->tp_alloc(span_type, 0);
    empty = PyUnicode_FromString("");
    zero = PyLong_FromLong(0);
    return nothing == NULL || empty == NULL || zero == NULL ? -1 : 0;
}
