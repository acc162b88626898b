/* What writing and closing a trace does for each page, many pages at once: the twins of _wholepages.py.
 *
 *     plan_whole    a batch of pages --> what to write for them in one call, and the bodies of their frames
 *     pack_whole    these bodies     --> their frames for the journal
 *     pack_placed   a batch of pages, and parts of pages --> their frames for the journal
 *     take_whole    a journal        --> the rows of the pages that are as one expects, for the trace.dat
 *     reserve       blocks for what will be written: an ext4 that has them ready writes in three quarters of the time
 *
 * The layouts stand in _frames.py, _journal.py and _tracedat.py. What is not as expected is left to Python.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "aiotrace.h"

#include <errno.h>
#include <fcntl.h>

enum {
    HEADER_SIZE = 48,
    HEADER_CHECKED = 44, /* bytes of it that its crc32 covers */
    BODY_SIZE = 72,
    FRAME_SIZE = HEADER_SIZE + BODY_SIZE,
    ROW_SIZE = 24,
    VERSION = 1,
    KIND_PLACED = 7,
    PAGE_HEADER_SIZE = 16,
    PAGE_SIZE_MAX = 1 << 20,
    LOST_COUNT_SIZE = 8,
    BLOCK = 4096,
};

static const unsigned char MAGIC[4] = {0xf7, 'a', 'i', 'o'};

#define COMMIT_MISSED (UINT64_C(1) << 31 | UINT64_C(1) << 30)

/* Frames are little-endian on every machine; rows and page headers are in this one's order. */
static inline void
put(unsigned char *at, uint64_t value, int size)
{
    for (int byte = 0; byte < size; byte++)
        at[byte] = (unsigned char)(value >> 8 * byte);
}

static inline uint64_t
get(const unsigned char *at, int size)
{
    uint64_t value = 0;
    for (int byte = 0; byte < size; byte++)
        value |= (uint64_t)at[byte] << 8 * byte;
    return value;
}

/* --- packing --------------------------------------------------------------------------------- */

/* A field of a frame's body: where it comes from in the tuple, where it goes, and how many bytes it has. */
typedef struct {
    unsigned char index, offset, size, is_signed;
} Field;

static const Field ENTRY_FIELDS[] = {{0, 0, 4, 0},  {1, 8, 8, 0},  {7, 16, 8, 0}, {5, 24, 8, 1},
                                     {2, 32, 4, 0}, {4, 36, 4, 0}, {6, 40, 4, 0}, {8, 44, 4, 0}};
static const Field PLACE_FIELDS[] = {{2, 48, 8, 0}, {3, 60, 4, 0}, {4, 64, 4, 0}, {5, 68, 4, 0}};

static int
pack_field(unsigned char *body, PyObject *tuple, Field field)
{
    PyObject *item = PyTuple_GET_ITEM(tuple, field.index);
    int overflow;
    long long number = PyLong_AsLongLongAndOverflow(item, &overflow);
    uint64_t value = (uint64_t)number;
    if (number == -1 && PyErr_Occurred())
        return -1;
    if (overflow > 0 && !field.is_signed) {
        value = PyLong_AsUnsignedLongLong(item);
        if (value == UINT64_MAX && PyErr_Occurred())
            return -1;
    } else if (overflow || (number < 0 && !field.is_signed)) {
        goto too_large;
    }
    if (field.size == 4 && value > UINT32_MAX)
        goto too_large;
    put(body + field.offset, value, field.size);
    return 0;
too_large:
    PyErr_Format(PyExc_OverflowError, "%R does not fit into a frame", item);
    return -1;
}

static int
pack_flag(unsigned char *at, PyObject *item)
{
    int flag = PyObject_IsTrue(item);
    if (flag >= 0)
        put(at, (uint64_t)flag, 4);
    return flag;
}

