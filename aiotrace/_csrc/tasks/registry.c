/* The traced tasks, in a ring: their ids, their spawn, their names; keyframes of all that live.
 *
 *     spawned: register_task, emit_spawn -> ring -> done: forget_task
 *                                            |
 *                                            deallocated with its task, which was pending: lost
 */
#include "tasks/tasks.h"

#define IDS (1 << 22)        /* ids of a process: from `aiotrace_first_id` on, used again after the last */
#define KEYFRAME_NS 1000000000u /* a keyframe of all live tasks at most this often */
#define KEYFRAME_SLICE 64             /* tasks of a keyframe that one step writes */
#define COMMANDS_PER_KEYFRAME 512 /* pids that are named between two keyframes: 1 to 2 us each */

THREAD_LOCAL Making *aiotrace_making;

/* --- the ring ------------------------------------------------------------------------------------------------ */

static TracedTask ring = {.next = &ring, .previous = &ring};
Py_ssize_t aiotrace_traced_count;

static TracedTask *keyframe_place = &ring; /* the next of the keyframe; `ring`: it is done */
HOT_DATA uint64_t aiotrace_keyframe_due;
static uint64_t keyframe_began;
static uint32_t keyframe_number;
HOT_DATA int aiotrace_commands_left;

int32_t aiotrace_first_id;
static uint32_t next_id, unchecked_ids; /* ids from `next_id` on that are known to be free */

/* The first of those that are known, or NULL. */
TracedTask *
aiotrace_first_traced_task(void)
{
    return ring.next == &ring ? NULL : ring.next;
}

/* The one after it; NULL: it was the last, or is not known any more. */
TracedTask *
aiotrace_next_traced_task(const TracedTask *traced)
{
    return traced->next == &ring ? NULL : traced->next;
}

/* A task is done, or gone. */
HOT void
aiotrace_forget_task(TracedTask *traced)
{
    if (traced->next == NULL)
        return;
    if (keyframe_place == traced)
        keyframe_place = traced->next;
    traced->next->previous = traced->previous;
    traced->previous->next = traced->next;
    traced->next = traced->previous = NULL;
    traced->state = PASSES;
    traced->plain_in = 0;
    aiotrace_traced_count--;
}

/* --- ids ----------------------------------------------------------------------------------------------------- */

int32_t
aiotrace_base_id(void)
{
    return (int32_t)((1 + (long)getpid() % 511) << 22);
}

void
aiotrace_begin_ids(uint32_t next)
{
    aiotrace_first_id = aiotrace_base_id();
    next_id = next % IDS;
    unchecked_ids = 0; /* look first */
}

HOT int32_t
aiotrace_new_id(void)
{
    while (unlikely(unchecked_ids == 0)) { /* as far as the next id of a task that lives */
        uint32_t next = next_id % IDS, gap = IDS - next;
        for (TracedTask *traced = ring.next; traced != &ring; traced = traced->next) {
            uint32_t other = (uint32_t)(traced->id - aiotrace_first_id);
            if (other >= next && other - next < gap)
                gap = other - next;
        }
        next_id = gap ? next : next + 1;
        unchecked_ids = gap;
    }
    unchecked_ids--;
    return aiotrace_first_id + (int32_t)next_id++;
}

/* --- registering a task ------------------------------------------------------------------------------------------ */

/* The text of what a task runs: that of the program, if a library wraps it. */
HOT static Name
name_task(PyObject *coroutine)
{
    Name name = aiotrace_name_coroutine(coroutine);
    if (name.flags & IS_LIBRARY && !(name.flags & IS_OURS) && !(is_off(SPAWN) && is_off(ALIVE))) {
        PyObject *inner = PyObject_CallOneArg(aiotrace_find_inner, coroutine);
        if (inner == NULL)
            PyErr_WriteUnraisable(aiotrace_find_inner);
        else if (inner != Py_None)
            name = aiotrace_name_coroutine(inner);
        Py_XDECREF(inner);
    }
    return name;
}

