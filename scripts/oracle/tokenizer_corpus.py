"""Writes the mixed corpus that the tokenizer is checked on: about 1 MB, every sentence made here by grammar and chance.

Documents: English and Chinese by templates, code, emoji, control characters with U+0000 and U+007F, random Unicode with
lone combining marks, runs of spaces and newlines, special tokens whole and broken, contractions in many cases, digits.
The same bytes on every run: the random numbers come from SHA-256 of a counter, not from Python's generator.
Run: .cache/oracle/bin/python scripts/oracle/tokenizer_corpus.py tokenizer/testdata/corpus.bin.gz
Format: gzip of documents, each a little-endian u32 length and that many bytes of UTF-8.
"""
import gzip
import hashlib
import struct
import sys


class Chance:
    """Random numbers that never change between Python versions."""

    def __init__(self, seed):
        self.seed, self.count, self.pool = seed.encode(), 0, b""

    def bits(self):
        if len(self.pool) < 4:
            self.pool += hashlib.sha256(self.seed + struct.pack("<Q", self.count)).digest()
            self.count += 1
        out, self.pool = struct.unpack("<I", self.pool[:4])[0], self.pool[4:]
        return out

    def below(self, n):
        return self.bits() * n >> 32

    def between(self, low, high):
        return low + self.below(high - low + 1)

    def one(self, options):
        return options[self.below(len(options))]


STEMS = """water stone river letter garden window market engine signal harbor winter summer village teacher doctor captain
number answer question machine network memory silver copper forest mountain island kitchen railway station library museum
journal picture shadow morning evening thunder compass lantern bridge castle farmer painter singer writer soldier builder
weather blanket basket candle mirror pocket ribbon saddle tunnel valley willow anchor barrel canyon dolphin eagle falcon""".split()
VERBS = """carry follow answer measure build repair open close watch write read paint count gather divide multiply connect
remember forget discover explain describe compare collect deliver prepare protect replace translate organize calculate""".split()
ADJECTIVES = """quiet narrow golden distant careful ordinary strange modern ancient bright heavy gentle rapid hollow
enormous invisible transparent electric mechanical responsible unbelievable counterintuitive""".split()
NAMES = "Ada Bruno Chiara Dmitri Elif Farid Greta Hiro Ines Jonas Kaito Léa Müller Núria Øystein Priya Renée Søren Zoë".split()
CONTRACTIONS = """don't can't won't I'm I've I'll he'd she's they're we've it's isn't aren't wouldn't y'all o'clock DON'T CAN'T
I'M I'VE I'LL HE'D SHE'S THEY'RE Don'T we'Ve it'S you'Re he'Ll 'tis 'twas rock'n'roll d'accord l'été 'S 'T 'RE 'ſ it'ſ 'd've""".split()
ENDINGS = ["", "s", "ed", "ing", "er", "ly", "ness", "less", "ful", "able", "ization", "’s", "'s", "-like"]
SYLLABLES = """ba be bi bo ca ce co da de di do fa fe fi ga go ha he hi ka ki la le li lo ma me mi mo na ne ni no pa pe po ra re ri
ro sa se si so ta te ti to va ve vi wa we xo ya ze an en in on ar er ir or as es is st tr br cl gr pl sh ch th ck ng nt nd""".split()

# Words to build Chinese sentences from, by part of speech.
ZH_WHO = "我们 你们 老师 学生 医生 工程师 朋友 孩子 农民 科学家 司机 邻居 作家 经理 祖母".split()
ZH_WHEN = "今天 昨天 明天早上 去年冬天 每个星期 春天来了以后 下午三点 很久以前 二零二四年 开会之前".split()
ZH_DO = "看见 学习 修理 购买 讨论 研究 整理 打开 描写 忘记 翻译 测量 保护 准备 解释".split()
ZH_WHAT = "一本旧书 新的机器 城市的历史 那座桥 数学问题 三只小猫 火车时刻表 天气预报 一封很长的信 语言模型 山上的雪 计算机程序".split()
ZH_END = "。 ！ ？ ，因为时间不够。 ，但是没有人知道。 ；后来大家都笑了。 ……".split()