static int
pack_body(unsigned char *body, PyObject *placed)
{
    if (!PyTuple_Check(placed) || PyTuple_GET_SIZE(placed) != 6 || !PyTuple_Check(PyTuple_GET_ITEM(placed, 0))
        || PyTuple_GET_SIZE(PyTuple_GET_ITEM(placed, 0)) != 9) {
        PyErr_SetString(PyExc_TypeError, "pack_placed: a page and its place were expected");
        return -1;
    }
    PyObject *entry = PyTuple_GET_ITEM(placed, 0);
    for (size_t n = 0; n < sizeof ENTRY_FIELDS / sizeof *ENTRY_FIELDS; n++)
        if (pack_field(body, entry, ENTRY_FIELDS[n]) < 0)
            return -1;
    for (size_t n = 0; n < sizeof PLACE_FIELDS / sizeof *PLACE_FIELDS; n++)
        if (pack_field(body, placed, PLACE_FIELDS[n]) < 0)
            return -1;
    if (pack_flag(body + 4, PyTuple_GET_ITEM(entry, 3)) < 0)
        return -1;
    return pack_flag(body + 56, PyTuple_GET_ITEM(placed, 1));
}

/* The header of a frame, before a body that is there. */
static void
pack_header(unsigned char *frame, const char *stream_id, uint64_t sequence)
{
    memset(frame, 0, HEADER_SIZE);
    memcpy(frame, MAGIC, sizeof MAGIC);
    frame[4] = VERSION;
    frame[5] = KIND_PLACED;
    put(frame + 8, BODY_SIZE, 4);
    put(frame + 12, aiotrace_crc32(0, frame + HEADER_SIZE, BODY_SIZE), 4);
    memcpy(frame + 16, stream_id, 16);
    put(frame + 32, sequence, 8);
    put(frame + HEADER_CHECKED, aiotrace_crc32(0, frame, HEADER_CHECKED), 4);
}

PyDoc_STRVAR(pack_placed_doc, "pack_placed(stream_id, sequence, placed) -> bytes; see aiotrace._wholepages.");

static PyObject *
pack_placed(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count)
{
    if (count != 3 || !PyBytes_Check(arguments[0]) || PyBytes_GET_SIZE(arguments[0]) != 16
        || !PyList_Check(arguments[2])) {
        PyErr_SetString(PyExc_TypeError, "pack_placed(stream_id: 16 bytes, sequence: int, placed: list)");
        return NULL;
    }
    uint64_t sequence = PyLong_AsUnsignedLongLong(arguments[1]);
    if (sequence == UINT64_MAX && PyErr_Occurred())
        return NULL;
    const Py_ssize_t pages = PyList_GET_SIZE(arguments[2]);
    PyObject *packed = PyBytes_FromStringAndSize(NULL, pages * FRAME_SIZE);
    if (packed == NULL)
        return NULL;
    for (Py_ssize_t n = 0; n < pages; n++) {
        unsigned char *frame = (unsigned char *)PyBytes_AS_STRING(packed) + n * FRAME_SIZE;
        memset(frame, 0, FRAME_SIZE);
        if (n >= PyList_GET_SIZE(arguments[2]) || pack_body(frame + HEADER_SIZE, PyList_GET_ITEM(arguments[2], n)) < 0) {
            Py_DECREF(packed);
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_RuntimeError, "pack_placed: the list got shorter");
            return NULL;
        }
        pack_header(frame, PyBytes_AS_STRING(arguments[0]), sequence + (uint64_t)n);
    }
    return packed;
}

/* --- whole pages side by side ---------------------------------------------------------------- */

/* A batch of them, as it is read. */
typedef struct {
    uint64_t page_size, place;
    int spooled, is_first;
    uint64_t writer, after; /* of the page before */
    uint64_t definitions;
    unsigned char gap[LOST_COUNT_SIZE + BLOCK + PAGE_HEADER_SIZE]; /* the page before: its end; this one: its header */
    size_t gap_size;
} Side;

static int
append_gap(PyObject *buffers, Side *side)
{
    PyObject *gap = PyBytes_FromStringAndSize((const char *)side->gap, (Py_ssize_t)side->gap_size);
    int failed = gap == NULL ? -1 : PyList_Append(buffers, gap);
    Py_XDECREF(gap);
    return failed;
}