/* Register a task that runs a coroutine.
 *
 *     is_new   it is being made just now, by what runs in this thread
 *
 * Returns the object that is to replace the coroutine, a new reference, or NULL without an
 * exception. */
HOT TracedTask *
aiotrace_register_task(PyObject *task, PyObject *coroutine, int runtime, int is_new)
{
    int32_t parent = is_new ? aiotrace_task : 0, id = 0;
    for (Making *each = aiotrace_making; each != NULL; each = each->outer) {
        if (each->coroutine == coroutine || each->task == task) {
            id = each->id;
            parent = each->parent;
        }
    }
    Name name = name_task(coroutine);
    PyObject *ref = PyWeakref_NewRef(task, NULL);
    TracedTask *traced = ref == NULL ? NULL : aiotrace_new_traced_task(coroutine, ref);
    Py_XDECREF(ref);
    if (traced == NULL) {
        PyErr_Clear();
        return NULL;
    }
    traced->task = task;
    traced->coroutine = name.text;
    traced->id = id ? id : aiotrace_new_id();
    traced->parent = parent;
    traced->runtime = (char)runtime;
    traced->state = name.flags & IS_OURS ? SILENT : TRACES;
    traced->keyframe = keyframe_number;
    traced->next = ring.next; /* before what the keyframe has still to come to */
    traced->previous = &ring;
    ring.next->previous = traced;
    ring.next = traced;
    aiotrace_traced_count++;
    predict_next_step(traced);
    return traced;
}

/* A task was made just now, by what runs in this thread. */
HOT void
aiotrace_emit_spawn(TracedTask *traced, PyObject *task)
{
    int32_t current = aiotrace_task;
    if (traced->state != TRACES || is_off(SPAWN))
        return;
    Name site = aiotrace_find_site();
    traced->name = aiotrace_name_of_task(task, traced->runtime);
    traced->plain_in = 0; /* its name may change before its first step */
    set_task(traced->parent);
    EMIT(SPAWN, PyLong_FromLong(traced->id), PyLong_FromLong(traced->parent), Py_XNewRef(traced->name),
         Py_NewRef(traced->coroutine != NULL ? traced->coroutine : aiotrace_unknown_name.text),
         aiotrace_text_of(&site));
    set_task(current);
}

/* Pids whose names are not recorded yet. Each takes a microsecond or two of Python, too much for
 * the start of a task: they are recorded with the next keyframe, and at the end. */
static struct {
    int32_t id;
    PyObject *name;
} pids[COMMANDS_PER_KEYFRAME];
static int pids_count;

void
aiotrace_name_pids(int most)
{
    for (; most > 0 && pids_count > 0; most--) {
        int32_t id = pids[--pids_count].id;
        PyObject *name = pids[pids_count].name;
        PyObject *result = PyObject_CallFunction(aiotrace_name_command, "iO", id, name);
        if (result == NULL)
            PyErr_WriteUnraisable(aiotrace_name_command);
        Py_XDECREF(result);
        Py_DECREF(name);
    }
}

/* In a forked child: the parent records its own. */
void
aiotrace_forget_pid_names(void)
{
    while (pids_count > 0)
        Py_DECREF(pids[--pids_count].name);
}

/* Record a task's name, once it runs: some programs name a task just after they made it. */
HOT void
aiotrace_emit_name(TracedTask *traced)
{
    PyObject *old = traced->name, *name, *task = referent(traced->ref);
    traced->name = NULL;
    traced->comm[0] = 0;
    if (task == NULL) {
        Py_XDECREF(old);
        return;
    }
    Py_INCREF(task);
    if ((name = aiotrace_name_of_task(task, traced->runtime)) != NULL) {
        if (aiotrace_commands_left > 0 && !traced->is_named && pids_count < COMMANDS_PER_KEYFRAME) {
            aiotrace_commands_left--;
            traced->is_named = 1;
            pids[pids_count].id = traced->id;
            pids[pids_count++].name = Py_NewRef(name);
        }
        if (old != NULL && PyUnicode_Compare(name, old) != 0)
            EMIT(NAME, PyLong_FromLong(traced->id), Py_NewRef(name));
        Py_DECREF(name);
    }
    PyErr_Clear();
    Py_XDECREF(old);
    Py_DECREF(task);
}

