/* zlib's crc32. */
#ifndef AIOTRACE_CRC32_H
#define AIOTRACE_CRC32_H

#include <stddef.h>
#include <stdint.h>

/* The crc32 of some bytes that follow bytes whose crc32 is `crc` (0: they are the first). Needs no
 * GIL. */
uint32_t aiotrace_crc32(uint32_t crc, const unsigned char *data, size_t size);

#endif
