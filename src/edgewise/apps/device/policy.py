"""The policy of a device's owner, ``policy.toml`` in the home folder: text, conditions, limits, and the least privacy.

    first_policy(home)                        # join writes the file, unless there is one
    policy = load(home)
    accept(raw, signature, server, spec, policy.floor(), catalogue)
    Devices(..., budget=policy.owner_budget(ledgers))
    tables = {**facts.settings()["data"], **policy.data_keys(home)}     # the text is the owner's
    extension_packages.catalogue(facts.packages, policy.packages(), policy.always())

Keys are read as in a recipe. An unknown key is refused, with file, line and the nearest known one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files as resources
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from edgewise.core.digests import DIGEST
from edgewise.core.errors import RecipeError
from edgewise.core.foreign import foreign
from edgewise.crypto.attest.accept import UP_TO_DATE, Reference
from edgewise.crypto.attest.evidence import IDENTITY, Platform
from edgewise.drivers.storage.files import FOLDER, sync_folder, write_durably
from edgewise.plan.recipe import findings, toml
from edgewise.plan.recipe.data import SHIPPED, DataSection
from edgewise.plan.recipe.places import Origin
from edgewise.plan.recipe.privacy import Privacy
from edgewise.plan.recipe.rules import Section, SettingError, rule
from edgewise.plan.recipe.sections import LARGEST_EPSILON

if TYPE_CHECKING:  # `edgewise device status` needs none of them, and starts faster.
    from edgewise.engine.owner_budget import DeviceLedgers, OwnerBudget
    from edgewise.plan.acceptance import OwnerFloor

FILE = "policy.toml"
MB = 1e6
_RANGE = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_MODEL = re.compile(rf"bundled|(sha256|module):{DIGEST}")
_COLUMNS = ("text", "prompt", "messages", "tools", "answers", "as_chat", "time", "time_format", "separator")
_HERE = ("source", "path", *_COLUMNS)  # keys of both [data]


class PolicyData(Section):
    """The text that this device trains on. The keys have the meaning of a recipe's [data]."""

    source: Literal["text", "jsonl", "csv", "parquet", "plays", "python-stdlib", "keywords"] = "text"
    path: str | list[str] = Field("", description="file or folder, from this file's folder; empty: no work yet")
    text: str = "text"
    prompt: str | list[str] = ""
    messages: str | list[str] = ""
    tools: str = ""
    answers: Literal["all", "last"] = "all"
    as_chat: bool = False
    time: str = ""
    time_format: str = ""
    separator: str = ""

    @property
    def given(self) -> bool:
        """True if there is text to train on."""
        return bool(self.path) or self.source in SHIPPED

    @rule
    def _as_in_a_recipe(self) -> Iterator[SettingError]:
        if self.given:
            tables = {**_one_device(), **{key: getattr(self, key) for key in _HERE}}
            yield from DataSection.model_construct(**tables).faults()


class PolicyLimits(Section):
    """The resources of this device that a run may take."""

    upload_mb: float = Field(100.0, gt=0, le=1e6, description="of one round at most, in all its attempts, 10^6 bytes")
    upload_mb_per_day: float = Field(1000.0, gt=0, le=1e9, description="of all rounds of a day, by local time")
    local_steps: int = Field(0, ge=0, description="optimizer steps of a round at most; 0 = any number")
    memory_mb: float = Field(
        0.0, ge=0, le=1e9, description="of training at most, 10^6 bytes beside Python and torch; 0 = any amount"
    )
    compiled: bool = Field(
        True, description="compile loops by numba; false: interpret them, for devices with less than 256 MB"
    )
    cache_mb: float = Field(20000.0, gt=0, le=1e9, description="models, blobs and caches on the disk, 10^6 bytes")
    cache_days: float = Field(30.0, gt=0, le=36500, description="days that unused ones of them stay")


