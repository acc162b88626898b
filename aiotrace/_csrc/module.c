/* aiotrace._c: the module, made of parts. What it holds is found through _base/backend.py alone. */
#include "common/common.h"

static int
refuse_subinterpreter(PyObject *Py_UNUSED(module))
{
    if (PyInterpreterState_Get() == PyInterpreterState_Main())
        return 0;
    PyErr_SetString(PyExc_ImportError,
                    "aiotrace._c cannot be loaded in a sub-interpreter; AIOTRACE_PURE=1 uses the pure-Python "
                    "implementation");
    return -1;
}

static int
take_errors(PyObject *module)
{
    PyObject *errors = PyImport_ImportModule("aiotrace._base.errors");
    if (errors == NULL)
        return -1;
    aiotrace_state *state = aiotrace_get_state(module);
    state->TraceFormatError = PyObject_GetAttrString(errors, "TraceFormatError");
    Py_DECREF(errors);
    return state->TraceFormatError == NULL ? -1 : 0;
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    aiotrace_state *state = aiotrace_get_state(module);
    Py_VISIT(state->TraceFormatError);
    Py_VISIT(state->walk_type);
    return 0;
}

static int
module_clear(PyObject *module)
{
    aiotrace_state *state = aiotrace_get_state(module);
    Py_CLEAR(state->TraceFormatError);
    Py_CLEAR(state->walk_type);
    return 0;
}

static void
module_free(void *module)
{
    module_clear((PyObject *)module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, refuse_subinterpreter},
    {Py_mod_exec, take_errors},
    {Py_mod_exec, aiotrace_clock_exec},
    {Py_mod_exec, aiotrace_eventfd_exec},
    {Py_mod_exec, aiotrace_columns_exec},
    {Py_mod_exec, aiotrace_crc32_exec},
    {Py_mod_exec, aiotrace_cursor_exec},
    {Py_mod_exec, aiotrace_delivery_exec},
    {Py_mod_exec, aiotrace_event_exec},
    {Py_mod_exec, aiotrace_batch_write_exec},
    {Py_mod_exec, aiotrace_page_frames_exec},
    {Py_mod_exec, aiotrace_journal_runs_exec},
    {Py_mod_exec, aiotrace_calls_exec},
    {Py_mod_exec, aiotrace_page_state_exec},
    {Py_mod_exec, aiotrace_thread_lease_exec},
    {Py_mod_exec, aiotrace_report_lines_exec},
    {Py_mod_exec, aiotrace_walk_exec},
    {Py_mod_exec, aiotrace_span_exec},
    {Py_mod_exec, aiotrace_stalls_exec},
    {Py_mod_exec, aiotrace_tasks_exec},
    {Py_mod_exec, aiotrace_turn_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "aiotrace._c",
    .m_doc = "What runs for each record, step or page, in C. Writing and reading have a pure-Python\n"
             "implementation too; the tracers of tasks, calls and stalls have not.",
    .m_size = sizeof(aiotrace_state),
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC
PyInit__c(void)
{
    return PyModuleDef_Init(&module_definition);
}
