/* The tasks that are known, in a ring: their ids, their spawn, their names; keyframes of all that live.
 *
 *     spawned: know_task, tell_spawn -> ring -> done: forget_task
 *                                        |
 *                                        destroyed with its task, which was pending: lost
 */
#include "tasks/tasks.h"

#define IDS (1 << 22)        /* ids of a process: from `first_id` on, used again after the last */
#define ROUND_NS 1000000000u /* a keyframe of all live tasks at most this often */
#define SLICE 64             /* tasks of a keyframe that one step writes */
#define COMMANDS_A_ROUND 512 /* pids that are named between two keyframes: 1 to 2 us each */

THREAD_LOCAL Making *making;

/* --- the ring ------------------------------------------------------------------------------------------------ */

static Known ring = {.next = &ring, .previous = &ring};
Py_ssize_t known_count;

static Known *round_place = &ring; /* the next of the keyframe; `ring`: it is done */
HOT_DATA uint64_t round_due;
static uint64_t round_began;
static uint32_t round_number;
HOT_DATA int commands_left;

int32_t first_id;
static uint32_t next_id, unchecked_ids; /* ids from `next_id` on that are known to be nobody's */

/* The first of those that are known, or NULL. */
Known *
first_known(void)
{
    return ring.next == &ring ? NULL : ring.next;
}

/* The one after it; NULL: it was the last, or is not known any more. */
Known *
next_known(const Known *known)
{
    return known->next == &ring ? NULL : known->next;
}

/* A task is done, or gone. */
HOT void
forget_task(Known *known)
{
    if (known->next == NULL)
        return;
    if (round_place == known)
        round_place = known->next;
    known->next->previous = known->previous;
    known->previous->next = known->next;
    known->next = known->previous = NULL;
    known->state = PASSES;
    known->plain_in = 0;
    known_count--;
}

/* --- ids ----------------------------------------------------------------------------------------------------- */

int32_t
base_id(void)
{
    return (int32_t)((1 + (long)getpid() % 511) << 22);
}

void
begin_ids(uint32_t next)
{
    first_id = base_id();
    next_id = next % IDS;
    unchecked_ids = 0; /* look first */
}

HOT int32_t
new_id(void)
{
    while (unlikely(unchecked_ids == 0)) { /* as far as the next id of a task that lives */
        uint32_t next = next_id % IDS, gap = IDS - next;
        for (Known *known = ring.next; known != &ring; known = known->next) {
            uint32_t other = (uint32_t)(known->id - first_id);
            if (other >= next && other - next < gap)
                gap = other - next;
        }
        next_id = gap ? next : next + 1;
        unchecked_ids = gap;
    }
    unchecked_ids--;
    return first_id + (int32_t)next_id++;
}

/* --- knowing a task ------------------------------------------------------------------------------------------ */

/* The text of what a task runs: that of the program, if a library wraps it. */
HOT static Name
name_task(PyObject *coroutine)
{
    Name name = name_coroutine(coroutine);
    if (name.flags & IS_LIBRARY && !(name.flags & IS_OURS) && !(is_off(SPAWN) && is_off(ALIVE))) {
        PyObject *inner = PyObject_CallOneArg(find_inner, coroutine);
        if (inner == NULL)
            PyErr_WriteUnraisable(find_inner);
        else if (inner != Py_None)
            name = name_coroutine(inner);
        Py_XDECREF(inner);
    }
    return name;
}

/* Come to know a task that runs a coroutine.
 *
 *     is_new   it is being made just now, by what runs in this thread
 *
 * Returns what is to stand for the coroutine, a new reference, or NULL without an exception. */
HOT Known *
know_task(PyObject *task, PyObject *coroutine, int runtime, int is_new)
{
    int32_t parent = is_new ? aiotrace_task : 0, id = 0;
    for (Making *each = making; each != NULL; each = each->outer) {
        if (each->coroutine == coroutine || each->task == task) {
            id = each->id;
            parent = each->parent;
        }
    }
    Name name = name_task(coroutine);
    PyObject *ref = PyWeakref_NewRef(task, NULL);
    Known *known = ref == NULL ? NULL : new_known(coroutine, ref);
    Py_XDECREF(ref);
    if (known == NULL) {
        PyErr_Clear();
        return NULL;
    }
    known->task = task;
    known->coroutine = name.text;
    known->id = id ? id : new_id();
    known->parent = parent;
    known->runtime = (char)runtime;
    known->state = name.flags & IS_OURS ? SILENT : TRACES;
    known->round = round_number;
    known->next = ring.next; /* before what the keyframe has still to come to */
    known->previous = &ring;
    ring.next->previous = known;
    ring.next = known;
    known_count++;
    look_at_next(known);
    return known;
}

