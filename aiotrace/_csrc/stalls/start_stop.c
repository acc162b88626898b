/* The watch over stalls (stalls.h): start, settings, stop.
 *
 *     stall_set (threshold, cursors) --> stall_start --> the watcher and the sampler run --> stall_stop: both end
 *
 * Invariants: there is one watch in a process, and its starts and stops hold the GIL. `lock` is
 * held across a fork, so that the child finds it consistent: it has no watcher and no sampler.
 */
#include "stalls/stalls.h"

#include <errno.h>
#include <linux/membarrier.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Written by start, stop and fork, with the GIL held; every step reads it. */
HOT_DATA int aiotrace_is_watched;

/* Written under its lock by the threads that stalls.h draws. */
Stalls aiotrace_stalls = {.lock = PTHREAD_MUTEX_INITIALIZER, .is_stopping = 1};
static pthread_t watcher; /* written by start, with the GIL held */

static void
init_conditions(void) /* none of this fails on Linux */
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&aiotrace_stalls.change, &attributes);
    pthread_cond_init(&aiotrace_stalls.work, NULL);
    pthread_condattr_destroy(&attributes);
}

PyDoc_STRVAR(stall_set_doc,
             "stall_set(threshold_ns, interval_ns, cursors, writes_itself)\n--\n\n"
             "From now on steps as long as that are noticed. The watcher writes with these cursors, if it is to write\n"
             "itself; otherwise the sampler is told that nothing is written. `interval_ns`: sys.getswitchinterval().");