class PolicyTimes(Section):
    """The times at which this device works."""

    quiet: list[str] = Field([], max_length=48, description='local times without work, such as "22:00-06:30"')
    command: list[str] = Field([], description="a program and its arguments; exit status 0 allows work")

    @rule
    def _ranges(self) -> Iterator[SettingError]:
        for one in self.quiet:
            if not _RANGE.fullmatch(one) or one[:5] == one[6:]:
                what = f'when.quiet has "{one:.20}", which is no range of local times'
                yield SettingError("E-VALUE", what, 'write it like "22:00-06:30"')

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The quiet hours in minutes of the day, from the first up to the second. A smaller second crosses midnight."""
        return tuple((_minute(one[:5]), _minute(one[6:])) for one in self.quiet)


class LeastPrivacy(Section):
    """The least privacy that a run must promise."""

    words: list[Privacy] = Field(
        ["hidden", "distributed_dp", "local_dp"], min_length=1, description="values of a recipe's ``privacy``"
    )
    hidden: bool = Field(False, description="single updates must be hidden from the server")
    device_unit: bool = Field(False, description="an epsilon must be about all text of the device, not one example")
    epsilon: float | None = Field(None, gt=0, le=LARGEST_EPSILON, description="of a whole run at most")
    delta: float = Field(1e-5, gt=0, lt=1, description="of an epsilon at most")
    noise_multiplier: float = Field(0.0, ge=0, description="of a run's noise at least")
    clip_l2: float | None = Field(None, gt=0, description="L2 norm of an update at most")
    cohort: int = Field(2, ge=1, description="contributions to a sum at least")
    malicious_fraction: float = Field(
        0.0, ge=0, le=0.5, description="share of corrupt devices that hidden sums allow for at least"
    )
    server: Literal["malicious", "curious"] = Field(
        "malicious", description="hidden sums must stand a server that lies, or one that follows the protocol and reads"
    )
    evaluation: bool = Field(True, description="a loss on held-out text may leave, as a part of an update")
    split: bool = Field(
        False, description="activations and gradients of the text may go to a server that has the rest of the model"
    )
    gateway: str = Field(
        "", pattern=r"^([0-9a-f]{32})?$", description="fingerprint of the second server that shares may be sealed to"
    )

    @rule
    def _hidden_words(self) -> Iterator[SettingError]:
        if self.hidden and not set(self.words) - {"none", "local_dp"}:
            what = f"privacy.hidden with privacy.words = {self.words}: no run of these words hides updates"
            yield SettingError("E-COMBO", what, 'add "hidden" or "distributed_dp", or write hidden = false')


class PolicyCap(Section):
    """The privacy budget of this device over all runs."""

    epsilon: float | None = Field(None, gt=0, le=LARGEST_EPSILON, description="over all runs; absent = no cap")
    delta: float = Field(1e-5, gt=0, lt=1)

    @rule
    def _delta_of_something(self) -> Iterator[SettingError]:
        if self.epsilon is None and self.delta != type(self).model_fields["delta"].default:
            what = "budget.delta belongs to budget.epsilon, which is not given"
            yield SettingError("E-COMBO", what, "give budget.epsilon, or leave out budget.delta")


class PolicyModels(Section):
    """The models that this device trains."""

    allow: list[str] = Field([], description="as a run's facts name them: bundled, sha256:DIGEST; empty = any")

    @rule
    def _names(self) -> Iterator[SettingError]:
        for one in self.allow:
            if not _MODEL.fullmatch(one):
                what = f'model.allow has "{one:.80}", which names no model'
                yield SettingError("E-VALUE", what, 'write "bundled", or "sha256:" and 64 hexadecimal digits')


class OwnPackage(Section):
    """An installed package whose trainer, codecs and strategies runs may use."""

    name: str = Field(..., pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="as pip knows it")
    sha256: str = Field(..., pattern=rf"^{DIGEST}$", description="of its files (`edgewise device digest NAME`)")
    every_run: bool = Field(False, description="its trainer also trains in runs whose own packages bring none")


class Attested(Section):
    """A program that may hold the key of the second server, as its processor attests."""

    platform: Platform = Field(..., description="what signs the evidence")
    registers: dict[str, str] = Field(
        ..., description="name -> hexadecimal digits that the evidence must state, the program's identity among them"
    )
    versions: dict[str, int] = Field({}, description="name -> least version of the firmware (snp)")
    statuses: list[str] = Field([UP_TO_DATE], min_length=1, description="accepted ones of the platform (tdx, sgx)")
    signer: str | None = Field(None, pattern=r"^[0-9a-f]{64}$", description="key of simulated statements")

    @rule
    def _identified(self) -> Iterator[SettingError]:
        name = IDENTITY[self.platform]
        if not re.fullmatch(r"([0-9a-fA-F]{2})+", self.registers.get(name, "")):
            what = f'[[attested]] of "{self.platform}" does not say which program: registers.{name} is missing'
            yield SettingError("E-VALUE", what, f"give {name} in hexadecimal; `edgewise device evidence` prints it")

    @rule
    def _signed_by(self) -> Iterator[SettingError]:
        if (self.platform == "simulated") != (self.signer is not None):
            what = f'attested.signer belongs to platform = "simulated" alone, here it is "{self.platform}"'
            yield SettingError("E-COMBO", what, "give the key that signs simulated statements, or leave it out")

    def reference(self) -> Reference:
        """Return the program as evidence is compared with it."""
        return Reference(self.platform, self.registers, self.versions, tuple(self.statuses), self.signer)


class Policy(Section):
    """A whole policy."""

    data: PolicyData = PolicyData()
    limits: PolicyLimits = PolicyLimits()
    when: PolicyTimes = PolicyTimes()
    privacy: LeastPrivacy = LeastPrivacy()
    budget: PolicyCap = PolicyCap()
    model: PolicyModels = PolicyModels()
    package: list[OwnPackage] = Field([])
    attested: list[Attested] = Field([])

    @rule
    def _each_once(self) -> Iterator[SettingError]:
        if len({package.name for package in self.package}) < len(self.package):
            yield SettingError("E-COMBO", "[[package]] names one twice", "keep one of them")

    def floor(self) -> OwnerFloor:
        """Return the promises that every run has to make."""
        from edgewise.plan.acceptance import OwnerFloor
        from edgewise.secagg.params import Floor

        asked, limits = self.privacy, self.limits
        return OwnerFloor(
            epsilon=inf if asked.epsilon is None else asked.epsilon,
            device_unit=asked.device_unit,
            hidden=asked.hidden,
            local_steps=limits.local_steps or inf,
            upload_bytes=MB * min(limits.upload_mb, limits.upload_mb_per_day),
            secagg=Floor(max(2, asked.cohort), asked.malicious_fraction, asked.server),
            delta=asked.delta,
            words=tuple(asked.words),
            clip_l2=inf if asked.clip_l2 is None else asked.clip_l2,
            noise_multiplier=asked.noise_multiplier,
            cohort=asked.cohort,
            models=tuple(self.model.allow),
            split=asked.split,
        )

    def owner_budget(self, ledgers: DeviceLedgers) -> OwnerBudget | None:
        """Make the budget over all runs, with the charges of this device (``drivers.workers.devices.Devices``).

        None: the owner does not cap it.
        """
        from edgewise.engine.owner_budget import OwnerBudget
        from edgewise.privacy.ledger import Budget

        if self.budget.epsilon is None:
            return None
        return OwnerBudget(Budget(self.budget.epsilon, self.budget.delta), ledgers)

    def packages(self) -> dict[str, str]:
        """Map the names of the packages that runs may use to their digests."""
        return {package.name: package.sha256 for package in self.package}

    def always(self) -> tuple[str, ...]:
        """Name the packages whose trainer trains in runs without a trainer of their own."""
        return tuple(package.name for package in self.package if package.every_run)

    def engine_keys(self) -> dict[str, float]:
        """Return the keys of [engine] that the owner decides. Empty where the policy leaves them as they are."""
        return {"max_memory_mb": self.limits.memory_mb} if self.limits.memory_mb else {}

    def data_keys(self, home: Path) -> dict[str, Any]:
        """Return the keys of [data] that the owner decides: the text's absolute paths, and how it is read.

        Raises RecipeError(E-MISSING) if the policy names no text.
        """
        if not self.data.given:
            what = f"{home / FILE} names no text: data.path is empty."
            raise RecipeError("E-MISSING", what, "write the file or folder that this device trains on.")
        keys: dict[str, Any] = {key: getattr(self.data, key) for key in _HERE}
        path = self.data.path
        keys["path"] = [_at(home, one) for one in path] if isinstance(path, list) else path and _at(home, path)
        return keys


def load(home: Path) -> Policy:
    """Read the device owner's policy from a home folder.

    Raises:
        RecipeError: E-RECIPE-READ without a policy. E-RECIPE-SYNTAX, E-KEY, E-TYPE, E-VALUE, E-MISSING and E-COMBO as
            for a recipe, with file and line.
    """
    path = home / FILE
    fix = "write one: `edgewise device policy` writes it with all keys and their meaning."
    with foreign(RecipeError, "E-RECIPE-READ", str(path), fix), open(path, encoding="utf-8") as f:
        text = f.read(toml.LONGEST + 1)
    return parse_owner_policy(text, str(path))


def parse_owner_policy(text: str, where: str) -> Policy:
    """Parse a policy from TOML text. Raises RecipeError as ``load``. A message names all faults."""
    plain = toml.read(text, where)
    toml.bounded(plain, where)
    help = "see the comments that `edgewise device policy --print` shows."
    result = findings.examined(Policy, plain, help)
    if result.value is None:
        raise findings.error(result.findings, Origin(where, text))
    return result.value


def owner_policy_template() -> str:
    """Write the policy that ``join`` begins with: every key with its meaning and its default."""
    return (resources("edgewise") / "assets" / FILE).read_text(encoding="utf-8")


def first_policy(home: Path) -> bool:
    """Write the template into a home folder without a policy. Returns whether it did. Raises StoreError(E-DISK)."""
    if (home / FILE).exists():
        return False
    home.mkdir(FOLDER, parents=True, exist_ok=True)
    write_durably(home / FILE, owner_policy_template().encode(), owner_only=True)
    sync_folder(home)
    return True


def _one_device() -> dict[str, Any]:
    return {"partition": "iid", "devices": 1}


def _at(home: Path, path: str) -> str:
    return str((home / Path(path).expanduser()).absolute())


def _minute(text: str) -> int:
    return 60 * int(text[:2]) + int(text[3:])
