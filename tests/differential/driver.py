"""Calls real libraries with seeded random arguments and prints what they return: driver.py SEED ROUNDS.

Standard library only, for it runs on the Python of either root; addresses are printed as offsets into a buffer.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import hmac
import math
import random
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from ctypes import c_char_p, c_double, c_float, c_int, c_long, c_longdouble, c_longlong, c_size_t, c_ulong, c_void_p
from typing import Any

c = ctypes.CDLL("libc.so.6")
m = ctypes.CDLL("libm.so.6")
crypto = ctypes.CDLL("libcrypto.so.3")

SPECIAL = (
    0.0, -0.0, 1.0, -1.0, 0.5, 2.0, float("inf"), float("-inf"), float("nan"), 5e-324, 1e-310, 1.7e308, -1.7e308,
    3.141592653589793, 1.5707963267948966, 1e16, 1e22, 708.0, -745.0, 88.7, 0.999999999,
)  # fmt: skip
ONE = (
    "acos", "acosh", "asin", "asinh", "atan", "atanh", "cbrt", "ceil", "cos", "cosh", "erf", "erfc", "exp", "exp10",
    "exp2", "expm1", "fabs", "floor", "j0", "j1", "lgamma", "log", "log10", "log1p", "log2", "logb", "nearbyint",
    "rint", "round", "roundeven", "sin", "sinh", "sqrt", "tan", "tanh", "tgamma", "trunc", "y0", "y1",
    "significand",
)  # fmt: skip
TWO = ("atan2", "copysign", "drem", "fdim", "fmax", "fmin", "fmod", "hypot", "nextafter", "pow", "remainder")
WITH_INTEGER = ("ldexp", "scalbn", "scalbln")
TO_INTEGER = ("ilogb", "lrint", "llrint", "lround", "llround")
CIPHERS = [
    *(f"{name}-{bits}-{mode}" for name in ("AES", "CAMELLIA", "ARIA") for bits in (128, 192, 256)
      for mode in ("ECB", "CBC", "CFB", "CFB8", "CFB1", "OFB", "CTR")),
    *(f"AES-{bits}-{mode}" for bits in (128, 256) for mode in ("GCM", "XTS")),
    "DES-EDE3-CBC", "DES-EDE3-ECB", "DES-EDE3-OFB", "ChaCha20", "ChaCha20-Poly1305", "SM4-CBC", "SM4-CTR",
]  # fmt: skip
PATTERNS = (b"a*b", b"(a|b)+c?", b"[[:alpha:]]+[0-9]{1,3}", b"^.*x\\{1", b"(", b"\\(a\\)\\1", b"(ab|a)(bc)?$")
CURVES = (415, 714, 715, 716, 713, 409, 704, 729, 927, 933)


def function(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """Return a function of a library with its C type."""
    found = library[name]
    found.restype, found.argtypes = result, arguments
    return found


def words(chance: random.Random, most: int = 60) -> bytes:
    """Return a text without zeros, of few letters or of all."""
    letters = chance.choice((b"ab", b"ab /,.%0123456789", bytes(range(1, 256)), b" \t-+0123456789xXeE.infaINFA"))
    return bytes(chance.choice(letters) for _ in range(chance.randrange(most)))


def blob(chance: random.Random, most: int = 3000) -> bytes:
    """Return bytes that compress well, a little, or not at all."""
    size = chance.randrange(most)
    kind = chance.randrange(3)
    if kind == 0:
        return chance.randbytes(size)
    piece = chance.randbytes(chance.randrange(1, 40))
    text = (piece * (size // len(piece) + 1))[:size]
    return text if kind == 1 else bytes(b ^ (chance.random() < 0.02) for b in text)


def sign(number: int) -> int:
    return (number > 0) - (number < 0)


def texts(chance: random.Random) -> Iterator[Any]:
    """Search, compare and copy texts, at every alignment."""
    one, two = words(chance, 300), words(chance, 8)
    if chance.random() < 0.5:
        two = one[chance.randrange(len(one) + 1) :][: chance.randrange(1, 40)]
    shift = chance.randrange(32)
    buffer = ctypes.create_string_buffer(b"#" * shift + one + b"\0" + two + b"\0", 1024)
    base = ctypes.addressof(buffer)
    p, q = base + shift, base + shift + len(one) + 1
    byte = chance.choice(one) if one else 7
    size = chance.randrange(len(one) + 2)
    for name in ("strlen", "strcmp", "strcasecmp", "strcoll", "strspn", "strcspn", "strstr", "strcasestr", "strpbrk"):
        pair = (p,) if name == "strlen" else (p, q)
        pointer = name in ("strstr", "strcasestr", "strpbrk")
        value = function(c, name, c_void_p if pointer else c_int, *[c_void_p] * len(pair))(*pair)
        yield name, (value and value - base) if pointer else sign(value) if "c" in name and "sp" not in name else value
    for name in ("strchr", "strrchr", "strchrnul", "rawmemchr"):
        value = function(c, name, c_void_p, c_void_p, c_int)(p, 0 if name == "rawmemchr" else byte)
        yield name, value and value - base
    for name in ("memchr", "memrchr"):
        value = function(c, name, c_void_p, c_void_p, c_int, c_size_t)(p, byte, size)
        yield name, value and value - base
    for name in ("memcmp", "strncmp", "strncasecmp"):
        yield name, sign(function(c, name, c_int, c_void_p, c_void_p, c_size_t)(p, q, size))
    yield "strnlen", function(c, "strnlen", c_size_t, c_void_p, c_size_t)(p, size)
    value = function(c, "memmem", c_void_p, c_void_p, c_size_t, c_void_p, c_size_t)(p, len(one), q, len(two))
    yield "memmem", value and value - base
    target = ctypes.create_string_buffer(2048)
    at = ctypes.addressof(target) + chance.randrange(32)
    for name in ("strcpy", "stpcpy", "strcat"):
        value = function(c, name, c_void_p, c_void_p, c_void_p)(at, p)
        yield name, value - at, target.raw
    for name in ("memcpy", "memmove", "mempcpy", "strncpy", "stpncpy", "strncat"):
        value = function(c, name, c_void_p, c_void_p, c_void_p, c_size_t)(at, p, size)
        yield name, value - at, target.raw
    value = function(c, "memmove", c_void_p, c_void_p, c_void_p, c_size_t)(at + chance.randrange(64), at, 500)
    yield "memmove", value - at, target.raw
    function(c, "memset", c_void_p, c_void_p, c_int, c_size_t)(at, byte, size)
    yield "memset", target.raw
    function(c, "memfrob", c_void_p, c_void_p, c_size_t)(at, size)
    function(c, "swab", None, c_void_p, c_void_p, c_long)(at, at + 1000, size)
    yield "swab", target.raw
    rest = c_void_p(p)
    separate = function(c, "strsep", c_void_p, ctypes.POINTER(c_void_p), c_char_p)
    while value := separate(ctypes.byref(rest), b" ,/"):
        yield "strsep", value - base
    yield "strxfrm", function(c, "strxfrm", c_size_t, c_void_p, c_void_p, c_size_t)(at, q, 900), target.raw


def numbers(chance: random.Random) -> Iterator[Any]:
    """Read numbers, and print them."""
    text = words(chance, 30)
    end = c_void_p()
    buffer = ctypes.create_string_buffer(text)
    base = ctypes.addressof(buffer)
    for name, kind in (("strtol", c_long), ("strtoul", c_ulong), ("strtoll", c_longlong), ("strtoull", c_longlong)):
        root = chance.choice((0, 8, 10, 16, 36))
        value = function(c, name, kind, c_void_p, c_void_p, c_int)(base, ctypes.addressof(end), root)
        yield name, value, end.value - base  # type: ignore[operator]
    for name, precision in (("strtod", c_double), ("strtof", c_float), ("strtold", c_longdouble)):
        value = function(c, name, precision, c_void_p, c_void_p)(base, ctypes.addressof(end))
        yield name, bits(value), end.value - base  # type: ignore[operator]
    out = ctypes.create_string_buffer(4096)
    flags = "".join(chance.sample("-+ 0#'", chance.randrange(3)))
    width = chance.choice(("", "5", "30", "*"))
    most = chance.choice(("", ".0", ".7", ".40"))
    stars = [c_int(chance.randrange(-40, 40))] if width == "*" else []
    for letter, value in (
        ("d", c_int(integer(chance))), ("lx", c_ulong(integer(chance))), ("llo", c_longlong(integer(chance))),
        ("hhu", c_int(integer(chance))), ("s", c_char_p(text)), ("c", c_int(chance.randrange(1, 256))),
        *((form, c_double(real(chance))) for form in "efgaEFGA"),
        ("Lg", c_longdouble(real(chance))), ("p", c_void_p(chance.getrandbits(31))),
    ):  # fmt: skip
        wanted = f"<%{flags}{width}{most}{letter}>".encode()
        found = c.snprintf(out, c_size_t(len(out)), wanted, *stars, value)
        yield wanted, found, out.value
    i, x, f = c_int(), c_long(), c_double()
    rest = ctypes.create_string_buffer(64)
    text = b"%d %x %g end%d" % (integer(chance) >> 40, chance.getrandbits(30), real(chance), 3)
    found = c.sscanf(text, b"%d%lx %lf %60[a-z]", ctypes.byref(i), ctypes.byref(x), ctypes.byref(f), rest)
    yield "sscanf", found, i.value, x.value, bits(f.value), rest.value


def integer(chance: random.Random) -> int:
    return chance.choice((chance.getrandbits(63) - (1 << 62), chance.randrange(-100, 100), 0, -1))


def real(chance: random.Random) -> float:
    """Return a number of any size, often a special one."""
    pick = chance.random()
    if pick < 0.3:
        return chance.choice(SPECIAL)
    if pick < 0.6:
        return chance.uniform(-10, 10)
    return float(struct.unpack("<d", chance.randbytes(8))[0])


def bits(value: float) -> str:
    """Return a number as its bits; a NaN's may be any."""
    return "nan" if math.isnan(value) else struct.pack("<d", value).hex()


