"""The routes of promoted models: list, show, promote, roll back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated

from annotated_types import Ge, Lt
from fastapi import FastAPI, Request
from pydantic import BaseModel

from edgewise.apps.server import promoting
from edgewise.apps.server.decisions import current_member
from edgewise.drivers.fleet import promotions
from edgewise.drivers.fleet.promotions import Promotion
from edgewise.drivers.http.guard import caller
from edgewise.drivers.http.service import Service


class PromotedModel(BaseModel):
    """A promoted model and its lineage (``drivers.fleet.promotions``)."""

    verb: str
    run: str
    name: str
    played: int
    model: str
    total: str | None
    chain: str
    layout: str
    base: str
    blobs: dict[str, int]
    by: str
    at_s: float


class Promoting(BaseModel):
    """The model to promote: of a run, after a number of rounds. Null: the model that counts."""

    run: str
    played: Annotated[int, Ge(1), Lt(2**31)] | None = None


class ModelRoutes:
    """The routes of promoted models. Verifications run one at a time."""

    def __init__(self, service: Service) -> None:
        self._service, self._alone = service, asyncio.Lock()

    def add_to(self, api: FastAPI) -> None:
        """Register the routes."""
        api.add_api_route("/v1/models", self.models, methods=["GET"])
        api.add_api_route("/v1/models", self.promote, methods=["POST"], status_code=201)
        api.add_api_route("/v1/models/promoted", self.promoted, methods=["GET"])
        api.add_api_route("/v1/models/rollback", self.rollback, methods=["POST"])

    async def models(self) -> list[PromotedModel]:
        """List all promotions and rollbacks, the oldest first."""
        return [_shown(one) for one in await self._service.read(promotions.promotion_history)]

    async def promoted(self) -> PromotedModel:
        """Show the promoted model, also to devices and gateways."""
        return _shown(await self._service.read(promotions.current_promotion))

    async def promote(self, request: Request, wanted: Promoting) -> PromotedModel:
        """Verify a run, and promote one of its models."""
        return await self._done(request, lambda by: self.promoted_by(by, wanted.run, wanted.played))

    async def rollback(self, request: Request) -> PromotedModel:
        """Verify the run of the previously promoted model, and return to that model."""
        return await self._done(request, self.rolled_back_by)

    async def _done(self, request: Request, work: Callable[[str], Promotion]) -> PromotedModel:
        """Spend the request's nonce, and do the work in a thread."""
        member, proof = caller(request).signed()
        await self._service.write(lambda c: self._service.spend(c, proof))
        return _shown(await self.alone(lambda: work(member.id)))

    def promoted_by(self, by: str, run: str, played: int | None) -> Promotion:
        """Promote for a member that may do so when the replay has ended. Raises as ``promoting.promote``, E-ROLE."""
        return promoting.promote(self._service, run, played, by, lambda c: current_member(c, by))

    def rolled_back_by(self, by: str) -> Promotion:
        """Return to the former model for such a member. Raises as ``promoting.rollback``, E-ROLE."""
        return promoting.rollback(self._service, by, lambda c: current_member(c, by))

    async def alone(self, work: Callable[[], Promotion]) -> Promotion:
        """Do the work in a thread when no other promotion is under way."""
        async with self._alone:
            return await asyncio.get_running_loop().run_in_executor(None, work)


def _shown(one: Promotion) -> PromotedModel:
    return PromotedModel(
        verb=one.verb, run=one.run, name=one.name, played=one.played, model=one.model, total=one.total,
        chain=one.chain, layout=one.layout, base=one.base, blobs=dict(one.blobs), by=one.by, at_s=one.at_s,
    )  # fmt: skip
