/* Bytes of a page, written past the host's caches.
 *
 * Stores that go past the caches ask nothing of memory first: on a Zen 3 they zero a page in a quarter of memset's time and copy
 * one in four fifths of memcpy's, once there is more to write than the caches hold. What is used at once is better off in them.
 * The end of such writing is told, for other threads. Callers: frame.
 */
#ifndef VMEMU_PAGE_H
#define VMEMU_PAGE_H

#include "base.h"

#ifdef __SSE2__
#include <emmintrin.h>

static inline void page_stream_zero(uint8_t *to)
{
	const __m128i zero = _mm_setzero_si128();

	for (size_t i = 0; i < PAGE_BYTES; i += sizeof(zero))
		_mm_stream_si128((__m128i *)(void *)(to + i), zero);
}

static inline void page_stream_copy(uint8_t *to, const uint8_t *from)
{
	for (size_t i = 0; i < PAGE_BYTES; i += 4 * sizeof(__m128i)) {
		const __m128i *s = (const __m128i *)(const void *)(from + i);
		__m128i *d = (__m128i *)(void *)(to + i);
		__m128i a = _mm_load_si128(s), b = _mm_load_si128(s + 1), c = _mm_load_si128(s + 2),
			e = _mm_load_si128(s + 3);

		_mm_stream_si128(d, a);
		_mm_stream_si128(d + 1, b);
		_mm_stream_si128(d + 2, c);
		_mm_stream_si128(d + 3, e);
	}
}

static inline void page_stream_end(void)
{
	_mm_sfence();
}
#else
static inline void page_stream_zero(uint8_t *to)
{
	memset(to, 0, PAGE_BYTES);
}

static inline void page_stream_copy(uint8_t *to, const uint8_t *from)
{
	memcpy(to, from, PAGE_BYTES);
}

static inline void page_stream_end(void)
{
}
#endif

#endif