static PyObject *
stall_set(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long new_threshold, new_interval;
    PyObject *new_cursors;
    int itself;
    WatcherCursor *old[CURSORS_MAX];
    if (!PyArg_ParseTuple(args, "KKO!p:stall_set", &new_threshold, &new_interval, &PyTuple_Type, &new_cursors, &itself))
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(new_cursors);
    if (count > CURSORS_MAX || new_threshold < PAUSE_MIN) {
        PyErr_SetString(PyExc_ValueError, "at most 8 cursors, and at least 1,000,000 ns");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (Py_TYPE(PyTuple_GET_ITEM(new_cursors, i)) != aiotrace_watcher_cursor_type) {
            PyErr_SetString(PyExc_TypeError, "not a WatcherCursor");
            return NULL;
        }
    }
    pthread_mutex_lock(&aiotrace_stalls.lock);
    int old_count = aiotrace_stalls.cursors_count;
    memcpy(old, aiotrace_stalls.cursors, sizeof old);
    aiotrace_stalls.threshold = new_threshold;
    aiotrace_stalls.interval = new_interval;
    for (Py_ssize_t i = 0; i < count; i++)
        aiotrace_stalls.cursors[i] = (WatcherCursor *)Py_NewRef(PyTuple_GET_ITEM(new_cursors, i));
    aiotrace_stalls.cursors_count = (int)count;
    aiotrace_stalls.writes_itself = itself;
    pthread_cond_signal(&aiotrace_stalls.change);
    pthread_mutex_unlock(&aiotrace_stalls.lock);
    for (int i = 0; i < old_count; i++)
        Py_DECREF(old[i]);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(stall_start_doc,
             "stall_start(noticed, noticed_id, end, causes)\n--\n\n"
             "Start the watcher, after stall_set. `causes`: (text, key) of each. Returns the number of this watch, for\n"
             "stall_next.");

static PyObject *
stall_start(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *noticed, *end, *list;
    int id;
    if (!PyArg_ParseTuple(args, "OiOO!:stall_start", &noticed, &id, &end, &PyTuple_Type, &list))
        return NULL;
    if (!aiotrace_event_check(noticed) || !aiotrace_event_check(end) || PyTuple_GET_SIZE(list) != CAUSES) {
        PyErr_SetString(PyExc_TypeError, "stall_start takes two events and a text for each cause");
        return NULL;
    }
    if (aiotrace_is_watched) {
        PyErr_SetString(PyExc_RuntimeError, "the watch is already running");
        return NULL;
    }
    for (int i = 0; i < CAUSES; i++) {
        PyObject *text;
        unsigned long long key;
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(list, i), "UK", &text, &key))
            return NULL;
        Py_XSETREF(aiotrace_stall_causes[i].text, Py_NewRef(text));
        aiotrace_stall_causes[i].key = key;
    }
    Py_XSETREF(aiotrace_stalls.end_event, Py_NewRef(end));
    aiotrace_stalls.noticed_id = (uint16_t)id;
    syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0); /* `be_seen` does without, if it must */
    pthread_mutex_lock(&aiotrace_stalls.lock);
    aiotrace_stalls.is_stopping = aiotrace_stalls.has_work = 0;
    aiotrace_stalls.sampler_waits = 0;
    aiotrace_stalls.run++;
    pthread_mutex_unlock(&aiotrace_stalls.lock);
    sigset_t all, before;
    sigfillset(&all); /* signals are for the program's threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&watcher, NULL, aiotrace_stall_watch, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        aiotrace_stalls.is_stopping = 1;
        errno = failed;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    pthread_setname_np(watcher, "aiotrace stalls");
    aiotrace_is_watched = 1;
    return PyLong_FromUnsignedLongLong(aiotrace_stalls.run);
}

static void
drop_cursors(void)
{
    int count = aiotrace_stalls.cursors_count;
    aiotrace_stalls.cursors_count = 0;
    for (int i = 0; i < count; i++)
        Py_DECREF(aiotrace_stalls.cursors[i]);
}

PyDoc_STRVAR(stall_stop_doc,
             "stall_stop()\n--\n\n"
             "End the watcher, and let the sampler end. Returns whether they were there: a forked child has none.");

static PyObject *
stall_stop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    if (!aiotrace_is_watched) {
        drop_cursors();
        Py_RETURN_FALSE;
    }
    aiotrace_is_watched = 0;
    pthread_mutex_lock(&aiotrace_stalls.lock);
    aiotrace_stalls.is_stopping = 1;
    pthread_cond_broadcast(&aiotrace_stalls.change);
    pthread_cond_broadcast(&aiotrace_stalls.work);
    pthread_mutex_unlock(&aiotrace_stalls.lock);
    Py_BEGIN_ALLOW_THREADS
    pthread_join(watcher, NULL); /* it waits for nothing but `change` */
    Py_END_ALLOW_THREADS
    drop_cursors();
    Py_RETURN_TRUE;
}

static void
before_fork(void)
{
    pthread_mutex_lock(&aiotrace_stalls.lock);
}

static void
after_fork_in_parent(void)
{
    pthread_mutex_unlock(&aiotrace_stalls.lock);
}

/* A child has no watcher, no sampler, and of all threads the one that forked, which may be in the
 * middle of a step. */
static void
after_fork_in_child(void)
{
    pthread_mutex_init(&aiotrace_stalls.lock, NULL);
    init_conditions();
    aiotrace_is_watched = 0;
    aiotrace_stalls.is_stopping = 1;
    aiotrace_stall_forget_threads();
}

static PyMethodDef functions[] = {
    {"stall_set", stall_set, METH_VARARGS, stall_set_doc},
    {"stall_start", stall_start, METH_VARARGS, stall_start_doc},
    {"stall_stop", stall_stop, METH_NOARGS, stall_stop_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_stalls_exec(PyObject *module)
{
    static int is_set_up; /* what is of the process is so once, however often the module is made */
    if (!is_set_up) {
        init_conditions();
        if (pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) != 0) {
            PyErr_SetString(PyExc_OSError, "no room for what watches forks");
            return -1;
        }
        is_set_up = 1;
    }
    if (aiotrace_watcher_cursor_exec(module) < 0 || aiotrace_stall_steps_exec(module) < 0 ||
        aiotrace_stack_sampler_exec(module) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