EMOJI = [chr(c) for c in range(0x1F600, 0x1F650)] + ["👩‍👩‍👧‍👦", "👨🏽‍💻", "🏳️‍🌈", "🇩🇪", "🇯🇵", "❤️", "☕️", "1️⃣", "🤖", "👍🏿", "🧑‍🚀"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>",
           "<|end_header_id|>", "<repo_name>", "<file_sep>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<|fim_prefix|>",
           "<|reserved_special_token_7|>", "<empty_output>", "<|vision_pad|>", "<|python_tag|>", "<jupyter_start>"]
WHITE = [" ", "  ", "\t", "\n", "\r", "\r\n", "\v", "\f", "\x85", "\xa0", "\u1680", "\u2003", "\u2028", "\u2029", "\u202f", "\u3000",
         "\u200b", "\ufeff", "\x1c", "\x1f"]


def word(r):
    if r.below(7) == 0:  # a word nobody has seen: real text has many that come once
        return "".join(r.one(SYLLABLES) for _ in range(r.between(2, 4)))
    w = r.one(STEMS + VERBS + ADJECTIVES)
    if r.below(4) == 0:
        w += r.one(ENDINGS)
    if r.below(12) == 0:
        w = r.one(["un", "re", "pre", "over", "micro"]) + w
    return w


def clause(r):
    return r.one([
        lambda: f"the {r.one(ADJECTIVES)} {word(r)} will {r.one(VERBS)} {r.between(2, 90)} {word(r)}s",
        lambda: f"{r.one(NAMES)} {r.one(CONTRACTIONS)} {r.one(VERBS)} the {word(r)} near the {word(r)}",
        lambda: f"every {word(r)} {r.one(VERBS)}s its {r.one(ADJECTIVES)} {word(r)}",
        lambda: f"{r.one(NAMES)} and {r.one(NAMES)} {r.one(VERBS)} {r.one(['twice', 'slowly', 'at dawn', 'in ' + str(r.between(1700, 2090))])}",
        lambda: f"a {r.one(ADJECTIVES)}, {r.one(ADJECTIVES)} {word(r)} ({word(r)} no. {r.between(1, 99999)})",
    ])()


def sentence(r):
    s = clause(r)
    while r.below(3) == 0:
        s += r.one([", and ", "; ", " — ", ", because ", " while ", ": "]) + clause(r)
    if r.below(6) == 0:
        s = r.one(["“%s”", '"%s"', "(%s)", "*%s*"]) % s
    return s[:1].upper() + s[1:] + r.one([".", ".", ".", "!", "?", "..."])


def english(r):
    return "\n\n".join(" ".join(sentence(r) for _ in range(r.between(2, 7))) for _ in range(r.between(1, 4)))


def chinese(r):
    out = ""
    for _ in range(r.between(4, 16)):
        out += r.one(ZH_WHEN) + r.one(["", "，"]) + r.one(ZH_WHO) + r.one(ZH_DO) + r.one(["了", "过", ""]) + r.one(ZH_WHAT) + r.one(ZH_END)
        if r.below(5) == 0:
            out += r.one([" GPU ", "iPhone", "３月", "（注：2024）", "\n", "「引用」", " "])
    return out


