"""The texts that puff learns from: TinyStories put back into upper and lower case, fables, four old books.

    python examples/puff/data.py --data DATA --out WORK

DATA holds the folders tinystories, aesop and gutenberg (README.md says where they come from). WORK gets train.jsonl,
valid.jsonl and test.jsonl, one {"kind", "text", "about"} a line with kind story, fable or book, and tokenizer.model, a
SentencePiece vocabulary with Mistral's settings.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import random
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CASED = "tinystories/gusjengis_2MiB_endoftext.txt.gz"  # the first 2 MiB of TinyStories' training split
LOWER = "tinystories/arnoochka_lowercase_4.2MB.txt.gz"  # the first 4.2 MB, in lower case: contains the text of CASED
FABLES = "aesop/aesop4children.json.gz"
BOOKS = [f"gutenberg/{name}.txt.gz" for name in ("bryant-stories", "burgess-busterbrown", "wizard_of_oz", "grimm")]
VOCAB = 3072
HELD_OUT = 50  # one story in so many is for validation, another one for the test, and never trained on

# How a story is asked for. {} is what `Subjects` finds in the story itself.
ANY = [
    "Tell me a story.",
    "Please tell me a story.",
    "Tell me a short story.",
    "Write a story.",
    "Can you tell me a story?",
    "Tell me a bedtime story, please.",
    "I want to hear a story.",
    "A story, please!",
    "Write a short story for children.",
]
ABOUT = [
    "Tell me a story about {}.",
    "Tell me a story about {}.",  # twice as often
    "Write a story about {}.",
    "A story about {}, please.",
    "Can you tell me a story about {}?",
    "Please tell me a short story about {}.",
    "Tell me about {}.",
    "Once more, a story about {}!",
    "Write a short story about {}.",
]
FABLE = ["Tell me the fable of {}.", "Tell me a fable about {}.", "Do you know the fable of {}?"]

NOT_THINGS = re.compile(
    r"big|little|time|day|way|lot|bit|while|moment|new|good|great|very|long|small|nice|thing|few|idea|one|"
    r"sand|beautiful|special|red|blue|yellow|green|pink|happy|sad|hard|deep|loud|soft|old|young"
)
_PLAIN = {'"': "“”", "'": "‘’", "-": "–—", "...": "…", " ": "\u00a0", "": "\u200b"}
_ODD = {
    "â€œ": '"',
    "â€\x9d": '"',
    "â€™": "'",
    "â€˜": "'",
    "â€“": "-",
    "â€”": "-",
    "â€¦": "...",
    "â€": '"',
}  # UTF-8 misread
_ODD |= {odd: plain for plain, some in _PLAIN.items() for odd in some}
_OPENER = re.compile(r"(once|one (day|night|morning|time)|there (was|were|lived)|in a |a long time ago|long ago)")
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
_START = re.compile(
    r"(?:^|(?<=\n)|(?<=[.!?] )|(?<=[.!?]\" )|(?<=[.!?]' )|(?<=[.!?]  ))([\"']?)([a-z])|(?<= )(\")([a-z])"
)


def read(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode("utf-8", "ignore")


def tidy(text: str) -> str:
    """Typewriter quotes and dashes; one blank line between paragraphs, no spaces at their ends."""
    for odd, plain in _ODD.items():
        text = text.replace(odd, plain)
    return re.sub(r"\s*\n\s*", "\n\n", re.sub(r"[ \t]+", " ", text)).strip()


def key(text: str) -> str:
    """What two copies of a story have in common: its letters and digits, in lower case."""
    return re.sub(r"[^a-z0-9]+", "", text.lower())


def lower_stories(text: str) -> list[str]:
    """LOWER parts its stories with one line break, paragraphs mostly with two, but some of its paragraphs with one:
    a block is a new story if it begins like one, or is as long as one and no speech."""
    found: list[str] = []
    for block in re.split(r"(?<!\n)\n(?![\s]*\n)", text):
        begins = _OPENER.match(block) or (len(block) > 300 and block[0] not in '"â“')
        if not found or (begins and not found[-1].endswith(" ")):  # " \n" ends a paragraph, never a story
            found.append(block)
        elif block.strip():
            found[-1] += "\n" + block
    return [tidy(story) for story in found]


class Case:
    """Learns from cased stories which words are written with a capital, and after which word before them."""

    def __init__(self, stories: Iterable[str]) -> None:
        self.word: Counter[str] = Counter()  # + for a capital inside a sentence, - for none
        self.pair: Counter[tuple[str, str]] = Counter()
        self.seen: Counter[str] = Counter()
        for story in stories:
            before = None
            for match in _WORD.finditer(story):
                word, at = match[0], match.start()
                self.seen[word.lower()] += 1
                if before and at and story[at - 1] == " " and story[at - 2] not in ".!?\"'\n":
                    capital = 1 if word[0].isupper() else -1
                    self.word[word.lower()] += capital
                    self.pair[before, word.lower()] += capital
                before = word.lower()

    def restore(self, story: str) -> str:
        """A story in lower case -> as it would be written."""
        names = {
            n
            for n in re.findall(r"\b(?:named|called|name was) ([a-z]+)", story)
            if self.seen[n] < 20 or self.word[n] > 0
        }
        letters = list(story)
        before = ""
        for match in _WORD.finditer(story):
            word = match[0]
            stem = word.split("'")[0]
            score = self.pair[before, word] or self.word[word] or self.word[stem]
            if stem == "i" or stem in names or score > 0:
                letters[match.start()] = word[0].upper()
            before = word
        for match in _START.finditer(story):
            letters[match.end() - 1] = story[match.end() - 1].upper()
        return "".join(letters)


def stories(data: Path) -> list[str]:
    """All TinyStories of the samples, cased, each once. The last one of a sample is cut off and left out."""
    cased = [tidy(s) for s in read(data / CASED).split("<|endoftext|>")][:-1]
    lower = lower_stories(read(data / LOWER))[:-1]
    known = {key(s) for s in cased}
    last = max(i for i, s in enumerate(lower) if key(s) in known)
    case = Case(cased)
    rest = [case.restore(s) for s in lower[last + 2 :]]  # one more: the story that CASED cuts off
    unique = {key(s): s for s in cased + rest if 150 < len(s) < 3500}
    return list(unique.values())


def fables(data: Path) -> list[tuple[str, str]]:
    """(title, fable): the shorter ones, with their lesson as the last line where there is one."""
    found = []
    for entry in json.loads(read(data / FABLES)):
        text = tidy(entry["fable"])
        if 200 < len(text) < 2000:
            lesson = tidy(entry.get("lesson") or "")
            found.append((tidy(entry["title"]), f"{text}\n\n{lesson}" if lesson else text))
    return found


def passages(data: Path) -> list[str]:
    """The books' prose in passages of a few whole paragraphs."""
    found = [""]
    for book in BOOKS:
        text = read(data / book)
        text = re.split(r"\*\*\* ?START OF[^\n]*\n", text)[-1].split("*** END OF")[0].replace("_", "")
        for paragraph in re.split(r"\n\s*\n", text.replace("\r", "")):
            line = tidy(re.sub(r"\s+", " ", paragraph))
            if re.search(r"[a-z]{2}.*[.!?][\"']?$", line) and not re.search(r"Gutenberg|\d\d\d", line):  # no prefaces
                found += [""] if len(found[-1]) + len(line) > 1200 else []
                found[-1] += "\n\n" * bool(found[-1]) + line
        found.append("")
    return [passage for passage in found if 200 < len(passage) < 3500]


