# SPDX-License-Identifier: MIT
"""The system bus: calls with a deadline, signals, a connection that comes back by itself.

The only importer of dbus_next, which makes the messages that go out (0.2.3, the last release; the
connection and what comes in are our own, see wire.py and unmarshal.py). Values are plain Python in
both directions: `Variant` of properties.py goes in where a message wants one, and what comes out
has its variants taken off.

Invariants:
- At most `in_flight` calls wait for an answer; more wait for their turn, within their deadline.
- Signals are delivered in the reader, as signals.py says.
- After a loss of the connection every call that was sent fails with `Lost`, the connection is made
  anew with back-off, every match is added again, and then the `on_resync` callbacks run: signals
  were missed.
"""

import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, ClassVar, Final, cast

from joblet.errors import Code, Internal, JobletError, Unavailable
from joblet.systemd import unmarshal
from joblet.systemd.properties import Variant
from joblet.systemd.signals import (
    DRIVER,
    DRIVER_PATH,
    Callback,
    Match,
    Signal,
    Subscriptions,
    owner_changes,
    run,
)
from joblet.systemd.unmarshal import Incoming
from joblet.systemd.wire import Wire, open_wire

# dbus_next also has a connection for GLib's main loop, and with it loads GLib itself, which Debian
# installs beside it: 4 MB and 14 ms in every process, for nothing. Without gi it does without.
_gi = sys.modules.get("gi")
sys.modules["gi"] = cast(ModuleType, None)
try:
    import dbus_next
finally:
    del sys.modules["gi"]
    if _gi is not None:
        sys.modules["gi"] = _gi

# Where the specification puts it, without the link over /var. No environment variable: init mode
# is root and takes no advice.
SYSTEM_BUS: Final = "unix:path=/run/dbus/system_bus_socket"

# The system bus answers the 129th unanswered call of a connection with LimitsExceeded
# (dbus-daemon: max_replies_per_connection). Half of it leaves room for calls whose caller gave up.
IN_FLIGHT: Final = 64

# Beyond this many unsent bytes, questions to us stay without an answer.
UNSENT_MAX: Final = 64 << 10

CALL_SECONDS: Final = 25.0
CONNECT_SECONDS: Final = 5.0
# How long after the loss of the bus calls wait for it: its restart takes less than a second. Then
# they fail at once until it is back, so that whoever waits hears of it soon.
PATIENCE_SECONDS: Final = 2.5
BACKOFF_SECONDS: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

# The answer when nobody owns the destination: the call was not delivered.
NAME_HAS_NO_OWNER: Final = "org.freedesktop.DBus.Error.NameHasNoOwner"
SERVICE_UNKNOWN: Final = "org.freedesktop.DBus.Error.ServiceUnknown"

HINT: Final = "see `systemctl status dbus.service dbus.socket`"

log = logging.getLogger(__name__)


class BusError(JobletError):
    """The other side answered with an error. `name` is its D-Bus name; callers decide by it."""

    code: ClassVar[Code] = Code.FAILED_PRECONDITION

    def __init__(self, what: str, why: str, *, name: str, hint: str = "") -> None:
        super().__init__(what, why, hint=hint)
        self.name = name


class Lost(Unavailable):
    """The call was sent and no answer will come: it may have been carried out, or not."""


