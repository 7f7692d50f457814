"""Statistics of the devices' text as vectors, so that the pipeline of updates can sum, hide and noise them.

    make_statistics_trainer(recipe, recipe_dir, cache_dir)    # counts text and trains nothing
    statistics_layout(size)                                   # the segments of the vector

A device contributes histograms in which it counts as one, whatever it holds:

    documents    one-hot: the number of its documents, in buckets of powers of two
    tokens       one-hot: the number of its tokens, in buckets of powers of two
    lengths      the share of its documents by their number of tokens, in buckets of powers of two
    vocabulary   the share of its tokens by id, or by a hash of the id if the vocabulary is larger than ``VOCABULARY``
    drift        one-hot: how far the first half of its text is from the second half
    distance     one-hot: how far all its text is from the mean vocabulary of the first round. In the second round alone

How far two histograms p and q are apart is their Jensen-Shannon divergence in bits, in [0, 1]: the mean of KL(p || m)
and KL(q || m) with m = (p + q) / 2. Tokens are read in the order of the documents.

Guarantees: the L2 norm of a contribution is at most ``BOUND_L2``. Each of the five parts of the first round has norm 1
or less. So a clip at that norm changes nothing.

Source: J. Lin, "Divergence measures based on the Shannon entropy" (1991).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from math import sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import DataError
from edgewise.core.keys import derive, root
from edgewise.core.safe_repr import outline
from edgewise.core.training import DeviceId, FitRequest, HeldOut, Update
from edgewise.core.vector import Spec, Vector
from edgewise.learn.text import corpus as corpora
from edgewise.learn.text import tokens as tokenizers
from edgewise.learn.text.corpus import Corpus
from edgewise.learn.text.tokens import Tokens
from edgewise.plan.recipe.recipe import Recipe

POWERS = 32  # buckets: 0, 1, 2-3, 4-7, ...; the last one has everything above
VOCABULARY = 4096
STEPS = 10  # buckets of a divergence
BOUND_L2 = sqrt(5.0)
PARTS = {  # name -> what its values are shares of, and whether of the first or second released round
    "documents": ("devices", 0), "tokens": ("devices", 0), "lengths": ("documents", 0), "vocabulary": ("tokens", 0),
    "drift": ("devices", 0), "distance": ("devices", 1),
}  # fmt: skip
_MULTIPLIER = 2_654_435_761  # Knuth's multiplicative hash: neighbouring ids fall into different buckets
Histogram = NDArray[np.float64]


class DeviceTextCounts(NamedTuple):
    """Counts of one device's text. ``halves``: float64[2, buckets], tokens of its first and of its second half."""

    lengths: NDArray[np.int64]
    halves: Histogram

    __repr__ = outline


def statistics_layout(size: int) -> Spec:
    """Return the segments for a tokenizer of ``size`` tokens."""
    buckets = min(size, VOCABULARY)
    shapes = {
        "documents": POWERS, "tokens": POWERS, "lengths": POWERS, "vocabulary": buckets, "drift": STEPS,
        "distance": STEPS,
    }  # fmt: skip
    return Spec.of([(name, (n,), "float32") for name, n in shapes.items()])


def power_buckets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the buckets of whole numbers: 0 for 0, and k for 2^(k - 1) to 2^k - 1."""
    return np.minimum(np.ceil(np.log2(counts + 1.0)).astype(np.int64), POWERS - 1)


def histogram_divergence(p: Histogram, q: Histogram) -> float:
    """Compute the Jensen-Shannon divergence of two histograms in bits, in [0, 1]. An empty one counts as equal."""
    if p.sum() <= 0 or q.sum() <= 0:
        return 0.0
    p, q = p / p.sum(), q / q.sum()
    m = (p + q) / 2
    parts = (np.sum(a[a > 0] * np.log2(a[a > 0] / m[a > 0])) for a in (p, q))
    return float(min(1.0, max(0.0, sum(parts) / 2)))


def one_hot_bucket(bucket: int, size: int) -> Vector:
    """Return float32[size] with 1 at a bucket."""
    found = np.zeros(size, np.float32)
    found[min(bucket, size - 1)] = 1.0
    return found


def first_statistics(text: DeviceTextCounts) -> dict[str, Vector]:
    """Make the parts that a device contributes in the first round."""
    vocabulary = text.halves.sum(axis=0)
    lengths = np.bincount(power_buckets(text.lengths), minlength=POWERS)
    drift = histogram_divergence(text.halves[0], text.halves[1])
    return {
        "documents": one_hot_bucket(int(power_buckets(np.array(len(text.lengths)))), POWERS),
        "tokens": one_hot_bucket(int(power_buckets(text.lengths.sum())), POWERS),
        "lengths": (lengths / lengths.sum()).astype(np.float32),
        "vocabulary": (vocabulary / vocabulary.sum()).astype(np.float32),
        "drift": one_hot_bucket(int(drift * STEPS), STEPS),
    }


def second_statistics(text: DeviceTextCounts, mean: Vector) -> dict[str, Vector]:
    """Make the part that a device contributes in the second round. ``mean``: the released vocabulary, noise and all."""
    far = histogram_divergence(text.halves.sum(axis=0), np.maximum(mean.astype(np.float64), 0.0))
    return {"distance": one_hot_bucket(int(far * STEPS), STEPS)}


def statistics_tokenizer(recipe: Recipe, recipe_dir: Path) -> Tokens:
    """Load the tokenizer by which a recipe's text is counted: that of model.base. Raises ModelError."""
    from edgewise.learn.models.load import locate_model

    return tokenizers.load_tokenizer(locate_model(recipe.model.base, recipe_dir)[0])


