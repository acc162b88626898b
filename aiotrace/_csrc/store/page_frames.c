/* The frames of pages, for the journal.
 *
 *     | header: magic, kind, crc32 of the body, stream, sequence, crc32 of these | body: a page, and its place |
 *
 * Invariant: a number that does not fit into its field is an OverflowError, and nothing is packed.
 */
#include "store/store.h"

/* A field of a frame's body: where it comes from in the tuple, where it goes, and how many bytes it
 * has. */
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

int
aiotrace_pack_entry(unsigned char *body, PyObject *entry)
{
    for (size_t n = 0; n < sizeof ENTRY_FIELDS / sizeof *ENTRY_FIELDS; n++)
        if (pack_field(body, entry, ENTRY_FIELDS[n]) < 0)
            return -1;
    return pack_flag(body + 4, PyTuple_GET_ITEM(entry, 3));
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
    if (aiotrace_pack_entry(body, entry) < 0)
        return -1;
    for (size_t n = 0; n < sizeof PLACE_FIELDS / sizeof *PLACE_FIELDS; n++)
        if (pack_field(body, placed, PLACE_FIELDS[n]) < 0)
            return -1;
    return pack_flag(body + 56, PyTuple_GET_ITEM(placed, 1));
}

void
aiotrace_pack_header(unsigned char *frame, const char *stream_id, uint64_t sequence)
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

PyDoc_STRVAR(pack_placed_doc, "pack_placed(stream_id, sequence, placed) -> bytes; see aiotrace._formats.journal_runs.");

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
        if (n >= PyList_GET_SIZE(arguments[2]) || pack_body(frame + HEADER_SIZE,
                                                            PyList_GET_ITEM(arguments[2], n)) < 0) {
            Py_DECREF(packed);
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_RuntimeError, "pack_placed: the list got shorter");
            return NULL;
        }
        aiotrace_pack_header(frame, PyBytes_AS_STRING(arguments[0]), sequence + (uint64_t)n);
    }
    return packed;
}

PyDoc_STRVAR(pack_whole_doc, "pack_whole(stream_id, sequence, bodies) -> bytes; see aiotrace._formats.journal_runs.");

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
        aiotrace_pack_header(frame, PyBytes_AS_STRING(stream_id), sequence + (uint64_t)n);
    }
    return packed;
}

static PyMethodDef functions[] = {
    {"pack_placed", (PyCFunction)(void (*)(void))pack_placed, METH_FASTCALL, pack_placed_doc},
    {"pack_whole", pack_whole, METH_VARARGS, pack_whole_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_page_frames_exec(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
