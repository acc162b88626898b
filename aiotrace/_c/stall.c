/* The watch over stalls: who notices that a step lasts too long, while it lasts. _tracers/stall.py starts it.
 *
 *   a thread   begins a step ............................ ends it: stall:end, if it was noticed      has the GIL
 *                 |  stores: since when, which             ^
 *   watcher       +--- looks ---- looks ---- notices: stall:noticed, on a page of its own            never has it
 *                        | asks                | asks
 *   clerk                +-- waits for the GIL +-- waits for the GIL, reads the stack: stall:stack
 *
 * The watcher is a thread of C alone: it has no Python thread state, so it neither waits for the GIL nor minds how the
 * interpreter ends. The clerk is a daemon thread of Python's (stall_next). How long it waits for the GIL tells what kind
 * of code holds it: Python code gives it up within the switch interval, a call into C when it is done.
 *
 * Laws:
 * - A step costs a few stores of its own thread, and no lock. `lock` is for all else; whoever holds it waits for nobody.
 * - A step that was noticed has its end told: the watcher says "noticed", makes that seen by all threads, and looks
 *   again; what has ended by then was not noticed. (Its thread may tell the end of it all the same.)
 * - A stack is of the step that was noticed: the step is compared, and the frames are read, in one stretch in which
 *   nobody else can have the GIL.
 */
#include "aiotrace.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/membarrier.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#ifdef __GLIBC__
#define THREAD_LOCAL __thread __attribute__((tls_model("initial-exec")))
#else
#define THREAD_LOCAL __thread
#endif

#define load(place) __atomic_load_n(place, __ATOMIC_ACQUIRE)
#define store(place, value) __atomic_store_n(place, value, __ATOMIC_RELEASE)

#define PAGE_HEADER 16
#define LOST_COUNT 8
#define PAGES_MAX 8        /* recordings that the watcher writes to by itself */
#define FRAMES_MAX 256     /* read of a stack; of ours none are kept */
#define PAUSE_MIN 1000000u /* ns: the watcher rests at least as long */
#define LATE_MIN 10000000u /* ns: by which the watcher wakes late, if the machine has time for nobody */
#define HELD_INTERVALS 3u  /* switch intervals: who has the GIL longer, on the average, is in C, and does not hear */
#define WAKE_INTERVALS 4u  /* switch intervals: who waits for the GIL wakes at least as often, to ask for it */

/* --- what is known of a thread -------------------------------------------------------------------------- */

/* How a thread spent its time, up to a moment. */
typedef struct {
    uint64_t ns;
    uint64_t cpu_ns;
    uint64_t delay_ns; /* ready to run, but no processor was free */
    uint64_t slices;   /* how often it was put on a processor */
    uint64_t gc_ns;
    uint64_t late_ns; /* how much too late the watcher itself has woken */
} Sample;

/* How the clerk waited for the GIL. */
typedef struct {
    uint64_t count, longest_ns;
    uint64_t asked_ns; /* in all, less what the kernel kept the clerk from asking */
    uint64_t held_ns;  /* of that, how long the stalled thread ran */
} Waits;

typedef struct Slot {
    /* By its thread alone; others load. */
    uint64_t sequence; /* odd: a step runs, and this is its number */
    uint64_t began;
    int32_t task;
    int depth; /* steps within steps: the outermost counts */
    PyThreadState *state;
    uint64_t gc_ns, gc_began;
    uint64_t noticed; /* the step that was, by the watcher */
    /* Under the lock. */
    int is_free; /* its thread has ended */
    int32_t thread;
    uint64_t sampled; /* the step that `first` is of */
    Sample first;
    uint64_t probed; /* the step for which the clerk shall ask for the GIL; 0: none */
    Waits waits;     /* of the clerk's, in the step that was sampled */
    struct {
        uint64_t ns; /* 0: it does not wait */
        uint64_t cpu_ns, delay_ns;
    } waiting; /* since when, and what this thread and the clerk had spent by then */
    struct {
        uint64_t step; /* 0: nothing to tell */
        uint64_t began, lasted;
        int32_t task;
        int cause, is_written;
    } news; /* for the clerk */
    struct Slot *next;
} Slot;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t change; /* for the watcher; on CLOCK_MONOTONIC */
static pthread_cond_t work;   /* for the clerk */
static Slot *slots;
static THREAD_LOCAL Slot *this_slot;
static THREAD_LOCAL int is_ours; /* a thread of aiotrace's */
static pthread_key_t end_of_thread;