def make_statistics_trainer(
    recipe: Recipe, recipe_dir: Path, cache_dir: Path, device: DeviceId | None = None
) -> StatisticsTrainer:
    """Make the trainer of a recipe's statistics.

    Args:
        recipe_dir: the folder where relative paths start.
        cache_dir: folder for normalised copies of tables.
        device: an enrolled device, which owns all of the text. None shares the text out by the recipe.
    Raises:
        DataError, ModelError: as the text trainer.
    """
    corpus = corpora.load(recipe.data, recipe_dir, cache_dir, derive(root(recipe.seed), "data"))
    return StatisticsTrainer(statistics_tokenizer(recipe, recipe_dir), corpus if device is None else corpus.of(device))


class StatisticsTrainer:
    """Counts the text of devices. It has the engine's ``Trainer`` port, and an update without training."""

    def __init__(self, tokens: Tokens, corpus: Corpus) -> None:
        self._tokens, self._corpus = tokens, corpus
        self._known: dict[DeviceId, DeviceTextCounts] = {}

    @cached_property
    def spec(self) -> Spec:
        """The layout of the statistics."""
        return statistics_layout(self._tokens.size)

    @cached_property
    def _places(self) -> dict[str, slice]:
        return {segment.name: slice(segment.start, segment.stop) for segment in self.spec.segments}

    def initial(self) -> Vector:
        """Return zeros, float32[d]."""
        return np.zeros(self.spec.dim, np.float32)

    def devices(self) -> Sequence[DeviceId]:
        """List the devices, sorted."""
        return self._corpus.devices

    def fit(self, request: FitRequest) -> Update:
        """Return the statistics of a device's text. Raises DataError(E-DEVICE-DATA) for a device without a token.

        As long as no vocabulary was released, which is so after a round that was abandoned, it is the first part again.
        """
        text, x = self._text(request.device), np.zeros(self.spec.dim, np.float32)
        mean = request.params[self._places["vocabulary"]]
        parts = second_statistics(text, mean) if mean.any() else first_statistics(text)
        for name, part in parts.items():
            x[self._places[name]] = part
        return Update(x, {"loss_first": 0.0, "loss_last": 0.0}, 1.0)

    def evaluate(self, device: DeviceId, params: Vector) -> HeldOut:
        """Measure the released vocabulary as a model of single tokens on all text of a device, in nats.

        A hundredth of its mass is spread evenly, so no token has probability 0. Simulations alone ask for it.
        """
        counts = self._text(device).halves.sum(axis=0)
        vocabulary = np.maximum(params[self._places["vocabulary"]].astype(np.float64), 0.0)
        shares = vocabulary / vocabulary.sum() if vocabulary.sum() > 0 else np.full(len(counts), 1.0 / len(counts))
        return HeldOut(-float(counts @ np.log(0.99 * shares + 0.01 / len(counts))), int(counts.sum()))

    def sizes(self) -> Mapping[str, float]:
        """Return the size of the statistics."""
        return {"parameters": self.spec.dim, "trainable": self.spec.dim, "memory_bytes": 1e8}

    def _text(self, device: DeviceId) -> DeviceTextCounts:
        if device not in self._known:
            self._known[device] = self._counted(device)
        return self._known[device]

    def _counted(self, device: DeviceId) -> DeviceTextCounts:
        documents = [d.text for d in self._corpus.documents(device) if d.text]
        encoded = self._tokens.encode(documents)
        lengths = np.array([len(ids) for ids in encoded], np.int64)
        if not lengths.sum():
            raise DataError("E-DEVICE-DATA", f"{device} has no text to count.", "check its data.")
        ids = np.concatenate(encoded).astype(np.uint64)
        place = self._places["vocabulary"]
        buckets = place.stop - place.start
        if self._tokens.size > VOCABULARY:
            ids = (ids * np.uint64(_MULTIPLIER) % np.uint64(2**32)) % np.uint64(buckets)
        middle = (len(ids) + 1) // 2
        halves = [np.bincount(half.astype(np.int64), minlength=buckets) for half in (ids[:middle], ids[middle:])]
        return DeviceTextCounts(lengths, np.array(halves, np.float64))