class Bus:
    """The connection to one bus. `connect`, use, `close`; one event loop, no threads."""

    def __init__(self, address: str = SYSTEM_BUS, *, in_flight: int = IN_FLIGHT) -> None:
        self._address = address
        self._slots = asyncio.Semaphore(in_flight)
        self._ready = asyncio.Event()
        self._connection: _Connection | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False
        self._lost_at: float | None = None  # of the event loop's time
        self._trouble = "never connected"
        self._matching = asyncio.Lock()
        self._subscriptions = Subscriptions()
        self._resync_callbacks: list[Callable[[], None]] = []

    @property
    def connected(self) -> bool:
        connection = self._connection
        return connection is not None and self._ready.is_set() and not connection.trouble

    async def connect(self) -> None:
        """Connect once; from then on the connection is kept until `close`.

        Raises Unavailable at once if there is no bus, InvalidArgument for a bad address.
        """
        try:
            connection = await self._establish()
        except (OSError, Lost, BusError) as error:
            raise Unavailable(
                f"reach the bus at {self._address}",
                _why(error),
                hint=HINT,
            ) from None
        self._connection = connection
        self._ready.set()
        self._keeper = asyncio.create_task(self._keep(connection), name="bus")

    async def close(self) -> None:
        """Calls that wait fail with Unavailable. Does not wait for the bus; may be called again."""
        self._closed = True
        self._trouble = "the connection was closed"
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        self._ready.set()  # wakes the calls that wait for a connection; they see _closed

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[Any] = (),
        *,
        timeout: float = CALL_SECONDS,  # noqa: ASYNC109  it is the contract of a call
    ) -> list[Any]:
        """Call a method; the answer's body. `timeout` covers the wait for a turn and a connection.

        Never starts a service that does not run. Raises BusError for an error as answer, Lost if
        it was sent and the answer cannot be had, Unavailable if it was not sent.
        """
        what = f"call {member} of {destination}"
        message = _method_call(what, destination, path, interface, member, signature, body)
        sent = False
        try:
            async with asyncio.timeout(timeout), self._slots:
                connection = await self._connected(what)
                sent = True
                reply = await connection.call(what, message)
        except TimeoutError:
            kind = Lost if sent else Unavailable
            why = "no answer" if sent else f"no turn ({self._trouble or 'too many calls wait'})"
            raise kind(what, f"{why} within {timeout:g} s") from None
        return _answer(what, reply)

    async def add_match(
        self,
        match: Match,
        callback: Callback,
        *,
        timeout: float = CALL_SECONDS,  # noqa: ASYNC109
    ) -> None:
        """Have `callback` called for every signal that fits, from now until `close`.

        On return the subscription stands; a second one of the same pair changes nothing. Raises
        as `call`; then there is no subscription.
        """
        try:
            async with asyncio.timeout(timeout), self._matching:
                if not self._subscriptions.add(match, callback):
                    return
                try:
                    connection = await self._connected(f"subscribe to {match.rule}")
                    await self._follow(connection, match)
                except BaseException:
                    self._subscriptions.remove(match, callback)
                    raise
        except TimeoutError:
            raise Unavailable(f"subscribe to {match.rule}", "the bus does not answer") from None

    def owner(self, name: str) -> str:
        """The unique name of the connection that owns `name`, "" for nobody.

        `name` must be the sender of some match.
        """
        return self._subscriptions.owner(name) or ""

    def on_owner(self, name: str, callback: Callable[[str], None]) -> None:
        """Call back when another connection owns `name` ("" for nobody), as a service's restart.

        `name` must be the sender of some match.
        """
        self._subscriptions.on_owner(name, callback)

    def on_resync(self, callback: Callable[[], None]) -> None:
        """Call back after every reconnection, when all matches stand again."""
        self._resync_callbacks.append(callback)

    async def _connected(self, what: str) -> "_Connection":
        while True:
            if not self._ready.is_set():
                await self._back(what)
            if self._closed or self._connection is None:
                raise Unavailable(what, self._trouble)
            if not self._connection.trouble:
                return self._connection
            await asyncio.sleep(0)  # the keeper has yet to see that it ended

    async def _back(self, what: str) -> None:
        """Wait for the connection. Raises Unavailable when that takes too long."""
        patience = None if self._lost_at is None else self._lost_at + PATIENCE_SECONDS
        try:
            async with asyncio.timeout_at(patience):
                await self._ready.wait()
        except TimeoutError:
            why = f"the D-Bus at {self._address} is away: {self._trouble}"
            raise Unavailable(what, why, hint=HINT) from None

    async def _keep(self, connection: "_Connection") -> None:
        """Own the connection: wait for its end, make the next."""
        try:
            while True:
                await connection.ended()
                self._ready.clear()
                self._lost_at = asyncio.get_running_loop().time()
                self._trouble = connection.trouble
                await connection.close()
                log.warning("Lost the bus at %s: %s", self._address, self._trouble)
                connection = await self._reestablish()
                self._connection, self._trouble = connection, ""
                self._ready.set()
                log.info("Back on the bus at %s", self._address)
                for callback in list(self._resync_callbacks):
                    run(callback)
        finally:
            self._ready.clear()
            await connection.close(self._trouble)

    async def _reestablish(self) -> "_Connection":
        pauses = iter(BACKOFF_SECONDS)
        while True:
            try:
                return await self._establish()
            except (OSError, JobletError) as error:
                self._trouble = _why(error)
            await asyncio.sleep(next(pauses, BACKOFF_SECONDS[-1]))

    async def _establish(self) -> "_Connection":
        """A connection that said hello and has all matches. Raises OSError, Lost, BusError."""
        async with asyncio.timeout(CONNECT_SECONDS):
            connection = _Connection(await open_wire(self._address), self._subscriptions)
            try:
                await connection.driver("Hello", "", [])
                self._subscriptions.forget_owners()
                for match in self._subscriptions.matches:
                    await self._follow(connection, match)
            except BaseException:
                await connection.close()
                raise
        self._trouble = ""
        return connection

    async def _follow(self, connection: "_Connection", match: Match) -> None:
        """Add the match, and follow who owns the name in it."""
        name = match.sender
        if self._subscriptions.owner(name) is None:
            await connection.driver("AddMatch", "s", [owner_changes(name).rule])
            try:
                [owner] = await connection.driver("GetNameOwner", "s", [name])
            except BusError as error:
                if error.name != NAME_HAS_NO_OWNER:
                    raise
                owner = ""
            self._subscriptions.learn_owner(name, owner)
        await connection.driver("AddMatch", "s", [match.rule])