/* The body of a page's frame, but for its crc32. 1: the page belongs behind the one before; 0: it does not. */
static int
plan_body(unsigned char *body, PyObject *entry, Side *side)
{
    if (!PyTuple_Check(entry) || PyTuple_GET_SIZE(entry) != 9) {
        PyErr_SetString(PyExc_TypeError, "plan_whole: pages' entries were expected");
        return -1;
    }
    for (size_t n = 0; n < sizeof ENTRY_FIELDS / sizeof *ENTRY_FIELDS; n++)
        if (pack_field(body, entry, ENTRY_FIELDS[n]) < 0)
            return -1;
    if (pack_flag(body + 4, PyTuple_GET_ITEM(entry, 3)) < 0)
        return -1;
    const uint64_t sequence = get(body + 8, 8), lost = get(body + 24, 8), committed = get(body + 44, 4);
    if (get(body + 32, 4) != 0 || lost > INT64_MAX
        || committed + PAGE_HEADER_SIZE + LOST_COUNT_SIZE > side->page_size)
        return 0;
    if (!side->is_first && (get(body, 4) != side->writer || sequence <= side->after))
        return 0;
    side->writer = get(body, 4);
    side->after = sequence;
    put(body + 48, side->place, 8);
    put(body + 56, (uint64_t)side->spooled, 4);
    side->definitions = Py_MAX(side->definitions, get(body + 40, 4));
    return 1;
}

/* One page: its header and records into the buffers, its end into the gap. As plan_body. */
static int
plan_page(unsigned char *body, PyObject *entry, PyObject *data, Side *side, PyObject *buffers)
{
    const int belongs = plan_body(body, entry, side);
    if (belongs <= 0)
        return belongs;
    const uint64_t lost = get(body + 24, 8), committed = get(body + 44, 4);
    Py_buffer records;
    if (PyObject_GetBuffer(data, &records, PyBUF_SIMPLE) < 0)
        return -1;
    const int fits = (uint64_t)records.len == committed;
    if (fits)
        put(body + 68, aiotrace_crc32(0, records.buf, (size_t)records.len), 4);
    PyBuffer_Release(&records);
    if (!fits)
        return 0;
    const uint64_t header[2] = {get(body + 16, 8), committed | (lost ? COMMIT_MISSED : 0)};
    memcpy(side->gap + side->gap_size, header, PAGE_HEADER_SIZE);
    side->gap_size += PAGE_HEADER_SIZE;
    if (append_gap(buffers, side) < 0 || PyList_Append(buffers, data) < 0)
        return -1;
    const uint64_t lost_size = lost ? LOST_COUNT_SIZE : 0, size = PAGE_HEADER_SIZE + committed + lost_size;
    const uint64_t rest = (BLOCK - size % BLOCK) % BLOCK;
    memcpy(side->gap, &lost, lost_size);
    memset(side->gap + lost_size, 0, rest);
    side->gap_size = lost_size + rest;
    side->is_first = 0;
    side->place += side->page_size;
    return size + rest == side->page_size ? 1 : 2; /* 2: nothing belongs behind it */
}

PyDoc_STRVAR(plan_whole_doc,
             "plan_whole(entries, data, page_size, place, spooled) -> tuple or None; see aiotrace._wholepages.");

static PyObject *
plan_whole(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *entries, *data, *buffers, *bodies = NULL, *planned = NULL;
    unsigned long long page_size, place;
    Side side = {.is_first = 1};
    if (!PyArg_ParseTuple(arguments, "O!O!KKp:plan_whole", &PyTuple_Type, &entries, &PyTuple_Type, &data, &page_size,
                          &place, &side.spooled))
        return NULL;
    const Py_ssize_t pages = PyTuple_GET_SIZE(entries);
    if (PyTuple_GET_SIZE(data) != pages || page_size < BLOCK || page_size > PAGE_SIZE_MAX) {
        PyErr_Format(PyExc_ValueError, "%zd pages of %llu bytes, the records of %zd", pages, page_size,
                     PyTuple_GET_SIZE(data));
        return NULL;
    }
    side.page_size = page_size;
    side.place = place;
    buffers = PyList_New(0);
    bodies = PyBytes_FromStringAndSize(NULL, pages * BODY_SIZE);
    int belongs = buffers == NULL || bodies == NULL ? -1 : 1;
    if (belongs > 0)
        memset(PyBytes_AS_STRING(bodies), 0, (size_t)(pages * BODY_SIZE));
    for (Py_ssize_t n = 0; n < pages && belongs > 0; n++) {
        unsigned char *body = (unsigned char *)PyBytes_AS_STRING(bodies) + n * BODY_SIZE;
        belongs = belongs == 2 ? 0
                               : plan_page(body, PyTuple_GET_ITEM(entries, n), PyTuple_GET_ITEM(data, n), &side, buffers);
    }
    if (belongs > 0 && (side.gap_size == 0 || append_gap(buffers, &side) == 0))
        planned = Py_BuildValue("(OOK)", buffers, bodies, (unsigned long long)side.definitions);
    else if (belongs == 0)
        planned = Py_NewRef(Py_None);
    Py_XDECREF(buffers);
    Py_XDECREF(bodies);
    return planned;
}

