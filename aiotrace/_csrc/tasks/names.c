/* Names of code, lines and types, each made once in Python; where the program is.
 *
 *     code or type, line -> names -> text and the key of its symbol
 */
#include "tasks/tasks.h"
#include "tasks/frames.h"

#define NAMES_MAX 65536 /* code objects, lines and types whose text is kept */

/* --- names of code and types --------------------------------------------------------------------------------- */

Name aiotrace_unknown_name, aiotrace_name_yield, aiotrace_name_done, aiotrace_name_nothing, aiotrace_name_returned,
    aiotrace_name_raised, aiotrace_name_cancelled, aiotrace_name_lost;

static Name *names;
static size_t names_size;
size_t aiotrace_names_used;

static inline size_t
hash_place(const PyObject *object, int place)
{
    uint64_t hash = ((uint64_t)(uintptr_t)object >> 4) ^ ((uint64_t)(uint32_t)place << 32);
    hash *= 0x9E3779B97F4A7C15u;
    return (size_t)(hash >> 20);
}

static inline Name *
probe_name(PyObject *object, int place)
{
    size_t mask = names_size - 1;
    for (size_t i = hash_place(object, place) & mask;; i = (i + 1) & mask)
        if (names[i].object == NULL || (names[i].object == object && names[i].place == place))
            return &names[i];
}

static int
grow_names(void)
{
    size_t size = names_size ? names_size * 2 : 1024;
    Name *old = names, *grown = PyMem_RawCalloc(size, sizeof(Name));
    if (grown == NULL)
        return -1;
    size_t old_size = names_size;
    names = grown;
    names_size = size;
    for (size_t i = 0; i < old_size; i++)
        if (old[i].object != NULL)
            *probe_name(old[i].object, old[i].place) = old[i];
    PyMem_RawFree(old);
    return 0;
}

/* The text of a code object (of the line of a place in it) or a type. May call Python, once for
 * each. */
HOT Name
aiotrace_find_name(PyObject *object, int place)
{
    if (likely(names_size)) {
        Name *found = probe_name(object, place);
        if (likely(found->object != NULL))
            return *found;
    }
    if (aiotrace_names_used >= NAMES_MAX)
        return aiotrace_unknown_name;
    int line = place ? PyCode_Addr2Line((PyCodeObject *)object, place - 1) : 0;
    PyObject *answer = PyObject_CallFunction(aiotrace_describe, "Oi", object, line);
    Name made = {object, place, 0, 0, NULL};
    unsigned long long key;
    if (answer == NULL || !PyArg_ParseTuple(answer, "OKi", &made.text, &key, &made.flags)) {
        PyErr_WriteUnraisable(aiotrace_describe);
        Py_XDECREF(answer);
        return aiotrace_unknown_name;
    }
    made.key = key;
    Py_INCREF(made.text);
    Py_DECREF(answer);
    /* From here on no Python. */
    if (aiotrace_names_used * 2 >= names_size && grow_names() < 0) {
        Name lost = aiotrace_unknown_name;
        lost.flags = made.flags;
        return lost;
    }
    Name *free = probe_name(object, place);
    if (free->object != NULL) { /* another thread was here meanwhile */
        Py_DECREF(made.text);
        return *free;
    }
    Py_INCREF(object);
    aiotrace_names_used++;
    return *free = made;
}

int
aiotrace_fill_name(Name *name, const char *text)
{
    PyObject *object = PyUnicode_InternFromString(text);
    if (object == NULL)
        return -1;
    if (name->text == NULL) {
        PyObject *answer = PyObject_CallFunction(aiotrace_describe, "Oi", object, 0);
        unsigned long long key;
        PyObject *shown;
        if (answer == NULL || !PyArg_ParseTuple(answer, "OKi", &shown, &key, &name->flags)) {
            Py_XDECREF(answer);
            Py_DECREF(object);
            return -1;
        }
        name->text = Py_NewRef(shown);
        name->key = key;
        Py_DECREF(answer);
    }
    Py_DECREF(object);
    return 0;
}

PyObject *
aiotrace_text_of(const Name *name)
{
    PyObject *text = name->text != NULL ? name->text : aiotrace_unknown_name.text;
    return Py_NewRef(text);
}

/* --- records ------------------------------------------------------------------------------------------------- */

/* Call an event; steals the references to its arguments, any of which may be NULL after an error. */
void
aiotrace_call_event(PyObject *event, int count, PyObject **arguments)
{
    int complete = 1;
    for (int i = 0; i < count; i++)
        complete &= arguments[i] != NULL;
    PyObject *result = complete ? PyObject_Vectorcall(event, arguments, (size_t)count, NULL) : NULL;
    if (result == NULL)
        PyErr_WriteUnraisable(event);
    Py_XDECREF(result);
    for (int i = 0; i < count; i++)
        Py_XDECREF(arguments[i]);
}

/* --- tasks and coroutines ------------------------------------------------------------------------------------ */

HOT PyObject *
aiotrace_name_of_task(PyObject *task, int runtime)
{
    PyObject *name = runtime == ON_TRIO ? read_field(&aiotrace_reader_trio_name, task,
                                                     0) : read_field(&aiotrace_reader_name, task, is_c_task(task));
    if (name != NULL && !PyUnicode_CheckExact(name)) {
        PyObject *text = PyObject_Str(name);
        Py_SETREF(name, text);
        if (name == NULL)
            PyErr_Clear();
    }
    return name != NULL ? name : PyUnicode_FromString("");
}

/* The text of the code that a coroutine runs, or of its type. */
HOT Name
aiotrace_name_coroutine(PyObject *coroutine)
{
    if (coroutine == NULL)
        return aiotrace_unknown_name;
    PyObject *code = read_field(&aiotrace_reader_code, coroutine, PyCoro_CheckExact(coroutine));
    Name name;
    if (code != NULL && PyCode_Check(code))
        name = aiotrace_find_name(code, 0);
    else
        name = aiotrace_find_name((PyObject *)Py_TYPE(coroutine), 0);
    Py_XDECREF(code);
    return name;
}

/* Where the program is now: the innermost line that is not a runtime's own, or the innermost of
 * all.
 *
 * Frames are read as the interpreter has them: an object for each, which PyThreadState_GetFrame
 * makes, costs more than all else of a spawn. */
HOT Name
aiotrace_find_site(void)
{
    Name innermost = aiotrace_unknown_name;
    Frame frame = aiotrace_innermost_frame();
    for (int is_first = 1; frame.code != NULL; is_first = 0) {
        PyObject *code = Py_NewRef(frame.code);
        int place = frame.offset + 1;
        int is_found = !(aiotrace_find_name(code, 0).flags & IS_LIBRARY);
        if (is_first || is_found)
            innermost = aiotrace_find_name(code, place);
        Py_DECREF(code);
        if (is_found)
            break;
        frame = aiotrace_outer_frame(&frame);
    }
    return innermost;
}