/* What task:done holds; the order and the padding of _tracers/task.py's definition. */
typedef struct {
    int32_t task, padding;
    uint64_t result, exception;
} DoneFields;

HOT void
aiotrace_emit_end(int32_t id, const Name *result, const Name *exception, uint64_t now)
{
    if (is_off(DONE))
        return;
    struct { RECORD_HEAD; DoneFields fields; } __attribute__((packed)) *record;
    DoneFields fields = {id, 0, result->key, exception->key};
    Cursor *writer;
    if (likely((record = begin_task_record(DONE, now, sizeof *record, &writer)) != NULL)) {
        record->fields = fields;
        end_record(writer, now, sizeof *record);
    }
    else if (!aiotrace_event_numbers(aiotrace_task_events[DONE], now, &fields))
        EMIT(DONE, PyLong_FromLong(id), aiotrace_text_of(result), aiotrace_text_of(exception));
}

/* --- keyframes ----------------------------------------------------------------------------------------------- */

void
aiotrace_emit_alive(TracedTask *traced)
{
    PyObject *task = referent(traced->ref);
    if (traced->state != TRACES || task == NULL || is_off(ALIVE))
        return;
    Py_INCREF(task);
    Py_INCREF(traced);
    EMIT(ALIVE, PyLong_FromLong(traced->id), PyLong_FromLong(traced->parent),
         aiotrace_name_of_task(task, traced->runtime),
         Py_NewRef(traced->coroutine != NULL ? traced->coroutine : aiotrace_unknown_name.text));
    Py_DECREF(traced);
    Py_DECREF(task);
}

/* Continue the keyframe: record which tasks are alive. */
static void
write_keyframe_slice(int most)
{
    for (int written = 0; written < most && keyframe_place != &ring;) {
        TracedTask *traced = keyframe_place;
        keyframe_place = traced->next;
        if (traced->state != TRACES || traced->keyframe == keyframe_number)
            continue;
        traced->keyframe = keyframe_number;
        written++;
        aiotrace_emit_alive(traced);
    }
    aiotrace_name_pids(most);
    aiotrace_keyframe_due = keyframe_place == &ring && pids_count == 0 ? keyframe_began + KEYFRAME_NS : 0;
}

static void
begin_keyframe(uint64_t now)
{
    keyframe_began = now;
    keyframe_number++;
    keyframe_place = ring.next;
    aiotrace_commands_left = COMMANDS_PER_KEYFRAME;
    aiotrace_plain_round++; /* pids may be named again */
}

void
aiotrace_continue_keyframe(uint64_t now)
{
    if (keyframe_place == &ring && now - keyframe_began >= KEYFRAME_NS)
        begin_keyframe(now);
    write_keyframe_slice(KEYFRAME_SLICE);
}

/* Write a whole keyframe now. */
void
aiotrace_write_keyframe(void)
{
    begin_keyframe(aiotrace_read_tsc());
    do
        write_keyframe_slice(KEYFRAME_SLICE);
    while (keyframe_place != &ring);
}

/* The first keyframe is due in a while: all present tasks have just been recorded. */
void
aiotrace_begin_keyframes(void)
{
    aiotrace_commands_left = COMMANDS_PER_KEYFRAME;
    keyframe_began = aiotrace_read_tsc();
    aiotrace_keyframe_due = keyframe_began + KEYFRAME_NS;
    keyframe_place = &ring;
}
