/* What writing and closing a trace does for each page, many pages at once: the twins of _wholepages.py, _wholewrite.py.
 *
 *     write_whole   a batch of pages --> into their files, and their frames into the journal, in one call
 *     pack_whole    bodies of frames --> their frames for the journal
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
#include <sys/uio.h>

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

/* --- whole pages into their files ------------------------------------------------------------- */

enum {
    PIECE = 1 << 20, /* one pwritev ends at a multiple of it, so that the kernel takes large pieces of memory */
    RESERVE_FROM = 1 << 18, /* as in _files.py */
    RESERVED = 4 << 20,
    IOV_PAGE = 4, /* header, records, lost count, zeros */
    IOV_MOST = 1024,
};

static const unsigned char ZEROS[BLOCK];

/* A page of a batch. */
typedef struct {
    Py_buffer records;
    uint64_t header[2], lost;
    size_t rest; /* bytes of zeros up to the end of its last block */
    Py_ssize_t lane;
    unsigned char *body;
} BatchPage;

/* Where the pages of one writer go. */
typedef struct {
    uint64_t writer, first, place, reserved;
    int fd, spooled, is_open; /* whether a page may follow: the one before fills its page of the file */
    Py_ssize_t pages, last, whole;
} Lane;

typedef struct {
    BatchPage *pages;
    Lane *lanes;
    Py_ssize_t pages_count, lanes_count;
    uint64_t page_size, sequence, journal_end;
    const char *stream_id, *prefix;
    size_t prefix_size;
    int journal, error, journal_error; /* errno, or 0 */
    unsigned char *frames;
    struct iovec *iov;
} Batch;

/* pwritev until everything is written, as _files.write_most. Returns bytes; `*error` is an errno, or 0. */
static uint64_t
write_most(int fd, struct iovec *iov, int count, uint64_t offset, int *error)
{
    uint64_t written = 0;
    *error = 0;
    while (count > 0) {
        const ssize_t size = pwritev(fd, iov, Py_MIN(count, IOV_MOST), (off_t)(offset + written));
        if (size <= 0) {
            if (size < 0 && errno == EINTR)
                continue;
            *error = size < 0 ? errno : EIO;
            break;
        }
        written += (uint64_t)size;
        size_t rest = (size_t)size;
        while (count > 0 && rest >= iov->iov_len) {
            rest -= iov->iov_len;
            iov++;
            count--;
        }
        if (rest) {
            iov->iov_base = (char *)iov->iov_base + rest;
            iov->iov_len -= rest;
        }
    }
    return written;
}

static void
reserve_lane(Lane *lane, uint64_t page_size)
{
#ifdef FALLOC_FL_KEEP_SIZE
    const uint64_t size = (uint64_t)lane->pages * page_size;
    if (size < RESERVE_FROM || lane->place + size <= lane->reserved)
        return;
    (void)!fallocate(lane->fd, FALLOC_FL_KEEP_SIZE, (off_t)lane->place, RESERVED); /* where it cannot: no harm */
    lane->reserved = lane->place + RESERVED;
#endif
}

static struct iovec *
add_iov(struct iovec *iov, const void *data, size_t size)
{
    if (size == 0)
        return iov;
    iov->iov_base = (void *)(uintptr_t)data;
    iov->iov_len = size;
    return iov + 1;
}

static void
put_crc(BatchPage *page)
{
    put(page->body + 68, aiotrace_crc32(0, page->records.buf, (size_t)page->records.len), 4);
}

/* The pages of one writer, side by side; each piece is in the cache from crc32 to write, as far as it has room. Without
 * the lock of the interpreter. */
static int
write_lane(Batch *batch, Py_ssize_t index)
{
    Lane *lane = &batch->lanes[index];
    struct iovec *next = batch->iov;
    uint64_t end = lane->place, written = 0;
    reserve_lane(lane, batch->page_size);
    for (Py_ssize_t n = 0; n <= lane->last; n++) {
        BatchPage *page = &batch->pages[n];
        if (page->lane != index)
            continue;
        put_crc(page);
        next = add_iov(next, page->header, sizeof page->header);
        next = add_iov(next, page->records.buf, (size_t)page->records.len);
        next = add_iov(next, &page->lost, page->lost ? sizeof page->lost : 0);
        next = add_iov(next, ZEROS, page->rest);
        end += batch->page_size;
        if (n < lane->last && end % PIECE != 0 && next - batch->iov <= IOV_MOST - IOV_PAGE)
            continue;
        int error;
        written += write_most(lane->fd, batch->iov, (int)(next - batch->iov), lane->place + written, &error);
        if (error) {
            lane->whole = (Py_ssize_t)(written / batch->page_size);
            return error;
        }
        next = batch->iov;
    }
    lane->whole = lane->pages;
    return 0;
}

