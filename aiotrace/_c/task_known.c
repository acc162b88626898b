/* The tasks that are known, by their address: their ids, their spawn, their names; keyframes of all that live.
 *
 *     spawned: know_task -> tasks -> done: forget_task
 *                           |
 *                           a weak reference that is dead: destroyed while it was pending, told by a keyframe
 */
#include "task.h"

#define IDS (1 << 22)        /* ids of a process: from `first_id` on, used again after the last */
#define ROUND_NS 1000000000u /* a keyframe of all live tasks at most this often */
#define SLICE 64             /* tasks of a keyframe that one step writes */
#define COMMANDS_A_ROUND 512 /* pids that are named between two keyframes: 1 to 2 us each */

THREAD_LOCAL Making *making;

/* --- the table ------------------------------------------------------------------------- */

static Known **tasks;
static size_t tasks_size;
size_t tasks_used;
static Known *free_known;

uint32_t runs;
int32_t first_id;
static uint32_t next_id, unchecked_ids; /* ids from `next_id` on that are known to be nobody's */

static uint64_t round_began;
static uint32_t round_number;
static size_t round_place; /* where the keyframe has come to; tasks_size: it is done */
int commands_left;

int32_t
base_id(void)
{
    return (int32_t)((1 + (long)getpid() % 511) << 22);
}

int32_t
new_id(void)
{
    while (unlikely(unchecked_ids == 0)) { /* as far as the next id of a task that lives */
        uint32_t next = next_id % IDS, gap = IDS - next;
        for (size_t i = 0; i < tasks_size; i++) {
            if (tasks[i] != NULL) {
                uint32_t other = (uint32_t)(tasks[i]->id - first_id);
                if (other >= next && other - next < gap)
                    gap = other - next;
            }
        }
        next_id = gap ? next : next + 1;
        unchecked_ids = gap;
    }
    unchecked_ids--;
    return first_id + (int32_t)next_id++;
}

void
begin_ids(uint32_t next)
{
    first_id = base_id();
    next_id = next % IDS;
    unchecked_ids = 0; /* look first */
}

static inline size_t
probe_task(const PyObject *task)
{
    size_t mask = tasks_size - 1, i = hash_pointer(task, 0) & mask;
    while (tasks[i] != NULL && tasks[i]->task != task)
        i = (i + 1) & mask;
    return i;
}

void
release(Known *known)
{
    if (--known->holders > 0)
        return;
    PyObject *ref = known->ref, *name = known->name;
    known->free = free_known;
    free_known = known;
    Py_XDECREF(ref);
    Py_XDECREF(name);
}

/* Take a task out of the table; linear probing wants the ones behind it moved up. */
static void
remove_at(size_t i)
{
    size_t mask = tasks_size - 1;
    Known *known = tasks[i];
    for (size_t j = i;;) {
        tasks[i] = NULL;
        for (;;) {
            j = (j + 1) & mask;
            if (tasks[j] == NULL)
                goto done;
            size_t home = hash_pointer(tasks[j]->task, 0) & mask;
            if (((j - home) & mask) >= ((j - i) & mask))
                break;
        }
        tasks[i] = tasks[j];
        i = j;
    }
done:
    tasks_used--;
    release(known);
}

void
forget_all(void)
{
    while (tasks_used) {
        for (size_t i = 0; i < tasks_size; i++)
            while (tasks[i] != NULL)
                remove_at(i);
    }
}

static int
grow_tasks(void)
{
    size_t size = tasks_size ? tasks_size * 2 : 256, old_size = tasks_size;
    Known **old = tasks, **grown = PyMem_RawCalloc(size, sizeof(Known *));
    if (grown == NULL)
        return -1;
    tasks = grown;
    tasks_size = size;
    for (size_t i = 0; i < old_size; i++)
        if (old[i] != NULL)
            tasks[probe_task(old[i]->task)] = old[i];
    PyMem_RawFree(old);
    round_place = tasks_size; /* the next keyframe begins anew */
    return 0;
}

/* --- knowing a task ------------------------------------------------------------------------------------ */

Known *
find_task(PyObject *task)
{
    if (unlikely(!tasks_size))
        return NULL;
    Known *known = tasks[probe_task(task)];
    return known != NULL && referent(known->ref) == task ? known : NULL;
}

/* Say what a task is called, once it runs: some give a task its name just after they made it. */
void
tell_name(Known *known, PyObject *task)
{
    PyObject *old = known->name, *name;
    known->name = NULL;
    if ((old != NULL || (commands_left > 0 && !known->is_named)) && (name = name_of(task, known->runtime)) != NULL) {
        if (commands_left > 0 && !known->is_named) {
            commands_left--;
            known->is_named = 1;
            PyObject *result = PyObject_CallFunction(name_command, "iO", known->id, name);
            if (result == NULL)
                PyErr_WriteUnraisable(name_command);
            Py_XDECREF(result);
        }
        if (old != NULL && PyUnicode_Compare(name, old) != 0)
            EMIT(NAME, PyLong_FromLong(known->id), Py_NewRef(name));
        Py_DECREF(name);
    }
    PyErr_Clear();
    Py_XDECREF(old);
}

/* What task:done holds; the order and the padding of _tracers/task.py's definition. */
typedef struct {
    int32_t task, padding;
    uint64_t result, exception;
} DoneRecord;