PyDoc_STRVAR(pack_whole_doc, "pack_whole(stream_id, sequence, bodies) -> bytes; see aiotrace._wholepages.");

static PyObject *
pack_whole(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *stream_id, *bodies;
    unsigned long long sequence;
    if (!PyArg_ParseTuple(arguments, "SKS:pack_whole", &stream_id, &sequence, &bodies))
        return NULL;
    if (PyBytes_GET_SIZE(stream_id) != 16 || PyBytes_GET_SIZE(bodies) % BODY_SIZE) {
        PyErr_SetString(PyExc_ValueError, "pack_whole(stream_id: 16 bytes, sequence: int, bodies: of 72 bytes each)");
        return NULL;
    }
    const Py_ssize_t pages = PyBytes_GET_SIZE(bodies) / BODY_SIZE;
    PyObject *packed = PyBytes_FromStringAndSize(NULL, pages * FRAME_SIZE);
    for (Py_ssize_t n = 0; packed != NULL && n < pages; n++) {
        unsigned char *frame = (unsigned char *)PyBytes_AS_STRING(packed) + n * FRAME_SIZE;
        memcpy(frame + HEADER_SIZE, PyBytes_AS_STRING(bodies) + n * BODY_SIZE, BODY_SIZE);
        pack_header(frame, PyBytes_AS_STRING(stream_id), sequence + (uint64_t)n);
    }
    return packed;
}

/* --- taking ---------------------------------------------------------------------------------- */

typedef struct {
    uint64_t sequence, end, timestamp, lost, place;
    uint32_t writer, events, committed, crc;
} Whole;

typedef struct {
    uint64_t pages, events, committed, lost;
    const Whole *last;
    PyObject *rows;
} Run;

/* Whether a whole page is what this frame says, in the place where the next one of its writer belongs. */
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
    if (get(body + 4, 4) != 1 || get(body + 60, 4) != 0 || lost < 0 || offset + committed > PAGE_SIZE_MAX - PAGE_HEADER_SIZE
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

PyDoc_STRVAR(take_whole_doc, "take_whole(data, stream_id, page_size, expected) -> tuple; see aiotrace._wholepages.");

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

/* --- reserving ------------------------------------------------------------------------------- */

PyDoc_STRVAR(reserve_doc, "reserve(fd, offset, size) -> bool; see aiotrace._files.");

static PyObject *
reserve(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    int fd;
    long long offset, size;
    if (!PyArg_ParseTuple(arguments, "iLL", &fd, &offset, &size))
        return NULL;
#ifdef FALLOC_FL_KEEP_SIZE
    /* Not posix_fallocate(): where the file system cannot, that writes into every block. */
    return PyBool_FromLong(fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)size) == 0);
#else
    Py_RETURN_FALSE;
#endif
}

static PyMethodDef functions[] = {
    {"pack_placed", (PyCFunction)(void (*)(void))pack_placed, METH_FASTCALL, pack_placed_doc},
    {"plan_whole", plan_whole, METH_VARARGS, plan_whole_doc},
    {"pack_whole", pack_whole, METH_VARARGS, pack_whole_doc},
    {"take_whole", (PyCFunction)(void (*)(void))take_whole, METH_FASTCALL, take_whole_doc},
    {"reserve", reserve, METH_VARARGS, reserve_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_files_exec(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
