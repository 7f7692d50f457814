"""A server that a script drives, round by round: ``edgewise.Server``."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Condition
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np

from edgewise.apps.runs.rounds import Round, round_of_event
from edgewise.apps.server import given, submission
from edgewise.apps.server.start import HttpServer, Tls
from edgewise.apps.server.submission import OWN
from edgewise.apps.server.submit import (
    StagedRun,
    check_submission,
    prepared_submission,
    stage_submission,
    submission_from_values,
    submission_of_vector,
)
from edgewise.core import events
from edgewise.core.errors import REGISTRY, ModelError, RecipeError, RoundError, TransportError
from edgewise.core.vector import Spec, Vector
from edgewise.drivers import extension_packages
from edgewise.drivers.fleet import members, served
from edgewise.drivers.fleet.members import Grant
from edgewise.drivers.fleet.served import ServedRun
from edgewise.plan.catalogue import Catalogue
from edgewise.plan.recipe import loading
from edgewise.plan.recipe.recipe import Recipe

FOLDER = "edgewise-server"
LOOK_S = 0.25  # wait between two checks for devices, for the end of a run, and for its turn
Metrics = Callable[[Round], Mapping[str, float]]


class Server:
    """A federation's server in this process, for a script that plays a run round by round.

        with edgewise.Server("recipe.toml", model=module, listen="0.0.0.0:8443",
                             public_url="https://federation.example:8443") as server:
            print(server.token(uses=5))                    # devices enrol with it
            server.wait_for(devices=5)
            for round in server:                           # a round is played when the loop asks for it
                print(round, round.metrics)

    `edgewise run submit` runs the same recipe on `edgewise serve`. The same script in the same folder continues its
    run, also after a crash.

    Args:
        recipe: a recipe's file.
        model: a torch module. Its parameters with ``requires_grad`` are trained by scripts that have the same module.
            Or a folder or "bundled", as ``model.base``. None: the recipe's model.
        folder: the folder of the server's keys, database and runs.
        listen: HOST:PORT. Port 0 takes a free one.
        public_url: the URL by which devices reach the server. Its name goes into the certificate.
        certificate, key: your own certificate and key (PEM). Without them the server makes its own.
        stages, merge, strategy: replace the recipe's. Tables, names, parts of the catalogue, or ``functools.partial``
            of a part with its keys.
        metrics: a function that is called with each round and returns numbers by name. They are added to
            ``Round.metrics``. It measures the released model on this machine's data, so it spends no epsilon. Numbers
            of devices are declared in the recipe as ``[[metric]]``, with bounds.
        callbacks: called with each round after ``metrics``.
        extensions: modules of installed packages with your own parts. Devices need these packages too (`edgewise
            explain extend`). Modules of parts that are given as objects are found by themselves.
        tags: only devices with all these tags take part.
    Attributes:
        url: the URL by which devices reach the server.
        recipe: the recipe as it is played.
        run: the run's id; empty before it begins.
    Raises:
        RecipeError: as ``edgewise check``, and E-EXTENSION for parts that devices do not have.
        ModelError: E-MODEL, E-LAYOUT.
        StoreError(E-LEASE): while another server works in the folder.
        TransportError: E-LISTEN, E-REQUEST, E-IDENTITY.
    """

    def __init__(
        self,
        recipe: str | Path,
        model: Any = None,
        *,
        folder: str | Path = FOLDER,
        listen: str = "127.0.0.1:0",
        public_url: str = "",
        certificate: str | Path | None = None,
        key: str | Path | None = None,
        stages: Sequence[Any] | None = None,
        merge: Any = None,
        strategy: Any = None,
        metrics: Metrics | None = None,
        callbacks: Sequence[Callable[[Round], object]] = (),
        extensions: Sequence[str] = (),
        tags: Sequence[str] = (),
    ) -> None:
        given.check_given_functions("metrics", () if metrics is None else (metrics,))
        given.check_given_functions("callbacks", callbacks)
        self._metrics, self._callbacks, self._tags = metrics, tuple(callbacks), tuple(tags)
        own = {*extensions, *given.given_modules((*(stages or ()), merge, strategy))}
        catalogue = extension_packages.catalogue(extension_packages.installed_packages(own))
        self.recipe = _recipe(Path(recipe), model, stages, merge, strategy, catalogue)
        self._prepared = _prepared(self.recipe, Path(recipe).parent, model, self._tags, catalogue)
        self._spec = Spec.of([(n, s, d) for n, s, d in self._prepared.wanted.spec])
        host, port = _address(listen)
        name = urlsplit(public_url).hostname
        names = tuple(dict.fromkeys([*([name] if name else []), *(() if host in ("0.0.0.0", "::") else (host,))]))
        self._folder = Path(folder)
        self._turns, self._events = _Turns(""), SimpleQueue[tuple[str, events.AnyEvent]]()
        if (certificate is None) != (key is None):
            raise TransportError("E-REQUEST", "certificate and key belong together.", "give both, or neither.")
        tls = Tls(names)
        if certificate is not None and key is not None:
            tls = Tls(names, Path(certificate), Path(key))
        tell: Callable[[str, events.AnyEvent], None] = lambda run, event: self._events.put((run, event))  # noqa: E731
        self._serving = HttpServer(
            self._folder, host, port, tls, tell=tell, turn=self._turns.may, public_url=public_url
        )
        self.run = self._begun()
        self._turns.watch(self.run or None)
        self.url = public_url or f"https://{names[0] if names else '127.0.0.1'}:{self._serving.port}"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Server({self.recipe.name!r}, {self.url})"

    def close(self) -> None:
        """Stop serving. An unfinished run continues when the script runs again in the same folder."""
        self._serving.close()

    def token(self, uses: int = 1, tags: Sequence[str] = (), approved: bool = True, expires_in_s: float = 3600) -> str:
        """Make an enrolment token for ``uses`` devices. Anybody who has it can enrol, so hand it over in private.

        Args:
            tags: the tags of devices that enrol with it.
            approved: their devices take part at once. Otherwise an operator approves each.
        """
        return self._serving.token(Grant("device", tuple(tags), uses, approved, expires_in_s))

    def devices(self) -> list[str]:
        """List the names of the approved devices with the tags of this server's run."""
        with self._serving.service.database.read() as c:
            return sorted(submission.population(members.listed(c, members.APPROVED), self._tags))

    def wait_for(self, devices: int, timeout_s: float | None = None) -> None:
        """Wait until that many devices are enrolled and approved. Raises RoundError(E-ROUND) after ``timeout_s``."""
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while (here := len(self.devices())) < devices:
            if until_s is not None and time.monotonic() > until_s:
                what = f"{here} of {devices} devices are enrolled after {timeout_s:g} s."
                raise RoundError("E-ROUND", what, "start the others, or wait longer.")
            time.sleep(LOOK_S)

    @property
    def spec(self) -> Spec:
        """The layout of the trained parameters."""
        return self._spec

    def start_from(self, params: Vector) -> None:
        """Let the next loop over this server play a run that begins with these values of the trained parameters.

        A run that began with them in this folder and is not finished is continued. Call it between two loops.

        Args:
            params: float32[d] in the layout of ``spec``.
        Raises:
            ModelError(E-LAYOUT): the vector has another length or type.
        """
        if params.dtype != np.float32 or params.shape != (self._spec.dim,):
            what = f"the values are {params.dtype} of shape {params.shape}"
            raise ModelError("E-LAYOUT", f"{what}, and the run has float32 of ({self._spec.dim},).", "see server.spec.")
        self._prepared = submission_from_values(self._prepared, params)
        self.run = self._begun()
        self._turns.watch(self.run or None)

    def __iter__(self) -> Iterator[Round]:
        """Play the run from where it is, one round for each turn of the loop.

        The devices that are approved when the run begins take part. A failed run is continued when the loop begins
        again.

        Raises:
            RecipeError: as ``submission.begin``, E-QUORUM without devices.
            RoundError: or another error of the run, with its code.
        """
        run = self._begin()
        folder, lost = submission.folder(self._serving.service, run.run), dict[str, str]()
        self._turns.allow()
        try:
            while (event := self._next(run.run)) is not None:
                if isinstance(event, events.Lost):
                    lost[event.device] = event.code
                if isinstance(event, events.RoundFinished):
                    finished, lost = round_of_event(event, lost, self._spec, folder), {}
                    if self._metrics is not None:
                        finished.metrics.update(given.check_given_figures(self._metrics(finished), finished.metrics))
                    for callback in self._callbacks:
                        callback(finished)
                    yield finished
                    self._turns.allow()
        finally:
            self._turns.hold()
        self._over(run.run)

    def cancel(self) -> None:
        """End the run for good. Its models stay in the folder."""
        if self.run:
            self._serving.hosting.ask(self.run, served.CANCELLED)

    @property
    def run_dir(self) -> Path:
        """The folder of the run. `edgewise report`, `export` and `audit` work on it as on a simulation."""
        return submission.folder(self._serving.service, self.run)

    def _begin(self) -> ServedRun:
        hosting = self._serving.hosting
        if self.run:
            known = self._state(self.run)
            if known.state in (served.RUNNING, served.PAUSED, served.FAILED):
                return hosting.ask(self.run, served.RUNNING)
        stage_submission(self._serving.service.staging, self._prepared)
        self._turns.watch("")
        begun = hosting.submit(self._prepared.wanted, self._maker)
        self.run = begun.run
        self._turns.watch(self.run)
        return begun

    def _next(self, run: str) -> events.AnyEvent | None:
        """Return the next event of a run. None: the run is no longer played, and all its events were returned."""
        while True:
            over = self._state(run).state != served.RUNNING
            try:
                whose, event = self._events.get(timeout=LOOK_S)
            except Empty:
                if over:
                    return None
                continue
            if whose == run:
                return event

    def _over(self, run: str) -> None:
        found = self._state(run)
        if found.state == served.FAILED:
            reason = found.why or ""
            code, _, why = reason.partition(": ")
            known = code if code in REGISTRY else "E-SERVER"
            raise RoundError(known, why if code in REGISTRY else reason, "see the server's log.")

    def _state(self, run: str) -> ServedRun:
        with self._serving.service.database.read() as c:
            return served.find(c, run)

    @property
    def _maker(self) -> str:
        """The name under which the script makes its run, with a digest of its settings.

        The run's row has it, so no crash comes between the run and the memory of it.
        """
        asked = hashlib.sha256(msgspec.json.encode(self._prepared.wanted, order="deterministic")).hexdigest()
        return f"script {asked[:16]}"

    def _begun(self) -> str:
        """Return the latest run that this script made in this folder. Empty where there is none."""
        with self._serving.service.database.read() as c:
            return next((one.run for one in reversed(served.listed(c)) if one.made_by == self._maker), "")