HOT_DATA int aiotrace_is_watched;

static uint64_t run; /* how often the watch was started; the clerk of an older one ends */
static int is_stopping = 1;
static pthread_t watcher;
static uint64_t threshold;
static uint64_t late_ns;
static int clerk_waits; /* for the GIL */
static int32_t clerk;   /* its thread */
static uint64_t interval; /* in which Python code gives up the GIL to who asks for it, ns */
static int has_work;

static inline uint64_t
since(uint64_t from, uint64_t to)
{
    return to > from ? to - from : 0;
}

/* --- a page of the watcher's own ---------------------------------------------------------------------------- */

/* A writer's place on its page, as Cursor is, that a thread without the GIL writes to: everything under the lock. */
typedef struct {
    PyObject_HEAD
    char *page; /* NULL: none */
    uint32_t page_size, end, limit;
    uint64_t last, written, dropped;
    int is_closed;
    Py_buffer view;
} Place;

static PyTypeObject *place_type;
static Place *places[PAGES_MAX]; /* held */
static int places_count, writes_itself;

static inline uint32_t
room_of(const Place *place)
{
    return place->end < place->limit ? place->limit - place->end : 0;
}

/* Write a record; what finds no room is counted. No GIL. */
static void
put(Place *place, uint64_t now, const void *payload, uint32_t size)
{
    if (place->is_closed)
        return;
    uint64_t delta = since(place->last, now);
    uint32_t head = delta > AIOTRACE_TIME_DELTA_MAX ? 12 : 4;
    if (room_of(place) < head + size) {
        place->dropped++;
        return;
    }
    uint32_t *words = (uint32_t *)(place->page + place->end);
    place->last += delta;
    if (delta > AIOTRACE_TIME_DELTA_MAX) {
        *words++ = AIOTRACE_TYPE_TIME_EXTEND | (uint32_t)(delta & AIOTRACE_TIME_DELTA_MAX) << AIOTRACE_TYPE_LEN_BITS;
        *words++ = (uint32_t)(delta >> AIOTRACE_TIME_DELTA_BITS);
        delta = 0;
    }
    *words++ = size >> 2 | (uint32_t)delta << AIOTRACE_TYPE_LEN_BITS;
    memcpy(words, payload, size);
    place->end += head + size;
    place->written++;
    __atomic_store_n((uint64_t *)(place->page + 8), (uint64_t)(place->end - PAGE_HEADER), __ATOMIC_RELEASE);
}

