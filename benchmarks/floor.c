/* The least that an event can cost: what aiotrace's own are measured against.
 *
 *     floor_object, floor_bound    write a record of three numbers (u64, s64, f64), as the kernel lays it out, with
 *                                  CLOCK_MONOTONIC; the layout is compiled in and nothing is checked
 *     empty_object, empty_bound    do nothing with three arguments
 *
 * An object is called by vectorcall, a bound function as METH_FASTCALL: the two ways that CPython has of calling C.
 * There is one page, which begins anew when it is full: no pool, no reader, no ledger. Compiled by floor.py.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>
#include <time.h>

#define PAGE_SIZE 65536
#define PAYLOAD 32
#define EVENT_ID 2048

static uint64_t page[PAGE_SIZE / 8];
static uint32_t end = PAGE_SIZE;
static uint64_t last, written;
static int32_t pid;

static inline void
write_record(PyObject *const *args)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    if (end + 4 + PAYLOAD > PAGE_SIZE) {
        page[0] = last = ns;
        end = 16;
    }
    char *record = (char *)page + end;
    uint32_t header = PAYLOAD / 4 | (uint32_t)(ns - last) << 5, common = EVENT_ID;
    uint64_t first = PyLong_AsUnsignedLongLong(args[0]);
    int64_t second = PyLong_AsLongLong(args[1]);
    double third = PyFloat_AS_DOUBLE(args[2]);
    memcpy(record, &header, 4);
    memcpy(record + 4, &common, 4);
    memcpy(record + 8, &pid, 4);
    memcpy(record + 12, &first, 8);
    memcpy(record + 20, &second, 8);
    memcpy(record + 28, &third, 8);
    last = ns;
    end += 4 + PAYLOAD;
    written++;
    __atomic_store_n(&page[1], (uint64_t)(end - 16), __ATOMIC_RELEASE);
}

static PyObject *
floor_bound(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t Py_UNUSED(nargs))
{
    write_record(args);
    Py_RETURN_NONE;
}

static PyObject *
empty_bound(PyObject *Py_UNUSED(self), PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(nargs))
{
    Py_RETURN_NONE;
}

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
} Callable;

static PyObject *
floor_object(PyObject *Py_UNUSED(self), PyObject *const *args, size_t Py_UNUSED(nargs), PyObject *Py_UNUSED(names))
{
    write_record(args);
    Py_RETURN_NONE;
}

static PyObject *
empty_object(PyObject *Py_UNUSED(self), PyObject *const *Py_UNUSED(args), size_t Py_UNUSED(nargs),
             PyObject *Py_UNUSED(names))
{
    Py_RETURN_NONE;
}

static PyMemberDef members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Callable, vectorcall), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot slots[] = {{Py_tp_call, PyVectorcall_Call}, {Py_tp_members, members}, {0, NULL}};

static PyType_Spec spec = {
    "aiotrace_floor.Callable", sizeof(Callable), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL, slots,
};

static PyObject *
get_page(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyBytes_FromStringAndSize((char *)page, end);
}

static PyObject *
get_written(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromUnsignedLongLong(written);
}

static PyMethodDef functions[] = {
    {"floor_bound", (PyCFunction)(void (*)(void))floor_bound, METH_FASTCALL, NULL},
    {"empty_bound", (PyCFunction)(void (*)(void))empty_bound, METH_FASTCALL, NULL},
    {"page", get_page, METH_NOARGS, "The page as far as it is written."},
    {"written", get_written, METH_NOARGS, "Records so far."},
    {NULL, NULL, 0, NULL},
};

static int
add_callable(PyObject *module, PyObject *type, const char *name, vectorcallfunc call)
{
    Callable *made = PyObject_New(Callable, (PyTypeObject *)type);
    if (made == NULL)
        return -1;
    made->vectorcall = call;
    int failed = PyModule_AddObjectRef(module, name, (PyObject *)made);
    Py_DECREF(made);
    return failed;
}

static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "aiotrace_floor", NULL, -1, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC
PyInit_aiotrace_floor(void)
{
    PyObject *module = PyModule_Create(&definition);
    PyObject *type = PyType_FromSpec(&spec);
    if (module == NULL || type == NULL || add_callable(module, type, "floor_object", floor_object) < 0 ||
        add_callable(module, type, "empty_object", empty_object) < 0) {
        Py_XDECREF(type);
        Py_XDECREF(module);
        return NULL;
    }
    Py_DECREF(type);
    PyObject *id = PyLong_FromUnsignedLong(PyThread_get_thread_native_id());
    if (id == NULL)
        return NULL;
    pid = (int32_t)PyLong_AsLong(id);
    Py_DECREF(id);
    return module;
}
