/* Invariants, executable: a recount of everything that is counted and a look at every entry. Callers: api. */
#ifndef VMEMU_CHECK_H
#define VMEMU_CHECK_H

#include "mm.h"

/* 0, -EUCLEAN with the first thing found wrong in msg, or -ENOMEM if the host has no memory for the recount. */
int check_machine(struct vm *vm, char *msg, size_t size);

/* One run; for check.c and check_space.c. */
struct check {
	struct vm *vm;
	uint32_t *refs;	  /* leaf entries and other references recounted, by pfn */
	uint32_t *entire; /* huge entries, by block */
	uint32_t *slots;  /* swap entries and pages of objects, by slot of the swap device */
	char *msg;
	size_t size;
};

/* Says what is wrong; returns -EUCLEAN. */
int check_broken(const struct check *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define CHECK(cond, ...)                                                                                               \
	do {                                                                                                           \
		if (!(cond))                                                                                           \
			return check_broken(c, __VA_ARGS__);                                                           \
	} while (0)

/* In check_swap.c: an entry, or a page of an object, that holds a slot; and, these counted, all slots. */
int check_slot(const struct check *c, uint32_t slot);
int check_swap(const struct check *c);

/* Every space, and what spaces share. */
int check_spaces(const struct check *c);

#endif
