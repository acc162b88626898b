/* What writing and closing a trace does for each page, many pages at once: the same as
 * _formats/journal_runs.py and _store/batch_write.py.
 *
 *     page_frames.c   bodies of frames, or pages and parts of pages --> their frames for the journal
 *     batch_write.c   a batch of pages --> into their files, and their frames into the journal, in one call
 *     journal_runs.c  a journal          --> the rows of the pages that are as one expects, for the trace.dat
 *
 * The layouts are in _formats/frames.py, _formats/journal.py and _formats/tracedat.py. What is not
 * as expected is left to Python.
 */
#ifndef AIOTRACE_FILES_H
#define AIOTRACE_FILES_H

#include "common/common.h"
#include "common/crc32.h"

enum {
    HEADER_SIZE = 48,
    HEADER_CHECKED = 44, /* bytes of it that its crc32 covers */
    BODY_SIZE = 72,
    FRAME_SIZE = HEADER_SIZE + BODY_SIZE,
    ROW_SIZE = 24,
    VERSION = 1,
    KIND_PLACED = 7,
    PAGE_HEADER_SIZE = 16,
    PAGE_SIZE_MAX = 1 << 20,
    LOST_COUNT_SIZE = 8,
    BLOCK = 4096,
};

static const unsigned char MAGIC[4] = {0xf7, 'a', 'i', 'o'};

#define COMMIT_MISSED (UINT64_C(1) << 31 | UINT64_C(1) << 30)

/* Frames are little-endian on every machine; rows and page headers are in this one's order. */
static inline void
put(unsigned char *at, uint64_t value, int size)
{
    for (int byte = 0; byte < size; byte++)
        at[byte] = (unsigned char)(value >> 8 * byte);
}

static inline uint64_t
get(const unsigned char *at, int size)
{
    uint64_t value = 0;
    for (int byte = 0; byte < size; byte++)
        value |= (uint64_t)at[byte] << 8 * byte;
    return value;
}

#pragma GCC visibility push(hidden)

/* page_frames.c: what a body says of a page by itself; `entry` is a tuple of nine. Returns -1 with
 * an exception set if a number does not fit. */
int aiotrace_pack_entry(unsigned char *body, PyObject *entry);

/* The header of a frame, before a body that is there. */
void aiotrace_pack_header(unsigned char *frame, const char *stream_id, uint64_t sequence);

#pragma GCC visibility pop

#endif
