/* Huge pages on request: small pages made into a huge one. Callers: api. */
#ifndef VMEMU_HUGE_H
#define VMEMU_HUGE_H

#include "mm.h"

/* Puts what is mapped in the 2 MiB at va, in one private anonymous mapping, into a huge page, zeros where nothing is
 * (MADV_COLLAPSE, hpage_collapse_scan_pmd(), collapse_huge_page()). 0 also if it is one already. -EINVAL: no page table, or
 * something else than anonymous memory. -ENOMEM. */
int huge_collapse(struct vm *vm, struct space *s, uint64_t va);

#endif