static PyObject *
place_change(Place *self, const Py_buffer *view)
{
    Py_buffer old;
    uint64_t now = aiotrace_monotonic_ns();
    pthread_mutex_lock(&lock);
    old = self->view;
    memset(&self->view, 0, sizeof self->view);
    self->page = NULL;
    self->page_size = self->end = self->limit = 0;
    self->last = 0;
    if (view != NULL) {
        self->view = *view;
        self->page = view->buf;
        self->page_size = (uint32_t)view->len;
        ((uint64_t *)self->page)[0] = self->last = now;
        ((uint64_t *)self->page)[1] = 0;
        self->end = PAGE_HEADER;
        self->limit = self->page_size - LOST_COUNT;
    }
    pthread_mutex_unlock(&lock);
    if (old.obj != NULL)
        PyBuffer_Release(&old);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(place_enter_doc, "Begin an empty page: its header is written, its time is now.");

static PyObject *
place_enter(Place *self, PyObject *page)
{
    Py_buffer view;
    if (PyObject_GetBuffer(page, &view, PyBUF_WRITABLE) < 0)
        return NULL;
    if (view.len < 64 || view.len > 1 << 20 || (uintptr_t)view.buf % 8 != 0) {
        PyBuffer_Release(&view);
        PyErr_SetString(PyExc_ValueError, "a page has 64 bytes to 1 MiB and is aligned to 8");
        return NULL;
    }
    return place_change(self, &view);
}

PyDoc_STRVAR(place_leave_doc, "Have no page.");

static PyObject *
place_leave(Place *self, PyObject *Py_UNUSED(ignored))
{
    return place_change(self, NULL);
}

PyDoc_STRVAR(place_limit_doc, "limit(open)\n--\n\nWhether records find room from now on; those that do not are counted.");

static PyObject *
place_limit(Place *self, PyObject *argument)
{
    int is_open = PyObject_IsTrue(argument);
    if (is_open < 0)
        return NULL;
    pthread_mutex_lock(&lock);
    self->limit = is_open && self->page != NULL ? self->page_size - LOST_COUNT : 0;
    pthread_mutex_unlock(&lock);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(place_close_doc, "From now on nothing is written, nor counted.");

static PyObject *
place_close(Place *self, PyObject *Py_UNUSED(ignored))
{
    pthread_mutex_lock(&lock);
    self->is_closed = 1;
    pthread_mutex_unlock(&lock);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(place_state_doc,
             "Bytes of records on the page, time of the last one in ns, records written and records that found no room,\n"
             "as of one moment.");

static PyObject *
place_state(Place *self, PyObject *Py_UNUSED(ignored))
{
    pthread_mutex_lock(&lock);
    uint32_t committed = self->end < PAGE_HEADER ? 0 : self->end - PAGE_HEADER;
    uint64_t last = self->last, written = self->written, dropped = self->dropped;
    pthread_mutex_unlock(&lock);
    return Py_BuildValue("IKKK", committed, (unsigned long long)last, (unsigned long long)written,
                         (unsigned long long)dropped);
}

PyDoc_STRVAR(place_fits_doc, "fits(size)\n--\n\nWhether a payload of `size` bytes has room, and a time extend.");

static PyObject *
place_fits(Place *self, PyObject *argument)
{
    Py_ssize_t size = PyLong_AsSsize_t(argument);
    if (size == -1 && PyErr_Occurred())
        return NULL;
    pthread_mutex_lock(&lock);
    int fits = size <= 1 << 20 && size + 16 <= (Py_ssize_t)room_of(self);
    pthread_mutex_unlock(&lock);
    return PyBool_FromLong(fits);
}

static PyObject *
place_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(keywords))
{
    return type->tp_alloc(type, 0);
}

static void
place_dealloc(Place *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->view.obj != NULL)
        PyBuffer_Release(&self->view);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMethodDef place_methods[] = {
    {"enter", (PyCFunction)place_enter, METH_O, place_enter_doc},
    {"leave", (PyCFunction)place_leave, METH_NOARGS, place_leave_doc},
    {"limit", (PyCFunction)place_limit, METH_O, place_limit_doc},
    {"close", (PyCFunction)place_close, METH_NOARGS, place_close_doc},
    {"state", (PyCFunction)place_state, METH_NOARGS, place_state_doc},
    {"fits", (PyCFunction)place_fits, METH_O, place_fits_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(place_doc, "A place on a page for a thread that has no GIL.");

static PyType_Slot place_slots[] = {
    {Py_tp_doc, (void *)place_doc}, {Py_tp_new, place_new}, {Py_tp_dealloc, place_dealloc},
    {Py_tp_methods, place_methods}, {0, NULL},
};

static PyType_Spec place_spec = {"aiotrace._c.StallPlace", sizeof(Place), 0, Py_TPFLAGS_DEFAULT, place_slots};

/* --- why ------------------------------------------------------------------------------------------------- */

enum { PYTHON, C_CALL, GC, GIL, BLOCKED, SCHEDULER, UNKNOWN, CAUSES };
static struct {
    PyObject *text;
    uint64_t key;
} causes[CAUSES]; /* as _tracers/stall.py's CAUSES, in that order */

/* Read a file of /proc, which is short. Returns whether there is a text; it ends with a NUL. No GIL. */
static int
read_proc(int32_t thread, const char *name, char *text, size_t size)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/%s", (int)thread, name);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    ssize_t length = read(file, text, size - 1);
    close(file);
    text[length > 0 ? length : 0] = 0;
    return length > 0;
}

/* "S" sleeps, "R" runs or wants to; 0: not known. */
static char
read_state(int32_t thread)
{
    char text[128]; /* proc_pid_stat(5): pid (name) state ...; the name has up to 15 bytes, also brackets */
    if (!read_proc(thread, "stat", text, sizeof text))
        return 0;
    const char *bracket = strrchr(text, ')');
    return bracket != NULL && bracket[1] == ' ' ? bracket[2] : 0;
}

/* How long a thread was ready to run, but on no processor, and how often it was put on one; 0: not known. */
static void
read_delay(int32_t thread, uint64_t *delay_ns, uint64_t *slices)
{
    char text[96]; /* Documentation/scheduler/sched-stats.rst: time on processors, time waiting for one, slices */
    *delay_ns = *slices = 0;
    if (read_proc(thread, "schedstat", text, sizeof text)) {
        char *rest = text;
        strtoull(rest, &rest, 10); /* older than read_cpu's by up to a tick */
        *delay_ns = strtoull(rest, &rest, 10);
        *slices = strtoull(rest, &rest, 10);
    }
}

/* How long a thread has run; 0: not known. */
static uint64_t
read_cpu(int32_t thread)
{
    struct timespec cpu;
    /* The id of a thread's clock as the kernel makes it (include/linux/posix-timers_types.h): ~thread, 3 bits of kind. */
    clockid_t clock = (clockid_t)(~(unsigned)thread << 3 | 6);
    return clock_gettime(clock, &cpu) == 0 ? (uint64_t)cpu.tv_sec * 1000000000u + (uint64_t)cpu.tv_nsec : 0;
}

/* How a thread has spent its time until now. */
static Sample
sample(const Slot *slot)
{
    Sample now = {.ns = aiotrace_monotonic_ns(), .late_ns = late_ns, .cpu_ns = read_cpu(slot->thread)};
    read_delay(slot->thread, &now.delay_ns, &now.slices);
    uint64_t collecting = load(&slot->gc_began);
    now.gc_ns = load(&slot->gc_ns) + (collecting ? since(collecting, now.ns) : 0);
    return now;
}

/* What most of the time went into between two samples.
 *
 *     waits  the clerk's, meanwhile
 *     state  of the thread now, if it is not the one that asks */
static int
judge(const Sample *first, const Sample *last, const Waits *waits, char state)
{
    uint64_t window = since(first->ns, last->ns), cpu = since(first->cpu_ns, last->cpu_ns);
    uint64_t delay = since(first->delay_ns, last->delay_ns), late = since(first->late_ns, last->late_ns);
    uint64_t idle = since(cpu + delay, window), slices = since(first->slices, last->slices);
    uint64_t deaf = HELD_INTERVALS * interval * waits->count; /* Python code hears sooner that the GIL is asked for */
    if (first->ns == 0 || window < PAUSE_MIN)
        return UNKNOWN;
    if (state == 'R') { /* it wants to run; that is counted when it does */
        delay += idle;
        idle = 0;
    }
    if (late > delay) { /* nothing ran: stopped, or a machine that stood still */
        uint64_t moved = late - delay < idle ? late - delay : idle;
        delay += moved;
        idle -= moved;
    }
    if (2 * since(first->gc_ns, last->gc_ns) >= window)
        return GC;
    if (cpu >= delay && cpu >= idle)
        return waits->held_ns > deaf ? C_CALL : PYTHON;
    if (delay >= idle)
        return SCHEDULER;
    if (waits->longest_ns >= interval / 2 && slices * WAKE_INTERVALS * interval >= idle)
        return GIL;
    return waits->asked_ns > deaf ? C_CALL : BLOCKED;
}

/* The clerk's waits for the GIL in the step that runs in a slot, with the one that goes on. Under the lock. */
static Waits
waits_until(const Slot *slot, uint64_t now)
{
    Waits waits = slot->waits;
    if (slot->waiting.ns) {
        uint64_t ns = since(slot->waiting.ns, now), ran = since(slot->waiting.cpu_ns, read_cpu(slot->thread));
        uint64_t delay_ns, slices;
        read_delay(clerk, &delay_ns, &slices);
        uint64_t kept = since(slot->waiting.delay_ns, delay_ns);
        waits.count++;
        waits.asked_ns += since(kept, ns);
        waits.held_ns += since(kept, ran);
        if (ns > waits.longest_ns)
            waits.longest_ns = ns;
    }
    return waits;
}

/* The clerk waits for the GIL from now on. */
static void
begin_waiting(Slot *slot, uint64_t now)
{
    uint64_t slices;
    slot->waiting.ns = now;
    slot->waiting.cpu_ns = read_cpu(slot->thread);
    read_delay(clerk, &slot->waiting.delay_ns, &slices);
}

/* --- records ------------------------------------------------------------------------------------------------ */

static PyObject *noticed_event, *end_event;
static uint16_t noticed_id;

/* What stall:noticed and stall:end hold; the order and the padding of _tracers/stall.py's definitions. */
typedef struct {
    int32_t thread, task;
    uint64_t began_ns, lasted_ns, cause;
} NoticedRecord;

typedef struct {
    int32_t thread, task;
    uint64_t began_ns, duration_ns, cpu_ns, delay_ns, gc_ns, gil_ns, cause;
} EndRecord;

/* --- the watcher --------------------------------------------------------------------------------------------- */

/* Let every thread that runs see what was stored here, and what they stored be seen here (membarrier(2)). Where the
 * kernel has no such call, a tenth of a millisecond is long enough for what a processor still has in its buffers. */
static void
be_seen(void)
{
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) != 0)
        nanosleep(&(struct timespec){0, 100000}, NULL);
}

/* The clerk is to wait for the GIL, in this step. */
static void
probe(Slot *slot, uint64_t step, uint64_t now)
{
    slot->probed = step;
    if (clerk_waits && !slot->waiting.ns)
        begin_waiting(slot, now); /* it does already */
    has_work = 1;
    pthread_cond_signal(&work);
}

/* A step has lasted for the threshold. */
static void
notice(Slot *slot, uint64_t step, uint64_t began, int32_t task)
{
    __atomic_store_n(&slot->noticed, step, __ATOMIC_SEQ_CST);
    be_seen();
    if (__atomic_load_n(&slot->sequence, __ATOMIC_SEQ_CST) != step)
        return;
    Sample now = sample(slot);
    Waits waits = waits_until(slot, now.ns);
    int cause = judge(&slot->first, &now, &waits, read_state(slot->thread));
    struct {
        uint32_t common;
        int32_t pid;
        NoticedRecord fields;
    } record = {noticed_id,
                task ? task : slot->thread,
                {slot->thread, task, began, since(began, now.ns), causes[cause].key}};
    if (writes_itself)
        for (int i = 0; i < places_count; i++)
            put(places[i], now.ns, &record, sizeof record);
    slot->news.step = step;
    slot->news.began = began;
    slot->news.lasted = record.fields.lasted_ns;
    slot->news.task = task;
    slot->news.cause = cause;
    slot->news.is_written = writes_itself;
    probe(slot, step, now.ns);
}

/* Look at what runs in a thread. Returns when to look again. */
static uint64_t
look_at(Slot *slot, uint64_t now, uint64_t next)
{
    uint64_t step = load(&slot->sequence), began = load(&slot->began), due;
    int32_t task = load(&slot->task);
    if (slot->is_free || !(step & 1) || load(&slot->sequence) != step)
        return next;
    if (slot->sampled != step) {
        due = began + threshold / 4;
        if (due > now)
            return due < next ? due : next;
        slot->first = sample(slot);
        slot->sampled = step;
        memset(&slot->waits, 0, sizeof slot->waits);
        slot->waiting.ns = 0;
        probe(slot, step, now);
    }
    if (slot->noticed != step) {
        due = began + threshold;
        if (due > now)
            return due < next ? due : next;
        notice(slot, step, began, task);
    }
    return next;
}

static void *
watch(void *Py_UNUSED(argument))
{
    pthread_mutex_lock(&lock);
    while (!is_stopping) {
        uint64_t now = aiotrace_monotonic_ns(), next = now + threshold / 4;
        for (Slot *slot = slots; slot != NULL; slot = slot->next)
            next = look_at(slot, now, next);
        now = aiotrace_monotonic_ns();
        if (next < now + PAUSE_MIN)
            next = now + PAUSE_MIN;
        struct timespec until = {(time_t)(next / 1000000000u), (long)(next % 1000000000u)};
        if (pthread_cond_timedwait(&change, &lock, &until) == ETIMEDOUT) {
            uint64_t late = since(next, aiotrace_monotonic_ns());
            if (late >= LATE_MIN)
                late_ns += late;
        }
    }
    pthread_mutex_unlock(&lock);
    return NULL;
}

/* --- a thread's steps ----------------------------------------------------------------------------------------- */

static void
thread_ended(void *argument)
{
    pthread_mutex_lock(&lock);
    ((Slot *)argument)->is_free = 1;
    pthread_mutex_unlock(&lock);
    this_slot = NULL;
}

/* This thread's slot, made when it is first needed; NULL: no memory. */
static Slot *
take_slot(void)
{
    pthread_mutex_lock(&lock);
    Slot *slot = slots;
    while (slot != NULL && !slot->is_free)
        slot = slot->next;
    if (slot == NULL && (slot = PyMem_RawCalloc(1, sizeof *slot)) != NULL) {
        slot->next = slots;
        slots = slot;
    }
    if (slot != NULL) {
        slot->is_free = 0;
        slot->depth = 0;
        if (slot->sequence & 1) /* its thread ended in the middle of a step */
            slot->sequence++;
        slot->gc_began = 0;
        slot->thread = (int32_t)syscall(SYS_gettid);
        slot->news.step = slot->probed = slot->waiting.ns = 0;
        pthread_setspecific(end_of_thread, slot);
    }
    pthread_mutex_unlock(&lock);
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
    store(&slot->task, task);
    store(&slot->began, began ? began : aiotrace_monotonic_ns());
    store(&slot->sequence, slot->sequence + 1);
    return 1;
}

/* Tell the end of the step that has just ended in this thread. */
static void
tell_end(Slot *slot, uint64_t step)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    pthread_mutex_lock(&lock);
    Sample last = sample(slot), first = slot->sampled == step ? slot->first : last;
    Waits waits = waits_until(slot, last.ns);
    pthread_mutex_unlock(&lock);
    int cause = judge(&first, &last, &waits, 0);
    EndRecord record = {slot->thread,
                        slot->task,
                        slot->began,
                        since(slot->began, last.ns),
                        since(first.cpu_ns, last.cpu_ns),
                        since(first.delay_ns, last.delay_ns),
                        since(first.gc_ns, last.gc_ns),
                        waits.longest_ns,
                        causes[cause].key};
    if (!aiotrace_event_numbers(end_event, last.ns, &record)) {
        PyObject *result = PyObject_CallFunction(
            end_event, "iiKKKKKKO", (int)record.thread, (int)record.task, (unsigned long long)record.began_ns,
            (unsigned long long)record.duration_ns, (unsigned long long)record.cpu_ns,
            (unsigned long long)record.delay_ns, (unsigned long long)record.gc_ns, (unsigned long long)record.gil_ns,
            causes[cause].text);
        if (result == NULL)
            PyErr_WriteUnraisable(end_event);
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
    store(&slot->sequence, step + 1);
    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* the processor's order is seen to by the watcher: `be_seen` */
    if (unlikely(load(&slot->noticed) == step))
        tell_end(slot, step);
}

int
aiotrace_thread_is_ours(void)
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
        store(&slot->gc_began, now);
    }
    else if (began) {
        store(&slot->gc_began, 0);
        store(&slot->gc_ns, slot->gc_ns + since(began, now));
    }
    Py_RETURN_NONE;
}