/* A task was made just now, by what runs in this thread. */
HOT void
tell_spawn(Known *known, PyObject *task)
{
    int32_t current = aiotrace_task;
    if (known->state != TRACES || is_off(SPAWN))
        return;
    Name site = find_site();
    known->name = name_of(task, known->runtime);
    known->plain_in = 0; /* its first step tells whether it is called so still */
    set_task(known->parent);
    EMIT(SPAWN, PyLong_FromLong(known->id), PyLong_FromLong(known->parent), Py_XNewRef(known->name),
         Py_NewRef(known->coroutine != NULL ? known->coroutine : unknown_name.text), text_of(&site));
    set_task(current);
}

/* Pids whose names have still to be told. Each takes a microsecond or two of Python, which a task that begins has not:
 * they are told with the next keyframe, and at the end. */
static struct {
    int32_t id;
    PyObject *name;
} pids[COMMANDS_A_ROUND];
static int pids_count;

void
name_pids(int most)
{
    for (; most > 0 && pids_count > 0; most--) {
        int32_t id = pids[--pids_count].id;
        PyObject *name = pids[pids_count].name;
        PyObject *result = PyObject_CallFunction(name_command, "iO", id, name);
        if (result == NULL)
            PyErr_WriteUnraisable(name_command);
        Py_XDECREF(result);
        Py_DECREF(name);
    }
}

/* Those of a process that forked are its own to tell. */
void
forget_names(void)
{
    while (pids_count > 0)
        Py_DECREF(pids[--pids_count].name);
}

/* Say what a task is called, once it runs: some give a task its name just after they made it. */
HOT void
tell_name(Known *known)
{
    PyObject *old = known->name, *name, *task = referent(known->ref);
    known->name = NULL;
    known->comm[0] = 0;
    if (task == NULL) {
        Py_XDECREF(old);
        return;
    }
    Py_INCREF(task);
    if ((name = name_of(task, known->runtime)) != NULL) {
        if (commands_left > 0 && !known->is_named && pids_count < COMMANDS_A_ROUND) {
            commands_left--;
            known->is_named = 1;
            pids[pids_count].id = known->id;
            pids[pids_count++].name = Py_NewRef(name);
        }
        if (old != NULL && PyUnicode_Compare(name, old) != 0)
            EMIT(NAME, PyLong_FromLong(known->id), Py_NewRef(name));
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
tell_end(int32_t id, const Name *result, const Name *exception, uint64_t now)
{
    if (is_off(DONE))
        return;
    struct { RECORD_HEAD; DoneFields fields; } __attribute__((packed)) *record;
    DoneFields fields = {id, 0, result->key, exception->key};
    Cursor *writer;
    if (likely((record = begin_record(DONE, now, sizeof *record, &writer)) != NULL)) {
        record->fields = fields;
        end_record(writer, now, sizeof *record);
    }
    else if (!aiotrace_event_numbers(events[DONE], now, &fields))
        EMIT(DONE, PyLong_FromLong(id), text_of(result), text_of(exception));
}

/* --- keyframes ----------------------------------------------------------------------------------------------- */

void
tell_alive(Known *known)
{
    PyObject *task = referent(known->ref);
    if (known->state != TRACES || task == NULL || is_off(ALIVE))
        return;
    Py_INCREF(task);
    Py_INCREF(known);
    EMIT(ALIVE, PyLong_FromLong(known->id), PyLong_FromLong(known->parent), name_of(task, known->runtime),
         Py_NewRef(known->coroutine != NULL ? known->coroutine : unknown_name.text));
    Py_DECREF(known);
    Py_DECREF(task);
}

/* Go on with the round over all tasks: say which are alive. */
static void
write_round(int most)
{
    for (int written = 0; written < most && round_place != &ring;) {
        Known *known = round_place;
        round_place = known->next;
        if (known->state != TRACES || known->round == round_number)
            continue;
        known->round = round_number;
        written++;
        tell_alive(known);
    }
    name_pids(most);
    round_due = round_place == &ring && pids_count == 0 ? round_began + ROUND_NS : 0;
}

static void
begin_round(uint64_t now)
{
    round_began = now;
    round_number++;
    round_place = ring.next;
    commands_left = COMMANDS_A_ROUND;
    plain_round++; /* those that have no name yet may get one */
}

void
go_on_with_round(uint64_t now)
{
    if (round_place == &ring && now - round_began >= ROUND_NS)
        begin_round(now);
    write_round(SLICE);
}

/* Go through all tasks now. */
void
write_whole_round(void)
{
    begin_round(task_clock());
    do
        write_round(SLICE);
    while (round_place != &ring);
}

/* No round for a while: the tasks that there are have just been told of. */
void
begin_rounds(void)
{
    commands_left = COMMANDS_A_ROUND;
    round_began = task_clock();
    round_due = round_began + ROUND_NS;
    round_place = &ring;
}
