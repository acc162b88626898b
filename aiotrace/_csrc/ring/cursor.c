/* The Cursor of a writer: the same as _ring/cursor.py's PythonCursor, which is the specification.
 *
 *     enter -> put, put, put ... -> freeze, leave        the writer (Python) turns its page; C events bypass `put`
 *
 * Invariant of cursor.h: one step under the GIL from the check against `limit` to `commit`.
 * Anything else that touches the page freezes the cursor first (limit 0), and then nothing fits.
 */
#include "ring/cursor.h"

/* Written once, at import. */
PyTypeObject *aiotrace_cursor_type;
static PyObject *monotonic_clock; /* time.monotonic_ns, which is read here without a call */

/* The time for code that may call Python. -1 with an exception on failure. */
static int
read_clock(Cursor *self, uint64_t *now)
{
    if (self->clock_kind != CLOCK_PYTHON) {
        *now = now_ns(self);
        return 0;
    }
    PyObject *value = PyObject_CallNoArgs(self->clock);
    if (value == NULL)
        return -1;
    *now = PyLong_AsUnsignedLongLong(value);
    Py_DECREF(value);
    return PyErr_Occurred() ? -1 : 0;
}

static void
cursor_release(Cursor *self)
{
    leave_page(&self->at);
    if (self->view.obj != NULL)
        PyBuffer_Release(&self->view);
}

static int
cursor_init(Cursor *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"clock", NULL};
    PyObject *clock;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O:Cursor", names, &clock))
        return -1;
    int kind = clock == monotonic_clock ? CLOCK_MONO : CLOCK_PYTHON;
    if (kind == CLOCK_PYTHON) {
        PyObject *is_tsc = PyObject_GetAttrString(clock, "aiotrace_tsc"); /* _clock.TscClock has it */
        if (is_tsc == NULL)
            PyErr_Clear();
        else if (aiotrace_tsc.window != 0)
            kind = CLOCK_TSC;
        Py_XDECREF(is_tsc);
    }
    cursor_release(self);
    self->clock_kind = kind;
    Py_INCREF(clock);
    Py_XSETREF(self->clock, clock);
    return 0;
}

static int
cursor_traverse(Cursor *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->clock);
    return 0;
}

static int
cursor_clear(Cursor *self)
{
    Py_CLEAR(self->clock);
    return 0;
}