/* --- the clerk ------------------------------------------------------------------------------------------------- */

/* The frames of a thread that has a step, innermost first: a list of (code, line), or NULL with an exception. The
 * collector rests meanwhile, so no Python code runs, and nobody else has the GIL. */
static PyObject *
read_frames(PyThreadState *state)
{
    int was_enabled = PyGC_Disable();
    PyObject *found = PyList_New(0);
    PyFrameObject *frame = found == NULL ? NULL : PyThreadState_GetFrame(state);
    while (frame != NULL && PyList_GET_SIZE(found) < FRAMES_MAX) {
        PyObject *pair = Py_BuildValue("Ni", PyFrame_GetCode(frame), PyFrame_GetLineNumber(frame));
        if (pair == NULL || PyList_Append(found, pair) < 0) {
            Py_XDECREF(pair);
            Py_CLEAR(found);
            break;
        }
        Py_DECREF(pair);
        PyFrameObject *back = PyFrame_GetBack(frame);
        Py_DECREF(frame);
        frame = back;
    }
    Py_XDECREF(frame);
    if (was_enabled)
        PyGC_Enable();
    return found;
}

/* Wait without the GIL until there is work, and then for the GIL. Returns whether this watch goes on. */
static int
wait_for_work(uint64_t mine)
{
    PyThreadState *state = PyEval_SaveThread();
    pthread_mutex_lock(&lock);
    while (!has_work && !is_stopping && run == mine)
        pthread_cond_wait(&work, &lock);
    int goes_on = !is_stopping && run == mine;
    uint64_t now = aiotrace_monotonic_ns();
    if (goes_on) {
        clerk_waits = 1;
        for (Slot *slot = slots; slot != NULL; slot = slot->next)
            if (slot->probed)
                begin_waiting(slot, now);
    }
    pthread_mutex_unlock(&lock);
    PyEval_RestoreThread(state); /* at the end of the interpreter this thread ends here, and holds nothing */
    pthread_mutex_lock(&lock);
    if (goes_on && run == mine) {
        now = aiotrace_monotonic_ns();
        clerk_waits = 0;
        has_work = 0;
        for (Slot *slot = slots; slot != NULL; slot = slot->next) {
            if (slot->probed == slot->sampled)
                slot->waits = waits_until(slot, now);
            slot->waiting.ns = slot->probed = 0;
        }
    }
    pthread_mutex_unlock(&lock);
    return goes_on;
}

