/* What all C files of aiotrace._c share: compiler macros, the module's state, and the list of its
 * parts.
 *
 *     module.c   the module itself
 *     common/    layout numbers, the clock, crc32, UTF-8, eventfd
 *     ring/      pages while they are written: cursors, leases of threads, page states, turning, delivery
 *     events/    events and spans
 *     tasks/     tracing tasks of asyncio, uvloop and trio
 *     calls/     tracing calls of Python functions
 *     stalls/    noticing steps that last too long
 *     store/     trace files and their journals
 *     decode/    reading records: fields, columns, lines of text
 *
 * A folder uses those above it, and common: ring < events < stalls < {tasks, calls}; store and
 * decode use common alone. Each part adds its types and functions to the module in its exec
 * function.
 */
#ifndef AIOTRACE_COMMON_H
#define AIOTRACE_COMMON_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

#include "common/layout.h"

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* glibc keeps room for a few words of modules that are loaded late: no call is needed to find them. */
#ifdef __GLIBC__
#define THREAD_LOCAL __thread __attribute__((tls_model("initial-exec")))
#else
#define THREAD_LOCAL __thread
#endif

/* Code that runs and data that is read for each record or step lie together: programs fill the
 * processor's caches, and fetching a line costs more than what is done with it. */
#define HOT __attribute__((hot))
#ifdef __ELF__
#define HOT_DATA __attribute__((section("aiotrace_hot")))
#else
#define HOT_DATA
#endif

typedef struct {
    PyObject *TraceFormatError;
    PyTypeObject *walk_type;
} aiotrace_state;

static inline aiotrace_state *
aiotrace_get_state(PyObject *module)
{
    return (aiotrace_state *)PyModule_GetState(module);
}

/* Make a type, add it to the module under this name and keep it in `*type`. Returns -1 with an
 * exception set on failure. */
static inline int
aiotrace_add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **type, const char *name)
{
    *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    return *type == NULL ? -1 : PyModule_AddObjectRef(module, name, (PyObject *)*type);
}

/* Add a part's types and functions to the module. Return -1 with an exception set on failure. */
int aiotrace_clock_exec(PyObject *module);
int aiotrace_crc32_exec(PyObject *module);
int aiotrace_eventfd_exec(PyObject *module);
int aiotrace_cursor_exec(PyObject *module);
int aiotrace_delivery_exec(PyObject *module);
int aiotrace_page_state_exec(PyObject *module);
int aiotrace_thread_lease_exec(PyObject *module);
int aiotrace_turn_exec(PyObject *module);
int aiotrace_event_exec(PyObject *module);
int aiotrace_span_exec(PyObject *module);
int aiotrace_tasks_exec(PyObject *module);
int aiotrace_calls_exec(PyObject *module);
int aiotrace_stalls_exec(PyObject *module);
int aiotrace_batch_write_exec(PyObject *module);
int aiotrace_journal_runs_exec(PyObject *module);
int aiotrace_page_frames_exec(PyObject *module);
int aiotrace_columns_exec(PyObject *module);
int aiotrace_report_lines_exec(PyObject *module);
int aiotrace_walk_exec(PyObject *module);

#endif
