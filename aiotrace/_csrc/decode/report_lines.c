/* A page as lines of text, in the layout of `trace-cmd report`. The same as
 * _decode/report_lines.py.
 *
 *     Walk --> record --> `comm-pid  [cpu]  secs.usecs: event: ` --field_print.c--> `fields` --> "\n" --> Text
 *                           `-- once a task --'          `-- `define` says once what an event's fields are
 *
 * Invariants: the text is the same, byte for byte, as that of the Python implementation. A callback
 * may come back here: what it finds is whole, and no memory that is in use above is freed.
 */
#include "decode/field_print.h"

typedef struct {
    PyObject *head; /* the padded name */
    Py_ssize_t size;
    Py_ssize_t parts_count; /* -1: Python prints its fields */
    Part *parts;
} LineEvent;

typedef struct {
    PyObject_HEAD
    PyObject *define;    /* (id) -> (head, size, parts or None) */
    PyObject *name_task; /* (pid) -> bytes */
    PyObject *show_rest; /* (id, payload) -> str */
    Printer printer;     /* its references are held */
    PyObject *tasks;     /* dict: pid -> bytes */
    PyObject *task;      /* the last one of them that was asked for, or NULL */
    int32_t task_pid;
    Text spare;        /* the memory of the last chunk, for the next */
    LineEvent **index; /* by id; made when it is first met, kept to the end: a callback may be running above us */
} Lines;

enum { TASKS_MAX = 65536, CHUNK_SIZE = 1 << 16, SPARE_MAX = 4 * CHUNK_SIZE };

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
    const int status = aiotrace_append_str(text, shown, 0, 0);
    Py_DECREF(shown);
    return status;
}

/* Seconds and microseconds, rounded, as trace-cmd shows a time; at most TIME_SIZE bytes, for which
 * there is room. */
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
    for (; event->parts_count < PyTuple_GET_SIZE(parts); event->parts_count++) {
        PyObject *part = PyTuple_GET_ITEM(parts, event->parts_count);
        if (aiotrace_part_parse(&event->parts[event->parts_count], part, size) < 0) {
            line_event_free(event);
            return NULL;
        }
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
    int status = event->parts_count < 0 || record->length < event->size
                     ? ENDED
                     : aiotrace_append_parts(&self->printer, text, event->parts, event->parts_count, payload,
                                             record->length, swap);
    if (status == ENDED) {
        text->size = mark;
        status = append_rest(self, text, record, payload) < 0 ? FAILED : FOUND;
    }
    return status == FAILED ? -1 : text_append(text, "\n", 1);
}

PyDoc_STRVAR(lines_format_doc, "format(walk, cpu) -> (text, timestamps, ends, in_order); see aiotrace._decode.report_lines.");

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
    Record record = {0};
    Fault fault;
    int status = ENDED, in_order = 1;
    int64_t before = INT64_MIN;
    while (text.size < CHUNK_SIZE && (status = walk_next(walk, &record, &fault)) == FOUND) {
        if (append_line(self, &text, &record, arguments[1], walk->scan.data + record.start, walk->scan.swap) < 0)
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
        aiotrace_raise_damage(Py_TYPE(self), &fault);
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

PyDoc_STRVAR(lines_doc, "Lines(define, name_task, show_text, show_rest, symbols, c_strings); see aiotrace._decode.report_lines.");

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
    self->show_rest = Py_NewRef(show_rest);
    self->printer = (Printer){Py_NewRef(show_text), Py_NewRef(symbols), c_strings};
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
    Py_VISIT(self->printer.show_text);
    Py_VISIT(self->show_rest);
    Py_VISIT(self->printer.symbols);
    Py_VISIT(self->tasks);
    Py_VISIT(self->task);
    return 0;
}

static int
lines_clear(Lines *self)
{
    Py_CLEAR(self->define);
    Py_CLEAR(self->name_task);
    Py_CLEAR(self->printer.show_text);
    Py_CLEAR(self->show_rest);
    Py_CLEAR(self->printer.symbols);
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

int
aiotrace_report_lines_exec(PyObject *module)
{
    PyTypeObject *type;
    if (aiotrace_add_type(module, &lines_spec, &type, "Lines") < 0)
        return -1;
    Py_DECREF(type);
    return 0;
}
