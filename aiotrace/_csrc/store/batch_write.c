/* A batch of whole pages into their files, and their frames into the journal, in one call; and
 * blocks for what follows: an ext4 that has them ready writes in three quarters of the time.
 *
 *     pages of writers 1, 4, 1 --> lane of 1: crc32, pwritev     lane of 4: the same     --> frames, pwritev
 *                                  without the lock of the interpreter, all of it
 *
 * The invariants are those of _store/batch_write.py: only what is as expected is written; pages
 * first, then frames.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "store/store.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/uio.h>

enum {
    PIECE = 1 << 20, /* one pwritev ends at a multiple of it, so that the kernel takes large pieces of memory */
    RESERVE_FROM = 1 << 18, /* as in _store/trace_files.py */
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

/* pwritev until everything is written, as _files.write_most. Returns bytes; `*error` is an errno,
 * or 0. */
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

/* The pages of one writer, side by side; each piece is in the cache from crc32 to write, as far as
 * it has room. Without the lock of the interpreter. */
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
        aiotrace_pack_header(batch->frames + n * FRAME_SIZE, batch->stream_id, batch->sequence + (uint64_t)n);
    struct iovec *end = add_iov(batch->iov, batch->prefix, batch->prefix_size);
    end = add_iov(end, batch->frames, (size_t)batch->pages_count * FRAME_SIZE);
    write_most(batch->journal, batch->iov, (int)(end - batch->iov), batch->journal_end, &batch->journal_error);
}

/* The body of a page's frame, but for its crc32, and what is around its records. 1: it can be
 * written; 0: it is not as expected. */
static int
take_page(Batch *batch, Py_ssize_t n, PyObject *entry, PyObject *data)
{
    BatchPage *page = &batch->pages[n];
    unsigned char *body = page->body = batch->frames + n * FRAME_SIZE + HEADER_SIZE;
    if (!PyTuple_Check(entry) || PyTuple_GET_SIZE(entry) != 9) {
        PyErr_SetString(PyExc_TypeError, "write_whole: pages' entries were expected");
        return -1;
    }
    if (aiotrace_pack_entry(body, entry) < 0)
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
             "or None; see aiotrace._store.batch_write.");

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

PyDoc_STRVAR(reserve_doc, "reserve(fd, offset, size) -> bool; see aiotrace._store.trace_files.");

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
    {"write_whole", write_whole, METH_VARARGS, write_whole_doc},
    {"reserve", reserve, METH_VARARGS, reserve_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_batch_write_exec(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
