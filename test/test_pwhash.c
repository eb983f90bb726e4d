/* Tests of pwhash: the text of a hash, and the work in slices. */
#include "check.h"
#include "pwhash.h"

static struct pwhash h;
static struct pwwork w;

static void
set(uint32_t rounds, const char *salt, size_t n)
{
	h = (struct pwhash){ .rounds = rounds, .salt_len = (uint8_t)n };
	memcpy(h.salt, salt, n);
}

/* Whether the result begins with these bytes, in hex. */
static bool
comes_to(const char *password, const char *hex)
{
	char text[2 * PWHASH_LEN + 1];

	pwwork_start(&w, &h, password, strlen(password));
	while (!pwwork_go(&w, 7))
		continue;
	for (int i = 0; i < PWHASH_LEN; i++)
		sprintf(text + 2 * i, "%02x", w.sum[i]);
	return strncmp(text, hex, strlen(hex)) == 0;
}

/* PBKDF2-HMAC-SHA-512 of the usual test vectors, and a plain SHA-512. */
TEST(known_answers)
{
	set(1, "salt", 4);
	CHECK(comes_to("password", "867f70cf1ade02cff3752599a3a53dc4af34c7a669"
	    "815ae5d513554e1c8cf252"));
	set(2, "salt", 4);
	CHECK(comes_to("password", "e1d9c16aa681708a45f5c7c4e215ceb66e011a2e9f"
	    "0040713f18aefdb866d53c"));
	set(4096, "salt", 4);
	CHECK(comes_to("password", "d197b1b33db0143e018b12f3d1d1479e6cdebdcc97"
	    "c5c0f87f6902e072f457b5"));
	set(0, "c", 1);
	CHECK(comes_to("ab", "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea2"
	    "0a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd"));
}

TEST(slices_come_to_the_same)
{
	struct pwwork other;
	unsigned turns = 0;

	set(1000, "salt", 4);
	pwwork_start(&w, &h, "x", 1);
	CHECK(!pwwork_go(&w, 0) && !pwwork_go(&w, 998) && pwwork_go(&w, 1));
	memcpy(h.hash, w.sum, sizeof h.hash);
	pwwork_start(&other, &h, "x", 1);
	while (!pwwork_go(&other, 1))
		turns++;
	CHECK(turns == 998 && pwwork_is(&other, &h));
	h.hash[PWHASH_LEN - 1] ^= 1;
	CHECK(!pwwork_is(&other, &h));
	h.hash[PWHASH_LEN - 1] ^= 1;
	h.hash[0] ^= 0x80;
	CHECK(!pwwork_is(&other, &h));
}

/* Each salt length gives a text that is read back as the same. */
TEST(text_both_ways)
{
	struct pwhash back;
	char text[PWHASH_TEXT];

	for (uint32_t i = 0; i < 3 * PWHASH_SALT_MAX; i++) {
		static const uint32_t rounds[] = { 0, 1, PWHASH_ROUNDS_MAX };

		h = (struct pwhash){ .rounds = rounds[i % 3],
		    .salt_len = (uint8_t)(i / 3 + 1) };
		for (unsigned k = 0; k < h.salt_len; k++)
			h.salt[k] = (uint8_t)(i * 7 + k * 31);
		memset(h.hash, (int)i, sizeof h.hash);
		pwhash_format(&h, text);
		CHECK(strlen(text) < PWHASH_TEXT);
		CHECK(pwhash_parse(&back, text) == NULL);
		CHECK(pwhash_same(&h, &back));
		text[strlen(text) - 1] = 0;
		CHECK(pwhash_parse(&back, text) != NULL);
		h.salt[0] ^= 1;
		CHECK(!pwhash_same(&h, &back));
	}
}

TEST(faults)
{
	static const char *const bad[] = { "", "$", "$7", "$7$", "$6$", "$6$$",
	    "$5$1$YQ==$YQ==", "$7$101$", "$7$$YQ==$", "$7$1$YQ==",
	    "$7$-1$YQ==$", "$7$ 1$YQ==$", "$7$1x$YQ==$", "$6$YQ==$YQ==",
	    "$6$Y$", "$6$YQ=$", "$6$====$" };

	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		CHECK(pwhash_parse(&h, bad[i]) != NULL);
}
