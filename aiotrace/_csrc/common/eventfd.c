/* Waking a loop that waits in epoll: a write to an eventfd does not block, so the GIL is kept. A
 * thread that releases the GIL for it gets it back only when another busy thread is done.
 */
#include "common/common.h"

#include <sys/eventfd.h>

PyDoc_STRVAR(ring_alarm_doc,
"ring_alarm(fd, /)\n"
"--\n\n"
"Add 1 to an eventfd that does not block.\n\n"
"Raises OSError if fd is not an open eventfd, ValueError or OverflowError if it is not a valid descriptor.");

static PyObject *
ring_alarm(PyObject *Py_UNUSED(module), PyObject *descriptor)
{
    int fd = PyObject_AsFileDescriptor(descriptor);
    if (fd < 0)
        return NULL;
    if (eventfd_write(fd, 1) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"ring_alarm", ring_alarm, METH_O, ring_alarm_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_eventfd_exec(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