class _Connection:
    """One connection, from the first byte to its end; never reused."""

    def __init__(self, wire: Wire, subscriptions: Subscriptions) -> None:
        self._wire = wire
        self._subscriptions = subscriptions
        self._serial = 0
        self._calls: dict[int, asyncio.Future[Incoming]] = {}
        self.trouble = ""
        self._reader = asyncio.create_task(self._read(), name="bus reader")

    async def ended(self) -> None:
        """Wait until the connection is of no use any more; `trouble` says why."""
        await asyncio.wait([self._reader])

    async def close(self, trouble: str = "the connection was given up") -> None:
        """Fail every call that waits, end the reader. May be called again."""
        self.trouble = self.trouble or trouble
        self._reader.cancel()
        await asyncio.wait([self._reader])
        await self._wire.close()

    async def call(self, what: str, message: dbus_next.Message) -> Incoming:
        """Send, and wait for the answer as long as the caller lets it. Raises Lost, Internal."""
        if self.trouble:
            raise Lost(what, self.trouble)
        self._serial += 1
        serial = message.serial = self._serial
        try:
            frame = message._marshall()
        except Exception as error:  # the codec raises what the value provokes
            raise Internal(what, f"its arguments are not {message.signature!r}: {error}") from error
        future: asyncio.Future[Incoming] = asyncio.get_running_loop().create_future()
        self._calls[serial] = future
        try:
            self._wire.write(bytes(frame))
            await self._wire.drained()
            return await future
        except OSError as error:
            raise Lost(what, _why(error)) from None
        finally:
            self._calls.pop(serial, None)

    async def driver(self, member: str, signature: str, body: Sequence[Any]) -> list[Any]:
        """Call the bus itself."""
        what = f"call {member} of {DRIVER}"
        message = _method_call(what, DRIVER, DRIVER_PATH, DRIVER, member, signature, body)
        return _answer(what, await self.call(what, message))

    async def _read(self) -> None:
        try:
            while True:
                frame = await self._wire.receive()
                if unmarshal.kind(frame) == unmarshal.SIGNAL and not self._subscriptions.may_want(
                    frame
                ):
                    continue
                try:
                    message = unmarshal.decode(frame)
                except ValueError as error:
                    raise ConnectionAbortedError(f"unreadable message: {error}") from error
                self._take(message)
        except OSError as error:
            self.trouble = self.trouble or _why(error)
        except Exception as error:
            self.trouble = self.trouble or f"a bug in Joblet: {error!r}"
            log.exception("The bus reader failed")
        finally:
            for future in self._calls.values():
                if not future.done():
                    future.set_exception(ConnectionResetError(self.trouble))

    def _take(self, message: Incoming) -> None:
        match message.kind:
            case unmarshal.SIGNAL:
                signal = Signal(message.path, message.interface, message.member, message.body)
                self._subscriptions.deliver(message.sender, signal)
            case unmarshal.METHOD_CALL:
                self._refuse(message)
            case unmarshal.METHOD_RETURN | unmarshal.ERROR:
                future = self._calls.get(message.reply_serial)
                if future is not None and not future.done():
                    future.set_result(message)
            case _:
                pass  # kinds that the specification may add are to be ignored

    def _refuse(self, message: Incoming) -> None:
        """Nothing is exported here. Whoever asks hears that instead of waiting.

        Not if answers pile up: nobody may fill our memory with questions.
        """
        quiet = message.flags & unmarshal.NO_REPLY_EXPECTED
        if not quiet and self._wire.unsent < UNSENT_MAX:
            self._serial += 1
            reply = dbus_next.Message(
                message_type=dbus_next.MessageType.ERROR,
                destination=message.sender,
                reply_serial=message.serial,
                error_name=dbus_next.ErrorType.UNKNOWN_METHOD.value,
                signature="s",
                body=["nothing is served here"],
                serial=self._serial,
            )
            self._wire.write(bytes(reply._marshall()))


def _method_call(
    what: str,
    destination: str,
    path: str,
    interface: str,
    member: str,
    signature: str,
    body: Sequence[Any],
) -> dbus_next.Message:
    try:
        return dbus_next.Message(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            flags=dbus_next.MessageFlag.NO_AUTOSTART,
            signature=signature,
            body=[_to_wire(value) for value in body],
        )
    except Exception as error:  # the codec checks names, paths, signatures with its own errors
        raise Internal(what, str(error)) from error


def _answer(what: str, reply: Incoming) -> list[Any]:
    """The body of an answer. Raises what an error stands for."""
    if reply.kind == unmarshal.METHOD_RETURN:
        return reply.body
    why = reply.body[0] if reply.body and isinstance(reply.body[0], str) else reply.error_name
    match reply.error_name:
        case dbus_next.ErrorType.NO_REPLY.value:
            raise Lost(what, why)
        case dbus_next.ErrorType.LIMITS_EXCEEDED.value:
            raise Unavailable(what, why)
    raise BusError(what, why, name=reply.error_name)


def _to_wire(value: Any) -> Any:
    """The codec wants its own Variant, and lists for structs."""
    if isinstance(value, Variant):
        return dbus_next.Variant(value.signature, _to_wire(value.value))
    if isinstance(value, list | tuple):
        return [_to_wire(item) for item in value]
    if isinstance(value, dict):
        return {key: _to_wire(item) for key, item in value.items()}
    return value


def _why(error: Exception) -> str:
    if isinstance(error, JobletError):
        return error.why
    if isinstance(error, TimeoutError):
        return "it does not answer"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