/* Pages first, then their frames. Without the lock of the interpreter. */
static void
write_batch(Batch *batch)
{
    for (Py_ssize_t index = 0; index < batch->lanes_count && !batch->error; index++)
        if (batch->lanes[index].pages)
            batch->error = write_lane(batch, index);
    if (batch->error) {
        for (Py_ssize_t n = 0; n < batch->pages_count; n++)
            put_crc(&batch->pages[n]); /* what is whole in the order of the batch will be in the journal */
        return;
    }
    for (Py_ssize_t n = 0; n < batch->pages_count; n++)
        pack_header(batch->frames + n * FRAME_SIZE, batch->stream_id, batch->sequence + (uint64_t)n);
    struct iovec *end = add_iov(batch->iov, batch->prefix, batch->prefix_size);
    end = add_iov(end, batch->frames, (size_t)batch->pages_count * FRAME_SIZE);
    write_most(batch->journal, batch->iov, (int)(end - batch->iov), batch->journal_end, &batch->journal_error);
}

/* The body of a page's frame, but for its crc32, and what is around its records. 1: it can be written; 0: it is not as
 * expected. */
static int
take_page(Batch *batch, Py_ssize_t n, PyObject *entry, PyObject *data)
{
    BatchPage *page = &batch->pages[n];
    unsigned char *body = page->body = batch->frames + n * FRAME_SIZE + HEADER_SIZE;
    if (!PyTuple_Check(entry) || PyTuple_GET_SIZE(entry) != 9) {
        PyErr_SetString(PyExc_TypeError, "write_whole: pages' entries were expected");
        return -1;
    }
    for (size_t field = 0; field < sizeof ENTRY_FIELDS / sizeof *ENTRY_FIELDS; field++)
        if (pack_field(body, entry, ENTRY_FIELDS[field]) < 0)
            return -1;
    if (pack_flag(body + 4, PyTuple_GET_ITEM(entry, 3)) < 0)
        return -1;
    if (PyObject_GetBuffer(data, &page->records, PyBUF_SIMPLE) < 0)
        return -1;
    const uint64_t sequence = get(body + 8, 8), lost = get(body + 24, 8), committed = get(body + 44, 4);
    if (get(body + 32, 4) != 0 || lost > INT64_MAX || (uint64_t)page->records.len != committed
        || committed + PAGE_HEADER_SIZE + LOST_COUNT_SIZE > batch->page_size)
        return 0;
    page->lane = 0;
    while (page->lane < batch->lanes_count && batch->lanes[page->lane].writer != get(body, 4))
        page->lane++;
    if (page->lane == batch->lanes_count)
        return 0;
    Lane *lane = &batch->lanes[page->lane];
    if (!lane->is_open || sequence < lane->first)
        return 0;
    put(body + 48, lane->place + (uint64_t)lane->pages * batch->page_size, 8);
    put(body + 56, (uint64_t)lane->spooled, 4);
    const uint64_t size = PAGE_HEADER_SIZE + committed + (lost ? LOST_COUNT_SIZE : 0);
    page->header[0] = get(body + 16, 8);
    page->header[1] = committed | (lost ? COMMIT_MISSED : 0);
    page->lost = lost;
    page->rest = (size_t)((BLOCK - size % BLOCK) % BLOCK);
    lane->is_open = size + page->rest == batch->page_size && sequence < UINT64_MAX;
    lane->first = sequence + 1;
    lane->last = n;
    lane->pages++;
    return 1;
}

static int
take_lane(Lane *lane, PyObject *tuple)
{
    unsigned long long writer, first, place, reserved;
    if (!PyTuple_Check(tuple) || !PyArg_ParseTuple(tuple, "KKiKpK:write_whole", &writer, &first, &lane->fd, &place,
                                                   &lane->spooled, &reserved)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "write_whole: lanes were expected");
        return -1;
    }
    lane->writer = writer;
    lane->first = first;
    lane->place = place;
    lane->reserved = reserved;
    lane->is_open = 1;
    lane->last = -1;
    return 0;
}

static PyObject *
make_error(int number)
{
    return number == 0 ? Py_NewRef(Py_None) : PyObject_CallFunction(PyExc_OSError, "is", number, strerror(number));
}

