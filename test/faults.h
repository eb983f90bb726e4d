/* faults - the calls by which store touches the disk, and realloc(), recorded,
 * made to fail or to wait. A program that is linked with faults.c and, for each of them,
 * -Wl,--wrap=CALL is told by its environment what is to happen:
 *
 *	FAULTS_TRACE=FILE         each call that worked is appended to FILE, in
 *	                          the order of all processes
 *	FAULTS_FAIL=CALL:K:N:E    calls K to K+N-1 of this name fail, errno E
 *	FAULTS_GATE=FIFO          fdatasync first waits for a writer of FIFO, from
 *	                          faults_gate on
 *
 * An event in the trace: type (1 byte), inode, offset, two lengths (8, 8, 4
 * and 4 bytes), then two strings of these lengths. Types: w write (data), s
 * sync, z size is set (offset), c create or truncate (path), r rename (paths),
 * u unlink (path), a number was acknowledged (offset).
 */
#ifndef FAULTS_H
#define FAULTS_H

#include <stdint.h>

/* Notes in the trace that a number was acknowledged. */
void faults_mark(uint32_t number);

void faults_gate(void);

#endif
