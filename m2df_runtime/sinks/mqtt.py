"""Events to an MQTT broker, and beside them whether m2df and its cameras are there."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import unquote

from m2df_runtime.errors import EnvironmentMissing, InputError
from m2df_runtime.sinks.names import fit
from m2df_runtime.sinks.places import cause_of, place_of
from m2df_runtime.sinks.sink import MOST_EVENTS, Sink
from m2df_runtime.stream.events import Event
from m2df_runtime.stream.sources.live import SourceState

if TYPE_CHECKING:
    from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

_PREFIX = "m2df"
_KEEPALIVE = 30  # seconds: a broker tells of a process that is gone after one and a half of them
_PAUSES = (1, 30)  # seconds before a broker is tried again: the first, doubled up to the longest
_UNANSWERED = 20  # events that are sent before the broker has taken the first of them
_GOODBYE = 0.1  # seconds, twice, in which the broker is told that this was the end; it finds out by itself, too


class Mqtt(Sink[Event]):
    """Publishes every event that is put in on `prefix/<camera>/events`, as `m2df-run --json` prints it, with QoS 1.

    `prefix/status` is `online` or `offline`, `prefix/<camera>/state` how a camera is; both are retained. A broker that
    is lost is tried for ever. An event may come twice after a loss.

    Args:
        address: mqtt:// or mqtts://, with user and password where it asks for them, and a prefix (m2df without one);
            `${NAME}` is taken from the environment. Certificates are checked.
        tell: See `Sink`.

    Raises:
        InputError: An address of another kind, or a variable that is not there.
        EnvironmentMissing: paho-mqtt is not installed.
    """

    def __init__(self, address: str, tell: Callable[[str], None] | None = None) -> None:
        place = place_of(address, {"mqtt": 1883, "mqtts": 8883}, "mqtt://user:${MQTT_PASSWORD}@192.168.1.10/home")
        self._prefix = unquote(place.path).strip("/") or _PREFIX
        if any(character in "+#" or not character.isprintable() for character in self._prefix):
            raise InputError(f"{place.shown}: + and # cannot stand in a prefix of topics", "leave them out")
        try:
            from paho.mqtt.client import CallbackAPIVersion, Client
        except ImportError:
            raise EnvironmentMissing(
                "MQTT needs paho-mqtt, which is not installed", "pip install 'm2df[mqtt]'"
            ) from None
        self._connected = False
        self._states: dict[str, str] = {}  # topic to what it says
        self._stating = threading.RLock()  # one state after the other
        self._unanswered: dict[int, bool] = {}  # number of a message to whether it is an event
        self._answered: set[int] = set()  # before we knew their number
        self._client = client = Client(CallbackAPIVersion.VERSION2)
        super().__init__("mqtt", place.shown, MOST_EVENTS, tell=tell)
        client.will_set(f"{self._prefix}/status", "offline", qos=1, retain=True)
        if place.user is not None:
            client.username_pw_set(place.user, place.password)
        if place.scheme == "mqtts":
            import ssl

            client.tls_set_context(ssl.create_default_context())
        client.reconnect_delay_set(*_PAUSES)
        client.on_connect, client.on_connect_fail = self._on_connect, self._on_connect_fail
        client.on_disconnect, client.on_publish = self._on_disconnect, self._on_publish
        client.connect_async(place.host, place.port, _KEEPALIVE)
        client.loop_start()

    def state(self, state: SourceState) -> None:
        """How a live source is now; it is what `LiveFrames` takes as `on_state`."""
        topic = f"{self._prefix}/{fit(state.name)}/state"
        known = (state.name, state.state, state.cause, state.detail, state.picture)
        said = dict(zip(("camera", "state", "cause", "detail", "picture"), known, strict=True))
        with self._stating:
            self._states[topic] = json.dumps({**said, "time": round(time.time(), 3)})
            if self._connected:
                self._publish(topic, self._states[topic], retain=True)

    def _deliver(self, item: Event) -> None:
        with self._news:
            self._news.wait_for(lambda: self._over or (self._connected and self._taken <= _UNANSWERED))
            if self._over:
                return
        self._publish(f"{self._prefix}/{fit(item.camera)}/events", json.dumps(item.record(), allow_nan=False))

    def _publish(self, topic: str, text: str, *, retain: bool = False) -> None:
        """Hand a message to the client, which sends an event again after a loss until it is answered.

        What is retained is sent anew by us: an old state must not come after a new one.
        """
        number = self._client.publish(topic, text, qos=0 if retain else 1, retain=retain).mid
        with self._news:
            self._unanswered[number] = not retain
            early = number in self._answered
        if early:
            self._on_answer(number)

    def _on_answer(self, number: int) -> None:
        with self._news:
            if number not in self._unanswered:
                return self._answered.add(number)
            self._answered.discard(number)
            if self._unanswered.pop(number):
                self._settle()

    def _leave(self) -> None:
        with self._stating:
            if self._connected:
                last = self._client.publish(f"{self._prefix}/status", "offline", qos=1, retain=True)
                with suppress(RuntimeError, ValueError):  # the connection is gone
                    last.wait_for_publish(_GOODBYE)
        self._client.disconnect()
        with self._news:
            self._news.wait_for(lambda: not self._connected, _GOODBYE)

    # What follows runs on the client's thread.

    def _on_connect(
        self, client: Client, _: object, flags: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            return self._say(f"no connection, it is tried again: unauthorised ({reason})")
        if self._over:
            client.disconnect()
            return None
        with self._stating:
            self._publish(f"{self._prefix}/status", "online", retain=True)
            for topic, said in self._states.items():
                self._publish(topic, said, retain=True)
            with self._news:
                self._connected = True
                self._news.notify_all()
        return self._say("connected")

    def _on_connect_fail(self, client: Client, _: object) -> None:
        error = sys.exc_info()[1]  # that the client handles at this moment
        self._say(f"no connection, it is tried again: {cause_of(error) if error else 'closed'}")

    def _on_disconnect(
        self, client: Client, _: object, flags: DisconnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        with self._news:
            lost, self._connected = self._connected and not self._over, False
            self._news.notify_all()
        if lost:
            self._say("the connection is lost, it is tried again")

    def _on_publish(
        self, client: Client, _: object, number: int, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._on_answer(number)
