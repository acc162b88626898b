/* What is done for each page that goes to a sink and comes back, for many pages at once.
 *
 *     sealed pages --offer_sealed--> parts, one holder more each      _ring/delivery.py is the specification
 *     parts        --settle-------> pages without a holder: empty, and free
 *
 * Invariant: only the common case runs here. At the first page or part that differs (the sink had a
 * part of the page, it does not know the writer, parts are acknowledged out of order) both
 * functions stop, return how far they came, and have changed nothing for it or for what follows.
 * Python continues there.
 */
#include "ring/page_state.h"

/* A Part is a tuple: the indices of its fields. _ring/delivery.py asserts at import that its
 * classes have these fields. */
enum {
    PART_WRITER, PART_SEQUENCE, PART_OFFSET, PART_COMPLETE, PART_EVENTS, PART_LOST_BEFORE, PART_DEFINITIONS,
    PART_TIMESTAMP, PART_COMMITTED, PART_PAGE, PART_PAGE_EVENTS, PART_NUMBER, PART_FIELDS
};
static const char *const part_fields[PART_FIELDS] = {
    [PART_WRITER] = "writer", [PART_SEQUENCE] = "sequence", [PART_OFFSET] = "offset", [PART_COMPLETE] = "complete",
    [PART_EVENTS] = "events", [PART_LOST_BEFORE] = "lost_before", [PART_DEFINITIONS] = "definitions",
    [PART_TIMESTAMP] = "timestamp", [PART_COMMITTED] = "committed", [PART_PAGE] = "page",
    [PART_PAGE_EVENTS] = "page_events", [PART_NUMBER] = "number",
};

/* The attributes of a Position. */
enum { NEXT_EVENT, POSITION_SEQUENCE, POSITION_OFFSET, POSITION_EVENTS, POSITION_TIMESTAMP, POSITION_FIELDS };
static const char *const position_fields[POSITION_FIELDS] = {"next_event", "sequence", "offset", "events", "timestamp"};
static PyObject *names[POSITION_FIELDS]; /* the same as str objects; written once, at import */

/* How far the sink has come with the writer of the last page. */
typedef struct {
    PyObject *position; /* borrowed from the positions; NULL: not read yet */
    int moved;          /* since it was read */
    uint64_t writer, next_event, sequence, offset, events, timestamp;
} Run;

static int
set_number(PyObject *object, PyObject *name, uint64_t value)
{
    PyObject *number = PyLong_FromUnsignedLongLong(value);
    int failed = number == NULL || PyObject_SetAttr(object, name, number) < 0;
    Py_XDECREF(number);
    return failed ? -1 : 0;
}

static int
end_run(Run *run)
{
    if (!run->moved)
        return 0;
    run->moved = 0;
    const uint64_t values[] = {run->next_event, run->sequence, run->offset, run->events, run->timestamp};
    for (int i = 0; i < POSITION_FIELDS; i++)
        if (set_number(run->position, names[i], values[i]) < 0)
            return -1;
    return 0;
}

/* Returns 1: the sink knows this writer, 0: not, -1: an exception is set. */
static int
begin_run(Run *run, PyObject *positions, uint64_t writer)
{
    run->position = NULL;
    PyObject *key = PyLong_FromUnsignedLongLong(writer);
    if (key == NULL)
        return -1;
    PyObject *position = PyDict_GetItemWithError(positions, key);
    Py_DECREF(key);
    if (position == NULL)
        return PyErr_Occurred() ? -1 : 0;
    PyObject *next_event = PyObject_GetAttr(position, names[NEXT_EVENT]);
    PyObject *sequence = next_event == NULL ? NULL : PyObject_GetAttr(position, names[POSITION_SEQUENCE]);
    if (sequence != NULL) {
        run->writer = writer;
        run->next_event = PyLong_AsUnsignedLongLong(next_event);
        run->sequence = (uint64_t)PyLong_AsLongLong(sequence); /* -1 before its first page */
    }
    Py_XDECREF(next_event);
    Py_XDECREF(sequence);
    if (PyErr_Occurred())
        return -1;
    run->position = position;
    return 1;
}

/* A whole page as a Part, which is a tuple. */
static PyObject *
make_part(PyTypeObject *type, PyObject *page, const uint64_t *words, uint64_t lost, uint64_t timestamp, uint64_t number)
{
    PyObject *part = type->tp_alloc(type, PART_FIELDS);
    if (part == NULL)
        return NULL;
    PyObject *const fields[PART_FIELDS] = {
        [PART_WRITER] = PyLong_FromUnsignedLongLong(words[AIOTRACE_WRITER]),
        [PART_SEQUENCE] = PyLong_FromUnsignedLongLong(words[AIOTRACE_SEQUENCE]),
        [PART_OFFSET] = PyLong_FromLong(0),
        [PART_COMPLETE] = Py_NewRef(Py_True),
        [PART_EVENTS] = PyLong_FromUnsignedLongLong(words[AIOTRACE_EVENTS]),
        [PART_LOST_BEFORE] = PyLong_FromUnsignedLongLong(lost),
        [PART_DEFINITIONS] = PyLong_FromUnsignedLongLong(words[AIOTRACE_DEFINITIONS]),
        [PART_TIMESTAMP] = PyLong_FromUnsignedLongLong(timestamp),
        [PART_COMMITTED] = PyLong_FromUnsignedLongLong(words[AIOTRACE_COMMITTED]),
        [PART_PAGE] = Py_NewRef(page),
        [PART_PAGE_EVENTS] = PyLong_FromUnsignedLongLong(words[AIOTRACE_EVENTS]),
        [PART_NUMBER] = PyLong_FromUnsignedLongLong(number),
    };
    int complete = 1;
    for (int i = 0; i < PART_FIELDS; i++) {
        PyTuple_SET_ITEM(part, i, fields[i]);
        complete &= fields[i] != NULL;
    }
    if (!complete)
        Py_CLEAR(part);
    return part;
}