class _Turns:
    """Let one run play a round for each turn of the script's loop. Other runs of the server play freely."""

    def __init__(self, run: str | None) -> None:
        self._run, self._changed, self._left = run, Condition(), 0

    def watch(self, run: str | None) -> None:
        """Name the script's run. While its name is empty, every run waits for a moment. None: there is no such run."""
        with self._changed:
            self._run = run
            self._changed.notify_all()

    def allow(self) -> None:
        """Allow one more round."""
        with self._changed:
            self._left = 1
            self._changed.notify_all()

    def hold(self) -> None:
        """Allow no further round."""
        with self._changed:
            self._left = 0

    def may(self, run: str) -> bool:
        """Tell whether a run may play a round now, and take the turn. Waits a little before it says no."""
        with self._changed:
            if not self._left and self._run in ("", run):
                self._changed.wait(LOOK_S)
            if self._run is None or (self._run and self._run != run):
                return True
            granted, self._left = bool(self._run and self._left), 0 if self._run else self._left
            return granted


def _recipe(
    path: Path, model: Any, stages: Sequence[Any] | None, merge: Any, strategy: Any, catalogue: Catalogue
) -> Recipe:
    """Read the recipe, with the parts and the model that the script gives."""
    overrides: dict[str, Any] = {}
    if isinstance(model, str | Path):
        base = str(model)
        local = base != "bundled" and not base.startswith("hub:")
        overrides["model.base"] = str(Path(base).expanduser().resolve()) if local else base
    if stages is not None:
        overrides["stage"] = [given.given_part_table(one, "stages") for one in stages]
    if merge is not None:
        overrides["merge"] = given.given_part_table(merge, "merge")
    if strategy is not None:
        overrides["strategy"] = given.given_part_table(strategy, "strategy")
    return loading.load(path, overrides, catalogue)


def _prepared(recipe: Recipe, recipe_dir: Path, model: Any, tags: Sequence[str], catalogue: Catalogue) -> StagedRun:
    if model is None or isinstance(model, str | Path):
        return prepared_submission(recipe, recipe_dir, tags, catalogue)
    if catalogue.trainer is not None:
        what = "model is a module, and an extension brings a trainer with a model of its own."
        raise RecipeError("E-COMBO", what, "leave out model, or the extension.")
    from edgewise.learn.models import modules

    check_submission(recipe)
    spec = modules.module_layout(model)
    facts = {"model": type(model).__name__, "trainable": spec.dim, "parameters": modules.module_parameter_count(model)}
    return submission_of_vector(
        recipe, spec, modules.read_module_vector(model, spec), OWN, facts, tags, catalogue.packages
    )


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not (host and port.isdigit() and int(port) < 2**16):
        raise TransportError("E-REQUEST", f"{listen} is not HOST:PORT.", 'write, say, listen="0.0.0.0:8443".')
    return host.strip("[]"), int(port)
