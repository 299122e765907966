/* Memory objects: the radix tree from page index to frame, and who keeps an object alive. See object.h. */
#include "object.h"

#include "pool.h"
#include "swap.h"

#define FANOUT_BITS 6
#define FANOUT (1u << FANOUT_BITS)
#define MAX_HEIGHT 9 /* 54 bits of page index */

struct node {
	void *slot[FANOUT]; /* nodes, or at the bottom frames and slots of the swap device, as below */
	uint32_t count;
};

static void *from_pfn(pfn_t pfn)
{
	return (void *)(((uintptr_t)pfn + 1) << 1);
}

static pfn_t to_pfn(const void *p)
{
	return (pfn_t)(((uintptr_t)p >> 1) - 1);
}

static void *from_slot(uint32_t slot)
{
	return (void *)((uintptr_t)slot << 1 | 1);
}

/* 0: it is none. */
static uint32_t to_slot(const void *p)
{
	return (uintptr_t)p & 1 ? (uint32_t)((uintptr_t)p >> 1) : 0;
}

static unsigned int slot_of(uint64_t index, uint32_t height)
{
	return (unsigned int)(index >> (FANOUT_BITS * (height - 1))) & (FANOUT - 1);
}

static int in_reach(const struct object *obj, uint64_t index)
{
	return obj->height && index >> (FANOUT_BITS * obj->height) == 0;
}

/* Huge pages that an object of a pool reserves for its size. */
static uint64_t reserve_of(const struct object *obj)
{
	return obj->kind & VMEMU_OBJ_RESERVE ? object_pages(obj) / HUGE_PAGES(obj->kind & VMEMU_OBJ_GIANT) : 0;
}

static struct pool *pool_of(const struct objects *o, const struct object *obj)
{
	return &o->frames->pools[obj->kind & VMEMU_OBJ_GIANT ? 1 : 0];
}

/* ---- life ---- */

/* Ids go round, as those of spaces do. */
int object_new(struct objects *o, uint32_t kind, uint64_t size, uint32_t *id)
{
	struct vma_users *users = &o->env->users;
	struct host *host = o->env->host;
	uint32_t i;

	if (o->capacity / 2 <= o->count) {
		uint32_t grown = o->capacity ? o->capacity * 2 : 64;
		struct object *of = host_zalloc(host, grown * sizeof(*of));
		struct vma_user *user = host_zalloc(host, grown * sizeof(*user));

		if (!of || !user) {
			host_free(host, of, grown * sizeof(*of));
			host_free(host, user, grown * sizeof(*user));
			return -ENOMEM;
		}
		if (o->of) {
			memcpy(of, o->of, o->capacity * sizeof(*of));
			memcpy(user, users->of, users->capacity * sizeof(*user));
		}
		host_free(host, o->of, o->capacity * sizeof(*of));
		host_free(host, users->of, users->capacity * sizeof(*user));
		o->of = of;
		users->of = user;
		o->capacity = users->capacity = grown;
	}
	do
		o->cursor = o->cursor + 1 < o->capacity ? o->cursor + 1 : 1;
	while (o->of[o->cursor].kind);
	i = o->cursor;
	o->of[i] = (struct object){ .kind = kind, .held = 1, .size = size };
	o->count++;
	o->env->account += object_charge(&o->of[i]);
	pool_of(o, &o->of[i])->shared += reserve_of(&o->of[i]);
	*id = i;
	return 0;
}

struct object *object_get(const struct objects *o, uint32_t id)
{
	return id && id < o->capacity && o->of[id].kind ? &o->of[id] : NULL;
}

static void free_if_unused(struct objects *o, uint32_t id)
{
	struct object *obj = object_get(o, id);

	if (!obj || obj->held || o->env->users.of[id].count)
		return;
	object_drop(o, obj, 0, UINT64_MAX);
	VM_ASSERT(!obj->root && !obj->nframes && !obj->nswapped);
	o->env->account -= object_charge(obj);
	pool_of(o, obj)->shared -= reserve_of(obj);
	obj->kind = 0;
	o->count--;
}

void object_release(struct objects *o, uint32_t id)
{
	o->of[id].held--;
	free_if_unused(o, id);
}

void objects_reap(struct objects *o)
{
	struct vma_users *users = &o->env->users;

	while (users->head) {
		uint32_t id = users->head - 1, next = users->of[id].queued;

		users->head = next == id + 1 ? 0 : next;
		users->of[id].queued = 0;
		free_if_unused(o, id);
	}
}

