/* Invariants, executable: a recount of everything that is counted and a look at every entry. Callers: api. */
#ifndef VMEMU_CHECK_H
#define VMEMU_CHECK_H

#include "mm.h"

/* 0, -EUCLEAN with the first thing found wrong in msg, or -ENOMEM if the host has no memory for the recount. */
int check_machine(struct vm *vm, char *msg, size_t size);

#endif