/* The one part that a sink has of a page. */
static int
hold(PyObject *by_page, PyObject *page, PyObject *part)
{
    PyObject *of_page = PyList_New(1);
    if (of_page == NULL)
        return -1;
    PyList_SET_ITEM(of_page, 0, Py_NewRef(part));
    int failed = PyDict_SetItem(by_page, page, of_page);
    Py_DECREF(of_page);
    return failed;
}

/* The descriptor of a page, and its index; or NULL with an exception set. */
static uint64_t *
find_descriptor(const Py_buffer *descriptors, PyObject *page, Py_ssize_t *index)
{
    *index = PyLong_AsSsize_t(page);
    return *index == -1 && PyErr_Occurred() ? NULL : aiotrace_descriptor(descriptors, *index);
}

PyDoc_STRVAR(offer_sealed_doc,
"offer_sealed(descriptors, memory, first, page_size, pages, start, positions, by_page, number, most, Part, /)\n"
"--\n\n"
"Make parts of whole pages[start:], at most `most`, up to the first that is not the common case.\n\n"
"descriptors: writable u64 words; memory: the arena, in which page 0 begins at byte `first`; number: of the first part.\n"
"Moves `positions` on, enters the parts in `by_page`, counts their holders. Returns the parts and their events.");

static PyObject *
offer_sealed(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer descriptors, memory;
    Py_ssize_t first, page_size, start, most;
    unsigned long long number;
    PyObject *pages, *positions, *by_page, *parts = NULL;
    PyTypeObject *part_type;
    if (!PyArg_ParseTuple(arguments, "w*y*nnO!nO!O!KnO!:offer_sealed", &descriptors, &memory, &first, &page_size,
                          &PyList_Type, &pages, &start, &PyDict_Type, &positions, &PyDict_Type, &by_page, &number,
                          &most,
                          &PyType_Type, &part_type))
        return NULL;
    Run run = {.position = NULL, .moved = 0};
    uint64_t events = 0;
    int failed = (parts = PyList_New(0)) == NULL;
    for (Py_ssize_t i = start; !failed && most > 0 && i < PyList_GET_SIZE(pages); i++, most--) {
        PyObject *page = PyList_GET_ITEM(pages, i);
        Py_ssize_t index;
        uint64_t *words = find_descriptor(&descriptors, page, &index);
        failed = words == NULL;
        if (failed)
            break;
        if (first + index * page_size + 8 > memory.len) {
            PyErr_Format(PyExc_IndexError, "page index %zd is beyond the memory", index);
            failed = 1;
            break;
        }
        if (run.position == NULL || run.writer != words[AIOTRACE_WRITER]) {
            failed = end_run(&run) < 0;
            int known = failed ? -1 : begin_run(&run, positions, words[AIOTRACE_WRITER]);
            failed = known < 0;
            if (known <= 0)
                break;
        }
        if (run.sequence == words[AIOTRACE_SEQUENCE] || words[AIOTRACE_FIRST_EVENT] < run.next_event ||
            !words[AIOTRACE_EVENTS])
            break;
        uint64_t timestamp;
        memcpy(&timestamp, (const char *)memory.buf + first + index * page_size, 8);
        uint64_t lost = words[AIOTRACE_FIRST_EVENT] - run.next_event;
        PyObject *part = make_part(part_type, page, words, lost, timestamp, number);
        failed = part == NULL || PyList_Append(parts, part) < 0 || hold(by_page, page, part) < 0;
        Py_XDECREF(part);
        if (failed)
            break;
        words[AIOTRACE_HOLDERS]++;
        number++;
        run.moved = 1;
        events += words[AIOTRACE_EVENTS];
        run.next_event = words[AIOTRACE_FIRST_EVENT] + words[AIOTRACE_EVENTS];
        run.sequence = words[AIOTRACE_SEQUENCE];
        run.offset = words[AIOTRACE_COMMITTED];
        run.events = words[AIOTRACE_EVENTS];
        run.timestamp = words[AIOTRACE_LAST_TIME];
    }
    failed = failed || end_run(&run) < 0;
    PyBuffer_Release(&memory);
    PyBuffer_Release(&descriptors);
    PyObject *result = failed ? NULL : Py_BuildValue("OK", parts, (unsigned long long)events);
    Py_XDECREF(parts);
    return result;
}

