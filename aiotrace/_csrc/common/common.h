/* What the C files of aiotrace._c share: the numbers of _page/layout.py, the module's state, and who sets up what.
 *
 *     module.c   the module itself; knows no page
 *     eventfd.c    waking a loop
 *     decode/columns.c  reading: columns
 *     crc32.c      the crc32 of a page
 *     ring/cursor.c   writing: a place on a page, and the clocks
 *     ring/delivery.c pages that go to sinks and come back
 *     events/event.c    writing: events
 *     store/store.h    writing and closing traces: what is done for each page
 *     calls/calls.h writing: calls of functions
 *     ring/thread_lease.c    writing: the writers of a thread, and whether anybody records
 *     decode/report_lines.c    reading: lines of text, whose parts decode/field_print.c prints
 *     decode/walk.c  reading: records, which decode/columns.c and decode/report_lines.c read by decode/walk.h
 *     events/span.c     writing: spans, which are two events
 *     ring/turn.c     writing: the turn of a page
 *     stalls/stalls.h    noticing steps that last too long, while they do
 *
 * Each part adds its types in its own exec function; what one part asks of another stands at the end.
 */
#ifndef AIOTRACE_H
#define AIOTRACE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

/* --- record (_page/layout.py) --- */
#define AIOTRACE_TYPE_LEN_BITS 5
#define AIOTRACE_TYPE_LEN_MASK 31
#define AIOTRACE_TYPE_DATA_MAX 28
#define AIOTRACE_TYPE_PADDING 29
#define AIOTRACE_TYPE_TIME_EXTEND 30
#define AIOTRACE_TYPE_TIME_STAMP 31
#define AIOTRACE_TIME_DELTA_BITS 27
#define AIOTRACE_TIME_DELTA_MAX ((1u << AIOTRACE_TIME_DELTA_BITS) - 1)
#define AIOTRACE_TIME_STAMP_BITS 59
#define AIOTRACE_RECORD_COMMON_SIZE 8

/* --- descriptor (_page/layout.py): its words, and the states --- */
enum {
    AIOTRACE_STATE, AIOTRACE_WRITER, AIOTRACE_SEQUENCE, AIOTRACE_FIRST_EVENT, AIOTRACE_EVENTS, AIOTRACE_COMMITTED,
    AIOTRACE_LAST_TIME, AIOTRACE_DEFINITIONS, AIOTRACE_HOLDERS, AIOTRACE_DELIVERED, AIOTRACE_TAKES, AIOTRACE_CHECK,
    AIOTRACE_DESCRIPTOR_WORDS = 16,
};
enum { AIOTRACE_FREE, AIOTRACE_FILLING, AIOTRACE_FULL, AIOTRACE_IN_FLIGHT };

/* The descriptor of a page, or NULL with an exception set. */
static inline uint64_t *
aiotrace_descriptor(const Py_buffer *descriptors, Py_ssize_t page)
{
    if (page < 0 || page >= descriptors->len / (AIOTRACE_DESCRIPTOR_WORDS * 8)) {
        PyErr_Format(PyExc_IndexError, "page %zd is in no descriptor", page);
        return NULL;
    }
    return (uint64_t *)descriptors->buf + page * AIOTRACE_DESCRIPTOR_WORDS;
}

/* Nothing is on the page, and nobody holds it. */
static inline void
aiotrace_empty(uint64_t *words)
{
    memset(words + AIOTRACE_EVENTS, 0, (AIOTRACE_DELIVERED + 1 - AIOTRACE_EVENTS) * 8);
}

/* What runs, and what is read, for each record or step lies together: programs fill the processor's caches, and what has
 * to be fetched into them costs more than what is done with it. */
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

/* Make a type of the module's, under this name, and keep it in `*type`. Returns -1 with an exception set on failure. */
static inline int
aiotrace_add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **type, const char *name)
{
    *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    return *type == NULL ? -1 : PyModule_AddObjectRef(module, name, (PyObject *)*type);
}

/* Add the part's types and functions to the module. Return -1 with an exception set if that cannot be done. */
int aiotrace_eventfd_exec(PyObject *module);
int aiotrace_columns_exec(PyObject *module);
int aiotrace_crc32_exec(PyObject *module);
int aiotrace_cursor_exec(PyObject *module);
int aiotrace_delivery_exec(PyObject *module);
int aiotrace_event_exec(PyObject *module);
int aiotrace_batch_write_exec(PyObject *module);
int aiotrace_page_frames_exec(PyObject *module);
int aiotrace_journal_runs_exec(PyObject *module);
int aiotrace_calls_exec(PyObject *module);
int aiotrace_page_state_exec(PyObject *module);
int aiotrace_thread_lease_exec(PyObject *module);
int aiotrace_report_lines_exec(PyObject *module);
int aiotrace_walk_exec(PyObject *module);
int aiotrace_span_exec(PyObject *module);
int aiotrace_stalls_exec(PyObject *module);
int aiotrace_tasks_exec(PyObject *module);
int aiotrace_turn_exec(PyObject *module);

/* crc32.c: zlib's crc32 of some bytes, after those whose crc32 is `crc` (0: none). */
uint32_t aiotrace_crc32(uint32_t crc, const unsigned char *data, size_t size);

/* ring/page_state.c: let *word be `new` if it is `old`, in one step for all processes. Returns whether it was. */
int aiotrace_compare_and_swap(uint64_t *word, uint64_t old, uint64_t new);

/* ring/thread_lease.c: whether any recording is open. ring/cursor.c: CLOCK_MONOTONIC in nanoseconds. */
int aiotrace_is_recording(void);
uint64_t aiotrace_monotonic_ns(void);

/* ring/thread_lease.c: the pid of the task that runs in this thread, which records carry as common_pid; 0: none. */
void aiotrace_set_task(int32_t pid);

/* events/event.c, for tasks/start_stop.c: whether an object is an event of ours; whether no recording takes it. */
int aiotrace_event_check(PyObject *event);
int aiotrace_event_is_off(PyObject *event);

/* Record an event of numbers and symbols' keys alone.
 *
 *     now      CLOCK_MONOTONIC in ns, of just now
 *     fields   what the record holds after the common fields, byte for byte, `fixed_size` less 8
 *
 * Returns 0, without effect, if the event has to be called instead (a full page, a filter, several recordings). */
int aiotrace_event_numbers(PyObject *event, uint64_t now, const void *fields);

/* events/event.c, for function_*.c: the time by the clock of this thread's writer, in ns; and the same as aiotrace_event_numbers
 * for an event of that time. */
uint64_t aiotrace_event_now(void);
int aiotrace_event_at(PyObject *event, uint64_t now, const void *fields);

/* stalls/start_stop.c and stalls/steps.c, for tasks/start_stop.c: whether somebody watches for stalls. Then a step, of a task (or 0) and since
 * when (ns; 0: now), begins here. Returns whether it is watched: then its end has to be told, before its thread does
 * anything else. */
extern int aiotrace_is_watched;
int aiotrace_watch_begin(int32_t task, uint64_t began);
void aiotrace_watch_end(void);

/* stalls/steps.c, for tasks/start_stop.c: whether the calling thread is one of aiotrace's. */
int aiotrace_thread_is_ours(void);

#endif
