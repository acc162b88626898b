/* The whole pages at the beginning of a journal, as runs: for each writer how many lie side by
 * side, and their rows.
 *
 * Invariant: only what is as expected is taken, a whole page, where its writer's next one belongs,
 * its frame intact. Taking stops at anything else.
 */
#include "store/store.h"

typedef struct {
    uint64_t sequence, end, timestamp, lost, place;
    uint32_t writer, events, committed, crc;
} Whole;

typedef struct {
    uint64_t pages, events, committed, lost;
    const Whole *last;
    PyObject *rows;
} Run;

/* Whether a whole page is what this frame says, in the place where the next one of its writer
 * belongs. */
static int
read_whole(const unsigned char *frame, const char *stream_id, uint64_t page_size, const uint64_t *expected,
           size_t writers, Whole *whole)
{
    const unsigned char *body = frame + HEADER_SIZE;
    if (memcmp(frame, MAGIC, sizeof MAGIC) != 0 || frame[4] != VERSION || frame[5] != KIND_PLACED
        || get(frame + 6, 2) != 0 || get(frame + 8, 4) != BODY_SIZE || memcmp(frame + 16, stream_id, 16) != 0)
        return 0;
    const uint64_t writer = get(body, 4), place = get(body + 48, 8), spooled = get(body + 56, 4);
    const uint64_t committed = get(body + 44, 4), offset = get(body + 32, 4);
    const int64_t lost = (int64_t)get(body + 24, 8);
    if (writer >= writers || expected[writer] == 0 || spooled > 1 || place % page_size != 0
        || expected[writer] != (place | spooled))
        return 0;
    if (get(body + 4, 4) != 1 || get(body + 60, 4) != 0 || lost < 0 ||
        offset + committed > PAGE_SIZE_MAX - PAGE_HEADER_SIZE
        || committed > page_size - PAGE_HEADER_SIZE)
        return 0;
    const uint64_t size = PAGE_HEADER_SIZE + committed + (lost ? LOST_COUNT_SIZE : 0);
    if (spooled && size + BLOCK <= page_size) /* what it leaves empty must not be copied */
        return 0;
    if (get(frame + HEADER_CHECKED, 4) != aiotrace_crc32(0, frame, HEADER_CHECKED)
        || get(frame + 12, 4) != aiotrace_crc32(0, body, BODY_SIZE))
        return 0;
    uint64_t around[3] = {get(body + 16, 8), committed | (lost ? COMMIT_MISSED : 0), (uint64_t)lost};
    whole->writer = (uint32_t)writer;
    whole->sequence = get(body + 8, 8);
    whole->end = offset + committed;
    whole->timestamp = around[0];
    whole->lost = (uint64_t)lost;
    whole->place = place;
    whole->events = (uint32_t)get(body + 36, 4);
    whole->committed = (uint32_t)committed;
    whole->crc = aiotrace_crc32((uint32_t)get(body + 68, 4), (const unsigned char *)around, lost ? 24 : 16);
    return 1;
}

static void
put_row(unsigned char *at, const Whole *whole)
{
    const uint32_t words[4] = {whole->writer, whole->events, whole->crc, 0};
    memcpy(at, &whole->sequence, 8);
    memcpy(at + 8, words, sizeof words);
}