def mathematics(chance: random.Random) -> Iterator[Any]:
    """Compute every function of libm in three precisions."""
    for suffix, kind in (("", c_double), ("f", c_float), ("l", c_longdouble)):
        for name in ONE:
            yield name + suffix, bits(function(m, name + suffix, kind, kind)(real(chance)))
        for name in TWO:
            yield name + suffix, bits(function(m, name + suffix, kind, kind, kind)(real(chance), real(chance)))
        for name in WITH_INTEGER:
            value = function(m, name + suffix, kind, kind, c_long)(real(chance), chance.randrange(-1100, 1100))
            yield name + suffix, bits(value)
        for name in TO_INTEGER:
            yield name + suffix, function(m, name + suffix, c_int, kind)(real(chance))
        for name in ("jn", "yn"):
            value = function(m, name + suffix, kind, c_int, kind)(chance.randrange(-9, 30), chance.uniform(-50, 50))
            yield name + suffix, bits(value)
        value = function(m, "fma" + suffix, kind, kind, kind, kind)(real(chance), real(chance), real(chance))
        yield "fma" + suffix, bits(value)
        left, exponent = kind(), c_int()
        function(m, "modf" + suffix, kind, kind, c_void_p)(real(chance), ctypes.addressof(left))
        value = function(m, "frexp" + suffix, kind, kind, c_void_p)(real(chance), ctypes.addressof(exponent))
        yield "frexp" + suffix, bits(left.value), bits(value), exponent.value