void objects_destroy(struct objects *o)
{
	struct host *host = o->env->host;

	for (uint32_t id = 1; id < o->capacity; id++)
		if (o->of[id].kind)
			object_drop(o, &o->of[id], 0, UINT64_MAX);
	host_free(host, o->of, o->capacity * sizeof(*o->of));
	host_free(host, o->env->users.of, o->env->users.capacity * sizeof(*o->env->users.of));
	o->of = NULL;
	o->env->users.of = NULL;
}

/* ---- the tree ---- */

/* What the tree holds at an index; NULL: nothing. */
static const void *look_up(const struct object *obj, uint64_t index)
{
	const void *p = obj->root;

	if (!in_reach(obj, index))
		return NULL;
	for (uint32_t h = obj->height; h && p; h--)
		p = ((const struct node *)p)->slot[slot_of(index, h)];
	return p;
}

pfn_t object_lookup(const struct object *obj, uint64_t index)
{
	const void *p = look_up(obj, index);

	return p && !to_slot(p) ? to_pfn(p) : NO_PFN;
}

uint32_t object_slot(const struct object *obj, uint64_t index)
{
	return obj->nswapped ? to_slot(look_up(obj, index)) : 0;
}

static uint64_t next_below(const struct node *node, uint32_t height, uint64_t base, uint64_t index)
{
	for (unsigned int i = index > base ? slot_of(index, height) : 0; i < FANOUT; i++) {
		uint64_t at = base + ((uint64_t)i << (FANOUT_BITS * (height - 1))), found;

		if (!node->slot[i])
			continue;
		if (height == 1)
			return at;
		found = next_below(node->slot[i], height - 1, at, max_u64(index, at));
		if (found != UINT64_MAX)
			return found;
	}
	return UINT64_MAX;
}

uint64_t object_next_any(const struct object *obj, uint64_t index)
{
	return obj->root && in_reach(obj, index) ? next_below(obj->root, obj->height, 0, index) : UINT64_MAX;
}

uint64_t object_next(const struct object *obj, uint64_t index)
{
	uint64_t at = object_next_any(obj, index);

	while (obj->nswapped && at != UINT64_MAX && to_slot(look_up(obj, at)))
		at = object_next_any(obj, at + 1);
	return at;
}

static struct node *node_new(struct objects *o)
{
	return host_zalloc(o->env->host, sizeof(struct node));
}

/* Frees nodes that hold nothing on the way to `index`. */
static int prune(struct objects *o, struct node *node, uint32_t height, uint64_t index)
{
	unsigned int i = slot_of(index, height);

	if (height > 1 && node->slot[i] && prune(o, node->slot[i], height - 1, index)) {
		node->slot[i] = NULL;
		node->count--;
	}
	if (node->count)
		return 0;
	host_free(o->env->host, node, sizeof(*node));
	return 1;
}

static void prune_root(struct objects *o, struct object *obj, uint64_t index)
{
	if (obj->root && prune(o, obj->root, obj->height, index)) {
		obj->root = NULL;
		obj->height = 0;
	}
}

/* The bottom node for an index, made if missing; NULL without memory (what was made meanwhile is pruned). */
static struct node *grow_to(struct objects *o, struct object *obj, uint64_t index)
{
	struct node *node, *child;

	while (!obj->root || !in_reach(obj, index)) {
		VM_ASSERT(obj->height < MAX_HEIGHT);
		node = node_new(o);
		if (!node)
			return NULL;
		if (obj->root) {
			node->slot[0] = obj->root;
			node->count = 1;
			obj->height++;
		} else {
			do
				obj->height++;
			while (!in_reach(obj, index));
		}
		obj->root = node;
	}
	node = obj->root;
	for (uint32_t h = obj->height; h > 1; h--) {
		child = node->slot[slot_of(index, h)];
		if (!child) {
			child = node_new(o);
			if (!child)
				return NULL;
			node->slot[slot_of(index, h)] = child;
			node->count++;
		}
		node = child;
	}
	return node;
}

/* The place of an index that the tree holds. */
static void **place_of(const struct object *obj, uint64_t index)
{
	struct node *node = obj->root;

	for (uint32_t h = obj->height; h > 1; h--)
		node = node->slot[slot_of(index, h)];
	return &node->slot[slot_of(index, 1)];
}

