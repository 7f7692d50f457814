"""Make the trainer of a recipe's recordings. It has the engine's ``Trainer`` port.

trainer = make(recipe, recipe_dir, cache_dir, sessions)
trainer.initial()              # float32[d], trained on the vendor's test rig
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load
from torch import Tensor, nn

from edgewise.codecs.wire.tokens import TokenCodec
from edgewise.core import vector
from edgewise.core.errors import DataError, ModelError, TrainingError
from edgewise.core.foreign import foreign
from edgewise.core.frame import LocalRule
from edgewise.core.keys import Key, derive, root
from edgewise.core.training import POOLED, DeviceId, FitRequest, HeldOut, Note, Update
from edgewise.core.vector import Array, Vector
from edgewise.engine.split_rest import Sessions
from edgewise.learn.computing import computing
from edgewise.learn.flat import Flat
from edgewise.learn.own_work import HELD
from edgewise.learn.seeded import seeded
from edgewise.learn.text.cache import write_atomically
from edgewise.learn.torch_task import TorchTrainer
from edgewise.learn.train import fit
from edgewise.learn.vibration import crossing, recordings, windows
from edgewise.learn.vibration.faults import measured
from edgewise.learn.vibration.network import CHANNELS, VibrationNet
from edgewise.learn.vibration.shards import BalancedShard
from edgewise.plan.recipe.recipe import Recipe

TRAINING = "training"  # kind of a ``Note`` about a round
AT_ONCE = 256  # windows of a forward pass
KEPT = 4  # models whose scores of the test are remembered
TRAINED = {  # the parts of the model that are in the run's vector, by ``vibration.train``
    "encoder": ("encoder.", "head."),
    "layers": ("server.",),
    "end_to_end": ("encoder.", "server."),
    "whole": ("encoder.", "server."),
}
OF_BASE = (  # settings that the vendor's model depends on
    "rig", "healthy", "window", "hop", "share", "gap", "validation", "width", "layers", "heads", "base_steps",
    "base_lr", "base_batch", "head_steps",
)  # fmt: skip


def make(recipe: Recipe, recipe_dir: Path, cache_dir: Path, sessions: Sessions) -> VibrationTrainer:
    """Make the trainer of a recipe's recordings.

    Args:
        recipe_dir: the folder where ``data.path`` and ``vibration.encoder`` start.
        cache_dir: folder for the vendor's model. Processes of a run share it. It may be deleted between runs.
        sessions: keeps the activations that nodes have sent, as the edge servers of their factories do.
    Raises:
        DataError: E-DATA-* as ``recordings`` and ``windows``. ModelError: E-MODEL for an encoder of another model.
    """
    path = recipe.data.path if isinstance(recipe.data.path, str) else recipe.data.path[0]
    read = recordings.read(recipe_dir / path, recipe.vibration)
    encoder = None
    if recipe.vibration.encoder:
        at = recipe_dir / recipe.vibration.encoder
        with foreign(ModelError, "E-MODEL", f"the encoder {at}", "name the file of an encoder in vibration.encoder."):
            encoder = load(at.read_bytes())
    return VibrationTrainer(recipe, read, encoder, cache_dir, sessions)


class VibrationTrainer(TorchTrainer):
    """The trainer of a model of vibration, or of a part of it.

    A model is measured on the later parts of all factories' recordings, of which nobody trains on any.
    """

    def __init__(
        self,
        recipe: Recipe,
        read: recordings.Recordings,
        encoder: dict[str, Array] | None,
        cache_dir: Path,
        sessions: Sessions,
    ) -> None:
        section, key = recipe.vibration, derive(root(recipe.seed), "vibration")
        self._section, self._kind, self._sessions = section, section.train, sessions
        self.names, self._dealt = read.names, windows.dealt(read, section)
        self._fingerprint = hashlib.sha256(read.fingerprint.encode() + _digest(encoder)).hexdigest()
        self._codec = TokenCodec(section.activations, CHANNELS)
        with seeded(derive(key, "model")):
            net = VibrationNet(section, len(self.names))
        self._prepare_base(net, recipe, read.fingerprint, cache_dir, key)
        if encoder is not None:
            _write_encoder(net, encoder)
        front = TRAINED[self._kind]
        for name, p in net.named_parameters():
            p.requires_grad_(name.startswith(front))
        flat = Flat([(name, p) for name, p in net.named_parameters() if name.startswith(front)])
        self.link = crossing.VibrationLink(self._codec, TokenCodec(section.gradients, CHANNELS), len(self.names))
        self._factories = sorted(self._dealt.tests)
        of_nodes = self._kind in ("encoder", "end_to_end")
        devices = sorted(self._dealt.nodes) if of_nodes else self._factories
        self._shards: dict[DeviceId, BalancedShard] = {}
        self._sent: dict[DeviceId, int] = {}
        super().__init__(net, self._loss, self._made_shard, recipe.training, devices=devices, flat=flat)
        tests = [self._dealt.tests[factory] for factory in self._factories]
        self._test = windows.Windows.joined(tests)
        self._test_of = np.repeat(self._factories, [len(test.label) for test in tests])
        self._scores: dict[bytes, Array] = {}
        self._notes: list[Note] = []
        self._holding = False

    def _loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, float]:
        """Return the mean cross-entropy in nats, and the number of windows."""
        x, label = batch
        return nn.functional.cross_entropy(self._logits(x, label), label), float(len(label))

    def _logits(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Compute the logits of a batch: of activations where layers train, else of windows."""
        net = self.model
        if self._kind == "layers":
            return net.server(x)
        h_BTC = net.encoder(x)
        if self._kind == "encoder":
            return net.head(h_BTC)
        if self._kind == "end_to_end" and label is not None and torch.is_grad_enabled():
            h_BTC = self.link.cross(h_BTC, label)
        return net.server(h_BTC)

    # -- the vendor's model -------------------------------------------------------------------------------------

    def _prepare_base(self, net: VibrationNet, recipe: Recipe, fingerprint: str, cache_dir: Path, key: Key) -> None:
        """Train the whole model on the rig, then the nodes' head, or take both from the cache."""
        section = self._section
        facts = [fingerprint, {k: getattr(section, k) for k in OF_BASE}, key.hex(), torch.__version__]
        at = cache_dir / f"vibration-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.f32"
        flat = Flat(list(net.named_parameters()))
        if at.is_file() and at.stat().st_size == 4 * flat.spec.dim:
            flat.write(np.fromfile(at, np.float32))
            return
        shard = BalancedShard(self._dealt.rig.x, self._dealt.rig.label)
        training = recipe.training.model_copy(
            update={"optimizer": "adamw", "batch": section.base_batch, "accumulate": 1, "weight_decay": 0.0}
        )
        for steps, head in ((section.base_steps, False), (section.head_steps, True)):
            names = [s.name for s in flat.spec.segments if s.name.startswith("head.") == head]
            rule = LocalRule(steps=steps, lr=section.base_lr, segments=tuple(names))
            start = flat.read()

            def loss(model: nn.Module, batch: tuple[Tensor, Tensor], head: bool = head) -> tuple[Tensor, float]:
                h_BTC = model.encoder(batch[0])
                logits = model.head(h_BTC.detach()) if head else model.server(h_BTC)
                return nn.functional.cross_entropy(logits, batch[1]), float(len(batch[1]))

            if steps:
                with computing("the rig"):
                    batches = shard.batches(steps, training, derive(key, "base", str(head)))
                    found = fit(net, loss, batches, flat, start, rule, training, key)
                flat.write(start + found.x)
        write_atomically(at, lambda f: f.write(bytes(vector.to_bytes(flat.read()))))

    # -- data ---------------------------------------------------------------------------------------------------

    def _made_shard(self, device: DeviceId) -> BalancedShard:
        """Return the examples of a device: windows, or the activations that its nodes have sent."""
        if device not in self._shards:
            if device not in self._devices and device != POOLED:
                raise DataError("E-DEVICE-DATA", f"there is no device {device!r:.60}.")
            if device == POOLED:
                nodes = sorted(self._dealt.nodes)
            else:
                nodes = [device] if device in self._dealt.nodes else self._dealt.nodes_of(device)
            if self._kind == "layers":
                messages = [one for node in nodes for one in self._activations(node)]
                self._sent[device] = sum(map(len, messages))
                self._shards[device] = BalancedShard(*crossing.read(messages, self._codec, len(self.names)))
            else:
                held = windows.Windows.joined(self._dealt.nodes[node].local for node in nodes)
                self._shards[device] = BalancedShard(held.x, held.label)
        return self._shards[device]

    def _activations(self, node: DeviceId) -> list[bytes]:
        """Return the messages with a node's activations. They cross where its edge server has none."""
        state = {n: p.detach().numpy() for n, p in self.model.encoder.named_parameters()}
        version = hashlib.sha256(self._fingerprint.encode() + _digest(state)).digest()
        found = self._sessions.cached(node, version)
        if found is None:
            self.model.eval()
            with computing(node):
                sent = self._dealt.nodes[node].sent
                found = crossing.written(self.model.encoder, sent, self._codec, len(self.names))
            self._sessions.cache(node, version, found)
        return found

    # -- training and measures ----------------------------------------------------------------------------------

    def fit(self, request: FitRequest) -> Update:
        """Train a device, and note what crossed to its edge server. Raises as ``TorchTrainer.fit``."""
        self.link.begin(derive(request.key, "link"))
        update = super().fit(request)
        crossed: dict[str, int] = {}
        if self._kind == "end_to_end":
            crossed = {"crossed_up": self.link.up, "crossed_down": self.link.down}
        elif request.device in self._sent:
            crossed = {"activation_bytes": self._sent[request.device]}
        if request.device != POOLED:
            self._notes += [Note(TRAINING, request.round, request.device, k, float(v)) for k, v in crossed.items()]
        return update

    @contextmanager
    def holding_back(self) -> Iterator[None]:
        """Train inside without the last fifth of each class of a device, and measure on them."""
        with super().holding_back():
            self._holding = True
            try:
                yield
            finally:
                self._holding = False

    def evaluate(self, device: DeviceId, params: Vector) -> HeldOut:
        """Measure the loss on the test of a device's factory, and note the measures of ``faults`` on all tests.

        ``own_accuracy`` is that of its own factory's test alone. A run of encoders is measured with the vendor's layers
        behind the encoder, and ``head_accuracy`` is that of the nodes' head.

        Raises:
            DataError: E-DEVICE-DATA for a device that the file does not have.
            TrainingError: E-NAN, E-TRAIN as ``fit``.
        """
        if device not in self._devices:
            raise DataError("E-DEVICE-DATA", f"there is no device {device!r:.60}.")
        if self._holding:
            return super().evaluate(device, params)
        logits, trained = self.scores(params)
        label, own = self._test.label, self._test_of == self._dealt.factory.get(device, device)
        found = measured(logits.argmax(1), label, self.names, self._section)
        found["own_accuracy"] = float((logits.argmax(1) == label)[own].mean())
        if self._kind == "encoder":
            found["head_accuracy"] = float((trained.argmax(1) == label).mean())
        self._notes += [Note(HELD, None, device, name, value) for name, value in found.items()]
        logp = torch.log_softmax(torch.from_numpy(trained[own]).double(), 1)
        nll = nn.functional.nll_loss(logp, torch.from_numpy(label[own]), reduction="sum")
        return HeldOut(float(nll), int(own.sum()))

    def scores(self, params: Vector) -> tuple[Array, Array]:
        """Compute the logits of all tests, float32[n, K]: of the joined model, and of the part that trains.

        Activations are rounded as on the way to the edge server. Those of the last models are remembered.
        """
        digest = hashlib.sha256(vector.to_bytes(params)).digest()
        if digest not in self._scores:
            found = []
            with computing("the test"), torch.no_grad():
                self.flat.write(params)
                net = self.model.eval()
                for at in range(0, len(self._test.label), AT_ONCE):
                    h_BTC = net.encoder(torch.from_numpy(self._test.x[at : at + AT_ONCE]))
                    if not torch.isfinite(h_BTC).all():
                        fix = "lower training.lr or the server's step."
                        raise TrainingError("E-NAN", "the model's activations are not finite.", fix)
                    raw = self._codec.encode(h_BTC.flatten(0, 1).numpy())
                    read = torch.from_numpy(self._codec.decode(raw, h_BTC.shape[0] * h_BTC.shape[1]))
                    joined = net.server(h_BTC if self._kind == "whole" else read.view(h_BTC.shape))
                    found.append((joined, net.head(h_BTC) if self._kind == "encoder" else joined))
            both = (torch.cat([one[0] for one in found]).numpy(), torch.cat([one[1] for one in found]).numpy())
            if not all(np.isfinite(one).all() for one in both):
                raise TrainingError(
                    "E-NAN", "the model's scores are not finite.", "lower training.lr or the server's step."
                )
            while len(self._scores) >= KEPT:
                del self._scores[next(iter(self._scores))]
            self._scores[digest] = both
        return self._scores[digest]

    def noted(self) -> list[Note]:
        """Return the measures and the bytes at the edge since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def describe(self) -> dict[str, Any]:
        """Describe the model, its parameters, each device's number of windows, and the bytes of the raw data."""
        sizes = self.sizes()
        nodes = {n: len(self._dealt.nodes[n].sent.label) for n in sorted(self._dealt.nodes)}
        held = nodes if self._kind in ("encoder", "end_to_end") else {
            f: sum(nodes[n] for n in self._dealt.nodes_of(f)) for f in self._factories
        }  # fmt: skip
        return {
            "model": "VibrationNet", "hardware": self.processor.type,
            "parameters": int(sizes["parameters"]), "trainable": int(sizes["trainable"]),
            "fingerprint": self._fingerprint, "faults": list(self.names), "devices": held,
            "factories": dict(self._dealt.factory), "raw_bytes": self._dealt.raw_bytes,
        }  # fmt: skip


def _digest(arrays: dict[str, Array] | None) -> bytes:
    """Compute a digest of named arrays."""
    digest = hashlib.sha256()
    for name, x in sorted((arrays or {}).items()):
        digest.update(f"{name}\0{x.dtype}\0{x.shape}\0".encode() + np.ascontiguousarray(x).tobytes())
    return digest.digest()


def _write_encoder(net: VibrationNet, given: dict[str, Array]) -> None:
    """Put given weights into the encoder. Raises ModelError(E-MODEL) for those of another encoder."""
    own = dict(net.encoder.named_parameters())
    if {n: tuple(p.shape) for n, p in own.items()} != {n: x.shape for n, x in given.items()}:
        what = "the file that vibration.encoder names has other tensors than the encoder of this recipe."
        raise ModelError("E-MODEL", what, "name the encoder of a run with the same settings.")
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(torch.from_numpy(given[name].astype(np.float32)))