static PyObject *
make_outcome(const Batch *batch)
{
    PyObject *bodies = PyBytes_FromStringAndSize(NULL, batch->pages_count * BODY_SIZE);
    PyObject *lanes = PyTuple_New(batch->lanes_count);
    if (bodies == NULL || lanes == NULL)
        goto error;
    for (Py_ssize_t n = 0; n < batch->pages_count; n++)
        memcpy(PyBytes_AS_STRING(bodies) + n * BODY_SIZE, batch->pages[n].body, BODY_SIZE);
    for (Py_ssize_t n = 0; n < batch->lanes_count; n++) {
        const Lane *lane = &batch->lanes[n];
        PyObject *item = Py_BuildValue("(nnnK)", lane->last, lane->pages, lane->whole,
                                       (unsigned long long)lane->reserved);
        if (item == NULL)
            goto error;
        PyTuple_SET_ITEM(lanes, n, item);
    }
    return Py_BuildValue("(NNNN)", bodies, lanes, make_error(batch->error), make_error(batch->journal_error));
error:
    Py_XDECREF(bodies);
    Py_XDECREF(lanes);
    return NULL;
}

static int
make_room(Batch *batch)
{
    batch->pages = PyMem_Calloc((size_t)batch->pages_count, sizeof *batch->pages);
    batch->lanes = PyMem_Calloc((size_t)batch->lanes_count, sizeof *batch->lanes);
    batch->frames = PyMem_Calloc((size_t)batch->pages_count, FRAME_SIZE);
    batch->iov = PyMem_Calloc(IOV_MOST, sizeof *batch->iov);
    if (batch->pages != NULL && batch->lanes != NULL && batch->frames != NULL && batch->iov != NULL)
        return 0;
    PyErr_NoMemory();
    return -1;
}

PyDoc_STRVAR(write_whole_doc,
             "write_whole(entries, data, lanes, page_size, stream_id, sequence, prefix, journal, journal_end) -> tuple "
             "or None; see aiotrace._wholewrite.");

static PyObject *
write_whole(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *entries, *data, *lanes, *stream_id, *prefix, *outcome = NULL;
    unsigned long long page_size, sequence, journal_end;
    Batch batch = {.lanes_count = 0};
    if (!PyArg_ParseTuple(arguments, "O!O!O!KSKSiK:write_whole", &PyTuple_Type, &entries, &PyTuple_Type, &data,
                          &PyTuple_Type, &lanes, &page_size, &stream_id, &sequence, &prefix, &batch.journal,
                          &journal_end))
        return NULL;
    batch.pages_count = PyTuple_GET_SIZE(entries);
    batch.lanes_count = PyTuple_GET_SIZE(lanes);
    if (PyTuple_GET_SIZE(data) != batch.pages_count || page_size < BLOCK || page_size > PAGE_SIZE_MAX
        || PyBytes_GET_SIZE(stream_id) != 16) {
        PyErr_Format(PyExc_ValueError, "%zd pages of %llu bytes, the records of %zd, a stream id of %zd bytes",
                     batch.pages_count, page_size, PyTuple_GET_SIZE(data), PyBytes_GET_SIZE(stream_id));
        return NULL;
    }
    batch.page_size = page_size;
    batch.sequence = sequence;
    batch.journal_end = journal_end;
    batch.stream_id = PyBytes_AS_STRING(stream_id);
    batch.prefix = PyBytes_AS_STRING(prefix);
    batch.prefix_size = (size_t)PyBytes_GET_SIZE(prefix);
    int taken = make_room(&batch) < 0 ? -1 : 1;
    for (Py_ssize_t n = 0; n < batch.lanes_count && taken > 0; n++)
        taken = take_lane(&batch.lanes[n], PyTuple_GET_ITEM(lanes, n)) < 0 ? -1 : 1;
    for (Py_ssize_t n = 0; n < batch.pages_count && taken > 0; n++)
        taken = take_page(&batch, n, PyTuple_GET_ITEM(entries, n), PyTuple_GET_ITEM(data, n));
    if (taken > 0) {
        Py_BEGIN_ALLOW_THREADS
        write_batch(&batch);
        Py_END_ALLOW_THREADS
        outcome = make_outcome(&batch);
    } else if (taken == 0) {
        outcome = Py_NewRef(Py_None);
    }
    for (Py_ssize_t n = 0; batch.pages != NULL && n < batch.pages_count; n++)
        PyBuffer_Release(&batch.pages[n].records);
    PyMem_Free(batch.pages);
    PyMem_Free(batch.lanes);
    PyMem_Free(batch.frames);
    PyMem_Free(batch.iov);
    return outcome;
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
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)size);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(!failed);
#else
    Py_RETURN_FALSE;
#endif
}

static PyMethodDef functions[] = {
    {"pack_placed", (PyCFunction)(void (*)(void))pack_placed, METH_FASTCALL, pack_placed_doc},
    {"write_whole", write_whole, METH_VARARGS, write_whole_doc},
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
