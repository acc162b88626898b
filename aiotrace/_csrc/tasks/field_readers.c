/* Reading an attribute of CPython's own tasks and coroutines without looking it up: the C function
 * or the offset that its descriptor names, found once for a type.
 *
 *     FieldReader --aiotrace_prepare_reader(type)--> get, method or offset --read_field--> value
 */
#include "tasks/tasks.h"

FieldReader aiotrace_reader_waiter = {.text = "_fut_waiter"}, aiotrace_reader_must_cancel = {.text = "_must_cancel"},
     aiotrace_reader_exception = {.text = "_exception"}, aiotrace_reader_done = {.text = "done", .is_call = 1},
     aiotrace_reader_cancelled = {.text = "cancelled", .is_call = 1},
         aiotrace_reader_cancelling = {.text = "cancelling", .is_call = 1},
     aiotrace_reader_name = {.text = "get_name", .is_call = 1}, aiotrace_reader_code = {.text = "cr_code"},
     aiotrace_reader_suspended = {.text = "cr_suspended"}, aiotrace_reader_frame = {.text = "cr_frame"},
         aiotrace_reader_trio_name = {.text = "name"};

int
aiotrace_prepare_reader(FieldReader *reader, PyTypeObject *type)
{
    if (reader->name == NULL && (reader->name = PyUnicode_InternFromString(reader->text)) == NULL)
        return -1;
    reader->method = NULL;
    reader->get = NULL;
    reader->offset = 0;
    if (type == NULL)
        return 0;
    PyObject *found = PyObject_GetAttr((PyObject *)type, reader->name);
    if (found == NULL) {
        PyErr_Clear();
        return 0;
    }
    if (Py_TYPE(found) == &PyGetSetDescr_Type) {
        reader->get = ((PyGetSetDescrObject *)found)->d_getset->get;
        reader->closure = ((PyGetSetDescrObject *)found)->d_getset->closure;
    }
    else if (Py_TYPE(found) == &PyMethodDescr_Type &&
             ((PyMethodDescrObject *)found)->d_method->ml_flags == METH_NOARGS) {
        reader->method = ((PyMethodDescrObject *)found)->d_method->ml_meth;
    }
    else if (Py_TYPE(found) == &PyMemberDescr_Type && ((PyMemberDescrObject *)found)->d_member->type == T_OBJECT) {
        reader->offset = ((PyMemberDescrObject *)found)->d_member->offset;
    }
    Py_DECREF(found);
    return 0;
}

int
aiotrace_field_is_true(const FieldReader *reader, PyObject *object, int is_known)
{
    PyObject *value = read_field(reader, object, is_known);
    int is_true = value == Py_True;
    Py_XDECREF(value);
    return is_true;
}
