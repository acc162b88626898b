/* The numbers of pages, records and descriptors, as aiotrace/_page/layout.py has them;
 * tests/page/test_layout_in_c.py compares the two, name by name. Numbers only: nothing here
 * computes. */
#ifndef AIOTRACE_LAYOUT_H
#define AIOTRACE_LAYOUT_H

/* Page: a header (u64 timestamp, u64 commit), records, room for the number of lost events. */
#define AIOTRACE_PAGE_HEADER_SIZE 16
#define AIOTRACE_PAGE_SIZE_MAX (1 << 20)
#define AIOTRACE_LOST_COUNT_SIZE 8

/* Record: a u32 (type_len in the low bits, time_delta above them), then what type_len says. */
#define AIOTRACE_TYPE_LEN_BITS 5
#define AIOTRACE_TYPE_LEN_MASK 31
#define AIOTRACE_TYPE_DATA_MAX 28
#define AIOTRACE_TYPE_PADDING 29
#define AIOTRACE_TYPE_TIME_EXTEND 30
#define AIOTRACE_TYPE_TIME_STAMP 31
#define AIOTRACE_TIME_DELTA_BITS 27
#define AIOTRACE_TIME_DELTA_MAX ((1 << AIOTRACE_TIME_DELTA_BITS) - 1)
#define AIOTRACE_TIME_STAMP_BITS 59
#define AIOTRACE_SHORT_PAYLOAD_MAX (AIOTRACE_TYPE_DATA_MAX * 4)
#define AIOTRACE_RECORD_COMMON_SIZE 8
#define AIOTRACE_RECORD_DYNAMIC_MAX 65000
#define AIOTRACE_FLAG_CUT 0x80

/* Descriptor: words of a page. */
#define AIOTRACE_DESCRIPTOR_WORDS 16
#define AIOTRACE_STATE 0
#define AIOTRACE_WRITER 1
#define AIOTRACE_SEQUENCE 2
#define AIOTRACE_FIRST_EVENT 3
#define AIOTRACE_EVENTS 4
#define AIOTRACE_COMMITTED 5
#define AIOTRACE_LAST_TIME 6
#define AIOTRACE_DEFINITIONS 7
#define AIOTRACE_HOLDERS 8
#define AIOTRACE_DELIVERED 9
#define AIOTRACE_TAKES 10
#define AIOTRACE_CHECK 11

/* States of a page. */
#define AIOTRACE_FREE 0
#define AIOTRACE_FILLING 1
#define AIOTRACE_FULL 2
#define AIOTRACE_IN_FLIGHT 3

#endif