def order(chance: random.Random) -> Iterator[Any]:
    """Sort and search, with callbacks into this program."""
    count = chance.randrange(1, 60)
    items = (c_int * count)(*[chance.randrange(-50, 50) for _ in range(count)])
    kind = ctypes.CFUNCTYPE(c_int, ctypes.POINTER(c_int), ctypes.POINTER(c_int))
    compare = kind(lambda one, two: sign(one[0] - two[0]))
    c.qsort(items, c_size_t(count), c_size_t(4), compare)
    yield "qsort", list(items)
    key = c_int(chance.randrange(-50, 50))
    value = function(c, "bsearch", c_void_p, c_void_p, c_void_p, c_size_t, c_size_t, kind)(
        ctypes.addressof(key), ctypes.addressof(items), count, 4, compare
    )
    yield "bsearch", value and items[(value - ctypes.addressof(items)) // 4]
    c.srandom(chance.getrandbits(31))
    c.srand48(chance.getrandbits(31))
    yield "random", [c.random() & 0x7FFFFFFF for _ in range(5)], [c.lrand48() & 0x7FFFFFFF for _ in range(5)]


def patterns(chance: random.Random) -> Iterator[Any]:
    """Match regular expressions and file name patterns, convert texts, tell the time."""
    pattern = chance.choice(PATTERNS)
    compiled = ctypes.create_string_buffer(256)
    result = c.regcomp(compiled, pattern, chance.randrange(4))
    places = (c_int * 20)()
    if result == 0:
        text = words(chance)
        result = c.regexec(compiled, text, c_size_t(10), places, 0)
        c.regfree(compiled)
    message = ctypes.create_string_buffer(100)
    c.regerror(result, compiled, message, c_size_t(100))
    yield "regcomp", pattern, result, list(places), message.value
    yield "fnmatch", c.fnmatch(chance.choice((b"*a*", b"[a-c]?*", b"a[!b]*/*")), words(chance), chance.randrange(8))
    source = chance.choice((b"UTF-8", b"LATIN1", b"UTF-16LE", b"KOI8-R", b"SHIFT_JIS"))
    target = chance.choice((b"UTF-8", b"UTF-32BE", b"UTF-7", b"ASCII//IGNORE", b"EUC-JP"))
    descriptor = function(c, "iconv_open", c_void_p, c_char_p, c_char_p)(target, source)
    given, taken = ctypes.create_string_buffer(words(chance)), ctypes.create_string_buffer(500)
    from_, to = c_void_p(ctypes.addressof(given)), c_void_p(ctypes.addressof(taken))
    left, room = c_size_t(len(given) - 1), c_size_t(500)
    if descriptor and descriptor != c_void_p(-1).value:
        convert = function(c, "iconv", c_long, c_void_p, *[c_void_p] * 4)
        value = convert(descriptor, *(ctypes.addressof(item) for item in (from_, left, to, room)))
        function(c, "iconv_close", c_int, c_void_p)(descriptor)
        yield "iconv", source, target, value, left.value, taken.raw
    moment = (c_long * 8)(chance.getrandbits(31))
    parts, out = (c_int * 32)(), ctypes.create_string_buffer(300)
    for name in ("gmtime_r", "localtime_r"):
        function(c, name, c_void_p, c_void_p, c_void_p)(ctypes.addressof(moment), ctypes.addressof(parts))
        size = c.strftime(out, c_size_t(300), b"%A %B %c %D %G %H %I %j %p %r %s %U %V %w %y %z %Z %%", parts)
        yield name, list(parts[:9]), size, out.value
    yield "timegm", function(c, "timegm", c_long, c_void_p)(ctypes.addressof(parts))
    c.strptime(b"2021-03-04 05:06:07", b"%Y-%m-%d %H:%M:%S", parts)
    yield "mktime", function(c, "mktime", c_long, c_void_p)(ctypes.addressof(parts))
    for name in ("isalpha", "isdigit", "ispunct", "isspace", "toupper", "tolower"):
        yield name, c[name](chance.randrange(-1, 256))


def streams(chance: random.Random) -> Iterator[Any]:
    """Write and read a stream in memory, letter by letter and in blocks."""
    memory = ctypes.create_string_buffer(5000)
    stream = function(c, "fmemopen", c_void_p, c_void_p, c_size_t, c_char_p)(ctypes.addressof(memory), 5000, b"w+")
    handle = c_void_p(stream)
    for _ in range(chance.randrange(1, 20)):
        text = words(chance)
        yield c.fprintf(handle, b"%s|%d|%.3f\n", text, c_int(integer(chance)), c_double(real(chance) % 1000))
        yield c.fputs(text, handle) >= 0, c.fputc(65, handle)
    c.fflush(handle)
    yield memory.raw
    c.rewind(handle)
    line = ctypes.create_string_buffer(80)
    while c.fgets(line, chance.randrange(2, 80), handle):
        yield line.value, c.fgetc(handle), c.ungetc(66, handle), c.fgetc(handle), c.ftell(handle)
    yield c.fseek(handle, c_long(3), 0), c.fread(line, c_size_t(3), c_size_t(9), handle), line.raw
    c.fclose(handle)


def compression(chance: random.Random) -> Iterator[Any]:
    """Compress with all settings, in pieces, and back."""
    plain = blob(chance, 20000)
    level, window, memory, strategy = chance.randrange(-1, 10), chance.choice((9, 12, 15, -15, 31)), \
        chance.randrange(1, 10), chance.randrange(5)  # fmt: skip
    packer = zlib.compressobj(level, zlib.DEFLATED, window, memory, strategy)
    packed = b"".join([packer.compress(plain[i : i + 777]) for i in range(0, len(plain), 777)])
    packed += packer.flush(zlib.Z_FULL_FLUSH) + packer.flush()
    opener = zlib.decompressobj(window)
    yield hashlib.sha1(packed).hexdigest(), opener.decompress(packed, 100) + opener.flush() == plain
    yield zlib.crc32(plain), zlib.adler32(plain), zlib.compress(plain, chance.randrange(10))[:50]
    broken = bytearray(packed)
    broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
    try:
        yield hashlib.sha1(zlib.decompress(bytes(broken), window)).hexdigest()
    except zlib.error as error:
        yield str(error)


def digests(chance: random.Random) -> Iterator[Any]:
    """Compute every digest that the library has, authentication codes and derived keys."""
    data, key = blob(chance), chance.randbytes(chance.randrange(200))
    for name in sorted(hashlib.algorithms_available):
        digest = hashlib.new(name, data, usedforsecurity=False)
        for i in range(0, len(key), 37):
            digest.update(key[i : i + 37])
        yield name, digest.hexdigest() if digest.digest_size else digest.hexdigest(20)  # type: ignore[call-arg]
    name = chance.choice(("md5", "sha1", "sha256", "sha512", "sha3_256"))
    yield hmac.new(key, data, name).hexdigest(), hashlib.pbkdf2_hmac(name, data, key, 3).hex()
    yield hashlib.scrypt(data, salt=key, n=4, r=2, p=2, dklen=40).hex()


def ciphers(chance: random.Random) -> Iterator[Any]:
    """Encrypt in pieces and decrypt."""
    fetch = function(crypto, "EVP_CIPHER_fetch", c_void_p, c_void_p, c_char_p, c_char_p)
    name = chance.choice(CIPHERS)
    cipher = fetch(None, name.encode(), None)
    key, start = chance.randbytes(64), chance.randbytes(16)
    context = c_void_p(function(crypto, "EVP_CIPHER_CTX_new", c_void_p)())
    plain, out, size = blob(chance), ctypes.create_string_buffer(8000), c_int()
    for encrypt in (1, 0):
        ready = crypto.EVP_CipherInit_ex2(context, c_void_p(cipher), key, start, encrypt, None)
        text, made = plain, b""
        cuts = [len(text)] if "XTS" in name else [50, len(text)]
        for cut in cuts:
            ready += crypto.EVP_CipherUpdate(context, out, ctypes.byref(size), text[:cut], len(text[:cut]))
            made += out.raw[: size.value]
            text = text[cut:]
        size.value = 0
        ready += crypto.EVP_CipherFinal_ex(context, out, ctypes.byref(size))
        made += out.raw[: size.value]
        yield name, ready, made
        plain = made
    crypto.EVP_CIPHER_CTX_free(context)
    crypto.EVP_CIPHER_free(c_void_p(cipher))


def big_numbers(chance: random.Random) -> Iterator[Any]:
    """Compute with big numbers, and points of elliptic curves."""
    def new(value: int) -> c_void_p:
        raw = value.to_bytes((value.bit_length() + 7) // 8, "big")
        return c_void_p(function(crypto, "BN_bin2bn", c_void_p, c_char_p, c_int, c_void_p)(raw, len(raw), None))

    def text(number: c_void_p) -> bytes:
        made = function(crypto, "BN_bn2hex", c_void_p, c_void_p)(number)
        found = ctypes.string_at(made)
        function(crypto, "CRYPTO_free", None, c_void_p, c_char_p, c_int)(made, b"", 0)
        return found

    context = c_void_p(function(crypto, "BN_CTX_new", c_void_p)())
    sizes = chance.choice((60, 200, 512, 1024, 2048))
    a, b, odd = (new(chance.getrandbits(sizes) | 1) for _ in range(3))
    result, rest = new(0), new(0)
    for name in ("BN_mul", "BN_gcd"):
        yield name, crypto[name](result, a, b, context), text(result)
    for name in ("BN_add", "BN_sub"):
        yield name, crypto[name](result, a, b), text(result)
    yield "BN_div", crypto.BN_div(result, rest, a, b, context), text(result), text(rest)
    yield "BN_mod_exp", crypto.BN_mod_exp(result, a, b, odd, context), text(result)
    yield "BN_sqr", crypto.BN_sqr(result, a, context), text(result)
    if function(crypto, "BN_mod_inverse", c_void_p, *[c_void_p] * 4)(result, a, odd, context):
        yield "BN_mod_inverse", text(result)
    yield "BN_check_prime", crypto.BN_check_prime(new(chance.getrandbits(40) | 1), context, None)
    curve = chance.choice(CURVES)
    group = c_void_p(function(crypto, "EC_GROUP_new_by_curve_name", c_void_p, c_int)(curve))
    if group.value:
        point = c_void_p(function(crypto, "EC_POINT_new", c_void_p, c_void_p)(group))
        done = crypto.EC_POINT_mul(group, point, a, None, None, context)
        done += crypto.EC_POINT_mul(group, point, b, point, odd, context)
        out = ctypes.create_string_buffer(300)
        size = function(crypto, "EC_POINT_point2oct", c_size_t, *[c_void_p] * 2, c_int, c_char_p, c_size_t, c_void_p)(
            group, point, 4, out, 300, context
        )
        yield "EC_POINT_mul", curve, done, out.raw[:size]
        crypto.EC_POINT_free(point)
        crypto.EC_GROUP_free(group)
    for kind in (1087, 1088):
        secret = chance.randbytes(32 if kind == 1087 else 57)
        private = function(crypto, "EVP_PKEY_new_raw_private_key", c_void_p, c_int, c_void_p, c_char_p, c_size_t)(
            kind, None, secret, len(secret)
        )
        signer = c_void_p(function(crypto, "EVP_MD_CTX_new", c_void_p)())
        crypto.EVP_DigestSignInit(signer, None, None, None, c_void_p(private))
        made, length, data = ctypes.create_string_buffer(200), c_size_t(200), blob(chance, 300)
        done = crypto.EVP_DigestSign(signer, made, ctypes.byref(length), data, c_size_t(len(data)))
        yield "EVP_DigestSign", kind, done, made.raw[: length.value]
        crypto.EVP_MD_CTX_free(signer)
        crypto.EVP_PKEY_free(c_void_p(private))


WORK = (texts, numbers, mathematics, order, patterns, streams, compression, digests, ciphers, big_numbers)


def main(seed: int, rounds: int) -> None:
    """Print one line a result, between two marks for the agent, if it is there."""
    here = ctypes.CDLL(None)
    for count in (0, rounds):
        everything(seed, count)
        if hasattr(here, "dynamos_mark"):
            here.dynamos_mark()


def everything(seed: int, rounds: int) -> None:
    chance = random.Random(seed)
    for number in range(rounds):
        for work in WORK:
            for result in work(chance):
                print(number, work.__name__, result)
    sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
