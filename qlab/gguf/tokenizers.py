"""Tokenizers in GGUF: two kinds, both byte-pair encodings, told apart by ``tokenizer.ggml.model``.

``gpt2``, the byte-level kind: text is cut into words by a pattern, the bytes of a word are written
with 256 printable characters, and the pairs listed in ``merges`` are joined, the first listed pair
first. llama.cpp has the patterns built in; ``tokenizer.ggml.pre`` names one.

``llama``, SentencePiece's kind: a space is the character ``▁``, and of all neighbors that together
are a token, those are joined whose token has the highest ``score``. There is no list of pairs. A
character that is no token becomes its UTF-8 bytes, tokens such as ``<0xE2>``.

What a GGUF file cannot say is refused here, so that llama.cpp cuts a text exactly as the tokenizer
did. Two differences remain. llama.cpp applies no Unicode normalization, which shows on text that is
not in NFC where the tokenizer brings it there (Qwen's does). And where ``transformers`` prepares
text with Metaspace, it puts no space before a text that begins with one; SentencePiece and
llama.cpp do.

Sources: llama.cpp's ``convert_hf_to_gguf.py`` (what is written) and ``src/llama-vocab.cpp`` (how it
is read), commit 0c1e57098.

Chapter: GGUF, byte by byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qlab.errors import QlabError
from qlab.gguf.errors import GGUFError
from qlab.gguf.writer import GGUFWriter

# tokenizer.ggml.token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

SPACE = "▁"

_APOSTROPHES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"


@dataclass(frozen=True)
class Split:
    """How a byte-level tokenizer cuts text into words.

    Attributes:
        pattern: a regular expression of the words; None for the one that GPT-2 had and that
            ``tokenizers`` has built in.
        digits: whether each digit is a word, before anything else.
        ignore_merges: whether a word that is a token is taken as it is, whatever the merges say.
    """

    pattern: str | None = None
    digits: bool = False
    ignore_merges: bool = False


_LLAMA3 = rf"{_APOSTROPHES}|{_WORD}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN2 = rf"{_APOSTROPHES}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_TEKKEN = rf"{_CASED % ('', '')}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_GPT4O = (
    rf"{_CASED % (_APOSTROPHES + '?', _APOSTROPHES + '?')}|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
# tokenizer.ggml.pre: how it cuts. The first name of a cut is the one that is written.
SPLITS = {
    "gpt-2": Split(),
    "smollm": Split(digits=True),
    "llama-bpe": Split(_LLAMA3, ignore_merges=True),
    "smaug-bpe": Split(_LLAMA3),
    "qwen2": Split(_QWEN2),
    "tekken": Split(_TEKKEN, ignore_merges=True),
    "gpt-4o": Split(_GPT4O),
    # Other names of the same in llama.cpp.
    "starcoder": Split(digits=True),
    "refact": Split(digits=True),
    "command-r": Split(digits=True),
    "llama3": Split(_LLAMA3, ignore_merges=True),
    "llama-v3": Split(_LLAMA3, ignore_merges=True),
    "dbrx": Split(_LLAMA3),
    "deepseek-r1-qwen": Split(_QWEN2),
    "llama4": Split(_GPT4O),
}
# Where the file does not say whether a text begins with BOS.
_BOS_BY_DEFAULT = ("llama-bpe", "llama3", "llama-v3", "tekken")


def write_tokenizer(out: GGUFWriter, tokenizer: Any, rows: int) -> None:
    """Add a tokenizer to a file.

    Args:
        out: the file being written.
        tokenizer: of transformers, with a backend of the library ``tokenizers``.
        rows: rows of the embeddings; ids above the tokenizer's get names that no text contains.

    Raises: QlabError for a tokenizer that llama.cpp could not copy, saying why.

    Chapter: GGUF, byte by byte.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise QlabError(
            f"{type(tokenizer).__name__} has no tokenizer.json: save it as a fast tokenizer first"
        )
    spec = json.loads(backend.to_str())
    model = spec["model"]
    if model["type"] != "BPE":
        raise QlabError(f"a tokenizer of kind {model['type']}: only BPE can be written here")
    if model.get("byte_fallback"):
        found = _sentencepiece(spec)
        out.add("tokenizer.ggml.model", "llama")
        out.add("tokenizer.ggml.pre", "default")
    else:
        found = _Found(merges=[" ".join(_pair(m)) for m in model["merges"]])
        out.add("tokenizer.ggml.model", "gpt2")
        out.add("tokenizer.ggml.pre", _name_of_split(spec))
    tokens, types = _vocabulary(spec, rows)
    out.add("tokenizer.ggml.tokens", tokens, "array[string]")
    if found.scores is not None:
        scores = [found.scores.get(token, 0.0) for token in tokens]
        out.add("tokenizer.ggml.scores", scores, "array[float32]")
    out.add("tokenizer.ggml.token_type", types, "array[int32]")
    if found.merges is not None:
        out.add("tokenizer.ggml.merges", found.merges, "array[string]")
    ids = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    for ours, theirs in ids.items():
        number = getattr(tokenizer, f"{ours}_token_id", None)
        if number is not None:
            out.add(f"tokenizer.ggml.{theirs}_token_id", int(number), "uint32")
    for which, added in _ends(tokenizer).items():
        out.add(f"tokenizer.ggml.add_{which}_token", added)
    if found.space_prefix is not None:
        out.add("tokenizer.ggml.add_space_prefix", found.space_prefix)
    if isinstance(getattr(tokenizer, "chat_template", None), str):
        out.add("tokenizer.chat_template", tokenizer.chat_template)