static void
cursor_dealloc(Cursor *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    cursor_release(self);
    cursor_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

PyDoc_STRVAR(enter_doc, "Begin an empty page: its header is written, its time is now.");

static PyObject *
cursor_enter(Cursor *self, PyObject *page)
{
    Py_buffer view;
    uint64_t now;
    if (PyObject_GetBuffer(page, &view, PyBUF_WRITABLE) < 0)
        return NULL;
    if (view.len < AIOTRACE_PAGE_HEADER_SIZE + AIOTRACE_LOST_COUNT_SIZE || view.len > AIOTRACE_PAGE_SIZE_MAX ||
        (uintptr_t)view.buf % 8 != 0) {
        PyBuffer_Release(&view);
        PyErr_SetString(PyExc_ValueError, "a page has 24 bytes to 1 MiB and is aligned to 8");
        return NULL;
    }
    cursor_release(self);
    if (read_clock(self, &now) < 0) {
        PyBuffer_Release(&view);
        return NULL;
    }
    self->view = view;
    begin_page(&self->at, view.buf, (uint32_t)view.len, now);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(leave_doc, "Have no page.");

static PyObject *
cursor_leave(Cursor *self, PyObject *Py_UNUSED(ignored))
{
    cursor_release(self);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(freeze_doc, "From now on nothing finds room.");

static PyObject *
cursor_freeze(Cursor *self, PyObject *Py_UNUSED(ignored))
{
    self->at.limit = 0;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(thaw_doc, "Undo `freeze`, for a page that stays.");

static PyObject *
cursor_thaw(Cursor *self, PyObject *Py_UNUSED(ignored))
{
    open_page(&self->at);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(state_doc, "Bytes of records on the page, time of the last one in ns, and `written`, as of one moment.");

static PyObject *
cursor_state(Cursor *self, PyObject *Py_UNUSED(ignored))
{
    return Py_BuildValue("IKK", committed_of(&self->at), (unsigned long long)self->at.last,
                         (unsigned long long)self->at.written);
}

PyDoc_STRVAR(fits_doc, "Whether a payload of `size` bytes has room, with a time extend in front if it needs one.");

static PyObject *
cursor_fits(Cursor *self, PyObject *argument)
{
    Py_ssize_t size = PyLong_AsSsize_t(argument);
    if (size == -1 && PyErr_Occurred())
        return NULL;
    return PyBool_FromLong(has_room(&self->at, size));
}

PyDoc_STRVAR(put_doc, "Write one record. Returns False, without effect, if there is no room.");

static PyObject *
cursor_put(Cursor *self, PyObject *payload)
{
    if (!PyBytes_Check(payload) || PyBytes_GET_SIZE(payload) % 4 || PyBytes_GET_SIZE(payload) < 8) {
        PyErr_SetString(PyExc_ValueError, "a payload is bytes, at least 8 and a multiple of 4");
        return NULL;
    }
    uint64_t now;
    uint32_t end;
    if (self->at.limit == 0)
        Py_RETURN_FALSE;
    if (read_clock(self, &now) < 0)
        return NULL;
    if (PyBytes_GET_SIZE(payload) > AIOTRACE_PAGE_SIZE_MAX)
        Py_RETURN_FALSE;
    uint32_t size = (uint32_t)PyBytes_GET_SIZE(payload);
    char *place = reserve(&self->at, &now, size, &end);
    if (place == NULL)
        Py_RETURN_FALSE;
    memcpy(place, PyBytes_AS_STRING(payload), size);
    if (size > AIOTRACE_SHORT_PAYLOAD_MAX && (unsigned char)place[2] & AIOTRACE_FLAG_CUT)
        self->cut++;
    commit(&self->at, now, end);
    Py_RETURN_TRUE;
}

static PyObject *
cursor_get_written(Cursor *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(self->at.written);
}

static PyObject *
cursor_get_cut(Cursor *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(self->cut);
}

static PyMethodDef cursor_methods[] = {
    {"enter", (PyCFunction)cursor_enter, METH_O, enter_doc},
    {"leave", (PyCFunction)cursor_leave, METH_NOARGS, leave_doc},
    {"freeze", (PyCFunction)cursor_freeze, METH_NOARGS, freeze_doc},
    {"thaw", (PyCFunction)cursor_thaw, METH_NOARGS, thaw_doc},
    {"state", (PyCFunction)cursor_state, METH_NOARGS, state_doc},
    {"fits", (PyCFunction)cursor_fits, METH_O, fits_doc},
    {"put", (PyCFunction)cursor_put, METH_O, put_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef cursor_getset[] = {
    {"written", (getter)cursor_get_written, NULL, "Events written, over all pages.", NULL},
    {"cut", (getter)cursor_get_cut, NULL, "Those of them with a string that was too long.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(cursor_doc, "A writer's cursor on the page that it fills; see aiotrace._ring.cursor.PythonCursor.");

static PyType_Slot cursor_slots[] = {
    {Py_tp_doc, (void *)cursor_doc},     {Py_tp_init, cursor_init},       {Py_tp_traverse, cursor_traverse},
    {Py_tp_clear, cursor_clear},         {Py_tp_dealloc, cursor_dealloc}, {Py_tp_methods, cursor_methods},
    {Py_tp_getset, cursor_getset},       {0, NULL},
};

static PyType_Spec cursor_spec = {
    "aiotrace._c.Cursor",
    sizeof(Cursor),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    cursor_slots,
};

/* --- module --------------------------------------------------------------------------------------- */

int
aiotrace_cursor_exec(PyObject *module)
{
    PyObject *time = PyImport_ImportModule("time");
    if (time == NULL)
        return -1;
    Py_XSETREF(monotonic_clock, PyObject_GetAttrString(time, "monotonic_ns"));
    Py_DECREF(time);
    if (monotonic_clock == NULL)
        return -1;
    return aiotrace_add_type(module, &cursor_spec, &aiotrace_cursor_type, "Cursor");
}