PyDoc_STRVAR(stall_next_doc,
             "stall_next(run)\n--\n\n"
             "Wait for what needs the GIL: a stall to tell of, (thread, task, began_ns, lasted_ns, cause, is_written,\n"
             "gil_ns, [(code, line), ...] or None); (): a look at the pages. None: this watch has ended.\n\n"
             "Until the next call the records of the calling thread carry the pid of the stalled task or thread.");

static PyObject *
stall_next(PyObject *Py_UNUSED(module), PyObject *argument)
{
    unsigned long long mine = PyLong_AsUnsignedLongLong(argument);
    if (mine == (unsigned long long)-1 && PyErr_Occurred())
        return NULL;
    aiotrace_set_task(0);
    pthread_mutex_lock(&lock);
    clerk = (int32_t)syscall(SYS_gettid);
    pthread_mutex_unlock(&lock);
    for (int is_first = 1;; is_first = 0) {
        Slot found = {.news.step = 0};
        int is_short = 0;
        pthread_mutex_lock(&lock);
        for (int i = 0; i < places_count; i++)
            is_short |= !places[i]->is_closed && room_of(places[i]) < places[i]->page_size / 4;
        for (Slot *slot = slots; slot != NULL && !found.news.step; slot = slot->next) {
            if (slot->news.step) {
                found = *slot;
                slot->news.step = 0;
            }
        }
        pthread_mutex_unlock(&lock);
        if (found.news.step) {
            /* Only who has the GIL ends a step, and we have it. */
            int lasts = !found.is_free && found.sequence == found.news.step;
            PyObject *frames = lasts ? read_frames(found.state) : Py_NewRef(Py_None);
            if (frames == NULL)
                return NULL;
            aiotrace_set_task(found.news.task ? found.news.task : found.thread);
            return Py_BuildValue("iiKKOiKN", (int)found.thread, (int)found.news.task,
                                 (unsigned long long)found.news.began, (unsigned long long)found.news.lasted,
                                 causes[found.news.cause].text, found.news.is_written,
                                 (unsigned long long)found.waits.longest_ns, frames);
        }
        if (is_short && !is_first)
            return PyTuple_New(0);
        if (!wait_for_work(mine))
            Py_RETURN_NONE;
    }
}