/* Whether a part is looked at, and the only one that the sink has of its page: then it is taken out
 * of both tables. Returns 1 or 0; -1: an exception is set. */
static int
let_go(PyObject *part, PyObject *looked, PyObject *by_page)
{
    PyObject *page = PyTuple_GET_ITEM(part, PART_PAGE), *number = PyTuple_GET_ITEM(part, PART_NUMBER);
    PyObject *of_page = PyDict_GetItemWithError(by_page, page);
    if (of_page == NULL || !PyList_Check(of_page) || PyList_GET_SIZE(of_page) != 1)
        return PyErr_Occurred() ? -1 : 0;
    int is_looked_at = PyDict_Contains(looked, number);
    if (is_looked_at <= 0)
        return is_looked_at;
    return PyDict_DelItem(looked, number) < 0 || PyDict_DelItem(by_page, page) < 0 ? -1 : 1;
}

PyDoc_STRVAR(settle_doc,
"settle(descriptors, parts, start, looked, by_page, freed, /)\n"
"--\n\n"
"Acknowledge parts[start:], each the only one of its page, up to the first that is not the common case.\n\n"
"A page without another holder that is in flight is emptied and free, and appended to `freed`. Returns how many parts,\n"
"their events, the events that no sink had acknowledged before, and those that no sink will get any more.");

static PyObject *
settle(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    Py_buffer descriptors;
    PyObject *parts, *looked, *by_page, *freed;
    Py_ssize_t start;
    if (!PyArg_ParseTuple(arguments, "w*O!nO!O!O!:settle", &descriptors, &PyList_Type, &parts, &start, &PyDict_Type,
                          &looked, &PyDict_Type, &by_page, &PyList_Type, &freed))
        return NULL;
    uint64_t events = 0, delivered = 0, abandoned = 0;
    Py_ssize_t i = start;
    int failed = 0;
    for (; i < PyList_GET_SIZE(parts); i++) {
        PyObject *part = PyList_GET_ITEM(parts, i);
        if (!PyTuple_Check(part) || PyTuple_GET_SIZE(part) != PART_FIELDS) {
            PyErr_Format(PyExc_TypeError, "%R is not a Part", part);
            failed = 1;
            break;
        }
        PyObject *page = PyTuple_GET_ITEM(part, PART_PAGE);
        Py_ssize_t index;
        uint64_t *words = find_descriptor(&descriptors, page, &index);
        uint64_t page_events = words == NULL ? 0 : PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(part, PART_PAGE_EVENTS));
        uint64_t own = words == NULL ? 0 : PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(part, PART_EVENTS));
        int usual = PyErr_Occurred() ? -1 : let_go(part, looked, by_page);
        failed = usual < 0;
        if (usual <= 0)
            break;
        events += own;
        if (page_events > words[AIOTRACE_DELIVERED]) {
            delivered += page_events - words[AIOTRACE_DELIVERED];
            words[AIOTRACE_DELIVERED] = page_events;
        }
        if (--words[AIOTRACE_HOLDERS] || words[AIOTRACE_STATE] != AIOTRACE_IN_FLIGHT)
            continue;
        abandoned += words[AIOTRACE_EVENTS] - words[AIOTRACE_DELIVERED];
        aiotrace_empty(words); /* when it is taken again, nothing is on it */
        aiotrace_page_transition(words, AIOTRACE_IN_FLIGHT, AIOTRACE_FREE);
        failed = PyList_Append(freed, page) < 0;
        if (failed)
            break;
    }
    PyBuffer_Release(&descriptors);
    if (failed)
        return NULL;
    return Py_BuildValue("nKKK", i - start, (unsigned long long)events, (unsigned long long)delivered,
                         (unsigned long long)abandoned);
}

static PyMethodDef functions[] = {
    {"offer_sealed", offer_sealed, METH_VARARGS, offer_sealed_doc},
    {"settle", settle, METH_VARARGS, settle_doc},
    {NULL, NULL, 0, NULL},
};

/* Add a tuple of names to the module. */
static int
add_names(PyObject *module, const char *name, const char *const *texts, Py_ssize_t count)
{
    PyObject *tuple = PyTuple_New(count);
    for (Py_ssize_t i = 0; tuple != NULL && i < count; i++) {
        PyObject *text = PyUnicode_FromString(texts[i]);
        PyTuple_SET_ITEM(tuple, i, text);
        if (text == NULL)
            Py_CLEAR(tuple);
    }
    int failed = PyModule_AddObjectRef(module, name, tuple);
    Py_XDECREF(tuple);
    return failed;
}

int
aiotrace_delivery_exec(PyObject *module)
{
    for (int i = 0; i < POSITION_FIELDS; i++)
        if (names[i] == NULL && (names[i] = PyUnicode_InternFromString(position_fields[i])) == NULL)
            return -1;
    if (add_names(module, "PART_FIELDS", part_fields, PART_FIELDS) < 0 ||
        add_names(module, "POSITION_FIELDS", position_fields, POSITION_FIELDS) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
