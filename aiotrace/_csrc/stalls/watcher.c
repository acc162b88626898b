/* The watcher: a thread of C that polls all threads' steps, samples those that last, and notices
 * those that last too long.
 *
 *     a step ----- threshold / 4: sampled, the sampler waits for the GIL ----- threshold: noticed ----- ...
 *
 * Invariants: it holds `lock` except while it sleeps, and never blocks; it never has the GIL, and
 * touches no object except a WatcherCursor. A step is noticed only if it still runs when all
 * threads can see that it is.
 */
#include "stalls/stalls.h"

#include <errno.h>
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LATE_MIN 10000000u /* ns: by which the watcher wakes late, if the machine is overloaded */

/* What stall:noticed holds; the order and the padding of _tracers/stall.py's definition. */
typedef struct {
    int32_t thread, task;
    uint64_t began_ns, lasted_ns, cause;
} NoticedRecord;

/* Let every thread that runs see what was stored here, and what they stored be seen here
 * (membarrier(2)). Where the kernel has no such call, a tenth of a millisecond is long enough for
 * what a processor still has in its buffers. */
static void
be_seen(void)
{
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) != 0)
        nanosleep(&(struct timespec){0, 100000}, NULL);
}

/* Have the sampler wait for the GIL, in this step. */
static void
probe(Slot *slot, uint64_t step, uint64_t now)
{
    slot->probed = step;
    if (aiotrace_stalls.sampler_waits && !slot->waiting.ns)
        aiotrace_stall_begin_waiting(slot, now); /* it does already */
    aiotrace_stalls.has_work = 1;
    pthread_cond_signal(&aiotrace_stalls.work);
}

/* A step has lasted for the threshold. */
static void
notice(Slot *slot, uint64_t step, uint64_t began, int32_t task)
{
    __atomic_store_n(&slot->noticed, step, __ATOMIC_SEQ_CST);
    be_seen();
    if (__atomic_load_n(&slot->sequence, __ATOMIC_SEQ_CST) != step)
        return;
    Sample now = aiotrace_stall_sample(slot);
    Waits waits = aiotrace_stall_waits_until(slot, now.ns);
    int cause = aiotrace_stall_judge(&slot->first, &now, &waits, aiotrace_stall_thread_state(slot->thread));
    struct {
        uint32_t common;
        int32_t pid;
        NoticedRecord fields;
    } record = {aiotrace_stalls.noticed_id,
                task ? task : slot->thread,
                {slot->thread, task, began, since(began, now.ns), aiotrace_stall_causes[cause].key}};
    if (aiotrace_stalls.writes_itself)
        for (int i = 0; i < aiotrace_stalls.cursors_count; i++)
            aiotrace_watcher_put(aiotrace_stalls.cursors[i], now.ns, &record, sizeof record);
    slot->pending_report.step = step;
    slot->pending_report.began = began;
    slot->pending_report.lasted = record.fields.lasted_ns;
    slot->pending_report.task = task;
    slot->pending_report.cause = cause;
    slot->pending_report.is_written = aiotrace_stalls.writes_itself;
    probe(slot, step, now.ns);
}

/* Check what runs in a thread. Returns when to check again. */
static uint64_t
check_slot(Slot *slot, uint64_t now, uint64_t next)
{
    uint64_t step = load_acquire(&slot->sequence), began = load_acquire(&slot->began), due;
    int32_t task = load_acquire(&slot->task);
    if (slot->is_free || !(step & 1) || load_acquire(&slot->sequence) != step)
        return next;
    if (slot->sampled != step) {
        due = began + aiotrace_stalls.threshold / 4;
        if (due > now)
            return due < next ? due : next;
        slot->first = aiotrace_stall_sample(slot);
        slot->sampled = step;
        memset(&slot->waits, 0, sizeof slot->waits);
        slot->waiting.ns = 0;
        probe(slot, step, now);
    }
    if (slot->noticed != step) {
        due = began + aiotrace_stalls.threshold;
        if (due > now)
            return due < next ? due : next;
        notice(slot, step, began, task);
    }
    return next;
}

void *
aiotrace_stall_watch(void *Py_UNUSED(argument))
{
    pthread_mutex_lock(&aiotrace_stalls.lock);
    while (!aiotrace_stalls.is_stopping) {
        uint64_t now = aiotrace_monotonic_ns(), next = now + aiotrace_stalls.threshold / 4;
        for (Slot *slot = aiotrace_stalls.slots; slot != NULL; slot = slot->next)
            next = check_slot(slot, now, next);
        now = aiotrace_monotonic_ns();
        if (next < now + PAUSE_MIN)
            next = now + PAUSE_MIN;
        struct timespec until = {(time_t)(next / 1000000000u), (long)(next % 1000000000u)};
        if (pthread_cond_timedwait(&aiotrace_stalls.change, &aiotrace_stalls.lock, &until) == ETIMEDOUT) {
            uint64_t late = since(next, aiotrace_monotonic_ns());
            if (late >= LATE_MIN)
                aiotrace_stalls.late_ns += late;
        }
    }
    pthread_mutex_unlock(&aiotrace_stalls.lock);
    return NULL;
}
