/* The memory of a thread's stack of traced calls.
 *
 *     calls  | (unused) | call at depth 1 | 2 | ... | depth | room ........ |   doubles, up to DEPTH_MAX
 *
 * Invariant: only its thread grows it, and it is freed with its thread.
 */
#include "calls/calls.h"

#include <pthread.h>

#define DEPTH_MAX 65536

/* Shared by all threads, and never written: a thread begins with it and grows its own. */
Stack aiotrace_no_stack;
THREAD_LOCAL Stack *aiotrace_this_stack = &aiotrace_no_stack;
static pthread_key_t stack_key; /* frees a thread's stack; made once */

Stack *
aiotrace_grow_stack(Stack *stack)
{
    int is_first = stack == &aiotrace_no_stack;
    uint32_t room = is_first ? 128 : 2 * stack->room;
    if (room > DEPTH_MAX)
        return NULL;
    Stack *grown = realloc(is_first ? NULL : stack, sizeof(Stack) + (room + 1) * sizeof(Call));
    if (grown == NULL)
        return NULL;
    if (is_first)
        memset(grown, 0, sizeof(Stack) + sizeof(Call));
    grown->room = room;
    aiotrace_this_stack = grown;
    pthread_setspecific(stack_key, grown);
    return grown;
}

static void
free_stack(void *stack)
{
    aiotrace_this_stack = &aiotrace_no_stack;
    free(stack);
}

int
aiotrace_call_stack_exec(void)
{
    static int has_key;
    if (!has_key && pthread_key_create(&stack_key, free_stack) != 0) {
        PyErr_SetString(PyExc_OSError, "pthread_key_create");
        return -1;
    }
    has_key = 1;
    return 0;
}