@dataclass(frozen=True)
class _Found:
    """What a kind of tokenizer has beside its vocabulary."""

    merges: list[str] | None = None
    scores: dict[str, float] | None = None
    space_prefix: bool | None = None


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _vocabulary(spec: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """The tokens by id, and the type of each."""
    tokens = [f"[PAD{i}]" for i in range(rows)]
    types = [UNUSED] * rows
    highest = max([*spec["model"]["vocab"].values(), *(a["id"] for a in spec["added_tokens"])])
    if highest >= rows:
        raise QlabError(f"token {highest} of the tokenizer, and {rows} rows of embeddings")
    byte_fallback = spec["model"].get("byte_fallback")
    for token, i in spec["model"]["vocab"].items():
        tokens[i], types[i] = token, NORMAL
        if byte_fallback and _is_byte(token):
            types[i] = BYTE
        elif byte_fallback and token == spec["model"]["unk_token"]:
            types[i] = UNKNOWN
    for added in spec["added_tokens"]:
        i = added["id"]
        tokens[i] = added["content"]
        if types[i] != UNKNOWN:
            types[i] = CONTROL if added["special"] else USER_DEFINED
    if len(set(tokens)) != rows:
        twice = next(t for t in tokens if tokens.count(t) > 1)
        raise QlabError(f"the token {twice!r:.40} has two ids: llama.cpp could not tell them apart")
    return tokens, types


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _ends(tokenizer: Any) -> dict[str, bool]:
    """Whether the tokenizer puts BOS before a text and EOS behind it."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for before in (bos, []):
        for behind in ([], eos):
            if full == [*before, *bare, *behind]:
                return {"bos": bool(before), "eos": bool(behind)}
    raise QlabError(
        "the tokenizer puts other tokens than BOS and EOS around a text: GGUF cannot say which"
    )


def _parts(spec: Any) -> list[dict[str, Any]]:
    """The parts of a normalizer or pre-tokenizer, be it none, one or a sequence."""
    if spec is None:
        return []
    if spec["type"] == "Sequence":
        inner = spec.get("normalizers", spec.get("pretokenizers", []))
        return [part for one in inner for part in _parts(one)]
    return [spec]


def _name_of_split(spec: Mapping[str, Any]) -> str:
    """The name that llama.cpp has for how this tokenizer cuts words."""
    normal = [part["type"] for part in _parts(spec["normalizer"])]
    if any(kind != "NFC" for kind in normal):
        raise QlabError(f"a tokenizer that normalizes by {', '.join(normal)}: llama.cpp does not")
    parts = _parts(spec["pre_tokenizer"])
    level = parts.pop() if parts and parts[-1]["type"] == "ByteLevel" else None
    digits, pattern, known = False, None, level is not None and not level["add_prefix_space"]
    for part in parts:
        if part["type"] == "Digits" and part["individual_digits"]:
            digits = True
        elif part["type"] == "Split" and pattern is None and _isolates(part):
            pattern = part["pattern"].get("Regex")
        else:
            known = False
    if level is not None and level["use_regex"] == (pattern is not None):
        known = False  # the built-in pattern beside another one, or none at all
    wanted = Split(pattern, digits, bool(spec["model"].get("ignore_merges")))
    # Whether a word that is a token is taken whole matters only to llama.cpp where it knows of it.
    names = [name for name, split in SPLITS.items() if split == wanted]
    if not known or not names:
        cut = pattern or ", ".join(part["type"] for part in parts) or "nothing"
        raise QlabError(
            f"a byte-level tokenizer that cuts words by {cut!r:.120}: llama.cpp has no name for it "
            f"that is known here (known: {', '.join(SPLITS)})"
        )
    return names[0]


def _isolates(split: Mapping[str, Any]) -> bool:
    return split["behavior"] == "Isolated" and not split["invert"]


def _sentencepiece(spec: Mapping[str, Any]) -> _Found:
    """Scores from the order of the merges, and whether a text gets a space before it."""
    prefix = _space_prefix(spec)
    special = {a["content"] for a in spec["added_tokens"]}
    pieces = {
        token: i
        for token, i in spec["model"]["vocab"].items()
        if token not in special and not _is_byte(token)
    }
    merges = [_pair(merge) for merge in spec["model"]["merges"]]
    # The first token that is made has the highest score, as in the models of SentencePiece.
    made = list(dict.fromkeys(left + right for left, right in merges))
    rank = {token: i for i, token in enumerate(made)}
    order = [rank[left + right] for left, right in merges]
    listed = set(merges)
    for token in rank:
        if token not in pieces:
            continue
        for i in range(1, len(token)):
            pair = (token[:i], token[i:])
            if pair[0] in pieces and pair[1] in pieces and pair not in listed:
                raise QlabError(
                    f"the tokenizer never joins {pair[0]!r} and {pair[1]!r} to {token!r}, but "
                    "llama.cpp would: it is no SentencePiece model"
                )
    if order != sorted(order):
        raise QlabError("the order of the merges follows no score: it is no SentencePiece model")
    rest = (token for token in pieces if token not in rank)  # single characters
    rank.update({token: len(made) + i for i, token in enumerate(rest)})
    return _Found(scores={token: -float(i) for token, i in rank.items()}, space_prefix=prefix)


def _space_prefix(spec: Mapping[str, Any]) -> bool:
    """Whether a text gets a space before it. Raises: QlabError for what is no SentencePiece."""
    prefix, replaced = False, False
    parts = [*_parts(spec["normalizer"]), *_parts(spec["pre_tokenizer"])]
    for part in parts:
        if part["type"] == "Prepend" and part["prepend"] == SPACE:
            prefix = True
        elif part["type"] == "Replace" and part["pattern"] == {"String": " "}:
            replaced = part["content"] == SPACE
        elif part["type"] == "Metaspace" and not part.get("split", True):
            replaced, prefix = True, part["prepend_scheme"] != "never"
        else:
            replaced = False
            break
    if not replaced:
        kinds = ", ".join(part["type"] for part in parts) or "nothing"
        raise QlabError(f"a tokenizer with byte fallback that prepares text by {kinds}: unknown")
    return prefix


def read_tokenizer(metadata: Mapping[str, Any], context: int) -> Any:
    """The tokenizer of a file.

    Args:
        metadata: of the file.
        context: of the model, in tokens.

    Returns: transformers.PreTrainedTokenizerFast.

    Raises: GGUFError for a kind that is not known here, or lists that do not fit together.

    Chapter: GGUF, byte by byte.
    """
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise GGUFError(f"a tokenizer of kind {kind!r:.40}: known are gpt2, llama")
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    types = _numbers(metadata, "tokenizer.ggml.token_type", len(tokens), NORMAL)
    # What no text contains stays out; what stands behind it keeps its id.
    vocab = {t: i for i, (t, k) in enumerate(zip(tokens, types, strict=True)) if k != UNUSED}
    if len(vocab) != sum(k != UNUSED for k in types):
        raise GGUFError("a token is there twice")
    special = {
        name: _token(metadata, tokens, key)
        for name, key in [
            ("bos_token", "bos_token_id"),
            ("eos_token", "eos_token_id"),
            ("unk_token", "unknown_token_id"),
            ("pad_token", "padding_token_id"),
        ]
    }
    try:
        if kind == "gpt2":
            backend: Tokenizer = _byte_level(metadata, vocab)
        else:
            backend = _with_scores(metadata, tokens, types, vocab, special["unk_token"])
        added = [
            AddedToken(token, special=k != USER_DEFINED, normalized=False)
            for token, k in zip(tokens, types, strict=True)
            if k in (CONTROL, UNKNOWN, USER_DEFINED)
        ]
        backend.add_special_tokens([token for token in added if token.special])
        backend.add_tokens([token for token in added if not token.special])
    except QlabError:
        raise
    except Exception as error:  # the library raises plain Exceptions
        raise GGUFError(f"the tokenizer's lists do not fit together: {error}") from None
    if len(vocab) != backend.get_vocab_size():
        raise GGUFError("the tokenizer's lists do not fit together")
    by_default = kind == "llama" or metadata.get("tokenizer.ggml.pre") in _BOS_BY_DEFAULT
    bos = metadata.get("tokenizer.ggml.add_bos_token", by_default) and special["bos_token"]
    eos = metadata.get("tokenizer.ggml.add_eos_token", False) and special["eos_token"]
    if bos or eos:
        backend.post_processor = _template(vocab, bos or None, eos or None)
    template = metadata.get("tokenizer.chat_template")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in special.items() if token is not None},
        **({"chat_template": template} if isinstance(template, str) else {}),
    )


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    found = metadata.get(key)
    if not isinstance(found, list) or not all(isinstance(t, str) for t in found):
        raise GGUFError(f"{key} is not a list of texts")
    return found


def _numbers(metadata: Mapping[str, Any], key: str, count: int, default: Any) -> list[Any]:
    found = metadata.get(key)
    if found is None:
        return [default] * count
    if getattr(found, "ndim", None) != 1 or len(found) != count:
        raise GGUFError(f"{key} is not a list of {count} numbers")
    return list(found.tolist())


def _token(metadata: Mapping[str, Any], tokens: list[str], key: str) -> str | None:
    number = metadata.get(f"tokenizer.ggml.{key}")
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(tokens):
        raise GGUFError(f"tokenizer.ggml.{key} is {number!r:.40} of {len(tokens)} tokens")
    return tokens[number]


def _byte_level(metadata: Mapping[str, Any], vocab: dict[str, int]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in SPLITS:
        raise GGUFError(
            f"a byte-level tokenizer that cuts words as {pre!r:.40}: known are {', '.join(SPLITS)}"
        )
    split = SPLITS[pre]
    listed = _strings(metadata, "tokenizer.ggml.merges")
    if any(merge.count(" ") != 1 for merge in listed):
        raise GGUFError("tokenizer.ggml.merges holds what is not a pair")
    merges = [_pair(merge) for merge in listed]
    found = Tokenizer(models.BPE(vocab, merges, ignore_merges=split.ignore_merges))
    if pre in ("qwen2", "deepseek-r1-qwen"):
        found.normalizer = normalizers.NFC()
    parts: list[Any] = []
    if split.digits:
        parts.append(pre_tokenizers.Digits(individual_digits=True))
    if split.pattern:
        parts.append(pre_tokenizers.Split(Regex(split.pattern), "isolated"))
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.pattern is None))
    found.pre_tokenizer = parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)
    found.decoder = decoders.ByteLevel()
    return found


def _with_scores(
    metadata: Mapping[str, Any],
    tokens: list[str],
    types: list[int],
    vocab: dict[str, int],
    unknown: str | None,
) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = _numbers(metadata, "tokenizer.ggml.scores", len(tokens), 0.0)
    score = {t: s for t, k, s in zip(tokens, types, scores, strict=True) if k == NORMAL}
    found = Tokenizer(
        models.BPE(vocab, merges_of(score), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    steps: list[Any] = [normalizers.Replace(" ", SPACE)]
    strip: list[Any] = []
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, normalizers.Prepend(SPACE))
        strip.append(decoders.Strip(" ", 1, 0))
    found.normalizer = normalizers.Sequence(steps)
    found.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return found


def merges_of(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """All pairs of tokens that make a token, the best score first.

    So a tokenizer that follows a list of pairs does what one that follows scores does.
    """
    pairs = []
    for token, score in scores.items():
        for i in range(1, len(token)):
            if token[:i] in scores and token[i:] in scores:
                pairs.append((-score, token, i))
    # Sorting by the token keeps its pairs together where two tokens have the same score.
    pairs.sort(key=lambda pair: pair[:2])
    return [(token[:i], token[i:]) for _, token, i in pairs]


def _template(vocab: dict[str, int], bos: str | None, eos: str | None) -> Any:
    from tokenizers import processors

    def around(text: str, kind: int) -> list[str]:
        return [f"{t}:{kind}" for t in (bos, text, eos) if t is not None]

    return processors.TemplateProcessing(
        single=around("$A", 0),
        pair=[*around("$A", 0), *around("$B", 0)],
        special_tokens=[(t, vocab[t]) for t in (bos, eos) if t is not None],
    )