def code(r):
    out = []
    for _ in range(r.between(2, 6)):
        f, a, b = word(r).replace("'", "").replace("’", ""), r.one(STEMS), r.one(STEMS)
        n = r.between(0, 4096)
        out.append(r.one([
            f"func {f.title()}({a} []byte, {b} int) (int, error) {{\n\tfor i := range {a} {{\n\t\tif {a}[i] == {n} {{\n\t\t\treturn i, nil\n\t\t}}\n\t}}\n\treturn -1, fmt.Errorf(\"no %q in %d: %w\", {a}, {b}, err)\n}}\n",
            f"def {f}_{a}(self, {b}: dict[str, int] = {{}}, *args, **kwargs) -> None:\n    '''It {r.one(VERBS)}s.'''\n    return [x ** 2 for x in {b}.items() if x != 0x{n:X}]\n",
            f"<div class=\"{a}-{b}\" id='{f}'>\r\n  <a href=\"/{a}/{n}?q={b}&amp;n=1\">{word(r)}</a><!-- {sentence(r)} -->\r\n</div>\r\n",
            f"SELECT {a}.id, COUNT(*) FROM {a}s AS {a} LEFT JOIN {b} ON {b}.{a}_id = {a}.id WHERE {f} >= {n}.5e-3 GROUP BY 1;\n",
            f"{{\"{a}\": [{n}, -{n / 7:.3f}, null, true], \"{b}\": {{\"{f}\": \"\\u00e9\\n\\t\\\\\"}}}}\n",
            f"#include <{a}.h>\n#define {a.upper()}_{b.upper()}(x) ((x) << {n % 32} | ~0xFFu)\nstatic const char *{f} = \"{a}\\0{b}\";    // {word(r)}\n",
        ]))
    return "\n".join(out)


def emoji(r):
    return "".join(r.one([lambda: r.one(EMOJI), lambda: " " + r.one(EMOJI), lambda: r.one(EMOJI) * r.between(2, 9), lambda: word(r),
                          lambda: " " + word(r)])() for _ in range(r.between(5, 60)))


def control(r):
    signs = [chr(c) for c in range(32)] + ["\x7f", "\x80", "\x9f", "\xad", "\u200d", "\u200e", "\u2060", "\ufffd", "\ufffe", "\uffff"]
    return "".join(r.one([lambda: r.one(signs), lambda: r.one(signs) * r.between(1, 5), lambda: word(r), lambda: "\x00", lambda: "\x7f",
                          lambda: str(r.below(1000))])() for _ in range(r.between(3, 60)))


def code_point(r):
    """Any code point, the more crowded parts of Unicode more often."""
    low, high = r.one([(0x20, 0x7e), (0xa0, 0x24f), (0x300, 0x36f), (0x370, 0x52f), (0x590, 0x6ff), (0x900, 0xdff), (0xe00, 0xfff),
                       (0x1100, 0x11ff), (0x1ab0, 0x1aff), (0x1e00, 0x1fff), (0x2000, 0x2bff), (0x3000, 0x30ff), (0x4e00, 0x9fff),
                       (0xac00, 0xd7a3), (0xe000, 0xf8ff), (0xf900, 0xfaff), (0xfe00, 0xffff), (0x10000, 0x10fff), (0x11000, 0x11fff),
                       (0x1d100, 0x1d7ff), (0x1e000, 0x1efff), (0x1f000, 0x1faff), (0x2f800, 0x2fa1d), (0x0, 0x10ffff)])
    c = r.between(low, high)
    return chr(c) if not 0xd800 <= c <= 0xdfff else "\ud7ff"


def random_unicode(r):
    marks = [chr(c) for c in (0x300, 0x301, 0x303, 0x308, 0x30a, 0x323, 0x327, 0x328, 0x338, 0x345, 0x5b4, 0x64b, 0x93c, 0x94d, 0x9be,
                              0xe38, 0x1161, 0x11a8, 0x20d0, 0x3099, 0x302a, 0x1d165, 0x8d3, 0x1ac1, 0x11930)]
    out = r.one(["", r.one(marks)])
    for _ in range(r.between(4, 90)):
        out += r.one([lambda: code_point(r), lambda: code_point(r) + r.one(marks), lambda: r.one("aeioucnAEO<>=") + r.one(marks) + r.one(marks),
                      lambda: r.one(marks) * r.between(1, 40), lambda: " ", lambda: chr(r.between(0x1100, 0x1112)) + chr(r.between(0x1161, 0x1175)) + chr(r.between(0x11a7, 0x11c3))])()
    return out