/* --- start and stop ---------------------------------------------------------------------------------------------- */

static void
init_conditions(void) /* none of this fails on Linux */
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&change, &attributes);
    pthread_cond_init(&work, NULL);
    pthread_condattr_destroy(&attributes);
}

PyDoc_STRVAR(stall_set_doc,
             "stall_set(threshold_ns, interval_ns, places, writes_itself)\n--\n\n"
             "From now on steps as long as that are noticed. The watcher writes to these places, if it is to write\n"
             "itself; otherwise the clerk is told that nothing is written. `interval_ns`: sys.getswitchinterval().");

static PyObject *
stall_set(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long new_threshold, new_interval;
    PyObject *new_places;
    int itself;
    Place *old[PAGES_MAX];
    if (!PyArg_ParseTuple(args, "KKO!p:stall_set", &new_threshold, &new_interval, &PyTuple_Type, &new_places, &itself))
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(new_places);
    if (count > PAGES_MAX || new_threshold < PAUSE_MIN) {
        PyErr_SetString(PyExc_ValueError, "at most 8 places, and at least 1,000,000 ns");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (Py_TYPE(PyTuple_GET_ITEM(new_places, i)) != place_type) {
            PyErr_SetString(PyExc_TypeError, "a place is a StallPlace");
            return NULL;
        }
    }
    pthread_mutex_lock(&lock);
    int old_count = places_count;
    memcpy(old, places, sizeof old);
    threshold = new_threshold;
    interval = new_interval;
    for (Py_ssize_t i = 0; i < count; i++)
        places[i] = (Place *)Py_NewRef(PyTuple_GET_ITEM(new_places, i));
    places_count = (int)count;
    writes_itself = itself;
    pthread_cond_signal(&change);
    pthread_mutex_unlock(&lock);
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
        PyErr_SetString(PyExc_TypeError, "stall_start takes two events of ours and a text for each cause");
        return NULL;
    }
    if (aiotrace_is_watched) {
        PyErr_SetString(PyExc_RuntimeError, "the watch is on already");
        return NULL;
    }
    for (int i = 0; i < CAUSES; i++) {
        PyObject *text;
        unsigned long long key;
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(list, i), "UK", &text, &key))
            return NULL;
        Py_XSETREF(causes[i].text, Py_NewRef(text));
        causes[i].key = key;
    }
    Py_XSETREF(noticed_event, Py_NewRef(noticed));
    Py_XSETREF(end_event, Py_NewRef(end));
    noticed_id = (uint16_t)id;
    syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0); /* `be_seen` does without, if it must */
    pthread_mutex_lock(&lock);
    is_stopping = has_work = 0;
    clerk_waits = 0;
    run++;
    pthread_mutex_unlock(&lock);
    sigset_t all, before;
    sigfillset(&all); /* signals are for the program's threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&watcher, NULL, watch, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        is_stopping = 1;
        errno = failed;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    pthread_setname_np(watcher, "aiotrace stalls");
    aiotrace_is_watched = 1;
    return PyLong_FromUnsignedLongLong(run);
}

static void
drop_places(void)
{
    int count = places_count;
    places_count = 0;
    for (int i = 0; i < count; i++)
        Py_DECREF(places[i]);
}

PyDoc_STRVAR(stall_stop_doc,
             "stall_stop()\n--\n\n"
             "End the watcher, and let the clerk end. Returns whether they were there: a forked child has none.");

static PyObject *
stall_stop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    if (!aiotrace_is_watched) {
        drop_places();
        Py_RETURN_FALSE;
    }
    aiotrace_is_watched = 0;
    pthread_mutex_lock(&lock);
    is_stopping = 1;
    pthread_cond_broadcast(&change);
    pthread_cond_broadcast(&work);
    pthread_mutex_unlock(&lock);
    Py_BEGIN_ALLOW_THREADS
    pthread_join(watcher, NULL); /* it waits for nothing but `change` */
    Py_END_ALLOW_THREADS
    drop_places();
    Py_RETURN_TRUE;
}

