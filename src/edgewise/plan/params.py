"""What each part of the catalogue is told in a recipe: one model per part. Unknown keys are errors."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from edgewise.strategies.zeroth_order import FEWEST, MOST


class Params(BaseModel):
    """Base of all parameter models: no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ClipParams(Params):
    """Scale the update down to an L2 norm of at most ``l2``."""

    l2: float = Field(gt=0)


class ClampParams(Params):
    """Cut every coordinate to [-linf, linf]."""

    linf: float = Field(gt=0)


class WeighParams(Params):
    """Weight contributions by their amount of training tokens, w = min(tokens, cap) / cap."""

    cap: float = Field(65536.0, gt=0, le=2.0**24, description="tokens above which a device counts no more")


class SegmentsParams(Params):
    """Only some layers travel; with a cycle, and are trained, in turn."""

    names: list[str] = Field(["*"], min_length=1, description="name patterns of trainable tensors")
    cycle: int = Field(1, ge=1, description="groups of about equal size; round r moves and trains group r mod cycle")


class RotateParams(Params):
    """A shared random rotation: no coordinate stands out afterwards."""

    block: int = Field(32768, ge=64, le=2**20, description="coordinates that are mixed; a power of two")


class RandomKParams(Params):
    """Random coordinates, the same on all devices of a round or not."""

    fraction: float = Field(gt=0, le=1)
    unbiased: bool = Field(True, description="scale by d/k so that the mean is right; false inside feedback")
    most: float = Field(0.0, ge=0, description="largest factor of that scaling, from 1; 0 = no limit")
    each: bool = Field(False, description="every device draws its own: less noise in the mean, but no blind sum")


class SharedTopKParams(Params):
    """The coordinates that were largest in the last release, and some new ones; the same on all devices of a round."""

    fraction: float = Field(gt=0, le=1)
    explore: float = Field(0.2, gt=0, le=1, description="share of them that is drawn at random among the others")


class TopKParams(Params):
    """Each device's largest coordinates."""

    fraction: float = Field(gt=0, le=1)
    chunk: int = Field(0, ge=0, le=2**24, description="choose in each run of this many coordinates; 0 = in all of them")


class LowRankParams(Params):
    """Matrices as products of two thin factors."""

    rank: int = Field(4, ge=1)
    method: Literal["power", "svd"] = Field(
        "power", description="one step per round from where the last ended (inside feedback), or the best factors"
    )


class SketchParams(Params):
    """A count sketch of the update, the same linear map on all devices; the server finds what is large in it."""

    ratio: float = Field(gt=1, description="coordinates per cell of the sketch: how many times smaller it is")
    rows: int = Field(5, ge=1, le=15, description="independent hashes; odd")
    keep: float = Field(0.01, gt=0, le=1, description="share of coordinates released per round at most")
    momentum: float = Field(0.0, ge=0, lt=1, description="in the sketch, on the server; not together with fedavgm's")
    floor: float = Field(1.0, ge=0, le=4, description="in units of the collision noise; 0 = as published, diverges")


class QuantizeParams(Params):
    """Few bits per coordinate."""

    bits: int | None = Field(None, ge=1, le=16, description="block 1-8, shared 1-16 (default 8); eden 1-4; others: one")
    grid: Literal["block", "shared", "eden", "sign", "pair", "nf4"] = Field(
        "block",
        description="unbiased: block (a scale per block travels), shared (one public grid), eden (after rotate); "
        "biased: sign, pair (two magnitudes), nf4",
    )
    block: int | None = Field(None, ge=8, le=65536, description="coordinates per scale (default 64); not shared, eden")


class MixedParams(Params):
    """Few bits per coordinate, more of them for the layers where they help most; inside feedback."""

    bits: float = Field(3.25, ge=0.1, le=8.5, description="average per coordinate, scales included")


class FeedbackParams(Params):
    """Error feedback around all stages after it: what was not sent is remembered on the device and added next time."""

    decay: float = Field(1.0, gt=0, le=1, description="factor on the memory per absent round (ef14)")
    forget_after: int | None = Field(
        None, ge=1, description="absent rounds after which the memory is dropped (ef14; 10 where not given)"
    )
    residual: Literal["bfloat16", "int8", "float32"] | None = Field(
        None, description="how the memory is stored (ef14: bfloat16 where not given; the others: float32)"
    )
    form: Literal["ef14", "ef21", "ef21_sgdm"] = Field(
        "ef14", description="residual on the device, or mirrors on device and server, without or with momentum"
    )
    eta: float | None = Field(None, gt=0, le=1, description="momentum of ef21_sgdm (0.1 where not given)")


class WrapParams(Params):
    """Integers into the ring of residues modulo 2^bits."""

    bits: int | None = Field(None, ge=2, le=32, description="the smallest ring that holds the sum where not given")


class GroupedParams(Params):
    """Masked sums of several random groups, and a robust rule between their means."""

    groups: int = Field(ge=3, description="into which a cohort is dealt; above twice byzantine")
    byzantine: int = Field(1, ge=1, description="devices of a cohort that may send anything")
    rule: Literal["median", "trimmed_mean"] = Field("median", description="between the groups' means")


class NoiseParams(Params):
    """Gaussian noise of ``z`` times the sensitivity on the total."""

    z: float = Field(gt=0)


class NoParams(Params):
    """No parameters."""


class ServerLr(Params):
    """Plain averaging."""

    lr: float = Field(1.0, gt=0, description="server learning rate; 1 = the average itself")


class MomentumParams(Params):
    """Server momentum."""

    lr: float = Field(0.3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = Field(False, description="look-ahead; a good pair then is lr 0.4, momentum 0.8")


class AdaptiveParams(Params):
    """Adaptive server optimizers."""

    lr: float = Field(1e-2, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    tau: float = Field(1e-3, gt=0)


class AdagradParams(Params):
    """Adagrad on the server: no momentum."""

    lr: float = Field(3e-2, gt=0)
    tau: float = Field(1e-3, gt=0)


class ProxParams(Params):
    """FedProx: devices are pulled towards the round's model."""

    mu: float = Field(0.01, gt=0)
    lr: float = Field(1.0, gt=0)


class ZerothOrderParams(Params):
    """Losses along seeded directions instead of gradients; only the directions' coefficients travel."""

    seeds: int = Field(4096, ge=FEWEST, le=MOST, description="directions; 4 bytes of each travel")
    eps: float = Field(
        5e-4, gt=0, description="distance of the two compared models from the current one, per parameter"
    )
    lr: float = Field(1.0, gt=0, description="server learning rate; 1 = the average itself")