def white(r):
    out = ""
    for _ in range(r.between(3, 40)):
        out += r.one([lambda: r.one(WHITE) * r.between(1, 30), lambda: r.one(WHITE) + r.one(WHITE), lambda: word(r), lambda: " " + word(r), lambda: r.one(".,!?-'") * r.between(1, 12)])()
    return out


def special(r):
    out = ""
    for _ in range(r.between(3, 30)):
        t = r.one(SPECIAL)
        out += r.one([lambda: t, lambda: t, lambda: t[:-1], lambda: t[1:], lambda: t.upper(), lambda: " " + t + " ", lambda: t + t, lambda: t[:3] + t,
                      lambda: word(r), lambda: "\n", lambda: sentence(r)])()
    return out


def contractions(r):
    return r.one(["", " "]) + r.one([" ", "", "\n"]).join(r.one([r.one(CONTRACTIONS), r.one(CONTRACTIONS).swapcase(), word(r), "'" + code_point(r)]) for _ in range(r.between(10, 80)))


def digits(r):
    kinds = [lambda: str(r.bits()), lambda: "%d.%d" % (r.below(1000), r.below(100)), lambda: "%04d-%02d-%02d" % (r.between(1900, 2100), r.between(1, 12), r.between(1, 28)),
             lambda: "$%d,%03d" % (r.below(1000), r.below(1000)), lambda: "%x" % r.bits(), lambda: "٣٤٥", lambda: "Ⅷ½²³", lambda: "一二三", lambda: "१२३४",
             lambda: "1" * r.between(1, 200), lambda: word(r) + str(r.below(100)), lambda: "𝟘𝟙𝟚", lambda: "３４５６"]
    return r.one([" ", "", ", "]).join(r.one(kinds)() for _ in range(r.between(10, 60)))


def long_runs(r):
    return r.one([" " * r.between(100, 3000), "\n" * r.between(100, 2000), "ab" * r.between(100, 2000), "=" * r.between(60, 900), "a" * r.between(100, 3000),
                  "好" * r.between(100, 900), "\u0301" * r.between(35, 300), " \n" * r.between(50, 600), "é" * r.between(50, 400), "-_" * r.between(50, 600),
                  "".join(r.one(STEMS) for _ in range(r.between(20, 300)))]) + r.one(["", "x", "\n", " "])


PARTS = [("english", english, 420_000), ("chinese", chinese, 170_000), ("code", code, 200_000), ("emoji", emoji, 30_000), ("control", control, 30_000),
         ("unicode", random_unicode, 60_000), ("white", white, 30_000), ("special", special, 40_000), ("contractions", contractions, 30_000),
         ("digits", digits, 30_000), ("long", long_runs, 40_000)]


def documents():
    """Returns (name of the part, text), in one fixed order, the parts mixed."""
    parts = []
    for name, make, size in PARTS:
        r, texts, total = Chance("skein tokenizer corpus 1 " + name), [], 0
        while total < size:
            texts.append(make(r))
            total += len(texts[-1].encode())
        parts.append([(i / len(texts), name, t) for i, t in enumerate(texts)])
    fixed = ["", " ", "\n", "\x00", "\x7f", "a", "'", "''", "'s", " 's", "Hello world", "  two  spaces\n\n2024 don't", "naïve café 你好 🤖", "\u0301", "\ufeffx"]
    mixed = sorted((x for part in parts for x in part), key=lambda x: x[:2])
    return [("fixed", t) for t in fixed] + [(name, t) for _, name, t in mixed]


if __name__ == "__main__":
    raw = b"".join(struct.pack("<I", len(b)) + b for b in (t.encode() for _, t in documents()))
    with open(sys.argv[1], "wb") as f:
        f.write(gzip.compress(raw, 9, mtime=0))
    print(len(documents()), "documents,", len(raw), "bytes, sha256", hashlib.sha256(raw).hexdigest())
