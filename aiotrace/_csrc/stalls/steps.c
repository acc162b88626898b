/* A thread's steps, run by the thread itself: a step begins, it has ended, and the end of a noticed
 * one is recorded.
 *
 *     begin: sequence becomes odd ... the step runs ... end: even; was it noticed? --> stall:end
 *
 * Invariants: a step that is not noticed costs a few stores and a reading of the clock, no lock and
 * no system call. A thread has one slot, made at its first step and reused for another thread when
 * it has ended.
 */
#include "stalls/stalls.h"

#include <sys/syscall.h>
#include <unistd.h>

/* Of each thread, which alone writes it. */
static THREAD_LOCAL Slot *this_slot;
static THREAD_LOCAL int is_ours; /* a thread of aiotrace's */

static pthread_key_t end_of_thread; /* gives a thread's slot back; made once, at import */

/* What stall:end holds; the order and the padding of _tracers/stall.py's definition. */
typedef struct {
    int32_t thread, task;
    uint64_t began_ns, duration_ns, cpu_ns, delay_ns, gc_ns, gil_ns, cause;
} EndRecord;

static void
thread_ended(void *argument)
{
    pthread_mutex_lock(&aiotrace_stalls.lock);
    ((Slot *)argument)->is_free = 1;
    pthread_mutex_unlock(&aiotrace_stalls.lock);
    this_slot = NULL;
}

/* This thread's slot, made when it is first needed; NULL: no memory. */
static Slot *
take_slot(void)
{
    pthread_mutex_lock(&aiotrace_stalls.lock);
    Slot *slot = aiotrace_stalls.slots;
    while (slot != NULL && !slot->is_free)
        slot = slot->next;
    if (slot == NULL && (slot = PyMem_RawCalloc(1, sizeof *slot)) != NULL) {
        slot->next = aiotrace_stalls.slots;
        aiotrace_stalls.slots = slot;
    }
    if (slot != NULL) {
        slot->is_free = 0;
        slot->depth = 0;
        if (slot->sequence & 1) /* its thread ended in the middle of a step */
            slot->sequence++;
        slot->gc_began = 0;
        slot->thread = (int32_t)syscall(SYS_gettid);
        slot->pending_report.step = slot->probed = slot->waiting.ns = 0;
        pthread_setspecific(end_of_thread, slot);
    }
    pthread_mutex_unlock(&aiotrace_stalls.lock);
    return this_slot = slot;
}

int
aiotrace_watch_begin(int32_t task, uint64_t began)
{
    Slot *slot = this_slot;
    if (unlikely(slot == NULL) && (is_ours || (slot = take_slot()) == NULL))
        return 0;
    if (slot->depth++)
        return 1;
    slot->state = PyThreadState_Get();
    store_release(&slot->task, task);
    store_release(&slot->began, began ? began : aiotrace_monotonic_ns());
    store_release(&slot->sequence, slot->sequence + 1);
    return 1;
}

/* Record the end of the step that has just ended in this thread. */
static void
emit_end(Slot *slot, uint64_t step)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    pthread_mutex_lock(&aiotrace_stalls.lock);
    Sample last = aiotrace_stall_sample(slot), first = slot->sampled == step ? slot->first : last;
    Waits waits = aiotrace_stall_waits_until(slot, last.ns);
    pthread_mutex_unlock(&aiotrace_stalls.lock);
    int cause = aiotrace_stall_judge(&first, &last, &waits, 0);
    EndRecord record = {slot->thread,
                        slot->task,
                        slot->began,
                        since(slot->began, last.ns),
                        since(first.cpu_ns, last.cpu_ns),
                        since(first.delay_ns, last.delay_ns),
                        since(first.gc_ns, last.gc_ns),
                        waits.longest_ns,
                        aiotrace_stall_causes[cause].key};
    if (!aiotrace_event_numbers(aiotrace_stalls.end_event, last.ns, &record)) {
        PyObject *result = PyObject_CallFunction(
            aiotrace_stalls.end_event, "iiKKKKKKO", (int)record.thread, (int)record.task,
                                                 (unsigned long long)record.began_ns,
            (unsigned long long)record.duration_ns, (unsigned long long)record.cpu_ns,
            (unsigned long long)record.delay_ns, (unsigned long long)record.gc_ns, (unsigned long long)record.gil_ns,
            aiotrace_stall_causes[cause].text);
        if (result == NULL)
            PyErr_WriteUnraisable(aiotrace_stalls.end_event);
        Py_XDECREF(result);
    }
    PyErr_Restore(type, value, traceback);
}

void
aiotrace_watch_end(void)
{
    Slot *slot = this_slot;
    if (slot == NULL || --slot->depth)
        return;
    uint64_t step = slot->sequence;
    store_release(&slot->sequence, step + 1);
    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* the processor's order is seen to by the watcher: `be_seen` */
    if (unlikely(load_acquire(&slot->noticed) == step))
        emit_end(slot, step);
}

int
aiotrace_thread_is_internal(void)
{
    return is_ours;
}

PyDoc_STRVAR(stall_ignore_doc, "stall_ignore()\n--\n\nThe calling thread is one of aiotrace's: its steps are not watched.");

static PyObject *
stall_ignore(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    is_ours = 1;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(stall_gc_doc, "stall_gc(phase, info)\n--\n\nFor gc.callbacks: the collector runs in this thread, or has.");

static PyObject *
stall_gc(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    Slot *slot = this_slot;
    if (slot == NULL || nargs < 1 || !PyUnicode_Check(args[0]))
        Py_RETURN_NONE;
    uint64_t now = aiotrace_monotonic_ns(), began = slot->gc_began;
    if (PyUnicode_CompareWithASCIIString(args[0], "start") == 0) {
        store_release(&slot->gc_began, now);
    }
    else if (began) {
        store_release(&slot->gc_began, 0);
        store_release(&slot->gc_ns, slot->gc_ns + since(began, now));
    }
    Py_RETURN_NONE;
}

void
aiotrace_stall_forget_threads(void)
{
    for (Slot *slot = aiotrace_stalls.slots; slot != NULL; slot = slot->next) {
        slot->is_free = slot != this_slot;
        slot->noticed = slot->pending_report.step = slot->probed = slot->waiting.ns = 0;
    }
    if (this_slot != NULL)
        this_slot->thread = (int32_t)syscall(SYS_gettid);
}

static PyMethodDef functions[] = {
    {"stall_gc", (PyCFunction)(void (*)(void))stall_gc, METH_FASTCALL, stall_gc_doc},
    {"stall_ignore", stall_ignore, METH_NOARGS, stall_ignore_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_stall_steps_exec(PyObject *module)
{
    static int has_key;
    if (!has_key && pthread_key_create(&end_of_thread, thread_ended) != 0) {
        PyErr_SetString(PyExc_OSError, "no room for what watches the ends of threads");
        return -1;
    }
    has_key = 1;
    return PyModule_AddFunctions(module, functions);
}