void object_swap_out(struct object *obj, uint64_t index, uint32_t slot)
{
	*place_of(obj, index) = from_slot(slot);
	obj->nframes--;
	obj->nswapped++;
}

void object_swap_in(struct objects *o, struct object *obj, uint64_t index, pfn_t pfn)
{
	void **place = place_of(obj, index);
	uint32_t slot = to_slot(*place);
	struct frame *fr = frame_of(o->frames, pfn);

	*place = from_pfn(pfn);
	obj->nframes++;
	obj->nswapped--;
	if (frame_swapcached(fr)) {
		fr->refs++; /* the object's; the cache's goes */
		swap_leave(o->frames, pfn);
	}
	if (fr->flags & FRAME_ANON) { /* read in by who knew no more than the slot */
		frame_make_shared(o->frames, fr);
	}
	fr->flags |= FRAME_DIRTY;
	swap_put(o->frames, slot);
}

pfn_t object_find(struct objects *o, struct object *obj, uint64_t index)
{
	uint32_t slot = object_slot(obj, index);
	pfn_t pfn = slot ? swap_find(o->frames, slot) : object_lookup(obj, index);

	if (slot && pfn != NO_PFN)
		object_swap_in(o, obj, index, pfn);
	return pfn;
}

static void insert(struct object *obj, struct node *node, uint64_t index, pfn_t pfn)
{
	VM_ASSERT(!node->slot[slot_of(index, 1)]);
	node->slot[slot_of(index, 1)] = from_pfn(pfn);
	node->count++;
	obj->nframes++;
}

int object_add(struct objects *o, struct object *obj, uint64_t index, pfn_t *pfn)
{
	struct node *node = grow_to(o, obj, index);
	int rc = -ENOMEM;

	VM_ASSERT(!(obj->kind & VMEMU_OBJ_HUGETLB));
	if (node)
		rc = frame_alloc_zeroed(o->frames, obj->kind & VMEMU_OBJ_SHMEM ? FRAME_SHMEM : FRAME_FILE, pfn);
	if (rc) {
		prune_root(o, obj, index);
		return rc;
	}
	insert(obj, node, index, *pfn);
	o->env->account += object_page_charge(obj);
	return 0;
}

int object_add_huge(struct objects *o, struct object *obj, uint64_t index, pfn_t head)
{
	struct node *node = grow_to(o, obj, index);

	if (!node) {
		prune_root(o, obj, index);
		return -ENOMEM;
	}
	insert(obj, node, index, head);
	folio_of(o->frames, head)->cached = 1;
	folio_of(o->frames, head)->refs++;
	if (obj->kind & VMEMU_OBJ_RESERVE)
		pool_of(o, obj)->shared--;
	return 0;
}

/* The object lets go of a frame. */
static void let_go(struct objects *o, const struct object *obj, pfn_t pfn)
{
	struct folio *fo = folio_of(o->frames, pfn);

	if (!(obj->kind & VMEMU_OBJ_HUGETLB)) {
		frame_put(o->frames, pfn);
		return;
	}
	if (obj->kind & VMEMU_OBJ_RESERVE)
		pool_of(o, obj)->shared++;
	fo->cached = 0;
	if (!--fo->refs)
		pool_give(o->frames, pfn);
}

static void remove_one(struct objects *o, struct object *obj, uint64_t index)
{
	struct node *node = obj->root;
	unsigned int i = slot_of(index, 1);
	uint32_t slot;

	for (uint32_t h = obj->height; h > 1; h--)
		node = node->slot[slot_of(index, h)];
	slot = to_slot(node->slot[i]);
	if (slot) {
		swap_put(o->frames, slot);
		obj->nswapped--;
	} else {
		let_go(o, obj, to_pfn(node->slot[i]));
		obj->nframes--;
	}
	node->slot[i] = NULL;
	node->count--;
	prune_root(o, obj, index);
	o->env->account -= object_page_charge(obj);
}

void object_drop(struct objects *o, struct object *obj, uint64_t first, uint64_t last)
{
	for (uint64_t i = object_next_any(obj, first); i < last; i = object_next_any(obj, i))
		remove_one(o, obj, i);
	if (first == 0 && last == UINT64_MAX)
		prune_root(o, obj, 0);
}