def part(kind: str, text: str) -> str:
    """train, valid or test: decided by the letters of a story alone, so that every copy of it is in the same part."""
    number = int(hashlib.sha256(key(text).encode()).hexdigest(), 16) % HELD_OUT
    return {0: "valid", 1: "test"}.get(number, "train") if kind == "story" else "train"


class Subjects:
    """Finds what a story is about: "a little girl named Lily", a name, or a thing that it speaks of often."""

    def __init__(self, stories: Iterable[str]) -> None:
        self.common: Counter[str] = Counter()  # in how many stories a thing occurs
        for story in stories:
            self.common.update({noun for _, noun in self._things(story)})

    @staticmethod
    def _things(story: str) -> list[tuple[str, str]]:
        """(phrase, noun) of what is introduced with an article, "a red ball": mostly nouns, for what follows them."""
        found = re.findall(
            r"\b([Aa]n? (?:(?!very|lot|bit)[a-z]+ )??([a-z]{3,}))"
            r"(?=[.,!?]| (?:was|and|in|on|that|who|to|with|at|said|of|for|named|called)\b)", story)  # fmt: skip
        return [(phrase.lower(), noun) for phrase, noun in found if not NOT_THINGS.fullmatch(noun)]

    def of(self, story: str) -> list[str]:
        """Phrases for the gap in ABOUT: who, what, name, both."""
        who = re.findall(r"\b([Aa]n? (?:[a-z]+,? ){1,3}(?:named|called) [A-Z][a-z]+)", story[:300])
        names = [n for n, c in Counter(re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", story)).most_common(3) if c > 1]
        names = [n for n in names if n.lower() not in ("mom", "dad", "mommy", "daddy", "mum", "mummy")]
        often = Counter(re.findall(r"[a-z]+", story))
        things = {
            noun: phrase for phrase, noun in reversed(self._things(story)) if often[noun] > 2 and self.common[noun] > 2
        }
        best = sorted(things, key=lambda t: often[t] / self.common[t] ** 0.3, reverse=True)[:2]
        what = [things[noun] for noun in best] + [("an " if noun[0] in "aeiou" else "a ") + noun for noun in best]
        both = [f"{names[0]} and {things[best[0]]}"] if names and best else []
        pair = [f"{names[0]} and {names[1]}"] if len(names) > 1 else []
        return [w[0].lower() + w[1:] for w in who[:1]] + list(dict.fromkeys(what)) + names[:1] + both + pair


def request(kind: str, about: list[str], chance: random.Random) -> str:
    """What a person might have said to be told this."""
    if kind == "fable":
        return chance.choice(FABLE).format(about[0])
    if not about or chance.random() < 0.3:
        return chance.choice(ANY)
    said = chance.choice(ABOUT).format(chance.choice(about))
    return said.lower() if chance.random() < 0.1 else said


def vocabulary(texts: list[str], path: Path) -> None:
    """SentencePiece as Mistral's tokenizer.model was made: BPE, bytes for unknown letters, digits one by one, text as
    it is. Requests stand among the texts, so that [INST], plain text in format v1, becomes few pieces."""
    import sentencepiece

    made = io.BytesIO()
    lines = (line for text in texts for line in text.split("\n") if line)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=made, model_type="bpe", vocab_size=VOCAB,
        byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True, add_dummy_prefix=True,
        remove_extra_whitespaces=False, normalization_rule_name="identity", character_coverage=0.99995,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=2, minloglevel=1)  # fmt: skip
    path.write_bytes(made.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with tinystories/ and aesop/")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is made")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    told = stories(args.data)
    subjects = Subjects(told)
    rows = [{"kind": "story", "text": s, "about": subjects.of(s)} for s in told]
    rows += [{"kind": "fable", "text": text, "about": [title]} for title, text in fables(args.data)]
    rows += [{"kind": "book", "text": text, "about": []} for text in passages(args.data)]
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "valid": [], "test": []}
    for row in rows:
        parts[part(row["kind"], row["text"])].append(row)
    for name, found in parts.items():
        (args.out / f"{name}.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in found))
        kinds = Counter(r["kind"] for r in found)
        print(name, dict(kinds), f"{sum(len(r['text'].encode()) for r in found):,} bytes")
    chance = random.Random(0)
    asked = [f"[INST] {request(r['kind'], r['about'], chance)} [/INST]" for r in parts["train"] if r["kind"] != "book"]
    vocabulary([r["text"] for r in parts["train"]] + asked, args.out / "tokenizer.model")


if __name__ == "__main__":
    main()
