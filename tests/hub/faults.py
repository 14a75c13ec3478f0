"""What can go wrong between a server and its client, as a layer around any ASGI application."""

import asyncio
import re
import threading
from dataclasses import dataclass, field

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Dropped", "Fault", "Faults"]

PIECE = 1 << 14  # bytes


@dataclass
class Fault:
    """One thing that goes wrong.

    Attributes:
        request: A regular expression that is searched in requests as in ``GET /lab/model/resolve/main/x``.
        times: How many requests it befalls.
        status: Answer with this status instead of carrying the request out.
        drop_after: Carry it out, then drop the connection after so many bytes of the answer.
        flip: Carry it out, and invert the byte of the answer with this index.
        delay: Seconds to wait before each 16 KiB of the answer.
        hold: Wait for this event before the request is carried out.
        hold_after: Wait for ``hold`` after so many bytes of the answer instead.
    """

    request: str
    times: int = 1_000_000
    status: int | None = None
    drop_after: int | None = None
    flip: int | None = None
    delay: float = 0
    hold: threading.Event | None = None
    hold_after: int | None = None


class Dropped(Exception):
    """Ends an answer in the middle."""


@dataclass
class Faults:
    """Applies the first fault that fits to each request."""

    app: ASGIApp
    planned: list[Fault] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self._next(f"{scope['method']} {scope['path']}") if scope["type"] == "http" else None
        if fault is None:
            await self.app(scope, receive, send)
            return
        if fault.hold is not None and fault.hold_after is None:
            await _wait(fault.hold)
        if fault.status is not None:
            await PlainTextResponse("injected", fault.status)(scope, receive, send)
            return
        await self.app(scope, receive, _Spoiled(fault, send))

    def _next(self, request: str) -> Fault | None:
        for fault in self.planned:
            if fault.times and re.search(fault.request, request):
                fault.times -= 1
                return fault
        return None


@dataclass
class _Spoiled:
    """Sends an answer the way a fault has it."""

    fault: Fault
    send: Send
    sent: int = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] != "http.response.body":
            await self.send(message)
            return
        body = message.get("body", b"")
        for start in range(0, len(body), PIECE):
            await self._send_piece(body[start : start + PIECE])
        await self.send({**message, "body": b""})

    async def _send_piece(self, piece: bytes) -> None:
        fault, start, end = self.fault, self.sent, self.sent + len(piece)
        if fault.delay:
            await asyncio.sleep(fault.delay)
        if fault.flip is not None and start <= fault.flip < end:
            index = fault.flip - start
            piece = piece[:index] + bytes([piece[index] ^ 0xFF]) + piece[index + 1 :]
        limit = fault.drop_after if fault.hold is None else fault.hold_after
        if limit is not None and end > limit:
            await self._send(piece[: max(0, limit - start)])
            if fault.hold is None:
                raise Dropped
            await _wait(fault.hold)
            piece = piece[max(0, limit - start) :]
        await self._send(piece)
        self.sent = end

    async def _send(self, piece: bytes) -> None:
        await self.send({"type": "http.response.body", "body": piece, "more_body": True})


async def _wait(event: threading.Event) -> None:
    while not event.is_set():
        await asyncio.sleep(0.005)