static void
before_fork(void)
{
    pthread_mutex_lock(&lock);
}

static void
after_fork_in_parent(void)
{
    pthread_mutex_unlock(&lock);
}

/* A child has no watcher, no clerk, and of all threads the one that forked, which may be in the middle of a step. */
static void
after_fork_in_child(void)
{
    pthread_mutex_init(&lock, NULL);
    init_conditions();
    aiotrace_is_watched = 0;
    is_stopping = 1;
    for (Slot *slot = slots; slot != NULL; slot = slot->next) {
        slot->is_free = slot != this_slot;
        slot->noticed = slot->news.step = slot->probed = slot->waiting.ns = 0;
    }
    if (this_slot != NULL)
        this_slot->thread = (int32_t)syscall(SYS_gettid);
}

static PyMethodDef functions[] = {
    {"stall_gc", (PyCFunction)(void (*)(void))stall_gc, METH_FASTCALL, stall_gc_doc},
    {"stall_ignore", stall_ignore, METH_NOARGS, stall_ignore_doc},
    {"stall_next", stall_next, METH_O, stall_next_doc},
    {"stall_set", stall_set, METH_VARARGS, stall_set_doc},
    {"stall_start", stall_start, METH_VARARGS, stall_start_doc},
    {"stall_stop", stall_stop, METH_NOARGS, stall_stop_doc},
    {NULL, NULL, 0, NULL},
};

int
aiotrace_stall_exec(PyObject *module)
{
    static int is_set_up; /* what is of the process is so once, however often the module is made */
    if (!is_set_up) {
        init_conditions();
        if (pthread_key_create(&end_of_thread, thread_ended) != 0 ||
            pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) != 0) {
            PyErr_SetString(PyExc_OSError, "no room for what watches the ends of threads, and forks");
            return -1;
        }
        is_set_up = 1;
    }
    place_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &place_spec, NULL);
    if (place_type == NULL || PyModule_AddType(module, place_type) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
