"""Laws of all posts of the catalogue and of privacy words: each adds the noise that it claims and no other."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from numpy.typing import NDArray

from edgewise.core.errors import CompositionError
from edgewise.core.keys import Turn, root
from edgewise.core.memory import Memory, flat
from edgewise.core.pipeline import Pipeline, pipeline
from edgewise.core.space import Quorum, Space, Total
from edgewise.core.stage import Post
from edgewise.merges.plain import plain_sum
from edgewise.plan.catalogue import BUILT_IN
from edgewise.privacy.clip import clip
from edgewise.privacy.matrix import BltMatrix, correlated_noise
from edgewise.privacy.noise import noise

DIM = 20_000
TURN = Turn(0, root(1), root(2))
START = Space(DIM, Quorum(2, 16), head=("loss",), head_l2=3.0)
# One of each, by the name that a recipe has for it; add a line for a new post.
POSTS: dict[str, Post] = {"noise": noise(0.5)}
OF_PRIVACY_WORDS: dict[str, Post] = {"correlated_noise": correlated_noise(0.5, BltMatrix((), (), 4, 1, 4))}
ALL = {**POSTS, **OF_PRIVACY_WORDS}
every = pytest.mark.parametrize("post", ALL.values(), ids=ALL)


def pipe_of(*posts: Post) -> Pipeline:
    return pipeline(START, [clip(4.0)], plain_sum(), posts)


def applied(post: Post, x: NDArray[np.float64], entropy: int, round: int = 0) -> tuple[NDArray[np.float64], Memory]:
    total: Total = pipe_of(post).totals[0]
    return post.apply(x, total, round, root(entropy), post.init(total, x.size))


X = np.linspace(-1.0, 1.0, DIM + 1)  # body and head


@every
def test_the_noise_has_the_promised_size_in_every_coordinate(post: Post) -> None:
    """The noise on body and head has the standard deviation that ``infer`` says, and a mean of zero."""
    pipe = pipe_of(post)
    promised = pipe.total.noise_std
    assert promised > 0.5 * pipe.totals[0].sensitivity * (1 - 1e-9)
    added = applied(post, X, 3)[0] - X
    assert added.std() == pytest.approx(promised, rel=0.03)
    assert abs(added.mean()) < 5 * promised / sqrt(DIM)
    heads = [float((applied(post, X[-100:], i)[0] - X[-100:])[-1]) for i in range(20)]
    assert np.std(heads) > promised / 3


@every
def test_noise_is_of_its_entropy_alone(post: Post) -> None:
    one, again, other = (applied(post, X, seed)[0] - X for seed in (3, 3, 4))
    assert one.tobytes() == again.tobytes()
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.05
    elsewhere = applied(post, X + 1000.0, 3)[0] - (X + 1000.0)
    np.testing.assert_allclose(elsewhere, one, atol=1e-6 * float(np.abs(one).max()) + 1e-9)


@every
def test_what_goes_in_stays_as_it_is(post: Post) -> None:
    total = pipe_of(post).totals[0]
    x, memory = X.copy(), post.init(total, X.size)
    before = {k: v.copy() for k, v in flat(memory).items()}
    _, after = post.apply(x, total, 0, root(1), memory)
    assert x.tobytes() == X.tobytes()
    assert {k: v.tobytes() for k, v in flat(memory).items()} == {k: v.tobytes() for k, v in before.items()}
    assert {k: (v.shape, v.dtype) for k, v in flat(after).items()} == {
        k: (v.shape, v.dtype) for k, v in flat(memory).items()
    }


@every
def test_two_posts_draw_for_themselves(post: Post) -> None:
    """With one random stream for both posts the standard deviation would double. Variances should add."""
    pipe = pipe_of(post, post)
    payload, _ = pipe.encode(np.zeros(DIM, np.float32), {"loss": 0.0}, 1.0, Memory(), TURN)
    out = pipe.release(pipe.add(pipe.start_sum(), payload, TURN), TURN, root(3), pipe.start_memory())[0]
    assert out.mean.std() == pytest.approx(pipe_of(post).total.noise_std * sqrt(2.0), rel=0.03)
    assert pipe.total.noise_std == pytest.approx(pipe_of(post).total.noise_std * sqrt(2.0), rel=1e-3)


@every
def test_noise_without_a_bound_is_refused(post: Post) -> None:
    with pytest.raises(CompositionError, match="E-NOISE-NOCLIP"):
        pipeline(START, [], plain_sum(), [post])


@every
def test_what_it_says_of_itself(post: Post) -> None:
    before, after = pipe_of(post).totals
    assert post.says(before, after)


def test_every_post_of_the_catalogue_is_under_these_laws() -> None:
    assert set(POSTS) == set(BUILT_IN.posts), "add the new post to POSTS"
