/* What is recorded of a call: which events, and calling one where a record cannot be written in
 * place.
 *
 * Invariant: the traced program does not notice. An exception of an event is cleared, and an event
 * is held while it is called, though another thread may drop it.
 */
#include "calls/records.h"

void
aiotrace_call_event_slowly(PyObject *event, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    PyObject *args = Py_VaBuildValue(format, values);
    va_end(values);
    Py_INCREF(event);
    PyObject *done = args == NULL ? NULL : PyObject_CallObject(event, args);
    if (done == NULL)
        PyErr_Clear();
    Py_XDECREF(done);
    Py_XDECREF(args);
    Py_DECREF(event);
}

void
aiotrace_set_kind(Kind *kind, PyObject *event)
{
    PyObject *before = kind->event;
    if (event == Py_None) {
        kind->event = NULL;
    }
    else {
        Py_INCREF(event);
        *kind = (Kind){event, aiotrace_event_plain_epoch(event), (uint32_t)aiotrace_event_id(event)};
    }
    Py_XDECREF(before);
}
