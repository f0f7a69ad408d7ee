/* Functions whose clones must compute the same; each takes six numbers unless its name says otherwise. */
typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned char u8;

u64 counter;
u64 table[64] = { 3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3 };
static u8 text[] = "the quick brown fox jumps over the lazy dog";

u64 plain(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	return a + 3 * b - (c ^ d) + (e | f);
}

u64 loops(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	u64 n = a % 97, sum = 0, i, j;

	for (i = 0; i < n; i++)
		for (j = i; j < n; j += 1 + (b & 3))
			if ((i ^ j) & c)
				sum += table[(i + j) % 64] * (d | 1);
			else if (j % 5 == e % 5)
				break;
	return sum + f;
}

u64 choices(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	switch (a % 13) {
	case 0: return b;
	case 1: return c * 7;
	case 2: b += 3; /* fall through */
	case 3: return b ^ d;
	case 5: return counter++ * 0 + e;
	case 7: return table[f % 64];
	case 9: return text[b % sizeof(text)];
	case 12: return a / (b | 1);
	default: return ~c;
	}
}

__attribute__((noinline)) u64 callee(u64 a, u64 b)
{
	return a * 0x9e3779b97f4a7c15ul + (b >> 7);
}

u64 calls(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	u64 x = callee(a, b);

	if (x & 1)
		x += callee(c, d);
	return x + callee(e, f);
}

u64 recursive(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	if (a % 16 == 0)
		return b + c + d + e + f;
	return recursive(a % 16 - 1, b ^ a, c, d, e, f) * 3 + 1;
}

u64 tail(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	counter = a;
	return plain(f, e, d, c, b, a);
}

u64 tails(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	if (a & 1)
		return loops(a, b, c, d, e, f);
	if (b & 1)
		return choices(a, b, c, d, e, f);
	return callee(c, d);
}

u64 self_tail(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	asm volatile("" : : : "memory");
	if (a < 2)
		return b + c;
	return self_tail(a / 2, b + a, c ^ d, d, e, f);
}

__attribute__((noinline, cold, noreturn)) static void never(void)
{
	for (;;)
		asm volatile("ud2");
}

__attribute__((noinline, cold)) u64 rare(u64 a)
{
	return a * 11;
}

u64 cold_part(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	u64 x = a + b;

	if (__builtin_expect(c % 7 == 3, 0)) {
		x += rare(c) + rare(d);
		if (x == 0x123456789abcdef)
			never();
	}
	return x ^ e ^ f;
}

u64 pointers(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	u64 (*volatile to)(u64, u64) = callee;

	return to(a, b) + to(c, d) + e + f;
}

typedef u64 six(u64, u64, u64, u64, u64, u64);
static six *const targets[4] = { plain, loops, choices, calls };

#ifdef THUNKS
u64 pointer_tail(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	return targets[a % 4](a, b, c, d, e, f);
}
#endif

u64 eight(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f, u64 g, u64 h)
{
	volatile u64 keep[4] = { a, b, g, h };

	return keep[c % 4] * 5 + d + e + f + h;
}

struct pair { u64 first, second; };

__attribute__((noinline)) struct pair both(u64 a, u64 b)
{
	return (struct pair){ a ^ b, a + b };
}

u64 pairs(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	struct pair one = both(a, b), two = both(c, d);

	return one.first * two.second + one.second * two.first + e + f;
}

u64 strings(u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	char here[64], *to = here;
	u8 *from = text;
	u64 i, n = 0, n2 = sizeof(text);

	asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n2) : : "memory");
	for (i = 0; here[i]; i++)
		if ((u8)here[i] % (1 + a % 9) == b % 3)
			n += i * (c | 1);
	return n + d + e + f;
}

#ifdef __SSE2__
double floats(double a, double b, double c)
{
	double x = a;
	int i;

	for (i = 0; i < 20; i++)
		x = x * b + c / (i + 1);
	return x > 1e300 ? c : x;
}
#endif

u64 variadic(u64 n, ...)
{
	__builtin_va_list list;
	u64 sum = 0;

	__builtin_va_start(list, n);
	while (n--)
		sum = sum * 31 + __builtin_va_arg(list, u64);
	__builtin_va_end(list);
	return sum;
}