/* The runs of all writers that have one, as tuples. */
static PyObject *
make_runs(const Whole *wholes, size_t count, Run *runs, size_t writers, uint64_t page_size)
{
    for (size_t n = 0; n < count; n++)
        runs[wholes[n].writer].pages++;
    for (size_t writer = 0; writer < writers; writer++) {
        Run *run = &runs[writer];
        if (run->pages == 0)
            continue;
        run->rows = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(run->pages * ROW_SIZE));
        if (run->rows == NULL)
            return NULL;
        run->pages = 0;
    }
    for (size_t n = 0; n < count; n++) {
        Run *run = &runs[wholes[n].writer];
        put_row((unsigned char *)PyBytes_AS_STRING(run->rows) + run->pages * ROW_SIZE, &wholes[n]);
        run->pages++;
        run->events += wholes[n].events;
        run->committed += wholes[n].committed;
        run->lost += wholes[n].lost;
        run->last = &wholes[n];
    }
    PyObject *found = PyList_New(0);
    for (size_t writer = 0; found != NULL && writer < writers; writer++) {
        Run *run = &runs[writer];
        if (run->pages == 0)
            continue;
        const Whole *last = run->last;
        PyObject *item = Py_BuildValue(
            "(nKKKKKO(KK)K)", (Py_ssize_t)writer, (unsigned long long)(last->place - (run->pages - 1) * page_size),
            (unsigned long long)run->pages, (unsigned long long)run->events, (unsigned long long)run->committed,
            (unsigned long long)run->lost, run->rows, (unsigned long long)last->sequence,
            (unsigned long long)last->end, (unsigned long long)last->timestamp);
        if (item == NULL || PyList_Append(found, item) < 0)
            Py_CLEAR(found);
        Py_XDECREF(item);
    }
    return found;
}

static PyObject *
take_frames(const unsigned char *data, size_t size, const char *stream_id, uint64_t page_size, uint64_t *expected,
            size_t writers)
{
    const size_t most = size / FRAME_SIZE;
    Whole first;
    if (most == 0 || !read_whole(data, stream_id, page_size, expected, writers, &first))
        return Py_BuildValue("(ii[])", 0, 0);
    Whole *wholes = PyMem_Malloc(most * sizeof *wholes);
    Run *runs = PyMem_Calloc(writers, sizeof *runs);
    PyObject *found = NULL, *taken = NULL;
    size_t count = 0;
    if (wholes == NULL || runs == NULL) {
        PyErr_NoMemory();
        goto exit;
    }
    while (count < most
           && read_whole(data + count * FRAME_SIZE, stream_id, page_size, expected, writers, &wholes[count])) {
        expected[wholes[count].writer] += page_size;
        count++;
    }
    found = make_runs(wholes, count, runs, writers, page_size);
    if (found != NULL) {
        const uint64_t next = get(data + (count - 1) * FRAME_SIZE + 32, 8) + 1;
        taken = Py_BuildValue("(nKO)", (Py_ssize_t)(count * FRAME_SIZE), (unsigned long long)next, found);
    }
exit:
    for (size_t writer = 0; runs != NULL && writer < writers; writer++)
        Py_XDECREF(runs[writer].rows);
    Py_XDECREF(found);
    PyMem_Free(wholes);
    PyMem_Free(runs);
    return taken;
}

PyDoc_STRVAR(take_whole_doc, "take_whole(data, stream_id, page_size, expected) -> tuple; see aiotrace._formats.journal_runs.");

static PyObject *
take_whole(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    Py_buffer data, expected;
    if (count != 4 || !PyBytes_Check(arguments[1]) || PyBytes_GET_SIZE(arguments[1]) != 16) {
        PyErr_SetString(PyExc_TypeError, "take_whole(data, stream_id: 16 bytes, page_size: int, expected: array)");
        return NULL;
    }
    const unsigned long long page_size = PyLong_AsUnsignedLongLong(arguments[2]);
    if (page_size == (unsigned long long)-1 && PyErr_Occurred())
        return NULL;
    if (page_size < 4096 || page_size > PAGE_SIZE_MAX) {
        PyErr_Format(PyExc_ValueError, "page_size %llu", page_size);
        return NULL;
    }
    if (PyObject_GetBuffer(arguments[0], &data, PyBUF_SIMPLE) < 0)
        return NULL;
    if (PyObject_GetBuffer(arguments[3], &expected, PyBUF_WRITABLE) < 0) {
        PyBuffer_Release(&data);
        return NULL;
    }
    PyObject *taken = take_frames(data.buf, (size_t)data.len, PyBytes_AS_STRING(arguments[1]), page_size, expected.buf,
                                  (size_t)expected.len / sizeof(uint64_t));
    PyBuffer_Release(&expected);
    PyBuffer_Release(&data);
    return taken;
}

static PyMethodDef functions[] = {
    {"take_whole", (PyCFunction)(void (*)(void))take_whole, METH_FASTCALL, take_whole_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_journal_runs_exec(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