void
tell_end(int32_t id, const Name *result, const Name *exception)
{
    DoneRecord record = {id, 0, result->key, exception->key};
    if (!IS_OFF(DONE) && !aiotrace_event_numbers(events[DONE], now_ns(), &record))
        EMIT(DONE, PyLong_FromLong(id), text_of(result), text_of(exception));
}

static void
tell_lost(int32_t id)
{
    tell_end(id, &name_lost, &name_nothing);
}

/* Come to know a task; a new reference to what is known of it, or NULL.
 *
 *     is_new      it is being made just now, by what runs in this thread: its spawn is recorded */
Known *
know_task(PyObject *task, int runtime, int is_new)
{
    int32_t parent = is_new ? aiotrace_get_task() : 0, id = 0, lost = 0;
    PyObject *coroutine = coroutine_of(task, runtime);
    for (Making *each = making; each != NULL; each = each->outer) {
        if (each->coroutine == coroutine || each->task == task) {
            id = each->id;
            parent = each->parent;
            Py_XSETREF(coroutine, Py_NewRef(each->coroutine)); /* a task that is done has none any more */
        }
    }
    Name name = name_coroutine(coroutine);
    if (name.flags & IS_LIBRARY && !(name.flags & IS_OURS) && !(IS_OFF(SPAWN) && IS_OFF(ALIVE))) {
        PyObject *inner = PyObject_CallOneArg(find_inner, coroutine);
        if (inner == NULL)
            PyErr_WriteUnraisable(find_inner);
        else if (inner != Py_None)
            name = name_coroutine(inner);
        Py_XDECREF(inner);
    }
    Py_XDECREF(coroutine);
    PyObject *ref = PyWeakref_NewRef(task, NULL);
    if (ref == NULL) {
        PyErr_Clear();
        return NULL;
    }
    /* From here on no Python. */
    if (tasks_used * 2 >= tasks_size && grow_tasks() < 0) {
        Py_DECREF(ref);
        return NULL;
    }
    size_t place = probe_task(task);
    Known *known = tasks[place];
    if (known != NULL && referent(known->ref) == task) {
        known->holders++;
        Py_DECREF(ref);
        return known;
    }
    if (known != NULL) { /* at the address of one that was destroyed while it was pending */
        lost = known->is_silent ? 0 : known->id;
        remove_at(place);
        place = probe_task(task);
    }
    if ((known = free_known) != NULL)
        free_known = known->free;
    else if ((known = PyMem_RawMalloc(sizeof *known)) == NULL) {
        Py_DECREF(ref);
        return NULL;
    }
    memset(known, 0, sizeof *known);
    known->task = task;
    known->ref = ref;
    known->coroutine = name.text;
    known->holders = 2;
    known->id = id ? id : new_id();
    known->parent = parent;
    known->runs = runs;
    known->runtime = (char)runtime;
    known->is_silent = (name.flags & IS_OURS) != 0;
    known->round = round_number;
    tasks[place] = known;
    tasks_used++;
    if (lost)
        tell_lost(lost);
    if (known->is_silent)
        return known;
    if (is_new && !IS_OFF(SPAWN)) {
        int32_t current = aiotrace_get_task();
        Name site = find_site();
        known->name = name_of(task, runtime);
        aiotrace_set_task(parent);
        EMIT(SPAWN, PyLong_FromLong(known->id), PyLong_FromLong(parent), Py_XNewRef(known->name), text_of(&name),
             text_of(&site));
        aiotrace_set_task(current);
    }
    return known;
}

void
forget_task(PyObject *task, Known *known)
{
    if (tasks_size) {
        size_t place = probe_task(task);
        if (tasks[place] == known && known != NULL)
            remove_at(place);
    }
}

/* --- keyframes --------------------------------------------------------------------------------------- */

/* Go on with the round over all tasks: say which are alive, and which are gone that were never done. */
static void
write_round(int most)
{
    for (int written = 0; written < most && round_place < tasks_size;) {
        Known *known = tasks[round_place];
        if (known == NULL) {
            round_place++;
            continue;
        }
        PyObject *task = referent(known->ref);
        if (task == NULL) {
            int32_t lost = known->is_silent ? 0 : known->id;
            remove_at(round_place); /* another may have moved here */
            written++;
            if (lost)
                tell_lost(lost);
            continue;
        }
        round_place++;
        if (known->is_silent || known->round == round_number)
            continue;
        known->round = round_number;
        known->holders++;
        written++;
        if ((task = referent(known->ref)) != NULL && !IS_OFF(ALIVE)) {
            Py_INCREF(task);
            EMIT(ALIVE, PyLong_FromLong(known->id), PyLong_FromLong(known->parent), name_of(task, known->runtime),
                 Py_NewRef(known->coroutine != NULL ? known->coroutine : unknown_name.text));
            Py_DECREF(task);
        }
        release(known);
    }
}

static void
begin_round(uint64_t now)
{
    round_began = now;
    round_number++;
    round_place = 0;
    commands_left = COMMANDS_A_ROUND;
}

void
go_on_with_round(uint64_t now)
{
    if (round_place >= tasks_size) {
        if (now - round_began < ROUND_NS)
            return;
        begin_round(now);
    }
    write_round(SLICE);
}

/* Go through all tasks now. */
void
write_whole_round(void)
{
    begin_round(now_ns());
    while (round_place < tasks_size)
        write_round(SLICE);
}

/* No round for a while: the tasks that there are have just been told of. */
void
begin_rounds(void)
{
    commands_left = COMMANDS_A_ROUND;
    round_began = now_ns();
    round_place = tasks_size;
}
